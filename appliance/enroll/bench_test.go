package enroll

import (
	"crypto/x509/pkix"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/store"
)

// BenchmarkEnroll is a whole first enrollment on a real disk with a software P-256 authority, the
// device's part prepared beforehand.
func BenchmarkEnroll(b *testing.B) {
	for _, parallel := range []int{1, 32} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			x := newBox(b)
			x.close()
			disk := &countingFS{FS: vfs.Default}
			x.open(store.Options{Dir: b.TempDir(), FS: disk})
			defer func() {
				must(b, x.engine.Close())
				must(b, x.store.Close())
			}()
			d := newDevice(b)
			if _, err := x.enroll(d.request(pkix.Name{CommonName: "first"})); err != nil { // makes the challenge known
				b.Fatal(err)
			}
			r := d.request(printer)
			var n atomic.Int64
			before := disk.syncs.Load()
			procs := runtime.GOMAXPROCS(0)
			if parallel < procs {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(parallel))
				procs = parallel
			}
			b.SetParallelism(parallel / procs)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r := r
					r.TransactionID = fmt.Sprint(n.Add(1))
					if _, err := x.enroll(r); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(disk.syncs.Load()-before)/float64(b.N), "syncs/op")
		})
	}
}

// countingFS counts syncs.
type countingFS struct {
	vfs.FS
	syncs atomic.Int64
}

func (f *countingFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.counting(f.FS.Create(name, c))
}

func (f *countingFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.counting(f.FS.ReuseForWrite(from, to, c))
}

func (f *countingFS) counting(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &countingFile{file, &f.syncs}, nil
}

func (f *countingFS) Unwrap() vfs.FS { return f.FS }

type countingFile struct {
	vfs.File
	syncs *atomic.Int64
}

func (f *countingFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

func (f *countingFile) SyncData() error {
	f.syncs.Add(1)
	return f.File.SyncData()
}
