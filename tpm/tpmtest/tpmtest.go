// Package tpmtest runs software TPMs (swtpm) for tests, one to a test, with power cuts.
//
// swtpm is libtpms, not a chip: a green run proves neither the timing nor the quirks of hardware,
// nor that a chip's NV memory survives a real power cut the way a file does.
package tpmtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
)

// Start runs a fresh software TPM until the test ends and returns the spec to open it by.
func Start(t testing.TB) (spec string) {
	t.Helper()
	return New(t).Spec()
}

// Machine is a software TPM that can lose power and get it back. Its methods are for the test's own
// goroutine, but for those that Through calls.
type Machine struct {
	t   testing.TB
	dir string

	mu       sync.Mutex
	cmd      *exec.Cmd // nil while off
	messages bytes.Buffer
}

// New runs a fresh software TPM until the test ends. Without swtpm the test is skipped, or fails
// where CI is set.
func New(t testing.TB) *Machine {
	t.Helper()
	needtest.Program(t, "swtpm", "swtpm")
	m := &Machine{t: t, dir: SocketDir(t)}
	t.Cleanup(func() {
		m.PowerCut()
		if t.Failed() {
			t.Logf("swtpm said: %s", &m.messages)
		}
	})
	m.PowerOn()
	return m
}

// SocketDir makes a directory for sockets, whose paths end at 108 bytes: those below TMPDIR may be longer.
func SocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "signet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Spec is what to open the TPM by. It takes one client at a time.
func (m *Machine) Spec() string { return "swtpm:" + m.socket() }

func (m *Machine) socket() string { return filepath.Join(m.dir, "sock") }

// PID is the process of a TPM that is on.
func (m *Machine) PID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cmd.Process.Pid
}

// PowerCut kills the TPM without a shutdown command; what it wrote to NV stays.
func (m *Machine) PowerCut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

// PowerOn starts the TPM again, with PCRs reset.
func (m *Machine) PowerOn() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return
	}
	os.Remove(m.socket())
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+m.dir,
		"--server", "type=unixio,path="+m.socket(), "--flags", "not-need-init,startup-clear")
	cmd.Stderr = &m.messages
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.cmd = cmd
	// The socket's file is there before swtpm listens on it.
	for range 12000 { // two minutes
		if conn, err := net.Dial("unix", m.socket()); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatal("swtpm does not listen on its socket")
}

// Reboot is a power cut and a boot.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.PowerCut()
	m.PowerOn()
}

// UndefineNV removes an NV index as the owner without a password can, with any program and on any
// operating system. No other client may hold the TPM.
func (m *Machine) UndefineNV(index uint32) {
	m.t.Helper()
	// TPM2_NV_UndefineSpace, TPM 2.0 Part 3 §31.4.
	const nvUndefineSpace = 0x122
	m.asOwner(nvUndefineSpace, []uint32{index}, nil)
}

// DefineNV makes an ordinary NV index of so many bytes, as UndefineNV removes one.
func (m *Machine) DefineNV(index uint32, size uint16) {
	m.t.Helper()
	// TPM2_NV_DefineSpace, TPM 2.0 Part 3 §31.3: empty password, TPM2B_NV_PUBLIC with SHA-256 names and
	// TPMA_NV_OWNERWRITE, OWNERREAD and NO_DA.
	const nvDefineSpace, sha256, attributes = 0x12a, 0x000b, 1<<1 | 1<<17 | 1<<25
	parameters := []byte{0, 0, 0, 14}
	parameters = binary.BigEndian.AppendUint32(parameters, index)
	parameters = binary.BigEndian.AppendUint16(parameters, sha256)
	parameters = binary.BigEndian.AppendUint32(parameters, attributes)
	parameters = append(parameters, 0, 0) // no policy
	m.asOwner(nvDefineSpace, nil, binary.BigEndian.AppendUint16(parameters, size))
}

// asOwner sends a command that the owner authorises with an empty password.
func (m *Machine) asOwner(command uint32, handles []uint32, parameters []byte) {
	m.t.Helper()
	conn, err := net.Dial("unix", m.socket())
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	const sessions, owner, password = 0x8002, 0x40000001, 0x40000009
	cmd := binary.BigEndian.AppendUint16(nil, sessions)
	size := uint32(27 + 4*len(handles) + len(parameters))
	for _, v := range append(append([]uint32{size, command, owner}, handles...), 9, password) {
		cmd = binary.BigEndian.AppendUint32(cmd, v)
	}
	cmd = append(cmd, 0, 0, 1, 0, 0) // empty nonce, continueSession, empty password
	if _, err := conn.Write(append(cmd, parameters...)); err != nil {
		m.t.Fatal(err)
	}
	rsp, err := frame(conn)
	if err != nil {
		m.t.Fatal(err)
	}
	if code := binary.BigEndian.Uint32(rsp[6:]); code != 0 {
		m.t.Fatalf("command %#x: TPM response code %#x", command, code)
	}
}

// Fault is what happens to one command.
type Fault int

// Faults.
const (
	Pass      Fault = iota
	CutBefore       // power fails before the TPM sees the command
	CutAfter        // the TPM has done it, then power fails and no response arrives
)

// Through returns a spec that leads to the same TPM, with hook deciding about each command by its
// command code (TPM 2.0 Part 2 §6.5.2).
func (m *Machine) Through(hook func(code uint32) Fault) (spec string) {
	m.t.Helper()
	path := filepath.Join(m.dir, "faulty")
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			m.relay(client, hook)
		}
	}()
	return "swtpm:" + path
}

func (m *Machine) relay(client net.Conn, hook func(code uint32) Fault) {
	defer client.Close()
	server, err := net.Dial("unix", m.socket())
	if err != nil {
		return
	}
	defer server.Close()
	for {
		cmd, err := frame(client)
		if err != nil {
			return
		}
		fault := hook(binary.BigEndian.Uint32(cmd[6:]))
		if fault == CutBefore {
			m.PowerCut()
			return
		}
		if _, err := server.Write(cmd); err != nil {
			return
		}
		rsp, err := frame(server)
		if err != nil {
			return
		}
		if fault == CutAfter {
			m.PowerCut()
			return
		}
		if _, err := client.Write(rsp); err != nil {
			return
		}
	}
}

// frame reads a command or response, whose header is tag, size and code.
func frame(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < 10 || size > 1<<16 {
		return nil, io.ErrUnexpectedEOF
	}
	b = append(b, make([]byte, size-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}
