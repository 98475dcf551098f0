package enroll

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Who could not be asked about a challenge said nothing about it: the device is to come again, whatever
// kept the answer away, and nothing is held against it.
func TestNoVerdict(t *testing.T) {
	for _, cause := range []error{errors.New("503"), fmt.Errorf("asking: %w", context.DeadlineExceeded)} {
		b := newBox(t)
		p := b.engine.profiles["corp"]
		p.Challenges = challenge.NewSet(challenge.Config{Intune: func(context.Context, challenge.Request) error { return cause }})
		b.engine.profiles["corp"] = p
		_, err := b.enroll(newDevice(t).request(printer))
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrChallenge) {
			t.Errorf("%v: %v", cause, err)
		}
		b.closeCounted(0, 0)
	}
}

// A store that does not answer is no wrong challenge.
func TestChallengeWithoutStore(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	r := in("once", d.request(printer))
	r.Proof.Challenge = b.mint("once", "printer-7")
	must(t, b.store.Close())
	b.refused(r, ErrUnavailable)
	b.refused(in("signed", withChallenge(d.request(printer), b.token("printer-7"))), ErrUnavailable)
}

func withChallenge(r Request, challenge string) Request {
	r.Proof.Challenge = challenge
	return r
}

// accountCSR is a request for a printer that is an Active Directory account.
func accountCSR(t *testing.T, d *device, sid string) *pki.Request {
	t.Helper()
	value, err := asn1.Marshal([]any{asn1.RawValue{Class: 2, IsCompound: true, Bytes: slices.Concat(
		[]byte{0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x19, 0x02, 0x01}, // 1.3.6.1.4.1.311.25.2.1
		[]byte{0xa0, byte(len(sid) + 2), 0x04, byte(len(sid))}, []byte(sid))}})
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: printer, ExtraExtensions: []pkix.Extension{
		{Id: oidNTDSSecurity, Value: value},
	}}, d.key)
	must(t, err)
	csr, err := pki.ParseRequest(der)
	must(t, err)
	if csr.SID != sid {
		t.Fatalf("SID %q", csr.SID)
	}
	return csr
}

// A challenge that was made for one device lets it be no account but the one it was made for, where the
// profile's certificates log accounts in.
func TestChallengeForAccount(t *testing.T) {
	const admin, own = "S-1-5-21-1-2-3-500", "S-1-5-21-1-2-3-1104"
	b := newBox(t)
	keeping, err := pki.NewProfile(pki.ProfileConfig{
		Keys: pki.KeyConfig{ECDSA: []string{"p256"}}, Subject: pki.SubjectConfig{Allow: []string{"CN"}}, ADSID: true,
		Usage: pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}}, Validity: validity,
	})
	must(t, err)
	mint := func(profile string, sans ...string) string {
		t.Helper()
		secret, _, err := b.oneTime[profile].Mint("printer-7", sans, 0, b.clock.Now(), func(g store.Guard) error {
			return b.store.Mint(g, audit.Record{Time: b.clock.Now(), TimeSource: "host", Action: audit.ChallengeMinted, Outcome: audit.OutcomeSuccess})
		})
		must(t, err)
		return secret
	}
	token := func(sid string) string {
		t.Helper()
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: b.connector.key}, nil)
		must(t, err)
		now := b.clock.Now()
		all := map[string]any{
			"iss": "connector", "sub": string(nonce()[:4]), "aud": "box", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
			"nonce": fmt.Sprintf("%x", nonce()), "device_name": "printer-7",
		}
		all["sub"] = all["nonce"]
		if sid != "" {
			all["ad_sid"] = sid
		}
		claims, err := json.Marshal(all)
		must(t, err)
		jws, err := signer.Sign(claims)
		must(t, err)
		compact, err := jws.CompactSerialize()
		must(t, err)
		return compact
	}
	for _, keeps := range []bool{false, true} {
		for _, profile := range []string{"once", "manual", "signed"} {
			p := b.engine.profiles[profile]
			if keeps {
				p.Policy = keeping
			}
			b.engine.profiles[profile] = p
		}
		for _, c := range []struct {
			name, profile, challenge, sid string
			ok                            bool
		}{
			{"one-time, another account", "once", mint("once"), admin, !keeps},
			{"one-time, another account than its own", "once", mint("once", "sid:"+own), admin, !keeps},
			{"one-time, its account", "once", mint("once", "sid:"+own), own, true},
			{"held, another account", "manual", mint("manual"), admin, !keeps},
			{"held, its account", "manual", mint("manual", "sid:"+own), own, true},
			{"signed, another account", "signed", token(""), admin, !keeps},
			{"signed, another account than its own", "signed", token(own), admin, !keeps},
			{"signed, its account", "signed", token(own), own, true},
		} {
			d := newDevice(t)
			r := in(c.profile, withChallenge(d.request(printer), c.challenge))
			r.CSR = accountCSR(t, d, c.sid)
			r.Proof.SignerSPKI = r.CSR.RawSPKI
			res, err := b.enroll(r)
			if c.ok && err != nil || !c.ok && !errors.Is(err, ErrChallenge) {
				t.Errorf("kept %v, %s: %v", keeps, c.name, err)
			}
			if err != nil {
				continue
			}
			if res.Pending { // a person sees the account; nothing else is asked again
				must(t, b.approve(res.ID))
				if res, err = b.poll(r); err != nil {
					t.Fatal(err)
				}
			}
			cert, err := x509.ParseCertificate(res.Certificate)
			must(t, err)
			if has := slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNTDSSecurity) }); has != keeps {
				t.Errorf("kept %v, %s: in the certificate %v", keeps, c.name, has)
			}
			if c.profile == "signed" && keeps { // the certificate says who it is from then on
				renewal := in("signed", d.renewal(res.Certificate, d, printer))
				renewal.Proof.Challenge = token("")
				b.issue(renewal)
			}
		}
	}

	// As a password of EST it is the same challenge.
	b.setEST("once", EST{On: true, Challenge: true})
	d := newDevice(t)
	r := Request{Profile: "once", Protocol: ProtocolEST, Operation: OpEnroll, CSR: accountCSR(t, d, admin), Source: source}
	b.refused(withPassword(r, "any", mint("once")), ErrCredentials)
	b.issue(withPassword(r, "any", mint("once", "sid:"+admin)))
	b.close()
}

// Where others have a key, none of its certificates proves anything, on whatever way it is shown.
func TestCertificateOfCompromisedKey(t *testing.T) {
	b := newBox(t)
	bootstrap := newAuthority(t, "Bootstrap")
	p := b.engine.profiles["corp"]
	p.RenewFrom = bootstrap.pool
	b.engine.profiles["corp"] = p
	b.setEST("corp", EST{On: true, Issued: true})
	b.setEST("closed", EST{On: true, Bundle: bootstrap.pool})
	d, fresh := newDevice(t), newDevice(t)
	one := b.issue(d.request(printer))
	two := b.issue(d.renewal(one.Certificate, d, printer))
	factory := bootstrap.certify(d, printer, nil)
	waiting := in("manual", fresh.renewal(two.Certificate, d, printer))
	waiting.Proof.Challenge = secret // of another profile's certificate
	id := b.held(waiting)
	mtls := fresh.request(printer)
	var err error
	mtls.MTLS, err = x509.ParseCertificate(two.Certificate)
	must(t, err)

	must(t, b.revoke(one.Serial, "keyCompromise"))
	b.refused(fresh.renewal(two.Certificate, d, printer), ErrSignerRevoked)
	b.refused(fresh.renewal(factory, d, printer), ErrSignerRevoked)
	b.refused(mtls, ErrSignerRevoked)
	b.refused(withPeer(t, fresh.est("corp", OpReenroll, printer), two.Certificate), ErrCredentials)
	b.refused(withPeer(t, fresh.est("corp", OpEnroll, printer), factory), ErrCredentials)
	b.refused(withPeer(t, fresh.est("closed", OpEnroll, printer), factory), ErrCredentials)
	if err := b.approve(id); !errors.Is(err, ErrSignerRevoked) {
		t.Errorf("approving what it was renewed by: %v", err)
	}
	b.issue(fresh.request(printer)) // a new key with a challenge
	b.close()
}

// A certificate of the authority with its signature written in another way is none that some bundle
// happens to trust: as such it would be no renewal, whose names are compared.
func TestIssuedWithAnotherSignature(t *testing.T) {
	b := newBox(t)
	own := func() *x509.CertPool {
		pool := x509.NewCertPool()
		pool.AddCert(b.issuer.Certificate())
		return pool
	}
	p := b.engine.profiles["narrow"]
	p.RenewFrom = own
	b.engine.profiles["narrow"] = p
	b.setEST("corp", EST{On: true, Issued: true, Bundle: own})
	d := newDevice(t)
	first := b.issue(d.request(printer))
	other := otherSignature(t, first.Certificate).Raw
	admin := pkix.Name{CommonName: "admin"}
	b.refused(withPeer(t, d.est("corp", OpEnroll, admin), first.Certificate), ErrRenewalIdentity)
	b.refused(withPeer(t, d.est("corp", OpEnroll, admin), other), ErrCredentials)
	early := b.issue(in("narrow", newDevice(t).request(printer)))
	_ = early
	b.refused(in("narrow", d.renewal(other, d, printer)), ErrSignerUnknown)
	b.close()
}

// Letters that only look like, or fold to, those of a name are another name, and so is an e-mail address
// or what a device without common name is called by.
func TestESTUserForLookAlikes(t *testing.T) {
	b := newBox(t)
	b.setEST("corp", EST{On: true, Basic: b.passwords(challenge.User{Name: "device", For: []string{"kiosk", "p7.example.com"}})})
	address := pkix.AttributeTypeAndValue{Type: []int{1, 2, 840, 113549, 1, 9, 1}, Value: "root@example.com"}
	for name, r := range map[string]Request{
		"KELVIN SIGN":    newDevice(t).est("corp", OpEnroll, pkix.Name{CommonName: "\u212aiosk"}),
		"LONG S":         newDevice(t).est("corp", OpEnroll, pkix.Name{CommonName: "kio\u017fk"}),
		"e-mail address": newDevice(t).est("corp", OpEnroll, pkix.Name{CommonName: "kiosk", ExtraNames: []pkix.AttributeTypeAndValue{address}}),
		"serialNumber":   newDevice(t).est("corp", OpEnroll, pkix.Name{SerialNumber: "victim"}, "p7.example.com"),
	} {
		_, err := b.enroll(withPassword(r, "device", password))
		policy := (*pki.PolicyError)(nil)
		if !errors.As(err, &policy) || policy.Rule != "est.auth.basic.for" {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.issue(withPassword(newDevice(t).est("corp", OpEnroll, pkix.Name{CommonName: "KIOSK"}), "device", password))
	b.close()
}

// What the compliance check refuses is in the log, also where its time was over; and so is whose password
// a certificate was issued for.
func TestLogOfESTAndCompliance(t *testing.T) {
	b := newBox(t)
	p := b.engine.profiles["corp"]
	p.Compliance = func(context.Context, Request) error { return context.DeadlineExceeded }
	b.engine.profiles["corp"] = p
	b.setEST("once", EST{On: true, Basic: b.passwords(challenge.User{Name: "line-4"})})
	b.refused(newDevice(t).request(printer), ErrCompliance)
	wantLog(b, "scep_refused refused")
	b.issue(withPassword(newDevice(t).est("once", OpEnroll, printer), "line-4", password))
	for _, r := range b.log()[1:] {
		if !strings.Contains(r.Reason, "user line-4") {
			t.Errorf("%s: %q", r.Action, r.Reason)
		}
	}
	b.close()
}

// The compliance check hears one name of a request; what has others is not asked about.
func TestComplianceIsAskedAboutEveryName(t *testing.T) {
	b := newBox(t)
	cn := func(value string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 3}, Value: value}
	}
	for _, names := range [][]pkix.AttributeTypeAndValue{{cn("rooted-phone"), cn("phone")}, {cn("phone"), cn("rooted-phone")}} {
		res, err := b.enroll(in("compliant", newDevice(t).request(pkix.Name{ExtraNames: names})))
		policy := (*pki.PolicyError)(nil)
		if !errors.As(err, &policy) || policy.Rule != "compliance" {
			t.Errorf("%v: %+v, %v", names, res, err)
		}
	}
	b.refused(in("compliant", newDevice(t).request(pkix.Name{CommonName: "rooted-phone"})), ErrCompliance)
	b.issue(in("compliant", newDevice(t).request(pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{cn("phone"), cn("phone")}})))
	b.close()
}

// What Intune does not know of is not handed out to a poll either, should a profile ever hold such a request.
func TestWithheldIsNotPolled(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("corp", c)
	p := b.engine.profiles["corp"]
	p.Approval.Manual = true // which Profile.check refuses
	b.engine.profiles["corp"] = p
	r := withChallenge(newDevice(t).request(printer), "blob")
	id := b.held(r)
	c.fail(errors.New("503"))
	if err := b.approve(id); !errors.Is(err, ErrWithheld) {
		t.Fatalf("approving: %v", err)
	}
	if res, err := b.poll(r); !errors.Is(err, ErrNoRequest) || res != nil {
		t.Errorf("the poll got %+v, %v", res, err)
	}
	c.fail(nil)
	r.SenderNonce = nonce()
	b.issue(r)
	if res, err := b.poll(r); err != nil || res.Certificate == nil {
		t.Errorf("once Intune knows: %+v, %v", res, err)
	}
	b.close()
}

// publicCA is whom the machine trusts: a process reads that once, and the test may run again in it.
var publicCA struct {
	sync.Once
	*authority
}

// A bundle that is not there trusts nobody, and not whom the machine trusts.
func TestNoBundleIsNotTheMachines(t *testing.T) {
	publicCA.Do(func() { publicCA.authority = newAuthority(t, "Public CA") })
	other := publicCA.authority
	file := filepath.Join(t.TempDir(), "roots.pem")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.cert.Raw}), 0o600))
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	d := newDevice(t)
	cert, err := x509.ParseCertificate(other.certify(d, printer, nil))
	must(t, err)
	if _, err := cert.Verify(x509.VerifyOptions{CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Fatalf("the machine does not trust it: %v", err)
	}
	b := newBox(t)
	none := func() *x509.CertPool { return nil }
	p := b.engine.profiles["corp"]
	p.RenewFrom = none
	b.engine.profiles["corp"] = p
	b.setEST("corp", EST{On: true, Issued: true, Bundle: none})
	b.refused(withPeer(t, d.est("corp", OpEnroll, printer), cert.Raw), ErrCredentials)
	b.refused(withPeer(t, d.est("corp", OpReenroll, printer), cert.Raw), ErrCredentials)
	b.refused(d.renewal(cert.Raw, d, printer), ErrSignerUnknown)
	b.close()
}

// A minted challenge that is not good is no password: it is verified as nothing else, and costs its sender
// none of the wrong ones.
func TestMintedIsNoPassword(t *testing.T) {
	b := newBox(t)
	b.setEST("once", EST{On: true, Challenge: true, Basic: b.passwords(challenge.User{Name: "device"})})
	d := newDevice(t)
	other := b.mint("once", "printer-8")
	for range challenge.MaxFailures + 1 {
		b.refused(withPassword(d.est("once", OpEnroll, printer), "device", other), ErrCredentials)
	}
	b.issue(withPassword(d.est("once", OpEnroll, printer), "device", password))
	b.close()
}
