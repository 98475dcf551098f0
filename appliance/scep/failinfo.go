package scep

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// failInfo is the reason code of a CertRep FAILURE: RFC 8894 §3.2.1.4.1. badTime (3) answers nothing this package accepts: no
// request has to carry a signing time.
type failInfo string

const (
	badAlg          failInfo = "0" // unrecognised or unsupported algorithm
	badMessageCheck failInfo = "1" // the integrity check of the message failed
	badRequest      failInfo = "2" // transaction not permitted or supported
	badCertID       failInfo = "4" // no certificate, or no request, that fits
)

// refusal is a CertRep FAILURE decided in this package: what is wrong, in words that name the mend.
type refusal struct {
	fail failInfo
	text string
}

func refuse(fail failInfo, text string) error { return &refusal{fail, text} }

func (r *refusal) Error() string { return r.text }

// verdict is how an error leaves the box: as a CertRep FAILURE (status 200), or as an HTTP error with a line of text.
type verdict struct {
	status int      // HTTP status
	fail   failInfo // set with status 200 only
	reason string   // fixed text: for failInfoText or the body, and to count refusals by
	detail string   // what else the client is told, "" for nothing
}

func (v verdict) text() string { return v.reason + v.detail }

// unopened answers everything between the envelope and a CSR that verifies, in one and the same way. Were a bad
// padding told from a bad CSR, whoever recorded another device's request could send its envelope with changed blocks
// under a signature of their own and read the challenge out of the answers, byte by byte.
const unopened = "the envelope does not open or holds no valid PKCS#10 request: encrypt to the RA certificate from GetCACert, and sign the request with its own key"

// profileOff is no HTTP 503 although switching on would mend it: the device is not wanted now, and an installer who looks at it should
// read why.
const profileOff = "this profile is switched off: ask the administrator of the box"

const internalError = "internal error: the box's log has the reason"

// explain is the one table from errors to what the client is told. What it does not list is an internal error outside
// and the full chain in the log. Anything a retry would mend is an HTTP error and never a FAILURE, which clients take
// as final.
func explain(err error) verdict {
	failure := func(fail failInfo, reason, detail string) verdict {
		return verdict{http.StatusOK, fail, reason, detail}
	}
	retry := func(reason string) verdict { return verdict{http.StatusServiceUnavailable, "", reason, ""} }
	var own *refusal
	var policy *pki.PolicyError
	switch {
	case errors.As(err, &own):
		return failure(own.fail, own.text, "")
	case errors.Is(err, cms.ErrDecrypt), errors.Is(err, pki.ErrRequest), errors.Is(err, pki.ErrRequestSignature):
		return failure(badMessageCheck, unopened, "")
	case errors.Is(err, cms.ErrNoRecipient):
		return failure(badMessageCheck, "the message is not encrypted to the RA certificate of this profile: fetch it again with GetCACert", "")
	case errors.Is(err, cms.ErrAlgorithm): // its text names the algorithm, which the sender chose in clear
		return failure(badAlg, "set the client to AES-128, AES-192 or AES-256 in CBC mode, and to RSA key transport", ": "+err.Error())
	case errors.Is(err, enroll.ErrChallenge):
		return failure(badRequest, "the challenge password is missing or wrong: use the one of this profile", "")
	case errors.Is(err, enroll.ErrSignerKey):
		return failure(badRequest, "the message is not signed with the key it asks a certificate for: sign it with a self-signed certificate of that key", "")
	case errors.Is(err, enroll.ErrReplay):
		return failure(badRequest, "the message was answered before: make a new request", "")
	case errors.Is(err, enroll.ErrSignerUnknown):
		return failure(badMessageCheck, "the certificate that signed the request is not one of this authority: enroll anew with a challenge password", "")
	case errors.Is(err, enroll.ErrSignerRevoked):
		return failure(badMessageCheck, "the certificate that signed the request is revoked: enroll anew with a challenge password", "")
	case errors.Is(err, enroll.ErrSignerExpired):
		return failure(badMessageCheck, "the certificate that signed the request has expired: enroll anew with a challenge password", "")
	case errors.Is(err, enroll.ErrRenewalEarly):
		return failure(badRequest, "the certificate is not due for renewal yet: try again nearer to its end", "")
	case errors.Is(err, enroll.ErrRenewalIdentity):
		return failure(badRequest, "a renewal keeps subject and names of the certificate: enroll anew for others", "")
	case errors.Is(err, enroll.ErrHold):
		return failure(badAlg, "the request has to wait for approval, and a poll could not be answered to a key that decrypts nothing: use an RSA key", "")
	case errors.Is(err, enroll.ErrDenied):
		_, why, _ := strings.Cut(err.Error(), enroll.ErrDenied.Error()) // ": " and the operator's words
		return failure(badRequest, "an operator denied the request", why)
	case errors.Is(err, enroll.ErrNoRequest):
		return failure(badCertID, "this key has no request of this transaction: send PKCSReq (19)", "")
	case errors.Is(err, enroll.ErrRateLimited):
		return failure(badRequest, "too many certificates within an hour: try again later", "")
	case errors.Is(err, enroll.ErrCompliance):
		return failure(badRequest, "the device was not found compliant", "")
	case errors.Is(err, enroll.ErrMaxActive):
		return failure(badRequest, "this device has as many certificates as the profile allows: have one revoked that is not used any more", "")
	case errors.Is(err, enroll.ErrDuplicateKey):
		return failure(badRequest, "the key has a certificate under another name: make a new key", "")
	case errors.Is(err, enroll.ErrProfileOff):
		return failure(badRequest, profileOff, "")
	case errors.Is(err, enroll.ErrRaw):
		return failure(badRequest, "this profile takes no request without an envelope: send a SCEP PKCSReq", "")
	case errors.As(err, &policy):
		fail := badRequest
		if rule, _, _ := strings.Cut(policy.Rule, "."); rule == "keys" {
			fail = badAlg
		}
		return failure(fail, "not allowed", ": "+policy.Error())
	case errors.Is(err, enroll.ErrNoAuthority):
		return retry("the authority of this profile has no certificate yet: try again later")
	case errors.Is(err, enroll.ErrWithheld):
		return retry("the certificate is held back until the device manager knows of it: send the same request again")
	case errors.Is(err, enroll.ErrBusy), errors.Is(err, cms.ErrKeyBusy):
		return retry("the box is busy: try again later")
	case errors.Is(err, enroll.ErrHeldFull):
		return retry("too many requests wait for approval: try again when the operator has decided on some")
	case errors.Is(err, enroll.ErrClock):
		return retry("the box does not trust its clock and issues nothing until it does: try again later")
	case errors.Is(err, enroll.ErrUnavailable):
		return retry("the box could not finish the request: try again later")
	case errors.Is(err, enroll.ErrClosed):
		return retry("the box is restarting: try again later")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return retry("the request was given up before it was answered: send it again")
	}
	return verdict{http.StatusInternalServerError, "", internalError, ""}
}
