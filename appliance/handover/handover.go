// Package handover is what boxinit and signetd tell each other: the descriptors signetd inherits,
// the report of how the box booted, and the words signetd sends back by sd_notify.
//
// Nothing here authorises anything: a forged report changes what the console shows, not what the
// TPM opens.
package handover

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Names of inherited descriptors (LISTEN_FDNAMES, systemd's sd_listen_fds_with_names(3)). Listeners
// carry their name of the site's listener table: "scep", "console", "plain".
const (
	FDKeys = "keys" // connected unix stream socket to the key holder
	FDBoot = "boot" // readable file with one JSON Boot
)

// Variables signetd adds to its sd_notify datagrams. systemd ignores unknown names that begin with
// X_, so the same datagrams are right under a real systemd.
const (
	NotifyTLSSHA256 = "X_SIGNET_TLS_SHA256" // lower-case hex SHA-256 of the console leaf's DER
	NotifyClaimed   = "X_SIGNET_CLAIMED"    // "1" once an administrator exists, else "0"
	NotifyCondition = "X_SIGNET_CONDITION"  // JSON Condition that needs a person; "" clears it
)

// Kinds of machine signetd runs on.
const (
	KindBox  = "box"  // booted from a baked image, keys behind the measured-boot policy
	KindHost = "host" // a development host: keys in a TPM, but under no boot policy
)

// Condition is something a person has to look at.
type Condition struct {
	What string `json:"what"` // one sentence, what is wrong
	Mend string `json:"mend"` // one sentence, what to do
}

// TPM is what the status page and the screen say about the TPM.
type TPM struct {
	Manufacturer   string `json:"manufacturer"`    // TPM_PT_MANUFACTURER as text, e.g. "IBM"
	Firmware       string `json:"firmware"`        // "major.minor" in hex digits as the vendor prints it
	SRKName        string `json:"srk_name"`        // hex TPM2B_NAME contents of the storage root key
	LockoutCounter uint32 `json:"lockout_counter"` // TPM_PT_LOCKOUT_COUNTER at boot
}

// Boot reports one boot from boxinit to signetd.
type Boot struct {
	Kind         string      `json:"kind"`         // KindBox or KindHost
	Provisioning bool        `json:"provisioning"` // the state directory may be initialised in this boot
	ClaimCode    string      `json:"claim_code"`   // shown on the screen, opens POST /api/v1/claim once
	TimeSource   string      `json:"time_source"`  // "rtc", "host"; goes into every audit record
	TimeFloor    time.Time   `json:"time_floor"`   // nothing is signed while the clock is before this
	Version      string      `json:"version"`      // site version of the image
	Epoch        uint32      `json:"epoch"`
	Debug        bool        `json:"debug"`       // image with a shell; its keys are not a production box's
	SecureBoot   string      `json:"secure_boot"` // plain words, e.g. "off: keys are not protected against a changed disk"
	PCR11        string      `json:"pcr11"`       // lower-case hex, after leave-initrd
	TPM          TPM         `json:"tpm"`
	Conditions   []Condition `json:"conditions,omitempty"`
}

// ReadBoot decodes a Boot; unknown fields are an error because both ends come from one image.
func ReadBoot(r io.Reader) (Boot, error) {
	dec := json.NewDecoder(io.LimitReader(r, 1<<20))
	dec.DisallowUnknownFields()
	var b Boot
	if err := dec.Decode(&b); err != nil {
		return Boot{}, fmt.Errorf("reading boot report: %w", err)
	}
	if b.Kind != KindBox && b.Kind != KindHost {
		return Boot{}, fmt.Errorf("boot report of unknown kind %q", b.Kind)
	}
	return b, nil
}
