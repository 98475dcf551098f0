package challenge

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// errNotMinted means that a challenge is no one-time challenge of the profile: perhaps another kind.
var errNotMinted = errors.New("not a one-time challenge")

// MaxTTL is the longest a one-time challenge may live.
const MaxTTL = 366 * 24 * time.Hour

const (
	secretBytes = 16 // of a one-time challenge, random
	maxBoundCN  = 200
	maxBoundSAN = 64
)

// OneTimeConfig is what NewOneTime needs.
type OneTimeConfig struct {
	Store   *store.Store
	Profile string
	TTL     time.Duration // of a challenge from when it is minted; up to MaxTTL
}

// OneTime mints and verifies challenges that are good for one device, once. The store keeps their
// SHA-256 and never the challenge.
type OneTime struct{ c OneTimeConfig }

// NewOneTime returns the one-time challenges of a profile.
func NewOneTime(c OneTimeConfig) (*OneTime, error) {
	if c.Store == nil || c.Profile == "" {
		return nil, errors.New("one-time challenges need a store and a profile")
	}
	if c.TTL < time.Second || c.TTL > MaxTTL {
		return nil, fmt.Errorf("one-time challenges of profile %s: ttl is %v, give one between 1s and %v", c.Profile, c.TTL, MaxTTL)
	}
	return &OneTime{c}, nil
}

// binding is what a challenge was minted for; it is the note of its guard.
type binding struct {
	CN   string     `json:"cn"`
	SANs []pki.Name `json:"sans"` // nil: not bound, see OneTime.Mint
	SID  string     `json:"sid,omitempty"`
}

// Mint makes a challenge of 128 random bits for the device cn, good for ttl from now on (0: the
// profile's; it cannot be longer). save has to record the guard with [store.Store.Mint]; the
// challenge is returned only once it did.
//
// sans are the exact subjectAltNames the device may and must ask for, each written "kind:value" with
// kind dns, email, ip, uri or upn. Without any, the device may ask for cn itself as a name of any
// kind and for DNS names whose first label is cn. E-mail addresses in the subject are bound likewise;
// what else the subject may say is the profile's to allow. "sid:S-1-…", once, is the Active Directory
// account that the device may be; without it, none.
func (o *OneTime) Mint(cn string, sans []string, ttl time.Duration, now time.Time, save func(store.Guard) error) (secret string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = o.c.TTL
	}
	if ttl < time.Second || ttl > o.c.TTL {
		return "", time.Time{}, fmt.Errorf("one-time challenge: ttl is %v, profile %s allows 1s to %v", ttl, o.c.Profile, o.c.TTL)
	}
	b := binding{CN: cn}
	if cn == "" || len(cn) > maxBoundCN {
		return "", time.Time{}, fmt.Errorf("one-time challenge: the common name has %d bytes, give one of 1 to %d", len(cn), maxBoundCN)
	}
	if len(sans) > maxBoundSAN {
		return "", time.Time{}, fmt.Errorf("one-time challenge: %d names, at most %d can be bound", len(sans), maxBoundSAN)
	}
	for _, san := range sans {
		if sid, ok := strings.CutPrefix(san, "sid:"); ok {
			if b.SID != "" || !isSID(sid) {
				return "", time.Time{}, fmt.Errorf("one-time challenge: %.100q is no account or a second one, write one as sid:S-1-5-21-…", san)
			}
			b.SID = sid
			continue
		}
		name, err := parseSAN(san)
		if err != nil {
			return "", time.Time{}, fmt.Errorf("one-time challenge: %w", err)
		}
		b.SANs = append(b.SANs, name)
	}
	note, err := json.Marshal(b)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("one-time challenge: %w", err)
	}
	if len(note) > store.MaxGuardNote {
		return "", time.Time{}, fmt.Errorf("one-time challenge: the names take %d bytes, at most %d can be bound", len(note), store.MaxGuardNote)
	}

	var random [secretBytes]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	// The form that people who script NDES's page expect.
	secret = strings.ToUpper(hex.EncodeToString(random[:]))
	expires = now.Add(ttl).UTC().Truncate(time.Millisecond)
	g := o.guard(secret)
	g.Until, g.Note = expires, note
	if err := save(g); err != nil {
		return "", time.Time{}, fmt.Errorf("one-time challenge: %w", err)
	}
	return secret, expires, nil
}

// guard names the guard of a challenge. Profiles have their own, so a challenge is good for the
// profile it was minted for.
func (o *OneTime) guard(secret string) store.Guard {
	return store.Guard{Kind: store.GuardOnce, Key: hashFields("one-time challenge", o.c.Profile, secret)}
}

// Verify returns whom a challenge was minted for, [errNotMinted] for what was never minted here or
// is long over, and [*Refused] for a challenge that is over, used, or for another device.
func (o *OneTime) Verify(r Request) (Verdict, error) {
	refuse := func(l Label, detail string) (Verdict, error) {
		return Verdict{}, &Refused{KindOneTime, l, detail}
	}
	if len(r.Challenge) != 2*secretBytes {
		return Verdict{}, errNotMinted
	}
	g := o.guard(r.Challenge)
	state, err := o.c.Store.Guard(g, r.Now)
	if err != nil {
		return Verdict{}, fmt.Errorf("verifying one-time challenge: %w", err)
	}
	switch {
	case state.Status == store.GuardUnknown:
		return Verdict{}, errNotMinted
	case state.Status == store.GuardUsed && state.By != r.Transaction:
		return refuse(Replay, "it was used before, mint a new one")
	case state.Status == store.GuardExpired:
		return refuse(Expired, fmt.Sprintf("it was good until %s, mint a new one", state.Until.Format(time.RFC3339)))
	}
	var b binding
	if err := json.Unmarshal(state.Note, &b); err != nil {
		return Verdict{}, fmt.Errorf("verifying one-time challenge: what it is bound to: %w", err)
	}
	if what := b.mismatch(r.CSR); what != "" {
		return refuse(ClaimMismatch, what)
	}
	g.Until = state.Until
	return Verdict{Kind: KindOneTime, Guards: []store.Guard{g}, Identity: b.CN, SID: b.SID}, nil
}

// mismatch says how a CSR differs from what the challenge is bound to, "" where it does not.
func (b binding) mismatch(csr *pki.Request) string {
	cns, err := commonNames(csr.RawSubject)
	if err != nil {
		return err.Error()
	}
	if len(cns) == 0 { // devices without a CN are called by what names them instead
		cns = []string{csr.Identity()}
	}
	for _, cn := range cns {
		if fold(cn) != fold(b.CN) {
			return "the CSR names another device"
		}
	}
	addresses, err := subjectValues(csr.RawSubject, oidEmailAddress)
	if err != nil {
		return err.Error()
	}
	for _, address := range addresses {
		if !b.allowsAddress(address) {
			return "the subject of the CSR has an e-mail address that the challenge is not for, mint one with that name"
		}
	}
	if b.SANs != nil {
		if !sameNames(csr.SAN, b.SANs) {
			return "the CSR asks for other subjectAltNames"
		}
		return ""
	}
	for _, name := range csr.SAN {
		value, cn := fold(name.Value), fold(b.CN)
		if value != cn && (name.Kind != pki.DNS || !strings.HasPrefix(value, cn+".")) {
			return fmt.Sprintf("the CSR asks for a name of kind %s that the challenge is not for, mint one with that name", name.Kind)
		}
	}
	return ""
}

// allowsAddress reports whether an e-mail address may stand in the subject: software takes one there
// for one among the subjectAltNames.
func (b binding) allowsAddress(address string) bool {
	if b.SANs == nil {
		return fold(address) == fold(b.CN)
	}
	return slices.ContainsFunc(b.SANs, func(n pki.Name) bool { return n.Kind == pki.Email && fold(n.Value) == fold(address) })
}

// hashFields is injective over its arguments: each is preceded by its length.
func hashFields(purpose string, fields ...string) [32]byte {
	b := append([]byte("signet "), purpose...)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint64(b, uint64(len(f)))
		b = append(b, f...)
	}
	return sha256.Sum256(b)
}
