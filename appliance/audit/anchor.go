package audit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// anchorLine begins the line of a checkpoint that says where the box's state-rollback counter stood: "anchor",
// a space, and a number in decimal (C2SP tlog-checkpoint, "extension lines").
const anchorLine = "anchor "

// ErrRolledBack: the counter in the box's TPM stood lower at a checkpoint than at one over fewer records. It
// counts up only: the box signed the later one with an older disk.
var ErrRolledBack = errors.New("the log went on from an older state of the box")

// parseAnchor returns what a checkpoint's lines after the third say of the counter, 0 where they say
// nothing.
func parseAnchor(extensions []string) (anchor uint64, err error) {
	for _, l := range extensions {
		text, ok := strings.CutPrefix(l, anchorLine)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != text || anchor != 0 {
			return 0, fmt.Errorf("%w: line %.40q", ErrCheckpoint, l)
		}
		anchor = n
	}
	return anchor, nil
}

// judgeAnchors refuses checkpoints between which the counter fell. One that does not name it says nothing:
// the box signed it before it had a counter.
func (v *verification) judgeAnchors() error {
	var last Checkpoint
	check := func(c Checkpoint) error {
		if c.Anchor == 0 {
			return nil
		}
		if c.Anchor < last.Anchor {
			return fmt.Errorf("%w: its counter stood at %d with %d records and at %d with %d", ErrRolledBack, last.Anchor, last.Size, c.Anchor, c.Size)
		}
		last = c
		return nil
	}
	for _, c := range v.earlier {
		if err := check(c.Checkpoint); err != nil {
			return err
		}
	}
	return check(v.signed)
}
