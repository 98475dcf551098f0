package webui

import (
	"sync"
	"time"
)

// lockout delays guesses: after free wrong ones by one key the next has to wait for first, and each wrong one
// after it twice as long, up to longest and never for ever. A guess is counted before it is checked and taken
// back when it was right, so that many at once cannot outrun the count. Counts are forgotten a while after
// the last guess.
type lockout struct {
	free           int
	first, longest time.Duration
	now            func() time.Time

	mu    sync.Mutex
	byKey map[string]guesses
}

// guesses are the wrong ones of one key.
type guesses struct {
	wrong int
	last  time.Time
	until time.Time // the next is not checked before
}

// forgetAfter is how long a lockout remembers a wrong guess; it is longer than any delay.
const forgetAfter = time.Hour

func newLockout(free int, first, longest time.Duration, now func() time.Time) *lockout {
	return &lockout{free: free, first: first, longest: longest, now: now, byKey: map[string]guesses{}}
}

// take counts one guess by key. When it has to wait it says how long.
func (l *lockout) take(key string) (retry time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	g := l.byKey[key]
	if age := now.Sub(g.last); age >= forgetAfter || age < 0 { // or the clock was set back
		g = guesses{}
	}
	if wait := g.until.Sub(now); wait > 0 {
		return wait, false
	}
	g.wrong, g.last, g.until = g.wrong+1, now, time.Time{}
	if over := g.wrong - l.free; over >= 0 {
		g.until = now.Add(min(l.first<<min(over, 20), l.longest))
	}
	l.makeRoom(key, now)
	l.byKey[key] = g
	return 0, true
}

// makeRoom forgets what is old, or else the oldest, where a new key would be one too many.
func (l *lockout) makeRoom(key string, now time.Time) {
	if _, known := l.byKey[key]; known || len(l.byKey) < maxSources {
		return
	}
	oldest, at := "", now
	for k, g := range l.byKey {
		if now.Sub(g.last) >= forgetAfter {
			delete(l.byKey, k)
		} else if !g.last.After(at) {
			oldest, at = k, g.last
		}
	}
	if len(l.byKey) >= maxSources {
		delete(l.byKey, oldest)
	}
}

// giveBack undoes the newest take of key: the guess was right, or was none.
func (l *lockout) giveBack(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.byKey[key]
	if !ok {
		return
	}
	g.wrong, g.until = g.wrong-1, time.Time{}
	if g.wrong <= 0 {
		delete(l.byKey, key)
		return
	}
	l.byKey[key] = g
}

// forget drops everything about key.
func (l *lockout) forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byKey, key)
}
