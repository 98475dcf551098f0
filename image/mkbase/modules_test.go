package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeModule writes the smallest ELF object with a .modinfo section.
func writeModule(t *testing.T, dir, name string, items ...string) {
	t.Helper()
	info := []byte(strings.Join(items, "\x00") + "\x00")
	const names = "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(info) + len(names)),
	}
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names))},
	}
	for _, v := range []any{header, info, []byte(names), sections} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "kernel", name+".ko")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func testTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeModule(t, dir, "fs/ext4", "depends=jbd2,mbcache", "softdep=pre: crypto-crc32c post: ignored", "alias=fs-ext4")
	writeModule(t, dir, "fs/jbd2", "depends=")
	writeModule(t, dir, "fs/mbcache", "depends=built-in")
	writeModule(t, dir, "crypto/crc32c-intel", "alias=crypto-crc32c", "depends=")
	writeModule(t, dir, "crypto/crc32c_generic", "alias=crypto-crc32c*", "depends=")
	writeModule(t, dir, "net/r8169", "softdep=pre: phy-absent realtek", "depends=")
	writeModule(t, dir, "net/realtek", "depends=", "softdep=pre: r8169")
	writeModule(t, dir, "bad/orphan", "depends=nowhere")
	writeModule(t, dir, "bad/a", "depends=b")
	writeModule(t, dir, "bad/b", "depends=a")
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/lib/built_in.ko\nkernel/drivers/serial.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestClosure(t *testing.T) {
	tree, err := readModuleTree(testTree(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		wanted []string
		order  []string
		err    string // part of the message
	}{
		"dependencies first, aliases of a soft one too": {
			wanted: []string{"ext4"}, order: []string{"crc32c_generic", "crc32c_intel", "jbd2", "mbcache", "ext4"},
		},
		"listed twice, in the other spelling": {
			wanted: []string{"crc32c-intel", "crc32c_intel", "jbd2"}, order: []string{"crc32c_intel", "jbd2"},
		},
		"built in":                          {wanted: []string{"serial", "built-in"}},
		"soft circle and absent soft names": {wanted: []string{"r8169"}, order: []string{"realtek", "r8169"}},
		"listed but nowhere":                {wanted: []string{"jbd2", "typo", "other"}, err: "typo, other"},
		"needs what the kernel lacks":       {wanted: []string{"orphan"}, err: "orphan needs nowhere"},
		"hard circle":                       {wanted: []string{"a"}, err: "depends on itself"},
	} {
		t.Run(name, func(t *testing.T) {
			order, err := tree.closure(tc.wanted)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got order %v, error %v", order, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.order, order); diff != "" {
				t.Errorf("load order (-want +got):\n%s", diff)
			}
		})
	}
}

func TestModuleListIsReadable(t *testing.T) {
	names, err := readModuleList("../../configs/modules.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[normalise(name)] {
			t.Errorf("%s is listed twice", name)
		}
		seen[normalise(name)] = true
	}
	// Without these the box has no disk, no state file system or no way to be switched off.
	for _, name := range []string{"virtio_blk", "nvme", "ahci", "sd_mod", "ext4", "button", "evdev", "efivarfs"} {
		if !seen[name] {
			t.Errorf("%s is not listed", name)
		}
	}
}
