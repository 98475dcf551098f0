package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
)

// proof is that of the log's record under a checkpoint over size records, made without what verifies it:
// RFC 6962 §2.1.1 word for word.
func (l *logOf) proof(t testing.TB, index, size int) Proof {
	t.Helper()
	hash := LeafHash(l.leaves[index])
	p := Proof{Index: uint64(index), Size: uint64(size), Leaf: string(l.leaves[index]), LeafHash: hash[:], Hashes: [][]byte{}, Checkpoint: string(l.checkpoint(t, size)), Key: "anything"}
	p.Hashes = append(p.Hashes, pathOf(index, l.leaves[:size])...)
	return p
}

// pathOf is PATH(m, D[n]).
func pathOf(m int, leaves [][]byte) [][]byte {
	if len(leaves) <= 1 {
		return nil
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	if m < k {
		return append(pathOf(m, leaves[:k]), treeOf(leaves[k:]))
	}
	return append(pathOf(m-k, leaves[k:]), treeOf(leaves[:k]))
}

// treeOf is MTH(D[n]) of one leaf or more.
func treeOf(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		return rfc6962.DefaultHasher.HashLeaf(leaves[0])
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	return rfc6962.DefaultHasher.HashChildren(treeOf(leaves[:k]), treeOf(leaves[k:]))
}

// again is the proof as it comes from a file.
func again(t testing.TB, p Proof) Proof {
	t.Helper()
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	read, err := ReadProof(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return read
}

func TestProofOfRecord(t *testing.T) {
	l := newLog(t, 40)
	for size := 1; size <= len(l.leaves); size++ {
		for index := range size {
			p := l.proof(t, index, size)
			proven, err := again(t, p).Verify(l.key)
			if err != nil {
				t.Fatalf("record %d of %d: %v", index, size, err)
			}
			if proven.Record == nil || !bytes.Equal(Leaf(*proven.Record), l.leaves[index]) || proven.Records != uint64(size) || proven.Origin != l.key.Name() {
				t.Errorf("record %d of %d: proven is %+v", index, size, proven)
			}
			c, err := p.Check(l.key)
			if err != nil || !c.Holds() || len(c.Steps) != len(p.Hashes) {
				t.Fatalf("record %d of %d: %+v, %v", index, size, c, err)
			}
			for i, s := range c.Steps { // each says over which records its hash is
				if !bytes.Equal(s.Hash, treeOf(l.leaves[s.From:s.To+1])) {
					t.Errorf("record %d of %d: step %d is not the hash over records %d to %d", index, size, i, s.From, s.To)
				}
			}
			for other := range size {
				moved := p
				if moved.Index = uint64(other); other == index {
					continue
				}
				if moved.Leaf = ""; size == 40 { // its hash alone, which says no place
					if _, err := moved.Verify(l.key); !errors.Is(err, ErrProof) {
						t.Errorf("hash of record %d of %d in the place of %d: %v", index, size, other, err)
					}
				}
			}
		}
	}
}

// TestProofOfRemoved: what is proven of a record that is gone is its hash, and no record.
func TestProofOfRemoved(t *testing.T) {
	l := newLog(t, 11)
	p := l.proof(t, 4, 11)
	p.Leaf = ""
	proven, err := again(t, p).Verify(l.key)
	if err != nil || proven.Record != nil || proven.Index != 4 {
		t.Errorf("proven %+v, %v", proven, err)
	}
}

func TestChangedProofs(t *testing.T) {
	l, stranger := newLog(t, 21), newLog(t, 21)
	copy(stranger.leaves, l.leaves)
	for name, test := range map[string]struct {
		change func(p *Proof)
		want   error
	}{
		"in another place":    {func(p *Proof) { p.Index = 6 }, ErrProof},
		"another outcome":     {func(p *Proof) { p.Leaf = strings.Replace(p.Leaf, "success", "refused", 1) }, ErrProof},
		"with its hash":       {func(p *Proof) { other := l.proof(t, 6, 21); p.Leaf, p.LeafHash = other.Leaf, other.LeafHash }, ErrProof},
		"hash of another":     {func(p *Proof) { p.LeafHash = l.proof(t, 6, 21).LeafHash }, ErrProof},
		"no JSON of ours":     {func(p *Proof) { p.Leaf = strings.Replace(p.Leaf, `"index":`, `"index": `, 1) }, ErrProof},
		"a hash less":         {func(p *Proof) { p.Hashes = p.Hashes[1:] }, ErrProof},
		"a hash more":         {func(p *Proof) { p.Hashes = append(p.Hashes, p.LeafHash) }, ErrProof},
		"hashes turned":       {func(p *Proof) { slices.Reverse(p.Hashes) }, ErrProof},
		"a longer hash":       {func(p *Proof) { p.Hashes[0] = append(p.Hashes[0], 0) }, ErrProof},
		"another size":        {func(p *Proof) { p.Size = 22 }, ErrProof},
		"size beyond":         {func(p *Proof) { p.Index, p.Size = 1<<63, 1<<63+1 }, ErrProof},
		"shorter checkpoint":  {func(p *Proof) { p.Checkpoint = string(l.checkpoint(t, 20)) }, ErrProof},
		"of an empty log":     {func(p *Proof) { p.Checkpoint, p.Size = string(l.checkpoint(t, 0)), 0 }, ErrProof},
		"another's signature": {func(p *Proof) { p.Checkpoint = string(stranger.checkpoint(t, 21)) }, ErrSignature},
		"edited checkpoint":   {func(p *Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n21\n", "\n22\n", 1); p.Size = 22 }, ErrSignature},
		"no checkpoint":       {func(p *Proof) { p.Checkpoint = "21" }, ErrCheckpoint},
	} {
		p := l.proof(t, 5, 21)
		test.change(&p)
		if _, err := again(t, p).Verify(l.key); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		c, err := p.Check(l.key)
		if err == nil && c.Holds() {
			t.Errorf("%s: every step is right", name)
		}
	}
	// A hash is of 32 bytes: some of its neighbour's drawn into it are the same input to SHA-256.
	p := l.proof(t, 4, 21)
	p.Leaf, p.LeafHash, p.Hashes[0] = "", append(p.LeafHash, p.Hashes[0][:4]...), p.Hashes[0][4:]
	if _, err := p.Verify(l.key); !errors.Is(err, ErrProof) {
		t.Errorf("a leaf hash of 36 bytes: %v", err)
	}
	// A log of one record has that hash in no place but the first.
	p = l.proof(t, 0, 1)
	p.Leaf, p.Index = "", 5
	if _, err := p.Verify(l.key); !errors.Is(err, ErrProof) {
		t.Errorf("record 5 of a log of one: %v", err)
	}
	// What the box signed in a place has to say that place.
	l.leaves[5], l.leaves[6] = l.leaves[6], l.leaves[5]
	if _, err := l.proof(t, 5, 21).Verify(l.key); !errors.Is(err, ErrProof) {
		t.Errorf("record 6 in the place of 5, signed so: %v", err)
	}
}

func TestReadProofRefuses(t *testing.T) {
	l := newLog(t, 3)
	whole, err := json.Marshal(l.proof(t, 1, 3))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":          "",
		"a record":         string(l.leaves[0]) + "\n",
		"an export":        string(bytes.Join(l.export(t, 2, 3), nil)),
		"an empty export":  string(CheckpointLine(l.checkpoint(t, 0))),
		"a checkpoint":     string(l.checkpoint(t, 3)),
		"another key":      strings.Replace(string(whole), "{", `{"more":1,`, 1),
		"more after it":    string(whole) + "{}",
		"without the hash": strings.Replace(string(whole), "leaf_hash", "Hashes", 1),
		"too long":         string(whole) + strings.Repeat(" ", MaxProof),
	} {
		if p, err := ReadProof(strings.NewReader(text)); !errors.Is(err, ErrNoProof) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// FuzzProof: no JSON proves another record than the log's.
func FuzzProof(f *testing.F) {
	l := newLog(f, 13)
	for _, index := range []int{0, 7, 12} {
		text, err := json.Marshal(l.proof(f, index, 13))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ReadProof(bytes.NewReader(text))
		if err != nil {
			return
		}
		proven, err := p.Verify(l.key)
		if err == nil && (proven.Index >= 13 || p.Leaf != "" && p.Leaf != string(l.leaves[proven.Index])) {
			t.Errorf("proven %+v by %s", proven, text)
		}
	})
}
