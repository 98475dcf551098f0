package est

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// Counter is what a request for a certificate came to, as monitoring names it. The names are kept.
type Counter string

const (
	SuccessSimpleEnroll   Counter = "success_simpleenroll"
	SuccessSimpleReenroll Counter = "success_simplereenroll"
	SuccessServerKeyGen   Counter = "success_serverkeygen"
	AuthFailedBasic       Counter = "auth_failed_basic"           // a wrong name, password or challenge
	AuthFailedMTLS        Counter = "auth_failed_mtls"            // a client certificate that is not taken
	AuthFailedBinding     Counter = "auth_failed_channel_binding" // the request is not bound to its connection
	CSRInvalid            Counter = "csr_invalid"                 // no PKCS#10 request, or not one that can be answered
	CSRPolicyViolation    Counter = "csr_policy_violation"        // more, or something else, than the profile allows
	CSRSignatureMismatch  Counter = "csr_signature_mismatch"      // not signed with its own key
	RateLimited           Counter = "rate_limited"                // too much within a time, or at a time: try again later
	IssuerError           Counter = "issuer_error"                // the box could not issue: authority, clock, disk, device manager
	InternalError         Counter = "internal_error"              // the box's log has the reason
)

// CounterNames lists every Counter.
func CounterNames() []Counter {
	return []Counter{
		SuccessSimpleEnroll, SuccessSimpleReenroll, SuccessServerKeyGen, AuthFailedBasic, AuthFailedMTLS, AuthFailedBinding,
		CSRInvalid, CSRPolicyViolation, CSRSignatureMismatch, RateLimited, IssuerError, InternalError,
	}
}

// counters are a profile's, since the process started. The map is never written to after newCounters.
type counters map[Counter]*atomic.Uint64

func newCounters() counters {
	c := counters{}
	for _, name := range CounterNames() {
		c[name] = &atomic.Uint64{}
	}
	return c
}

// Counters are a profile's since the server was made, every one of CounterNames among them; nil for a profile it does not serve, and
// of no server.
func (s *Server) Counters(profile string) map[Counter]uint64 {
	if s == nil {
		return nil
	}
	p := s.profiles[profile]
	if p == nil {
		return nil
	}
	now := map[Counter]uint64{}
	for name, n := range p.counters {
		now[name] = n.Load()
	}
	return now
}

// errBinding marks the refusals of checkBinding.
var errBinding = errors.New("channel binding")

// count counts an answered request where it asked for a certificate and came to something: one that is told to wait for a person, that
// gets again what it has, or that only asks what to send, came to nothing yet.
func (s *Server) count(x *call) {
	if x.profile == nil {
		return
	}
	if n := x.profile.counters[s.outcome(x)]; n != nil {
		n.Add(1)
	}
}

// outcome is the counter of an answered request, "" for none.
func (s *Server) outcome(x *call) Counter {
	successes := map[string]Counter{opEnroll: SuccessSimpleEnroll, opReenroll: SuccessSimpleReenroll, opServerKeyGen: SuccessServerKeyGen}
	success, isEnrollment := successes[x.operation]
	switch {
	case !isEnrollment, x.Outcome == "pending", x.Outcome == "replayed":
		return ""
	case x.Outcome == "issued":
		return success
	case x.Outcome == "busy" && x.Err == nil, s.config.IsBusy(x.Err):
		return RateLimited
	}
	return refusedAs(x.Err, x.Status, x.R.Header.Get("Authorization") != "")
}

// refusedAs is the counter of a refusal with this error, nil where its status says all. It goes by the same errors as explain.
func refusedAs(err error, status int, isBasic bool) Counter {
	switch {
	case errors.Is(err, enroll.ErrUnauthenticated), errors.Is(err, enroll.ErrClosed), errors.Is(err, context.Canceled):
		return ""
	case errors.Is(err, errBinding):
		return AuthFailedBinding
	case errors.Is(err, pki.ErrRequestSignature):
		return CSRSignatureMismatch
	case status == http.StatusUnauthorized && isBasic:
		return AuthFailedBasic
	case status == http.StatusUnauthorized:
		return AuthFailedMTLS
	case status == http.StatusTooManyRequests, errors.Is(err, enroll.ErrBusy), errors.Is(err, enroll.ErrHeldFull):
		return RateLimited
	case errors.Is(err, enroll.ErrRenewalEarly), errors.Is(err, enroll.ErrRenewalIdentity), errors.Is(err, enroll.ErrHold), errors.Is(err, enroll.ErrDenied),
		errors.Is(err, enroll.ErrCompliance), errors.Is(err, enroll.ErrMaxActive), errors.Is(err, enroll.ErrDuplicateKey), errors.As(err, new(*pki.PolicyError)):
		return CSRPolicyViolation
	case errors.Is(err, enroll.ErrNoAuthority), errors.Is(err, enroll.ErrWithheld), errors.Is(err, enroll.ErrClock), errors.Is(err, enroll.ErrUnavailable):
		return IssuerError
	case status == http.StatusBadRequest, status == http.StatusRequestEntityTooLarge, status == http.StatusUnsupportedMediaType:
		return CSRInvalid
	case status == http.StatusInternalServerError:
		return InternalError
	}
	return "" // a path, method or profile that is not served: nothing was asked of an issuer
}
