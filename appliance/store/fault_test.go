package store

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var errInjected = errors.New("injected disk error")

// faultFS calls a hook around everything that changes the filesystem, one operation at a time.
type faultFS struct {
	vfs.FS
	mu   sync.Mutex
	ops  int
	hook func(n int, what string, op func() error) error
}

func (f *faultFS) do(what string, op func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.ops
	f.ops++
	return f.hook(n, what, op)
}

// lost fails the n-th operation, and every later one if all is set, without doing it.
func lost(n int, all bool) func(int, string, func() error) error {
	return func(i int, _ string, op func() error) error {
		if i == n || all && i > n {
			return errInjected
		}
		return op()
	}
}

// late does the n-th operation and then reports that it failed.
func late(n int) func(int, string, func() error) error {
	return func(i int, _ string, op func() error) error {
		if err := op(); err != nil {
			return err
		}
		if i == n {
			return errInjected
		}
		return nil
	}
}

func (f *faultFS) file(what, name string, open func() (vfs.File, error)) (file vfs.File, err error) {
	err = f.do(what+" "+name, func() (err error) { file, err = open(); return err })
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, fs: f, name: name}, nil
}

func (f *faultFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file("create", name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *faultFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file("reuse", to, func() (vfs.File, error) { return f.FS.ReuseForWrite(from, to, c) })
}

func (f *faultFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.file("open", name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *faultFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: d, fs: f, name: name}, nil
}

func (f *faultFS) Link(from, to string) error {
	return f.do("link "+to, func() error { return f.FS.Link(from, to) })
}

func (f *faultFS) Rename(from, to string) error {
	return f.do("rename "+to, func() error { return f.FS.Rename(from, to) })
}

func (f *faultFS) Remove(name string) error {
	return f.do("remove "+name, func() error { return f.FS.Remove(name) })
}

func (f *faultFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.do("mkdir "+dir, func() error { return f.FS.MkdirAll(dir, perm) })
}

func (f *faultFS) Unwrap() vfs.FS { return f.FS }

type faultFile struct {
	vfs.File
	fs   *faultFS
	name string
}

func (f *faultFile) Write(p []byte) (n int, err error) {
	err = f.fs.do("write "+f.name, func() (err error) { n, err = f.File.Write(p); return err })
	return n, err
}

func (f *faultFile) Sync() error { return f.fs.do("sync "+f.name, f.File.Sync) }

func (f *faultFile) SyncData() error { return f.fs.do("sync "+f.name, f.File.SyncData) }

func (f *faultFile) SyncTo(length int64) (full bool, err error) {
	err = f.fs.do("sync "+f.name, func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

// countingFS counts syncs of files without holding up anything.
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
