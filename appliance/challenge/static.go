// Package challenge decides whether a secret sent with a request is the right one.
package challenge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"signet.internal/appliance/challenge/phc"
)

// ErrWrong means that the challenge or password is not the right one.
var ErrWrong = errors.New("wrong challenge")

// maxSecret bounds a static challenge and a password; anything longer cannot be one and costs no hashing.
const maxSecret = 1 << 10 // bytes

// Static verifies the one challenge all devices of a profile share, kept as an argon2id hash.
//
// The first right challenge costs one argon2id run; from then on an HMAC under a key that lives as
// long as the process recognises it at once. A wrong one always costs the run, one at a time for
// each source, so that guessing stays slow.
type Static struct {
	gate    *Gate
	current atomic.Pointer[verifier]
}

// NewStatic parses a hash as `signet hash` prints it, whose verifications count against the gate.
func (g *Gate) NewStatic(hash string) (*Static, error) {
	s := &Static{gate: g}
	if err := s.Replace(hash); err != nil {
		return nil, err
	}
	return s, nil
}

// Replace exchanges the hash for requests from now on. Where the new one is not a hash it returns an
// error and the old one stays.
func (s *Static) Replace(hash string) error {
	parsed, err := phc.Parse(hash)
	if err != nil {
		return fmt.Errorf("static challenge: %w", err)
	}
	s.current.Store(newVerifier(s.gate, parsed))
	return nil
}

// Verify returns nil for the right challenge and [ErrWrong] for any other, the empty one included.
// [ErrBusy] means that too many wait, and the context's error that it ended while waiting: both say
// nothing about the challenge.
func (s *Static) Verify(ctx context.Context, from netip.Addr, challenge string) error {
	if err := s.current.Load().check(ctx, from, "", challenge); err != nil {
		return fmt.Errorf("verifying challenge: %w", err)
	}
	return nil
}
