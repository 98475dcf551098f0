// Package authority keeps the box's authorities and the certificates the box has for itself: it makes,
// publishes, activates and retires the generations of each authority, rotates the RA key, and
// renews responder and TLS certificates in time.
//
// # Generations
//
// A generation is one key of an authority and the certificate over it. A root's is made by the box; a
// subordinate waits until somebody else has signed its request and the chain is uploaded. An authority
// changes over in overlap:
//
//	PrepareNext    a new key; a root's certificate, and the links between old and new (RFC 4210 §4.4).
//	               A subordinate waits for InstallChain.
//	(next)         published: devices can fetch it before they need it. It signs no device's certificate.
//	ActivateNext   it issues from here on, and certifies the registration and responder keys.
//	(earlier)      the one before: signs its revocation list, is trusted for renewals, until the last
//	               certificate issued under it has ended.
//
// Every transition is one batch of the store with its audit record. A key is made before the batch that
// first names it and removed after the one that last does, so that a power cut leaves a key nobody
// names: it is used by the next attempt at what made it, or removed.
//
// # What readers see
//
// [Set.Snapshot] and the TLS certificates are immutable values behind atomic pointers: no request reads
// the store or waits for a transition.
//
// What is in the store decides which certificates are handed out, never which key signs: each is bound
// to the key holder's key of that name, and a certificate of another key is refused.
package authority

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// Lifetimes of what the box certifies for itself.
const (
	// tlsRootValidity outlives most boxes and ends before 2038, behind which old devices cannot count. There is
	// no next one: whoever trusts it was given it by hand, and is given the root of uploaded certificates so.
	tlsRootValidity   = 10 * 365 * 24 * time.Hour
	tlsValidity       = 90 * 24 * time.Hour
	responderValidity = 14 * 24 * time.Hour // nobody can ask whether it is revoked, so it is short
	// tlsRenewBefore and raRenewBefore are how long before expiry a new certificate is made, the latter
	// at most a third of the certificate's validity.
	tlsRenewBefore = 30 * 24 * time.Hour
	raRenewBefore  = 30 * 24 * time.Hour
	// worthRenewing is how much longer than the old certificate a new one has to last, so that one cut
	// to its authority's end is not renewed again and again.
	worthRenewing = time.Hour
)

// What orders are refused with.
var (
	// ErrUnknown: the site has no authority of that name.
	ErrUnknown = errors.New("there is no authority of that name")
	// ErrPrepared: the authority has a next generation already.
	ErrPrepared = errors.New("a next generation was prepared already; activate or cancel it first")
	// ErrNotPrepared: the authority has no next generation.
	ErrNotPrepared = errors.New("there is no next generation; it was not prepared, or somebody cancelled it")
	// ErrWaiting: the generation has no certificate yet.
	ErrWaiting = errors.New("the authority waits for its certificate; have its request signed and upload the chain")
	// ErrOverlap: as many RA keys as there may be still decrypt.
	ErrOverlap = fmt.Errorf("%d RA keys still decrypt, and no more are made by order; wait until the overlap of one is over", maxRAs)
	// ErrOlder: the state is an older one, see Config.
	ErrOlder = errors.New("the box's disk is an older copy, and its newest one may name other keys and certificates")
	// ErrRoot: the order is one for subordinates.
	ErrRoot = errors.New("this authority is its own root; nobody signs a request for it")
)

// ErrStateLost: the keys have served before, and what they certified is gone. Going on would make a new
// CA under the old keys.
var ErrStateLost = errors.New("the keys were provisioned earlier, but the state they belong to is gone: the disk's state was lost or replaced")

// StateLostMend is what to do about ErrStateLost.
const StateLostMend = "put the original disk back; to start over as a new box, clear the TPM in the firmware setup and flash the disk again"

// mendable is an error with the action that mends it.
type mendable struct {
	error
	mend string
}

func (e *mendable) Unwrap() error { return e.error }

// Mend is one sentence, what to do.
func (e *mendable) Mend() string { return e.mend }

// Keys is the key holder; a [keys.Client] is one.
type Keys interface {
	Key(name string) (*keys.Key, error)
	List() ([]keys.Info, error)
	Create(keys.Spec) (*keys.Key, error)
	Delete(name string) error
	Certify(name string, nonce []byte) (keys.Certification, error)
}

// Config is what Open needs.
type Config struct {
	Site       *provision.Site
	Store      *store.Store
	Keys       Keys
	Now        func() time.Time
	TimeSource string // of Now, for audit records
	// Locations says where a generation of an authority publishes CRL, OCSP and certificate; nil: nowhere.
	Locations func(authority string, generation int) pki.Locations
	Addresses func() []net.IP // the box's own, now; nil: InterfaceAddresses
	// Older says whether the store holds an older state than the keys may have served; nil: never. Then no
	// key is made, removed or certified but those of TLS: the newest state, should it come back, may name them.
	Older func() bool
	Log   *slog.Logger // nil discards
}

// Generation is one key of an authority with its certificates. It must not be changed.
type Generation struct {
	Number int // from 1
	Key    *keys.Key
	Issuer *pki.Issuer         // with the locations it publishes at
	Chain  []*x509.Certificate // above its own certificate, root last; empty for a root
	// Responder answers OCSP for this generation; nil where the site has OCSP off.
	Responder *Responder
	// NewWithOld is this generation's key signed by the one before, OldWithNew the one before signed by
	// this key; nil but between two roots (RFC 4210 §4.4).
	NewWithOld, OldWithNew *x509.Certificate
	// Own are the certificates that this generation issued to the box itself and that are in use.
	Own []*x509.Certificate
	// Superseded is since when it is an earlier one; zero before.
	Superseded time.Time
}

// Responder is a certificate of the OCSP key.
type Responder struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// RA is a certificate of an RA key.
type RA struct {
	Number      int // of the key: 1 is "ra", n is "ra.<n>"
	Certificate *x509.Certificate
	Key         *keys.Key // signs and decrypts
	Replaced    time.Time // since when it only decrypts what was sent to it; zero for the current one
}

// Snapshot is an authority at one moment. It must not be changed.
type Snapshot struct {
	Name    string
	Active  *Generation   // nil: a subordinate that waits for its first chain
	Next    *Generation   // published, not active; nil: none
	Earlier []*Generation // newest first
	RAs     []RA          // newest first; empty where Active is nil
	Waiting int           // number of the generation whose chain is to be uploaded; 0: none
}

// Set is the box's authorities and its own certificates. Its methods may be called concurrently;
// orders run one after another.
type Set struct {
	cfg       Config
	snapshots map[string]*atomic.Pointer[Snapshot] // by name; the map never changes
	tls       atomic.Pointer[tlsState]

	mu    sync.Mutex
	saved store.Identity             // as the store has it
	held  map[string]*keys.Key       // keys asked for so far, by name
	ended map[generationID]time.Time // when the last certificate of an earlier generation ends
	over  map[generationID]time.Time // since when, without a break, the clock shows a time after that
	sweep bool                       // there may be keys that nobody names any more
}

type generationID struct {
	authority string
	number    int
}

// Open loads the box's certificates. In a provisioning boot, and only then, it makes them first;
// anywhere else a store without them is refused with ErrStateLost, so that a lost disk never turns into a
// new CA unnoticed. Errors with a method Mend say what to do.
func Open(c Config, provisioning bool) (*Set, error) {
	s := &Set{cfg: c, snapshots: map[string]*atomic.Pointer[Snapshot]{}, held: map[string]*keys.Key{}, ended: map[generationID]time.Time{}, over: map[generationID]time.Time{}, sweep: true}
	if s.cfg.Addresses == nil {
		s.cfg.Addresses = InterfaceAddresses
	}
	if s.cfg.Older == nil {
		s.cfg.Older = func() bool { return false }
	}
	if s.cfg.Log == nil {
		s.cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, a := range c.Site.Authorities {
		s.snapshots[a.Name] = new(atomic.Pointer[Snapshot])
	}
	if !c.Store.Initialised() {
		if !provisioning {
			return nil, &mendable{ErrStateLost, StateLostMend}
		}
		made, err := s.initial(c.Now())
		if err != nil {
			return nil, fmt.Errorf("creating the box's authorities: %w", err)
		}
		record := s.record(audit.BoxInitialised, audit.ActorBox)
		record.Identity = c.Site.Name
		if err := c.Store.Initialise(made, record); err != nil {
			return nil, err
		}
	}
	saved, err := c.Store.Identity()
	if err != nil {
		return nil, err
	}
	saved = numbered(saved)
	built, err := s.build(store.Identity{}, saved)
	if err != nil {
		return nil, err
	}
	s.saved = saved
	s.publish(built)
	// What came due while the box was off is renewed before anybody is answered. What cannot be renewed
	// now is tried again every minute; until then Conditions tells.
	if err := s.Upkeep(c.Now()); err != nil {
		s.cfg.Log.Error("renewing the box's certificates", "err", err)
		if s.tls.Load().ecdsa == nil {
			return nil, err // nobody could even look at the conditions
		}
	}
	return s, nil
}

// Snapshot is the authority of that name as it is now; nil if the site has none.
func (s *Set) Snapshot(name string) *Snapshot {
	if p := s.snapshots[name]; p != nil {
		return p.Load()
	}
	return nil
}

// record is the audit record of something that took effect.
func (s *Set) record(action audit.Action, actor string) audit.Record {
	return audit.Record{Action: action, Actor: actor, Outcome: audit.OutcomeSuccess, Time: s.cfg.Now(), TimeSource: s.cfg.TimeSource}
}

// of is the site's authority of that name.
func (s *Set) of(name string) (provision.Authority, error) {
	for _, a := range s.cfg.Site.Authorities {
		if a.Name == name {
			return a, nil
		}
	}
	return provision.Authority{}, fmt.Errorf("authority %.64q: %w", name, ErrUnknown)
}
