// Command mkbase builds what is the same in every image: the base initramfs, kernel, systemd-stub
// and systemd-boot, once, so that a bake needs no Go toolchain. It is run by make in the module's root.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"signet.internal/image"
)

func main() {
	out := flag.String("o", "build/base", "directory to write")
	work := flag.String("work", "build", "directory for downloaded and unpacked packages")
	modules := flag.String("modules", "configs/modules.txt", "list of kernel modules")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	syscall.Umask(0o022) // modes in the initramfs come from files
	if err := run(ctx, *out, *work, *modules); err != nil {
		fmt.Fprintf(os.Stderr, "mkbase: %v\n", err)
		os.Exit(1)
	}
}

func notef(format string, args ...any) { fmt.Fprintf(os.Stderr, "base: "+format+"\n", args...) }

// run writes a base into a directory beside out and puts it in out's place when it is whole.
func run(ctx context.Context, out, work, moduleList string) error {
	built, err := commitTime(ctx)
	if err != nil {
		return err
	}
	wanted, err := readModuleList(moduleList)
	if err != nil {
		return err
	}
	debs := &debArchive{download: filepath.Join(work, "deb"), unpacked: filepath.Join(work, "unpacked")}
	sys, err := debs.fetchSystem(ctx)
	if err != nil {
		return err
	}
	tmp := out + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	notef("compiling boxinit and signetd, assembling the initramfs")
	initramfs, goParts, err := buildInitramfs(sys, wanted, tmp)
	if err != nil {
		return err
	}
	base := image.Base{Kernel: sys.release, BuildTime: built, SHA256: map[string]string{}}
	base.SBOM = append(debs.components(), goParts...)
	for name, source := range map[string]func() ([]byte, error){
		image.BaseInitramfs: func() ([]byte, error) { return initramfs, nil },
		image.BaseKernel:    func() ([]byte, error) { return os.ReadFile(sys.vmlinuz) },
		image.BaseStub:      func() ([]byte, error) { return os.ReadFile(sys.stub) },
		image.BaseLoader:    func() ([]byte, error) { return os.ReadFile(sys.loader) },
	} {
		data, err := source()
		if err != nil {
			return fmt.Errorf("writing base: %w", err)
		}
		if err := os.WriteFile(filepath.Join(tmp, name), data, 0o644); err != nil {
			return fmt.Errorf("writing base: %w", err)
		}
		sum := sha256.Sum256(data)
		base.SHA256[name] = hex.EncodeToString(sum[:])
	}
	text, err := json.MarshalIndent(base, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, image.BaseFile), append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing base: %w", err)
	}
	if err := os.RemoveAll(out); err != nil {
		return fmt.Errorf("replacing the old base: %w", err)
	}
	if err := os.Rename(tmp, out); err != nil {
		return fmt.Errorf("replacing the old base: %w", err)
	}
	notef("%s: kernel %s, initramfs %d KiB", out, sys.release, len(initramfs)>>10)
	return nil
}

// commitTime is the build time of every image on this base: SOURCE_DATE_EPOCH where set
// (reproducible-builds.org), else the time of the commit that is checked out.
func commitTime(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := output(ctx, "", "git", "log", "-1", "--format=%ct")
		if err != nil {
			return time.Time{}, fmt.Errorf("finding the source's commit time: %w (outside a git clone, set SOURCE_DATE_EPOCH)", err)
		}
		text = strings.TrimSpace(out)
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is not a number of seconds", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// output runs a program in dir and returns what it prints; its messages are part of the error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		message := strings.TrimSpace(stderr.String())
		if message != "" {
			message = ": " + message
		}
		return "", fmt.Errorf("%s %s: %w%s", name, args[0], err, message)
	}
	return string(out), nil
}
