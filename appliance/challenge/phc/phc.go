// Package phc writes and verifies argon2id hashes of secrets in the PHC string format.
//
// A hash is not the secret, but a short or common secret can be found from it by trying: whoever
// reads a hash gains that chance, whoever changes one chooses the secret.
package phc

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Parameters Make uses: 64 MiB, three passes, one lane (RFC 9106 §4, second recommendation, with
// one lane because the box has few cores).
const (
	makeMemory  = 64 << 10 // KiB
	makePasses  = 3
	makeLanes   = 1
	makeSaltLen = 16
	makeHashLen = 32
)

// Bounds on the parameters of a hash that is read. Memory is also what one verification costs, so
// MaxMemory is what a caller has to reserve for each that runs at a time.
const (
	MaxMemory = 64 << 20 // bytes

	minMemory = 19 << 10 // KiB; with two passes the least OWASP's password storage guide accepts
	maxMemory = MaxMemory >> 10
	minPasses = 2
	maxPasses = 10
	maxLanes  = 4
	minSalt   = 8 // bytes
	minHash   = 16
	maxBytes  = 64 // of salt and of hash
	maxText   = 300
)

// ErrFormat is wrapped by every error of Parse.
var ErrFormat = errors.New("not an argon2id hash")

// Hash is a parsed hash string. Its zero value matches nothing.
type Hash struct {
	memory uint32 // KiB
	passes uint32
	lanes  uint8
	salt   []byte
	sum    []byte
}

// Make hashes a secret under a fresh salt: "$argon2id$v=19$m=65536,t=3,p=1$salt$hash".
func Make(secret []byte) string {
	salt := make([]byte, makeSaltLen)
	rand.Read(salt) // never fails (crypto/rand)
	sum := argon2.IDKey(secret, salt, makePasses, makeMemory, makeLanes, makeHashLen)
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, makeMemory, makePasses, makeLanes, encode(salt), encode(sum))
}

// Parse reads a hash string and refuses parameters that are too weak to protect the secret or too
// costly for the box.
func Parse(text string) (Hash, error) {
	if len(text) > maxText {
		return Hash{}, fmt.Errorf("%w: longer than %d characters", ErrFormat, maxText)
	}
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return Hash{}, fmt.Errorf("%w: it has the form $argon2id$v=19$m=65536,t=3,p=1$salt$hash", ErrFormat)
	}
	if parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return Hash{}, fmt.Errorf("%w: version %q is not v=%d", ErrFormat, parts[2], argon2.Version)
	}
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return Hash{}, fmt.Errorf("%w: costs %q are not m=…,t=…,p=…", ErrFormat, parts[3])
	}
	var h Hash
	memory, err1 := cost(costs[0], "m=", minMemory, maxMemory)
	passes, err2 := cost(costs[1], "t=", minPasses, maxPasses)
	lanes, err3 := cost(costs[2], "p=", 1, maxLanes)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Hash{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	h.memory, h.passes, h.lanes = memory, passes, uint8(lanes)
	var err error
	if h.salt, err = decode(parts[4], minSalt); err != nil {
		return Hash{}, fmt.Errorf("%w: salt: %w", ErrFormat, err)
	}
	if h.sum, err = decode(parts[5], minHash); err != nil {
		return Hash{}, fmt.Errorf("%w: hash: %w", ErrFormat, err)
	}
	return h, nil
}

func cost(text, prefix string, least, most uint32) (uint32, error) {
	digits, ok := strings.CutPrefix(text, prefix)
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, fmt.Errorf("cost %q is not %sNUMBER", text, prefix)
	}
	if uint32(n) < least || uint32(n) > most {
		return 0, fmt.Errorf("cost %s is outside %d to %d", text, least, most)
	}
	return uint32(n), nil
}

func decode(text string, least int) ([]byte, error) {
	b, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if err != nil || strings.ContainsAny(text, "\r\n") { // which encoding/base64 skips
		return nil, errors.New("not base64 without padding")
	}
	if len(b) < least || len(b) > maxBytes {
		return nil, fmt.Errorf("%d bytes, outside %d to %d", len(b), least, maxBytes)
	}
	return b, nil
}

// Matches reports whether secret is the one that was hashed. It takes a fraction of a second and up
// to [MaxMemory] bytes; the comparison takes the same time wherever the sums differ.
func (h Hash) Matches(secret []byte) bool {
	if len(h.sum) == 0 {
		return false
	}
	sum := argon2.IDKey(secret, h.salt, h.passes, h.memory, h.lanes, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}
