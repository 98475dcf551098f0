package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/uio/llog"

	"signet.internal/image"
	"signet.internal/image/format"
)

// programs are built into the initramfs; boxinit is /init.
var programs = []string{"signet.internal/cmd/boxinit", "signet.internal/cmd/signetd"}

// tools come from Debian, with the libraries they are linked to.
var tools = []string{format.MkfsPath, format.FsckPath}

// directories the box mounts on or writes to.
var directories = []struct {
	name string
	mode uint64
}{
	{"bin", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"lib", 0o755}, {"lib64", 0o755}, {"proc", 0o555},
	{"run", 0o755}, {"sbin", 0o755}, {"state", 0o755}, {"sys", 0o555}, {"tmp", 0o1777},
}

// buildInitramfs returns the compressed base initramfs and the Go parts of the SBOM. tmp is for
// files in between.
func buildInitramfs(sys *system, wanted []string, tmp string) ([]byte, []image.Component, error) {
	records, err := baseRecords(sys, wanted)
	if err != nil {
		return nil, nil, err
	}
	archive, err := cpio.ArchiveFromRecords(records)
	if err != nil {
		return nil, nil, fmt.Errorf("assembling the initramfs: %w", err)
	}
	work, err := os.MkdirTemp(tmp, "initramfs-*")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(work)
	plain := filepath.Join(work, "base.cpio")
	err = uimage.Create(llog.New(slog.LevelWarn, llog.WritePrintf(os.Stderr)),
		uimage.WithReplaceEnv(golang.Default(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH("amd64"))),
		// mkuimage builds everything anew by default (-a), the standard library too: the build cache
		// gives the same bytes. Version control is not stamped, or an unrelated commit changed PCR 11.
		uimage.WithBinaryCommandsOpts(&golang.BuildOpts{EnableInlining: true, ExtraArgs: []string{"-a=false", "-buildvcs=false"}}, programs...),
		uimage.WithBaseArchive(archive),
		uimage.WithInit("boxinit"),
		uimage.WithSkipLDD(),
		uimage.WithTempDir(work),
		uimage.WithCPIOOutput(plain),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("assembling the initramfs: %w", err)
	}
	data, err := openRoot(plain)
	if err != nil {
		return nil, nil, fmt.Errorf("assembling the initramfs: %w", err)
	}
	parts, err := goComponents(data)
	if err != nil {
		return nil, nil, err
	}
	compressed, err := compress(data)
	return compressed, parts, err
}

// openRoot reads an initramfs and lets every process enter its root directory: mkuimage gives that the
// mode of its own temporary one, which shuts out all but root.
func openRoot(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := cpio.Newc.Writer(&out)
	err = cpio.Copy(w, cpio.Newc.Reader(bytes.NewReader(data)), func(r cpio.Record) cpio.Record {
		if r.Name == "." {
			r.Mode = cpio.S_IFDIR | 0o755
		}
		return r
	})
	if err != nil {
		return nil, err
	}
	err = cpio.WriteTrailer(w)
	return out.Bytes(), err
}

// baseRecords is everything in the initramfs that is not a Go program of ours.
func baseRecords(sys *system, wanted []string) ([]cpio.Record, error) {
	var records []cpio.Record
	for _, d := range directories {
		records = append(records, cpio.Directory(d.name, d.mode))
	}
	// Until devtmpfs is mounted, the kernel opens this for /init's standard files.
	records = append(records, cpio.CharDev("dev/console", 0o600, 5, 1))
	tree, err := readModuleTree(sys.modules)
	if err != nil {
		return nil, err
	}
	order, err := tree.closure(wanted)
	if err != nil {
		return nil, fmt.Errorf("resolving kernel modules: %w", err)
	}
	notef("%d kernel modules for %d listed", len(order), len(wanted))
	var list strings.Builder
	for _, name := range order {
		data, err := os.ReadFile(tree.files[name])
		if err != nil {
			return nil, fmt.Errorf("reading kernel modules: %w", err)
		}
		records = append(records, cpio.StaticFile(inArchive(path.Join(format.ModulesDir, name+".ko")), string(data), 0o644))
		list.WriteString(name + ".ko\n")
	}
	records = append(records, cpio.StaticFile(inArchive(format.ModulesOrder), list.String(), 0o644))
	files, err := libraryClosure(sys.roots, tools)
	if err != nil {
		return nil, fmt.Errorf("collecting Debian's tools: %w", err)
	}
	for _, f := range files {
		records = append(records, cpio.StaticFile(inArchive(f.name), string(f.data), 0o755))
	}
	cpio.MakeAllReproducible(records)
	return records, nil
}

func inArchive(name string) string { return strings.TrimPrefix(name, "/") }

// compress makes one zstd frame, always the same for the same input. The kernel's decompressor takes
// windows of up to 8 MiB without asking for more memory.
func compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// goComponents reads from the programs themselves which toolchain and modules they were built with.
func goComponents(initramfs []byte) ([]image.Component, error) {
	found := map[image.Component]bool{}
	reader := cpio.Newc.Reader(bytes.NewReader(initramfs))
	err := cpio.ForEachRecord(reader, func(r cpio.Record) error {
		if path.Dir(r.Name) != "bin" {
			return nil
		}
		info, err := buildinfo.Read(r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		found[image.Component{Kind: image.ComponentToolchain, Name: "go", Version: info.GoVersion}] = true
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			found[image.Component{Kind: image.ComponentGo, Name: m.Path, Version: m.Version, Sum: m.Sum}] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading build information: %w", err)
	}
	var parts []image.Component
	for c := range found {
		parts = append(parts, c)
	}
	sort.Slice(parts, func(i, j int) bool {
		a, b := parts[i], parts[j]
		return a.Kind+"\x00"+a.Name < b.Kind+"\x00"+b.Name
	})
	return parts, nil
}
