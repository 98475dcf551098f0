package challenge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"signet.internal/appliance/challenge/phc"
)

var errUnfinished = errors.New("verification did not end")

// verifier compares secrets with one argon2id hash, behind a gate. It never changes its hash: what it
// remembers of the right secret is forgotten with it.
type verifier struct {
	hash     phc.Hash
	gate     *Gate
	failures *failures                // nil: sources may fail any number of times
	isDecoy  bool                     // every secret is wrong, at the cost of a comparison
	key      [32]byte                 // of the HMAC, random
	known    atomic.Pointer[[32]byte] // HMAC of the right secret, nil until it was seen

	mu      sync.Mutex
	running map[[32]byte]*verification // by HMAC of what is being verified
}

// verification is one argon2id run that several callers wait for: after a start all devices bring
// the same secret at once.
type verification struct {
	done chan struct{}
	err  error // set before done is closed; errUnfinished where that went wrong
}

func newVerifier(g *Gate, hash phc.Hash) *verifier {
	v := &verifier{hash: hash, gate: g, running: map[[32]byte]*verification{}}
	rand.Read(v.key[:]) // never fails (crypto/rand)
	return v
}

// check returns nil for the right secret. The error is [ErrWrong], [ErrTooMany], [ErrBusy] or the
// context's. user keeps the runs of users who share a decoy apart.
func (v *verifier) check(ctx context.Context, from netip.Addr, user, secret string) error {
	if secret == "" || len(secret) > maxSecret {
		return ErrWrong
	}
	sum := v.sum(user, secret)
	for {
		// Before the cache is asked: it answers at once, and a source could guess by it without end.
		if v.failures.isOver(from) {
			return ErrTooMany
		}
		if v.isKnown(sum) {
			return nil
		}
		v.mu.Lock()
		r := v.running[sum]
		if r == nil {
			r = &verification{done: make(chan struct{}), err: errUnfinished}
			v.running[sum] = r
			v.mu.Unlock()
			return v.run(ctx, from, secret, sum, r)
		}
		v.mu.Unlock()
		select {
		case <-r.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if r.err == nil || errors.Is(r.err, ErrWrong) || errors.Is(r.err, ErrBusy) {
			return r.err
		}
		// The caller who verified gave up or was not allowed to: somebody else's turn.
	}
}

// run verifies for every caller that waits for r.
func (v *verifier) run(ctx context.Context, from netip.Addr, secret string, sum [32]byte, r *verification) error {
	defer func() {
		v.mu.Lock()
		delete(v.running, sum)
		v.mu.Unlock()
		close(r.done)
	}()
	r.err = v.compare(ctx, from, secret, sum)
	return r.err
}

func (v *verifier) compare(ctx context.Context, from netip.Addr, secret string, sum [32]byte) error {
	leave, err := v.gate.enter(ctx, from)
	if err != nil {
		return err
	}
	defer leave()
	if v.failures.isOver(from) { // while this caller waited for the source's turn
		return ErrTooMany
	}
	if v.isKnown(sum) { // another caller was first
		return nil
	}
	if !v.hash.Matches([]byte(secret)) || v.isDecoy {
		v.failures.add(from)
		return ErrWrong
	}
	v.known.Store(&sum)
	return nil
}

func (v *verifier) sum(user, secret string) [32]byte {
	mac := hmac.New(sha256.New, v.key[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(user))))
	mac.Write([]byte(user))
	mac.Write([]byte(secret))
	return [32]byte(mac.Sum(nil))
}

func (v *verifier) isKnown(sum [32]byte) bool {
	known := v.known.Load()
	return known != nil && hmac.Equal(known[:], sum[:])
}
