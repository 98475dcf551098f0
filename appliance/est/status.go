package est

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// refusal is a refusal decided in this package: what is wrong, in words that name the mend.
type refusal struct {
	status int
	text   string // one of a fixed set
}

func refuse(status int, text string) error { return &refusal{status, text} }

func (r *refusal) Error() string { return r.text }

// verdict is how an error leaves the box.
type verdict struct {
	status int
	reason string        // fixed text: for the body, and to count refusals by
	detail string        // what else the client is told, "" for nothing
	retry  time.Duration // with status 429: when to come back
}

const internalError = "internal error: the box's log has the reason"

// Devices told to slow down come back after this: failures of a source are forgotten after ten minutes, and a share of an hour grows
// all the time.
const slowDown = 10 * time.Minute

// explain is the one table from errors to HTTP. What it does not list is an internal error outside and the full chain in the log.
//
// 400 is what another request would mend, 401 another proof, 403 a person; anything the same request sent later would mend is 429 or
// 503. A 401 leaves without its text, which is for the log: see unauthorized.
func explain(err error) verdict {
	answer := func(status int, reason string) verdict { return verdict{status: status, reason: reason} }
	retry := func(reason string) verdict { return answer(http.StatusServiceUnavailable, reason) }
	slow := func(reason string) verdict {
		return verdict{status: http.StatusTooManyRequests, reason: reason, retry: slowDown}
	}
	var own *refusal
	var policy *pki.PolicyError
	switch {
	case errors.As(err, &own):
		return answer(own.status, own.text)
	case errors.Is(err, errBody), errors.Is(err, pki.ErrRequest):
		return answer(http.StatusBadRequest, errBody.Error())
	case errors.Is(err, pki.ErrRequestSignature):
		return answer(http.StatusBadRequest, "the request is not signed with its own key, or not with SHA-256 or better: make it anew")

	case errors.Is(err, enroll.ErrUnauthenticated):
		return answer(http.StatusUnauthorized, "neither a password nor a client certificate that this profile takes")
	case errors.Is(err, enroll.ErrCredentials): // before what it wraps: a password and a certificate that is not taken are told alike
		return answer(http.StatusUnauthorized, "password or client certificate not accepted")
	case errors.Is(err, enroll.ErrSignerUnknown), errors.Is(err, enroll.ErrSignerRevoked), errors.Is(err, enroll.ErrSignerExpired):
		return answer(http.StatusUnauthorized, "client certificate is not one that can be renewed here, revoked or expired")
	case errors.Is(err, enroll.ErrTooManyFailures):
		return slow("too many wrong passwords from this address: try again later")
	case errors.Is(err, enroll.ErrRateLimited):
		return slow("too many certificates within an hour: try again later")

	case errors.Is(err, enroll.ErrNotOffered), errors.Is(err, enroll.ErrUnknownProfile):
		return answer(http.StatusNotFound, "this profile does not offer this operation")
	case errors.Is(err, enroll.ErrRenewalEarly):
		return answer(http.StatusForbidden, "the certificate is not due for renewal yet: try again nearer to its end")
	case errors.Is(err, enroll.ErrRenewalIdentity):
		return answer(http.StatusBadRequest, "a renewal keeps subject and names of the certificate: enroll anew for others")
	case errors.Is(err, enroll.ErrHold):
		return answer(http.StatusForbidden, "the request has to wait for approval, and a key made here waits for nobody: make one on the device and use simpleenroll")
	case errors.Is(err, enroll.ErrDenied):
		_, why, _ := strings.Cut(err.Error(), enroll.ErrDenied.Error()) // ": " and the operator's words
		return verdict{status: http.StatusForbidden, reason: "an operator denied the request", detail: why}
	case errors.Is(err, enroll.ErrCompliance):
		return answer(http.StatusForbidden, "the device was not found compliant")
	case errors.Is(err, enroll.ErrMaxActive):
		return answer(http.StatusForbidden, "this identity has as many certificates as it may: have one revoked that is not used any more")
	case errors.Is(err, enroll.ErrDuplicateKey):
		return answer(http.StatusBadRequest, "the key belongs to another identity: make a new one")
	case errors.As(err, &policy):
		return verdict{status: http.StatusBadRequest, reason: "not allowed", detail: ": " + policy.Error()}

	case errors.Is(err, enroll.ErrBusy):
		return retry("the box is busy: try again later")
	case errors.Is(err, enroll.ErrHeldFull):
		return retry("too many requests wait for approval: try again when the operator has decided on some")
	case errors.Is(err, enroll.ErrNoAuthority):
		return retry("the authority of this profile is not active yet: try again later")
	case errors.Is(err, enroll.ErrProfileOff):
		return retry("this profile is switched off: try again later")
	case errors.Is(err, enroll.ErrWithheld):
		return retry("the certificate is held back until the device manager knows of it: try again later")
	case errors.Is(err, enroll.ErrClock):
		return retry("the box does not trust its clock and issues nothing until it does: try again later")
	case errors.Is(err, enroll.ErrUnavailable):
		return retry("the box could not finish the request: try again later")
	case errors.Is(err, enroll.ErrClosed):
		return retry("the box is restarting: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return retry("the request was given up before it was answered: send it again")
	}
	return answer(http.StatusInternalServerError, internalError)
}

// explain is explain with the key holder's own word for busy.
func (s *Server) explain(err error) verdict {
	if s.config.IsBusy(err) {
		err = enroll.ErrBusy
	}
	return explain(err)
}

// fail answers a request that gets nothing.
func (s *Server) fail(x *call, err error) {
	v := s.explain(err)
	x.Err = err
	switch v.status {
	case http.StatusUnauthorized:
		x.unauthorized(v.reason)
	case http.StatusTooManyRequests:
		x.RetryAfter(v.retry)
		x.Refuse(v.status, v.reason)
	case http.StatusServiceUnavailable:
		x.RetryLater(v.reason)
		if errors.Is(err, enroll.ErrUnavailable) {
			x.Outcome = "error"
		}
	case http.StatusInternalServerError:
		x.Refuse(v.status, v.reason+" (request "+x.ID+")")
	default:
		x.Refuse(v.status, v.reason+v.detail)
	}
}

// failCounted is fail for a refusal of this package: of a sender that is not authenticated, reported to the audit log, where only the
// first of a source and reason within a minute costs a record. Refusals of the engine are recorded there.
func (s *Server) failCounted(x *call, err error) {
	if v := s.explain(err); v.status < http.StatusInternalServerError {
		s.engine.Refused(enroll.Refusal{
			Profile:  x.profile.Name,
			Protocol: enroll.ProtocolEST,
			Source:   x.Source,
			Identity: x.identity,
			Reason:   v.reason,
		})
	}
	s.fail(x, err)
}
