package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"time"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
)

// Protocols that bring requests.
const (
	ProtocolSCEP = "scep" // RFC 8894
	ProtocolEST  = "est"  // RFC 7030
)

// Operations of EST that ask for a certificate (RFC 7030 §4.2, §4.4).
const (
	OpEnroll       = "simpleenroll"
	OpReenroll     = "simplereenroll"
	OpServerKeyGen = "serverkeygen"
)

// Errors of Enroll and Poll, besides [*pki.PolicyError] and the context's. Every one but ErrBusy,
// ErrUnavailable, ErrRateLimited, ErrTooManyFailures, ErrWithheld, ErrNoAuthority and ErrProfileOff is
// final for the same message.
var (
	ErrUnknownProfile = errors.New("there is no such enrollment profile")
	// ErrProfileOff: an administrator switched the profile off.
	ErrProfileOff = errors.New("profile is switched off, have an administrator switch it on")
	// ErrNoAuthority: the profile's authority has no certificate yet.
	ErrNoAuthority = errors.New("authority is not active yet, install its certificate chain")

	// Of EST.
	ErrNotOffered      = errors.New("profile does not offer this operation")
	ErrUnauthenticated = errors.New("request offers no proof that the profile takes, send a password or a client certificate")
	// ErrCredentials wraps why a client certificate is not taken, where it was one.
	ErrCredentials     = errors.New("password or client certificate is not good for this profile")
	ErrTooManyFailures = errors.New("too many wrong passwords from this address, try again in ten minutes")

	ErrSignerKey = errors.New("request is not signed by the key it wants certified, sign it with the key of the CSR")
	ErrChallenge = errors.New("challenge password is wrong or missing, use the one of this profile")
	ErrReplay    = errors.New("message was answered before, make a new request")
	ErrRaw       = errors.New("profile takes no bare certification request, send a SCEP PKCSReq")

	// Of a renewal: a request signed by a certificate this box issued, or a RenewalReq.
	ErrSignerUnknown   = errors.New("signer certificate is not one this authority issued, enroll anew with a challenge password")
	ErrSignerRevoked   = errors.New("signer certificate is revoked, enroll anew with a challenge password")
	ErrSignerExpired   = errors.New("signer certificate has expired, enroll anew with a challenge password")
	ErrRenewalEarly    = errors.New("certificate is not due for renewal yet, try again nearer to its end")
	ErrRenewalIdentity = errors.New("renewal asks for another subject or other names than the certificate has, enroll anew for those")

	// Of a request that a person has to decide on.
	ErrDenied    = errors.New("request was denied")
	ErrNoRequest = errors.New("there is no such request of this key")
	ErrHold      = errors.New("request has to wait for approval, which this kind of request cannot: use an RSA key with SCEP, or simpleenroll with EST")
	ErrHeldFull  = errors.New("too many requests of this profile or this address wait for approval, have the operator decide on some")

	// ErrRateLimited: the source or the profile had its share of certificates for now.
	ErrRateLimited = errors.New("too many certificates within an hour, try again later")
	// ErrMaxActive: the identity has as many certificates as the profile allows; the text names them.
	ErrMaxActive = errors.New("too many active certificates of this identity, revoke one that is not used any more")
	// ErrDuplicateKey: the key has a certificate under another identity.
	ErrDuplicateKey = errors.New("key belongs to another identity, make a new key")
	// ErrWithheld: the certificate is there, but the device manager could not be told; the same request
	// tries that again.
	ErrWithheld = errors.New("certificate is held back until the device manager knows of it, try again later")
	// ErrCompliance: the profile's compliance check spoke against the device, or gave no answer.
	ErrCompliance = errors.New("device was not found compliant")

	// ErrClock: the box does not trust its clock. See Condition for the mend.
	ErrClock = errors.New("the box does not trust its clock and issues nothing")
	// ErrBusy: the key holder has too much to do; nothing was signed. Trying again helps.
	ErrBusy = errors.New("the box is busy, try again later")
	// ErrUnavailable: the signer or the store failed. No certificate was or will be handed out for
	// this attempt; the same request may be sent again.
	ErrUnavailable = errors.New("the box could not finish the request, try again later")
	// ErrClosed: the engine is shutting down.
	ErrClosed = errors.New("enrollment is shutting down")

	// ErrNoCertificate: this box issued no such certificate.
	ErrNoCertificate = errors.New("there is no such certificate")
)

// Proof is what a request offers to show who sent it. The caller verified the signature.
type Proof struct {
	Challenge         string // challengePassword; a secret
	SignerSPKI        []byte // SubjectPublicKeyInfo, DER, of the key that signed the message
	SignerCertificate []byte // DER, as sent
	SelfSigned        bool   // the signer's certificate is the throw-away one of a first request
}

// Request is one request for a certificate, whatever protocol brought it. Whether it renews a
// certificate is decided by its signer.
type Request struct {
	Profile       string
	Protocol      string // ProtocolSCEP or ProtocolEST
	Operation     string // of EST: OpEnroll, OpReenroll or OpServerKeyGen
	TransactionID string // as the client sent it
	CSR           *pki.Request
	CSRSum        [32]byte // SHA-256 of the CSR, for Profile.Compliance; not of the caller
	Proof         Proof    // of SCEP
	Source        netip.Addr
	SenderNonce   []byte // RFC 8894 §3.2.1.5, as sent

	// Renewal says that the message calls itself a renewal (RenewalReq, RFC 8894 §3.3.1.2). It is then
	// refused unless it is one; without it a renewal is recognised all the same.
	Renewal bool

	// Raw says that the message was a bare certification request without transaction and nonce.
	Raw bool

	// AnswerNow says that the answer can only be given to this very message, because a poll for it could
	// not be answered (a key that decrypts nothing, RFC 8894 §3.1). A request that would wait for a person
	// is then refused with ErrHold before anything of it is recorded as held.
	AnswerNow bool

	// MTLS is the verified client certificate of a SCEP connection, nil if there was none. Where this
	// box issued it, it has to be unrevoked.
	MTLS *x509.Certificate

	// Credentials are the HTTP Basic ones of an EST request, nil if there were none.
	Credentials *Credentials

	// Peer are the client certificates of an EST connection, the client's own first, whose key it has
	// shown to have. Nothing else of them needs to be verified.
	Peer []*x509.Certificate
}

// Credentials are what a client sent by HTTP Basic.
type Credentials struct {
	User     string
	Password string // a secret
}

// Result is the answer to a request: a certificate, or Pending.
type Result struct {
	Pending     bool   // a person has to decide first; ask again by [Engine.Poll] or the same request
	ID          string // of the held request, where there is or was one
	Certificate []byte // DER
	Serial      string // lower-case hex
	Replayed    bool   // it was issued to an earlier sending of this request
}

// Profile is what an enrollment profile decides by.
type Profile struct {
	Name    string
	Policy  *pki.Profile
	Issuers func() Issuers // asked anew for every request

	// Off, where set, reports whether an administrator switched the profile off.
	Off func() bool

	// Challenges are the kinds of challenge the profile takes; required.
	Challenges *challenge.Set

	EST      EST
	Renewal  Renewal
	Approval Approval
	Limits   Limits
	RawCSR   bool // takes bare certification requests

	// RenewFrom are authorities besides the profile's whose certificates are renewed here, nil if there
	// are none.
	RenewFrom func() *x509.CertPool

	MaxActive       int  // certificates of one identity that are neither over, revoked nor renewed; 0: any number
	UniqueKey       bool // a key that had a certificate of another identity is refused
	RevokeOnReplace bool // the certificate renewed is revoked once the new one is there

	// HeldFor is how long a held request waits for a person before it counts as denied; 0: 7 days.
	HeldFor time.Duration

	// Intune, where set, is told about certificates for requests with a challenge of Intune's.
	Intune Intune

	// Compliance, where set, is asked about every new request and renewal (Request.Renewal says which, however the
	// message calls itself) between proof and issuance,
	// and once more when somebody approves, then without challenge; an error refuses the request. It has
	// to keep a time limit of its own.
	Compliance func(context.Context, Request) error
}

// Issuers are the generations of a profile's authority.
type Issuers struct {
	Active  *pki.Issuer   // issues; nil: none does yet, see ErrNoAuthority
	Earlier []*pki.Issuer // their certificates are renewed and revoked still
}

// Always is the authority that has one generation only.
func Always(i *pki.Issuer) func() Issuers { return func() Issuers { return Issuers{Active: i} } }

// find returns the issuer among all generations that ok accepts, nil if there is none.
func (s Issuers) find(ok func(*pki.Issuer) bool) *pki.Issuer {
	if s.Active != nil && ok(s.Active) {
		return s.Active
	}
	if n := slices.IndexFunc(s.Earlier, ok); n >= 0 {
		return s.Earlier[n]
	}
	return nil
}

// EST says by what requests of EST prove themselves. The zero value takes none.
//
// Credentials count before a certificate. A one-time challenge is sent as the password of any user.
type EST struct {
	On        bool
	Basic     *challenge.Passwords // users with passwords; nil: none
	Challenge bool                 // one-time challenges of Profile.Challenges

	// Issued: certificates that the profile renews prove renewals.
	Issued bool

	// Bundle are authorities whose client certificates prove first requests, nil if there are none.
	Bundle func() *x509.CertPool
}

// Intune is Microsoft's device manager, told what became of requests whose challenge it made and
// [challenge.Set] had validated. transaction is the client's, csr and certificate are DER. The methods
// have to keep a time limit of their own.
type Intune interface {
	// Succeeded is called once the certificate is durable, before it is handed out, and again for a
	// retry after an error.
	Succeeded(ctx context.Context, transaction string, csr, certificate []byte) error
	// Failed is called with the refusal of a request after its validation.
	Failed(ctx context.Context, transaction string, csr []byte, why error) error
}

// How a profile's renewals are proven.
const (
	ProofCertificate          = "certificate"           // the certificate to be renewed is enough
	ProofCertificateChallenge = "certificate+challenge" // a good challenge is needed besides
)

// Renewal says how certificates are renewed by their own keys. The zero value renews none: a request
// signed by an issued certificate is then a first request, and a RenewalReq is refused.
type Renewal struct {
	Proof  string        // ProofCertificate, ProofCertificateChallenge or "" for none
	Window time.Duration // before a certificate's end in which it may be renewed; above 0 where Proof is set
	Grace  time.Duration // after its end in which it still may
}

// Approval says which requests wait for a person.
type Approval struct {
	Manual   bool     // every request does
	ManualIf []string // suffixes of the common name, in any case: those requests do
}

// Limits bound what a profile issues within an hour; 0 is no limit.
type Limits struct {
	PerSource  int // to one IPv4 address or IPv6 /64
	PerProfile int
}

// Poll asks what became of a held request (GetCertInitial, RFC 8894 §3.3.3).
type Poll struct {
	Profile       string
	Protocol      string // ProtocolSCEP
	TransactionID string
	SignerSPKI    []byte // of the key that signed the poll: only the one that signed the request is answered
	Source        netip.Addr
}

// PendingRequest is a request that waits for a person. Identity, Subject, Names and Transaction are what
// the sender wrote.
type PendingRequest struct {
	ID          string // for Approve and Deny
	Profile     string
	Protocol    string
	Transaction string
	Identity    string
	Subject     string // the whole, see pki.FormatDN
	Names       string // every other name it asks for, see pki.Request.AllOtherNames
	Source      string
	CSRSHA256   string // lower-case hex
	Renews      string // serial of the certificate it renews, "" for a first request
	Since       time.Time
}
