package appliance

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
	"signet.internal/webui"
)

// settingsOn is an appliance that has the demo's profiles and a store, and neither keys nor listeners.
func settingsOn(t *testing.T, st *store.Store, now time.Time) *Appliance {
	t.Helper()
	files := os.DirFS("../configs/demo")
	site, err := provision.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	a := &Appliance{store: st, config: Config{
		Site: site, Files: files, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler), Boot: handover.Boot{TimeSource: "host"},
	}}
	if a.settings, err = a.newSettings(); err != nil {
		t.Fatalf("the service does not start: %v", err)
	}
	return a
}

func emptyStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.Open(store.Options{Dir: t.TempDir() + "/store", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func pemText(certificates ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// TestBrokenReplacements: what an administrator put in place of a setting may have ended or be of no use to
// a newer program. The service starts, the profile is off and says why, others go on; and whoever was
// replaced is not believed again.
func TestBrokenReplacements(t *testing.T) {
	now := time.Now()
	ended := newTestCA(t, "Ended", now.Add(-time.Hour)).cert
	good := newTestCA(t, "Good", time.Time{}).cert
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := selfSigned(t, small, small.Public())
	hash := phc.Make([]byte("replaced"))
	cheap := strings.Replace(hash, "m=65536", "m=8", 1)
	for _, c := range []struct {
		name, override, value string
		off                   string // the profile, "" for none
		what                  string
	}{
		{"garbage for a bundle", "bundle/iot/est", "garbage", "iot", "what replaces trust/bootstrap.pem cannot be used"},
		{"nothing for a bundle", "bundle/iot/scep-mtls", "", "iot", "what replaces trust/bootstrap.pem cannot be used"},
		{"an ended certificate", "bundle/iot/est", string(pemText(good, ended)), "iot", "certificate CN=Ended in what replaces trust/bootstrap.pem expired on " + ended.NotAfter.UTC().Format(time.DateOnly)},
		{"an ended connector", "bundle/intune/signed", string(pemText(ended)), "intune", "certificate CN=Ended in what replaces trust/connector.pem expired on"},
		{"garbage for the connector", "bundle/intune/signed", "garbage", "intune", "what replaces trust/connector.pem cannot be used"},
		{"a connector's key that is too small now", "bundle/intune/signed", string(pemText(weak)), "intune", "what replaces trust/connector.pem cannot be used"},
		{"a hash outside of the bounds", "challenge/corp", cheap, "corp", "the replaced challenge cannot be used"},
		{"a challenge in clear", "challenge/corp", "secret", "corp", "the replaced challenge cannot be used"},
		{"a password's hash outside of the bounds", "password/corp/device", cheap, "corp", `the replaced password of "device" cannot be used`},
		{"a good bundle", "bundle/iot/est", string(pemText(good)), "", ""},
		{"a good hash", "challenge/corp", hash, "", ""},
		{"a profile that is gone", "bundle/gone/est", "garbage", "", ""},
		{"a bundle that is gone", "bundle/corp/est", "garbage", "", ""},
		{"a challenge that is gone", "challenge/iot", "garbage", "", ""},
		{"a user that is gone", "password/corp/nobody", "garbage", "", ""},
		{"another profile's user", "password/cor/p/device", "garbage", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := emptyStore(t)
			record := audit.Record{Time: now, TimeSource: "host", Action: audit.TrustReplaced, Outcome: audit.OutcomeSuccess}
			if err := st.SetOverride(c.override, store.Override{Value: []byte(c.value), By: "ada", At: now}, record); err != nil {
				t.Fatal(err)
			}
			a := settingsOn(t, st, now)
			for _, s := range a.settings {
				told := s.conditions(now)
				if off := s.profile.Name == c.off; s.isOff(now) != off || (len(told) == 1) != off {
					t.Errorf("%s is off: %t, and says %v", s.profile.Name, s.isOff(now), told)
				} else if off && (!strings.Contains(told[0].What, "Profile "+c.off+" is off: "+c.what) || told[0].Mend == "") {
					t.Errorf("it says %q, want %q", told[0].What, c.what)
				} else if off && c.value != "" && strings.Contains(told[0].What, c.value) {
					t.Errorf("%q repeats the value", told[0].What)
				}
			}
			if iot := a.mustSettings(t, "iot"); c.off == "iot" && slices.ContainsFunc(iot.bundle(strings.TrimPrefix(c.override, "bundle/iot/")).now().certificates, iot.bundle("est").base.Load().certificates[0].Equal) {
				t.Error("whom an administrator replaced is believed again")
			}
			if intune := a.mustSettings(t, "intune"); c.name == "an ended connector" && !intune.signed.Signers().Certificates()[0].Equal(ended) {
				t.Error("signed challenges are verified with the certificate that was replaced")
			}
		})
	}
}

func (a *Appliance) mustSettings(t *testing.T, profile string) *settings {
	t.Helper()
	s, err := a.settingsOf(profile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func selfSigned(t *testing.T, key any, public any) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weak"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestBakedExpires: a baked certificate that ends switches off its profile alone.
func TestBakedExpires(t *testing.T) {
	later := time.Now().Add(100 * 365 * 24 * time.Hour)
	a := settingsOn(t, emptyStore(t), later)
	for _, s := range a.settings {
		has := s.profile.Name == "iot" || s.profile.Name == "intune"
		told := s.conditions(later)
		if s.isOff(later) != has || s.isOff(time.Now()) || (len(told) == 1) != has {
			t.Errorf("%s: off %t, conditions %v", s.profile.Name, s.isOff(later), told)
		}
		if has && !strings.Contains(told[0].What, "in trust/") {
			t.Errorf("%q does not name the file", told[0].What)
		}
	}
}

// TestReplaceHash: a hash that the box could not or should not verify against is refused and changes nothing.
func TestReplaceHash(t *testing.T) {
	st := emptyStore(t)
	a := settingsOn(t, st, time.Now())
	corp := a.mustSettings(t, "corp")
	good := phc.Make([]byte("new"))
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, hash := range map[string]string{
		"in clear": "secret", "little memory": with("m=65536", "m=8"), "all of the memory": with("m=65536", "m=4194304"), "memory that wraps": with("m=65536", "m=4294967297"),
		"one pass": with("t=3", "t=1"), "passes without end": with("t=3", "t=4000000000"), "lanes": with("p=1", "p=200"),
		"argon2i": with("argon2id", "argon2i"), "a line more": good + "\n", "a space": " ", "long": good + strings.Repeat("A", 4096),
	} {
		for kind, err := range map[string]error{"challenge": a.replaceChallenge(corp, hash, "ada"), "password": a.replacePassword(corp, "device", hash, "ada")} {
			var order *webui.OrderError
			if !errors.As(err, &order) {
				t.Errorf("%s as %s: %v", name, kind, err)
			} else if strings.Contains(err.Error(), hash) && hash != " " {
				t.Errorf("%s: the refusal repeats it: %v", name, err)
			}
		}
	}
	if all, err := st.Overrides(); err != nil || len(all) != 0 || corp.isOff(time.Now()) {
		t.Errorf("after refusals: %v, %v", all, err)
	}
	takes := func(secret string) bool {
		return corp.static.Verify(context.Background(), netip.MustParseAddr("192.0.2.1"), secret) == nil
	}
	if !takes("corp-demo-challenge") || corp.describe().Challenge.Public != "corp-demo-challenge" {
		t.Error("a refused hash took the baked challenge away")
	}
	var conflict *webui.ConflictError
	for what, err := range map[string]error{
		"going back to what is in use": a.replaceChallenge(corp, "", "ada"),
		"a user that is not there":     a.replacePassword(corp, "nobody", good, "ada"),
		"a profile without challenge":  a.replaceChallenge(a.mustSettings(t, "iot"), good, "ada"),
		"switching on what is on":      a.switchProfile(corp, false, "", "ada"),
		"a bundle that is not there":   a.replaceBundle(corp, "est", []byte("x"), "ada"),
	} {
		if !errors.As(err, &conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := a.replaceChallenge(corp, good, "ada"); err != nil {
		t.Fatal(err)
	}
	if takes("corp-demo-challenge") || !takes("new") || corp.describe().Challenge.Public != "" {
		t.Error("the replacement is not in force")
	}
	a = settingsOn(t, st, time.Now())
	corp = a.mustSettings(t, "corp")
	if takes("corp-demo-challenge") || !takes("new") {
		t.Error("the replacement is not in force after a restart")
	}
	if err := a.replaceChallenge(corp, "", "ada"); err != nil || !takes("corp-demo-challenge") || takes("new") {
		t.Errorf("going back: %v", err)
	}
	records, err := st.Records(0, 10)
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records of two changes, %v", len(records), err)
	}
	for _, r := range records {
		if r.Action != audit.TrustReplaced || r.Actor != "ada" || r.Profile != "corp" || strings.Contains(r.Reason, "argon2") {
			t.Errorf("recorded as %+v", r)
		}
	}
}

// TestOrdersAtOnce: whatever administrators order at the same time, what is in force is what survives.
func TestOrdersAtOnce(t *testing.T) {
	st := emptyStore(t)
	a := settingsOn(t, st, time.Now())
	corp := a.mustSettings(t, "corp")
	salts := strings.Split(phc.Make([]byte("x")), "$")
	var wait sync.WaitGroup
	for i := range 40 {
		wait.Go(func() {
			switch i % 4 {
			case 0:
				salts := slices.Clone(salts)
				salts[4] = fmt.Sprintf("AAAAAAAAAAAAAAAAAA%02dAA", i)
				if err := a.replaceChallenge(corp, strings.Join(salts, "$"), "ada"); err != nil {
					t.Error(err)
				}
			case 1:
				a.replaceChallenge(corp, "", "bob")
			case 2:
				a.switchProfile(corp, i%8 == 2, "because", "ada")
			case 3:
				a.reloadHashes(corp)
			}
		})
	}
	wait.Wait()
	again := settingsOn(t, st, time.Now()).mustSettings(t, "corp")
	if corp.hashes.static != again.hashes.static || (corp.off.Load() == nil) != (again.off.Load() == nil) {
		t.Errorf("in force %s, off %v; after a restart %s, off %v", corp.hashes.static, corp.off.Load(), again.hashes.static, again.off.Load())
	}
}

// TestUploadedBundle: a file that is not certificates from beginning to end is refused.
func TestUploadedBundle(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	one, two := newTestCA(t, "One", time.Time{}).cert, newTestCA(t, "Two", time.Time{}).cert
	first, second := string(pemText(one)), string(pemText(two))
	for name, c := range map[string]struct {
		text string
		n    int // certificates; 0: refused
	}{
		"one":                        {first, 1},
		"two with words between":     {"Root:\n" + first + "\nAnother:\n" + second + "\nend\n", 2},
		"CRLF":                       {strings.ReplaceAll(first, "\n", "\r\n"), 1},
		"empty":                      {"", 0},
		"words":                      {"no certificates", 0},
		"DER":                        {string(one.Raw), 0},
		"a key":                      {secret, 0},
		"a key behind a certificate": {first + secret, 0},
		"a key before one":           {secret + first, 0},
		"cut off":                    {first[:len(first)-30], 0},
		"cut off, then another":      {first[:len(first)-30] + "\n" + second, 0},
		"the second cut off":         {first + second[:100], 0},
		"base64 that is none":        {first + strings.Replace(second, "MII", "M!!", 1), 0},
		"a request":                  {strings.ReplaceAll(first, "CERTIFICATE", "CERTIFICATE REQUEST"), 0},
		"trusted, as OpenSSL calls":  {strings.ReplaceAll(first, "CERTIFICATE", "TRUSTED CERTIFICATE"), 0},
		"something in the DER":       {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(one.Raw[:len(one.Raw):len(one.Raw)], 0)})), 0},
		"as many as may be":          {strings.Repeat(first, maxBundle), maxBundle},
		"one more":                   {strings.Repeat(first, maxBundle+1), 0},
	} {
		got, err := parseCertificates([]byte(c.text))
		if (err == nil) != (c.n > 0) || len(got) != c.n && c.n > 0 {
			t.Errorf("%s: %d certificates, %v; want %d", name, len(got), err, c.n)
		}
		if err != nil && strings.Contains(err.Error(), "MII") {
			t.Errorf("%s: the refusal repeats the file: %v", name, err)
		}
	}
}

// TestTrustInTheLogIsWhole: bundles that differ anywhere are told apart by their records, also where the
// record has no room for all of it.
func TestTrustInTheLogIsWhole(t *testing.T) {
	var all []*x509.Certificate
	for i := range maxBundle {
		all = append(all, &x509.Certificate{Raw: []byte{byte(i)}})
	}
	other := slices.Clone(all)
	other[maxBundle-1] = &x509.Certificate{Raw: []byte("another")}
	a, b := trustedNow(all, "trust/x.pem"), trustedNow(other, "trust/x.pem")
	if a == b || len(a) > audit.MaxReason || len(b) > audit.MaxReason {
		t.Errorf("%q and %q", a, b)
	}
	const sumOf0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d" // sha256sum of the byte 0
	if text := trustedNow(all[:1], "trust/x.pem"); !strings.HasSuffix(text, sumOf0) {
		t.Errorf("%q does not end in the certificate's own SHA-256", text)
	}
}

// TestIntuneCredential: near its end the credential gets a successor over the same key, which is used once
// the one before has ended, also after a restart; what is in the store and cannot be read counts as none.
func TestIntuneCredential(t *testing.T) {
	storage, err := os.Create(t.TempDir() + "/keys")
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	host, err := keys.OpenHost(tpmtest.Start(t), storage, "demo", []keys.Spec{{Name: "audit", Algorithm: "ecdsa-p256", Protection: keys.Resident}})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	st, now := emptyStore(t), time.Now()
	a := settingsOn(t, st, now)
	a.config.Keys, a.config.Now = host.Client, func() time.Time { return now }
	site := &provision.Intune{Tenant: "example.com", ClientID: "11111111-2222-4333-8444-555555555555", Algorithm: "RS256"}
	start := func() *settings {
		overrides, err := st.Overrides()
		if err != nil {
			t.Fatal(err)
		}
		s := &settings{profile: provision.Profile{Name: "managed"}}
		s.intune = a.newIntune("managed", site, x509.NewCertPool(), overrides)
		return s
	}
	s := start()
	fetch := func() *x509.Certificate {
		t.Helper()
		text, err := a.intuneCertificate(s, "ada")
		if err != nil {
			t.Fatal(err)
		}
		all, err := parseCertificates(text)
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	}
	says := func(what string) {
		t.Helper()
		if told := s.conditions(now); (len(told) == 1) != (what != "") || what != "" && !strings.Contains(told[0].What, what) {
			t.Errorf("says %v, want %q", told, what)
		}
	}
	uses := func(want *x509.Certificate) {
		t.Helper()
		if _, err := s.intune.use(); err != nil || !s.intune.used.Equal(want) {
			t.Errorf("uses %v, %v", s.intune.used, err)
		}
	}
	says("cannot ask Intune: the box has no credential for it yet.")
	if _, err := s.intune.use(); !errors.Is(err, errNoCredential) {
		t.Error(err)
	}
	first := fetch()
	says("")
	uses(first)
	now = first.NotAfter.Add(-credentialDue + time.Hour)
	says("asks Intune with a credential that expires on " + first.NotAfter.UTC().Format(time.DateOnly))
	next := fetch()
	if next.Equal(first) || !fetch().Equal(next) || !next.PublicKey.(*rsa.PublicKey).Equal(first.PublicKey) {
		t.Error("the successor is not one certificate over the same key")
	}
	says("")
	uses(first)
	s = start()
	uses(first)
	now = first.NotAfter.Add(time.Second)
	uses(next)
	now = next.NotAfter.Add(time.Second)
	says("cannot ask Intune: the credential expired on " + next.NotAfter.UTC().Format(time.DateOnly))
	record := audit.Record{Time: now, TimeSource: "host", Action: audit.SecretEntered, Outcome: audit.OutcomeSuccess}
	if err := st.SetOverride("intune/managed", store.Override{Value: []byte("garbage")}, record); err != nil {
		t.Fatal(err)
	}
	s = start()
	says("cannot ask Intune: the box has no credential for it yet.")
	uses(fetch())
}
