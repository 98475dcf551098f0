package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"signet.internal/image"
)

// kernelMeta is the package that depends on Debian's current kernel.
const kernelMeta = "linux-image-amd64"

// toolPackages hold mke2fs and e2fsck and the libraries they are linked to.
var toolPackages = [...]string{"e2fsprogs", "libext2fs2", "libcom-err2", "libblkid1", "libuuid1", "libc6"}

// bootPackage holds systemd-stub and systemd-boot.
const bootPackage = "systemd-boot-efi"

// debArchive downloads Debian packages and unpacks them below a directory. Nothing is installed: no
// script of a package runs, and the computer's own files stay as they are.
type debArchive struct {
	download, unpacked string
	used               []image.Component
}

// system is where the unpacked parts of Debian lie.
type system struct {
	release string   // uname -r
	modules string   // lib/modules/<release>
	vmlinuz string   // the kernel
	stub    string   // systemd-stub
	loader  string   // systemd-boot
	roots   []string // unpacked trees with mke2fs, e2fsck and libraries
}

// fetchSystem brings in all packages of the base at the versions apt prefers now.
func (a *debArchive) fetchSystem(ctx context.Context) (*system, error) {
	kernel, err := currentKernel(ctx)
	if err != nil {
		return nil, err
	}
	root, err := a.fetch(ctx, kernel)
	if err != nil {
		return nil, err
	}
	s := &system{release: strings.TrimPrefix(kernel, "linux-image-")}
	s.modules = filepath.Join(root, "lib/modules", s.release)
	s.vmlinuz = filepath.Join(root, "boot/vmlinuz-"+s.release)
	boot, err := a.fetch(ctx, bootPackage)
	if err != nil {
		return nil, err
	}
	s.stub = filepath.Join(boot, "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	s.loader = filepath.Join(boot, "usr/lib/systemd/boot/efi/systemd-bootx64.efi")
	for _, name := range toolPackages {
		root, err := a.fetch(ctx, name)
		if err != nil {
			return nil, err
		}
		s.roots = append(s.roots, root)
	}
	return s, nil
}

// currentKernel is the package of the generic kernel Debian ships now, e.g. linux-image-6.1.0-56-amd64.
func currentKernel(ctx context.Context) (string, error) {
	text, err := output(ctx, "", "apt-cache", "depends", kernelMeta)
	if err != nil {
		return "", fmt.Errorf("finding Debian's kernel: %w (apt-get update brings in the package lists)", err)
	}
	for _, line := range strings.Split(text, "\n") {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") && strings.HasSuffix(name, "-amd64") {
			return name, nil
		}
	}
	return "", fmt.Errorf("finding Debian's kernel: %s names none (apt-get update brings in the package lists)", kernelMeta)
}

// fetch makes sure that the candidate version of a package is downloaded, has the hash the archive's
// signed index gives it, and is unpacked. It returns the directory it is unpacked in.
func (a *debArchive) fetch(ctx context.Context, name string) (string, error) {
	text, err := output(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", fmt.Errorf("finding package %s: %w (apt-get update brings in the package lists)", name, err)
	}
	field := map[string]string{}
	for _, line := range strings.Split(text, "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok && field[key] == "" {
			field[key] = strings.TrimSpace(value)
		}
	}
	version, sum := field["Version"], field["SHA256"]
	if version == "" || sum == "" {
		return "", fmt.Errorf("finding package %s: apt does not know its version and hash (apt-get update brings in the package lists)", name)
	}
	file := filepath.Join(a.download, filepath.Base(field["Filename"]))
	if err := a.ensureDownloaded(ctx, name+"="+version, file, sum); err != nil {
		return "", err
	}
	a.used = append(a.used, image.Component{Kind: image.ComponentDebian, Name: name, Version: version, Sum: sum})
	root := filepath.Join(a.unpacked, name+"_"+sum[:16])
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	tmp := root + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	if _, err := output(ctx, "", "dpkg-deb", "-x", file, tmp); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	if err := os.Rename(tmp, root); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", name, err)
	}
	return root, nil
}

// ensureDownloaded leaves the .deb with hash sum at file.
func (a *debArchive) ensureDownloaded(ctx context.Context, spec, file, sum string) error {
	if have, err := fileSum(file); err == nil && have == sum {
		return nil
	}
	notef("downloading %s", spec)
	if err := os.MkdirAll(a.download, 0o755); err != nil {
		return fmt.Errorf("downloading %s: %w", spec, err)
	}
	tmp, err := os.MkdirTemp(a.download, ".get-*")
	if err != nil {
		return fmt.Errorf("downloading %s: %w", spec, err)
	}
	defer os.RemoveAll(tmp)
	if _, err := output(ctx, tmp, "apt-get", "download", "-q", spec); err != nil {
		return fmt.Errorf("downloading %s: %w (is there a network, and are the package lists current? apt-get update renews them)", spec, err)
	}
	got, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(got) != 1 {
		return fmt.Errorf("downloading %s: apt-get left %d packages", spec, len(got))
	}
	have, err := fileSum(got[0])
	if err != nil {
		return fmt.Errorf("downloading %s: %w", spec, err)
	}
	if have != sum {
		return fmt.Errorf("downloading %s: the file does not have the hash of the package lists (apt-get update renews them)", spec)
	}
	if err := os.Rename(got[0], file); err != nil {
		return fmt.Errorf("downloading %s: %w", spec, err)
	}
	return nil
}

// components are the packages used, for the SBOM, sorted by name.
func (a *debArchive) components() []image.Component {
	sort.Slice(a.used, func(i, j int) bool { return a.used[i].Name < a.used[j].Name })
	return a.used
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
