package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"signet.internal/appliance/audit"
)

// State of a transaction; see the package comment.
type State string

const (
	Begun  State = "begun"
	Issued State = "issued"
	Failed State = "failed"
	Lost   State = "lost"
)

// Errors of the transaction transitions.
var (
	// ErrRecovery: Begin before Recover decided what an earlier process left begun.
	ErrRecovery = errors.New("transactions of an earlier run are not recovered yet")
	// ErrConflict: the newest transaction with this key is not the one the caller saw.
	ErrConflict = errors.New("another request with the same transaction came first")
	// ErrReplay: this very message was answered with a certificate before.
	ErrReplay = errors.New("message was answered before, the client has to make a new one")
	// ErrSerial: the serial was used before.
	ErrSerial = errors.New("serial number was used before")
	// ErrDecided: the transaction is not begun, or was decided already.
	ErrDecided = errors.New("transaction is not begun or already decided")
	// ErrRevoked: the certificate is revoked.
	ErrRevoked = errors.New("certificate is revoked")
)

// TransactionKey names a request across its retries: a hash over everything that makes two messages
// the same request. The store does not interpret it.
type TransactionKey [32]byte

// MarshalText writes the key in hex.
func (k TransactionKey) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *TransactionKey) UnmarshalText(b []byte) error { return unhex(k[:], b) }

// ReplayKey names one message: a hash over the request and the message's nonce.
type ReplayKey [32]byte

// MarshalText writes the key in hex.
func (k ReplayKey) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *ReplayKey) UnmarshalText(b []byte) error { return unhex(k[:], b) }

func unhex(to, b []byte) error {
	if hex.DecodedLen(len(b)) != len(to) {
		return fmt.Errorf("key of %d hex digits, want %d", len(b), 2*len(to))
	}
	_, err := hex.Decode(to, b)
	return err
}

// Intent is what is about to be signed, and for whom.
type Intent struct {
	Key TransactionKey `json:"key"`

	// After is the serial of the newest transaction with Key that the caller saw when it decided to
	// begin another, "" if there was none. Begin refuses when it is no longer the newest.
	After string `json:"after,omitempty"`

	// Replay is zero for a protocol without nonces.
	Replay ReplayKey `json:"replay"`

	Serial      string    `json:"serial"` // lower-case hex, unique over the life of the store
	Profile     string    `json:"profile"`
	Protocol    string    `json:"protocol"`
	Transaction string    `json:"transaction"` // as the client sent it, for people
	Identity    string    `json:"identity"`
	Issuer      []byte    `json:"issuer"`     // names the issuing name and key, 32 bytes: whose CRL a burnt or revoked serial belongs on
	SignerKey   []byte    `json:"signer_key"` // SHA-256 of the request signer's SubjectPublicKeyInfo
	CSR         []byte    `json:"csr"`        // SHA-256 of the PKCS#10's DER
	PublicKey   []byte    `json:"public_key"` // SHA-256 of the SubjectPublicKeyInfo that will be certified
	Template    []byte    `json:"template"`   // what pki.Prepared says will be signed
	Begun       time.Time `json:"begun"`
	NotAfter    time.Time `json:"not_after,omitzero"` // end of what will be signed

	// Supersedes is the serial of the certificate this one renews, "" for a first one.
	Supersedes string `json:"supersedes,omitempty"`

	// RevokeSuperseded has the certificate it renews revoked as superseded once this one is there.
	RevokeSuperseded bool `json:"revoke_superseded,omitempty"`

	// Withhold has the certificate held back after Finish, until Deliver.
	Withhold bool `json:"withhold,omitempty"`

	MaxActive int  `json:"-"` // see ErrMaxActive; 0: any number
	UniqueKey bool `json:"-"` // see ErrKeyTaken

	// Guards are taken with the intent, at Begun.
	Guards []Guard `json:"-"`

	// Held is the id of the held request this carries out; [Store.Approve] sets it.
	Held string `json:"held,omitempty"`
}

// maxClientText bounds text in an Intent that the client chose; the audit record keeps less.
const maxClientText = 1024

// Transaction is an Intent and what became of it.
type Transaction struct {
	Intent
	State       State     `json:"state"`
	Decided     time.Time `json:"decided"`
	Certificate []byte    `json:"certificate,omitempty"` // DER, while Issued
	RevokedAt   time.Time `json:"revoked_at,omitzero"`   // zero: not revoked
	Reason      int       `json:"reason,omitempty"`      // of the revocation, CRLReason of RFC 5280 §5.3.1

	// Withheld says that the certificate is not to be handed out yet.
	Withheld bool `json:"withheld,omitempty"`

	// SupersededBy is the serial of the certificate that renewed this one last.
	SupersededBy string `json:"superseded_by,omitempty"`
}

// Revoked reports whether the certificate is revoked, for good or on hold.
func (t Transaction) Revoked() bool { return !t.RevokedAt.IsZero() }

// Begin records an intent with its audit record. Only after it returned nil may anything be signed.
//
// It refuses with ErrConflict where a transaction of the same key is undecided or newer than
// i.After, with ErrReplay where this message was answered with a certificate, with ErrSerial where
// the serial was ever used, with ErrRevoked where the certificate to be renewed is revoked by now,
// with ErrKeyCompromised, ErrKeyTaken or ErrMaxActive, and as [Guard] says where one cannot be taken.
// What a lost or failed transaction consumed is usable again by the same key and message.
func (s *Store) Begin(i Intent, rec audit.Record) error {
	i.Held = ""
	err := s.issue(func(c *change) error {
		c.record(rec)
		return c.begin(i)
	})
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}
	return nil
}

// begin checks and records an intent.
func (c *change) begin(i Intent) error {
	if len(c.head.leftOpen) > 0 {
		return ErrRecovery
	}
	if err := checkSerial(i.Serial); err != nil {
		return err
	}
	if len(i.Issuer) != sha256.Size {
		return fmt.Errorf("issuer is named by %d bytes, want a SHA-256", len(i.Issuer))
	}
	i.Transaction = i.Transaction[:min(len(i.Transaction), maxClientText)]
	i.Identity = i.Identity[:min(len(i.Identity), maxClientText)]
	if _, err := c.get(key(prefixTransaction, i.Serial)); !errors.Is(err, ErrNotFound) {
		return orError(err, ErrSerial)
	}
	if err := c.checkNewest(i); err != nil {
		return err
	}
	if err := c.checkSuperseded(i.Supersedes); err != nil {
		return err
	}
	if err := c.useKey(i); err != nil {
		return err
	}
	if err := c.checkActive(i); err != nil {
		return err
	}
	if i.Replay != (ReplayKey{}) {
		if err := c.checkReplay(i.Replay); err != nil {
			return err
		}
		c.set(hashKey(prefixReplay, i.Replay), []byte(i.Serial))
		c.expireReplay(i.Replay, i.Begun)
	}
	if err := c.takeGuards(i.Key, i.Serial, i.Guards, i.Begun); err != nil {
		return err
	}
	c.set(hashKey(prefixNewest, i.Key), []byte(i.Serial))
	c.set(key(prefixOpen, i.Serial), nil)
	c.set(identityKey(i), []byte(i.Profile))
	return c.setJSON(key(prefixTransaction, i.Serial), Transaction{Intent: i, State: Begun})
}

// checkSuperseded refuses to renew what is not, or no longer, a good certificate.
func (c *change) checkSuperseded(serial string) error {
	if serial == "" {
		return nil
	}
	t, err := readTransaction(c.get, serial)
	if err != nil {
		return err
	}
	if t.State != Issued {
		return ErrNotFound
	}
	if t.Revoked() {
		return ErrRevoked
	}
	return nil
}

// checkNewest refuses unless the newest transaction of the key is the one the caller saw, decided.
func (c *change) checkNewest(i Intent) error {
	newest, err := c.get(hashKey(prefixNewest, i.Key))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if string(newest) != i.After {
		return ErrConflict
	}
	if len(newest) == 0 {
		return nil
	}
	t, err := readTransaction(c.get, i.After)
	if err != nil {
		return err
	}
	if t.State == Begun {
		return ErrConflict
	}
	return nil
}

// checkReplay refuses a message whose earlier transaction issued or is under way.
func (c *change) checkReplay(r ReplayKey) error {
	serial, err := c.get(hashKey(prefixReplay, r))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	t, err := readTransaction(c.get, string(serial))
	if err != nil {
		return err
	}
	if t.State == Issued || t.State == Begun {
		return ErrReplay
	}
	return nil
}

// Finish records the certificate (DER) of a begun transaction with its audit record. Only after it
// returned nil may the certificate be handed out; where the intent says so, only after Deliver did.
func (s *Store) Finish(serial string, certificate []byte, decided time.Time, rec audit.Record) error {
	return s.decide(serial, Transaction{State: Issued, Certificate: certificate, Decided: decided}, rec)
}

// Fail records that a begun transaction came to nothing before anything was signed.
func (s *Store) Fail(serial string, decided time.Time, rec audit.Record) error {
	return s.decide(serial, Transaction{State: Failed, Decided: decided}, rec)
}

// Lose records that a begun transaction has no certificate to hand out although a signature may
// exist: its serial is burnt, and listed among the revoked ones.
func (s *Store) Lose(serial string, decided time.Time, rec audit.Record) error {
	return s.decide(serial, Transaction{State: Lost, Decided: decided}, rec)
}

func (s *Store) decide(serial string, to Transaction, rec audit.Record) error {
	err := s.do(true, func(c *change) error { return c.decide(serial, to, rec) })
	if err != nil {
		return fmt.Errorf("recording transaction %.40s as %s: %w", serial, to.State, err)
	}
	return nil
}

func (c *change) decide(serial string, to Transaction, rec audit.Record) error {
	t, err := readTransaction(c.get, serial)
	if err != nil {
		return orError(err, ErrDecided)
	}
	if t.State != Begun {
		return ErrDecided
	}
	t.State, t.Decided, t.Certificate = to.State, to.Decided, to.Certificate
	c.delete(key(prefixOpen, serial))
	c.record(rec)
	if t.State == Issued {
		return c.issue(t, rec)
	}
	c.delete(identityKey(t.Intent))
	if r, ok := t.listed(); ok {
		if err := c.list(t.Issuer, r); err != nil {
			return err
		}
	}
	if t.Held != "" {
		if err := c.holdAgain(t.Held); err != nil {
			return err
		}
	}
	return c.setJSON(key(prefixTransaction, serial), t)
}

// issue records a certificate, and what it means for the one it renews.
func (c *change) issue(t Transaction, rec audit.Record) error {
	t.Withheld = t.Withhold
	c.set(issuedKey(t), nil)
	if err := c.setJSON(key(prefixTransaction, t.Serial), t); err != nil {
		return err
	}
	if t.Withheld {
		return nil
	}
	return c.supersede(t, t.Decided, rec)
}

// supersede has what t renews superseded by it, and revoked for that where the intent says so: for good also
// where it was put on hold meanwhile. rec is the record of what brought it about.
func (c *change) supersede(t Transaction, at time.Time, rec audit.Record) error {
	if t.Supersedes == "" {
		return nil
	}
	old, err := c.issued(t.Supersedes)
	if err != nil {
		return err
	}
	old.SupersededBy = t.Serial
	if t.RevokeSuperseded && (!old.Revoked() || old.Reason == reasonHold) {
		if !old.Revoked() {
			old.RevokedAt = at
		}
		old.Reason = reasonSuperseded
		if err := c.list(old.Issuer, old.revocation()); err != nil {
			return err
		}
		c.record(audit.Record{
			Time: rec.Time, TimeSource: rec.TimeSource, Action: audit.CertificateRevoked, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess,
			Profile: old.Profile, Identity: old.Identity, Serial: old.Serial, Reason: "superseded: renewed by " + t.Serial,
		})
	}
	return c.setJSON(key(prefixTransaction, old.Serial), old)
}

// Deliver lets a certificate that was held back be handed out: ErrNotFound where there is none of that
// serial, ErrDecided where it is not held back.
func (s *Store) Deliver(serial string, at time.Time, rec audit.Record) error {
	err := s.do(true, func(c *change) error {
		t, err := c.issued(serial)
		if err != nil {
			return err
		}
		if !t.Withheld {
			return ErrDecided
		}
		t.Withheld = false
		if err := c.setJSON(key(prefixTransaction, serial), t); err != nil {
			return err
		}
		c.record(rec)
		return c.supersede(t, at, rec)
	})
	if err != nil {
		return fmt.Errorf("recording certificate %.40s as delivered: %w", serial, err)
	}
	return nil
}

// Recover marks every transaction that an earlier process began and did not decide as lost, with
// the audit record that record makes of it, all in one batch, and returns how many there were. It
// has to be called before the first Begin; further calls find nothing.
func (s *Store) Recover(decided time.Time, record func(Transaction) audit.Record) (int, error) {
	n := 0
	err := s.do(true, func(c *change) error {
		for _, serial := range c.head.leftOpen {
			t, err := readTransaction(c.get, serial)
			if err != nil {
				return err
			}
			if err := c.decide(serial, Transaction{State: Lost, Decided: decided}, record(t)); err != nil {
				return err
			}
		}
		n, c.head.leftOpen = len(c.head.leftOpen), nil
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("recovering transactions: %w", err)
	}
	return n, nil
}

// Transaction returns the transaction with that serial, or ErrNotFound.
func (s *Store) Transaction(serial string) (Transaction, error) {
	return s.find(func(*pebble.DB) (string, error) { return serial, nil })
}

// Newest returns the newest transaction of a key, or ErrNotFound.
func (s *Store) Newest(k TransactionKey) (Transaction, error) {
	return s.find(func(db *pebble.DB) (string, error) {
		b, err := s.get(db, hashKey(prefixNewest, k))
		return string(b), err
	})
}

// Replayed returns the newest transaction begun by that very message, or ErrNotFound.
func (s *Store) Replayed(k ReplayKey) (Transaction, error) {
	return s.find(func(db *pebble.DB) (string, error) {
		b, err := s.get(db, hashKey(prefixReplay, k))
		return string(b), err
	})
}

func (s *Store) find(serialOf func(*pebble.DB) (string, error)) (Transaction, error) {
	var t Transaction
	err := s.read(func(db *pebble.DB) error {
		serial, err := serialOf(db)
		if err != nil {
			return err
		}
		t, err = readTransaction(func(k []byte) ([]byte, error) { return s.get(db, k) }, serial)
		return err
	})
	if err != nil {
		return Transaction{}, fmt.Errorf("reading transaction: %w", err)
	}
	return t, nil
}

func readTransaction(get func([]byte) ([]byte, error), serial string) (Transaction, error) {
	var t Transaction
	if checkSerial(serial) != nil {
		return t, ErrNotFound
	}
	b, err := get(key(prefixTransaction, serial))
	if err != nil {
		return t, err
	}
	if err := decode(b, &t); err != nil {
		return t, err
	}
	if t.Serial != serial {
		return t, fmt.Errorf("%w: transaction %s says it is %.40q", ErrDamaged, serial, t.Serial)
	}
	return t, nil
}

// orError is err, or instead where err is nil or only says that nothing was found.
func orError(err, instead error) error {
	if err == nil || errors.Is(err, ErrNotFound) {
		return instead
	}
	return err
}
