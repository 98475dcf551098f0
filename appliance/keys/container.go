package keys

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// StorageSize is the size of KEYS: two generations of a container.
const (
	StorageSize    = 2 * generationSize
	generationSize = 1 << 20
)

// A generation is one sector of header and, at payloadOffset, the payload. The header is written
// after the payload is synced, and a sector is written whole or not at all: a power cut leaves the
// old header (with a payload that does not fit it, if the generation was in use before) or the new one.
//
//	 0  8  magic
//	 8  4  layout version
//	12  8  sequence, the higher one is newer
//	20  4  length of the payload
//	24 32  SHA-256 of the payload
//	56 32  SHA-256 of the 56 bytes before
const (
	headerSize    = 512
	headerUsed    = 88
	payloadOffset = 4096
	layoutVersion = 1
	maxPayload    = generationSize - payloadOffset
)

var containerMagic = []byte("SGNTKEYS")

// generation is one of the two containers.
type generation struct {
	index    int64 // 0 or 1
	sequence uint64
	payload  []byte // nil if empty or damaged
	empty    bool   // never written
	newer    bool   // written by newer firmware
}

func (g generation) valid() bool { return g.payload != nil }

func readGeneration(st Storage, index int64) (generation, error) {
	g := generation{index: index}
	header := make([]byte, headerSize)
	if err := readFull(st, header, index*generationSize); err != nil {
		return g, err
	}
	if bytes.Count(header, []byte{0}) == len(header) {
		g.empty = true
		return g, nil
	}
	sum := sha256.Sum256(header[:56])
	if !bytes.Equal(header[:8], containerMagic) || !bytes.Equal(header[56:headerUsed], sum[:]) {
		return g, nil
	}
	if binary.BigEndian.Uint32(header[8:]) > layoutVersion {
		g.newer = true
		return g, nil
	}
	g.sequence = binary.BigEndian.Uint64(header[12:])
	length := binary.BigEndian.Uint32(header[20:])
	if length == 0 || length > maxPayload {
		return g, nil
	}
	payload := make([]byte, length)
	if err := readFull(st, payload, index*generationSize+payloadOffset); err != nil {
		return g, err
	}
	if sum := sha256.Sum256(payload); bytes.Equal(header[24:56], sum[:]) {
		g.payload = payload
	}
	return g, nil
}

func readFull(st Storage, b []byte, offset int64) error {
	n, err := st.ReadAt(b, offset)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading KEYS: %w", err)
	}
	return nil
}

func writeGeneration(st Storage, index int64, sequence uint64, payload []byte) error {
	if len(payload) > maxPayload {
		return fmt.Errorf("writing KEYS: container of %d bytes", len(payload))
	}
	header := make([]byte, 0, headerSize)
	header = append(header, containerMagic...)
	header = binary.BigEndian.AppendUint32(header, layoutVersion)
	header = binary.BigEndian.AppendUint64(header, sequence)
	header = binary.BigEndian.AppendUint32(header, uint32(len(payload)))
	sum := sha256.Sum256(payload)
	header = append(header, sum[:]...)
	sum = sha256.Sum256(header)
	header = append(header, sum[:]...)
	for _, w := range []struct {
		data   []byte
		offset int64
	}{{payload, payloadOffset}, {header[:headerSize], 0}} {
		if _, err := st.WriteAt(w.data, index*generationSize+w.offset); err != nil {
			return fmt.Errorf("writing KEYS: %w", err)
		}
		if err := st.Sync(); err != nil {
			return fmt.Errorf("writing KEYS: %w", err)
		}
	}
	return nil
}

// container is both generations as read.
type container struct {
	st          Storage
	generations [2]generation
}

func readContainer(st Storage) (*container, error) {
	c := &container{st: st}
	for i := range c.generations {
		g, err := readGeneration(st, int64(i))
		if err != nil {
			return nil, err
		}
		c.generations[i] = g
	}
	return c, nil
}

// newest is the newer valid generation, nil if none is valid.
func (c *container) newest() *generation {
	var best *generation
	for i := range c.generations {
		if g := &c.generations[i]; g.valid() && (best == nil || g.sequence > best.sequence) {
			best = g
		}
	}
	return best
}

func (c *container) empty() bool { return c.generations[0].empty && c.generations[1].empty }

// newer says that firmware newer than this wrote a generation.
func (c *container) newer() bool { return c.generations[0].newer || c.generations[1].newer }

// same says that both generations hold the same payload.
func (c *container) same() bool {
	a, b := c.generations[0], c.generations[1]
	return a.valid() && b.valid() && bytes.Equal(a.payload, b.payload)
}

// put writes payload as the newest generation in place of the older one. The sequence is not
// authenticated: who can change KEYS chooses which of two generations of this box is the newer.
func (c *container) put(payload []byte) error {
	index, sequence := int64(0), uint64(1)
	if g := c.newest(); g != nil {
		index, sequence = 1-g.index, g.sequence+1
		if sequence == 0 {
			// No box writes that often. What is written after the highest number would be the oldest.
			return &Error{
				What: "the KEYS partition was changed by something other than this box: it cannot be written any more",
				Mend: "write back the disk as it was; if nobody changed it on purpose, treat the disk as attacked",
			}
		}
	}
	if err := writeGeneration(c.st, index, sequence, payload); err != nil {
		return err
	}
	c.generations[index] = generation{index: index, sequence: sequence, payload: payload}
	return nil
}

// putBoth writes payload to both generations, one after the other, so that losing either loses no
// news.
func (c *container) putBoth(payload []byte) error {
	if err := c.put(payload); err != nil {
		return err
	}
	return c.put(payload)
}
