package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// MarkerHandle is the NV index of the provisioned marker, in the range for the owner
// (TCG registry of reserved TPM 2.0 handles §2.2.2).
//
// Who can send commands to the TPM can remove the marker and write another, as long as the owner
// hierarchy has no password: it guards against mistakes and mixed-up parts, and what it names is
// checked against keys that only this TPM can use.
const MarkerHandle tpm2.TPMHandle = 0x01815347

// MarkerSize is the marker's length in bytes.
const MarkerSize = 40

// ErrMarkerWritten is returned when there is a marker already.
var ErrMarkerWritten = errors.New("the TPM has a provisioned marker already")

func markerPublic() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: MarkerHandle,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary,
		},
		DataSize: MarkerSize,
	}
}

// ReadMarker returns the marker, or nil where there is none, which is also what a power cut between
// the two steps of WriteMarker leaves. ErrHandleTaken if the index is somebody else's.
func (d *Device) ReadMarker() ([]byte, error) {
	return get(d, readMarker)
}

// findMarker returns the index's Name and whether it was ever written; a nil Name if it is not defined.
func findMarker(t transport.TPM) (name *tpm2.TPM2BName, written bool, err error) {
	return findIndex(t, markerPublic())
}

// findIndex looks for an NV index and returns its Name and whether it was ever written; a nil Name if it
// is not defined, ErrHandleTaken if it was not defined as want.
func findIndex(t transport.TPM, want tpm2.TPMSNVPublic) (name *tpm2.TPM2BName, written bool, err error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: want.NVIndex}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("looking for NV index %#x: %w", uint32(want.NVIndex), err)
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, false, fmt.Errorf("looking for NV index %#x: %w", uint32(want.NVIndex), err)
	}
	want.Attributes.Written = pub.Attributes.Written
	if pub.Attributes != want.Attributes || pub.DataSize != want.DataSize {
		return nil, false, fmt.Errorf("%w: NV index %#x", ErrHandleTaken, uint32(want.NVIndex))
	}
	if name, err = tpm2.NVName(pub); err != nil {
		return nil, false, fmt.Errorf("looking for NV index %#x: %w", uint32(want.NVIndex), err)
	}
	return name, pub.Attributes.Written, nil
}

func readMarker(t transport.TPM) ([]byte, error) {
	name, written, err := findMarker(t)
	if err != nil || !written {
		return nil, err
	}
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: MarkerHandle, Name: *name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: MarkerHandle, Name: *name},
		Size:       MarkerSize,
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("reading the provisioned marker: %w", err)
	}
	return rsp.Data.Buffer, nil
}

// WriteMarker writes the marker, once: ErrMarkerWritten if there is one.
func (d *Device) WriteMarker(marker []byte) error {
	if len(marker) != MarkerSize {
		return fmt.Errorf("marker of %d bytes, want %d", len(marker), MarkerSize)
	}
	return d.do(func(t transport.TPM) error {
		name, written, err := findMarker(t)
		if err != nil {
			return err
		}
		if written {
			return ErrMarkerWritten
		}
		if name == nil {
			_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(markerPublic())}.Execute(t)
			if errors.Is(err, tpm2.TPMRCNVSpace) {
				return fmt.Errorf("the TPM has no room for the provisioned marker: %s: %w", clearMend, err)
			}
			if err != nil {
				return fmt.Errorf("making room for the provisioned marker: %w", err)
			}
			if name, _, err = findMarker(t); err != nil {
				return err
			}
			if name == nil {
				return errors.New("making room for the provisioned marker: the TPM lost it at once")
			}
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHOwner,
			NVIndex:    tpm2.NamedHandle{Handle: MarkerHandle, Name: *name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: marker},
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("writing the provisioned marker: %w", err)
		}
		return nil
	})
}
