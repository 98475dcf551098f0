package box

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"signet.internal/image/format"
)

// kernelMount is one of the kernel's own filesystems.
type kernelMount struct {
	source, target, kind string
	flags                uintptr
	options              string
}

// earlyMounts come before anything else: the screen needs /dev, everything else needs the rest.
var earlyMounts = []kernelMount{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "hidepid=2"},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=0755,size=16m"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777,size=64m"},
	{"securityfs", "/sys/kernel/security", "securityfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
}

// efiMount needs the efivarfs module.
var efiMount = kernelMount{"efivarfs", efivarsDir, "efivarfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""}

// mountKernel mounts one of the kernel's filesystems; one that is there already is fine.
func mountKernel(k kernelMount) error {
	if err := os.MkdirAll(k.target, 0o755); err != nil {
		return fmt.Errorf("making mount point: %w", err)
	}
	if err := unix.Mount(k.source, k.target, k.kind, k.flags, k.options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mounting %s on %s: %w", k.kind, k.target, err)
	}
	return nil
}

// loadModules inserts the modules of the image in their order and returns those the kernel did not
// take. Which of them a machine needs shows later, in the step that misses its device.
func (m *Machine) loadModules() (refused []error) {
	f, err := os.Open(m.path(format.ModulesOrder))
	if err != nil {
		return []error{fmt.Errorf("reading list of modules: %w", err)}
	}
	defer f.Close()
	names := bufio.NewScanner(f)
	for names.Scan() {
		name := strings.TrimSpace(names.Text())
		if name == "" {
			continue
		}
		if err := insertModule(filepath.Join(m.path(format.ModulesDir), name)); err != nil {
			refused = append(refused, fmt.Errorf("module %s: %w", name, err))
		}
	}
	return refused
}

func insertModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
