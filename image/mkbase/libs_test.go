package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLibraryClosureStaysInside uses a dynamically linked program of this computer as input; what it
// needs must come from the given trees or not at all.
func TestLibraryClosureStaysInside(t *testing.T) {
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Skip("no /bin/true: " + err.Error())
	}
	root := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("sbin/tool", program)
	if _, err := libraryClosure([]string{root}, []string{"/sbin/tool"}); err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Fatalf("a library of this computer was used, or another error: %v", err)
	}
	// Stand-ins that need nothing more, reached over links as Debian lays them out.
	leaf, err := os.ReadFile("/lib64/ld-linux-x86-64.so.2")
	if err != nil {
		t.Skip("no ELF interpreter to stand in: " + err.Error())
	}
	write("lib/x86_64-linux-gnu/libc-2.99.so", leaf)
	write("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", leaf)
	if err := os.MkdirAll(filepath.Join(root, "lib64"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"lib/x86_64-linux-gnu/libc.so.6": "libc-2.99.so",
		"lib64/ld-linux-x86-64.so.2":     "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := libraryClosure([]string{root}, []string{"/sbin/tool"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range files {
		got[f.name] = true
	}
	for _, name := range []string{"/sbin/tool", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"} {
		if !got[name] {
			t.Errorf("%s is not in the closure %v", name, got)
		}
	}
	if len(files) != 3 {
		t.Errorf("closure has %d files: %v", len(files), got)
	}
}
