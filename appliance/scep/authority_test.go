package scep

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/needtest"
	"signet.internal/appliance/pki"
)

// change gives the profile another Authority.
func (p *Profile) change(f func(*Authority)) {
	a := *p.Authority()
	a.RAs = slices.Clone(a.RAs)
	f(&a)
	p.Authority = always(a)
}

// changeRA gives the profile's Authority another newest RA.
func (p *Profile) changeRA(f func(*RA)) { p.change(func(a *Authority) { f(&a.RAs[0]) }) }

// otherKey is an RSA key that is no RA's of newService.
func otherKey() *rsa.PrivateKey { return boxKeys()[1] }

// replaceable has the tests replace the Authority of corp while the service runs.
func replaceable(now *atomic.Pointer[Authority], more func(*Profile)) func(*Config) {
	return func(c *Config) {
		p := &c.Profiles[0]
		now.Store(p.Authority())
		p.Authority = now.Load
		if more != nil {
			more(p)
		}
	}
}

func (s *service) get(path string) exchanged {
	s.t.Helper()
	resp, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	return exchanged{status: resp.StatusCode, reply: must(io.ReadAll(resp.Body)), header: resp.Header}
}

// listed are the certificates of a GetCACert answer.
func (s *service) listed(profile string) []*x509.Certificate {
	s.t.Helper()
	e := s.get("/scep/" + profile + "?operation=GetCACert")
	switch e.header.Get("Content-Type") {
	case "application/x-x509-ca-cert":
		return []*x509.Certificate{parse(s.t, e.reply)}
	case "application/x-x509-ca-ra-cert":
		certs := must(pkcs7.Parse(e.reply)).Certificates
		if len(certs) < 2 {
			s.t.Errorf("%d certificates as several", len(certs))
		}
		return certs
	}
	s.t.Fatalf("GetCACert: status %d, %s", e.status, e.header.Get("Content-Type"))
	return nil
}

// newRA has a profile's CA issue another RA.
func (s *service) newRA(profile string, key *rsa.PrivateKey) RA {
	s.t.Helper()
	return RA{parse(s.t, must(s.issuer[profile].IssueRA(key.Public(), time.Now(), time.Hour))), key, key}
}

func checkListed(t *testing.T, what string, got, want []*x509.Certificate) {
	t.Helper()
	if !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
		t.Errorf("%s: GetCACert lists", what)
		for _, c := range got {
			t.Logf("\t%s (%x)", c.Subject, c.SerialNumber)
		}
	}
}

// signerOf is the certificate that signed a CertRep.
func signerOf(t *testing.T, e exchanged) *x509.Certificate {
	t.Helper()
	p7 := must(pkcs7.Parse(e.reply))
	if err := p7.Verify(); err != nil {
		t.Fatal(err)
	}
	return p7.GetOnlySigner()
}

// The RA is replaced while the box runs: GetCACert offers the new one, the earlier one goes on decrypting, and each answer is signed by
// the one its request was for, refusals as well.
func TestRAIsReplaced(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	before := now.Load()
	oldRA, newRA := before.RAs[0], s.newRA("corp", otherKey())
	checkListed(t, "before", s.listed("corp"), []*x509.Certificate{oldRA.Certificate, before.CA})
	now.Store(&Authority{CA: before.CA, RAs: []RA{newRA, oldRA}})
	checkListed(t, "after", s.listed("corp"), []*x509.Certificate{newRA.Certificate, before.CA})

	d := newDevice(t, rsaKey(t, 2048), "dev")
	stranger := newDevice(t, rsaKey(t, 2048), "stranger")
	several := sealWithOpenSSL(t, d.csr, []string{"-aes128"}, nil, before.CA, oldRA.Certificate)
	both := sealWithOpenSSL(t, d.csr, []string{"-aes128"}, nil, oldRA.Certificate, newRA.Certificate)
	for name, c := range map[string]struct {
		change func(*wrapping)
		ra     RA
		status string
		fail   failInfo
	}{
		"for the new one":            {func(w *wrapping) { w.recipient = newRA.Certificate }, newRA, "0", ""},
		"for the earlier one":        {func(w *wrapping) { w.recipient = oldRA.Certificate }, oldRA, "0", ""},
		"for the CA and the earlier": {func(w *wrapping) { w.envelope = several }, oldRA, "0", ""},
		"for both":                   {func(w *wrapping) { w.envelope = both }, newRA, "0", ""},
		"for nobody here":            {func(w *wrapping) { w.recipient = stranger.cert }, newRA, "2", badMessageCheck},
		"no envelope":                {func(w *wrapping) { w.damage = func(b []byte) { copy(b, "plain text") } }, newRA, "2", badMessageCheck},
		"broken, for the earlier": {func(w *wrapping) {
			w.recipient, w.damage = oldRA.Certificate, func(b []byte) { b[len(b)-1] ^= 1 }
		}, oldRA, "2", badMessageCheck},
		"a type that is refused, for the earlier": {func(w *wrapping) { w.recipient, w.messageType = oldRA.Certificate, "18" }, oldRA, "2", badRequest},
		"a poll, for the earlier":                 {func(w *wrapping) { w.recipient, w.messageType = oldRA.Certificate, "20" }, oldRA, "2", badCertID},
	} {
		w := s.good()
		c.change(&w)
		e := s.post("corp", d.message(w))
		s.raKey = c.ra.Signer.(*rsa.PrivateKey) // whom openReply wants as signer
		if r := s.openReply(e); r.status != c.status || r.fail != c.fail {
			t.Errorf("%s: pkiStatus %s, failInfo %s: %s", name, r.status, r.fail, r.text)
		}
		if got := signerOf(t, e); !got.Equal(c.ra.Certificate) {
			t.Errorf("%s: signed by %x", name, got.SerialNumber)
		}
	}

	now.Store(&Authority{CA: before.CA, RAs: []RA{newRA}}) // the earlier one is gone
	w := s.good()
	w.recipient = oldRA.Certificate
	s.raKey = otherKey()
	if r := s.openReply(s.post("corp", d.message(w))); r.status != "2" || r.fail != badMessageCheck || !strings.Contains(r.text, "fetch it again with GetCACert") {
		t.Errorf("an RA that is gone: pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
	}
	s.checkLog()
}

// A strongSwan that has fetched the RA before it is replaced enrolls afterwards, and so does one that is offered both.
func TestStrongSwanAcrossRAs(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, func(p *Profile) { p.PreviousRA = true }))
	d := newSwan(t, s.url+"/scep/corp")
	newRA := s.newRA("corp", otherKey())
	now.Store(&Authority{CA: now.Load().CA, RAs: append([]RA{newRA}, now.Load().RAs...)})
	if cert, _ := d.enroll(secret); cert == nil {
		t.Errorf("not enrolled with the RA of before; log:\n%s", s.log)
	}
	s.checkLog()

	d = newSwan(t, s.url+"/scep/corp")
	if cert, _ := d.enroll(secret); cert == nil {
		t.Errorf("not enrolled with both offered; log:\n%s", s.log)
	}
	// It writes down the last RA of the list first.
	if fetched := parsePEM(t, must(os.ReadFile(d.file("ra.crt")))); !signerOf(t, s.last()).Equal(fetched) {
		t.Error("the answer is signed by another RA than the client knows")
	}
	if fetched := parsePEM(t, must(os.ReadFile(d.file("ra-2.crt")))); !fetched.Equal(newRA.Certificate) {
		t.Error("the client was not offered the new RA")
	}
}

// strongSwan finds its way through the chain of a subordinate CA.
func TestStrongSwanBelowSubordinate(t *testing.T) {
	issuer, chain := subordinate(t)
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, func(p *Profile) { p.Chain = true }))
	s.issues["corp"].Store(&enroll.Issuers{Active: issuer})
	now.Store(&Authority{CA: chain[0], Chain: chain[1:], RAs: []RA{
		{parse(t, must(issuer.IssueRA(s.raKey.Public(), time.Now(), time.Hour))), s.raKey, s.raKey},
	}})
	d := newSwan(t, s.url+"/scep/corp")
	if len(d.cas) != 3 {
		t.Errorf("%d CA certificates", len(d.cas))
	}
	cert, _ := d.enroll(secret)
	if cert == nil {
		t.Fatalf("not enrolled; log:\n%s", s.log)
	}
	if err := cert.CheckSignatureFrom(chain[0]); err != nil {
		t.Error(err)
	}
}

// What does not open is answered alike whichever RA it is for, but for who signs.
func TestEarlierRATellsNothingApart(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	counted := [2]*countedKey{{PrivateKey: otherKey()}, {PrivateKey: s.raKey}}
	newRA, oldRA := s.newRA("corp", otherKey()), now.Load().RAs[0]
	newRA.Signer, newRA.Decrypter = counted[0], counted[0]
	oldRA.Signer, oldRA.Decrypter = counted[1], counted[1]
	now.Store(&Authority{CA: now.Load().CA, RAs: []RA{newRA, oldRA}})
	d := newDevice(t, rsaKey(t, 2048), "dev")
	w := s.good()
	for i, ra := range now.Load().RAs {
		s.raKey = counted[i].PrivateKey
		var want []byte
		for name, change := range map[string]func(*wrapping){
			"CBC padding": func(w *wrapping) { w.damage = func(b []byte) { b[len(b)-17] ^= 0x80 } },
			"garbage":     func(w *wrapping) { w.content = []byte("not a request, but of some length") },
		} {
			bad := w
			bad.recipient = ra.Certificate
			change(&bad)
			for _, k := range counted {
				k.decrypted, k.signed = 0, 0
			}
			e := s.post("corp", d.message(bad))
			got := s.masked(e)
			if want == nil {
				want = got
			}
			if r := s.openReply(e); r.text != unopened || !bytes.Equal(got, want) {
				t.Errorf("RA %d, %s: %q", i, name, r.text)
			}
			if k, other := counted[i], counted[1-i]; k.decrypted != 1 || k.signed != 1 || other.decrypted != 0 || other.signed != 0 {
				t.Errorf("RA %d, %s: %d decryptions and %d signatures, %d and %d by the other", i, name, k.decrypted, k.signed, other.decrypted, other.signed)
			}
		}
	}
}

// subordinate is a CA below an intermediate below a root, and the three's certificates from it upwards.
func subordinate(t *testing.T) (*pki.Issuer, []*x509.Certificate) {
	t.Helper()
	var chain []*x509.Certificate
	var above *x509.Certificate
	var aboveKey, key crypto.Signer
	for i, name := range []string{"root", "intermediate", "sub"} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 24 * 3650),
		}
		key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		if name == "sub" {
			key = otherKey()
		}
		if above == nil {
			above, aboveKey = template, key
		}
		above = parse(t, must(x509.CreateCertificate(rand.Reader, template, above, key.Public(), aboveKey)))
		aboveKey = key
		chain = append([]*x509.Certificate{above}, chain...)
	}
	return must(pki.NewIssuer(chain[0], key)), chain
}

// Every shape of GetCACert and of a reply, below a subordinate CA and with an earlier RA.
func TestChainShapes(t *testing.T) {
	issuer, chain := subordinate(t)
	var now atomic.Pointer[Authority]
	key := boxKeys()[0]
	ra := func() RA {
		return RA{parse(t, must(issuer.IssueRA(key.Public(), time.Now(), time.Hour))), key, key}
	}
	a := Authority{CA: chain[0], Chain: chain[1:], RAs: []RA{ra(), ra()}}
	first, second := a.RAs[0].Certificate, a.RAs[1].Certificate
	for _, c := range []struct {
		shape    string
		previous bool
		want     []*x509.Certificate
	}{
		{"ra", false, []*x509.Certificate{first}},
		{"ra", true, []*x509.Certificate{first, second}},
		{"ra+ca", false, []*x509.Certificate{first, chain[0]}},
		{"ra+ca", true, []*x509.Certificate{first, second, chain[0]}},
		{"ra+chain", false, []*x509.Certificate{first, chain[0], chain[1], chain[2]}},
		{"ra+chain", true, []*x509.Certificate{first, second, chain[0], chain[1], chain[2]}},
	} {
		s := newService(t, replaceable(&now, func(p *Profile) { p.GetCACert, p.PreviousRA = c.shape, c.previous }))
		now.Store(&a)
		checkListed(t, fmt.Sprint(c.shape, " previous ", c.previous), s.listed("corp"), c.want)
	}

	for _, withChain := range []bool{false, true} {
		s := newService(t, replaceable(&now, func(p *Profile) { p.Chain = withChain }))
		now.Store(&a)
		d := newDevice(t, rsaKey(t, 2048), "dev")
		w := s.good()
		w.recipient = first
		want := 1
		if withChain {
			want = 4
		}
		certs, _ := d.certificates(s.openReply(s.post("corp", d.message(w))))
		if len(certs) != want || withChain && !slices.EqualFunc(certs[1:], chain, (*x509.Certificate).Equal) {
			t.Errorf("chain %t: %d certificates", withChain, len(certs))
		}
		// GetCert knows each of them by its own issuer.
		for _, c := range append([]*x509.Certificate{first, second}, chain...) {
			w.messageType, w.content = "21", issuerAndSerial(t, c.RawIssuer, c.SerialNumber)
			got, _ := d.certificates(s.openReply(s.post("corp", d.message(w))))
			if !got[0].Equal(c) {
				t.Errorf("GetCert of %s: %s", c.Subject, got[0].Subject)
			}
		}
	}
}

// The answers are built anew only where the authority is another one.
func TestAnswersAreBuiltOnce(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	p := s.server.profiles["corp"]
	s.listed("corp")
	built := p.offered.Load()
	s.listed("corp")
	s.get("/scep/corp?operation=GetCACaps")
	if p.offered.Load() != built {
		t.Error("built again for the same authority")
	}
	again := *now.Load()
	now.Store(&again)
	s.listed("corp")
	if p.offered.Load() == built {
		t.Error("not built for another authority")
	}
}

// A subordinate CA that waits for its certificate, and one that came out wrong.
func TestNoAuthority(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	good := now.Load()
	d := newDevice(t, rsaKey(t, 2048), "dev")
	message := d.message(s.good())
	all := func() map[string]exchanged {
		return map[string]exchanged{
			"GetCACaps":     s.get("/scep?operation=GetCACaps"),
			"GetCACert":     s.get("/scep?operation=GetCACert"),
			"GetNextCACert": s.get("/scep?operation=GetNextCACert"),
			"PKIOperation":  s.post("corp", message),
		}
	}
	for what, a := range map[string]*Authority{"none": nil, "without CA": {}} {
		now.Store(a)
		for operation, e := range all() {
			checkHTTPRefusal(t, e, 503, "has no certificate yet")
			if e.header.Get("Retry-After") == "" {
				t.Errorf("%s, %s: no Retry-After", what, operation)
			}
		}
	}
	now.Store(&Authority{CA: good.CA, RAs: []RA{{good.RAs[0].Certificate, otherKey(), otherKey()}}})
	for _, e := range all() {
		checkHTTPRefusal(t, e, 500, "internal error")
	}
	if !strings.Contains(s.log.String(), "the RA key is not the one in the RA certificate") {
		t.Errorf("the log does not have the reason:\n%s", s.log)
	}
	now.Store(good)
	if r := s.openReply(s.post("corp", message)); r.status != "0" {
		t.Errorf("once it is there: pkiStatus %s", r.status)
	}
}

// A profile that is switched off says so to whoever asks for its certificates, in the way each understands.
func TestProfileOff(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	cert := d.issued(s.openReply(s.post("corp", d.message(s.good()))))
	s.off.Store("corp")
	for _, operation := range []string{"GetCACaps", "GetCACert", "GetNextCACert"} {
		checkHTTPRefusal(t, s.get("/scep?operation="+operation), 404, "switched off")
	}
	w := s.good()
	for _, messageType := range []string{"19", "17", "20"} {
		w.messageType = messageType
		if r := s.openReply(s.post("corp", d.message(w))); r.status != "2" || r.fail != badRequest || !strings.Contains(r.text, "switched off") {
			t.Errorf("type %s: pkiStatus %s, failInfo %s: %s", messageType, r.status, r.fail, r.text)
		}
	}
	w.messageType, w.content = "22", issuerAndSerial(t, cert.RawIssuer, cert.SerialNumber)
	if r := s.openReply(s.post("corp", d.message(w))); r.status != "0" {
		t.Errorf("GetCRL: pkiStatus %s: %s", r.status, r.text)
	}
	if e := s.get("/scep/modern?operation=GetCACaps"); e.status != 200 {
		t.Errorf("another profile: status %d", e.status)
	}
	s.off.Store("")
	if r := s.openReply(s.post("corp", d.message(s.good()))); r.status != "0" {
		t.Errorf("switched on again: pkiStatus %s: %s", r.status, r.text)
	}
}

// GetNextCACert is there while a next CA is published, and openssl verifies it with the CA of now.
func TestGetNextCACert(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	before := now.Load()
	key := &countedKey{PrivateKey: s.raKey}
	ra := RA{before.RAs[0].Certificate, key, key}
	nextIssuer, chain := subordinate(t)
	now.Store(&Authority{CA: before.CA, RAs: []RA{ra}, Next: &Next{CA: chain[0], Chain: chain[1:]}})
	if caps := string(s.get("/scep?operation=GetCACaps").reply); !slices.Contains(strings.Split(caps, "\n"), "GetNextCACert") {
		t.Errorf("capabilities %q", caps)
	}
	e := s.get("/scep?operation=GetNextCACert&message=CAIdentifier")
	if e.status != 200 || e.header.Get("Content-Type") != "application/x-x509-next-ca-cert" {
		t.Fatalf("status %d, %s: %s", e.status, e.header.Get("Content-Type"), e.reply)
	}
	if again := s.get("/scep?operation=GetNextCACert"); !bytes.Equal(again.reply, e.reply) || key.signed != 1 {
		t.Errorf("signed %d times", key.signed)
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "next"), e.reply, 0o600); err != nil {
		t.Fatal(err)
	}
	openssl := needtest.Program(t, "openssl", "openssl")
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", before.CA.Raw)
	writePEM(t, filepath.Join(dir, "other.crt"), "CERTIFICATE", s.ca["modern"].Raw)
	verify := func(ca string) bool {
		_, _, ok := run(t, dir, openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", "next", "-CAfile", ca, "-out", "content")
		return ok
	}
	if verify("other.crt") {
		t.Error("openssl verifies it with another CA")
	}
	if !verify("ca.crt") {
		t.Fatal("openssl does not verify it")
	}
	content := must(os.ReadFile(filepath.Join(dir, "content")))
	if certs := must(pkcs7.Parse(content)).Certificates; !slices.EqualFunc(certs, chain, (*x509.Certificate).Equal) {
		t.Errorf("%d certificates in it", len(certs))
	}
	for _, c := range chain {
		if beside := must(pkcs7.Parse(e.reply)).Certificates; !slices.ContainsFunc(beside, c.Equal) {
			t.Errorf("%s is not beside the signature, where jscep looks for it", c.Subject)
		}
	}

	// The next CA takes over: nothing is published any more, and requests to the RA of before are still answered.
	newRA := RA{parse(t, must(nextIssuer.IssueRA(otherKey().Public(), time.Now(), time.Hour))), otherKey(), otherKey()}
	now.Store(&Authority{CA: chain[0], Chain: chain[1:], RAs: []RA{newRA, ra}})
	checkHTTPRefusal(t, s.get("/scep?operation=GetNextCACert"), 404, "no next CA")
	if caps := string(s.get("/scep?operation=GetCACaps").reply); strings.Contains(caps, "GetNextCACert") {
		t.Errorf("capabilities %q", caps)
	}
	d := newDevice(t, rsaKey(t, 2048), "dev")
	if r := s.openReply(s.post("corp", d.message(s.good()))); r.status != "0" {
		t.Errorf("for the RA of the CA before: pkiStatus %s: %s", r.status, r.text)
	}
}

// Two generations of a CA have one name. Certificates of the earlier one are renewed, found and on its own list.
func TestGenerations(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	before := now.Load()
	d := newDevice(t, rsaKey(t, 2048), "dev")
	first := d.issued(s.openReply(s.post("corp", d.message(s.good()))))

	old := s.issuer["corp"]
	issuer := newIssuer(t, "CN=corp CA,O=Test", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), time.Now())
	ra := RA{parse(t, must(issuer.IssueRA(s.raKey.Public(), time.Now(), time.Hour))), s.raKey, s.raKey}
	s.issues["corp"].Store(&enroll.Issuers{Active: issuer, Earlier: []*pki.Issuer{old}})
	now.Store(&Authority{CA: issuer.Certificate(), RAs: []RA{ra, before.RAs[0]}, Earlier: []*pki.Issuer{old}})

	w := s.good()
	w.recipient = ra.Certificate
	renewal := &device{t: t, key: d.key, cert: first, csr: makeCSR(t, d.key, "dev", "")}
	second := renewal.issued(s.openReply(s.post("corp", renewal.message(w))))
	if err := second.CheckSignatureFrom(issuer.Certificate()); err != nil || !bytes.Equal(second.RawIssuer, first.RawIssuer) {
		t.Fatalf("renewed by %s: %v", second.Issuer, err)
	}
	inner := func(messageType string, about *x509.Certificate) *pkcs7.PKCS7 {
		w := w
		w.messageType, w.content = messageType, issuerAndSerial(t, about.RawIssuer, about.SerialNumber)
		r := s.openReply(s.post("corp", d.message(w)))
		if r.status != "0" {
			t.Fatalf("type %s: pkiStatus %s, failInfo %s: %s", messageType, r.status, r.fail, r.text)
		}
		return must(pkcs7.Parse(must(must(pkcs7.Parse(r.content)).Decrypt(d.cert, d.key))))
	}
	for name, c := range map[string]struct{ about, ca *x509.Certificate }{
		"issued before": {first, before.CA},
		"RA of before":  {before.RAs[0].Certificate, before.CA},
		"issued now":    {second, issuer.Certificate()},
		"RA of now":     {ra.Certificate, issuer.Certificate()},
	} {
		if got := inner("21", c.about).Certificates[0]; !got.Equal(c.about) {
			t.Errorf("%s: GetCert has %s", name, got.Subject)
		}
		list := must(x509.ParseRevocationList(must(asn1.Marshal(inner("22", c.about).CRLs[0]))))
		if err := list.CheckSignatureFrom(c.ca); err != nil {
			t.Errorf("%s: the list of GetCRL: %v", name, err)
		}
	}
}

// An RA key that is busy is a matter of time, and what failed once is not kept.
func TestGetNextCACertWhileBusy(t *testing.T) {
	var now atomic.Pointer[Authority]
	s := newService(t, replaceable(&now, nil))
	_, chain := subordinate(t)
	key := &sometimesBusy{PrivateKey: s.raKey, busy: true}
	now.Store(&Authority{CA: now.Load().CA, RAs: []RA{{s.ra["corp"], key, key}}, Next: &Next{CA: chain[0]}})
	e := s.get("/scep?operation=GetNextCACert")
	checkHTTPRefusal(t, e, 503, "busy")
	if e.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	key.busy = false
	if e := s.get("/scep?operation=GetNextCACert"); e.status != 200 {
		t.Errorf("status %d: %s", e.status, e.reply)
	}
}

type sometimesBusy struct {
	*rsa.PrivateKey
	busy bool
}

func (k *sometimesBusy) Sign(random io.Reader, b []byte, o crypto.SignerOpts) ([]byte, error) {
	if k.busy {
		return nil, fmt.Errorf("key holder: %w", enroll.ErrBusy)
	}
	return k.PrivateKey.Sign(random, b, o)
}

// An envelope names its recipients in clear.
func TestAddressed(t *testing.T) {
	s := newService(t, nil)
	o := must(s.server.profiles["corp"].offer())
	e := must(cms.ParseEnvelopedData(sealWithOpenSSL(t, []byte("x"), []string{"-aes128"}, nil, s.ca["corp"])))
	if e.IsFor(s.ra["corp"]) || !e.IsFor(s.ca["corp"]) || !o.addressed(e).Certificate.Equal(s.ra["corp"]) || !o.addressed(nil).Certificate.Equal(s.ra["corp"]) {
		t.Error("an envelope for the CA is taken for one for the RA")
	}
	if _, err := e.Decrypt(s.ra["corp"], s.raKey, cms.DefaultPolicy()); !errors.Is(err, cms.ErrNoRecipient) {
		t.Errorf("error %v", err)
	}
}
