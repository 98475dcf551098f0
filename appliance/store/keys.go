package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Key layout. The first byte says what an entry is; the rest is its name.
//
//	m schema             layout version, one byte
//	m tree               size and root hash of the audit log's tree: 8 bytes big-endian, 32 bytes
//	m floor              clock floor: Unix milliseconds, 8 bytes big-endian
//	m identity           the box's own certificates: valueVersion, JSON
//	m anchor             where the state-rollback counter stands and goes: valueVersion, JSON
//	m older              that this was found to be an older state: valueVersion, JSON
//	m removed            which of the audit log's first records are gone: valueVersion, JSON
//	m running            how long the box has run, and how long the log was when: valueVersion, JSON
//	m cursor             how far the audit log was delivered elsewhere: valueVersion, JSON
//	a <index, 8 bytes>   audit record: valueVersion, leaf hash (32 bytes), leaf
//	s <level, 1 byte> <index, 8 bytes>  hash of a complete subtree of the log's tree, single records being level 0: 32 bytes
//	e <size, 8 bytes>    checkpoint over the log's first records: valueVersion, JSON
//	i <serial>           transaction: valueVersion, JSON
//	t <key, 32 bytes>    serial of the newest transaction with that TransactionKey
//	n <replay, 32 bytes> serial of the newest transaction begun by that very message
//	o <serial>           transaction is begun and not decided; empty value
//	h <id>               held request: valueVersion, JSON
//	w <id>               held request waits for a person; its profile
//	c <profile>          how many of the profile's requests wait: 8 bytes big-endian
//	b <source>           how many of the source's requests wait: 8 bytes big-endian
//	q <Unix milliseconds, 8 bytes> <id>  held request counts as denied from then on; empty value
//	y <key, 32 bytes>    id of the newest held request with that TransactionKey
//	l <poll, 32 bytes>   id of the newest held request with that PollKey
//	d <identity> 00 <end, Unix milliseconds, 8 bytes> <serial>  transaction is begun or issued; its profile
//	f <Unix milliseconds, 8 bytes> <serial>  certificate was issued then; empty value
//	p <public key, 32 bytes>  what is known of a key: valueVersion, JSON
//	r <issuer, 32 bytes><serial>  serial belongs on that issuer's CRL: valueVersion, JSON
//	v <issuer, 32 bytes> newest CRL of that issuer, without its bytes: valueVersion, JSON
//	u <name>             user: valueVersion, JSON
//	k <hash, 32 bytes>   API token: valueVersion, JSON
//	j <hash, 32 bytes>   passkey, by SHA-256 of its credential id: valueVersion, JSON
//	z <name>             replacement of a setting of the site: valueVersion, JSON
//
// Serials in keys are their lower-case hex.
const (
	prefixAudit       = 'a'
	prefixTree        = 's'
	prefixCheckpoint  = 'e'
	prefixTransaction = 'i'
	prefixNewest      = 't'
	prefixReplay      = 'n'
	prefixOpen        = 'o'
	prefixHeld        = 'h'
	prefixWaiting     = 'w'
	prefixCount       = 'c'
	prefixCountSource = 'b'
	prefixHeldUntil   = 'q'
	prefixHeldByKey   = 'y'
	prefixHeldByPoll  = 'l'
	prefixIdentity    = 'd'
	prefixIssued      = 'f'
	prefixKey         = 'p'
	prefixRevoked     = 'r'
	prefixCRL         = 'v'
	prefixUser        = 'u'
	prefixToken       = 'k'
	prefixPasskey     = 'j'
	prefixOverride    = 'z'
)

var (
	keySchema   = []byte("mschema")
	keyTree     = []byte("mtree")
	keyFloor    = []byte("mfloor")
	keyIdentity = []byte("midentity")
	keyAnchor   = []byte("manchor")
	keyOlder    = []byte("molder")
	keyRemoved  = []byte("mremoved")
	keyRunning  = []byte("mrunning")
	keyCursor   = []byte("mcursor")
)

// valueVersion heads every JSON and audit value.
const valueVersion = 1

// maxValue bounds what is read back as one value; the largest written is an identity with a few
// certificates per authority.
const maxValue = 1 << 20

func auditKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixAudit}, index)
}

func key(prefix byte, name string) []byte { return append([]byte{prefix}, name...) }

func hashKey(prefix byte, h [32]byte) []byte { return append([]byte{prefix}, h[:]...) }

// checkSerial accepts what pki writes: lower-case hex of 1 to 20 octets.
func checkSerial(serial string) error {
	b, err := hex.DecodeString(serial)
	if err != nil || len(b) == 0 || len(b) > 20 || hex.EncodeToString(b) != serial {
		return fmt.Errorf("serial %.50q is not lower-case hex of 1 to 20 octets", serial)
	}
	return nil
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	if len(b)+1 > maxValue {
		return nil, fmt.Errorf("encoding %T: %d bytes, more than %d", v, len(b)+1, maxValue)
	}
	return append([]byte{valueVersion}, b...), nil
}

func decode(b []byte, v any) error {
	if len(b) == 0 || b[0] != valueVersion {
		return fmt.Errorf("%w: %T of unknown version", ErrDamaged, v)
	}
	dec := json.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %T: %v", ErrDamaged, v, err)
	}
	return nil
}

// get returns a copy of a value, or ErrNotFound.
func (s *Store) get(from pebble.Reader, k []byte) (value []byte, err error) {
	v, closer, err := from.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if len(v) > maxValue {
		return nil, fmt.Errorf("%w: value of %d bytes", ErrDamaged, len(v))
	}
	return bytes.Clone(v), nil
}

// read runs f on durable state only.
func (s *Store) read(f func(*pebble.DB) error) error {
	s.durable.RLock()
	defer s.durable.RUnlock()
	if s.db == nil {
		return ErrClosed
	}
	if err := s.Failure(); err != nil {
		return err
	}
	return f(s.db)
}

// scan calls f for every entry of a prefix in order, with the key's name. Slices are valid during
// the call only.
func (s *Store) scan(prefix byte, f func(name, value []byte) error) error {
	return scanRange(s.db, []byte{prefix}, []byte{prefix + 1}, func(k, v []byte) error { return f(k[1:], v) })
}

// scanRange calls f for every entry from lower to before upper, with the whole key.
func scanRange(from pebble.Reader, lower, upper []byte, f func(key, value []byte) error) (err error) {
	it, err := from.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}

// last calls f for the last entry of a prefix, if there is one.
func (s *Store) last(prefix byte, f func(name, value []byte) error) (err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		return fmt.Errorf("reading store: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.Last() {
		return f(it.Key()[1:], it.Value())
	}
	return it.Error()
}
