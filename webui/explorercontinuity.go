package webui

import (
	"context"
	"errors"

	"signet.internal/appliance/audit"
)

// continuity says whether the log still continues a checkpoint that somebody kept of it.
type continuity struct {
	Text  string // as pasted; "": nobody asked
	Older audit.Checkpoint
	Now   audit.Checkpoint // zero where there was nothing to compare

	Holds bool
	Wrong *Problem // it is no checkpoint of this box
	// Where the log does not continue it, one of:
	IsForked, IsShrunk, IsRolledBack bool
}

// errCheckpoint and errForeign say what about a pasted checkpoint leaves nothing to compare.
var (
	errCheckpoint = &inputError{"checkpoint", "this is no signed checkpoint", "paste all of it, from the line with the log’s name to the one that begins with a dash, as Checkpoint on this page saved it"}
	errForeign    = &inputError{"checkpoint", "this box’s audit key did not sign this checkpoint", "use one of this box, unchanged to the last character; if it says it is, somebody changed it or the box has another key than before"}
)

// continuityOf holds the log against a pasted checkpoint by a proof from its own tree, as anybody
// can who asks the API for one.
func (c *console) continuityOf(ctx context.Context, pasted string) (continuity, error) {
	v := continuity{Text: pasted}
	if pasted == "" {
		return v, nil
	}
	key, err := audit.NewVerifier(c.cfg.Audit.Key())
	if err != nil {
		return v, err
	}
	v.Older, err = audit.OpenPasted(pasted, key)
	switch {
	case errors.Is(err, audit.ErrSignature):
		p, _ := problemOf(errForeign)
		v.Wrong = &p
		return v, nil
	case err != nil:
		p, _ := problemOf(errCheckpoint)
		v.Wrong = &p
		return v, nil
	}
	_, v.Now, err = c.checkpointOver(ctx, 0) // one over more than there is now is not waited for
	if err != nil {
		return v, err
	}
	var hashes [][]byte
	if 0 < v.Older.Size && v.Older.Size <= v.Now.Size {
		if hashes, err = c.cfg.Store.ConsistencyProof(v.Older.Size, v.Now.Size); err != nil {
			return v, err
		}
	}
	err = v.Now.Continues(v.Older, hashes)
	v.Holds, v.IsShrunk, v.IsRolledBack = err == nil, errors.Is(err, audit.ErrShrunk), errors.Is(err, audit.ErrRolledBack)
	v.IsForked = !v.Holds && !v.IsShrunk && !v.IsRolledBack
	return v, nil
}
