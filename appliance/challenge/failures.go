package challenge

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// What one source may get wrong: MaxFailures passwords within any FailurePeriod.
const (
	MaxFailures   = 10
	FailurePeriod = 10 * time.Minute
)

// maxFailing is how many sources are remembered. The one that failed longest ago makes room for
// another: that costs whoever wants to be forgotten an argon2id run for each of so many sources.
const maxFailing = 8192

// failures remembers when sources failed, in memory alone; at most maxFailing of them, about 2 MiB.
// The zero value is ready with the clock time.Now; a nil one remembers nothing.
type failures struct {
	now func() time.Time // nil: time.Now, whose monotonic reading no change of the clock touches

	mu      sync.Mutex
	sources map[netip.Addr]*list.Element // by sourceKey; of *failing
	byAge   list.List                    // the source that failed last in front
}

// failing is a source with its newest failures, oldest first, at most MaxFailures.
type failing struct {
	source netip.Addr
	at     []time.Time
}

func (f *failures) time() time.Time {
	if f.now != nil {
		return f.now()
	}
	return time.Now()
}

// isOver reports whether a source has failed as often as it may.
func (f *failures) isOver(from netip.Addr) bool {
	if f == nil {
		return false
	}
	now := f.time()
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.sources[sourceKey(from)]
	if !ok {
		return false
	}
	s := e.Value.(*failing)
	return len(s.at) == MaxFailures && now.Sub(s.at[0]) < FailurePeriod
}

// add remembers a failure.
func (f *failures) add(from netip.Addr) {
	if f == nil {
		return
	}
	now, key := f.time(), sourceKey(from)
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.sources[key]
	if !ok {
		f.forget(now)
		if f.sources == nil {
			f.sources = map[netip.Addr]*list.Element{}
		}
		e = f.byAge.PushFront(&failing{source: key})
		f.sources[key] = e
	}
	f.byAge.MoveToFront(e)
	s := e.Value.(*failing)
	if len(s.at) == MaxFailures {
		s.at = append(s.at[:0], s.at[1:]...)
	}
	s.at = append(s.at, now)
}

// forget drops sources whose last failure is over, and makes room for one more.
func (f *failures) forget(now time.Time) {
	for last := f.byAge.Back(); last != nil; last = f.byAge.Back() {
		s := last.Value.(*failing)
		if len(f.sources) < maxFailing && now.Sub(s.at[len(s.at)-1]) < FailurePeriod {
			return
		}
		f.byAge.Remove(last)
		delete(f.sources, s.source)
	}
}
