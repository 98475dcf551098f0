package store

import (
	"bytes"
	"testing"

	"signet.internal/appliance/audit"
)

// BenchmarkExport reads the whole log out as the console does, page by page, and verifies it; its
// records are -audit-records.
func BenchmarkExport(b *testing.B) {
	dir, signer := logged(b, *records, *records/3)
	s, err := openDir(dir)
	must(b, err)
	defer closeStore(b, s)
	key, err := audit.NewVerifier(signer.Key())
	must(b, err)
	export := exportOf(b, s, signer)
	perSecond := func(b *testing.B) {
		b.ReportMetric(float64(b.N**records)/b.Elapsed().Seconds(), "records/s")
	}
	b.Run("read", func(b *testing.B) {
		const page = 512
		for b.Loop() {
			for from := uint64(0); from < uint64(*records); from += page {
				to := min(from+page, uint64(*records))
				_, err := s.Leaves(from, to)
				must(b, err)
				_, err = s.LeafHashes(from, to)
				must(b, err)
			}
		}
		perSecond(b)
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			_, err := audit.Verify(bytes.NewReader(export), key)
			must(b, err)
		}
		perSecond(b)
	})
}
