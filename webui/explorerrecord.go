package webui

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
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
	Key        string   `json:"key"`            // that verifies the checkpoint, as signet audit verify takes it
}

// proofOf proves that the log has a record, under a checkpoint over it.
func (c *console) proofOf(ctx context.Context, index uint64) (Proof, error) {
	signed, head, err := c.checkpointOver(ctx, index+1)
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Index: index, Size: head.Size, Checkpoint: string(signed), Key: c.cfg.Audit.Key()}
	leaf, hashes, err := c.cfg.Store.InclusionProof(index, head.Size)
	if err != nil {
		return Proof{}, err
	}
	leaves, err := c.cfg.Store.Leaves(index, index+1)
	if err != nil {
		return Proof{}, err
	}
	if len(leaves) == 1 {
		p.Leaf = string(leaves[0])
	}
	p.LeafHash, p.Hashes = leaf[:], orEmpty(hashes)
	return p, nil
}

// proofStep is one step of verifying a proof.
type proofStep struct {
	With   string // hex of the hash it is combined with
	IsLeft bool   // that hash comes first
	From   uint64 // the result is over these records
	To     uint64
	Hash   string // hex of the result
}

// verification is a proof verified step by step, as anybody can do who has it.
type verification struct {
	Proof
	Head      audit.Checkpoint
	LeafHash  string // hex, of the leaf as it is; of the proof where the record was removed
	IsRemoved bool
	Steps     []proofStep
	Root      string // hex, of the checkpoint

	IsLeaf   bool // the leaf has the hash that the tree has for it
	IsRoot   bool // the steps lead to the checkpoint's root
	IsSigned bool // the box's audit key signed the checkpoint
}

// Holds says that all of it is right.
func (v *verification) Holds() bool { return v.IsLeaf && v.IsRoot && v.IsSigned }

// verify goes the way of RFC 9162 §2.1.3.2 from the leaf to the root, and keeps what it sees.
func (p Proof) verify() (*verification, error) {
	head, err := audit.PeekCheckpoint([]byte(p.Checkpoint))
	if err != nil {
		return nil, err
	}
	v := &verification{Proof: p, Head: head, Root: hex.EncodeToString(head.Root[:]), IsRemoved: p.Leaf == ""}
	hash := p.start()
	v.IsLeaf = bytes.Equal(hash, p.LeafHash)
	v.LeafHash = hex.EncodeToString(hash)
	// At each level a node is at place, and the last one at last.
	place, last, width := p.Index, p.Size-1, uint64(1)
	for _, with := range p.Hashes {
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
		v.Steps = append(v.Steps, proofStep{
			With: hex.EncodeToString(with), IsLeft: isLeft, From: place * width, To: min((place+1)*width, p.Size) - 1, Hash: hex.EncodeToString(hash),
		})
	}
	v.IsRoot = last == 0 && bytes.Equal(hash, head.Root[:])
	key, err := audit.NewVerifier(p.Key)
	if err != nil {
		return nil, err
	}
	_, err = audit.OpenCheckpoint([]byte(p.Checkpoint), key)
	v.IsSigned = err == nil
	return v, nil
}

// start is where the proof begins: the hash of the leaf, or what the tree has for one that was removed.
func (p Proof) start() []byte {
	if p.Leaf == "" {
		return p.LeafHash
	}
	sum := sha256.Sum256(append([]byte{0}, p.Leaf...))
	return sum[:]
}

// recordView is one record of the audit log.
type recordView struct {
	frame
	Index     uint64
	Entry     *entry // nil where retention removed it
	Words     actionWords
	Outcome   string // what it means
	Leaf      string
	Removed   store.Removal
	Size      uint64
	IsDamaged bool          // what is on the disk is not a record, or not of its hash
	HasSerial bool          // the box has a certificate or a burnt serial to show
	Checked   *verification // nil: nobody asked
}

// Newer and Older are the records beside it, where there are.
func (v *recordView) Newer() uint64  { return v.Index + 1 }
func (v *recordView) Older() uint64  { return v.Index - 1 }
func (v *recordView) HasOlder() bool { return v.Index > v.Removed.Before }
func (v *recordView) HasNewer() bool { return v.Index+1 < v.Size }

// indexOf reads the index in a path.
func (c *console) indexOf(r *http.Request) (index, size uint64, err error) {
	index, err = strconv.ParseUint(r.PathValue("index"), 10, 64)
	if err != nil {
		return 0, 0, &inputError{"index", "the index is not a number", "write it as the audit log shows it"}
	}
	if size, _, err = c.cfg.Store.LogHead(); err == nil && index >= size {
		err = store.ErrOutsideTree
	}
	return index, size, err
}

func (c *console) recordPage(w http.ResponseWriter, r *http.Request, who principal) error {
	index, size, err := c.indexOf(r)
	if err != nil {
		return err
	}
	v := &recordView{frame: c.frame(r, who, "/audit", fmt.Sprintf("Record %d", index)), Index: index, Size: size, Removed: c.cfg.Store.Removed()}
	found, err := c.cfg.Store.Records(index+1, 1)
	if v.IsDamaged = errors.Is(err, store.ErrDamaged); err != nil && !v.IsDamaged {
		return err
	}
	if len(found) == 1 && found[0].Index == index {
		v.Entry, v.Words, v.Leaf = &entry{found[0]}, wordsOf(found[0].Action), string(audit.Leaf(found[0]))
		for _, o := range outcomeWords() {
			if o.Outcome == found[0].Outcome {
				v.Outcome = o.Meaning
			}
		}
		_, err := c.cfg.Store.Transaction(found[0].Serial)
		if v.HasSerial = err == nil; err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if v.Do == "verify" {
		proof, err := c.proofOf(r.Context(), index)
		if err != nil {
			return err
		}
		if v.Checked, err = proof.verify(); err != nil {
			return err
		}
	}
	return c.page(w, "record", v)
}

// proofFile sends what proves a record to whoever keeps it.
func (c *console) proofFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	index, _, err := c.indexOf(r)
	if err != nil {
		return err
	}
	proof, err := c.proofOf(r.Context(), index)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(proof); err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="signet-audit-%d-proof.json"`, index))
	write(w, http.StatusOK, mediaJSON, b.Bytes())
	return nil
}
