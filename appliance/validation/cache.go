package validation

import (
	"container/list"
	"sync"
	"time"
)

// cache keeps the responses used most recently, by what was asked. Whether one may still be used is for
// the caller to say.
type cache struct {
	most int

	mu    sync.Mutex
	byKey map[string]*list.Element
	order *list.List // of *cached, the most recently used first
}

type cached struct {
	key string
	response
}

func newCache(most int) *cache {
	return &cache{most: most, byKey: map[string]*list.Element{}, order: list.New()}
}

func (c *cache) get(key string) (response, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return response{}, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).response, true
}

// put keeps r, and gives up the one that was not asked for the longest where there are too many.
func (c *cache) put(key string, r response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.byKey[key]; ok {
		e.Value.(*cached).response = r
		c.order.MoveToFront(e)
		return
	}
	c.byKey[key] = c.order.PushFront(&cached{key, r})
	if c.order.Len() > c.most {
		last := c.order.Back()
		delete(c.byKey, last.Value.(*cached).key)
		c.order.Remove(last)
	}
}

// bucket lets perSecond events a second through, and twice as many at once after a quiet time.
type bucket struct {
	perSecond float64

	mu    sync.Mutex
	left  float64
	since time.Time
}

func newBucket(perSecond int) *bucket {
	return &bucket{perSecond: float64(perSecond), left: 2 * float64(perSecond)}
}

// take reports whether one more may pass. now is compared with that of the call before only.
func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.since.IsZero() {
		b.left = min(2*b.perSecond, b.left+max(0, now.Sub(b.since).Seconds())*b.perSecond)
	}
	b.since = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
