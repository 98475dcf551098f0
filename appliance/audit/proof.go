package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// MaxProof bounds the JSON of a proof, in bytes: a leaf, 64 hashes and a signed checkpoint fit.
const MaxProof = 4*MaxNote + 4*MaxLeaf

// Errors of proofs.
var (
	// ErrNoProof: the bytes are not the proof of a record.
	ErrNoProof = errors.New("not the proof of a record")
	// ErrProof: the proof does not show what it says.
	ErrProof = errors.New("the record is not proven")
)

// Proof is everything that shows, without the box, that its audit log has a record: the record's leaf, its
// place in the tree, and the head of the tree that the box signed.
type Proof struct {
	Index      uint64   `json:"index"`
	Size       uint64   `json:"size"`           // records under the checkpoint
	Leaf       string   `json:"leaf,omitempty"` // the record's bytes; "" where retention removed it
	LeafHash   []byte   `json:"leaf_hash"`      // RFC 6962 §2.1: SHA-256 over 0x00 and the leaf
	Hashes     [][]byte `json:"hashes"`         // RFC 6962 §2.1.1 audit path, from the leaf up
	Checkpoint string   `json:"checkpoint"`     // C2SP tlog-checkpoint, a signed note
	Key        string   `json:"key"`            // as the box says; whoever verifies has it from elsewhere
}

// ReadProof reads the JSON of a proof: ErrNoProof where it is something else, such as an export.
func ReadProof(r io.Reader) (Proof, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxProof+1))
	if err != nil {
		return Proof{}, fmt.Errorf("reading proof: %w", err)
	}
	if len(text) > MaxProof {
		return Proof{}, ErrNoProof
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var p Proof
	if err := dec.Decode(&p); err != nil {
		return Proof{}, fmt.Errorf("%w: %v", ErrNoProof, err)
	}
	if _, err := dec.Token(); err != io.EOF || p.Checkpoint == "" || len(p.LeafHash) == 0 {
		return Proof{}, ErrNoProof
	}
	return p, nil
}

// Step is one step of a proof: a hash and its neighbour in the tree make that of more records.
type Step struct {
	With   []byte // the neighbour
	IsLeft bool   // which comes first
	From   uint64 // the result is over these records
	To     uint64
	Hash   []byte // the result
}

// Checked is a proof gone through step by step, with what was seen. Nothing of it is proven unless
// [Checked.Err] is nil.
type Checked struct {
	Proof
	Head   Checkpoint // as it says, even where its signature is wrong
	Record Record     // zero where IsRemoved, or where the leaf is none
	Start  []byte     // hash of the leaf as it is; of the proof where the record was removed
	Steps  []Step

	IsRemoved bool // the proof is of the hash alone
	IsLeaf    bool // the leaf is a record of this place, and of the hash that the tree has for it
	IsRoot    bool // the steps lead to the checkpoint's root
	IsSigned  bool // the key signed the checkpoint
}

// Holds says that all of it is right.
func (c *Checked) Holds() bool { return c.IsLeaf && c.IsRoot && c.IsSigned }

// Err is nil where the log has the record, ErrSignature or ErrProof with the first step that is wrong.
func (c *Checked) Err() error {
	switch {
	case !c.IsSigned:
		return ErrSignature
	case !c.IsLeaf:
		return fmt.Errorf("%w: its bytes are not those of record %d in the log: leaf hash %x, not %x", ErrProof, c.Index, c.Start, c.LeafHash)
	case !c.IsRoot:
		return fmt.Errorf("%w: its hashes do not lead from record %d to the root that the box signed over %d records", ErrProof, c.Index, c.Head.Size)
	}
	return nil
}

// Check goes the way of RFC 9162 §2.1.3.2 from the leaf to the root of the checkpoint that key signed, and
// keeps what it sees: ErrCheckpoint where there is no way to see. What the proof says of its key is not
// believed.
func (p Proof) Check(key note.Verifier) (*Checked, error) {
	head, err := PeekCheckpoint([]byte(p.Checkpoint))
	if err != nil {
		return nil, err
	}
	c := &Checked{Proof: p, Head: head, Start: p.LeafHash, IsRemoved: p.Leaf == "", IsLeaf: true}
	if !c.IsRemoved {
		hash := LeafHash([]byte(p.Leaf))
		c.Start = hash[:]
		c.Record, err = Parse([]byte(p.Leaf))
		c.IsLeaf = err == nil && c.Record.Index == p.Index && bytes.Equal(c.Start, p.LeafHash)
	}
	c.climb()
	_, err = OpenCheckpoint([]byte(p.Checkpoint), key)
	c.IsSigned = err == nil
	return c, nil
}

// climb combines the hashes of the proof. The shape of the tree is that of the size that is signed.
func (c *Checked) climb() {
	isOdd := func(hash []byte) bool { return len(hash) != sha256.Size }
	if c.Index >= c.Head.Size || c.Size != c.Head.Size || slices.ContainsFunc(c.Hashes, isOdd) {
		return
	}
	// At each level a node is at place, and the last one at last.
	place, last, width := c.Index, c.Head.Size-1, uint64(1)
	hash := c.Start
	for _, with := range c.Hashes {
		if last == 0 {
			return // a hash more than the tree is high
		}
		isLeft := place%2 == 1 || place == last
		if isLeft {
			for place%2 == 0 && place != 0 {
				place, last, width = place/2, last/2, width*2
			}
			hash = rfc6962.DefaultHasher.HashChildren(with, hash)
		} else {
			hash = rfc6962.DefaultHasher.HashChildren(hash, with)
		}
		place, last, width = place/2, last/2, width*2
		c.Steps = append(c.Steps, Step{With: with, IsLeft: isLeft, From: place * width, To: min((place+1)*width, c.Head.Size) - 1, Hash: hash})
	}
	c.IsRoot = last == 0 && bytes.Equal(hash, c.Head.Root[:])
}

// Proven is what a verified proof shows.
type Proven struct {
	Origin   string  `json:"origin"`
	Index    uint64  `json:"index"`            // of the record
	Records  uint64  `json:"records"`          // under the checkpoint
	RootText string  `json:"root"`             // in base64, as the checkpoint has it
	LeafHash string  `json:"leaf_hash"`        // in hex
	Record   *Record `json:"record,omitempty"` // nil: retention had removed it, what is proven is its hash
	Anchor   uint64  `json:"anchor,omitempty"` // where the state-rollback counter stood; 0: not said
}

// Verify holds the proof against the key: ErrSignature, ErrProof, ErrCheckpoint, or nil with what it shows.
func (p Proof) Verify(key note.Verifier) (Proven, error) {
	c, err := p.Check(key)
	if err == nil {
		err = c.Err()
	}
	if err != nil {
		return Proven{}, err
	}
	out := Proven{Origin: c.Head.Origin, Index: p.Index, Records: c.Head.Size, LeafHash: hex.EncodeToString(c.Start),
		RootText: base64.StdEncoding.EncodeToString(c.Head.Root[:]), Anchor: c.Head.Anchor}
	if !c.IsRemoved {
		out.Record = &c.Record
	}
	return out, nil
}
