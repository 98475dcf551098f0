package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is a tree head of the log: the text of a C2SP tlog-checkpoint.
type Checkpoint struct {
	Origin string   // names the log: "signet.internal/<site>/<first 16 hex digits of the key's SHA-256>"
	Size   uint64   // records
	Root   [32]byte // RFC 6962 §2.1 tree hash over them
	Anchor uint64   // where the box's state-rollback counter stood; 0: it does not say
}

// MaxNote bounds a signed checkpoint, in bytes: 16 signatures of a kilobyte fit.
const MaxNote = 32 << 10

// algECDSA is the signature type byte of ECDSA with SHA-256 over the note's text, the signature in
// ASN.1 DER (C2SP signed-note, "Signature types").
const algECDSA = 0x02

// Errors of checkpoints.
var (
	// ErrCheckpoint: the bytes are not a checkpoint.
	ErrCheckpoint = errors.New("not a checkpoint")
	// ErrSignature: no signature of the audit key is on it, or a wrong one.
	ErrSignature = errors.New("the checkpoint is not signed by this audit key")
	// ErrKey: the text is not that of an audit key.
	ErrKey = errors.New("not an audit key, which is written NAME+HASH+BASE64")
)

// Origin names the log of a site that is signed by a key, in checkpoints and in the signature's line.
func Origin(site string, key crypto.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("naming audit log: %w", err)
	}
	sum := sha256.Sum256(spki)
	name := "signet.internal/" + site + "/" + hex.EncodeToString(sum[:8])
	if !isKeyName(name) {
		return "", fmt.Errorf("naming audit log: the site's name %q has a space or a plus sign", site)
	}
	return name, nil
}

// isKeyName accepts what C2SP signed-note allows as the name of a key.
func isKeyName(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r == '+' || r < ' ' || unicode.IsSpace(r) })
}

// Text is what is signed: origin, size and root in base64, a line each, and the anchor's line where it is
// known.
func (c Checkpoint) Text() string {
	text := fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
	if c.Anchor != 0 {
		text += fmt.Sprintf("%s%d\n", anchorLine, c.Anchor)
	}
	return text
}

// parseText reads a checkpoint's text. Lines after the third have to be non-empty; but for the anchor's
// they are signed and otherwise ignored.
func parseText(text string) (Checkpoint, error) {
	body, ok := strings.CutSuffix(text, "\n")
	lines := strings.Split(body, "\n")
	if !ok || len(lines) < 3 {
		return Checkpoint{}, fmt.Errorf("%w: not three lines", ErrCheckpoint)
	}
	for _, l := range lines {
		if l == "" {
			return Checkpoint{}, fmt.Errorf("%w: an empty line", ErrCheckpoint)
		}
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("%w: size %.30q", ErrCheckpoint, lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != sha256.Size || len(lines[2]) != base64.StdEncoding.EncodedLen(sha256.Size) {
		return Checkpoint{}, fmt.Errorf("%w: root %.60q", ErrCheckpoint, lines[2])
	}
	anchor, err := parseAnchor(lines[3:])
	if err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: [32]byte(root), Anchor: anchor}, nil
}

// PeekCheckpoint reads a signed checkpoint without verifying any signature: for whoever can check it
// against the log itself.
func PeekCheckpoint(signed []byte) (Checkpoint, error) {
	if len(signed) > MaxNote {
		return Checkpoint{}, fmt.Errorf("%w: %d bytes, more than %d", ErrCheckpoint, len(signed), MaxNote)
	}
	_, err := note.Open(signed, note.VerifierList())
	var unverified *note.UnverifiedNoteError
	if !errors.As(err, &unverified) { // no signature can be verified with no key
		return Checkpoint{}, fmt.Errorf("%w: %v", ErrCheckpoint, err)
	}
	return parseText(unverified.Note.Text)
}

// OpenCheckpoint verifies a signed checkpoint: ErrSignature unless v's key signed it, and the log is
// named as the key is.
func OpenCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	if len(signed) > MaxNote {
		return Checkpoint{}, fmt.Errorf("%w: %d bytes, more than %d", ErrCheckpoint, len(signed), MaxNote)
	}
	n, err := note.Open(signed, note.VerifierList(v))
	var (
		unverified *note.UnverifiedNoteError
		invalid    *note.InvalidSignatureError
	)
	switch {
	case errors.As(err, &unverified), errors.As(err, &invalid):
		return Checkpoint{}, ErrSignature
	case err != nil:
		return Checkpoint{}, fmt.Errorf("%w: %v", ErrCheckpoint, err)
	}
	// note.Open ignores the spare bits of base64's last digit: one signature has one spelling here.
	for _, sig := range n.Sigs {
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("%w: its signature is no canonical base64", ErrCheckpoint)
		}
	}
	c, err := parseText(n.Text)
	if err == nil && c.Origin != v.Name() {
		err = fmt.Errorf("%w: it is of the log %.200q", ErrSignature, c.Origin)
	}
	return c, err
}

// SignCheckpoint makes the signed note of a checkpoint. The key signs what it is given: whoever calls
// answers for it that the checkpoint continues every earlier one.
func SignCheckpoint(c Checkpoint, s note.Signer) ([]byte, error) {
	signed, err := note.Sign(&note.Note{Text: c.Text()}, s)
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint: %w", err)
	}
	return signed, nil
}

// ecdsaKey is an ECDSA P-256 key as x/mod's note package takes it, which brings Ed25519 alone.
type ecdsaKey struct {
	name   string
	public *ecdsa.PublicKey
	spki   []byte
	key    crypto.Signer // nil: only verifies
}

var (
	_ note.Signer   = (*ecdsaKey)(nil)
	_ note.Verifier = (*ecdsaKey)(nil)
)

// NewSigner has key sign notes under a name. The key is ECDSA P-256.
func NewSigner(name string, key crypto.Signer) (note.Signer, error) {
	k, err := newKey(name, key.Public())
	if err != nil {
		return nil, err
	}
	k.key = key
	return k, nil
}

func newKey(name string, public crypto.PublicKey) (*ecdsaKey, error) {
	p, ok := public.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: the audit key is ECDSA P-256", ErrKey)
	}
	if !isKeyName(name) {
		return nil, fmt.Errorf("%w: the name %.200q has a space or a plus sign", ErrKey, name)
	}
	spki, err := x509.MarshalPKIXPublicKey(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	return &ecdsaKey{name: name, public: p, spki: spki}, nil
}

// VerifierKey is the text of the key that verifies what s signs: its name, the key hash in eight hex
// digits, and base64 of the signature type and the key's SubjectPublicKeyInfo, with plus signs between.
func VerifierKey(name string, public crypto.PublicKey) (string, error) {
	k, err := newKey(name, public)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s+%08x+%s", name, k.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{algECDSA}, k.spki...))), nil
}

// NewVerifier reads what VerifierKey wrote.
func NewVerifier(vkey string) (note.Verifier, error) {
	name, rest, _ := strings.Cut(vkey, "+")
	hash, encoded, ok := strings.Cut(rest, "+")
	der, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok || err != nil || len(der) == 0 {
		return nil, ErrKey
	}
	if der[0] != algECDSA {
		return nil, fmt.Errorf("%w: signatures of type %d, the box's are of type %d", ErrKey, der[0], algECDSA)
	}
	public, err := x509.ParsePKIXPublicKey(der[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	k, err := newKey(name, public)
	if err != nil {
		return nil, err
	}
	if fmt.Sprintf("%08x", k.KeyHash()) != hash || !bytes.Equal(k.spki, der[1:]) {
		return nil, fmt.Errorf("%w: its hash is %08x, it says %.20q", ErrKey, k.KeyHash(), hash)
	}
	return k, nil
}

func (k *ecdsaKey) Name() string { return k.name }

// KeyHash is, for this signature type, the beginning of the SHA-256 of the key's DER alone.
func (k *ecdsaKey) KeyHash() uint32 {
	sum := sha256.Sum256(k.spki)
	return binary.BigEndian.Uint32(sum[:])
}

func (k *ecdsaKey) Sign(msg []byte) ([]byte, error) {
	sum := sha256.Sum256(msg)
	return k.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}

func (k *ecdsaKey) Verify(msg, sig []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(k.public, sum[:], sig)
}
