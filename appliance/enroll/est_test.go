package enroll

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
)

const password = "corp-demo-password"

// est is a request of the device by EST without any proof.
func (d *device) est(profile, operation string, subject pkix.Name, dns ...string) Request {
	r := d.request(subject, dns...)
	return Request{Profile: profile, Protocol: ProtocolEST, Operation: operation, CSR: r.CSR, Source: source}
}

func withPassword(r Request, user, password string) Request {
	r.Credentials = &Credentials{user, password}
	return r
}

func withPeer(t testing.TB, r Request, der ...[]byte) Request {
	t.Helper()
	r.Peer = nil
	for _, b := range der {
		cert, err := x509.ParseCertificate(b)
		must(t, err)
		r.Peer = append(r.Peer, cert)
	}
	return r
}

// authority is a CA that is not the box's.
type authority struct {
	*device
	cert *x509.Certificate
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	d := newDevice(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: start.Add(-time.Hour), NotAfter: start.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, d.key.Public(), d.key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{d, cert}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// certify makes a certificate of the device, good for a year unless change says otherwise.
func (a *authority) certify(d *device, subject pkix.Name, change func(*x509.Certificate)) []byte {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: subject, NotBefore: start.Add(-time.Hour), NotAfter: start.AddDate(1, 0, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, d.key.Public(), a.key)
	must(a.t, err)
	return der
}

// setEST has a profile take EST, as e says.
func (b *box) setEST(profile string, e EST) {
	p := b.engine.profiles[profile]
	p.EST = e
	b.engine.profiles[profile] = p
	must(b.t, p.check())
}

func (b *box) passwords(users ...challenge.User) *challenge.Passwords {
	b.t.Helper()
	for i := range users {
		users[i].Hash = hashOf(password)
	}
	p, err := challenge.NewGate(4).NewPasswords(users)
	must(b.t, err)
	return p
}

// Every set of proofs a profile may list, by every operation, with everything that may be offered: what is
// not listed is not a proof, whatever the route to it.
func TestESTProofs(t *testing.T) {
	b := newBox(t)
	bootstrap, other := newAuthority(t, "Bootstrap"), newAuthority(t, "Other")
	users := b.passwords(challenge.User{Name: "device"})
	const name = "once" // whose challenges are minted
	plain, strict := b.engine.profiles[name], b.engine.profiles[name]
	strict.Renewal.Proof = ProofCertificateChallenge

	// Everything offered is the device's own, so that nothing but the proof decides.
	d := newDevice(t)
	first := func(profile string) []byte {
		r := in(profile, d.request(printer))
		r.TransactionID = string(nonce())
		if profile == name {
			r.Proof.Challenge = b.mint(name, "printer-7")
		}
		return b.issue(r).Certificate
	}
	issued, revoked, foreign := first(name), b.issuedAndRevoked(first(name)), first("corp")
	selfSigned := d.selfSigned(printer)
	expired := func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Minute) }
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

	peers := []struct {
		name string
		der  [][]byte
		of   string // the mode that takes it, "" for none
	}{
		{"none", nil, ""},
		{"issued", [][]byte{issued}, "issued"},
		{"revoked", [][]byte{revoked}, ""},
		{"issued by another profile", [][]byte{foreign}, "foreign"},
		{"bootstrap", [][]byte{bootstrap.certify(d, pkix.Name{CommonName: "factory"}, nil)}, "bundle"},
		{"expired bootstrap", [][]byte{bootstrap.certify(d, printer, expired)}, ""},
		{"bootstrap for servers", [][]byte{bootstrap.certify(d, printer, server)}, ""},
		{"bootstrap authority itself", [][]byte{bootstrap.cert.Raw}, ""},
		{"another authority's", [][]byte{other.certify(d, printer, nil)}, ""},
		{"self-signed", [][]byte{selfSigned}, ""},
	}
	guesser := netip.MustParseAddr("192.0.2.66") // soon has nothing verified any more
	words := []string{"none", "user", "minted", "wrong", "user unknown"}
	n := 0
	for modes := range 16 {
		e := EST{On: modes > 0, Challenge: modes&2 != 0, Issued: modes&4 != 0}
		if modes&1 != 0 {
			e.Basic = users
		}
		if modes&8 != 0 {
			e.Bundle = bootstrap.pool
		}
		for _, needsMore := range []bool{false, true} {
			p := plain
			if needsMore {
				p = strict
			}
			b.engine.profiles[name] = p
			b.setEST(name, e)
			for _, operation := range []string{OpEnroll, OpReenroll, OpServerKeyGen, "cacerts", ""} {
				for _, peer := range peers {
					for _, word := range words {
						r := withPeer(t, d.est(name, operation, printer), peer.der...)
						isGoodWord := word == "user" && e.Basic != nil || word == "minted" && e.Challenge
						takesWords := e.Basic != nil || e.Challenge
						switch word {
						case "user":
							r = withPassword(r, "device", password)
						case "minted":
							r = withPassword(r, "device", "") // minted below, where it is to be good
							if isGoodWord {
								r.Credentials.Password = b.mint(name, "printer-7")
							}
						case "wrong":
							r = withPassword(r, "device", "guess-me")
							r.Source = guesser
						case "user unknown":
							r = withPassword(r, "admin", password)
							r.Source = guesser
						}
						isOurs := e.Issued && peer.of == "issued"
						isForeign := e.Issued && peer.of == "foreign"
						var want bool
						switch {
						case operation != OpEnroll && operation != OpReenroll && operation != OpServerKeyGen:
						case operation == OpReenroll:
							want = isOurs && (!needsMore || isGoodWord) || isForeign && isGoodWord
						case word != "none" && takesWords:
							want = isGoodWord
						default:
							want = isOurs && !needsMore || e.Bundle != nil && peer.of == "bundle"
						}
						res, err := b.enroll(r)
						if (err == nil) != want {
							t.Errorf("modes %04b, needs more %v, %q, certificate %s, password %s: result %v, error %v, want success %v",
								modes, needsMore, operation, peer.name, word, res, err, want)
						}
						if err != nil && !errors.Is(err, ErrNotOffered) && !errors.Is(err, ErrUnauthenticated) && !errors.Is(err, ErrCredentials) &&
							!errors.Is(err, ErrTooManyFailures) {
							t.Errorf("modes %04b, %q, certificate %s, password %s: %v", modes, operation, peer.name, word, err)
						}
						n++
					}
				}
			}
		}
	}
	t.Logf("%d combinations", n)
	b.close()
}

// issuedAndRevoked revokes a certificate.
func (b *box) issuedAndRevoked(der []byte) []byte {
	b.t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(b.t, err)
	must(b.t, b.revoke(serialText(cert.SerialNumber), "cessationOfOperation"))
	return der
}

// The same request of the same sender on the same operation gets the same certificate for ten minutes;
// simplereenroll and serverkeygen always issue.
func TestESTRetry(t *testing.T) {
	b := newBox(t)
	b.setEST("corp", EST{On: true, Issued: true, Basic: b.passwords(challenge.User{Name: "device"}, challenge.User{Name: "other"})})
	d := newDevice(t)
	r := withPassword(d.est("corp", OpEnroll, printer), "device", password)
	first := b.issue(r)
	rec := b.log()[1]
	if rec.Action != audit.ESTSimpleEnroll || rec.Protocol != "est" || rec.Outcome != audit.OutcomeSuccess || rec.Source != "192.0.2.1" {
		t.Errorf("record %+v", rec)
	}
	b.crash()
	b.setEST("corp", EST{On: true, Issued: true, Basic: b.passwords(challenge.User{Name: "device"}, challenge.User{Name: "other"})})
	if again := b.issue(r); !again.Replayed || again.Serial != first.Serial {
		t.Errorf("the same request got %+v", again)
	}
	wrong := withPassword(r, "device", "guess-me")
	b.refused(wrong, ErrCredentials)
	for name, other := range map[string]Request{
		"another user":      withPassword(r, "other", password),
		"another operation": withPassword(d.est("corp", OpServerKeyGen, printer), "device", password),
		"another name":      withPassword(d.est("corp", OpEnroll, pkix.Name{CommonName: "printer-8"}), "device", password),
		"the certificate":   withPeer(t, d.est("corp", OpEnroll, printer), first.Certificate),
	} {
		if res := b.issue(other); res.Replayed || res.Serial == first.Serial {
			t.Errorf("%s got the stored certificate", name)
		}
	}
	for _, operation := range []string{OpReenroll, OpServerKeyGen} {
		again := withPeer(t, d.est("corp", operation, printer), first.Certificate)
		if one, two := b.issue(again), b.issue(again); two.Replayed || one.Serial == two.Serial {
			t.Errorf("%s got the same certificate twice", operation)
		}
	}
	b.clock.advance(estWindow)
	if again := b.issue(r); !again.Replayed {
		t.Error("within ten minutes it got another certificate")
	}
	b.clock.advance(time.Second)
	if later := b.issue(r); later.Replayed {
		t.Error("after ten minutes it got the stored certificate")
	}
	must(t, b.revoke(b.issue(r).Serial, "superseded"))
	if res := b.issue(r); res.Replayed {
		t.Error("it got a revoked certificate")
	}
	b.close()
}

// A user who is for certain names gets certificates for those alone.
func TestESTUserFor(t *testing.T) {
	b := newBox(t)
	b.setEST("corp", EST{On: true, Basic: b.passwords(challenge.User{Name: "device", For: []string{"Printer-7", "p7.example.com"}})})
	for _, c := range []struct {
		subject pkix.Name
		dns     []string
		ok      bool
	}{
		{printer, nil, true},
		{printer, []string{"P7.example.com"}, true},
		{pkix.Name{CommonName: "p7.example.com"}, []string{"p7.example.com"}, true},
		{printer, []string{"p7.example.com", "p8.example.com"}, false},
		{pkix.Name{CommonName: "printer-8"}, nil, false},
		{pkix.Name{CommonName: "printer-8"}, []string{"p7.example.com"}, false},
		{pkix.Name{}, nil, false},
		{pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: []int{2, 5, 4, 3}, Value: "admin"}, {Type: []int{2, 5, 4, 3}, Value: "printer-7"}}}, nil, false},
	} {
		for _, operation := range []string{OpEnroll, OpServerKeyGen} {
			_, err := b.enroll(withPassword(newDevice(t).est("corp", operation, c.subject, c.dns...), "device", password))
			policy := (*pki.PolicyError)(nil)
			if c.ok && err != nil || !c.ok && (!errors.As(err, &policy) || policy.Rule != "est.auth.basic.for") {
				t.Errorf("%s for %v %v: %v", operation, c.subject, c.dns, err)
			}
		}
	}
	b.close()
}

// An Active Directory account is a name to log in by: such a user gets it only where it is listed.
func TestESTUserForAccount(t *testing.T) {
	b := newBox(t)
	const sid = "S-1-5-21-1-2-3-500"
	b.setEST("corp", EST{On: true, Basic: b.passwords(
		challenge.User{Name: "device", For: []string{"printer-7"}}, challenge.User{Name: "admin", For: []string{"printer-7", sid}})})
	value, err := asn1.Marshal([]any{asn1.RawValue{Class: 2, IsCompound: true, Bytes: slices.Concat(
		[]byte{0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x19, 0x02, 0x01}, // 1.3.6.1.4.1.311.25.2.1
		[]byte{0xa0, byte(len(sid) + 2), 0x04, byte(len(sid))}, []byte(sid))}})
	must(t, err)
	d := newDevice(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: printer, ExtraExtensions: []pkix.Extension{
		{Id: []int{1, 3, 6, 1, 4, 1, 311, 25, 2}, Value: value},
	}}, d.key)
	must(t, err)
	csr, err := pki.ParseRequest(der)
	must(t, err)
	if csr.SID != sid {
		t.Fatalf("SID %q", csr.SID)
	}
	r := Request{Profile: "corp", Protocol: ProtocolEST, Operation: OpEnroll, CSR: csr, Source: source}
	policy := (*pki.PolicyError)(nil)
	if _, err := b.enroll(withPassword(r, "device", password)); !errors.As(err, &policy) || !strings.Contains(policy.Value, sid) {
		t.Errorf("an account that is not listed: %v", err)
	}
	b.issue(withPassword(r, "admin", password))
	b.close()
}

// A renewal by EST is for the same names, by any key, inside its window; what it is compared with is the
// certificate that is shown.
func TestESTRenewal(t *testing.T) {
	b := newBox(t)
	e := EST{On: true, Issued: true}
	b.setEST("corp", e)
	b.setEST("narrow", e)
	d := newDevice(t)
	first := b.issue(d.request(printer, "p7.example.com"))
	for _, operation := range []string{OpEnroll, OpReenroll} {
		second := b.issue(withPeer(t, newDevice(t).est("corp", operation, printer), first.Certificate)) // another key, inherited names
		cert, err := x509.ParseCertificate(second.Certificate)
		must(t, err)
		if len(cert.DNSNames) != 1 || cert.DNSNames[0] != "p7.example.com" {
			t.Errorf("names %v", cert.DNSNames)
		}
		b.refused(withPeer(t, d.est("corp", operation, pkix.Name{CommonName: "printer-8"}), first.Certificate), ErrRenewalIdentity)
		b.refused(withPeer(t, d.est("corp", operation, printer, "p8.example.com"), first.Certificate), ErrRenewalIdentity)
	}
	narrow := b.issue(in("narrow", newDevice(t).request(printer)))
	b.refused(withPeer(t, d.est("narrow", OpReenroll, printer), narrow.Certificate), ErrRenewalEarly)
	b.refused(withPeer(t, d.est("corp", OpReenroll, printer), narrow.Certificate), ErrUnauthenticated) // of another profile
	b.clock.advance(validity + 7*24*time.Hour + time.Second)
	b.refused(withPeer(t, d.est("narrow", OpReenroll, printer), narrow.Certificate), ErrSignerExpired)
	b.refused(withPeer(t, d.est("narrow", OpReenroll, printer), narrow.Certificate), ErrCredentials)
	b.close()
}

// A request of EST waits for a person, is asked for by sending it again, and found for a day.
func TestESTHeld(t *testing.T) {
	b := newBox(t)
	b.setEST("manual", EST{On: true, Issued: true, Challenge: true})
	d := newDevice(t)
	r := withPassword(d.est("manual", OpEnroll, printer), "", b.mint("manual", "printer-7"))
	b.refused(withPassword(d.est("manual", OpServerKeyGen, printer), "", b.mint("manual", "printer-7")), ErrHold)
	id := b.held(r)
	if again := b.held(r); again != id {
		t.Error("sent again it is another request")
	}
	must(t, b.approve(id))
	first := b.issue(r)
	if first.ID != id || !first.Replayed {
		t.Errorf("after the approval: %+v", first)
	}
	again := withPeer(t, d.est("manual", OpReenroll, printer), first.Certificate)
	id = b.held(again)
	b.crash()
	b.setEST("manual", EST{On: true, Issued: true, Challenge: true})
	must(t, b.approve(id))
	if log := b.log(); log[len(log)-1].Action != audit.ESTSimpleReenroll {
		t.Errorf("record %+v", log[len(log)-1])
	}
	b.clock.advance(retryWindow)
	second := b.issue(again)
	if second.ID != id || second.Serial == first.Serial {
		t.Errorf("after the approval: %+v", second)
	}
	b.clock.advance(time.Second)
	if res, err := b.enroll(again); err != nil || !res.Pending {
		t.Errorf("a day later: %+v, %v", res, err)
	}
	b.close()
}

// One challenge, as a password: one certificate, however many try, and the same again for its request.
func TestESTOneTime(t *testing.T) {
	b := newBox(t)
	b.setEST("once", EST{On: true, Challenge: true, Basic: b.passwords(challenge.User{Name: "device"})})
	secret := b.mint("once", "printer-7")
	d := newDevice(t)
	b.refused(withPassword(d.est("once", OpEnroll, pkix.Name{CommonName: "printer-8"}), "", secret), ErrCredentials)
	r := withPassword(d.est("once", OpEnroll, printer), "", secret)
	b.signer.set(func() error { return errHolderBusy })
	b.refused(r, ErrBusy)
	b.signer.set(nil)
	first := b.issue(r)
	if again := b.issue(withPassword(r, "any", secret)); again.Serial != first.Serial {
		t.Error("the retry got another certificate")
	}
	b.refused(withPassword(newDevice(t).est("once", OpEnroll, printer), "", secret), ErrCredentials)
	b.refused(withPassword(d.est("once", OpServerKeyGen, printer), "", secret), ErrCredentials)
	b.clock.advance(estWindow + time.Second)
	b.refused(r, ErrCredentials)
	b.close()
}

// A source that guesses is not listened to any more, and the log tells how often it did.
func TestESTGuesses(t *testing.T) {
	b := newBox(t)
	b.setEST("corp", EST{On: true, Basic: b.passwords(challenge.User{Name: "device"})})
	r := withPassword(newDevice(t).est("corp", OpEnroll, printer), "device", "guess-me")
	for range challenge.MaxFailures {
		b.refused(r, ErrCredentials)
	}
	b.refused(withPassword(r, "device", password), ErrTooManyFailures)
	r.Source = netip.MustParseAddr("192.0.2.2")
	b.issue(withPassword(r, "device", password))
	b.refused(newDevice(t).est("corp", OpEnroll, printer), ErrUnauthenticated)
	for _, rec := range b.log() {
		if rec.Action == audit.SCEPRefused || strings.Contains(rec.Reason, "guess") {
			t.Errorf("record %+v", rec)
		}
	}
	b.close()
}

// A certificate of another profile proves a first request where the bundle has the authority of both, whether or not its time to be
// renewed has come.
func TestESTBundleOfOwnAuthority(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	factory := b.issue(d.request(printer))
	b.setEST("narrow", EST{On: true, Issued: true, Bundle: (&authority{d, b.issuer.Certificate()}).pool})
	for range 2 {
		res := b.issue(withPeer(t, newDevice(t).est("narrow", OpEnroll, pkix.Name{CommonName: "printer-8"}), factory.Certificate))
		x, err := b.store.Transaction(res.Serial)
		must(t, err)
		if x.Supersedes != "" {
			t.Errorf("a first request renews %s", x.Supersedes)
		}
		b.clock.advance(validity - 24*time.Hour)
	}
	b.close()
}

// Certificates of another authority are renewed where the profile says so, by SCEP and EST, for the same
// names, until their end, by nobody who only has the authority's name.
// Only so many certificates of a client are looked at.
func TestESTLongChain(t *testing.T) {
	b := newBox(t)
	bootstrap := newAuthority(t, "Bootstrap")
	b.setEST("corp", EST{On: true, Bundle: bootstrap.pool})
	d := newDevice(t)
	chain := slices.Repeat([][]byte{bootstrap.certify(d, printer, nil)}, maxPeer+1)
	b.refused(withPeer(t, d.est("corp", OpEnroll, printer), chain...), ErrCredentials)
	b.issue(withPeer(t, d.est("corp", OpEnroll, printer), chain[1:]...))
	b.close()
}

func TestRenewFrom(t *testing.T) {
	b := newBox(t)
	old, other := newAuthority(t, "Old CA"), newAuthority(t, "Old CA")
	p := b.engine.profiles["corp"]
	p.RenewFrom, p.EST, p.RevokeOnReplace = old.pool, EST{On: true, Issued: true}, true
	b.engine.profiles["corp"] = p
	manual := b.engine.profiles["manual"]
	manual.RenewFrom = old.pool
	b.engine.profiles["manual"] = manual
	d := newDevice(t)
	cert := old.certify(d, printer, nil)

	r := d.renewal(cert, d, printer)
	first := b.issue(r)
	if again := b.issue(r); again.Serial != first.Serial {
		t.Error("the same message got another certificate")
	}
	b.issue(withPeer(t, newDevice(t).est("corp", OpReenroll, printer), cert))
	noUsage := old.certify(d, printer, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	b.issue(withPeer(t, newDevice(t).est("corp", OpEnroll, printer), noUsage))
	b.refused(d.renewal(cert, d, pkix.Name{CommonName: "printer-8"}), ErrRenewalIdentity)
	b.refused(withPeer(t, d.est("corp", OpReenroll, pkix.Name{CommonName: "printer-8"}), cert), ErrRenewalIdentity)
	b.refused(d.renewal(cert, newDevice(t), printer), ErrSignerKey)
	sameSerial := old.certify(d, printer, func(c *x509.Certificate) { c.SerialNumber = serialOf(t, first.Serial) })
	b.issue(d.renewal(sameSerial, d, printer)) // as the box issued one itself
	for name, bad := range map[string][]byte{
		"of an authority of that name": other.certify(d, printer, nil),
		"for servers":                  old.certify(d, printer, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"over":                         old.certify(d, printer, func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) }),
		"an authority":                 old.certify(d, printer, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }),
		"self-signed":                  d.selfSigned(printer),
	} {
		if res, err := b.enroll(d.renewal(bad, d, printer)); !errors.Is(err, ErrSignerUnknown) {
			t.Errorf("SCEP, %s: %v, %v", name, res, err)
		}
		if res, err := b.enroll(withPeer(t, d.est("corp", OpReenroll, printer), bad)); !errors.Is(err, ErrCredentials) {
			t.Errorf("EST, %s: %v, %v", name, res, err)
		}
	}
	b.refused(in("narrow", d.renewal(cert, d, printer)), ErrSignerUnknown) // which does not list it

	// Held, it is compared again when somebody approves.
	held := in("manual", d.renewal(cert, d, printer))
	id := b.held(held)
	must(t, b.approve(id))
	held.SenderNonce = nonce()
	if res := b.issue(held); res.ID != id {
		t.Errorf("after the approval: %+v", res)
	}
	log := b.log()
	if !strings.Contains(log[len(log)-1].Reason, "renews 1267 of CN=Old CA") {
		t.Errorf("record %+v", log[len(log)-1])
	}
	b.close()
}
