package webui

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// Cost of a password hash (RFC 9106 §4, second recommendation, one lane): 64 MiB, three passes.
// Every hash in the store was made here, so any other parameters are a damaged record.
const (
	hashPrefix = "$argon2id$v=19$m=65536,t=3,p=1$"
	hashTime   = 3
	hashMemory = 64 << 10 // KiB
	hashLanes  = 1
	saltSize   = 16
	hashSize   = 32
)

const (
	minPassword = 12  // characters
	maxPassword = 256 // bytes
	maxWaiting  = 8   // sign-ins that may wait for the hasher
)

// hasher runs argon2id one at a time: each run takes 64 MiB, and a small box has 512.
type hasher struct {
	running chan struct{}
	waiting chan struct{}
}

func newHasher() *hasher {
	return &hasher{running: make(chan struct{}, 1), waiting: make(chan struct{}, maxWaiting)}
}

// derive returns errBusy when too many wait already, or the context's error.
func (h *hasher) derive(ctx context.Context, password string, salt []byte) ([]byte, error) {
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return nil, errBusy
	}
	select {
	case h.running <- struct{}{}:
		defer func() { <-h.running }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return argon2.IDKey([]byte(password), salt, hashTime, hashMemory, hashLanes, hashSize), nil
}

// hash returns the PHC string of password under a fresh salt.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt)
	sum, err := h.derive(ctx, password, salt)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding
	return hashPrefix + b64.EncodeToString(salt) + "$" + b64.EncodeToString(sum), nil
}

// verify returns nil for the right password and errWrongPassword for any other. An empty hash
// stands for a user who does not exist: it takes as long, and no password derives to all zeros.
func (h *hasher) verify(ctx context.Context, hash, password string) error {
	salt, want := make([]byte, saltSize), make([]byte, hashSize)
	if hash != "" {
		var err error
		if salt, want, err = parseHash(hash); err != nil {
			return err
		}
	}
	got, err := h.derive(ctx, password, salt)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return errWrongPassword
	}
	return nil
}

func parseHash(s string) (salt, sum []byte, err error) {
	rest, ok := strings.CutPrefix(s, hashPrefix)
	saltText, sumText, ok2 := strings.Cut(rest, "$")
	if !ok || !ok2 {
		return nil, nil, errors.New("stored password hash is not one this box made")
	}
	b64 := base64.RawStdEncoding.Strict()
	if salt, err = b64.DecodeString(saltText); err != nil {
		return nil, nil, fmt.Errorf("stored password hash: %w", err)
	}
	if sum, err = b64.DecodeString(sumText); err != nil || len(sum) != hashSize {
		return nil, nil, errors.New("stored password hash is damaged")
	}
	return salt, sum, nil
}

// checkPassword refuses what is too short to withstand guessing or too long to be a password.
func checkPassword(p string) error {
	switch {
	case !utf8.ValidString(p) || len(p) > maxPassword:
		return &inputError{"password", fmt.Sprintf("the password is longer than %d bytes or not UTF-8", maxPassword), "choose a shorter one, or leave it empty and the box makes one"}
	case utf8.RuneCountInString(p) < minPassword:
		return &inputError{"password", fmt.Sprintf("the password has fewer than %d characters", minPassword), "choose a longer one, or leave it empty and the box makes one"}
	}
	return nil
}

// makePassword returns 140 random bits as seven groups of four lower-case letters and digits.
func makePassword() string {
	text := strings.ToLower(rand.Text() + rand.Text()) // base32, 26 characters each
	groups := make([]string, 7)
	for i := range groups {
		groups[i] = text[4*i : 4*i+4]
	}
	return strings.Join(groups, "-")
}
