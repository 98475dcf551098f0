// Package vm runs a baked image under QEMU with OVMF firmware and a swtpm TPM, keeping the
// machine's disk, TPM and firmware variables between runs.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// guestPorts are the guest's TCP ports that are forwarded from 127.0.0.1.
var guestPorts = [...]int{443, 8443, 9443, 80, 7443, 7444}

// Options says what to start.
type Options struct {
	Out      string       // output directory of a bake; the machine's state lives in Out/vm
	Fresh    bool         // start over with an empty disk, a new TPM and default firmware variables
	TPM      string       // name of the TPM: each name is another chip; "" is "tpm"
	NoTPM    bool         // a machine without one
	Progress func(string) // told each step in a few words; may be nil
}

// Machine is one running virtual machine. It outlives the process that started it.
type Machine struct {
	dir   string // Out/vm, absolute
	state state
}

// ErrRunning is returned where a machine of this output directory runs already.
var ErrRunning = errors.New("a machine of this image is running already")

// ErrNotRunning is returned by Load where none does.
var ErrNotRunning = errors.New("no machine of this image is running")

// MissingError names a part of this computer that is not there, and the Debian package that has it.
type MissingError struct{ Part, Package string }

func (e *MissingError) Error() string { return e.Part + " is missing" }

// Start boots the image in o.Out and returns as soon as the machine runs; WaitReady waits for the
// box. It returns ErrRunning where one runs already and *MissingError where QEMU, OVMF or swtpm is
// not installed.
func Start(ctx context.Context, o Options) (*Machine, error) {
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	parts, err := findParts()
	if err != nil {
		return nil, err
	}
	out, err := filepath.Abs(o.Out)
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: filepath.Join(out, "vm")}
	// The box's screen shows the claim code to whoever stands before it: of this machine, to nobody else.
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making machine state: %w", err)
	}
	if err := os.Chmod(m.dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing machine state to others: %w", err)
	}
	lock, err := takeLock(ctx, m.path("lock"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Out, err)
	}
	defer lock.Close() // QEMU inherits the lock and holds it for as long as it lives
	if m.state, err = readState(m.dir); err != nil {
		return nil, err
	}
	// Nothing runs, the lock says; what a machine that ended by itself left behind goes now.
	if err := m.cleanUp(); err != nil {
		return nil, err
	}
	m.state.QEMU, m.state.SWTPM, m.state.Sockets = 0, 0, ""
	if o.Fresh {
		progress("starting over")
		if err := m.forget(); err != nil {
			return nil, fmt.Errorf("starting over: %w", err)
		}
		m.state.Image = ""
	}
	progress("preparing the disk")
	if err := m.prepareDisk(out); err != nil {
		return nil, err
	}
	if err := m.prepareFirmware(parts); err != nil {
		return nil, err
	}
	accel, err := m.accelerator(ctx, parts, progress)
	if err != nil {
		return nil, err
	}
	progress("starting the machine (" + accel + ")")
	if err := m.boot(ctx, o, parts, accel, lock); err != nil {
		return nil, err
	}
	return m, nil
}

// Load returns the running machine of an output directory, started by whatever process.
func Load(out string) (*Machine, error) {
	dir, err := filepath.Abs(filepath.Join(out, "vm"))
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir}
	if m.state, err = readState(dir); err != nil {
		return nil, err
	}
	if !m.Running() {
		return nil, fmt.Errorf("%s: %w", out, ErrNotRunning)
	}
	return m, nil
}

// Dir is the directory with the machine's state: disk.img, firmware variables, TPMs and logs.
func (m *Machine) Dir() string { return m.dir }

// DiskPath is the machine's disk; it may be changed only while no machine runs.
func (m *Machine) DiskPath() string { return m.path("disk.img") }

// SerialPath is the log of the serial console since the machine was started.
func (m *Machine) SerialPath() string { return m.path("serial.log") }

// Accelerator is "kvm" or "tcg".
func (m *Machine) Accelerator() string { return m.state.Accelerator }

// Addr is the address on this computer, 127.0.0.1:port, that leads to a port of the guest.
func (m *Machine) Addr(guestPort int) string {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(m.state.Ports[guestPort]))
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// Running says whether QEMU still runs.
func (m *Machine) Running() bool { return alive(m.state.QEMU, m.state.Sockets) }

// Wait returns when QEMU has ended or ctx is done.
func (m *Machine) Wait(ctx context.Context) error {
	return waitFor(ctx, func() bool { return !m.Running() })
}

// Shutdown presses the power button and waits until the guest has powered off; if ctx ends first,
// the machine is switched off and the error says so. Either way nothing runs afterwards.
func (m *Machine) Shutdown(ctx context.Context) error {
	err := m.qmp(ctx, "system_powerdown")
	if err == nil {
		err = m.Wait(ctx)
	}
	if !m.Running() {
		return m.cleanUp()
	}
	if err := m.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("the guest did not shut down and was switched off: %w", err)
}

// Kill cuts the power: QEMU and swtpm end at once, as they are.
func (m *Machine) Kill() error {
	for _, pid := range []int{m.state.QEMU, m.state.SWTPM} {
		if err := kill(pid, m.state.Sockets); err != nil {
			return err
		}
	}
	return m.cleanUp()
}

// cleanUp follows the end of QEMU: swtpm, which ends by itself when QEMU closes its socket, and the
// sockets.
func (m *Machine) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if waitFor(ctx, func() bool { return !alive(m.state.SWTPM, m.state.Sockets) }) != nil {
		if err := kill(m.state.SWTPM, m.state.Sockets); err != nil {
			return err
		}
	}
	if strings.HasPrefix(filepath.Base(m.state.Sockets), socketsPrefix) {
		if err := os.RemoveAll(m.state.Sockets); err != nil {
			return fmt.Errorf("removing the machine's sockets: %w", err)
		}
	}
	return nil
}

// forget removes the machine but keeps what was learned about this computer.
func (m *Machine) forget() error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" || e.Name() == accelFile {
			continue
		}
		if err := os.RemoveAll(m.path(e.Name())); err != nil {
			return err
		}
	}
	return nil
}
