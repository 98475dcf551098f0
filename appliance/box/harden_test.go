package box

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// That a real kernel takes every value is shown by a booted box alone: it halts where one is refused.
func TestKernelSettings(t *testing.T) {
	m := &Machine{root: t.TempDir(), screen: &Screen{}, log: &logBuffer{}}
	name := func(s setting) string { return filepath.Join(m.root, "proc/sys", s.name) }
	all := append(kernelSettings[:len(kernelSettings):len(kernelSettings)], noMoreModules...)
	for _, s := range all {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name(s)), 0o755), os.WriteFile(name(s), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	missing := all[1]
	if err := os.Remove(name(missing)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.setKernel(kernelSettings), m.setKernel(noMoreModules)); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		got, err := os.ReadFile(name(s))
		if s == missing {
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s was made", s.name)
			}
		} else if err != nil || string(got) != s.value {
			t.Errorf("%s is %q, %v", s.name, got, err)
		}
	}
	// A directory is a file that takes no value.
	if err := os.Mkdir(name(missing), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.setKernel(kernelSettings); err == nil {
		t.Error("a setting the kernel refused was passed over")
	} else {
		checkMend(t, err)
	}
}

// Processes of a box see nothing of each other.
func TestProcessesAreHidden(t *testing.T) {
	for _, k := range earlyMounts {
		if k.kind == "proc" && !strings.Contains(k.options, "hidepid=2") {
			t.Errorf("/proc is mounted with %q", k.options)
		}
	}
}
