package est

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

// TestCounters: every counter is counted by a request that comes to it, and by no other.
func TestCounters(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	want := map[string]map[Counter]uint64{}
	check := func(profile string, name Counter, a answer, status int) {
		t.Helper()
		if a.status != status {
			t.Fatalf("%s: status %d, want %d: %s", name, a.status, status, a.body)
		}
		if want[profile] == nil {
			want[profile] = map[Counter]uint64{}
			for _, n := range CounterNames() {
				want[profile][n] = 0
			}
		}
		if name != "" {
			want[profile][name]++
		}
		if diff := cmp.Diff(want[profile], s.server.Counters(profile)); diff != "" {
			t.Errorf("%s of %s (-want +got):\n%s", name, profile, diff)
			want[profile] = s.server.Counters(profile)
		}
	}
	first := d.post("corp/simpleenroll")
	check("corp", SuccessSimpleEnroll, first, 200)
	renewing := d.with(s.certificate(first))
	check("corp", SuccessSimpleReenroll, renewing.post("corp/simplereenroll"), 200)
	check("modern", SuccessServerKeyGen, d.post("modern/serverkeygen"), 200)

	wrong := *d
	wrong.pass = "wrong-password"
	check("corp", AuthFailedBasic, wrong.post("corp/simpleenroll"), 401)
	bare := *d
	bare.user = ""
	check("corp", "", bare.post("corp/simpleenroll"), 401) // asks what to send
	bare.cert = newAuthority(t, "CN=Bootstrap").device(t, "factory", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), x509.KeyUsageDigitalSignature)
	check("boot", AuthFailedMTLS, bare.post("boot/simpleenroll"), 401)
	check("bound", AuthFailedBinding, d.post("bound/simpleenroll"), 400)

	check("corp", CSRInvalid, d.do(http.MethodPost, "corp/simpleenroll", []byte("nonsense")), 400)
	check("corp", CSRInvalid, d.do(http.MethodPost, "corp/simpleenroll", make([]byte, maxBody+1)), 413)
	other := *d
	other.key = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	check("corp", CSRPolicyViolation, other.post("corp/simpleenroll"), 400)
	forged := d.csr()
	forged[len(forged)-1] ^= 1
	check("corp", CSRSignatureMismatch, d.do(http.MethodPost, "corp/simpleenroll", []byte(base64.StdEncoding.EncodeToString(forged))), 400)
	check("waiting", IssuerError, d.post("waiting/simpleenroll"), 503)

	// What waits for a person, reads only, or is not offered came to nothing.
	waiting := s.device("dev.approve.test")
	check("manual", "", waiting.post("manual/simpleenroll"), 202)
	check("corp", "", d.do(http.MethodGet, "corp/cacerts", nil), 200)
	check("corp", "", d.do(http.MethodGet, "corp/simpleenroll", nil), 405)
	check("corp", "", d.post("corp/serverkeygen"), 404)

	for range 20 {
		a := wrong.post("corp/simpleenroll")
		if a.status == http.StatusTooManyRequests {
			check("corp", RateLimited, a, 429)
			break
		}
		check("corp", AuthFailedBasic, a, 401)
	}
	if want["corp"][RateLimited] != 1 {
		t.Error("20 wrong passwords are not too many")
	}
	if s.server.Counters("nobody") != nil {
		t.Error("a profile that is not served has counters")
	}
}

// TestBusyIsCounted: what is turned away because of the box's load, before or behind the key holder.
func TestBusyIsCounted(t *testing.T) {
	s := newService(t, func(c *Config) { c.Slots = exchange.NewSlots(1, 0) })
	if !s.server.slots.Enter(t.Context()) {
		t.Fatal("no slot")
	}
	d := s.device("dev")
	s.refused(d.post("corp/simpleenroll"), 503, "the box is busy")
	if n := s.server.Counters("corp")[RateLimited]; n != 1 {
		t.Errorf("%d counted", n)
	}
}

// TestRefusedAs: errors that a request of a test does not come to.
func TestRefusedAs(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Counter
	}{
		{enroll.ErrRateLimited, RateLimited}, {enroll.ErrBusy, RateLimited}, {enroll.ErrHeldFull, RateLimited},
		{enroll.ErrUnavailable, IssuerError}, {enroll.ErrClock, IssuerError}, {enroll.ErrWithheld, IssuerError}, {enroll.ErrNoAuthority, IssuerError},
		{enroll.ErrDenied, CSRPolicyViolation}, {enroll.ErrHold, CSRPolicyViolation}, {enroll.ErrCompliance, CSRPolicyViolation},
		{enroll.ErrMaxActive, CSRPolicyViolation}, {enroll.ErrDuplicateKey, CSRPolicyViolation},
		{enroll.ErrRenewalEarly, CSRPolicyViolation}, {enroll.ErrRenewalIdentity, CSRPolicyViolation},
		{errors.New("something else"), InternalError},
		{enroll.ErrClosed, ""}, {context.Canceled, ""}, {enroll.ErrProfileOff, ""}, {enroll.ErrUnknownProfile, ""},
	} {
		err := fmt.Errorf("wrapped: %w", c.err)
		if got := refusedAs(err, explain(err).status, false); got != c.want {
			t.Errorf("%v is %q, want %q", c.err, got, c.want)
		}
	}
}
