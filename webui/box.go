package webui

import (
	"crypto/x509"
	"errors"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// Box is what administrators order of the box. Whoever implements it writes each order that took effect
// into the audit log, with the actor it is given. Authorities and Settings are asked for each status
// page and answer at once; nothing that is returned is changed afterwards.
//
// Refusals are ErrNoProfile and ErrNoAuthority for names the site does not have, a *[ConflictError] for
// what cannot be done in the present state, and an *[OrderError] for a value that is wrong. ErrKeysBusy
// says that the key holder has no time now. Any other error is the box's own fault.
type Box interface {
	Authorities() []AuthorityInfo // in the site's order
	// AuthorityRequest makes the request for a subordinate's certificate, as often as it is asked.
	AuthorityRequest(name string) (AuthorityRequest, error)
	// InstallChain takes a subordinate's certificate and those above it up to the root.
	InstallChain(name string, pem []byte, actor string) error
	// PrepareNext makes the next generation of an authority and publishes it; it issues nothing yet.
	PrepareNext(name, actor string) error
	// ActivateNext has the next generation issue from now on.
	ActivateNext(name, actor string) error
	// CancelNext takes the next generation back, before it is active.
	CancelNext(name, actor string) error
	// RotateRA makes a new RA key; the one before still decrypts for a while.
	RotateRA(actor string) error

	// TLSRequest makes the requests, PEM, for TLS certificates of the box by somebody else's authority.
	TLSRequest() ([]byte, error)
	// InstallTLS takes such a certificate and those above it.
	InstallTLS(pem []byte, actor string) error
	// DropTLS goes back to the certificates that the box made itself.
	DropTLS(actor string) error

	// Rollback is what the box found when its disk turned out to be an older copy; nil: it is the newest.
	Rollback() *Rollback
	// AcknowledgeRollback takes such a disk for the newest from now on, and has the box issue again. A
	// *[ConflictError] where there is nothing to acknowledge.
	AcknowledgeRollback(actor string) error
	// TLS is the certificates that the box's listeners show now, the one most clients see first.
	TLS() []TLSInfo

	// Policy is what the site says of a profile, in words; nobody can change it but by baking.
	Policy(profile string) ([]Rule, error)
	// Settings is what of a profile an administrator can change while the box runs.
	Settings(profile string) (ProfileSettings, error)
	// SwitchProfile stops a profile from issuing, for a reason, or has it issue again, without one.
	SwitchProfile(profile string, off bool, reason, actor string) error
	// ReplaceBundle puts certificates in place of a baked bundle, one of the Bundle constants; nil goes
	// back to the baked one.
	ReplaceBundle(profile, bundle string, pem []byte, actor string) error
	// ReplaceChallenge replaces the hash of the challenge all devices share; "" goes back to the baked one.
	ReplaceChallenge(profile, hash, actor string) error
	// ReplacePassword replaces the hash of an EST user's password; "" goes back to the baked one.
	ReplacePassword(profile, user, hash, actor string) error
	// PutSecret keeps a secret the box needs in clear, sealed. Its name is a kind of secret and a profile
	// with a slash between them: "compliance/corp".
	PutSecret(name string, value []byte, actor string) error
	// IntuneRequest is the certificate, PEM, to register with Entra for a profile that asks Intune; the first
	// time it is made.
	IntuneRequest(profile, actor string) ([]byte, error)
}

// Bundles of a profile: whose certificates it believes, for what.
const (
	BundleSigned     = "signed"     // sign challenges
	BundleSCEPMTLS   = "scep-mtls"  // above certificates on /scep-mtls
	BundleEST        = "est"        // above certificates that enroll over EST
	BundleRenewFrom  = "renew-from" // above certificates of another authority that may be renewed here
	BundleCompliance = "compliance" // above the compliance service's TLS certificate
	BundleIntune     = "intune"     // above the TLS certificates of Microsoft's services
)

// SecretCompliance is the kind of secret that signs what is sent to a profile's compliance service.
const SecretCompliance = "compliance"

// States of a generation.
const (
	GenerationActive  = "active"  // issues
	GenerationNext    = "next"    // published, issues nothing yet
	GenerationWaiting = "waiting" // for its chain
	GenerationEarlier = "earlier" // issues no more; its certificates are still good
)

// AuthorityInfo is one authority with its generations.
type AuthorityInfo struct {
	Name        string
	Mode        string           // "root" or "subordinate"
	Subject     string           // of its CA certificates, as the site has it
	Algorithm   string           // of the CA keys, such as "rsa-2048"
	PathLen     int              // how many authorities there have to be room for below it
	Protection  string           // of the CA keys: "resident" or "sealed"
	Generations []GenerationInfo // by number, the oldest first
	RAs         []RAInfo         // the newest first; empty before the first chain
}

// GenerationInfo is one key of an authority.
type GenerationInfo struct {
	Number      int                 // from 1
	State       string              // a Generation constant
	Certificate *x509.Certificate   // nil while it waits
	Chain       []*x509.Certificate // above it, root last; empty for a root
	Responder   *x509.Certificate   // answers OCSP; nil where OCSP is off
	Published   pki.Locations       // URLs in the certificates it issues; zero without listener plain
	CRL         store.CRL           // made last; zero: none was yet
	Superseded  time.Time           // since when it is an earlier one; zero otherwise
}

// RAInfo is one RA certificate of an authority.
type RAInfo struct {
	Certificate *x509.Certificate
	Replaced    time.Time // since when it only decrypts; zero for the current one
}

// TLSInfo is a certificate of the box's listeners.
type TLSInfo struct {
	Certificate *x509.Certificate
	Uploaded    bool // somebody else's authority signed it; false: the box made it
}

// Rule is one thing that the site says of a profile, for people.
type Rule struct {
	Group string   // rules of one group follow each other
	About string   // what it is about, such as "Keys"
	Says  []string // each a phrase that begins with a capital and has no stop
	Weak  bool     // it lets in what is not safe any more
}

// AuthorityRequest asks for a subordinate's certificate.
type AuthorityRequest struct {
	Generation    int
	PEM           []byte         // PKCS#10
	Certification *Certification // nil where the key is kept outside of the TPM
}

// Certification is the TPM's statement (TPM2_Certify) that a key cannot leave it, over the SHA-256 of
// the DER of the request it comes with.
type Certification struct {
	Attest         []byte `json:"attest" doc:"TPMS_ATTEST over the SHA-256 of the request's DER"`
	Signature      []byte `json:"signature" doc:"over the SHA-256 of attest, ASN.1"`
	Public         []byte `json:"public" doc:"TPMT_PUBLIC of the key"`
	AttestationKey []byte `json:"attestation_key" doc:"SubjectPublicKeyInfo"`
}

// Rollback says why the box issues nothing: where its TPM has a counter is not where its disk knows it. Every
// move of the counter is on the disk before it is made, so that only an older copy of the disk knows it elsewhere.
type Rollback struct {
	Expected uint64    // where the disk knows it; 0: the disk is from before the box counted
	Found    uint64    // where the TPM has it; 0: it is gone from the TPM
	Since    time.Time // when that was found
	Records  uint64    // audit records the disk had then: those that it lacks begin with this index
	Until    time.Time // when the newest of them was written
}

// ProfileSettings is what of a profile can be changed while the box runs, and what was.
type ProfileSettings struct {
	Profile   string
	Authority string
	Off       *Switch // nil: on
	Bundles   []BundleSetting
	Challenge *ChallengeSetting // nil: it takes no challenge that all devices share
	Passwords []PasswordSetting // of EST
	Secrets   []SecretSetting
	Intune    bool // it asks Intune
}

// Switch is a profile switched off.
type Switch struct {
	Reason string
	Change
}

// Change is by whom and when a value of the site was replaced: it is not the baked one.
type Change struct {
	By string
	At time.Time
}

// BundleSetting is a trust bundle.
type BundleSetting struct {
	Bundle       string              // a Bundle constant
	File         string              // of the site it was baked from
	Certificates []*x509.Certificate // in use
	Replaced     *Change             // nil: baked
}

// ChallengeSetting is the challenge that all devices of a profile share.
type ChallengeSetting struct {
	Public   string  // the challenge itself where it is published, as the demo's; "" elsewhere
	Replaced *Change // nil: baked
}

// PasswordSetting is the password of an EST user.
type PasswordSetting struct {
	User     string
	For      []string // names it enrolls; empty: any the profile allows
	Replaced *Change  // nil: baked
}

// SecretSetting is a secret the profile needs in clear. Its value never comes back.
type SecretSetting struct {
	Kind string // a Secret constant
	Set  bool
}

// NotBaked says whether anything an administrator replaced is in use.
func (s ProfileSettings) NotBaked() bool {
	if s.Challenge != nil && s.Challenge.Replaced != nil {
		return true
	}
	for _, b := range s.Bundles {
		if b.Replaced != nil {
			return true
		}
	}
	for _, p := range s.Passwords {
		if p.Replaced != nil {
			return true
		}
	}
	return false
}

// Refusals of a Box beside ErrNoProfile.
var (
	// ErrNoAuthority: the site has no such authority.
	ErrNoAuthority = errors.New("there is no such authority")
	// ErrKeysBusy: the key holder works on too much already.
	ErrKeysBusy = errors.New("the key holder is busy")
)

// ConflictError refuses an order that cannot be done as things are.
type ConflictError struct {
	What string // lower case, without a stop
	Mend string // what to do about it
}

func (e *ConflictError) Error() string { return e.What }
