package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Info is what the TPM says about itself.
type Info struct {
	Family       string // TPM_PT_FAMILY_INDICATOR, "2.0"
	Manufacturer string // TPM_PT_MANUFACTURER as text, e.g. "IBM"
	Firmware     string // TPM_PT_FIRMWARE_VERSION_1 and _2 in hex digits, "20191023.00163636"

	LockoutCounter uint32 // failed authorisations that count against the lockout
	MaxAuthFail    uint32 // failures that lock it
	InLockout      bool

	SHA256Bank         bool // PCRs are kept in SHA-256
	OwnerAuthSet       bool
	EndorsementAuthSet bool
	LockoutAuthSet     bool
	DisableClear       bool // the TPM can be cleared in the firmware setup only
}

// Bits of TPMA_PERMANENT, TPM 2.0 Part 2 §8.6.
const (
	permanentOwnerAuthSet       = 1 << 0
	permanentEndorsementAuthSet = 1 << 1
	permanentLockoutAuthSet     = 1 << 2
	permanentDisableClear       = 1 << 8
	permanentInLockout          = 1 << 9
)

// Info asks the TPM.
func (d *Device) Info() (Info, error) {
	return get(d, readInfo)
}

func readInfo(t transport.TPM) (Info, error) {
	values := make(map[tpm2.TPMPT]uint32)
	for _, p := range []tpm2.TPMPT{
		tpm2.TPMPTFamilyIndicator, tpm2.TPMPTManufacturer, tpm2.TPMPTFirmwareVersion1, tpm2.TPMPTFirmwareVersion2,
		tpm2.TPMPTPermanent, tpm2.TPMPTLockoutCounter, tpm2.TPMPTMaxAuthFail,
	} {
		v, err := property(t, p)
		if err != nil {
			return Info{}, err
		}
		values[p] = v
	}
	bank, err := hasSHA256Bank(t)
	if err != nil {
		return Info{}, err
	}
	permanent := values[tpm2.TPMPTPermanent]
	return Info{
		Family:             propertyText(values[tpm2.TPMPTFamilyIndicator]),
		Manufacturer:       propertyText(values[tpm2.TPMPTManufacturer]),
		Firmware:           fmt.Sprintf("%08x.%08x", values[tpm2.TPMPTFirmwareVersion1], values[tpm2.TPMPTFirmwareVersion2]),
		LockoutCounter:     values[tpm2.TPMPTLockoutCounter],
		MaxAuthFail:        values[tpm2.TPMPTMaxAuthFail],
		InLockout:          permanent&permanentInLockout != 0,
		SHA256Bank:         bank,
		OwnerAuthSet:       permanent&permanentOwnerAuthSet != 0,
		EndorsementAuthSet: permanent&permanentEndorsementAuthSet != 0,
		LockoutAuthSet:     permanent&permanentLockoutAuthSet != 0,
		DisableClear:       permanent&permanentDisableClear != 0,
	}, nil
}

func property(t transport.TPM, p tpm2.TPMPT) (uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(t)
	if err != nil {
		return 0, fmt.Errorf("reading TPM property %#x: %w", uint32(p), err)
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, fmt.Errorf("reading TPM property %#x: %w", uint32(p), err)
	}
	// A TPM that lacks the property answers with the next one.
	if len(list.TPMProperty) == 0 || list.TPMProperty[0].Property != p {
		return 0, nil
	}
	return list.TPMProperty[0].Value, nil
}

// propertyText reads a property that holds up to four characters.
func propertyText(v uint32) string {
	return strings.TrimRight(string(binary.BigEndian.AppendUint32(nil, v)), "\x00 ")
}

func hasSHA256Bank(t transport.TPM) (bool, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t)
	if err != nil {
		return false, fmt.Errorf("reading PCR banks: %w", err)
	}
	banks, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return false, fmt.Errorf("reading PCR banks: %w", err)
	}
	for _, bank := range banks.PCRSelections {
		if bank.Hash != tpm2.TPMAlgSHA256 {
			continue
		}
		for _, bits := range bank.PCRSelect {
			if bits != 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// listHandles returns the handles of one kind, from first on.
func listHandles(t transport.TPM, first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 64}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("listing TPM handles: %w", err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("listing TPM handles: %w", err)
	}
	return list.Handle, nil
}

// Finding is something wrong with this TPM, and what a technician does about it.
type Finding struct {
	What string
	Mend string
	// NewKeysOnly says that it keeps the TPM from being provisioned but not from using the keys it
	// has: those are exempt from the lockout and need no password of a hierarchy. Otherwise whoever can
	// send a TPM some wrong passwords could keep a box from ever serving again.
	NewKeysOnly bool
}

// clearMend is the mend of everything that a previous owner left behind.
const clearMend = "if this machine's TPM holds nothing that is still needed, clear it in the firmware setup (\"Clear TPM\" or \"Clear Security Chip\") and boot again"

// removeMend is the mend of what sits in the place of this box's own: the box may have keys all the
// same, and clearing the TPM would destroy them.
const removeMend = "remove it with the program that put it there; only if this machine never was a Signet box, " + clearMend

// Preflight returns everything that keeps this TPM from being provisioned, and among it what keeps it
// from being opened; nothing means it is fit. It changes nothing in the TPM.
func (d *Device) Preflight() []Finding {
	findings, err := get(d, preflight)
	if err != nil {
		return []Finding{{
			What: fmt.Sprintf("the TPM does not work: %v", err),
			Mend: "switch the machine off and on again; if it stays like this, reset the TPM in the firmware setup or replace the machine",
		}}
	}
	return findings
}

func preflight(t transport.TPM) ([]Finding, error) {
	info, err := readInfo(t)
	if err != nil {
		return nil, err
	}
	var found []Finding
	add := func(what, mend string) { found = append(found, Finding{What: what, Mend: mend}) }
	addNew := func(what, mend string) { found = append(found, Finding{what, mend, true}) }
	if info.Family != "2.0" {
		add(fmt.Sprintf("the TPM is of family %q, not 2.0", info.Family), "switch the TPM to version 2.0 in the firmware setup, or use another machine")
		return found, nil
	}
	if !info.SHA256Bank {
		add("the TPM keeps no SHA-256 measurements", "switch the SHA-256 PCR bank on in the firmware setup and boot again")
	}
	if info.InLockout {
		addNew(fmt.Sprintf("the TPM is locked after %d wrong passwords", info.LockoutCounter), "leave the machine on for some hours until the lock expires, or "+clearMend)
	}
	if info.MaxAuthFail == 0 {
		addNew("the TPM is set to lock without a single wrong password", clearMend)
	}
	if info.OwnerAuthSet {
		addNew("the TPM has an owner password that this box does not know", clearMend)
	}
	if info.LockoutAuthSet {
		addNew("the TPM has a lockout password that this box does not know", clearMend)
	}
	if err := checkCommands(t, add); err != nil {
		return nil, err
	}
	if info.OwnerAuthSet {
		return found, nil // creating the storage root key to compare would fail for that reason
	}
	_, err = findSRK(t)
	switch {
	case errors.Is(err, errSRKMissing):
		free, err := property(t, tpm2.TPMPTHRPersistentAvail)
		if err != nil {
			return nil, err
		}
		if free == 0 {
			addNew("the TPM has no room for another persistent key", clearMend)
		}
	case errors.Is(err, ErrHandleTaken):
		add(fmt.Sprintf("another key sits where this box keeps its storage root key (TPM handle %#x)", uint32(SRKHandle)), removeMend)
	case err != nil:
		return nil, err
	}
	if _, err := readMarker(t); errors.Is(err, ErrHandleTaken) {
		add(fmt.Sprintf("other data sits where this box keeps its marker (TPM NV index %#x)", uint32(MarkerHandle)), removeMend)
	} else if err != nil {
		return nil, err
	}
	if _, _, err := findCounter(t); errors.Is(err, ErrHandleTaken) {
		addNew(fmt.Sprintf("other data sits where this box keeps its state-rollback counter (TPM NV index %#x)", uint32(CounterHandle)), removeMend)
	} else if err != nil {
		return nil, err
	}
	return found, nil
}

// checkCommands looks for what old or cut-down TPMs lack.
func checkCommands(t transport.TPM, add func(what, mend string)) error {
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCPolicyPCR, tpm2.TPMCCPolicyAuthValue, tpm2.TPMCCVerifySignature, tpm2.TPMCCRSADecrypt, tpm2.TPMCCPCREvent, tpm2.TPMCCCertify} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapCommands, Property: uint32(cc), PropertyCount: 1}.Execute(t)
		if err != nil {
			return fmt.Errorf("listing TPM commands: %w", err)
		}
		list, err := rsp.CapabilityData.Data.Command()
		if err != nil {
			return fmt.Errorf("listing TPM commands: %w", err)
		}
		const indexMask = 0xffff // TPMA_CC.commandIndex, TPM 2.0 Part 2 §8.9
		if len(list.CommandAttributes) == 0 || tpm2.TPMCC(list.CommandAttributes[0].CommandIndex)&indexMask != cc {
			add(fmt.Sprintf("the TPM lacks command %#x", uint32(cc)), "update the TPM's firmware, or use another machine")
		}
	}
	return nil
}
