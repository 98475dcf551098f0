package cms

import (
	"bytes"
	"encoding/hex"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func TestNormalise(t *testing.T) {
	for _, c := range []struct{ name, in, out string }{
		{"primitive", "0201 05", "0201 05"},
		{"indefinite sequence", "3080 020105 0000", "3003 020105"},
		{"indefinite in definite", "3007 3080 020105 0000", "3005 3003 020105"},
		{"definite in indefinite", "3080 3003 020105 0000", "3005 3003 020105"},
		{"two indefinite siblings", "3080 3080 0000 3080 0500 0000 0000", "3006 3000 3002 0500"},
		{"empty after empty", "3080 3000 3000 0500 0000", "3006 3000 3000 0500"},
		{"string in pieces", "2480 0402aabb 0401cc 0000", "0403 aabbcc"},
		{"definite string in pieces", "2407 0402aabb 0401cc", "0403 aabbcc"},
		{"pieces of pieces", "2480 2480 0401aa 0000 2403 0401bb 0401cc 0000", "0403 aabbcc"},
		{"no pieces", "2480 0000", "0400"},
		{"empty piece", "2480 0400 0000", "0400"},
		{"string among others", "3080 0500 2480 0401aa 0401bb 0000 0500 0000", "3008 0500 0402aabb 0500"},
		{"implicit string stays", "a080 0401aa 0401bb 0000", "a006 0401aa 0401bb"},
		{"length with zeros in front", "3083000003 020105", "3003 020105"},
		{"primitive length with zeros", "30818005 00", ""},
		{"primitive length too long", "3005 02820001 05", "3003 020105"},
		{"octets that look like BER stay", "3080 0404 30800000 0000", "3006 0404 30800000"},
		{"set keeps its order", "3180 020109 020101 0000", "3106 020109 020101"},

		{"empty", "", ""},
		{"one byte", "30", ""},
		{"content missing", "3003 0201", ""},
		{"length missing", "3082 01", ""},
		{"no end-of-contents", "3080 020105", ""},
		{"half an end-of-contents", "3080 020105 00", ""},
		{"end-of-contents in definite", "3005 020105 0000", ""},
		{"long end-of-contents", "3080 000100 0000", ""},
		{"child past its parent", "3003 020205 05", ""},
		{"indefinite child past its parent", "3004 3080 0500 0000", ""},
		{"indefinite primitive", "0480 0000", ""},
		{"sequence in a string", "2480 3000 0000", ""},
		{"high tag number", "1f2401 00", ""},
		{"five length octets", "30850000000003 020105", ""},
		{"length past the bound", "3084ffffffff 00", ""},
		{"trailing bytes", "020105 00", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, out := unhex(t, c.in), unhex(t, c.out)
			got, err := normalise(in)
			if c.out == "" {
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("got %x, %v; want ErrMalformed", got, err)
				}
				return
			}
			if err != nil || !bytes.Equal(got, out) {
				t.Fatalf("got %x, %v; want %x", got, err, out)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// DER comes back as the same memory: nothing can have been altered.
func TestNormaliseLeavesDER(t *testing.T) {
	for name, b := range recorded(t) {
		got, err := normalise(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if &got[0] != &b[0] || len(got) != len(b) {
			t.Errorf("%s was rewritten", name)
		}
	}
}

// What BER says in another way normalises to the DER it was made from, certificates and attributes included.
func TestNormaliseUndoesBER(t *testing.T) {
	for name, der := range recorded(t) {
		for _, piece := range []int{1, 7, 100, 1 << 20} {
			ber := rewriteBER(der, piece, rewriteAll)
			if len(ber) <= len(der) {
				t.Fatal("nothing was rewritten")
			}
			got, err := normalise(ber)
			if err != nil {
				t.Fatalf("%s in pieces of %d: %v", name, piece, err)
			}
			if !bytes.Equal(got, der) {
				t.Errorf("%s in pieces of %d came back different", name, piece)
			}
		}
	}
}

func TestNormaliseDepth(t *testing.T) {
	nested := func(n int) []byte {
		return append(bytes.Repeat([]byte{0x30, 0x80}, n), bytes.Repeat([]byte{0, 0}, n)...)
	}
	if _, err := normalise(nested(maxDepth)); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
	if _, err := normalise(nested(maxDepth + 1)); !errors.Is(err, ErrMalformed) {
		t.Errorf("%d levels: %v, want ErrMalformed", maxDepth+1, err)
	}
}

// hostile returns inputs of about size bytes that make naive readers quadratic or exhaust memory.
func hostile(size int) map[string][]byte {
	repeat := func(pattern ...byte) []byte { return bytes.Repeat(pattern, size/len(pattern)) }
	wrap := func(content []byte) []byte {
		content = content[:max(0, min(len(content), size-4))]
		return append(append([]byte{0x30, 0x80}, content...), 0, 0)
	}
	deepest := append(bytes.Repeat([]byte{0x30, 0x80}, maxDepth-3), bytes.Repeat([]byte{0, 0}, maxDepth-3)...)
	return map[string][]byte{
		"nested":           append(repeat(0x30, 0x80), 0, 0)[:size],
		"nested strings":   append(repeat(0x24, 0x80), 0, 0)[:size],
		"flat nulls":       wrap(repeat(0x05, 0x00)),
		"flat indefinite":  wrap(repeat(0x30, 0x80, 0x00, 0x00)),
		"flat empty":       wrap(repeat(0x30, 0x00)),
		"deep, many times": wrap(bytes.Repeat(deepest, size/len(deepest))),
		"string of pieces": append(append([]byte{0x24, 0x80}, repeat(0x04, 0x01, 0xaa, 0x04, 0x00)[:(size-4)/5*5]...), 0, 0),
		"alternating":      wrap(repeat(0x30, 0x80, 0x04, 0x01, 0xaa, 0x00, 0x00, 0x24, 0x80, 0x04, 0x01, 0xbb, 0x00, 0x00)[:(size-4)/14*14]),
	}
}

// Every element is read once and the bookkeeping is bounded: no input, accepted or refused, costs more elements than it has
// bytes, nor more memory than a fixed multiple of its size.
func TestNormaliseIsLinear(t *testing.T) {
	for _, size := range []int{64 << 10, 256 << 10, MaxMessage} {
		for name, in := range hostile(size) {
			if len(in) > MaxMessage {
				t.Fatalf("%s has %d bytes", name, len(in))
			}
			r := berReader{in: in}
			r.element(0, len(in), 0)
			if r.elements > len(in)/2+1 || r.elements > maxElements+1 {
				t.Errorf("%s of %d bytes: read %d headers", name, len(in), r.elements)
			}
			if len(r.pieces) > 2*r.elements {
				t.Errorf("%s of %d bytes: %d pieces for %d elements", name, len(in), len(r.pieces), r.elements)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			normalise(in)
			runtime.ReadMemStats(&after)
			// A piece is 16 bytes, there are at most two per element that changes and takes four bytes, and growing by append costs
			// up to five times the final size.
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(41*len(in))+64<<10 {
				t.Errorf("%s of %d bytes: allocated %d bytes", name, len(in), used)
			}
		}
	}
}

// The largest ordinary message sent in small pieces is still read.
func TestNormaliseManyPieces(t *testing.T) {
	const piece = 16
	var in, want []byte
	in = append(in, 0x24, 0x80)
	for len(in)+piece+4 <= MaxMessage {
		part := bytes.Repeat([]byte{byte(len(in))}, piece)
		in = append(in, element(tagOctetString, part)...)
		want = append(want, part...)
	}
	in = append(in, 0, 0)
	got, err := normalise(in)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, element(tagOctetString, want)) {
		t.Error("octets changed")
	}
}

func TestNormaliseRefusesLongInput(t *testing.T) {
	if _, err := normalise(element(tagOctetString, make([]byte, MaxMessage))); !errors.Is(err, ErrMalformed) {
		t.Errorf("%v, want ErrMalformed", err)
	}
}
