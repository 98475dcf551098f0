package box

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/provision"
	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// firstService is the service of a first boot whose KEYS are opened anew in storage's mode, and tells
// whether its ports were opened.
func firstService(t *testing.T, mode int) (s *service, open *bool) {
	t.Helper()
	device, err := tpm.Open(tpmtest.New(t).Spec())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	path := filepath.Join(t.TempDir(), "keys")
	binding := keys.Binding{Kind: keys.KindHost}
	specs := []keys.Spec{{Name: keys.NameTLS, Algorithm: "ecdsa-p256", Protection: keys.Sealed}}
	storage, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	vault, err := keys.Provision(device, storage, "test", specs, binding)
	if err != nil {
		t.Fatal(err)
	}
	vault.Close()
	storage.Close()
	if storage, err = os.OpenFile(path, mode, 0); err != nil {
		t.Fatal(err)
	}
	if vault, err = keys.Open(device, storage, "test", specs, binding); err != nil {
		t.Fatal(err)
	}
	open = new(bool)
	return &service{
		m:         &Machine{root: t.TempDir(), screen: &Screen{}, log: &logBuffer{}},
		b:         &opened{vault: vault, storage: storage, firstBoot: true, site: &provision.Site{}},
		openPorts: func() error { *open = true; return nil },
	}, open
}

func reportOf(t *testing.T, s *service) handover.Boot {
	t.Helper()
	f, err := memoryFile("boot", s.report)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	boot, err := handover.ReadBoot(f)
	if err != nil {
		t.Fatal(err)
	}
	return boot
}

// Once the service of a first boot is ready, a restarted one that finds no records makes no new ones,
// and only then the network reaches it.
func TestFirstReadyEndsProvisioning(t *testing.T) {
	s, opened := firstService(t, os.O_RDWR)
	s.observe(ServiceState{Report: Report{Status: "making certificates"}})
	if *opened || !s.b.firstBoot {
		t.Fatal("the first boot ended before the service was ready")
	}
	s.observe(ServiceState{Ready: true})
	if !*opened || s.b.firstBoot || !s.b.vault.Initialised() {
		t.Errorf("ports opened: %v, first boot: %v", *opened, s.b.firstBoot)
	}
	if reportOf(t, s).Provisioning {
		t.Error("the next start of the service may make new authorities")
	}
}

// A box that cannot record that it is set up serves nobody.
func TestUnrecordedBoxHalts(t *testing.T) {
	s, opened := firstService(t, os.O_RDONLY)
	stopped := make(chan struct{})
	s.m.onStop(func() { close(stopped) })
	s.observe(ServiceState{Ready: true})
	select {
	case <-stopped:
	case <-time.After(2 * time.Minute):
		t.Fatal("the service goes on: nothing was stopped")
	}
	if *opened || !s.m.stopping() {
		t.Error("the box did not halt")
	}
	var k *keys.Error
	if err := s.settle(); !errors.As(err, &k) {
		t.Errorf("settling again: %v", err)
	}
}
