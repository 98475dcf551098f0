package keys

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// Usage is what the holder was asked to sign and decrypt through one Client since that was made. Requests
// with a resident key are the TPM's queue.
type Usage struct {
	Waiting    map[string]int // requests not answered yet, by the key's protection
	Busy       uint64         // requests refused because the holder had too much to do
	Operations map[Operation]Latency
}

// Operation is a kind of request.
type Operation struct {
	Name       string // "sign" or "decrypt"
	Protection string // of the key
}

// Latency is how long requests took, the time they waited for others included.
type Latency struct {
	Count   uint64
	Sum     time.Duration
	Newest  time.Duration
	Buckets []uint64 // requests that took at most the bound of [LatencyBounds] of the same index
}

// LatencyBounds are the upper bounds of a Latency's buckets: what a software key takes, what a TPM takes,
// and what a queue in front of a TPM takes.
func LatencyBounds() []time.Duration {
	const ms = time.Millisecond
	return []time.Duration{ms, 5 * ms, 25 * ms, 100 * ms, 250 * ms, 500 * ms, 1000 * ms, 2500 * ms, 5000 * ms, 10000 * ms}
}

// usage collects a Usage.
type usage struct {
	mu      sync.Mutex
	waiting map[string]int
	busy    uint64
	done    map[Operation]Latency
}

// Usage returns what was asked of the holder so far.
func (c *Client) Usage() Usage {
	u := &c.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	out := Usage{Waiting: maps.Clone(u.waiting), Busy: u.busy, Operations: map[Operation]Latency{}}
	for op, l := range u.done {
		l.Buckets = slices.Clone(l.Buckets)
		out.Operations[op] = l
	}
	return out
}

// timed is call for a key, counted in the client's Usage. A request that the holder had no time for is
// counted as that and not as done.
func (k *Key) timed(op uint8, body []byte) (frame, error) {
	name := Operation{Name: "sign", Protection: k.info.Protection}
	if op == opDecrypt {
		name.Name = "decrypt"
	}
	u := &k.c.usage
	u.begin(name)
	start := time.Now()
	f, err := k.c.call(op, body)
	u.end(name, time.Since(start), err)
	return f, err
}

func (u *usage) begin(op Operation) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting == nil {
		u.waiting, u.done = map[string]int{}, map[Operation]Latency{}
	}
	u.waiting[op.Protection]++
}

func (u *usage) end(op Operation, took time.Duration, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting[op.Protection]--
	if errors.Is(err, ErrBusy) {
		u.busy++
		return
	}
	l := u.done[op]
	if l.Buckets == nil {
		l.Buckets = make([]uint64, len(LatencyBounds()))
	}
	l.Count, l.Sum, l.Newest = l.Count+1, l.Sum+took, took
	for i, bound := range LatencyBounds() {
		if took <= bound {
			l.Buckets[i]++
		}
	}
	u.done[op] = l
}
