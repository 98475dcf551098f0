package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// libraryDirs is where ld.so looks without a cache (ld.so(8), Debian's multiarch directories).
var libraryDirs = [...]string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// elfFile is one file to put into the initramfs under its own name.
type elfFile struct {
	name string // absolute
	data []byte
}

// libraryClosure returns programs, the ELF interpreter and every library they are linked to, from
// unpacked packages alone: what this computer has installed never gets into an image. Libraries a
// program loads by itself (dlopen) are not seen.
func libraryClosure(roots, programs []string) ([]elfFile, error) {
	var files []elfFile
	seen := map[string]bool{}
	queue := append([]string(nil), programs...)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		data, err := readFromRoots(roots, name)
		if err != nil {
			return nil, err
		}
		files = append(files, elfFile{name, data})
		needed, err := elfNeeds(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, n := range needed {
			if path.IsAbs(n) {
				queue = append(queue, n)
				continue
			}
			found, err := findLibrary(roots, n)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			queue = append(queue, found)
		}
	}
	return files, nil
}

// elfNeeds returns the interpreter (absolute) and the libraries (by name) of an ELF file.
func elfNeeds(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interpreter, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		needed = append(needed, strings.TrimRight(string(interpreter), "\x00"))
	}
	return needed, nil
}

func findLibrary(roots []string, name string) (string, error) {
	// ld.so is needed by libc under its name alone and lies where programs name it as interpreter.
	if name == path.Base(interpreterPath) {
		return interpreterPath, nil
	}
	for _, dir := range libraryDirs {
		if _, err := readFromRoots(roots, path.Join(dir, name)); err == nil {
			return path.Join(dir, name), nil
		}
	}
	return "", fmt.Errorf("library %s is in none of the unpacked packages", name)
}

// interpreterPath is fixed by the x86-64 psABI.
const interpreterPath = "/lib64/ld-linux-x86-64.so.2"

// readFromRoots reads a file of the first tree that has it, following links inside that tree.
func readFromRoots(roots []string, name string) ([]byte, error) {
	for _, root := range roots {
		at := name
		for range 8 {
			target, err := os.Readlink(filepath.Join(root, at))
			if err != nil {
				break
			}
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(at), target)
			}
			at = target
		}
		if data, err := os.ReadFile(filepath.Join(root, at)); err == nil {
			return data, nil
		}
	}
	return nil, fmt.Errorf("%s is in none of the unpacked packages", name)
}
