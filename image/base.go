package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Files of a base directory. BaseFile is written last and holds the hashes of the others.
const (
	BaseFile      = "base.json"
	BaseInitramfs = "initramfs.cpio.zst"
	BaseKernel    = "vmlinuz"
	BaseStub      = "stub.efi"
	BaseLoader    = "systemd-boot.efi"
)

// ErrNoBase is returned for a directory without BaseFile.
var ErrNoBase = errors.New("no prebuilt base here")

// Base describes a base directory: everything of an image that is the same for all sites.
type Base struct {
	Kernel    string            `json:"kernel"`     // uname -r
	BuildTime time.Time         `json:"build_time"` // commit time of the source the base was built from
	SHA256    map[string]string `json:"sha256"`     // lower-case hex by file name
	SBOM      []Component       `json:"sbom"`       // sorted by kind, then name
}

// Component is one third-party part of an image.
type Component struct {
	Kind    string `json:"kind"` // ComponentDebian, ComponentGo or ComponentToolchain
	Name    string `json:"name"`
	Version string `json:"version"`
	Sum     string `json:"sum,omitempty"` // hex SHA-256 of the .deb, or the go.sum hash of the module
}

// Kinds of Component.
const (
	ComponentDebian    = "debian"
	ComponentGo        = "go-module"
	ComponentToolchain = "go-toolchain"
)

// baseContent is a base with its files, checked against their hashes.
type baseContent struct {
	Base
	initramfs, kernel, stub, loader []byte
}

// ReadBase reads the description of a base directory without checking its files.
func ReadBase(dir string) (*Base, error) {
	data, err := os.ReadFile(filepath.Join(dir, BaseFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoBase)
	} else if err != nil {
		return nil, fmt.Errorf("reading base: %w", err)
	}
	var b Base
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, BaseFile), err)
	}
	return &b, nil
}

// openBase reads a whole base directory and refuses a file that does not have its recorded hash:
// a base half rebuilt, or changed since, must not be signed.
func openBase(dir string) (*baseContent, error) {
	b, err := ReadBase(dir)
	if err != nil {
		return nil, err
	}
	c := &baseContent{Base: *b}
	for name, into := range map[string]*[]byte{
		BaseInitramfs: &c.initramfs, BaseKernel: &c.kernel, BaseStub: &c.stub, BaseLoader: &c.loader,
	} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("reading base: %w", err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != b.SHA256[name] {
			return nil, fmt.Errorf("base file %s is not the one %s describes", filepath.Join(dir, name), BaseFile)
		}
		*into = data
	}
	return c, nil
}
