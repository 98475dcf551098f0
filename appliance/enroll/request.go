package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
)

// ProtocolSCEP is the Protocol of requests that came by SCEP (RFC 8894).
const ProtocolSCEP = "scep"

// Errors of Enroll and Poll, besides [*pki.PolicyError] and the context's. Every one but ErrBusy,
// ErrUnavailable and ErrRateLimited is final for the same message.
var (
	ErrUnknownProfile = errors.New("there is no such enrollment profile")
	ErrSignerKey      = errors.New("request is not signed by the key it wants certified, sign it with the key of the CSR")
	ErrChallenge      = errors.New("challenge password is wrong or missing, use the one of this profile")
	ErrReplay         = errors.New("message was answered before, make a new request")
	ErrRaw            = errors.New("profile takes no bare certification request, send a SCEP PKCSReq")

	// Of a renewal: a request signed by a certificate this box issued, or a RenewalReq.
	ErrSignerUnknown   = errors.New("signer certificate is not one this authority issued, enroll anew with a challenge password")
	ErrSignerRevoked   = errors.New("signer certificate is revoked, enroll anew with a challenge password")
	ErrSignerExpired   = errors.New("signer certificate has expired, enroll anew with a challenge password")
	ErrRenewalEarly    = errors.New("certificate is not due for renewal yet, try again nearer to its end")
	ErrRenewalIdentity = errors.New("renewal asks for another subject or other names than the certificate has, enroll anew for those")

	// Of a request that a person has to decide on.
	ErrDenied    = errors.New("request was denied")
	ErrNoRequest = errors.New("there is no such request of this key")
	ErrHold      = errors.New("request has to wait for approval, which this kind of request cannot: use an RSA key")
	ErrHeldFull  = errors.New("too many requests of this profile wait for approval, have the operator decide on some")

	// ErrRateLimited: the source or the profile had its share of certificates for now.
	ErrRateLimited = errors.New("too many certificates within an hour, try again later")
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
	Protocol      string // ProtocolSCEP
	TransactionID string // as the client sent it
	CSR           *pki.Request
	Proof         Proof
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

	// MTLS is the verified client certificate of the connection, nil if there was none. Where this box
	// issued it, it has to be unrevoked.
	MTLS *x509.Certificate
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
	Name   string
	Policy *pki.Profile
	Issuer *pki.Issuer

	// Challenges are the kinds of challenge the profile takes; required.
	Challenges *challenge.Set

	Renewal  Renewal
	Approval Approval
	Limits   Limits
	RawCSR   bool // takes bare certification requests

	// Compliance, where set, is asked about every new request and renewal between proof and issuance,
	// and once more when somebody approves, then without challenge; an error refuses the request. It has
	// to keep a time limit of its own.
	Compliance func(context.Context, Request) error
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
