package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// state is run.json: what one start leaves for the next, and for stop. Who can change it can make
// stop end another process of the same user whose command line names the same sockets.
type state struct {
	Image       string      `json:"image"`       // SHA-256 of the signet.img whose ESP the disk has
	Ports       map[int]int `json:"ports"`       // port of this computer by guest port
	Accelerator string      `json:"accelerator"` // "kvm" or "tcg"
	Sockets     string      `json:"sockets"`     // directory of the unix sockets
	QEMU        int         `json:"qemu"`        // process id; 0 before the first start
	SWTPM       int         `json:"swtpm"`       // process id; 0 without a TPM
	Started     time.Time   `json:"started"`
}

const stateFile = "run.json"

func readState(dir string) (state, error) {
	s := state{Ports: map[int]int{}}
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading machine state: %w", err)
	}
	return s, nil
}

func (m *Machine) writeState() error {
	data, err := json.MarshalIndent(m.state, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(m.path(stateFile), append(data, '\n'))
}

// writeWhole replaces a file by rename.
func writeWhole(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("writing machine state: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing machine state: %w", err)
	}
	return nil
}

// lockPatience covers the moment between the end of a process and the release of its locks.
const lockPatience = 2 * time.Second

// takeLock locks path for as long as the returned file, or a copy in a child, is open.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking machine state: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	waited := waitFor(ctx, func() bool {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		return !errors.Is(err, unix.EWOULDBLOCK)
	})
	switch {
	case waited != nil:
		f.Close()
		return nil, ErrRunning
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("locking machine state: %w", err)
	}
	return f, nil
}

// waitFor polls until done says so or ctx ends.
func waitFor(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
