package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// logOf is a log as the box keeps and signs it.
type logOf struct {
	signer note.Signer
	key    note.Verifier
	leaves [][]byte
}

func newLog(t testing.TB, n int) *logOf {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name, err := Origin("plant-7", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	l := &logOf{}
	if l.signer, err = NewSigner(name, key); err != nil {
		t.Fatal(err)
	}
	text, err := VerifierKey(name, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if l.key, err = NewVerifier(text); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		l.leaves = append(l.leaves, leafNumber(i))
	}
	return l
}

func leafNumber(i int) []byte {
	r := sample()
	r.Index, r.Identity = uint64(i), fmt.Sprintf("device-%d", i)
	r.Time = r.Time.Add(time.Duration(i) * time.Millisecond)
	return Leaf(r)
}

// checkpoint signs the first n leaves.
func (l *logOf) checkpoint(t testing.TB, n int) []byte {
	t.Helper()
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, leaf := range l.leaves[:n] {
		h := LeafHash(leaf)
		if err := r.Append(h[:], nil); err != nil {
			t.Fatal(err)
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := Checkpoint{Origin: l.signer.Name(), Size: uint64(n)}
	copy(c.Root[:], root)
	if n == 0 {
		c.Root = [32]byte(rfc6962.DefaultHasher.EmptyRoot())
	}
	signed, err := SignCheckpoint(c, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// export writes the log out with checkpoints over the sizes given; the last is the final one.
func (l *logOf) export(t testing.TB, sizes ...int) [][]byte {
	t.Helper()
	n := sizes[len(sizes)-1]
	var lines [][]byte
	for _, leaf := range l.leaves[:n] {
		lines = append(lines, append(bytes.Clone(leaf), '\n'))
	}
	for _, size := range sizes[:len(sizes)-1] {
		lines = append(lines, EarlierLine(l.checkpoint(t, size)))
	}
	for row := range slices.Chunk(l.leaves[:n], HashesPerLine) {
		var hashes [][32]byte
		for _, leaf := range row {
			hashes = append(hashes, LeafHash(leaf))
		}
		lines = append(lines, HashesLine(hashes))
	}
	return append(lines, CheckpointLine(l.checkpoint(t, n)))
}

func (l *logOf) verify(lines [][]byte) (Report, error) {
	return Verify(bytes.NewReader(bytes.Join(lines, nil)), l.key)
}

func TestExportVerifies(t *testing.T) {
	l := newLog(t, 1100)
	for _, sizes := range [][]int{{0}, {1}, {2}, {255}, {256}, {257}, {512}, {768}, {1024}, {1, 256, 300, 512, 513, 1100}, {700, 768, 769, 1024, 1025}} {
		n := sizes[len(sizes)-1]
		report, err := l.verify(l.export(t, sizes...))
		if err != nil {
			t.Errorf("%v: %v", sizes, err)
			continue
		}
		if report.Records != uint64(n) || report.Checkpoints != len(sizes)-1 || report.Origin != l.signer.Name() {
			t.Errorf("%v: %+v", sizes, report)
		}
		if n > 0 && (!report.First.Equal(sample().Time.Truncate(time.Millisecond)) || report.Last.Sub(report.First) != time.Duration(n-1)*time.Millisecond) {
			t.Errorf("%v: from %s to %s", sizes, report.First, report.Last)
		}
	}
}

// Whatever is done to one record, in whichever place, it is the one that is named.
func TestFirstBadRecordIsNamed(t *testing.T) {
	const n = 1100
	l := newLog(t, n)
	good := l.export(t, 300, 700, n)
	changes := map[string]func(lines [][]byte, i int) [][]byte{
		"changed": func(lines [][]byte, i int) [][]byte {
			lines[i] = bytes.Replace(lines[i], []byte("device-"), []byte("Device-"), 1)
			return lines
		},
		"one byte more": func(lines [][]byte, i int) [][]byte {
			lines[i] = append([]byte(" "), lines[i]...)
			return lines
		},
		"no JSON": func(lines [][]byte, i int) [][]byte {
			lines[i] = []byte("gone\n")
			return lines
		},
		"dropped": func(lines [][]byte, i int) [][]byte { return slices.Delete(lines, i, i+1) },
		"swapped": func(lines [][]byte, i int) [][]byte { lines[i], lines[i+1] = lines[i+1], lines[i]; return lines },
		"twice":   func(lines [][]byte, i int) [][]byte { return slices.Insert(lines, i, lines[i-1]) },
		"inserted": func(lines [][]byte, i int) [][]byte {
			return slices.Insert(lines, i, append(leafNumber(i), '\n'), []byte("{}\n"))[:len(lines)+2]
		},
		"the rest renumbered": func(lines [][]byte, i int) [][]byte {
			lines = slices.Delete(lines, i, i+1)
			for j := i; j < n-1; j++ {
				r, err := Parse(bytes.TrimSpace(lines[j]))
				if err != nil {
					panic(err)
				}
				r.Index--
				lines[j] = append(Leaf(r), '\n')
			}
			return lines
		},
	}
	for name, change := range changes {
		for _, i := range []int{1, 254, 255, 256, 257, 299, 300, 701, 1023, 1024, n - 2} {
			_, err := l.verify(change(slices.Clone(good), i))
			want := uint64(i)
			if name == "inserted" { // the record itself, and then one too many
				want++
			}
			var bad *BadRecord
			if !errors.As(err, &bad) || bad.Index != want || bad.Last != want {
				t.Errorf("%s at %d: %v, want record %d named", name, i, err, want)
			}
		}
	}
	// A second change further on does not hide the first.
	two := slices.Clone(good)
	two[40] = bytes.Replace(two[40], []byte("device-"), []byte("Device-"), 1)
	two = slices.Delete(two, 900, 901)
	var bad *BadRecord
	if _, err := l.verify(two); !errors.As(err, &bad) || bad.Index != 40 {
		t.Errorf("two changes: %v", err)
	}
}

func TestTruncationIsFound(t *testing.T) {
	const n = 600
	l := newLog(t, n)
	good := l.export(t, 300, n)
	for i := 0; i < len(good); i += 1 + i%7 {
		if _, err := l.verify(good[:i]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut before line %d: %v", i, err)
		}
	}
	whole := bytes.Join(good, nil)
	if _, err := Verify(bytes.NewReader(whole[:len(whole)-1]), l.key); !errors.Is(err, ErrTruncated) {
		t.Errorf("cut by one byte: %v", err)
	}
	for _, kept := range []int{0, 1, 255, 256, 300, n - 1} {
		var bad *BadRecord
		if _, err := l.verify(slices.Concat(good[:kept], good[n:])); !errors.As(err, &bad) || bad.Index != uint64(kept) || bad.Last != bad.Index {
			t.Errorf("%d records under the checkpoint over %d: %v", kept, n, err)
		}
		// With the leaf hashes cut to what is left.
		shorter := l.export(t, max(kept, 1))
		if kept == 0 {
			shorter = l.export(t, 0)
		}
		shorter = append(shorter[:len(shorter)-1], good[len(good)-1])
		if _, err := l.verify(shorter); !errors.As(err, &bad) || bad.Last > uint64(max(kept, 1)) {
			t.Errorf("%d records and their hashes under the checkpoint over %d: %v", kept, n, err)
		}
	}
}

// Who changes the leaf hashes too hides which record it is, but not that there is one, nor that it
// comes after the last checkpoint that still fits.
func TestForgedHashesAreNarrowed(t *testing.T) {
	const n = 1100
	l := newLog(t, n)
	sizes := []int{300, 512, 700, n}
	good := l.export(t, sizes...)
	for _, c := range []struct{ changed, from, to int }{{10, 0, 299}, {299, 0, 299}, {300, 300, 511}, {600, 512, 699}, {1000, 700, n - 1}} {
		forged := &logOf{signer: l.signer, key: l.key, leaves: slices.Clone(l.leaves)}
		forged.leaves[c.changed] = bytes.Replace(forged.leaves[c.changed], []byte("device-"), []byte("Device-"), 1)
		lines := forged.export(t, sizes...)
		for i, line := range good {
			if bytes.Contains(line, []byte(`checkpoint":`)) {
				lines[i] = line // these he cannot sign
			}
		}
		var bad *BadRecord
		if _, err := l.verify(lines); !errors.As(err, &bad) || bad.Index != uint64(c.from) || bad.Last != uint64(c.to) {
			t.Errorf("record %d: %v, want %d to %d", c.changed, err, c.from, c.to)
		}
		// The box itself signed the forged log: what it signed before convicts it.
		lines[len(lines)-1] = CheckpointLine(forged.checkpoint(t, n))
		_, err := l.verify(lines)
		if last := c.changed >= sizes[len(sizes)-2]; last {
			if err != nil { // nothing signed before covers it
				t.Errorf("record %d, signed: %v", c.changed, err)
			}
		} else if !errors.As(err, &bad) || bad.Index != uint64(c.from) || bad.Last != uint64(c.to) {
			t.Errorf("record %d, signed: %v, want %d to %d", c.changed, err, c.from, c.to)
		}
	}
}

func TestExportIsStrict(t *testing.T) {
	const n = 300
	l, other := newLog(t, n), newLog(t, n)
	good := l.export(t, 100, 200, n)
	earlier, hashes, last := n, n+2, len(good)-1
	replace := func(i int, line []byte) [][]byte {
		lines := slices.Clone(good)
		lines[i] = line
		return lines
	}
	for name, c := range map[string]struct {
		lines [][]byte
		want  error
	}{
		"another box's checkpoint":         {replace(last, CheckpointLine(other.checkpoint(t, n))), ErrSignature},
		"another box's earlier checkpoint": {replace(earlier, EarlierLine(other.checkpoint(t, 100))), ErrSignature},
		"earlier checkpoints swapped":      {func() [][]byte { x := slices.Clone(good); x[n], x[n+1] = x[n+1], x[n]; return x }(), ErrExport},
		"a hash changed":                   {replace(hashes, bytes.Replace(good[hashes], []byte("A"), []byte("B"), 1)), ErrExport},
		"a row of hashes missing":          {slices.Delete(slices.Clone(good), hashes+1, hashes+2), ErrExport},
		"a short row of hashes":            {replace(hashes, HashesLine([][32]byte{{1}})), ErrExport},
		"more after the checkpoint":        {append(slices.Clone(good), good[0]), ErrExport},
		"a leaf after the hashes":          {slices.Insert(slices.Clone(good), last, good[0]), ErrExport},
		"two members":                      {replace(last, []byte(strings.Replace(string(good[last]), "}\n", `,"leaf_hashes":"AAAA"}`+"\n", 1))), ErrExport},
		"a checkpoint with spaces":         {replace(last, []byte(strings.Replace(string(good[last]), ":", ": ", 1))), ErrExport},
		"a line without end":               {replace(5, bytes.Repeat([]byte("x"), 2*maxLine)), ErrExport},
		"a first line that is none":        {slices.Insert(slices.Clone(good), 0, []byte("{\"removed_before\":007}\n")), ErrExport},
		"nothing is removed":               {slices.Insert(slices.Clone(good), 0, RemovedLine(0)), ErrExport},
		"removed in the middle":            {slices.Insert(slices.Clone(good), 5, RemovedLine(5)), &BadRecord{}},
		"nothing":                          {nil, ErrTruncated},
		"one line of text":                 {[][]byte{[]byte("# Signet\n")}, ErrNoExport},
		"text":                             {[][]byte{[]byte("# Signet\n"), []byte("\n"), []byte("A CA.")}, ErrNoExport},
		"a few bytes":                      {[][]byte{[]byte("PK")}, ErrNoExport},
		"a long line of anything":          {[][]byte{bytes.Repeat([]byte("x"), 2*maxLine)}, ErrNoExport},
	} {
		_, err := l.verify(c.lines)
		if bad := new(BadRecord); errors.As(c.want, &bad) && errors.As(err, &bad) {
			continue
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := Verify(bytes.NewReader(bytes.Join(good, nil)), other.key); !errors.Is(err, ErrSignature) {
		t.Errorf("with another box's key: %v", err)
	}
}

// telling makes leaf i of the log the record of the removal of all before first.
func (l *logOf) telling(i, first int) {
	r := sample()
	r.Index, r.Action, r.Outcome, r.Identity, r.Reason = uint64(i), RecordsRemoved, OutcomeSuccess, RemovedBefore(uint64(first)), "retention"
	r.Time = r.Time.Add(time.Duration(i) * time.Millisecond)
	l.leaves[i] = Leaf(r)
}

// removed is an export without the leaves before first.
func removed(lines [][]byte, first int) [][]byte {
	return slices.Concat([][]byte{RemovedLine(uint64(first))}, lines[first:])
}

// A log whose first records were removed, and that says so, is as good as it was, wherever in a row of
// leaf hashes it begins.
func TestExportWithoutItsFirstRecords(t *testing.T) {
	const n = 1100
	for _, first := range []int{1, 2, 100, 255, 256, 257, 512, 700, 1000, 1024, 1050, n - 4} {
		l := newLog(t, n)
		l.telling(n-1, first)
		if first > 10 {
			l.telling(first+1, 5) // of an earlier removal
		}
		whole := l.export(t, 1, 256, 300, 700, 1024, n)
		good := removed(whole, first)
		report, err := l.verify(good)
		if err != nil {
			t.Errorf("from %d: %v", first, err)
			continue
		}
		if r := report.Removed; r == nil || r.Before != uint64(first) || r.Record != n-1 || !r.At.Equal(report.Last) || r.Reason != "retention" ||
			report.Records != n || report.Checkpoints != 5 || report.Last.Sub(report.First) != time.Duration(n-1-first)*time.Millisecond {
			t.Errorf("from %d: %+v, %+v", first, report, r)
		}
		for _, i := range []int{first, first + (n-first)/2, n - 2} {
			changed := slices.Clone(good)
			changed[1+i-first] = bytes.Replace(changed[1+i-first], []byte(`"outcome":"`), []byte(`"outcome":"x`), 1)
			var bad *BadRecord
			if _, err := l.verify(changed); !errors.As(err, &bad) || bad.Index != uint64(i) || bad.Last != uint64(i) {
				t.Errorf("from %d, %d changed: %v", first, i, err)
			}
			dropped := slices.Delete(slices.Clone(good), 1+i-first, 2+i-first)
			if _, err := l.verify(dropped); !errors.As(err, &bad) || bad.Index != uint64(i) {
				t.Errorf("from %d, %d dropped: %v", first, i, err)
			}
		}
		var bad *BadRecord
		if _, err := l.verify(removed(whole, first+1)); first+1 < n-1 && (!errors.As(err, &bad) || bad.Index != uint64(first) || bad.Last != uint64(first)) {
			t.Errorf("from %d, one more gone: %v", first, err)
		}
		if _, err := l.verify(removed(whole, first-1)); first > 1 && !errors.Is(err, ErrExport) {
			t.Errorf("from %d, one that was removed is there: %v", first, err)
		}
		if _, err := l.verify(good[1:]); !errors.As(err, &bad) || bad.Index != 0 {
			t.Errorf("from %d, without saying so: %v", first, err)
		}
		forged := slices.Clone(good) // a hash of a record that is gone
		for i, line := range forged {
			if bytes.HasPrefix(line, []byte(`{"leaf_hashes":`)) {
				forged[i] = bytes.Replace(line, line[20:24], []byte("AAAA"), 1)
				break
			}
		}
		if _, err := l.verify(forged); !errors.As(err, &bad) {
			t.Errorf("from %d, a hash of what is gone forged: %v", first, err)
		}
		if _, err := l.verify(slices.DeleteFunc(slices.Clone(good), func(line []byte) bool { return bytes.HasPrefix(line, []byte(`{"leaf_hashes":`)) })); err == nil {
			t.Errorf("from %d, no hashes: verified", first)
		}
	}
}

// Records that nobody is told of are missing: a refused attempt, or another action's, tells nothing.
func TestRemovalHasToBeTold(t *testing.T) {
	const n, first = 600, 300
	for name, tell := range map[string]func(r *Record){
		"not at all":      nil,
		"refused":         func(r *Record) { r.Outcome = OutcomeRefused },
		"another action":  func(r *Record) { r.Action = BoxStarted },
		"in other words":  func(r *Record) { r.Identity = "records before 300 " },
		"in an identity":  func(r *Record) { r.Action, r.Identity = SCEPPKCSReq, `","action":"records_removed","x":"` },
		"of fewer":        func(r *Record) { r.Identity = RemovedBefore(first - 1) },
		"of no number":    func(r *Record) { r.Identity = "records before x" },
		"of leading zero": func(r *Record) { r.Identity = "records before 0300" },
	} {
		l := newLog(t, n)
		if tell != nil {
			l.telling(n-2, first)
			r, err := Parse(l.leaves[n-2])
			if err != nil {
				t.Fatal(err)
			}
			tell(&r)
			l.leaves[n-2] = Leaf(r)
		}
		var bad *BadRecord
		want := uint64(0)
		if name == "of fewer" {
			want = first - 1
		}
		if _, err := l.verify(removed(l.export(t, 200, n), first)); !errors.As(err, &bad) || bad.Index != want || bad.Last != first-1 {
			t.Errorf("told %s: %v", name, err)
		}
	}
}

func TestCheckpoints(t *testing.T) {
	l := newLog(t, 3)
	signed := l.checkpoint(t, 3)
	c, err := OpenCheckpoint(signed, l.key)
	if err != nil || c.Size != 3 || c.Origin != l.key.Name() || !strings.HasPrefix(c.Origin, "signet.internal/plant-7/") {
		t.Fatalf("%+v, %v", c, err)
	}
	if peeked, err := PeekCheckpoint(signed); err != nil || peeked != c {
		t.Errorf("peeked %+v, %v", peeked, err)
	}
	sign := func(text string) []byte {
		b, err := note.Sign(&note.Note{Text: text}, l.signer)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if x, err := OpenCheckpoint(sign(c.Text()+"extension\n"), l.key); err != nil || x != c {
		t.Errorf("with a line more: %+v, %v", x, err)
	}
	root := strings.Split(c.Text(), "\n")[2]
	for name, text := range map[string]string{
		"two lines": "a\n1\n", "leading zero": l.key.Name() + "\n03\n" + root + "\n", "sign": l.key.Name() + "\n+3\n" + root + "\n",
		"short root": l.key.Name() + "\n3\nAAAA\n", "empty line": l.key.Name() + "\n3\n" + root + "\n\nx\n",
	} {
		if _, err := OpenCheckpoint(sign(text), l.key); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenCheckpoint(sign("elsewhere\n3\n"+root+"\n"), l.key); !errors.Is(err, ErrSignature) {
		t.Errorf("of another log: %v", err)
	}
	for i := range signed {
		changed := bytes.Clone(signed)
		changed[i] ^= 1
		if x, err := OpenCheckpoint(changed, l.key); err == nil {
			t.Errorf("byte %d changed: %+v", i, x)
		}
	}
}

func TestVerifierKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := VerifierKey("signet.internal/a/b", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	// C2SP: type 0x02 and a SubjectPublicKeyInfo of 91 bytes always begin so.
	if parts := strings.Split(text, "+"); len(parts) < 3 || !strings.HasPrefix(parts[2], "AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABA") && !strings.HasPrefix(parts[2], "AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IAB") {
		t.Errorf("key %s", text)
	}
	if _, err := NewVerifier(text); err != nil {
		t.Error(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifierKey("a", p384.Public()); !errors.Is(err, ErrKey) {
		t.Errorf("P-384: %v", err)
	}
	if _, err := VerifierKey("a b", key.Public()); !errors.Is(err, ErrKey) {
		t.Errorf("name with a space: %v", err)
	}
	if _, err := Origin("a b", key.Public()); err == nil {
		t.Error("site with a space has an origin")
	}
	for _, wrong := range []string{"", "+", "++", "a+00000000+", strings.Replace(text, "+", "+0", 1), "x", text + "A", text[:len(text)-4],
		"PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"} {
		if v, err := NewVerifier(wrong); !errors.Is(err, ErrKey) {
			t.Errorf("%q: %v, %v", wrong, v, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	l := newLog(f, 300)
	good := l.export(f, 100, 300)
	f.Add(bytes.Join(good, nil))
	f.Add(bytes.Join(l.export(f, 2), nil))
	f.Add(bytes.Join(good[:280], nil))
	f.Add([]byte("{}\n{\"checkpoint\":\"x\"}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		report, err := Verify(bytes.NewReader(b), l.key)
		if err != nil {
			return
		}
		// Whatever verifies begins with the leaves of the log.
		for i := range report.Records {
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			if !bytes.Equal(line, l.leaves[i]) {
				t.Fatalf("record %d verifies as %q", i, line)
			}
			b = rest
		}
	})
}

func FuzzVerifyRemoved(f *testing.F) {
	const n, first = 300, 270
	l := newLog(f, n)
	l.telling(n-1, first)
	whole := l.export(f, 280, n)
	good := bytes.Join(removed(whole, first), nil)
	if _, err := Verify(bytes.NewReader(good), l.key); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, other := range []int{1, first - 1, first + 1, 280, n - 1, n, n + 1} {
		f.Add(slices.Concat(RemovedLine(uint64(other)), bytes.Join(whole[min(other, n):], nil)))
	}
	for _, line := range []string{"0", "01", "0270", "+270", "-1", "270 ", "9223372036854775807", "9223372036854775808", "18446744073709551615", `"270"`, ""} {
		f.Add(slices.Concat([]byte(removedStart+line+"}\n"), bytes.Join(whole[first:], nil)))
	}
	f.Add(slices.Concat(RemovedLine(first), good))
	f.Add([]byte("{\"removed_before\":9223372036854775807}\n{\"index\":9223372036854775807}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		report, err := Verify(bytes.NewReader(b), l.key)
		if err != nil {
			return
		}
		// The log tells of one removal: what verifies lacks just that, and its leaves are the log's.
		rest, ok := bytes.CutPrefix(b, RemovedLine(first))
		if !ok || report.Gone() != first || report.Records != n {
			t.Fatalf("%.60q verifies: %+v", b, report)
		}
		for i := uint64(first); i < n; i++ {
			var line []byte
			if line, rest, _ = bytes.Cut(rest, []byte("\n")); !bytes.Equal(line, l.leaves[i]) {
				t.Fatalf("record %d verifies as %q", i, line)
			}
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	l := newLog(f, 3)
	f.Add(l.checkpoint(f, 3))
	f.Add([]byte("a\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— a AAAAAAA=\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := PeekCheckpoint(b)
		if err == nil && !bytes.HasPrefix(b, []byte(c.Text())) {
			t.Fatalf("%q reads as %q", b, c.Text())
		}
		if _, err := OpenCheckpoint(b, l.key); err == nil && !bytes.HasPrefix(b, []byte(c.Text())) {
			t.Fatalf("%q verifies as %q", b, c.Text())
		}
	})
}

func FuzzVerifierKey(f *testing.F) {
	f.Add("a+b+c")
	f.Add("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := NewVerifier(text); err == nil && v.Name() == "" {
			t.Fatalf("%q has no name", text)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	const n = 100_000
	l := newLog(b, n)
	export := bytes.Join(l.export(b, n/2, n), nil)
	b.SetBytes(int64(len(export)))
	for b.Loop() {
		if _, err := Verify(bytes.NewReader(export), l.key); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(math.Round(n*float64(b.N)/b.Elapsed().Seconds()), "records/s")
}
