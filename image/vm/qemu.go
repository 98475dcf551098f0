package vm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// parts are the programs and files of this computer a machine is made of.
type parts struct{ qemu, swtpm, swtpmSetup, firmware, variables string }

// findParts looks for them where Debian 12 puts them.
func findParts() (*parts, error) {
	p := &parts{
		firmware:  "/usr/share/OVMF/OVMF_CODE_4M.fd",
		variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
	}
	for _, x := range []struct {
		name, pkg string
		into      *string
	}{{"qemu-system-x86_64", "qemu-system-x86", &p.qemu}, {"swtpm", "swtpm", &p.swtpm}, {"swtpm_setup", "swtpm-tools", &p.swtpmSetup}} {
		path, err := exec.LookPath(x.name)
		if err != nil {
			return nil, &MissingError{Part: x.name, Package: x.pkg}
		}
		*x.into = path
	}
	for _, path := range []string{p.firmware, p.variables} {
		if _, err := os.Stat(path); err != nil {
			return nil, &MissingError{Part: "UEFI firmware (" + path + ")", Package: "ovmf"}
		}
	}
	return p, nil
}

// prepareFirmware gives the machine firmware variables of its own.
func (m *Machine) prepareFirmware(p *parts) error {
	if _, err := os.Stat(m.path("vars.fd")); err == nil {
		return nil
	}
	src, err := os.Open(p.variables)
	if err != nil {
		return fmt.Errorf("preparing firmware variables: %w", err)
	}
	defer src.Close()
	data, err := io.ReadAll(src)
	if err != nil {
		return fmt.Errorf("preparing firmware variables: %w", err)
	}
	return writeWhole(m.path("vars.fd"), data)
}

const socketsPrefix = "signet-vm-"

// makeSockets makes the directory of the unix sockets, whose paths may have 107 bytes: somewhere
// short, not under Out.
func makeSockets() (string, error) {
	dir, err := os.MkdirTemp("", socketsPrefix)
	if err == nil && len(dir) > 80 {
		os.Remove(dir)
		dir, err = os.MkdirTemp("/tmp", socketsPrefix)
	}
	if err != nil {
		return "", fmt.Errorf("making the machine's sockets: %w", err)
	}
	return dir, nil
}

// boot starts swtpm and QEMU and records them. Nothing it started is left running on an error.
func (m *Machine) boot(ctx context.Context, o Options, p *parts, accel string, lock *os.File) (err error) {
	if m.state.Sockets, err = makeSockets(); err != nil {
		return err
	}
	m.state.Accelerator, m.state.Started = accel, time.Now().UTC().Truncate(time.Second)
	defer func() {
		if err != nil {
			m.Kill()
		}
	}()
	if err := os.Rename(m.SerialPath(), m.path("serial.previous.log")); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("keeping the previous serial log: %w", err)
	}
	if !o.NoTPM {
		if err := m.startTPM(ctx, o.TPM, p); err != nil {
			return err
		}
	}
	err = m.startQEMU(ctx, o, p, accel, lock)
	if errors.Is(err, errPortTaken) { // by whoever was faster: that port is not free the second time
		err = m.startQEMU(ctx, o, p, accel, lock)
	}
	return err
}

// errPortTaken: a port was free when it was chosen, and not when QEMU took it.
var errPortTaken = errors.New("a port is taken")

func (m *Machine) startQEMU(ctx context.Context, o Options, p *parts, accel string, lock *os.File) (err error) {
	if err := m.choosePorts(guestPorts[:]); err != nil {
		return err
	}
	if m.state.QEMU, err = spawn(m.path("qemu.log"), []*os.File{lock}, m.qemuArgs(p, accel, !o.NoTPM)...); err != nil {
		return err
	}
	if err := m.writeState(); err != nil {
		return err
	}
	// QEMU opens its QMP socket after everything it can refuse.
	up, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := m.awaitSocket(up, "qmp", m.state.QEMU); err != nil {
		said := tail(m.path("qemu.log"))
		if strings.Contains(said, "host forwarding") {
			return fmt.Errorf("starting QEMU: %w%s", errPortTaken, said)
		}
		return fmt.Errorf("starting QEMU: %w%s", err, said)
	}
	return nil
}

// startTPM runs swtpm for one boot; QEMU powers it on through the control socket.
func (m *Machine) startTPM(ctx context.Context, name string, p *parts) (err error) {
	if name == "" {
		name = "tpm"
	}
	dir := m.path(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("preparing the TPM: %w", err)
	}
	if err := makeTPM(ctx, p, dir); err != nil {
		return fmt.Errorf("making a TPM: %w", err)
	}
	m.state.SWTPM, err = spawn(m.path("swtpm.log"), nil, p.swtpm, "socket", "--tpm2",
		"--tpmstate", "dir="+dir, "--ctrl", "type=unixio,path="+filepath.Join(m.state.Sockets, "tpm"))
	if err != nil {
		return err
	}
	up, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := m.awaitSocket(up, "tpm", m.state.SWTPM); err != nil {
		return fmt.Errorf("starting swtpm: %w%s", err, tail(m.path("swtpm.log")))
	}
	return nil
}

// makeTPM makes the TPM in dir where there is none yet. It has the bank of PCRs that the box's policies
// name and no other: firmware computes every bank's digest of all that it loads, which without KVM takes
// seconds.
func makeTPM(ctx context.Context, p *parts, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "tpm2-00.permall")); !os.IsNotExist(err) {
		return err
	}
	cmd := exec.CommandContext(ctx, p.swtpmSetup, "--tpm2", "--tpmstate", dir, "--pcr-banks", "sha256")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

// awaitSocket waits until a socket exists, for as long as the process that makes it runs.
func (m *Machine) awaitSocket(ctx context.Context, name string, pid int) error {
	there := false
	if err := waitFor(ctx, func() bool {
		_, err := os.Stat(filepath.Join(m.state.Sockets, name))
		there = err == nil
		return there || !alive(pid, m.state.Sockets)
	}); err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("it ended at once")
	}
	return nil
}

// choosePorts keeps the ports of the previous start where they are free: addresses in a client's
// configuration stay right. A first start takes the guest's own, so that the addresses which the box
// knows and its console shows are right here too; only root has those below 1024.
func (m *Machine) choosePorts(guests []int) error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	ports := map[int]int{}
	for _, guest := range guests {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", cmp.Or(m.state.Ports[guest], guest)))
		if err != nil {
			l, err = net.Listen("tcp4", "127.0.0.1:0")
		}
		if err != nil {
			return fmt.Errorf("choosing a port: %w", err)
		}
		held = append(held, l)
		ports[guest] = l.Addr().(*net.TCPAddr).Port
	}
	m.state.Ports = ports
	return nil
}

// escape doubles commas, which separate the properties of a QEMU option.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// qemuArgs is QEMU's command line. The machine has what a small server has: UEFI, virtio disk,
// network and entropy, a TIS TPM, a screen nobody looks at and a serial port that goes to a file.
func (m *Machine) qemuArgs(p *parts, accel string, withTPM bool) []string {
	cpu := "max"
	if accel == "kvm" {
		cpu = "host"
	}
	network := "user,id=net0"
	for _, guest := range guestPorts {
		network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", m.state.Ports[guest], guest)
	}
	argv := []string{p.qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "1024",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + escape(p.firmware),
		"-drive", "if=pflash,format=raw,unit=1,file=" + escape(m.path("vars.fd")),
		"-drive", "if=none,id=disk0,format=raw,discard=unmap,file=" + escape(m.DiskPath()),
		"-device", "virtio-blk-pci,drive=disk0,bootindex=1",
		"-netdev", network, "-device", "virtio-net-pci,netdev=net0,romfile=",
		"-device", "virtio-rng-pci", "-device", "VGA",
		"-chardev", "file,id=serial0,path=" + escape(m.SerialPath()), "-serial", "chardev:serial0",
		"-qmp", "unix:" + escape(filepath.Join(m.state.Sockets, "qmp")) + ",server=on,wait=off",
	}
	if withTPM {
		argv = append(argv,
			"-chardev", "socket,id=tpm0,path="+escape(filepath.Join(m.state.Sockets, "tpm")),
			"-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-tis,tpmdev=tpm0")
	}
	return argv
}
