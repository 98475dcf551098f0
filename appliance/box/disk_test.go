package box

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"signet.internal/image/format"
)

const perMiB = format.MiB / format.SectorSize

// testMachine is a machine whose every path is below a directory of the test.
func testMachine(t *testing.T) *Machine {
	t.Helper()
	m := NewMachine()
	m.root = t.TempDir()
	for _, dir := range []string{"/dev", "/sys/block", efivarsDir, "/proc", "/etc/signet"} {
		if err := os.MkdirAll(m.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// addDisk gives the machine a disk of sizeMiB with the image's partitions (in MiB, smaller than the real
// ones), whose ESP has the given GUID.
func (m *Machine) addDisk(t *testing.T, name, esp string, sizeMiB int64) string {
	t.Helper()
	if err := os.MkdirAll(m.path(filepath.Join("/sys/block", name)), 0o755); err != nil {
		t.Fatal(err)
	}
	node := m.path(filepath.Join("/dev", name))
	f, err := os.Create(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The image is 24 MiB whatever the disk is, as when it was flashed to a bigger one.
	const imageSize = 24 * format.MiB
	if err := f.Truncate(imageSize); err != nil {
		t.Fatal(err)
	}
	part := func(index int, start, size uint64, kind, name, guid string) *gpt.Partition {
		return &gpt.Partition{Index: index, Start: start * perMiB, End: (start+size)*perMiB - 1, Size: size * format.MiB, Type: gpt.Type(kind), Name: name, GUID: guid}
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		part(1, 1, 4, string(gpt.EFISystemPartition), format.ESPName, esp),
		part(2, 5, format.KEYSSize/format.MiB, format.KEYSType, format.KEYSName, ""),
		part(3, 7, 16, format.STATEType, format.STATEName, ""),
	}}
	if err := table.Write(f, imageSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sizeMiB * format.MiB); err != nil {
		t.Fatal(err)
	}
	return node
}

// setBootPartition is what the boot loader leaves in firmware variables.
func (m *Machine) setBootPartition(t *testing.T, guid string) {
	t.Helper()
	b := []byte{6, 0, 0, 0}
	for _, u := range utf16.Encode([]rune(guid + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	if err := os.WriteFile(filepath.Join(m.path(efivarsDir), "LoaderDevicePartUUID-"+guidLoader), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	espA = "11111111-2222-3333-4444-AAAAAAAAAAAA"
	espB = "11111111-2222-3333-4444-BBBBBBBBBBBB"
)

func TestFindDisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		disks map[string]string // name -> GUID of its ESP
		boot  string            // what the boot loader says; "" nothing
		want  string            // name of the disk, or part of the refusal
	}{
		{"the booted one of two", map[string]string{"vda": espA, "vdb": espB}, espB, "/dev/vdb"},
		{"loader writes lower case", map[string]string{"nvme0n1": espA}, strings.ToLower(espA), "/dev/nvme0n1"},
		{"a copy of the disk", map[string]string{"sda": espA, "sdb": espA}, espA, "/dev/sda, %[1]s/dev/sdb"},
		{"booted disk gone", map[string]string{"sda": espA}, espB, "not there any more"},
		{"no loader, one disk", map[string]string{"sda": espA}, "", "/dev/sda"},
		{"no loader, two disks", map[string]string{"sda": espA, "sdb": espB}, "", "/dev/sda, %[1]s/dev/sdb"},
		{"no disk", nil, "", "no disk with a KEYS partition"},
		{"loop devices are never ours", map[string]string{"loop0": espA}, "", "no disk with a KEYS partition"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := testMachine(t)
			for name, esp := range c.disks {
				m.addDisk(t, name, esp, 24)
			}
			if c.boot != "" {
				m.setBootPartition(t, c.boot)
			}
			d, err := m.findDisk()
			want := c.want
			if strings.Contains(want, "%") {
				want = fmt.Sprintf(want, m.root)
			}
			switch {
			case err == nil && d.node != m.path(want):
				t.Errorf("found %s, want %s", d.node, want)
			case err != nil && strings.HasPrefix(c.want, "/dev/") && !strings.Contains(c.want, ","):
				t.Errorf("refused: %v", err)
			case err != nil && !strings.Contains(err.Error(), want):
				t.Errorf("refused with %q, want %q", err, want)
			case err != nil:
				checkMend(t, err)
			}
		})
	}
}

// checkMend holds that a refusal says what to do.
func checkMend(t *testing.T, err error) {
	t.Helper()
	if wrong, _ := describe(err); wrong.What == "" || wrong.Mend == "" || wrong.Mend == sentence(mendReport) {
		t.Errorf("refusal without a mend of its own: %+v", wrong)
	}
}

func TestDiskWithoutOurPartitions(t *testing.T) {
	m := testMachine(t)
	node := m.addDisk(t, "vda", espA, 24)
	table, err := readTable(node)
	if err != nil {
		t.Fatal(err)
	}
	table.Partitions = table.Partitions[:1]
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := table.Write(f, 24*format.MiB); err != nil {
		t.Fatal(err)
	}
	m.setBootPartition(t, espA)
	if _, err = m.findDisk(); err == nil {
		t.Fatal("a disk with an ESP alone was taken")
	}
	checkMend(t, err)
}

func TestGrow(t *testing.T) {
	m := testMachine(t)
	node := m.addDisk(t, "vda", espA, 100)
	d, err := m.findDisk()
	if err != nil {
		t.Fatal(err)
	}
	before := *d.keys
	if err := d.grow(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(file.New(f, true), 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Verify(file.New(f, true), 100*format.MiB); err != nil {
		t.Errorf("after growing: %v", err)
	}
	state := partitionOf(table, format.STATEType)
	if state.Start != 7*perMiB || state.End != 99*perMiB-1 {
		t.Errorf("STATE is %d to %d", state.Start, state.End)
	}
	if keys := partitionOf(table, format.KEYSType); keys.Start != before.Start || keys.End != before.End || !strings.EqualFold(keys.GUID, before.GUID) {
		t.Errorf("KEYS moved: %+v, was %+v", keys, before)
	}
	if d, err = m.findDisk(); err != nil {
		t.Fatal(err)
	}
	if _, more, err := d.grown(); more || err != nil {
		t.Errorf("grown already: more %v, %v", more, err)
	}
}

// A power cut while the first table was written leaves the backup; the box reads that.
func TestTornTableIsReadFromBackup(t *testing.T) {
	m := testMachine(t)
	node := m.addDisk(t, "vda", espA, 100)
	d, err := m.findDisk()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.grow(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 128), 2*512+2*128); err != nil { // STATE's entry is gone
		t.Fatal(err)
	}
	if d, err = m.findDisk(); err != nil {
		t.Fatal(err)
	}
	if !d.table.RecoveredFromBackup || d.state.End != 99*perMiB-1 {
		t.Errorf("recovered %v, STATE ends at %d", d.table.RecoveredFromBackup, d.state.End)
	}
}

func TestPartitionNode(t *testing.T) {
	p := &gpt.Partition{Index: 3}
	for node, want := range map[string]string{"/dev/vda": "/dev/vda3", "/dev/nvme0n1": "/dev/nvme0n1p3", "/dev/mmcblk0": "/dev/mmcblk0p3"} {
		if got := (&disk{node: node}).partitionNode(p); got != want {
			t.Errorf("%s: %s, want %s", node, got, want)
		}
	}
}

func TestSecureBootWords(t *testing.T) {
	for _, c := range []struct {
		secure, setup []byte
		want          string
	}{
		{nil, nil, "unknown to this firmware"},
		{[]byte{0}, []byte{0}, "off: "},
		{[]byte{0}, []byte{1}, "off (setup mode): "},
		{[]byte{1}, []byte{0}, "on, but"},
	} {
		m := testMachine(t)
		for name, value := range map[string][]byte{"SecureBoot": c.secure, "SetupMode": c.setup} {
			if value == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(m.path(efivarsDir), name+"-"+guidGlobal), append([]byte{6, 0, 0, 0}, value...), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.secureBootWords(); !strings.HasPrefix(got, c.want) || !strings.HasSuffix(got, unprotected) {
			t.Errorf("SecureBoot %v, SetupMode %v: %q", c.secure, c.setup, got)
		}
	}
}

func TestCheckCmdline(t *testing.T) {
	for _, c := range []struct {
		name, running, measured string
		ok                      bool
	}{
		{"same", "console=ttyS0 lockdown=integrity\n", "console=ttyS0 lockdown=integrity", true},
		{"one more word", "console=ttyS0 lockdown=integrity init=/bin/sh\n", "console=ttyS0 lockdown=integrity", false},
		{"one space more", "console=ttyS0  lockdown=integrity\n", "console=ttyS0 lockdown=integrity", false},
		{"space at the end", "console=ttyS0 \n", "console=ttyS0", false},
		{"empty", "\n", "console=ttyS0", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := testMachine(t)
			for path, text := range map[string]string{"/proc/cmdline": c.running, format.CmdlineFile: c.measured} {
				if err := os.WriteFile(m.path(path), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := m.checkCmdline()
			if c.ok != (err == nil) {
				t.Errorf("got %v", err)
			}
			if err != nil {
				checkMend(t, err)
			}
		})
	}
	if err := testMachine(t).checkCmdline(); err == nil || errors.Is(err, os.ErrExist) {
		t.Errorf("an image without a command line: %v", err)
	}
}
