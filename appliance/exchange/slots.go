package exchange

import (
	"context"
	"time"
)

// Slots bounds how many requests are worked on at a time. It is safe for concurrent use.
type Slots struct {
	taken    chan struct{} // one element per request
	patience time.Duration
}

// NewSlots has room for n requests, n at least 1; one more waits as long as patience for its turn, 0: not at all.
func NewSlots(n int, patience time.Duration) *Slots {
	return &Slots{make(chan struct{}, n), patience}
}

// Enter takes one of the slots, which Leave gives back: false where none came free in time, or ctx ended.
func (s *Slots) Enter(ctx context.Context) bool {
	select {
	case s.taken <- struct{}{}:
		return true
	default:
	}
	patience := time.NewTimer(s.patience)
	defer patience.Stop()
	select {
	case s.taken <- struct{}{}:
		return true
	case <-patience.C:
	case <-ctx.Done():
	}
	return false
}

// Leave gives back a slot that Enter took.
func (s *Slots) Leave() { <-s.taken }
