// Package format is what the image builder and the box agree on: paths inside the initramfs, boot
// phases, the disk's partitions and the JSON documents one writes and the other reads.
package format

import "time"

// Paths inside the initramfs. Everything under SiteDir and the two files beside it come from the
// site overlay, so they are measured into PCR 11 with the .initrd section; whoever can change them
// has changed PCR 11 and opens no key.
const (
	SiteDir     = "/etc/signet/site"         // the site directory as baked, without secrets/
	ReleaseFile = "/etc/signet/release.json" // one JSON Release
	CmdlineFile = "/etc/signet/cmdline"      // the exact kernel command line of the UKI, no newline

	InitPath     = "/init"
	SignetdPath  = "/bin/signetd"
	ModulesDir   = "/lib/modules"
	ModulesOrder = "/lib/modules/order" // file names under ModulesDir, one a line, in load order

	// Debian's file system tools, with their libraries, for the box's STATE partition.
	MkfsPath = "/sbin/mke2fs"
	FsckPath = "/sbin/e2fsck"

	// Delivered by systemd-stub from the UKI's .pcrsig and .pcrpkey sections.
	PCRSignatureFile = "/.extra/tpm2-pcr-signature.json" // one JSON PCRSignatures
	PCRPublicKeyFile = "/.extra/tpm2-pcr-public-key.pem" // PKIX "PUBLIC KEY"
)

// BootPCR is the PCR systemd-stub measures the UKI's sections into, and boxinit its phases.
const BootPCR = 11

// Phases boxinit extends into BootPCR, as SHA-256 of the word.
const (
	PhaseEnterInitrd = "enter-initrd" // before anything is read from disk; keys open in this phase only
	PhaseLeaveInitrd = "leave-initrd" // before the network comes up; resident keys are usable from here
)

// Policy references under which the site's policy key signs values of BootPCR (TPM2_PolicyAuthorize).
const (
	PolicyRefUse         = "use"    // phase leave-initrd: using a resident key
	PolicyRefEpochPrefix = "epoch:" // + decimal epoch; phase enter-initrd: unsealing the root secret
)

// PCRSignatures is the .pcrsig section: systemd's JSON with a policyRef added to each entry.
type PCRSignatures struct {
	SHA256 []PCRSignature `json:"sha256"`
}

// PCRSignature approves one policy digest.
type PCRSignature struct {
	PCRs           []int  `json:"pcrs"`
	PolicyRef      string `json:"ref"`  // text of the TPM policyRef
	KeyFingerprint string `json:"pkfp"` // hex SHA-256 of the PKIX public key
	Policy         string `json:"pol"`  // hex TPM policy digest (PolicyPCR over PCRs)
	Signature      []byte `json:"sig"`  // RSASSA-PKCS1v15-SHA256 over SHA-256(policy || policyRef)
}

// Release says which image is running.
type Release struct {
	Name      string    `json:"name"`    // the site's name
	Version   string    `json:"version"` // the site's version
	Epoch     uint32    `json:"epoch"`
	BuildTime time.Time `json:"build_time"` // the base's commit time: floor of the clock
	Debug     bool      `json:"debug"`
	Kernel    string    `json:"kernel"` // uname -r
}

// Disk layout: GPT, 1 MiB alignment, in this order. STATE is last so that it can grow.
const (
	SectorSize = 512
	MiB        = 1 << 20

	ESPName   = "ESP"
	KEYSName  = "KEYS"
	STATEName = "STATE"

	ESPSize  = 512 * MiB
	KEYSSize = 2 * MiB // two generations of 1 MiB

	// Partition type GUIDs of our own; the ESP has the standard one.
	KEYSType  = "6A2E4F3C-93E4-4E0C-9B0D-5B1C6E1F0A51"
	STATEType = "9F1D6C2B-0E7A-4B57-8E41-2C7A90D3B652"
)
