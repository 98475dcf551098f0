package webui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// proofOf proves that the log has a record, under a checkpoint over it.
func (c *console) proofOf(ctx context.Context, index uint64) (audit.Proof, error) {
	signed, head, err := c.checkpointOver(ctx, index+1)
	if err != nil {
		return audit.Proof{}, err
	}
	p := audit.Proof{Index: index, Size: head.Size, Checkpoint: string(signed), Key: c.cfg.Audit.Key()}
	leaf, hashes, err := c.cfg.Store.InclusionProof(index, head.Size)
	if err != nil {
		return audit.Proof{}, err
	}
	leaves, err := c.cfg.Store.Leaves(index, index+1)
	if err != nil {
		return audit.Proof{}, err
	}
	if len(leaves) == 1 {
		p.Leaf = string(leaves[0])
	}
	p.LeafHash, p.Hashes = leaf[:], orEmpty(hashes)
	return p, nil
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
	IsDamaged bool           // what is on the disk is not a record, or not of its hash
	HasSerial bool           // the box has a certificate or a burnt serial to show
	Checked   *audit.Checked // nil: nobody asked
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
	record, err := c.cfg.Store.Record(index)
	if v.IsDamaged = errors.Is(err, store.ErrDamaged); err != nil && !v.IsDamaged && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil {
		v.Entry, v.Words, v.Leaf = &entry{record}, wordsOf(record.Action), string(audit.Leaf(record))
		for _, o := range outcomeWords() {
			if o.Outcome == record.Outcome {
				v.Outcome = o.Meaning
			}
		}
		_, err := c.cfg.Store.Transaction(record.Serial)
		if v.HasSerial = err == nil; err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if v.Do == "verify" {
		proof, err := c.proofOf(r.Context(), index)
		if err != nil {
			return err
		}
		key, err := audit.NewVerifier(proof.Key)
		if err != nil {
			return err
		}
		if v.Checked, err = proof.Check(key); err != nil {
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
