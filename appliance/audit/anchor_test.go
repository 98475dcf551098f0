package audit

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// anchored is the log's export with checkpoints over sizes, and what each says of the
// counter; 0: nothing.
func (l *logOf) anchored(t testing.TB, sizes []int, at []uint64) [][]byte {
	t.Helper()
	lines := l.export(t, sizes...)
	n := sizes[len(sizes)-1]
	for i, size := range sizes {
		c, err := PeekCheckpoint(l.checkpoint(t, size))
		if err != nil {
			t.Fatal(err)
		}
		c.Anchor = at[i]
		signed, err := SignCheckpoint(c, l.signer)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(sizes)-1 {
			lines[n+i] = EarlierLine(signed)
		} else {
			lines[len(lines)-1] = CheckpointLine(signed)
		}
	}
	return lines
}

func TestAnchorNeverFalls(t *testing.T) {
	l := newLog(t, 300)
	sizes := []int{10, 20, 257, 300}
	for _, c := range []struct {
		at   []uint64
		want error
	}{
		{[]uint64{0, 0, 0, 0}, nil},
		{[]uint64{0, 7, 7, 9}, nil},
		{[]uint64{1, 2, 3, 1 << 63}, nil},
		{[]uint64{5, 0, 5, 0}, nil}, // firmware before it had a counter ran in between
		{[]uint64{5, 6, 7, 6}, ErrRolledBack},
		{[]uint64{5, 4, 7, 8}, ErrRolledBack},
		{[]uint64{5, 0, 4, 0}, ErrRolledBack},
	} {
		report, err := l.verify(l.anchored(t, sizes, c.at))
		if !errors.Is(err, c.want) || c.want == nil && (err != nil || report.Anchor != c.at[3]) {
			t.Errorf("%d: %+v, %v", c.at, report, err)
		}
	}
}

func TestAnchorLine(t *testing.T) {
	l := newLog(t, 3)
	c, err := OpenCheckpoint(l.checkpoint(t, 3), l.key)
	if err != nil {
		t.Fatal(err)
	}
	plain := c.Text()
	c.Anchor = 18446744073709551615
	if want := plain + "anchor 18446744073709551615\n"; c.Text() != want {
		t.Errorf("text %q, want %q", c.Text(), want)
	}
	signed, err := SignCheckpoint(c, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := OpenCheckpoint(signed, l.key); err != nil || back != c {
		t.Errorf("%+v, %v, want %+v", back, err, c)
	}
	if _, err := OpenCheckpoint(bytes.Replace(signed, []byte("5\n\n"), []byte("4\n\n"), 1), l.key); !errors.Is(err, ErrSignature) {
		t.Errorf("changed anchor: %v", err)
	}
	for _, bad := range []string{"anchor \n", "anchor 0\n", "anchor 07\n", "anchor +7\n", "anchor 7 \n", "anchor 18446744073709551616\n", "anchor 7\nanchor 8\n"} {
		b, err := note.Sign(&note.Note{Text: plain + bad}, l.signer)
		if err != nil {
			t.Fatal(err)
		}
		if x, err := OpenCheckpoint(b, l.key); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%q: %+v, %v", strings.TrimSpace(bad), x, err)
		}
	}
	other, err := note.Sign(&note.Note{Text: plain + "somebody else's\nanchor 7\n"}, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	if x, err := OpenCheckpoint(other, l.key); err != nil || x.Anchor != 7 {
		t.Errorf("after another line: %+v, %v", x, err)
	}
}
