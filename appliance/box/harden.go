package box

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// setting is a file below /proc/sys and what is written to it.
type setting struct{ name, value string }

// kernelSettings close what no process of a box needs and what a taken-over service would try first.
// They are written before anything runs that is not boxinit, and before a network interface appears,
// which takes the "default" ones over.
var kernelSettings = []setting{
	// Namespaces of one's own would open packet filter, mounts and more to a process without rights.
	{"user/max_user_namespaces", "0"},
	{"kernel/unprivileged_userns_clone", "0"}, // Debian's
	{"kernel/unprivileged_bpf_disabled", "1"},
	{"net/core/bpf_jit_harden", "2"},
	{"kernel/perf_event_paranoid", "3"},
	{"kernel/yama/ptrace_scope", "3"},
	{"kernel/kptr_restrict", "2"},
	{"kernel/dmesg_restrict", "1"},
	{"kernel/kexec_load_disabled", "1"},
	{"kernel/sysrq", "0"}, // a break on the serial line is a key press too
	{"fs/suid_dumpable", "0"},
	{"fs/protected_symlinks", "1"},
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_fifos", "2"},
	{"fs/protected_regular", "2"},
	{"net/ipv4/conf/all/rp_filter", "1"},
	{"net/ipv4/conf/default/rp_filter", "1"},
	{"net/ipv4/conf/all/accept_redirects", "0"},
	{"net/ipv4/conf/default/accept_redirects", "0"},
	{"net/ipv4/conf/all/send_redirects", "0"},
	{"net/ipv4/conf/default/send_redirects", "0"},
	{"net/ipv6/conf/all/accept_redirects", "0"},
	{"net/ipv6/conf/default/accept_redirects", "0"},
}

// noMoreModules comes after the last module of the image: root itself loads none then.
var noMoreModules = []setting{{"kernel/modules_disabled", "1"}}

// setKernel writes settings. A file that is not there is a feature the kernel does not have; one that
// does not take its value is an error.
func (m *Machine) setKernel(settings []setting) error {
	var failed error
	for _, s := range settings {
		err := writeSetting(m.path(filepath.Join("/proc/sys", s.name)), s.value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return &Problem{
			What: "the kernel does not take the limits that a box puts on its own processes",
			Mend: "bake the image again on the kernel it was made for, and flash it",
			Err:  fmt.Errorf("writing kernel settings: %w", failed),
		}
	}
	return nil
}

// writeSetting writes to a file that is there.
func writeSetting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
