package keys

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
)

// The key protocol: each frame is a 4-byte length and a body of at most maxFrame bytes, which starts
// with version, operation (or status in a response) and the 4-byte id that the client chose. Numbers
// are big-endian. Responses come in any order.
const (
	wireVersion = 1
	maxFrame    = 64 << 10
	frameHead   = 6
	maxName     = 255
)

// Operations.
const (
	opList    = 1 // -> count, infos
	opPublic  = 2 // name -> info
	opSign    = 3 // name, hash, scheme, salt, digest -> signature
	opDecrypt = 4 // name, scheme, hash, MGF hash, session key length, label, ciphertext -> plaintext

	// What manageRequest carries.
	opCreate       = 5  // name, algorithm, protection -> info
	opDelete       = 6  // name ->
	opPutSecret    = 7  // name, value ->
	opSecret       = 8  // name -> value
	opDeleteSecret = 9  // name ->
	opCertify      = 10 // name, nonce -> TPMS_ATTEST, signature, TPMT_PUBLIC, attestation key

	opAnchor  = 11 // -> where it stands, where it began, nanoseconds until it can be advanced: 8 bytes each
	opAdvance = 12 // where it stands: 8 bytes -> where it stands then: 8 bytes
)

// Statuses.
const (
	statusOK         = 0
	statusBusy       = 1
	statusNoKey      = 2
	statusRefused    = 3 // + text: the request makes no sense for that key
	statusFailed     = 4 // + text
	statusDecryption = 5 // OAEP did not fit, or the ciphertext is no number modulo the key
	statusExists     = 6
	statusUnrecorded = 7 // what keeps KEYS does not answer
	statusSoon       = 8 // the anchor was advanced within AnchorGap
	statusMoved      = 9 // the anchor does not stand there
)

// Schemes.
const (
	schemePKCS1v15 = 1
	schemePSS      = 2
	schemeECDSA    = 3
	schemeOAEP     = 4
)

// Hashes on the wire. SHA-1 is for OAEP, whose default it is (RFC 8017 A.2.1), and signs nothing.
var hashes = map[uint8]crypto.Hash{1: crypto.SHA1, 2: crypto.SHA256, 3: crypto.SHA384, 4: crypto.SHA512}

func hashCode(h crypto.Hash) (uint8, error) {
	for code, known := range hashes {
		if known == h {
			return code, nil
		}
	}
	return 0, fmt.Errorf("hash %v is not supported", h)
}

// frame is a request or a response.
type frame struct {
	code uint8 // operation or status
	id   uint32
	body []byte
}

func (f frame) encode() ([]byte, error) {
	n := frameHead + len(f.body)
	if n > maxFrame {
		return nil, fmt.Errorf("key protocol: frame of %d bytes, at most %d fit", n, maxFrame)
	}
	b := make([]byte, 0, 4+n)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, wireVersion, f.code)
	b = binary.BigEndian.AppendUint32(b, f.id)
	return append(b, f.body...), nil
}

// errFrame says that the other side does not speak the key protocol.
var errFrame = errors.New("malformed key protocol frame")

// readFrame returns io.EOF only between frames.
func readFrame(r io.Reader) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < frameHead || n > maxFrame {
		return frame{}, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return frame{}, fmt.Errorf("%w: %w", errFrame, io.ErrUnexpectedEOF)
	}
	if b[0] != wireVersion {
		return frame{}, fmt.Errorf("%w: version %d", errFrame, b[0])
	}
	return frame{code: b[1], id: binary.BigEndian.Uint32(b[2:]), body: b[frameHead:]}, nil
}

// signRequest and decryptRequest are the bodies of opSign and opDecrypt.
type signRequest struct {
	name   string
	hash   uint8
	scheme uint8
	salt   int32 // rsa.PSSOptions.SaltLength
	digest []byte
}

func addString(b *cryptobyte.Builder, s string) {
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

func addBytes(b *cryptobyte.Builder, data []byte) {
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(data) })
}

func readString(s *cryptobyte.String, out *string) bool {
	var v cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&v) {
		return false
	}
	*out = string(v)
	return true
}

func readBytes(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadUint24LengthPrefixed((*cryptobyte.String)(out))
}

func (r signRequest) encode() ([]byte, error) {
	var b cryptobyte.Builder
	addString(&b, r.name)
	b.AddUint8(r.hash)
	b.AddUint8(r.scheme)
	b.AddUint32(uint32(r.salt))
	addBytes(&b, r.digest)
	return b.Bytes()
}

func (r *signRequest) decode(body []byte) bool {
	s := cryptobyte.String(body)
	var salt uint32
	ok := readString(&s, &r.name) && s.ReadUint8(&r.hash) && s.ReadUint8(&r.scheme) && s.ReadUint32(&salt) &&
		readBytes(&s, &r.digest) && s.Empty()
	r.salt = int32(salt)
	return ok
}

type decryptRequest struct {
	name       string
	scheme     uint8
	hash       uint8  // OAEP
	mgfHash    uint8  // OAEP
	keyLength  uint16 // PKCS #1 v1.5: length of the session key
	label      []byte // OAEP
	ciphertext []byte
}

func (r decryptRequest) encode() ([]byte, error) {
	var b cryptobyte.Builder
	addString(&b, r.name)
	b.AddUint8(r.scheme)
	b.AddUint8(r.hash)
	b.AddUint8(r.mgfHash)
	b.AddUint16(r.keyLength)
	addBytes(&b, r.label)
	addBytes(&b, r.ciphertext)
	return b.Bytes()
}

func (r *decryptRequest) decode(body []byte) bool {
	s := cryptobyte.String(body)
	return readString(&s, &r.name) && s.ReadUint8(&r.scheme) && s.ReadUint8(&r.hash) && s.ReadUint8(&r.mgfHash) &&
		s.ReadUint16(&r.keyLength) && readBytes(&s, &r.label) && readBytes(&s, &r.ciphertext) && s.Empty()
}

// manageRequest is the body of every operation from opCreate to opCertify: as many names as the operation has, and
// the value where it has one.
type manageRequest struct {
	names []string
	value []byte
}

func (r manageRequest) encode() ([]byte, error) {
	var b cryptobyte.Builder
	for _, name := range r.names {
		addString(&b, name)
	}
	addBytes(&b, r.value)
	return b.Bytes()
}

// decode reads so many names.
func (r *manageRequest) decode(body []byte, names int) bool {
	s := cryptobyte.String(body)
	r.names = make([]string, names)
	for i := range r.names {
		if !readString(&s, &r.names[i]) {
			return false
		}
	}
	return readBytes(&s, &r.value) && s.Empty()
}
