package challenge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

var epoch = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Dir: t.TempDir()})
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	_, err = s.Recover(epoch, func(store.Transaction) audit.Record { return audit.Record{} })
	must(t, err)
	return s
}

func record(a audit.Action) audit.Record {
	return audit.Record{Time: epoch, TimeSource: "rtc", Action: a, Outcome: audit.OutcomeSuccess}
}

// begin begins the n-th transaction of a key with a verdict's guards.
func begin(s *store.Store, key store.TransactionKey, n byte, v Verdict) error {
	serial := func(n byte) string { return fmt.Sprintf("%x", append([]byte{n + 1}, key[:15]...)) }
	i := store.Intent{Key: key, Serial: serial(n), Profile: "corp", Begun: epoch, Guards: v.Guards, Issuer: make([]byte, 32), PublicKey: key[:]}
	if n > 0 {
		i.After = serial(n - 1)
	}
	return s.Begin(i, record(audit.IssuanceBegun))
}

func lose(t testing.TB, s *store.Store, key store.TransactionKey, n byte) {
	t.Helper()
	must(t, s.Lose(fmt.Sprintf("%x", append([]byte{n + 1}, key[:15]...)), epoch, record(audit.TransactionLost)))
}

func keyOf(name string) store.TransactionKey {
	return hashFields("test transaction", name)
}

// csrFor makes a CSR with a subject and names written "kind:value".
func csrFor(t testing.TB, subject pkix.Name, sans ...string) *pki.Request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := x509.CertificateRequest{Subject: subject}
	for _, san := range sans {
		kind, value, _ := strings.Cut(san, ":")
		switch kind {
		case "dns":
			template.DNSNames = append(template.DNSNames, value)
		case "email":
			template.EmailAddresses = append(template.EmailAddresses, value)
		case "ip":
			template.IPAddresses = append(template.IPAddresses, net.ParseIP(value))
		case "uri":
			u, err := url.Parse(value)
			must(t, err)
			template.URIs = append(template.URIs, u)
		case "upn": // alone, or crypto/x509's names are lost
			if len(sans) > 1 {
				t.Fatal("a upn and other names")
			}
			template.ExtraExtensions = append(template.ExtraExtensions, upnExtension(t, value))
		default:
			t.Fatalf("kind %s", kind)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	must(t, err)
	r, err := pki.ParseRequest(der)
	must(t, err)
	return r
}

func upnExtension(t testing.TB, upn string) pkix.Extension {
	t.Helper()
	text, err := asn1.MarshalWithParams(upn, "utf8")
	must(t, err)
	value, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true,
		Bytes: append(derOf(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 3}),
			derOf(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: text})...),
	}})
	must(t, err)
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func derOf(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	must(t, err)
	return b
}

func named(cn string) pkix.Name { return pkix.Name{CommonName: cn} }

// wantRefused checks that an error is a refusal with a label, and is ErrWrong.
func wantRefused(t testing.TB, what string, err error, want Label) {
	t.Helper()
	var r *Refused
	if !errors.As(err, &r) || r.Label != want || !errors.Is(err, ErrWrong) {
		t.Errorf("%s: error %v, want refused as %s", what, err, want)
	}
}

func newOneTime(t testing.TB, s *store.Store, profile string) *OneTime {
	t.Helper()
	o, err := NewOneTime(OneTimeConfig{Store: s, Profile: profile, TTL: time.Hour})
	must(t, err)
	return o
}

func mint(t testing.TB, s *store.Store, o *OneTime, cn string, sans ...string) string {
	t.Helper()
	secret, _, err := o.Mint(cn, sans, 0, epoch, func(g store.Guard) error { return s.Mint(g, record(audit.ChallengeMinted)) })
	must(t, err)
	return secret
}

func TestOneTime(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "iot")
	csr := csrFor(t, named("printer-17"))
	a, b := keyOf("a"), keyOf("b")
	verify := func(challenge string, csr *pki.Request, key store.TransactionKey, now time.Time) (Verdict, error) {
		return o.Verify(Request{Challenge: challenge, CSR: csr, Transaction: key, Now: now})
	}
	secret := mint(t, s, o, "printer-17")
	if len(secret) != 32 || secret == mint(t, s, o, "printer-17") {
		t.Errorf("challenge of %d characters, or not random", len(secret))
	}

	for what, wrong := range map[string]string{
		"empty": "", "another": strings.Repeat("0", 32), "lower case": strings.ToLower(secret), "cut": secret[1:], "long": secret + "0",
	} {
		if _, err := verify(wrong, csr, a, epoch); !errors.Is(err, errNotMinted) {
			t.Errorf("%s challenge: %v", what, err)
		}
	}
	if _, err := newOneTime(t, s, "corp").Verify(Request{Challenge: secret, CSR: csr, Now: epoch}); !errors.Is(err, errNotMinted) {
		t.Errorf("at another profile: %v", err)
	}
	_, err := verify(secret, csrFor(t, named("printer-18")), a, epoch)
	wantRefused(t, "another device", err, ClaimMismatch)
	if strings.Contains(err.Error(), "printer") || strings.Contains(err.Error(), secret) {
		t.Errorf("the refusal tells what the challenge is for: %v", err)
	}
	_, err = verify(secret, csr, a, epoch.Add(time.Hour))
	wantRefused(t, "after an hour", err, Expired)

	v, err := verify(secret, csr, a, epoch.Add(time.Hour-1))
	must(t, err)
	if v.Kind != KindOneTime || v.Identity != "printer-17" {
		t.Errorf("verdict %+v", v)
	}
	must(t, begin(s, a, 0, v))
	_, err = verify(secret, csr, b, epoch)
	wantRefused(t, "another request, after it was used", err, Replay)
	if err := begin(s, b, 0, v); !errors.Is(err, store.ErrGuardUsed) {
		t.Errorf("another request that was verified before it was used: %v", err)
	}

	// The request that used it still has it, also after its time and when its issuance was lost.
	lose(t, s, a, 0)
	v, err = verify(secret, csr, a, epoch.Add(2*time.Hour))
	must(t, err)
	must(t, begin(s, a, 1, v))
}

func TestOneTimeBinding(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "iot")
	two := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "printer-17"}, {Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "root"},
	}}
	serial := pkix.Name{SerialNumber: "printer-17"}
	mailed := func(address string) pkix.Name {
		return pkix.Name{CommonName: "printer-17", ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidEmailAddress, Value: address}}}
	}
	tests := []struct {
		what    string
		bound   []string
		subject pkix.Name
		sans    []string
		isGood  bool
	}{
		{"another case", nil, named("PRINTER-17"), nil, true},
		{"a look-alike", nil, named("printer\u201117"), nil, false},
		{"a letter that folds to k", nil, named("\u212a"), nil, false},
		{"two common names", nil, two, nil, false},
		{"named by its serial number", nil, serial, nil, true},
		{"another serial number", nil, pkix.Name{SerialNumber: "printer-18"}, nil, false},
		{"no name", nil, pkix.Name{Organization: []string{"printer-17"}}, nil, false},
		{"the name as DNS name", nil, named("printer-17"), []string{"dns:printer-17", "dns:printer-17.example.test"}, true},
		{"another DNS name", nil, named("printer-17"), []string{"dns:printer-17", "dns:admin.example.test"}, false},
		{"a DNS name that only begins so", nil, named("printer-17"), []string{"dns:printer-170.example.test"}, false},
		{"an address", nil, named("printer-17"), []string{"ip:192.0.2.1"}, false},
		{"an e-mail address that begins so", nil, named("printer-17"), []string{"email:printer-17.a@example.test"}, false},
		{"another UPN", nil, named("printer-17"), []string{"upn:admin@example.test"}, false},
		{"bound names", []string{"dns:a.test", "ip:192.0.2.1"}, named("printer-17"), []string{"ip:192.0.2.1", "dns:A.test"}, true},
		{"one bound name missing", []string{"dns:a.test", "ip:192.0.2.1"}, named("printer-17"), []string{"dns:a.test"}, false},
		{"one name more than bound", []string{"dns:a.test"}, named("printer-17"), []string{"dns:a.test", "dns:b.test"}, false},
		{"the name itself, which is not bound", []string{"dns:a.test"}, named("printer-17"), []string{"dns:printer-17"}, false},
		{"a bound name as another kind", []string{"dns:a.test"}, named("printer-17"), []string{"email:a.test"}, false},
		{"a bound UPN", []string{"upn:p@example.test"}, named("printer-17"), []string{"upn:P@example.test"}, true},
		{"another e-mail address in the subject", nil, mailed("chief@example.test"), nil, false},
		{"an e-mail address in the subject that is not bound", []string{"dns:a.test"}, mailed("chief@example.test"), []string{"dns:a.test"}, false},
		{"a bound e-mail address in the subject", []string{"email:p@example.test"}, mailed("P@example.test"), []string{"email:p@example.test"}, true},
		{"another UPN than bound", []string{"upn:p@example.test"}, named("printer-17"), []string{"upn:q@example.test"}, false},
	}
	for _, tt := range tests {
		secret := mint(t, s, o, "printer-17", tt.bound...)
		_, err := o.Verify(Request{Challenge: secret, CSR: csrFor(t, tt.subject, tt.sans...), Now: epoch})
		if tt.isGood && err != nil {
			t.Errorf("%s: %v", tt.what, err)
		}
		if !tt.isGood {
			wantRefused(t, tt.what, err, ClaimMismatch)
		}
	}
}

// The account a challenge is for is no subjectAltName: alone it leaves those as they are without any.
func TestOneTimeAccount(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "iot")
	const sid = "S-1-5-21-1-2-3-1104"
	for _, tt := range []struct {
		bound []string
		sid   string
		names []string
	}{
		{nil, "", []string{"dns:printer-17.example.test"}},
		{[]string{"sid:" + sid}, sid, []string{"dns:printer-17.example.test"}},
		{[]string{"dns:a.test", "sid:" + sid}, sid, []string{"dns:a.test"}},
	} {
		v, err := o.Verify(Request{Challenge: mint(t, s, o, "printer-17", tt.bound...), CSR: csrFor(t, named("printer-17"), tt.names...), Now: epoch})
		must(t, err)
		if v.SID != tt.sid || !v.IsForDevice() {
			t.Errorf("%v: %+v", tt.bound, v)
		}
	}
	for _, kind := range []Kind{KindStatic, KindIntune, ""} {
		if (Verdict{Kind: kind}).IsForDevice() {
			t.Errorf("%q is for one device", kind)
		}
	}
}

func TestMintRefuses(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "iot")
	for what, tt := range map[string]struct {
		cn   string
		sans []string
		ttl  time.Duration
	}{
		"no name":                 {"", nil, 0},
		"a long name":             {strings.Repeat("x", maxBoundCN+1), nil, 0},
		"more than the profile's": {"a", nil, time.Hour + 1},
		"no time":                 {"a", nil, -1},
		"a name without kind":     {"a", []string{"a.example.test"}, 0},
		"an empty name":           {"a", []string{"dns:"}, 0},
		"an unknown kind":         {"a", []string{"registeredID:1.2.3"}, 0},
		"a bad address":           {"a", []string{"ip:192.0.2"}, 0},
		"a bad account":           {"a", []string{"sid:S-1-5-21-1-2-3-"}, 0},
		"an account's name":       {"a", []string{"sid:admin"}, 0},
		"two accounts":            {"a", []string{"sid:S-1-5-21-1-2-3-500", "sid:S-1-5-21-1-2-3-501"}, 0},
		"too many names":          {"a", make([]string, maxBoundSAN+1), 0},
		"names too long together": {"a", slices.Repeat([]string{"dns:" + strings.Repeat("x", maxBoundCN)}, 25), 0},
	} {
		secret, _, err := o.Mint(tt.cn, tt.sans, tt.ttl, epoch, func(store.Guard) error { t.Errorf("%s: saved", what); return nil })
		if err == nil || secret != "" {
			t.Errorf("%s: minted", what)
		}
	}
	broken := errors.New("disk gone")
	if secret, _, err := o.Mint("a", nil, 0, epoch, func(store.Guard) error { return broken }); !errors.Is(err, broken) || secret != "" {
		t.Errorf("a challenge that was not saved: %q, %v", secret, err)
	}
	for what, c := range map[string]OneTimeConfig{
		"no store":   {Profile: "iot", TTL: time.Hour},
		"no profile": {Store: s, TTL: time.Hour},
		"no ttl":     {Store: s, Profile: "iot"},
		"a long ttl": {Store: s, Profile: "iot", TTL: MaxTTL + 1},
	} {
		if _, err := NewOneTime(c); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

// Hundreds of requests bring one challenge: each is verified as good, and one gets it.
func TestOneChallengeManyRequests(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "iot")
	secret, csr := mint(t, s, o, "printer-17"), csrFor(t, named("printer-17"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for n := range 300 {
		wg.Go(func() {
			key := keyOf(fmt.Sprint(n))
			v, err := o.Verify(Request{Challenge: secret, CSR: csr, Transaction: key, Now: epoch})
			if err == nil {
				err = begin(s, key, 0, v)
			}
			switch {
			case err == nil:
				mu.Lock()
				won++
				mu.Unlock()
			case !errors.Is(err, store.ErrGuardUsed) && !errors.Is(err, ErrWrong):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d requests got one challenge", won)
	}
}

// TestSetTellsKindsApart sends each form to profiles with different kinds.
func TestSetTellsKindsApart(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "corp")
	connector := newConnector(t, "rsa")
	signed := newSigned(t, s, connector, nil)
	csr := csrFor(t, named("laptop-1"))
	once := mint(t, s, o, "laptop-1")
	other := mint(t, s, o, "laptop-2")
	good := connector.sign(t, goodClaims())
	static := newStatic(t, NewGate(1))

	kindOf := func(c Config, challenge string) (Kind, error) {
		v, err := NewSet(c).Verify(context.Background(), Request{Challenge: challenge, CSR: csr, Source: device(t), Now: epoch})
		return v.Kind, err
	}
	all := Config{Static: static, OneTime: o, Signed: signed}
	for challenge, want := range map[string]Kind{"sesame": KindStatic, once: KindOneTime, good: KindSigned} {
		if kind, err := kindOf(all, challenge); kind != want || err != nil {
			t.Errorf("%.10q is %q, want %q: %v", challenge, kind, want, err)
		}
	}
	for what, tt := range map[string]struct {
		c         Config
		challenge string
	}{
		"nothing is on":                        {Config{}, "sesame"},
		"nothing is on, signed":                {Config{}, good},
		"static is off":                        {Config{OneTime: o, Signed: signed}, "sesame"},
		"one-time is off":                      {Config{Static: static, Signed: signed}, once},
		"signed is off":                        {Config{Static: static, OneTime: o}, good},
		"one-time of another device":           {all, other},
		"a bad signature":                      {all, good[:len(good)-8] + "AAAAAAAA"},
		"nothing but the form of a signed one": {all, strings.Repeat("x", 199) + ".."},
		"empty":                                {all, ""},
	} {
		if kind, err := kindOf(tt.c, tt.challenge); !errors.Is(err, ErrWrong) || kind != "" {
			t.Errorf("%s: %q, %v", what, kind, err)
		}
	}
}

// A challenge that looks signed is never compared with the static one, however right it were.
func TestSignedNeverFallsThrough(t *testing.T) {
	for _, tt := range []struct {
		challenge string
		isSigned  bool
	}{
		{strings.Repeat("x", 198) + "..", false}, // 200 characters
		{strings.Repeat("x", 199) + "..", true},  // 201
		{strings.Repeat("x", 300) + ".", false},
		{strings.Repeat("x", 300) + "...", false},
	} {
		if got := isSignedShape(tt.challenge); got != tt.isSigned {
			t.Errorf("%d characters with %d dots look signed: %t", len(tt.challenge), strings.Count(tt.challenge, "."), got)
		}
	}
	s := newStore(t)
	signed := newSigned(t, s, newConnector(t, "rsa"), nil)
	static := newStatic(t, NewGate(1))
	shaped := strings.Repeat("x", 199) + ".."
	sum := static.current.Load().sum("", shaped)
	static.current.Load().known.Store(&sum) // as if it were the right one
	if err := static.Verify(context.Background(), device(t), shaped); err != nil {
		t.Fatal(err)
	}
	_, err := NewSet(Config{Static: static, Signed: signed}).Verify(context.Background(), Request{Challenge: shaped, CSR: csrFor(t, named("a")), Source: device(t), Now: epoch})
	wantRefused(t, "the static challenge in the form of a signed one", err, Malformed)
}

// What remains goes to Intune; where the profile has a static challenge, only what is too long for one.
func TestIntuneTakesWhatRemains(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "corp")
	connector := newConnector(t, "rsa")
	signed := newSigned(t, s, connector, nil)
	once := mint(t, s, o, "laptop-1")
	blob := strings.Repeat("TWljcm9zb2Z0", 100)
	var asked []string
	hook := func(_ context.Context, r Request) error {
		asked = append(asked, r.TransactionID+" "+r.Challenge)
		if r.Challenge == "unreachable" {
			return errors.New("no route to host")
		}
		if r.Challenge != blob {
			return &Refused{KindIntune, ClaimMismatch, "ChallengeDecryptionError"}
		}
		return nil
	}
	static := newStatic(t, NewGate(1))
	alone, mixed := Config{Intune: hook}, Config{Static: static, OneTime: o, Signed: signed, Intune: hook}
	for what, tt := range map[string]struct {
		c         Config
		challenge string
		want      Kind
		isAsked   bool
		err       error
	}{
		"its own":              {alone, blob, KindIntune, true, nil},
		"another's":            {alone, blob + "AAAA", "", true, ErrWrong},
		"short":                {alone, "sesame", "", true, ErrWrong},
		"empty":                {alone, "", "", false, ErrWrong},
		"signed, which is off": {alone, connector.sign(t, goodClaims()), "", false, ErrWrong},
		"its own among many":   {mixed, blob, KindIntune, true, nil},
		"static among many":    {mixed, "sesame", KindStatic, false, nil},
		"a guess among many":   {mixed, "guess", "", false, ErrWrong},
		"one-time among many":  {mixed, once, KindOneTime, false, nil},
		"signed among many":    {mixed, connector.sign(t, goodClaims()), KindSigned, false, nil},
		"badly signed":         {mixed, strings.Repeat("x", 199) + "..", "", false, ErrWrong},
	} {
		asked = nil
		v, err := NewSet(tt.c).Verify(context.Background(), Request{Challenge: tt.challenge, CSR: csrFor(t, named("laptop-1")), TransactionID: "17", Source: device(t), Now: epoch})
		if v.Kind != tt.want || !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
			t.Errorf("%s: %q, %v", what, v.Kind, err)
		}
		if tt.isAsked != (len(asked) == 1 && asked[0] == "17 "+tt.challenge) || !tt.isAsked && asked != nil {
			t.Errorf("%s: asked %.40q", what, asked)
		}
	}
	_, err := NewSet(alone).Verify(context.Background(), Request{Challenge: "unreachable", Now: epoch})
	if !errors.Is(err, ErrNoVerdict) || errors.Is(err, ErrWrong) {
		t.Errorf("a service that does not answer: %v", err)
	}
}

// A service that does not answer holds a bounded number of requests.
func TestIntuneIsAskedWithinBounds(t *testing.T) {
	hold, inside := make(chan struct{}), make(chan struct{})
	set := NewSet(Config{Intune: func(context.Context, Request) error { inside <- struct{}{}; <-hold; return nil }})
	var wg sync.WaitGroup
	for range maxAsking {
		wg.Go(func() {
			if _, err := set.Verify(context.Background(), Request{Challenge: "x"}); err != nil {
				t.Error(err)
			}
		})
		<-inside
	}
	if _, err := set.Verify(context.Background(), Request{Challenge: "x"}); !errors.Is(err, ErrBusy) {
		t.Errorf("one question too many: %v", err)
	}
	close(hold)
	wg.Wait()
	if len(set.asking) != 0 {
		t.Errorf("%d questions left behind", len(set.asking))
	}
}

func TestVerifyOneTime(t *testing.T) {
	s := newStore(t)
	o := newOneTime(t, s, "corp")
	set := NewSet(Config{OneTime: o, Static: newStatic(t, NewGate(1))})
	ctx, csr := context.Background(), csrFor(t, named("laptop-1"))
	v, err := set.VerifyOneTime(ctx, Request{Challenge: mint(t, s, o, "laptop-1"), CSR: csr, Now: epoch})
	if err != nil || v.Kind != KindOneTime || v.Identity != "laptop-1" || len(v.Guards) != 1 {
		t.Errorf("verdict %+v, %v", v, err)
	}
	_, err = set.VerifyOneTime(ctx, Request{Challenge: mint(t, s, o, "laptop-2"), CSR: csr, Now: epoch})
	wantRefused(t, "of another device", err, ClaimMismatch)
	for _, c := range []string{"sesame", ""} { // static, which is no password of EST
		if _, err := set.VerifyOneTime(ctx, Request{Challenge: c, CSR: csr, Source: device(t), Now: epoch}); !errors.Is(err, ErrWrong) {
			t.Errorf("%q: %v", c, err)
		}
	}
	if _, err := NewSet(Config{}).VerifyOneTime(ctx, Request{Challenge: mint(t, s, o, "laptop-1"), CSR: csr, Now: epoch}); !errors.Is(err, ErrWrong) {
		t.Errorf("a profile without one-time challenges: %v", err)
	}
}
