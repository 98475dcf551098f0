// Package challenge decides whether a secret sent with a request is the right one.
package challenge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"signet.internal/appliance/challenge/phc"
)

// ErrWrong means that the challenge is not the right one.
var ErrWrong = errors.New("wrong challenge")

var errUnfinished = errors.New("verification did not end")

// maxSecret bounds a static challenge; anything longer cannot be one and costs no hashing.
const maxSecret = 1 << 10 // bytes

// Static verifies the one challenge all devices of a profile share, kept as an argon2id hash.
//
// The first right challenge costs one argon2id run; from then on an HMAC under a key that lives as
// long as the process recognises it at once. A wrong one always costs the run, one at a time for
// each source, so that guessing stays slow.
type Static struct {
	hash  phc.Hash
	gate  *Gate
	key   [32]byte                 // of the HMAC, random
	known atomic.Pointer[[32]byte] // HMAC of the right challenge, nil until it was seen

	mu      sync.Mutex
	running map[[32]byte]*verification // by HMAC of what is being verified
}

// verification is one argon2id run that several callers wait for: after a start all devices bring
// the same challenge at once.
type verification struct {
	done chan struct{}
	err  error // set before done is closed; errUnfinished where that went wrong
}

// NewStatic parses a hash as `signet hash` prints it; verifications of this challenge run one at a
// time. Use [Gate.NewStatic] to share that bound between several.
func NewStatic(hash string) (*Static, error) { return NewGate(1).NewStatic(hash) }

// NewStatic parses a hash whose verifications count against the gate.
func (g *Gate) NewStatic(hash string) (*Static, error) {
	parsed, err := phc.Parse(hash)
	if err != nil {
		return nil, fmt.Errorf("static challenge: %w", err)
	}
	s := &Static{hash: parsed, gate: g, running: map[[32]byte]*verification{}}
	rand.Read(s.key[:]) // never fails (crypto/rand)
	return s, nil
}

// Verify returns nil for the right challenge and [ErrWrong] for any other, the empty one included.
// [ErrBusy] means that too many wait, and the context's error that it ended while waiting: both say
// nothing about the challenge.
func (s *Static) Verify(ctx context.Context, from netip.Addr, challenge string) error {
	if challenge == "" || len(challenge) > maxSecret {
		return ErrWrong
	}
	sum := s.sum(challenge)
	for {
		if s.isKnown(sum) {
			return nil
		}
		s.mu.Lock()
		v := s.running[sum]
		if v == nil {
			v = &verification{done: make(chan struct{}), err: errUnfinished}
			s.running[sum] = v
			s.mu.Unlock()
			return s.run(ctx, from, challenge, v)
		}
		s.mu.Unlock()
		select {
		case <-v.done:
		case <-ctx.Done():
			return fmt.Errorf("verifying challenge: %w", ctx.Err())
		}
		if v.err == nil || errors.Is(v.err, ErrWrong) || errors.Is(v.err, ErrBusy) {
			return v.err
		}
		// The caller who verified gave up: somebody else's turn.
	}
}

// run verifies for every caller that waits for v.
func (s *Static) run(ctx context.Context, from netip.Addr, challenge string, v *verification) error {
	sum := s.sum(challenge)
	defer func() {
		s.mu.Lock()
		delete(s.running, sum)
		s.mu.Unlock()
		close(v.done)
	}()
	v.err = s.verify(ctx, from, challenge, sum)
	return v.err
}

func (s *Static) verify(ctx context.Context, from netip.Addr, challenge string, sum [32]byte) error {
	leave, err := s.gate.enter(ctx, from)
	if err != nil {
		return fmt.Errorf("verifying challenge: %w", err)
	}
	defer leave()
	if s.isKnown(sum) { // another caller was first
		return nil
	}
	if !s.hash.Matches([]byte(challenge)) {
		return ErrWrong
	}
	s.known.Store(&sum)
	return nil
}

func (s *Static) sum(challenge string) [32]byte {
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write([]byte(challenge))
	return [32]byte(mac.Sum(nil))
}

func (s *Static) isKnown(sum [32]byte) bool {
	known := s.known.Load()
	return known != nil && hmac.Equal(known[:], sum[:])
}
