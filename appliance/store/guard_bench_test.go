package store

import (
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// BenchmarkLiveGuards looks up, takes and sweeps among a million live one-time challenges, and prints what
// memory the store takes with them.
func BenchmarkLiveGuards(b *testing.B) {
	const live = 1_000_000
	s, err := Open(Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	name := func(n uint64) (k GuardKey) { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, n)) }
	var wg sync.WaitGroup
	for w := range uint64(64) {
		wg.Go(func() {
			for n := w; n < live; n += 64 {
				g := Guard{Kind: GuardOnce, Key: name(n), Until: now.Add(time.Hour)}
				if err := s.Mint(g, audit.Record{Time: now, TimeSource: "host", Action: audit.ChallengeMinted, Actor: "ada", Outcome: audit.OutcomeSuccess}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	n := uint64(0)
	for b.Loop() {
		if st, err := s.Guard(Guard{Kind: GuardOnce, Key: name(n * 7919 % live)}, now); err != nil || st.Status != GuardLive {
			b.Fatal(st, err)
		}
		n++
	}
	if removed, err := s.Sweep(now, 1000); err != nil || removed != 0 {
		b.Fatal(removed, err)
	}
	b.ReportMetric(float64(m.HeapInuse)/(1<<20), "heap-MiB")
}
