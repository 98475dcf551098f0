package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// fork is a log under the same key whose record i and all after it are others.
func (l *logOf) fork(i int) *logOf {
	other := &logOf{signer: l.signer, key: l.key, leaves: append([][]byte{}, l.leaves...)}
	for n := i; n < len(other.leaves); n++ {
		other.leaves[n] = bytes.Replace(other.leaves[n], []byte("device-"), []byte("forged-"), 1)
	}
	return other
}

// opened is the log's checkpoint over n records, with its counter.
func (l *logOf) opened(t testing.TB, n int, anchor uint64) Checkpoint {
	t.Helper()
	c, err := OpenCheckpoint(l.checkpoint(t, n), l.key)
	if err != nil {
		t.Fatal(err)
	}
	c.Anchor = anchor
	return c
}

// consistency is PROOF(m, D[n]) of RFC 6962 §2.1.2, word for word.
func consistency(m int, leaves [][]byte) [][]byte { return subproof(m, leaves, true) }

func subproof(m int, leaves [][]byte, isWhole bool) [][]byte {
	if m == len(leaves) {
		if isWhole {
			return nil
		}
		return [][]byte{treeOf(leaves)}
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	if m <= k {
		return append(subproof(m, leaves[:k], isWhole), treeOf(leaves[k:]))
	}
	return append(subproof(m-k, leaves[k:], false), treeOf(leaves[:k]))
}

// TestContinues: a checkpoint is the continuation of every earlier one of its log, and of none of another.
func TestContinues(t *testing.T) {
	l := newLog(t, 33)
	stranger := l.fork(4)
	for to := 1; to <= 33; to++ {
		now := l.opened(t, to, 3)
		for from := range to + 1 {
			var hashes [][]byte
			if from > 0 {
				hashes = consistency(from, l.leaves[:to])
			}
			if err := now.Continues(l.opened(t, from, 2), hashes); err != nil {
				t.Errorf("%d to %d: %v", from, to, err)
			}
			if err := now.Continues(stranger.opened(t, from, 2), hashes); (err == nil) != (from <= 4) || err != nil && !errors.Is(err, ErrForked) {
				t.Errorf("another log, %d to %d: %v", from, to, err)
			}
		}
		if err := now.Continues(l.opened(t, to, 4), nil); !errors.Is(err, ErrRolledBack) {
			t.Errorf("%d records, the counter fell: %v", to, err)
		}
		if err := l.opened(t, to, 0).Continues(l.opened(t, to, 4), nil); !errors.Is(err, ErrRolledBack) {
			t.Errorf("%d records, no counter any more: %v", to, err)
		}
		if err := now.Continues(l.opened(t, to, 0), nil); err != nil {
			t.Errorf("%d records, no counter before: %v", to, err)
		}
	}
	if err := l.opened(t, 20, 3).Continues(l.opened(t, 21, 3), nil); !errors.Is(err, ErrShrunk) {
		t.Errorf("from 21 to 20: %v", err)
	}
	wrong := l.opened(t, 0, 0)
	wrong.Root[0] ^= 1
	if err := l.opened(t, 20, 0).Continues(wrong, nil); !errors.Is(err, ErrForked) {
		t.Errorf("another nothing: %v", err)
	}
}

// TestVerifySince: the same of exports, whole and without their first records.
func TestVerifySince(t *testing.T) {
	l := newLog(t, 600)
	l.telling(590, 300)
	whole := l.export(t, 100, 600)
	stranger := l.fork(257)
	for name, export := range map[string][][]byte{"whole": whole, "removed": removed(whole, 300)} {
		at := bytes.NewReader(bytes.Join(export, nil))
		for _, n := range []int{0, 1, 100, 255, 256, 257, 258, 299, 300, 301, 512, 599, 600} {
			report, err := VerifySince(at, l.key, l.opened(t, n, 0))
			if err != nil || report.Continues == nil || *report.Continues != uint64(n) || report.Records != 600 {
				t.Errorf("%s since %d: %v, %+v", name, n, err, report)
			}
			if _, err := VerifySince(at, l.key, stranger.opened(t, n, 0)); (err == nil) != (n <= 257) || err != nil && !errors.Is(err, ErrForked) {
				t.Errorf("%s since %d of another log: %v", name, n, err)
			}
		}
		longer := l.opened(t, 600, 0)
		longer.Size++
		if _, err := VerifySince(at, l.key, longer); !errors.Is(err, ErrShrunk) {
			t.Errorf("%s since 601: %v", name, err)
		}
		wrong := l.opened(t, 0, 0)
		wrong.Root[0] ^= 1
		if _, err := VerifySince(at, l.key, wrong); !errors.Is(err, ErrForked) {
			t.Errorf("%s since another nothing: %v", name, err)
		}
	}
	anchored := bytes.NewReader(bytes.Join(l.anchored(t, []int{100, 600}, []uint64{4, 5}), nil))
	if _, err := VerifySince(anchored, l.key, l.opened(t, 200, 6)); !errors.Is(err, ErrRolledBack) {
		t.Errorf("since a higher counter: %v", err)
	}
	if _, err := VerifySince(anchored, l.key, l.opened(t, 200, 5)); err != nil {
		t.Errorf("since the same counter: %v", err)
	}
	// What does not verify by itself continues nothing.
	bad := append([][]byte{}, whole...)
	bad[3] = stranger.fork(0).leaves[3]
	bad[3] = append(bytes.Clone(bad[3]), '\n')
	var record *BadRecord
	if _, err := VerifySince(bytes.NewReader(bytes.Join(bad, nil)), l.key, l.opened(t, 2, 0)); !errors.As(err, &record) {
		t.Errorf("a changed export: %v", err)
	}
	if report, err := Verify(bytes.NewReader(bytes.Join(whole, nil)), l.key); err != nil || report.Continues != nil {
		t.Errorf("without an older one: %v, %+v", err, report)
	}
}

// TestOpenOlder: whatever somebody keeps of a log has its checkpoint.
func TestOpenOlder(t *testing.T) {
	l, stranger := newLog(t, 9), newLog(t, 9)
	proof, err := json.Marshal(l.proof(t, 2, 7))
	if err != nil {
		t.Fatal(err)
	}
	note := string(l.checkpoint(t, 7))
	export := string(bytes.Join(l.export(t, 3, 7), nil))
	want := l.opened(t, 7, 0)
	for name, kept := range map[string]string{
		"checkpoint": note, "through a form": strings.ReplaceAll(note, "\n", "\r\n"), "with blanks": "\n  " + note + "\n\n", "without its end": strings.TrimSpace(note),
		"proof": string(proof), "export": export,
	} {
		if got, err := OpenOlder(strings.NewReader(kept), l.key); err != nil || got != want {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
		if _, err := OpenOlder(strings.NewReader(kept), stranger.key); !errors.Is(err, ErrSignature) {
			t.Errorf("%s, another's key: %v", name, err)
		}
	}
	for name, test := range map[string]struct {
		kept string
		want error
	}{
		"nothing":          {"", ErrCheckpoint},
		"another text":     {"# Signet\n", ErrCheckpoint},
		"edited":           {strings.Replace(note, "\n7\n", "\n6\n", 1), ErrSignature},
		"a changed proof":  {strings.Replace(string(proof), "success", "refused", 1), ErrProof},
		"a cut export":     {export[:len(export)-20], ErrTruncated},
		"JSON of somebody": {"{}\n", ErrNoExport},
	} {
		if _, err := OpenOlder(strings.NewReader(test.kept), l.key); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}
