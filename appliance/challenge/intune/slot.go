package intune

import (
	"context"
	"sync"
	"time"
)

// slot caches one value. One caller at a time fetches it; the others wait, each for as long as its own
// context lasts, and where the fetch failed the next one tries.
type slot[T comparable] struct {
	turn chan struct{} // whoever sent into it fetches

	mu    sync.Mutex
	value T
	until time.Time // zero: no value
}

func newSlot[T comparable]() *slot[T] { return &slot[T]{turn: make(chan struct{}, 1)} }

// get returns the cached value, or what fetch gets and for how long it holds.
func (s *slot[T]) get(ctx context.Context, activity string, now func() time.Time, fetch func() (T, time.Duration, error)) (T, error) {
	if value, ok := s.cached(now()); ok {
		return value, nil
	}
	var none T
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return none, &Error{What: "waiting for a token or for the service's address was given up", Mend: "let the device try again",
			Activity: activity, Err: context.Cause(ctx)}
	}
	defer func() { <-s.turn }()
	if value, ok := s.cached(now()); ok { // another caller was first
		return value, nil
	}
	value, age, err := fetch()
	if err != nil {
		return none, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value, s.until = value, now().Add(age)
	return value, nil
}

func (s *slot[T]) cached(now time.Time) (T, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value, now.Before(s.until)
}

// drop forgets the value where it is still this one: another caller may have replaced it meanwhile.
func (s *slot[T]) drop(value T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == value {
		s.clear()
	}
}

// forget forgets whatever is there.
func (s *slot[T]) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

func (s *slot[T]) clear() {
	var none T
	s.value, s.until = none, time.Time{}
}
