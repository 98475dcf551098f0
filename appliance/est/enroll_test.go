package est

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/pki"
)

// The life of a certificate by EST: enrolled with a password, renewed with itself to the same key and to a new one.
func TestEnrollAndRenew(t *testing.T) {
	for _, profile := range []string{"corp", "modern"} {
		t.Run(profile, func(t *testing.T) {
			s := newService(t, nil)
			d := s.device("dev")
			first := d.enrolled(profile, d.post(profile+"/simpleenroll"))

			renewing := d.with(first)
			second := renewing.enrolled(profile, renewing.post(profile+"/simplereenroll"))
			rekeyed := renewing.with(second)
			rekeyed.key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			third := rekeyed.enrolled(profile, rekeyed.post(profile+"/simplereenroll"))
			// libest renews to a new key through simpleenroll.
			again := rekeyed.with(third)
			again.key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			fourth := again.enrolled(profile, again.post(profile+"/simpleenroll"))

			serials := map[string]bool{}
			for _, c := range []*x509.Certificate{first, second, third, fourth} {
				serials[c.SerialNumber.String()] = true
			}
			if len(serials) != 4 {
				t.Errorf("%d serials for 4 certificates", len(serials))
			}
			if n := len(s.records(audit.OutcomeSuccess)); n != 4 {
				t.Errorf("%d certificates in the audit log", n)
			}
			s.checkLog()
		})
	}
}

// A first certificate for a certificate of the bundle, and for no other.
func TestBootstrapCertificate(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	d.user = ""
	d.cert = s.bootstrap.device(t, "factory", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), x509.KeyUsageDigitalSignature)
	d.enrolled("boot", d.post("boot/simpleenroll"))

	other := newAuthority(t, "CN=Bootstrap")
	d.cert = other.device(t, "factory", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), x509.KeyUsageDigitalSignature)
	unauthorized(t, d.post("boot/simpleenroll"), false)
	d.cert = tls.Certificate{}
	unauthorized(t, d.post("boot/simpleenroll"), false)
	d.user = user // a password is not good where the profile takes none
	if a := d.post("boot/simpleenroll"); a.status == 200 {
		t.Error("enrolled with a password")
	}
	s.checkLog()
}

// Where a proxy ends TLS, the certificates are those the configuration finds, and none of the connection.
func TestClientCertificates(t *testing.T) {
	var shown []*x509.Certificate
	s := newService(t, func(c *Config) {
		c.ClientCertificates = func(*http.Request) []*x509.Certificate { return shown }
	})
	d := s.device("dev")
	d.user = ""
	factory := s.bootstrap.device(t, "factory", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), x509.KeyUsageDigitalSignature)
	d.cert = factory
	unauthorized(t, d.post("boot/simpleenroll"), false)
	d.cert, shown = tls.Certificate{}, []*x509.Certificate{parse(t, factory.Certificate[0])}
	d.enrolled("boot", d.post("boot/simpleenroll"))
}

// What this package refuses is in the audit log as well, with its source and its reason.
func TestRefusalsAreRecorded(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	for range 3 {
		d.do("POST", "simpleenroll", []byte("nonsense"))
		d.do("POST", "bound/simpleenroll", d.csr())
	}
	found := map[string]int{}
	for _, r := range s.records(audit.OutcomeRefused) {
		if r.Protocol != "est" || r.Source != "127.0.0.1" {
			t.Errorf("%+v", r)
		}
		found[r.Profile+": "+r.Identity+": "+r.Reason]++
	}
	if len(found) != 2 || found["corp: : "+errBody.Error()] != 1 {
		t.Errorf("%v", found)
	}
}

// unauthorized checks a 401: no body, and a challenge where a password would help.
func unauthorized(t *testing.T, a answer, basic bool) {
	t.Helper()
	challenge := a.header.Get("WWW-Authenticate")
	if a.status != 401 || len(a.body) != 0 || a.header.Get("Content-Length") != "0" || (challenge == `Basic realm="est"`) != basic || !basic && challenge != "" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
}

// Whatever is wrong with credentials has one answer, and none of it falls back to a certificate that would do.
func TestWrongCredentials(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	first := d.enrolled("corp", d.post("simpleenroll"))
	withCert := d.with(first)
	var answers []answer
	for _, c := range []struct{ user, pass string }{{user, "wrong-password"}, {"nobody", "wrong-password"}, {"nobody", secret}, {user, ""}} {
		for _, from := range []*device{d, withCert} {
			from.user, from.pass = c.user, c.pass
			a := from.post("simpleenroll")
			unauthorized(t, a, true)
			answers = append(answers, a)
		}
	}
	for i, a := range answers {
		if !reflect.DeepEqual(a, answers[0]) {
			t.Errorf("answer %d is %+v, the first %+v", i, a, answers[0])
		}
	}
	withCert.user = ""
	for _, scheme := range []string{"Digest username=\"device\"", "Basic ***", "Bearer " + secret} {
		a := withCert.do(http.MethodPost, "simpleenroll", d.csr(), "Authorization", scheme)
		unauthorized(t, a, true)
	}
	if n := len(s.records(audit.OutcomeSuccess)); n != 1 {
		t.Errorf("%d certificates", n)
	}
	s.checkLog()
}

// After too many wrong passwords nothing of that source is verified for a while; right ones count for nothing.
func TestTooManyFailures(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	for range 12 {
		d.enrolled("corp", d.post("simpleenroll"))
	}
	d.pass = "wrong-password"
	for range 20 {
		a := d.post("simpleenroll")
		if a.status == 401 {
			continue
		}
		s.refused(a, 429, "too many wrong passwords")
		if a.header.Get("Retry-After") != "600" {
			t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
		}
		return
	}
	t.Error("20 wrong passwords are not too many")
}

// What may not be renewed.
func TestReenrollRefused(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	cert := d.enrolled("corp", d.post("simpleenroll"))

	plain := s.device("dev")
	unauthorized(t, plain.post("simplereenroll"), true) // a password renews nothing
	plain.user = ""
	unauthorized(t, plain.post("simplereenroll"), true)

	foreign := d.with(cert)
	foreign.cert = newAuthority(t, "CN=corp CA,O=Test").device(t, "dev", d.key, x509.KeyUsageDigitalSignature)
	unauthorized(t, foreign.post("simplereenroll"), true)

	renamed := d.with(cert)
	renamed.cn = "other"
	s.refused(renamed.post("simplereenroll"), 400, "keeps subject and names")

	many := d.with(cert)
	for range 8 {
		many.cert.Certificate = append(many.cert.Certificate, s.bootstrap.cert.Raw)
	}
	unauthorized(t, many.post("simplereenroll"), true)

	if err := s.engine.Revoke(t.Context(), fmt.Sprintf("%x", cert.SerialNumber.Bytes()), "keyCompromise", "test"); err != nil {
		t.Fatal(err)
	}
	unauthorized(t, d.with(cert).post("simplereenroll"), true)
	if n := len(s.records(audit.OutcomeSuccess)); n != 2 { // the certificate and its revocation
		t.Errorf("%d successes in the audit log", n)
	}
	s.checkLog()
}

// What the profile does not allow is said with its rule and value.
func TestPolicy(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	d.key = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	a := d.post("simpleenroll")
	s.refused(a, 400, "not allowed: ")
	if !strings.Contains(string(a.body), "keys") {
		t.Errorf("%q does not name the rule", a.body)
	}
}

// A held request is told to come back until somebody approves, and gets its certificate then.
func TestPending(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev.approve.test")
	body := []byte(base64.StdEncoding.EncodeToString(d.csr()))
	for range 2 {
		a := d.do("POST", "manual/simpleenroll", body)
		if a.status != 202 || a.header.Get("Retry-After") != "1" || len(a.body) != 0 {
			t.Fatalf("%d %v %s", a.status, a.header, a.body)
		}
	}
	s.approve()
	first := d.enrolled("manual", d.do("POST", "manual/simpleenroll", body))
	second := d.enrolled("manual", d.do("POST", "manual/simpleenroll", body))
	if !bytes.Equal(first.Raw, second.Raw) {
		t.Error("another certificate for the approved request")
	}
	// A key made here waits for nobody: it would have to be kept.
	s.refused(d.do("POST", "manual/serverkeygen", body), 403, "has to wait for approval")
	s.checkLog()
}

// A device whose request is bound to its connection comes back by another one, so with another challengePassword (RFC 7030 §3.5).
func TestPendingBound(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev.approve.test")
	ask := func(binding string) answer {
		return d.do("POST", "manual/simpleenroll", d.csr(attribute(oidChallengePassword, must(asn1.Marshal(binding)))))
	}
	for _, binding := range []string{"first", "second"} {
		if a := ask(binding); a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	s.approve()
	first := d.enrolled("manual", ask("third"))
	if again := d.enrolled("manual", ask("fourth")); !bytes.Equal(first.Raw, again.Raw) {
		t.Error("another certificate for the approved request")
	}
	if a := d.do("POST", "manual/simpleenroll", d.csr(attribute(oidAsymmDecryptKeyID, octets("another attribute")))); a.status != 202 {
		t.Errorf("another request is answered %d", a.status)
	}
}

// approve approves the one request that waits.
func (s *service) approve() {
	s.t.Helper()
	waiting, err := s.engine.PendingRequests()
	if err != nil || len(waiting) != 1 {
		s.t.Fatalf("%d requests wait, %v", len(waiting), err)
	}
	if err := s.engine.Approve(s.t.Context(), waiting[0].ID, "test"); err != nil {
		s.t.Fatal(err)
	}
}

// The table of errors: every one of enroll has its own line, and nothing but those.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("%w: %w", enroll.ErrCredentials, enroll.ErrSignerRevoked), 401},
		{enroll.ErrUnauthenticated, 401}, {enroll.ErrSignerUnknown, 401}, {enroll.ErrSignerRevoked, 401}, {enroll.ErrSignerExpired, 401},
		{enroll.ErrTooManyFailures, 429}, {enroll.ErrRateLimited, 429},
		{enroll.ErrNotOffered, 404}, {enroll.ErrUnknownProfile, 404},
		{enroll.ErrRenewalIdentity, 400}, {enroll.ErrDuplicateKey, 400}, {&pki.PolicyError{Rule: "san.dns", Value: "x"}, 400}, {pki.ErrRequest, 400}, {pki.ErrRequestSignature, 400},
		{enroll.ErrRenewalEarly, 403}, {enroll.ErrHold, 403}, {enroll.ErrDenied, 403}, {enroll.ErrCompliance, 403}, {enroll.ErrMaxActive, 403},
		{enroll.ErrBusy, 503}, {enroll.ErrHeldFull, 503}, {enroll.ErrNoAuthority, 503}, {enroll.ErrProfileOff, 503}, {enroll.ErrWithheld, 503},
		{enroll.ErrClock, 503}, {enroll.ErrUnavailable, 503}, {enroll.ErrClosed, 503}, {context.Canceled, 503}, {context.DeadlineExceeded, 503},
		{fmt.Errorf("nobody thought of %s", secret), 500},
	} {
		v := explain(c.err)
		if v.status != c.status || v.reason == "" || strings.ContainsAny(v.reason+v.detail, "\r\n") {
			t.Errorf("%v: %+v; want %d", c.err, v, c.status)
		}
		if (v.retry > 0) != (v.status == 429) {
			t.Errorf("%v: come back after %v", c.err, v.retry)
		}
		if strings.Contains(v.reason+v.detail, secret) {
			t.Errorf("%v: the text of an unknown error leaves the box", c.err)
		}
	}
	queue := errors.New("queue is full")
	s := &Server{config: exchange.Config{IsBusy: func(err error) bool { return errors.Is(err, queue) }}}
	if v := s.explain(fmt.Errorf("signing the new key: %w", queue)); v != explain(enroll.ErrBusy) {
		t.Errorf("a key holder that is busy: %+v", v)
	}
	if v := explain(fmt.Errorf("%w: stolen", enroll.ErrDenied)); v.detail != ": stolen" {
		t.Errorf("denied: %+v", v)
	}
}
