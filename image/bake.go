package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"debug/pe"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"signet.internal/image/format"
	"signet.internal/provision"
	"signet.internal/tpm"
)

// Cmdline is the kernel command line of every image. The last console= is /dev/console, so messages
// and the status page are on the serial port; boxinit draws the page on tty1 itself. It is part of
// the measured overlay too, because without Secure Boot an entry file on the ESP can replace it.
const Cmdline = "console=tty0 console=ttyS0,115200 quiet loglevel=4 panic=10 lockdown=integrity"

// bake does what Bake says, in order: site, base, unified kernel image, disk, manifest.
func bake(ctx context.Context, o Options) (*Manifest, error) {
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	progress("checking the site")
	site, err := provision.Load(o.Site)
	if err != nil {
		return nil, err
	}
	progress("reading the base")
	base, err := openBase(o.Base)
	if err != nil {
		return nil, err
	}
	progress("assembling the kernel image")
	uki, err := buildUKI(o, site, base)
	if err != nil {
		return nil, err
	}
	loader, err := signAuthenticode(base.loader, o.Keys.DB, o.Keys.DBCert)
	if err != nil {
		return nil, fmt.Errorf("systemd-boot: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	progress("writing the disk image")
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, fmt.Errorf("writing image: %w", err)
	}
	work, err := os.MkdirTemp(o.Out, ".bake-*")
	if err != nil {
		return nil, fmt.Errorf("writing image: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, UKIFile), uki.signed, 0o644); err != nil {
		return nil, fmt.Errorf("writing image: %w", err)
	}
	// A version is MAJOR.MINOR.PATCH: no plus sign, after which systemd-boot reads a boot counter.
	esp := map[string][]byte{
		"/EFI/BOOT/BOOTX64.EFI":                      loader,
		"/EFI/Linux/signet_" + site.Version + ".efi": uki.signed,
		"/loader/loader.conf":                        []byte("timeout 0\neditor no\n"),
	}
	if err := writeDisk(filepath.Join(work, DiskFile), site.Name, base.BuildTime, esp); err != nil {
		return nil, err
	}
	progress("writing the manifest")
	m, err := newManifest(o, site, base, uki, work)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(work, ManifestFile), append(text, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("writing image: %w", err)
	}
	// The old manifest goes first: whatever is interrupted here, no manifest ever describes other files.
	if err := os.Remove(filepath.Join(o.Out, ManifestFile)); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("writing image: %w", err)
	}
	for _, name := range []string{DiskFile, UKIFile, ManifestFile} {
		if err := os.Rename(filepath.Join(work, name), filepath.Join(o.Out, name)); err != nil {
			return nil, fmt.Errorf("writing image: %w", err)
		}
	}
	return m, syncDir(o.Out)
}

// kernelImage is a unified kernel image and what is known about its boot.
type kernelImage struct {
	signed []byte
	stub   string // e.g. "systemd-stub 252.39-1~deb12u2"
	pcr11  map[string][32]byte
}

func buildUKI(o Options, site *provision.Site, base *baseContent) (*kernelImage, error) {
	stub, err := pe.NewFile(bytes.NewReader(base.stub))
	if err != nil {
		return nil, fmt.Errorf("reading systemd-stub: %v", err)
	}
	stubName, major, err := stubVersion(stub)
	if err != nil {
		return nil, err
	}
	order, known := measuredSections(major)
	if !known {
		return nil, fmt.Errorf("what %s measures is not known here: build the base with systemd-boot-efi 252 (Debian 12)", stubName)
	}
	files, err := siteFiles(o.Site, site.Files)
	if err != nil {
		return nil, err
	}
	segment, err := overlay(files, format.Release{
		Name: site.Name, Version: site.Version, Epoch: site.Epoch, BuildTime: base.BuildTime, Kernel: base.Kernel,
	}, Cmdline)
	if err != nil {
		return nil, err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(&o.Keys.Policy.PublicKey)
	if err != nil {
		return nil, err
	}
	osRelease := fmt.Sprintf("ID=signet\nVERSION_ID=%q\nPRETTY_NAME=%q\n", site.Version, "Signet "+site.Name+" "+site.Version)
	sections := []section{
		{".osrel", []byte(osRelease)},
		{".cmdline", []byte(Cmdline)},
		{".uname", []byte(base.Kernel)},
		{".pcrpkey", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})},
		{".pcrsig", nil}, // over the others
		{".linux", base.kernel},
		{".initrd", append(pad4(bytes.Clone(base.initramfs)), segment...)},
	}
	contents := map[string][]byte{}
	for _, s := range sections {
		contents[s.name] = s.data
	}
	pcr11 := predictPCR11(order, contents)
	for i := range sections {
		if sections[i].name == ".pcrsig" {
			if sections[i].data, err = policySignatures(o.Keys, site.Epoch, pcr11); err != nil {
				return nil, err
			}
		}
	}
	unsigned, err := assembleUKI(base.stub, sections)
	if err != nil {
		return nil, err
	}
	signed, err := signAuthenticode(unsigned, o.Keys.DB, o.Keys.DBCert)
	if err != nil {
		return nil, err
	}
	return &kernelImage{signed, stubName, pcr11}, nil
}

// policySignatures is the .pcrsig section: the site's policy key approves the predicted values of
// PCR 11, in phase enter-initrd for opening the root secret and in phase leave-initrd for using keys.
func policySignatures(keys *SigningKeys, epoch uint32, pcr11 map[string][32]byte) ([]byte, error) {
	fingerprint, err := keyFingerprint(&keys.Policy.PublicKey)
	if err != nil {
		return nil, err
	}
	var doc format.PCRSignatures
	for _, approval := range []struct{ phase, ref string }{
		{format.PhaseEnterInitrd, format.PolicyRefEpochPrefix + strconv.FormatUint(uint64(epoch), 10)},
		{format.PhaseLeaveInitrd, format.PolicyRefUse},
	} {
		value := pcr11[approval.phase]
		policy := tpm.PCRPolicyDigest(format.BootPCR, value[:])
		signature, err := tpm.SignPolicy(keys.Policy, policy, approval.ref)
		if err != nil {
			return nil, fmt.Errorf("signing PCR policy for %s: %w", approval.phase, err)
		}
		doc.SHA256 = append(doc.SHA256, format.PCRSignature{
			PCRs: []int{format.BootPCR}, PolicyRef: approval.ref, KeyFingerprint: hex.EncodeToString(fingerprint),
			Policy: hex.EncodeToString(policy), Signature: signature,
		})
	}
	return json.Marshal(doc)
}

// newManifest describes the files in dir.
func newManifest(o Options, site *provision.Site, base *baseContent, uki *kernelImage, dir string) (*Manifest, error) {
	fingerprint, err := keyFingerprint(&o.Keys.Policy.PublicKey)
	if err != nil {
		return nil, err
	}
	db := sha256.Sum256(o.Keys.DBCert.Raw)
	m := &Manifest{
		Name: site.Name, Version: site.Version, Epoch: site.Epoch, BuildTime: base.BuildTime,
		Kernel: base.Kernel, Stub: uki.stub, Cmdline: Cmdline, SecureBoot: site.SecureBoot,
		Listeners: listenerNames(site.Listeners), Files: map[string]File{}, PCR11: map[string]string{},
		PolicyKey: hex.EncodeToString(fingerprint), DBCertificate: hex.EncodeToString(db[:]), SBOM: base.SBOM,
	}
	for _, p := range site.Profiles {
		m.Profiles = append(m.Profiles, Profile{
			Name: p.Name, Default: p.Default,
			SCEP: p.SCEP.On, PlainSCEP: p.SCEP.PlainHTTP && site.Listeners.Plain,
			EST: p.EST != nil, LegacySCEP: p.SCEP.LegacyTLS && site.Listeners.LegacySCEP,
			LegacyEST:       p.EST != nil && p.EST.LegacyTLS && site.Listeners.Legacy,
			PublicChallenge: provision.PublicChallenge(p.SCEP.Challenges.StaticHash),
		})
	}
	for phase, value := range uki.pcr11 {
		m.PCR11[phase] = hex.EncodeToString(value[:])
	}
	for _, name := range []string{DiskFile, UKIFile} {
		if m.Files[name], err = describe(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("writing manifest: %w", err)
		}
	}
	return m, nil
}

// listenerNames are the names of the listeners that are on.
func listenerNames(l provision.Listeners) []string {
	names := []string{}
	for _, x := range []struct {
		name string
		on   bool
	}{{"est", l.EST}, {"scep", l.SCEP}, {"console", l.Console}, {"plain", l.Plain}, {"legacy", l.Legacy}, {"legacy_scep", l.LegacySCEP}} {
		if x.on {
			names = append(names, x.name)
		}
	}
	return names
}

func describe(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return File{}, err
	}
	return File{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}
