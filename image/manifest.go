package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Files of an output directory.
const (
	DiskFile     = "signet.img"    // GPT disk, sparse
	UKIFile      = "signet.efi"    // the signed unified kernel image on its ESP
	ManifestFile = "manifest.json" // one JSON Manifest, written last
)

// ErrNoImage is returned by ReadManifest for a directory without ManifestFile.
var ErrNoImage = errors.New("no baked image here")

// Manifest describes a baked image. It is not signed: verifiers take it from the operator's own
// build, never from the box.
type Manifest struct {
	Name          string            `json:"name"`
	Version       string            `json:"version"`
	Epoch         uint32            `json:"epoch"`
	BuildTime     time.Time         `json:"build_time"` // the base's commit time
	Kernel        string            `json:"kernel"`     // uname -r
	Stub          string            `json:"stub"`       // e.g. "systemd-stub 252.39-1~deb12u2"
	Cmdline       string            `json:"cmdline"`
	SecureBoot    string            `json:"secure_boot"` // the site's secure_boot
	Listeners     []string          `json:"listeners"`   // names of the listeners that are on
	Profiles      []Profile         `json:"profiles"`
	Files         map[string]File   `json:"files"`          // by file name
	PCR11         map[string]string `json:"pcr11"`          // lower-case hex of the SHA-256 bank, by phase
	PolicyKey     string            `json:"policy_key"`     // lower-case hex SHA-256 of the PKIX policy key
	DBCertificate string            `json:"db_certificate"` // lower-case hex SHA-256 of the DER certificate
	SBOM          []Component       `json:"sbom"`
}

// Profile is where a client finds one enrollment profile.
type Profile struct {
	Name       string `json:"name"`
	Default    bool   `json:"default"`
	SCEP       bool   `json:"scep"`
	PlainSCEP  bool   `json:"plain_scep"`  // served on the plain listener too
	LegacySCEP bool   `json:"legacy_scep"` // served on listener legacy_scep too
	EST        bool   `json:"est"`
	LegacyEST  bool   `json:"legacy_est"` // served on listener legacy too

	PublicChallenge string `json:"public_challenge,omitempty"` // that all devices share, where it is published: the demo's
}

// File is one output of a bake.
type File struct {
	Size   int64  `json:"size"`   // bytes, holes included
	SHA256 string `json:"sha256"` // lower-case hex
}

// ReadManifest reads the manifest of an output directory.
func ReadManifest(out string) (*Manifest, error) {
	path := filepath.Join(out, ManifestFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", out, ErrNoImage)
	} else if err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return &m, nil
}
