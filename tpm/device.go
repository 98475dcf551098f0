// Package tpm is the box's TPM 2.0: its device, its measured-boot policy, and the objects kept in
// it, so that nothing else of Signet speaks TPM commands.
//
// Every object and NV index made here is exempt from dictionary-attack protection (noDA): an
// unattended box must not lock itself out by losing power. Secrets that stand in for passwords are
// therefore long and random.
package tpm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

var (
	// ErrBusy says the TPM's queue is full; try again in seconds.
	ErrBusy = errors.New("the TPM's queue is full")
	// ErrClosed is returned by every method of a closed Device.
	ErrClosed = errors.New("the TPM device is closed")
	// ErrUnreachable says the TPM did not answer; what the command did is unknown.
	ErrUnreachable = errors.New("the TPM does not answer")
)

// queueLength bounds the jobs waiting for the TPM. A hardware TPM does two to five private-key
// operations a second, so that the last in a full queue waits some seconds and not minutes.
const queueLength = 16

// Device is an open TPM. Transports are not safe for concurrent use, so one goroutine issues all
// commands; a job of several commands (load, sign, flush) is never interleaved with another.
// Methods may be called from any goroutine and return ErrBusy when queueLength jobs are waiting.
type Device struct {
	jobs chan job
	quit chan struct{} // closed by Close
	done chan struct{} // closed when the worker has gone

	closeOnce sync.Once
	closeErr  error

	// Owned by the worker goroutine.
	t         transport.TPMCloser
	loaded    []loadedKey          // least recently used first
	approvals map[string]*approval // by policy digest
	signer    *Key                 // that signed last
	kept      *keptSession         // of signer; nil while none is open
	keepFor   time.Duration        // without a use
}

type job struct {
	run  func(transport.TPM) error
	errc chan error
}

// Open opens the TPM named by spec: "swtpm:PATH", the unix socket of a running
// `swtpm socket --tpm2 --server type=unixio,path=PATH`, or the path of a device with a resource
// manager such as /dev/tpmrm0.
//
// swtpm serves one connection at a time: a second Open of the same socket fails after a while.
func Open(spec string) (*Device, error) {
	if path, ok := strings.CutPrefix(spec, "swtpm:"); ok {
		t, err := dialSocket(path)
		if err != nil {
			return nil, fmt.Errorf("opening software TPM at %s: %w; start swtpm with --server type=unixio,path=%s, and only one client", path, err, path)
		}
		return newDevice(t), nil
	}
	fi, err := os.Stat(spec)
	if err != nil {
		return nil, fmt.Errorf("opening TPM: %w; switch the TPM (also called PTT or fTPM) on in the firmware setup", err)
	}
	if fi.Mode()&os.ModeCharDevice == 0 {
		return nil, fmt.Errorf("opening TPM: %s is not a device; name a device such as /dev/tpmrm0, or swtpm:PATH", spec)
	}
	fd, err := unix.Open(spec, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening TPM: %w", &os.PathError{Op: "open", Path: spec, Err: err})
	}
	return newDevice(&fileTransport{f: os.NewFile(uintptr(fd), spec)}), nil
}

// OpenFile makes a Device of an open /dev/tpmrm0, for a process that may not open it by itself. It
// takes f over.
func OpenFile(f *os.File) (*Device, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("taking over the TPM descriptor: %w", err)
	}
	// The kernel runs commands asynchronously on a non-blocking descriptor, and a read that comes
	// early looks like the end of the file.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making the TPM descriptor blocking: %w", err)
	}
	return newDevice(&fileTransport{f: os.NewFile(uintptr(fd), f.Name())}), nil
}

func newDevice(t transport.TPMCloser) *Device {
	d := &Device{
		jobs: make(chan job, queueLength),
		quit: make(chan struct{}),
		done: make(chan struct{}),
		t:    retrying{t},

		keepFor: time.Second,
	}
	go d.work()
	return d
}

// Close flushes what was loaded and closes the TPM. Jobs still waiting get ErrClosed.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		close(d.quit)
		<-d.done
	})
	return d.closeErr
}

func (d *Device) work() {
	defer close(d.done)
	for {
		var idle <-chan time.Time
		if d.kept != nil {
			idle = time.After(d.keepFor)
		}
		select {
		case j := <-d.jobs:
			j.errc <- guarded(j.run, d.t)
		case <-idle:
			d.endSession(d.t)
		case <-d.quit:
			d.unload(d.t)
			d.closeErr = d.t.Close()
			return
		}
	}
}

// guarded turns a panic into an error. Responses come over a bus that others may sit on, and no response
// may end the first process of a box, or the one that holds its keys.
func guarded(run func(transport.TPM) error, t transport.TPM) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: its answer makes no sense: %v", ErrUnreachable, r)
		}
	}()
	return run(t)
}

// do runs f on the worker and returns its error.
func (d *Device) do(f func(transport.TPM) error) error {
	j := job{run: f, errc: make(chan error, 1)}
	select {
	case <-d.quit:
		return ErrClosed
	default:
	}
	select {
	case d.jobs <- j:
	default:
		return ErrBusy
	}
	select {
	case err := <-j.errc:
		return err
	case <-d.done:
		// The worker may have finished this very job before it left.
		select {
		case err := <-j.errc:
			return err
		default:
			return ErrClosed
		}
	}
}

// get is do for a function with a result.
func get[T any](d *Device, f func(transport.TPM) (T, error)) (T, error) {
	var v T
	err := d.do(func(t transport.TPM) (err error) {
		v, err = f(t)
		return err
	})
	return v, err
}

// flush removes a transient object. Its error says nothing a caller could act on: the object is
// gone with the next reset at the latest.
func flush(t transport.TPM, h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t)
}
