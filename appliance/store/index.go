package store

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Errors of Begin about what else an identity or a key has.
var (
	// ErrMaxActive: the identity has as many active certificates as it may.
	ErrMaxActive = errors.New("identity has too many active certificates")
	// ErrKeyTaken: the key was used under another identity.
	ErrKeyTaken = errors.New("key was used under another identity")
	// ErrKeyCompromised: a certificate of the key was revoked because the key is known to others.
	ErrKeyCompromised = errors.New("key was revoked as compromised")
)

// identityKey names a certificate in the index by identity, where it stands from Begin on until it is
// known that there is none: in the order of identities in lower case and of ends.
func identityKey(t Intent) []byte {
	k := append(identityPrefix(t.Identity), 0)
	k = binary.BigEndian.AppendUint64(k, uint64(max(t.NotAfter.UnixMilli(), 0)))
	return append(k, t.Serial...)
}

// identityPrefix begins the index keys of all identities that begin so, in any case.
func identityPrefix(identity string) []byte {
	return key(prefixIdentity, strings.ToLower(strings.ReplaceAll(identity, "\x00", " ")))
}

// issuedKey names an issued certificate in the index by time.
func issuedKey(t Transaction) []byte {
	k := binary.BigEndian.AppendUint64([]byte{prefixIssued}, uint64(max(t.Decided.UnixMilli(), 0)))
	return append(k, t.Serial...)
}

// keyUse is what the store knows of a public key.
type keyUse struct {
	// Identities are the first two it was used under, in lower case: a third tells nothing more.
	Identities  []string `json:"identities,omitempty"`
	Compromised bool     `json:"compromised,omitempty"`
}

func readKeyUse(get func([]byte) ([]byte, error), publicKey []byte) (keyUse, error) {
	var u keyUse
	b, err := get(key(prefixKey, string(publicKey)))
	if errors.Is(err, ErrNotFound) {
		return u, nil
	}
	if err != nil {
		return u, err
	}
	return u, decode(b, &u)
}

// add has the key used under an identity, and reports whether that is new.
func (u *keyUse) add(identity string) bool {
	identity = strings.ToLower(identity)
	if len(u.Identities) >= 2 || slices.Contains(u.Identities, identity) {
		return false
	}
	u.Identities = append(u.Identities, identity)
	return true
}

// useKey refuses a key that is not to be used for i, and has it used under i's identity.
func (c *change) useKey(i Intent) error {
	if len(i.PublicKey) != sha256.Size {
		return fmt.Errorf("public key is named by %d bytes, want a SHA-256", len(i.PublicKey))
	}
	u, err := readKeyUse(c.get, i.PublicKey)
	if err != nil {
		return err
	}
	if u.Compromised {
		return ErrKeyCompromised
	}
	isNew := u.add(i.Identity)
	if i.UniqueKey && (len(u.Identities) > 1 || u.Identities[0] != strings.ToLower(i.Identity)) {
		return ErrKeyTaken
	}
	if !isNew {
		return nil
	}
	return c.setJSON(key(prefixKey, string(i.PublicKey)), u)
}

// compromise has the key of a certificate never used again.
func (c *change) compromise(t Transaction) error {
	publicKey := t.publicKey()
	if publicKey == nil {
		return nil
	}
	u, err := readKeyUse(c.get, publicKey)
	if err != nil {
		return err
	}
	u.Compromised = true
	return c.setJSON(key(prefixKey, string(publicKey)), u)
}

// publicKey is the SHA-256 of the certificate's SubjectPublicKeyInfo, nil where it is not known.
func (t Transaction) publicKey() []byte {
	if len(t.PublicKey) > 0 {
		return t.PublicKey
	}
	cert, err := x509.ParseCertificate(t.Certificate) // issued by software that did not record it
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return sum[:]
}

// IsCompromised reports whether a certificate of a public key was revoked because others know the key.
// The key is named by the SHA-256 of its SubjectPublicKeyInfo.
func (s *Store) IsCompromised(publicKey [sha256.Size]byte) (bool, error) {
	var u keyUse
	err := s.read(func(db *pebble.DB) (err error) {
		u, err = readKeyUse(func(k []byte) ([]byte, error) { return s.get(db, k) }, publicKey[:])
		return err
	})
	if err != nil {
		return false, fmt.Errorf("reading key: %w", err)
	}
	return u.Compromised, nil
}

// checkActive refuses where the identity has i.MaxActive certificates of the profile that are not over,
// revoked or renewed, begun ones among them. The one that i renews does not count.
func (c *change) checkActive(i Intent) error {
	if i.MaxActive <= 0 {
		return nil
	}
	lower := append(identityPrefix(i.Identity), 0)
	upper := append(identityPrefix(i.Identity), 1)
	lower = binary.BigEndian.AppendUint64(lower, uint64(max(i.Begun.UnixMilli(), 0)))
	var active []string
	err := scanRange(c.state, lower, upper, func(k, profile []byte) error {
		serial := string(k[len(lower):])
		if string(profile) != i.Profile || serial == i.Supersedes {
			return nil
		}
		t, err := readTransaction(c.get, serial)
		if err != nil {
			return err
		}
		if !t.Revoked() && t.SupersededBy == "" {
			active = append(active, serial)
		}
		return nil
	})
	if err == nil && len(active) >= i.MaxActive {
		err = fmt.Errorf("%w: %s", ErrMaxActive, strings.Join(active[:min(len(active), 10)], ", "))
	}
	return err
}

// CertState is how a Query narrows down by state.
type CertState string

const (
	CertActive  CertState = "active"  // neither revoked nor over
	CertRevoked CertState = "revoked" // for good or on hold
	CertHeld    CertState = "hold"    // revoked as on hold
	CertExpired CertState = "expired" // and not revoked
)

// Query asks for issued certificates: by the beginning of their serial, else of their identity in any
// case, else all, newest first.
type Query struct {
	Serial   string
	Identity string
	Profile  string    // "" for any
	State    CertState // "" for any
	Now      time.Time // what State goes by
	Limit    int
	After    string // what the call before returned as next
}

// maxLooked is how many certificates one call of Certificates looks at.
const maxLooked = 2000

// ErrCursor: Query.After is nothing that Certificates returned for such a query.
var ErrCursor = errors.New("list position is not one of this list, begin anew")

// Certificates returns up to q.Limit issued certificates, and where to go on, "" at the end. It may
// return fewer than there are, or none, with a place to go on: one call looks at maxLooked at most.
func (s *Store) Certificates(q Query) (found []Transaction, next string, err error) {
	prefix, isBackward := []byte{prefixIssued}, true
	switch {
	case q.Serial != "":
		prefix, isBackward = key(prefixTransaction, q.Serial), false
	case q.Identity != "":
		prefix, isBackward = identityPrefix(q.Identity), false
	}
	bounds := &pebble.IterOptions{LowerBound: prefix, UpperBound: append(slices.Clone(prefix), 0xff)}
	if q.After != "" {
		at, err := hex.DecodeString(q.After)
		if err != nil || !strings.HasPrefix(string(at), string(prefix)) {
			return nil, "", ErrCursor
		}
		if isBackward {
			bounds.UpperBound = at
		} else {
			bounds.LowerBound = append(at, 0)
		}
	}
	err = s.read(func(db *pebble.DB) error {
		found, next, err = s.look(db, bounds, isBackward, q)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing certificates: %w", err)
	}
	return found, next, nil
}

// look goes through the index entries, or transactions, within bounds.
func (s *Store) look(db *pebble.DB, bounds *pebble.IterOptions, isBackward bool, q Query) (found []Transaction, next string, err error) {
	it, err := db.NewIter(bounds)
	if err != nil {
		return nil, "", fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	first, step := it.First, it.Next
	if isBackward {
		first, step = it.Last, it.Prev
	}
	looked := 0
	for ok := first(); ok; ok = step() {
		serial, err := serialIn(it.Key())
		if err != nil {
			return nil, "", err
		}
		t, err := readTransaction(func(k []byte) ([]byte, error) { return s.get(db, k) }, serial)
		if err != nil {
			return nil, "", err
		}
		if q.matches(t) {
			found = append(found, t)
		}
		if looked++; looked == maxLooked || len(found) >= q.Limit {
			return found, hex.EncodeToString(it.Key()), nil
		}
	}
	return found, "", it.Error()
}

// serialIn is the serial in the key of a transaction or of its place in an index.
func serialIn(k []byte) (string, error) {
	skip := 1
	switch k[0] {
	case prefixIssued:
		skip = 1 + 8
	case prefixIdentity:
		skip = bytes.IndexByte(k, 0) + 1 + 8
	}
	if skip >= len(k) {
		return "", fmt.Errorf("%w: index key of %d bytes", ErrDamaged, len(k))
	}
	return string(k[skip:]), nil
}

func (q Query) matches(t Transaction) bool {
	if t.State != Issued || q.Profile != "" && t.Profile != q.Profile {
		return false
	}
	isOver := t.NotAfter.Before(q.Now)
	switch q.State {
	case CertActive:
		return !t.Revoked() && !isOver
	case CertRevoked:
		return t.Revoked()
	case CertHeld:
		return t.Revoked() && t.Reason == reasonHold
	case CertExpired:
		return isOver && !t.Revoked()
	}
	return true
}
