package vm

// What these tests do not prove: that an image boots. The one that needs QEMU runs the firmware
// without a disk; booting an image is the machine test's story.

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/needtest"
)

func TestLastState(t *testing.T) {
	for log, want := range map[string]string{
		"":                            "",
		"BdsDxe: starting Boot0001\n": "",
		"  SIGNET  demo\n  State        opening keys\r\n\n":                           "opening keys",
		"\x1b[2J  State        opening keys\n  State        starting the service\r\n": "starting the service",
		"  State        opening keys\n  State        starting the ser":                "opening keys",
		"  State        a\x07b\u009bc\n":                                              "abc",
		"State of affairs\n":                                                          "",
	} {
		if got := lastState([]byte(log)); got != want {
			t.Errorf("%q: state %q, want %q", log, got, want)
		}
	}
}

func TestReadSerial(t *testing.T) {
	const noise = "\x1b[2J\x1b[1;1HBdsDxe: starting Boot0001\r\n  State  ready\r\n"
	ready := `signet: ready {"name":"demo","version":"0.1.0","claim_code":"ABCD-EFGH","tls_sha256":"aa","uptime_seconds":12.5}`
	halted := `signet: halted {"what":"this TPM does not hold this box's keys","mend":"put the disk back"}`
	want := &Ready{Name: "demo", Version: "0.1.0", ClaimCode: "ABCD-EFGH", TLSSHA256: "aa", UptimeSeconds: 12.5}
	for name, tc := range map[string]struct {
		log    string
		ready  *Ready
		halted *HaltedError
		err    string
	}{
		"nothing yet":           {log: noise},
		"ready":                 {log: noise + ready + "\r\nmore", ready: want},
		"after a control code":  {log: noise + "\x1b[0m" + ready + "\n", ready: want},
		"line not complete":     {log: noise + ready},
		"broken, then repeated": {log: noise + "signet: ready {\"name\":\"de\n" + ready + "\n", ready: want},
		"halted":                {log: noise + halted + "\n", halted: &HaltedError{What: "this TPM does not hold this box's keys", Mend: "put the disk back"}},
		"halted after ready":    {log: ready + "\n" + halted + "\n", halted: &HaltedError{What: "this TPM does not hold this box's keys", Mend: "put the disk back"}},
		"kernel panic":          {log: noise + "[ 1.0] Kernel panic - not syncing: No working init found.\r\n", err: "No working init"},
		"in somebody's words":   {log: noise + "  ! Attention  " + halted + "\n" + "  State        starting the service: " + ready + "\n"},
		"text about readiness":  {log: "signet: ready when you are\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readSerial([]byte(tc.log))
			if diff := cmp.Diff(tc.ready, got); diff != "" {
				t.Errorf("ready (-want +got):\n%s", diff)
			}
			var h *HaltedError
			if errors.As(err, &h) != (tc.halted != nil) || tc.halted != nil && *h != *tc.halted {
				t.Errorf("halted: got %v, want %v", h, tc.halted)
			}
			if tc.halted == nil && (err != nil) != (tc.err != "") || tc.err != "" && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got error %v, want one with %q", err, tc.err)
			}
		})
	}
}

// testImage writes an output directory whose ESP holds mark.
func testImage(t *testing.T, out, mark string) {
	t.Helper()
	path := filepath.Join(out, "signet.img")
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	d, err := diskfs.Create(path, 8<<20, diskfs.SectorSizeDefault)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Partition(&gpt.Table{ProtectiveMBR: true, LogicalSectorSize: 512, PhysicalSectorSize: 512, Partitions: []*gpt.Partition{
		{Index: 1, Start: 2048, End: 2048*3 - 1, Type: gpt.EFISystemPartition, Name: "ESP"},
		{Index: 2, Start: 2048 * 3, End: 2048*5 - 1, Type: gpt.LinuxFilesystem, Name: "STATE"},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	patch(t, path, 1<<20, mark)
	manifest := `{"files":{"signet.img":{"sha256":"` + mark + `"}}}`
	if err := os.WriteFile(filepath.Join(out, "manifest.json"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
}

func patch(t *testing.T, path string, at int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func textAt(t *testing.T, path string, at int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 16)
	if _, err := f.ReadAt(buf, at); err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimRight(buf, "\x00"))
}

// TestDiskLife: the machine's disk begins as the image; a rebuilt image replaces its ESP, whole, and
// nothing else; an unchanged image replaces nothing.
func TestDiskLife(t *testing.T) {
	const esp, leftover, state = 1 << 20, 2 << 20, 3 << 20
	out := t.TempDir()
	prepare := func() *Machine {
		t.Helper()
		m := &Machine{dir: filepath.Join(out, "vm")}
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if m.state, err = readState(m.dir); err != nil {
			t.Fatal(err)
		}
		if err := m.prepareDisk(out); err != nil {
			t.Fatal(err)
		}
		return m
	}
	testImage(t, out, "first")
	disk := prepare().DiskPath()
	info, err := os.Stat(disk)
	if err != nil || info.Size() != diskSize {
		t.Fatalf("disk: %v %v", info, err)
	}
	if got := textAt(t, disk, esp); got != "first" {
		t.Fatalf("ESP of a new disk holds %q", got)
	}
	patch(t, disk, leftover, "renamed by loader")
	patch(t, disk, state, "the box's state")

	prepare()
	if got := textAt(t, disk, leftover); got != "renamed by loade" {
		t.Errorf("an unchanged image touched the ESP: %q", got)
	}
	testImage(t, out, "second")
	prepare()
	for at, want := range map[int64]string{esp: "second", leftover: "", state: "the box's state"} {
		if got := textAt(t, disk, at); got != want {
			t.Errorf("after a rebuilt image, %#x holds %q, want %q", at, got, want)
		}
	}
}

func TestLockOutlivesItsTaker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := takeLock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	// A child that inherits the lock holds it after its parent let go.
	pid, err := spawn(path+".log", []*os.File{first}, "/bin/sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(pid, "/bin/sleep") })
	first.Close()
	if _, err := takeLock(context.Background(), path); !errors.Is(err, ErrRunning) {
		t.Fatalf("second lock: %v", err)
	}
	if err := kill(pid, "another program"); err != nil || !alive(pid, "/bin/sleep") {
		t.Fatalf("a process with another command line was ended (%v)", err)
	}
	if err := kill(pid, "/bin/sleep"); err != nil {
		t.Fatal(err)
	}
	again, err := takeLock(context.Background(), path)
	if err != nil {
		t.Fatalf("lock after the holder ended: %v", err)
	}
	again.Close()
}

func TestLoadNotRunning(t *testing.T) {
	out := t.TempDir()
	if _, err := Load(out); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nothing was ever started: %v", err)
	}
	m := &Machine{dir: filepath.Join(out, "vm"), state: state{QEMU: os.Getpid(), Sockets: "/nowhere/signet-vm-0"}}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.writeState(); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(out); !errors.Is(err, ErrNotRunning) {
		t.Errorf("the number belongs to another process: %v", err)
	}
}

func TestChoosePortsKeepsFreeOnes(t *testing.T) {
	m := &Machine{}
	if err := m.choosePorts(guestPorts[:]); err != nil {
		t.Fatal(err)
	}
	before := m.state.Ports
	if len(before) != len(guestPorts) {
		t.Fatalf("ports %v", before)
	}
	again := &Machine{state: state{Ports: before}}
	if err := again.choosePorts(guestPorts[:]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, again.state.Ports); diff != "" {
		t.Errorf("free ports were not kept:\n%s", diff)
	}
}

// TestChoosePortsPrefersTheGuests: what is free here has the number it has in the guest, and what is not
// has another.
func TestChoosePortsPrefersTheGuests(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	guest := taken.Addr().(*net.TCPAddr).Port
	m := &Machine{}
	if err := m.choosePorts([]int{guest}); err != nil {
		t.Fatal(err)
	}
	if m.state.Ports[guest] == guest || m.state.Ports[guest] == 0 {
		t.Errorf("port %d was taken, %d is chosen", guest, m.state.Ports[guest])
	}
	taken.Close()
	m = &Machine{}
	if err := m.choosePorts([]int{guest}); err != nil {
		t.Fatal(err)
	}
	if m.state.Ports[guest] != guest {
		t.Errorf("port %d is free, %d is chosen", guest, m.state.Ports[guest])
	}
}

// TestFirmwareStartsAndStops boots the firmware with a TPM and an empty disk, as far as it gets.
func TestFirmwareStartsAndStops(t *testing.T) {
	if _, err := findParts(); err != nil {
		needtest.Missing(t, err.Error())
	}
	out := t.TempDir()
	testImage(t, out, "empty")
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	m, err := Start(ctx, Options{Out: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	if _, err := Start(ctx, Options{Out: out}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second machine of the same image: %v", err)
	}
	if err := waitFor(ctx, func() bool {
		log, err := os.ReadFile(m.SerialPath())
		return err == nil && bytes.Contains(log, []byte("BdsDxe: "))
	}); err != nil {
		t.Fatalf("the firmware says nothing: %v%s", err, tail(m.path("qemu.log")))
	}
	loaded, err := Load(out)
	if err != nil {
		t.Fatal(err)
	}
	shot := filepath.Join(t.TempDir(), "screen.ppm")
	if err := loaded.Screenshot(ctx, shot); err != nil {
		t.Errorf("screenshot: %v", err)
	}
	if err := loaded.Kill(); err != nil {
		t.Fatal(err)
	}
	if m.Running() {
		t.Error("the machine runs after its power was cut")
	}
	if _, err := m.WaitReady(ctx, nil); err == nil || !strings.Contains(err.Error(), "BdsDxe") {
		t.Errorf("waiting for a machine that ended says %v, want the end of its console", err)
	}
	if _, err := os.Stat(m.state.Sockets); !os.IsNotExist(err) {
		t.Errorf("sockets were left behind: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(out, "vm", "tpm"))
	if err != nil || len(entries) == 0 {
		t.Errorf("the TPM left no state: %v %v", entries, err)
	}
}
