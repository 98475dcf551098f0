package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// ErrInitialised: Initialise on a store that has an identity.
var ErrInitialised = errors.New("box is already initialised")

// GenerationState is where a generation of an authority stands.
type GenerationState string

// States of a generation. An authority has at most one that is active, and at most one that is
// waiting or next.
//
//	             chain uploaded         activated           successor activated
//	(new key) waiting ------------> next ---------> active ---------------------> earlier
//	   root: begins as next           an authority's first begins here
const (
	GenerationWaiting GenerationState = "waiting" // a subordinate's key without a certificate
	GenerationNext    GenerationState = "next"    // published, signs no device's certificate yet
	GenerationActive  GenerationState = "active"
	GenerationEarlier GenerationState = "earlier" // signs revocation lists; its certificates are renewed
)

// GenerationCerts are the certificates of one key of an authority, DER.
type GenerationCerts struct {
	Number     int             `json:"number"` // from 1, never used twice
	State      GenerationState `json:"state"`
	Chain      [][]byte        `json:"chain,omitempty"`        // its own certificate first, root last; none while waiting
	NewWithOld []byte          `json:"new_with_old,omitempty"` // RFC 4210 §4.4: this key, signed by the generation before
	OldWithNew []byte          `json:"old_with_new,omitempty"` // the generation before, signed by this key
	Responder  []byte          `json:"responder,omitempty"`    // of the OCSP key
	Superseded time.Time       `json:"superseded,omitzero"`    // since when it is earlier
}

// RACert is an authority's certificate of an RA key, DER.
type RACert struct {
	Number      int       `json:"number"` // of the key: 1 is "ra", n is "ra.<n>"
	Certificate []byte    `json:"certificate"`
	Replaced    time.Time `json:"replaced,omitzero"` // since when it is no longer the current one; zero: it is
}

// AuthorityCerts are the certificates of one authority, DER.
type AuthorityCerts struct {
	Generations []GenerationCerts `json:"generations,omitempty"` // in order of their numbers
	Numbered    int               `json:"numbered,omitempty"`    // the largest number a generation ever had
	RAs         []RACert          `json:"ras,omitempty"`         // newest first

	// CA and RA are all there is where layout version 2 wrote an authority before it had generations:
	// the certificates of its first, of the keys "authority/<name>" and "ra".
	CA []byte `json:"ca,omitempty"`
	RA []byte `json:"ra,omitempty"`
}

// Identity is the box's own certificates, DER. The keys they belong to are the key holder's.
type Identity struct {
	Authorities map[string]AuthorityCerts `json:"authorities"`
	RANumber    int                       `json:"ra_number,omitempty"`    // of the RA key in use, see RACert
	TLSRoot     []byte                    `json:"tls_root"`               // issues TLS and TLSRSA
	TLS         []byte                    `json:"tls"`                    // leaf of every TLS listener
	TLSRSA      []byte                    `json:"tls_rsa,omitempty"`      // leaf for clients that take no ECDSA
	TLSUploaded map[string][][]byte       `json:"tls_uploaded,omitempty"` // by key name, leaf first, root last: used instead of the box's own
}

// Initialised reports whether the box has an identity.
func (s *Store) Initialised() bool {
	s.durable.RLock()
	defer s.durable.RUnlock()
	return s.head.initialised
}

// Initialise records the box's identity, once: ErrInitialised ever after.
func (s *Store) Initialise(id Identity, rec audit.Record) error {
	err := s.do(false, func(c *change) error {
		if c.head.initialised {
			return ErrInitialised
		}
		c.head.initialised = true
		c.record(rec)
		return c.setJSON(keyIdentity, id)
	})
	if err != nil {
		return fmt.Errorf("recording the box's identity: %w", err)
	}
	return nil
}

// UpdateIdentity replaces the box's identity; ErrNotFound before Initialise. It takes at least one
// record, each of something that changed.
func (s *Store) UpdateIdentity(id Identity, recs ...audit.Record) error {
	err := s.do(false, func(c *change) error {
		if !c.head.initialised {
			return ErrNotFound
		}
		if len(recs) == 0 {
			return errors.New("a change without an audit record")
		}
		for _, rec := range recs {
			c.record(rec)
		}
		return c.setJSON(keyIdentity, id)
	})
	if err != nil {
		return fmt.Errorf("updating the box's identity: %w", err)
	}
	return nil
}

// Identity returns the box's identity, or ErrNotFound before Initialise.
func (s *Store) Identity() (Identity, error) {
	var id Identity
	err := s.read(func(db *pebble.DB) error {
		b, err := s.get(db, keyIdentity)
		if err != nil {
			return err
		}
		return decode(b, &id)
	})
	if err != nil {
		return Identity{}, fmt.Errorf("reading the box's identity: %w", err)
	}
	return id, nil
}

// scanChunk bounds how many transactions are looked at while writes wait.
const scanChunk = 500

// LastNotAfter returns when the last of the certificates ends whose transaction began before that
// time, whoever issued it; zero if there is none.
func (s *Store) LastNotAfter(begunBefore time.Time) (time.Time, error) {
	var last time.Time
	err := s.eachTransaction(func(t Transaction) {
		if t.Begun.Before(begunBefore) && t.NotAfter.After(last) {
			last = t.NotAfter
		}
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("looking for the last certificate to end: %w", err)
	}
	return last, nil
}

// eachTransaction reads every transaction, some milliseconds for a thousand, and lets others write in between.
func (s *Store) eachTransaction(look func(Transaction)) error {
	from, end := []byte{prefixTransaction}, []byte{prefixTransaction + 1}
	for {
		n := 0
		err := s.read(func(db *pebble.DB) error {
			return scanRange(db, from, end, func(k, v []byte) error {
				var t Transaction
				if err := decode(v, &t); err != nil {
					return err
				}
				look(t)
				if n++; n == scanChunk {
					from = append(append([]byte{}, k...), 0)
					return errChunk
				}
				return nil
			})
		})
		if !errors.Is(err, errChunk) {
			return err
		}
	}
}

// errChunk ends a scan early.
var errChunk = errors.New("chunk is read")
