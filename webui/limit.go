package webui

import (
	"net/netip"
	"sync"
	"time"
)

// maxSources bounds the memory of a limiter. Sources beyond it share one allowance.
const maxSources = 4096

// limiter allows max wrong guesses per source in any window. A guess is taken before it is checked
// and given back when it was right, so that many at once cannot outrun the count. It never locks
// for longer than one window.
type limiter struct {
	max    int
	window time.Duration
	now    func() time.Time

	mu    sync.Mutex
	taken map[netip.Prefix][]time.Time // oldest first, at most max each
}

func newLimiter(max int, window time.Duration, now func() time.Time) *limiter {
	return &limiter{max: max, window: window, now: now, taken: map[netip.Prefix][]time.Time{}}
}

// everyone is the one allowance of a limiter that does not tell sources apart.
var everyone = netip.Prefix{}

// sourceKey counts an IPv6 /64 as one source: its holder chooses addresses inside it freely.
func sourceKey(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.WithZone("").Prefix(bits)
	if err != nil {
		return everyone
	}
	return p
}

// take counts one guess by key. When none is left it says how long until there is.
func (l *limiter) take(key netip.Prefix) (retry time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if _, known := l.taken[key]; !known && len(l.taken) >= maxSources {
		l.sweep(now)
		if len(l.taken) >= maxSources {
			key = everyone
		}
	}
	left := l.current(key, now)
	if len(left) >= l.max {
		return l.window - now.Sub(left[0]), false
	}
	l.taken[key] = append(left, now)
	return 0, true
}

// giveBack undoes the newest take of key: the guess was right, or was none.
func (l *limiter) giveBack(key netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.taken[key]); n > 0 {
		l.taken[key] = l.taken[key][:n-1]
	}
	if len(l.taken[key]) == 0 {
		delete(l.taken, key)
	}
}

// current drops what is older than the window, and what a clock set back put into the future.
func (l *limiter) current(key netip.Prefix, now time.Time) []time.Time {
	var left []time.Time
	for _, t := range l.taken[key] {
		if age := now.Sub(t); age >= 0 && age < l.window {
			left = append(left, t)
		}
	}
	return left
}

func (l *limiter) sweep(now time.Time) {
	for key := range l.taken {
		if len(l.current(key, now)) == 0 {
			delete(l.taken, key)
		}
	}
}
