package challenge

import (
	"context"
	"errors"
	"net/netip"
	"sync"
)

// ErrBusy means that too many verifications wait already; the sender has to try again later.
var ErrBusy = errors.New("too many challenges are being verified")

// MaxWaiting is how many callers one Gate holds, running or waiting. What a caller holds meanwhile
// (a request in flight, its memory) whoever guesses can take away from others: have more of it.
const MaxWaiting = 8

const maxWaitingPerSource = 4

// Gate bounds what verifying costs: no source has more than one verification running, no more than
// a fixed number run at all (each takes up to [phc.MaxMemory]), and no more than a fixed number of
// callers wait. It also counts the wrong passwords of each source. Share one Gate between everything
// that verifies on a machine.
type Gate struct {
	slots chan struct{}

	mu      sync.Mutex
	waiting int
	sources map[netip.Addr]*source // only sources with a caller inside

	failures failures // wrong passwords
}

type source struct {
	turn    chan struct{} // capacity 1: full while one of the source's callers runs
	callers int
}

// NewGate returns a Gate that lets n verifications run at a time.
func NewGate(n int) *Gate {
	return &Gate{slots: make(chan struct{}, max(n, 1)), sources: map[netip.Addr]*source{}}
}

// enter waits for the source's turn and for a slot, and returns the function that gives both back.
// The error is [ErrBusy] or the context's.
func (g *Gate) enter(ctx context.Context, from netip.Addr) (leave func(), err error) {
	key := sourceKey(from)
	s, err := g.join(key)
	if err != nil {
		return nil, err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		g.part(key, s)
		return nil, ctx.Err()
	}
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		<-s.turn
		g.part(key, s)
		return nil, ctx.Err()
	}
	return func() {
		<-g.slots
		<-s.turn
		g.part(key, s)
	}, nil
}

func (g *Gate) join(key netip.Addr) (*source, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[key]
	if g.waiting >= MaxWaiting || s != nil && s.callers >= maxWaitingPerSource {
		return nil, ErrBusy
	}
	if s == nil {
		s = &source{turn: make(chan struct{}, 1)}
		g.sources[key] = s
	}
	s.callers++
	g.waiting++
	return s, nil
}

func (g *Gate) part(key netip.Addr, s *source) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting--
	if s.callers--; s.callers == 0 {
		delete(g.sources, key)
	}
}

// sourceKey is what counts as one source: an IPv4 address, or the /64 one IPv6 host chooses freely in.
func sourceKey(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return addr
}
