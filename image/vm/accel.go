package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// accelFile caches what the probe found, until this computer is started again.
const accelFile = "accel.json"

// probePatience is how long the firmware may take to look for a disk under KVM: it needs one to
// three seconds where KVM works.
const probePatience = 10 * time.Second

type accelResult struct {
	Accelerator string `json:"accelerator"`
	BootID      string `json:"boot_id"` // of this computer
}

// accelerator says whether guests run under KVM here. That /dev/kvm exists proves nothing: under
// some hypervisors guests then hang or fail in their first instructions. So the real firmware is
// booted once, with a time limit, and must get as far as looking for a disk.
func (m *Machine) accelerator(ctx context.Context, p *parts, progress func(string)) (string, error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil
	}
	kvm.Close()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	now := accelResult{BootID: strings.TrimSpace(string(id))}
	var cached accelResult
	if data, err := os.ReadFile(m.path(accelFile)); err == nil && json.Unmarshal(data, &cached) == nil &&
		cached.BootID == now.BootID && (cached.Accelerator == "kvm" || cached.Accelerator == "tcg") {
		return cached.Accelerator, nil
	}
	progress("trying KVM")
	works, err := m.probeKVM(ctx, p)
	if err != nil {
		return "", err
	}
	now.Accelerator = "tcg"
	if works {
		now.Accelerator = "kvm"
	}
	data, err := json.Marshal(now)
	if err != nil {
		return "", err
	}
	return now.Accelerator, writeWhole(m.path(accelFile), append(data, '\n'))
}

// probeKVM boots the firmware without a disk until it says on the serial port that it found none.
func (m *Machine) probeKVM(ctx context.Context, p *parts) (bool, error) {
	sockets, err := makeSockets()
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(sockets)
	serial, vars, qmp := filepath.Join(sockets, "serial"), filepath.Join(sockets, "vars.fd"), filepath.Join(sockets, "qmp")
	blank, err := os.ReadFile(p.variables)
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(vars, blank, 0o600); err != nil {
		return false, err
	}
	pid, err := spawn(filepath.Join(sockets, "log"), nil, p.qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+escape(p.firmware),
		"-drive", "if=pflash,format=raw,unit=1,file="+escape(vars),
		"-chardev", "file,id=serial0,path="+escape(serial), "-serial", "chardev:serial0",
		"-qmp", "unix:"+escape(qmp)+",server=on,wait=off")
	if err != nil {
		return false, err
	}
	defer kill(pid, sockets)
	limited, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	works := false
	waitFor(limited, func() bool {
		log, err := os.ReadFile(serial)
		works = err == nil && bytes.Contains(log, []byte("BdsDxe: "))
		return works || !alive(pid, sockets) || stopped(limited, qmp)
	})
	return works, ctx.Err()
}

// stopped says whether QEMU gave up on its guest ("internal-error" after a KVM emulation failure).
func stopped(ctx context.Context, socket string) bool {
	answer, err := qmpCommand(ctx, socket, "query-status", nil)
	var status struct {
		Status string `json:"status"`
	}
	return err == nil && json.Unmarshal(answer, &status) == nil && status.Status == "internal-error"
}
