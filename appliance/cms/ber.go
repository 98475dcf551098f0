package cms

// Bounds of the BER reader. maxElements is far above any real message (1 MiB sent in 16-byte pieces has 58,000).
const (
	maxDepth    = 32
	maxElements = 1 << 17
)

// Identifier octets (X.690 §8.1.2). Only the low-tag-number form occurs in CMS and X.509.
const (
	tagEndOfContents     = 0x00
	tagOctetString       = 0x04
	tagOctetStringPieces = 0x24
	bitConstructed       = 0x20
	highTagNumber        = 0x1f
)

// normalise returns the single BER element that b holds with definite, minimal lengths throughout and every universal
// OCTET STRING in one piece. If b is like that already, which is always so for DER, it is returned itself: signatures over
// parts of it stay valid. Contents of primitive elements are never changed, nor is the order of a SET.
//
// It reads each element once, then copies at most once: time and memory are linear in len(b).
func normalise(b []byte) ([]byte, error) {
	if len(b) > MaxMessage {
		return nil, malformed("longer than %d bytes", MaxMessage)
	}
	r := berReader{in: b}
	end, size, err := r.element(0, len(b), 0)
	if err != nil {
		return nil, err
	}
	if end != len(b) {
		return nil, malformed("%d bytes after the end", len(b)-end)
	}
	if r.changes == 0 {
		return b, nil
	}
	out := make([]byte, 0, size)
	for _, p := range r.pieces {
		if p.hasHeader {
			out = appendHeader(out, p.tag, int(p.length))
		}
		out = append(out, b[p.from:p.to]...)
	}
	return out, nil
}

// berReader walks one BER element and notes how to write it again: pieces, in order, of which an element that stays as it is
// takes at most one.
type berReader struct {
	in       []byte
	pieces   []berPiece
	elements int // read so far
	changes  int // headers that the output has otherwise
}

// berPiece is an optional header followed by input bytes that are copied unchanged.
type berPiece struct {
	from, to  int32
	length    int32 // content length in the header
	tag       byte
	hasHeader bool
}

// berHeader is the identifier and length octets of one element.
type berHeader struct {
	tag        byte
	size       int // bytes of the header itself
	length     int // bytes of the content, unless indefinite
	indefinite bool
	minimal    bool // the length is in its shortest form
}

// element walks the element at in[pos:], which must end by in[end]. It returns where the element ends and how many bytes it
// takes in the output.
func (r *berReader) element(pos, end, depth int) (next, size int, err error) {
	h, err := r.header(pos, end, depth)
	if err != nil {
		return 0, 0, err
	}
	content, before := pos+h.size, r.changes
	if h.indefinite || !h.minimal || h.tag == tagOctetStringPieces {
		r.changes++
	}
	i := len(r.pieces)
	switch {
	case h.tag == tagOctetStringPieces:
		r.open(tagOctetString)
		next, size, err = r.contents(h, content, end, depth, r.stringPiece)
	case h.tag&bitConstructed != 0:
		r.open(h.tag)
		next, size, err = r.contents(h, content, end, depth, r.element)
	default:
		next, size = content+h.length, h.length
		if !h.minimal {
			r.open(h.tag)
			r.copy(content, next)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	if r.changes == before {
		r.pieces = r.pieces[:i]
		r.copy(pos, next)
		return next, next - pos, nil
	}
	r.pieces[i].length = int32(size)
	return next, headerSize(size) + size, nil
}

// stringPiece walks a piece of a constructed OCTET STRING, which may again be in pieces (X.690 §8.7.3). Its size is that of
// the octets alone.
func (r *berReader) stringPiece(pos, end, depth int) (next, size int, err error) {
	h, err := r.header(pos, end, depth)
	if err != nil {
		return 0, 0, err
	}
	content := pos + h.size
	switch h.tag {
	case tagOctetString:
		r.copy(content, content+h.length)
		return content + h.length, h.length, nil
	case tagOctetStringPieces:
		return r.contents(h, content, end, depth, r.stringPiece)
	}
	return 0, 0, malformed("element with tag %#02x inside an OCTET STRING", h.tag)
}

// contents walks everything inside the constructed element h, whose content starts at pos.
func (r *berReader) contents(h berHeader, pos, end, depth int, walk func(pos, end, depth int) (int, int, error)) (next, size int, err error) {
	if !h.indefinite {
		end = pos + h.length
	}
	for {
		switch {
		case h.indefinite && end-pos >= 2 && r.in[pos] == tagEndOfContents && r.in[pos+1] == 0:
			return pos + 2, size, nil
		case !h.indefinite && pos == end:
			return pos, size, nil
		}
		var n int
		if pos, n, err = walk(pos, end, depth+1); err != nil {
			return 0, 0, err
		}
		size += n
	}
}

// header reads the header at in[pos:end] and checks that a definite content ends by end.
func (r *berReader) header(pos, end, depth int) (berHeader, error) {
	if depth >= maxDepth {
		return berHeader{}, malformed("nested more than %d levels", maxDepth)
	}
	if r.elements++; r.elements > maxElements {
		return berHeader{}, malformed("more than %d elements", maxElements)
	}
	b := r.in[pos:end]
	if len(b) < 2 {
		return berHeader{}, malformed("cut short")
	}
	h := berHeader{tag: b[0], size: 2, minimal: true}
	if h.tag&highTagNumber == highTagNumber {
		return berHeader{}, malformed("tag in the high-tag-number form")
	}
	if h.tag == tagEndOfContents {
		return berHeader{}, malformed("end-of-contents without an indefinite length")
	}
	switch l := b[1]; {
	case l < 0x80:
		h.length = int(l)
	case l == 0x80:
		if h.tag&bitConstructed == 0 {
			return berHeader{}, malformed("indefinite length of a primitive element")
		}
		h.indefinite = true
		return h, nil
	default:
		octets := int(l & 0x7f)
		if octets > 4 {
			return berHeader{}, malformed("length of %d octets", octets)
		}
		if len(b) < 2+octets {
			return berHeader{}, malformed("cut short")
		}
		var length uint32
		for _, o := range b[2 : 2+octets] {
			length = length<<8 | uint32(o)
		}
		if length > MaxMessage {
			return berHeader{}, malformed("cut short")
		}
		h.length = int(length)
		h.size += octets
		h.minimal = h.size == headerSize(h.length)
	}
	if h.length > len(b)-h.size {
		return berHeader{}, malformed("cut short")
	}
	return h, nil
}

// open notes a header to write; its length is filled in once the content has been walked.
func (r *berReader) open(tag byte) {
	r.pieces = append(r.pieces, berPiece{tag: tag, hasHeader: true})
}

// copy notes input bytes to write unchanged, joined to the last piece where nothing was left out in between. The first
// bytes after a header start its run.
func (r *berReader) copy(from, to int) {
	if from == to {
		return
	}
	if n := len(r.pieces); n > 0 {
		last := &r.pieces[n-1]
		switch {
		case last.from == last.to:
			last.from, last.to = int32(from), int32(to)
			return
		case int(last.to) == from:
			last.to = int32(to)
			return
		}
	}
	r.pieces = append(r.pieces, berPiece{from: int32(from), to: int32(to)})
}

// headerSize is the size of a one-octet tag and the minimal length octets.
func headerSize(length int) int {
	n := 2
	if length >= 0x80 {
		for ; length > 0; length >>= 8 {
			n++
		}
	}
	return n
}

func appendHeader(out []byte, tag byte, length int) []byte {
	out = append(out, tag)
	octets := headerSize(length) - 2
	if octets == 0 {
		return append(out, byte(length))
	}
	out = append(out, 0x80|byte(octets))
	for i := octets - 1; i >= 0; i-- {
		out = append(out, byte(length>>(8*i)))
	}
	return out
}
