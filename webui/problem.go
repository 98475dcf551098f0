package webui

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Problem is the body of every refusal of the API: RFC 9457 problem details with the action that
// mends it.
type Problem struct {
	Type   string `json:"type" doc:"what kind of refusal this is; stable, for programs"`
	Title  string `json:"title" doc:"the kind of refusal in words"`
	Status int    `json:"status" doc:"the HTTP status, repeated"`
	Detail string `json:"detail,omitempty" doc:"what is wrong with this very request"`
	Mend   string `json:"mend" doc:"what to do about it"`
	ID     string `json:"request_id" doc:"names this request in the box's log"`
}

func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

// Refusals of the console and the admin API. The table in problems gives each its status and words.
var (
	errNoCredential  = errors.New("no credential")
	errBadCredential = errors.New("unknown or expired credential")
	errRole          = errors.New("role does not allow this")
	errWrongCode     = errors.New("wrong claim code")
	errWrongPassword = errors.New("wrong user or password")
	errSwitchedOff   = errors.New("user is switched off")
	errChanged       = errors.New("user changed meanwhile")
	errStale         = errors.New("signed in too long ago for this")
	errScope         = errors.New("token is for minting challenges alone")
	errPasskey       = errors.New("passkey not accepted")
	errTokenPasskey  = errors.New("a token adds no passkey")
	errNoSession     = errors.New("no such session")
	errCrossOrigin   = errors.New("request from another site")
	errNotFound      = errors.New("no such page")
	errMethod        = errors.New("method not allowed")
	errMediaType     = errors.New("media type not understood")
	errMediaTypePEM  = errors.New("media type is not PEM")
	errTooLarge      = errors.New("body too large")
	errUnreadable    = errors.New("body not understood")
	errExports       = errors.New("too many exports at once")
	errStreams       = errors.New("too many event streams at once")
	errBundles       = errors.New("too many support bundles at once")
	errBusy          = errors.New("too many sign-ins at once")
)

// inputError is a value a person can correct; what and mend are shown to them.
type inputError struct {
	field string // name of the form field or JSON member
	what  string
	mend  string
}

func (e *inputError) Error() string { return e.what }

// limitedError refuses a guess because too many before it were wrong.
type limitedError struct {
	what  string
	retry time.Duration
}

func (e *limitedError) Error() string { return e.what }

// problems is the one table from refusals to wire form. Anything it does not list is an internal
// error outside, and the full chain in the log.
var problems = []struct {
	err    error
	status int
	kind   string
	title  string
	mend   string
}{
	{errNoCredential, http.StatusUnauthorized, "unauthenticated", "this needs a token",
		"send \"Authorization: Bearer TOKEN\" with the token that signet claim printed, or sign in"},
	{errBadCredential, http.StatusUnauthorized, "bad-credential", "the token is unknown or has expired",
		"use a current token, or sign in again"},
	{errRole, http.StatusForbidden, "role", "your role does not allow this",
		"ask an administrator of this box"},
	{errWrongCode, http.StatusForbidden, "wrong-claim-code", "the claim code is wrong",
		"read the code off the box's own screen again; it changes with every boot"},
	{errWrongPassword, http.StatusForbidden, "wrong-password", "user name or password is wrong",
		"try again; an administrator can set you a new password"},
	{errSwitchedOff, http.StatusForbidden, "switched-off", "this user is switched off",
		"ask an administrator of this box to switch it on again"},
	{errChanged, http.StatusConflict, "account-changed", "the account was changed just now",
		"sign in again, with the password of now"},
	{errStale, http.StatusForbidden, "sign-in-again", "you signed in too long ago to do this",
		"sign in again, then repeat it: it makes or replaces something that outlives your session"},
	{errScope, http.StatusForbidden, "scope", "the token is for minting challenges alone",
		"use a token without profiles, or mint for a profile that the token names"},
	{errTokenPasskey, http.StatusForbidden, "token-passkey", "a token adds no passkey: it would open the whole account, for longer than the token",
		"sign in to the console and add it there"},
	{errPasskey, http.StatusForbidden, "passkey", "the passkey was not accepted",
		"try again, or sign in with your password; a passkey that this box does not know can be removed from your device"},
	{store.ErrSuspect, http.StatusForbidden, "passkey-suspect", "there may be a copy of this passkey, so it signs nobody in any more",
		"sign in with your password and remove the passkey; if you do not know where the copy is, tell an administrator"},
	{store.ErrPasskeyExists, http.StatusConflict, "passkey-known", "the box knows this passkey already",
		"nothing is left to do"},
	{store.ErrNoUser, http.StatusNotFound, "no-user", "the box has no such user",
		"list its users: GET /api/v1/users, or Users and tokens in the console"},
	{store.ErrNoToken, http.StatusNotFound, "no-token", "there is no such token",
		"it may have been revoked before; reload the list"},
	{store.ErrNoPasskey, http.StatusNotFound, "no-passkey", "there is no such passkey",
		"it may have been removed before; reload the list"},
	{errNoSession, http.StatusNotFound, "no-session", "there is no such session",
		"it may have ended by itself; reload the list"},
	{store.ErrUserExists, http.StatusConflict, "user-exists", "there is a user of that name already",
		"choose another name"},
	{store.ErrLastAdministrator, http.StatusConflict, "last-administrator", "nobody else could administer the box then",
		"make another user an administrator first"},
	{store.ErrTooMany, http.StatusConflict, "too-many", "the box keeps no more of these",
		"remove one that nobody needs first"},
	{store.ErrClaimed, http.StatusConflict, "already-claimed", "this box has been claimed already",
		"sign in as its administrator; if nobody you know claimed it, take it off the network"},
	{errCrossOrigin, http.StatusForbidden, "cross-origin", "another web site sent this request",
		"open the console itself and try there"},
	{errNotFound, http.StatusNotFound, "not-found", "there is nothing at this address",
		"the console is at /, the API's routes are listed in /openapi.json"},
	{errMethod, http.StatusMethodNotAllowed, "method", "this address does not take that method",
		"use a method of the Allow header"},
	{errMediaType, http.StatusUnsupportedMediaType, "media-type", "the body's Content-Type is not understood",
		"send Content-Type: application/json"},
	{errMediaTypePEM, http.StatusUnsupportedMediaType, "media-type", "the body's Content-Type is not understood",
		"send PEM certificates with Content-Type: application/x-pem-file"},
	{errTooLarge, http.StatusRequestEntityTooLarge, "too-large", "the body is too large",
		"send less than 64 KiB"},
	{errUnreadable, http.StatusBadRequest, "unreadable", "the body is not understood",
		"send the members that /openapi.json names for this route, and no others"},
	{errBusy, http.StatusServiceUnavailable, "busy", "too many sign-ins at once",
		"try again in a few seconds"},
	{errExports, http.StatusServiceUnavailable, "busy-exports", "the audit log is being exported already",
		"wait for the exports that are under way"},
	{errStreams, http.StatusServiceUnavailable, "busy-events", "too many windows listen for events already",
		"close windows of the console that nobody looks at"},
	{errBundles, http.StatusServiceUnavailable, "busy-bundle", "a support bundle is being made already",
		"try again in a few seconds"},
	{store.ErrOutsideTree, http.StatusNotFound, "no-record", "the audit log has no such record, or was never that long",
		"ask for an index below the size, and for sizes up to that of GET /api/v1/audit/checkpoint"},
	{ErrNoProfile, http.StatusNotFound, "no-profile", "the site has no such profile",
		"write the name of a profile as the status page shows it"},
	{ErrNoAuthority, http.StatusNotFound, "no-authority", "the site has no such authority",
		"write the name of an authority as the status page shows it"},
	{ErrKeysBusy, http.StatusServiceUnavailable, "busy-keys", "the box's key holder is busy",
		"try again in a few seconds"},
	{ErrNoOneTime, http.StatusConflict, "no-one-time", "the profile takes no one-time challenges",
		"add challenges: {one_time: {ttl: 24h}} to the profile and bake the site again"},
	{ErrNoSigned, http.StatusConflict, "no-signed", "the profile takes no signed challenges",
		"add challenges: {signed: …} to the profile and bake the site again"},
	{ErrNoESTTrust, http.StatusConflict, "no-est-trust", "the profile lets nobody in over EST by certificates of a bundle",
		"add est: {auth: {certificate: [{bundle: trust/x.pem}]}} to the profile and bake the site again"},
	{enroll.ErrQuery, http.StatusUnprocessableEntity, "query", "there is no such list of certificates",
		"state is active, due, revoked, hold, expired or all, and after is the next of a page of the same search"},
	{enroll.ErrNoRequest, http.StatusNotFound, "no-request", "no such request waits",
		"list those that do: signet pending"},
	{enroll.ErrDenied, http.StatusConflict, "decided", "the request was denied before",
		"have the device enroll anew"},
	{enroll.ErrDecided, http.StatusConflict, "decided", "the request was decided on before",
		"look for the decision in the audit log"},
	{enroll.ErrSignerRevoked, http.StatusConflict, "renews-revoked", "the certificate that the request renews is revoked",
		"deny the request; the device has to enroll anew"},
	{enroll.ErrCompliance, http.StatusConflict, "not-compliant", "the device was not found compliant, or its profile is off",
		"look for the reason in the audit log; the request still waits"},
	{enroll.ErrProfileOff, http.StatusConflict, "profile-off", "the profile is switched off",
		"have an administrator switch it on, or deny the request"},
	{enroll.ErrNoAuthority, http.StatusConflict, "no-certificate-yet", "the profile's authority has no certificate yet",
		"install its certificate chain first"},
	{enroll.ErrMaxActive, http.StatusConflict, "max-active", "the device has as many active certificates as the profile allows",
		"revoke one that is not used any more, or deny the request"},
	{enroll.ErrDuplicateKey, http.StatusConflict, "duplicate-key", "the key of the request belongs to another device",
		"deny the request; the device has to make a new key"},
	{enroll.ErrRenewalIdentity, http.StatusConflict, "renewal-identity", "the request asks for other names than the certificate has that it renews",
		"deny the request; for other names the device has to enroll anew"},
	{enroll.ErrChallenge, http.StatusConflict, "challenge-gone", "the challenge of the request is over, or another request used it",
		"deny the request; the device needs a new challenge"},
	{enroll.ErrReplay, http.StatusConflict, "answered", "the very message of the request was answered before",
		"deny the request; the device has to make a new one"},
	{enroll.ErrUnknownProfile, http.StatusConflict, "profile-gone", "the site has no such profile any more",
		"deny the request"},
	{enroll.ErrReason, http.StatusUnprocessableEntity, "reason", "the reason is not one of RFC 5280",
		"write keyCompromise, affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn or unspecified"},
	{enroll.ErrRevoked, http.StatusConflict, "revoked", "the certificate is revoked already",
		"nothing is left to do; the audit log says who did it"},
	{enroll.ErrNotOnHold, http.StatusConflict, "not-on-hold", "the certificate is not on hold",
		"only certificateHold can be taken back"},
	{enroll.ErrNoCertificate, http.StatusNotFound, "no-certificate", "the box issued no such certificate",
		"copy the serial from the audit log or the certificate itself"},
	{enroll.ErrClock, http.StatusServiceUnavailable, "clock", "the box does not trust its clock and issues nothing",
		"set the machine's clock and start the box again"},
	{enroll.ErrBusy, http.StatusServiceUnavailable, "busy-signing", "the box is busy signing",
		"try again in a few seconds"},
	{store.ErrFull, http.StatusInsufficientStorage, "disk-full", "the box's state disk is nearly full",
		"free or add space; until then the box issues nothing and changes nothing"},
	{store.ErrFailed, http.StatusServiceUnavailable, "store-failed", "the box's state disk failed a write",
		"start the box again; if it happens again replace the disk"},
	{store.ErrDamaged, http.StatusInternalServerError, "store-damaged", "the box's stored state is damaged",
		"restore the state from a backup"},
	{enroll.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "the box could not finish this",
		"try again; if it happens again look into the box's log"},
	{enroll.ErrClosed, http.StatusServiceUnavailable, "stopping", "the box is stopping",
		"try again when it is up"},
}

// problemOf gives the wire form of err, and whether the table knew it.
func problemOf(err error) (Problem, bool) {
	var in *inputError
	if errors.As(err, &in) {
		return Problem{Type: problemType("input"), Title: "a value is not acceptable", Status: http.StatusUnprocessableEntity,
			Detail: in.what, Mend: in.mend}, true
	}
	var lim *limitedError
	if errors.As(err, &lim) {
		return Problem{Type: problemType("too-many-guesses"), Title: "too many wrong guesses", Status: http.StatusTooManyRequests,
			Detail: lim.what, Mend: "wait " + strconv.Itoa(seconds(lim.retry)) + " seconds and try again"}, true
	}
	var order *OrderError
	if errors.As(err, &order) {
		return Problem{Type: problemType("input"), Title: "a value is not acceptable", Status: http.StatusUnprocessableEntity,
			Detail: order.Error(), Mend: "correct it and send it again"}, true
	}
	var conflict *ConflictError
	if errors.As(err, &conflict) {
		return Problem{Type: problemType("conflict"), Title: "this cannot be done as things are", Status: http.StatusConflict,
			Detail: conflict.What, Mend: conflict.Mend}, true
	}
	var policy *pki.PolicyError
	if errors.As(err, &policy) {
		return Problem{Type: problemType("policy"), Title: "the profile does not allow what the request asks for", Status: http.StatusConflict,
			Detail: policy.Error(), Mend: "deny the request and have the device ask for what the profile allows"}, true
	}
	var trust *TrustError
	if errors.As(err, &trust) {
		return Problem{Type: problemType("trust"), Title: "the certificates cannot be used; those before stay in use", Status: http.StatusInternalServerError,
			Detail: trust.Error(), Mend: "mend the file and reload again"}, true
	}
	for _, p := range problems {
		if !errors.Is(err, p.err) {
			continue
		}
		out := Problem{Type: problemType(p.kind), Title: p.title, Status: p.status, Mend: p.mend}
		if errors.Is(err, errUnreadable) {
			out.Detail = err.Error()
		}
		return out, true
	}
	return Problem{Type: problemType("internal"), Title: "the box could not do this", Status: http.StatusInternalServerError,
		Mend: "look for the request id in the box's log; try again later"}, false
}

func problemType(kind string) string { return "urn:signet:problem:" + kind }

// seconds rounds up, because Retry-After is an integer (RFC 9110 §10.2.3).
func seconds(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }

// refusalHeaders sets what goes with a refusal beside its body.
func refusalHeaders(w http.ResponseWriter, err error, p Problem) {
	var lim *limitedError
	switch {
	case errors.As(err, &lim):
		w.Header().Set("Retry-After", strconv.Itoa(seconds(lim.retry)))
	case p.Status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "2")
	case errors.Is(err, errNoCredential):
		w.Header().Set("WWW-Authenticate", `Bearer realm="signet"`)
	case p.Status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="signet", error="invalid_token"`) // RFC 6750 §3.1
	}
}

// writeJSON sends v in one write with its length.
func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil { // only values of this package come here
		panic(err)
	}
	write(w, status, mediaType, append(body, '\n'))
}

func write(w http.ResponseWriter, status int, mediaType string, body []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // a client that went away is no concern of ours
}
