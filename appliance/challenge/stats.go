package challenge

import "sync/atomic"

// stats counts outcomes by label.
type stats struct{ counts map[Label]*atomic.Uint64 }

func newStats() stats {
	s := stats{map[Label]*atomic.Uint64{}}
	for _, l := range Labels() {
		s.counts[l] = new(atomic.Uint64)
	}
	return s
}

// count adds one to a label of [Labels].
func (s stats) count(l Label) {
	if n := s.counts[l]; n != nil {
		n.Add(1)
	}
}

func (s stats) snapshot() map[Label]uint64 {
	m := make(map[Label]uint64, len(s.counts))
	for l, n := range s.counts {
		m[l] = n.Load()
	}
	return m
}
