package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// SRKHandle is where the storage root key is kept. It lies in the range for storage primary keys
// (TCG registry of reserved TPM 2.0 handles §2.3.1) but not at 0x81000001, where Windows and systemd
// put theirs, so that a machine that ran them needs no clearing for that alone.
const SRKHandle tpm2.TPMHandle = 0x81005347

var (
	// ErrForeignTPM says that this TPM's storage root key is not the one recorded.
	ErrForeignTPM = errors.New("this TPM's storage root key is not the recorded one")
	// ErrHandleTaken says that something not made by Signet sits at one of its fixed places.
	ErrHandleTaken = errors.New("the place in the TPM is taken by something else")

	errSRKMissing = errors.New("the storage root key is not persistent")
)

// SRK is the storage root key, under which all objects are made, by the Name it was recorded with.
// Every session of an SRK is salted to exactly that key and encrypts what it carries: whoever sits
// on the bus to the TPM and answers with a key of their own is refused, not believed.
type SRK struct {
	d    *Device
	name tpm2.TPM2BName
	pub  tpm2.TPMTPublic
}

// Name is the key's TPM Name (hash algorithm and digest of its public area), 34 bytes.
func (s *SRK) Name() []byte { return bytes.Clone(s.name.Buffer) }

// MakeSRK is for provisioning: it derives the storage root key by the TCG's ECC P-256 template and
// makes it persistent, unless it is there from an earlier attempt. ErrHandleTaken if another key is.
func (d *Device) MakeSRK() (*SRK, error) {
	return get(d, func(t transport.TPM) (*SRK, error) {
		s, err := findSRK(t)
		if errors.Is(err, errSRKMissing) {
			s, err = persistSRK(t, nil)
		}
		if err != nil {
			return nil, err
		}
		s.d = d
		return s, nil
	})
}

// OpenSRK returns the storage root key recorded as name. ErrForeignTPM if this TPM has another;
// nothing is written to such a TPM. Where the recorded key is only no longer persistent, it becomes
// so again: the TPM derives the very same key as long as it is not cleared.
func (d *Device) OpenSRK(name []byte) (*SRK, error) {
	return get(d, func(t transport.TPM) (*SRK, error) {
		s, err := readSRK(t)
		if err == nil && !bytes.Equal(s.name.Buffer, name) {
			own, err := primaryName(t)
			if err != nil {
				return nil, err
			}
			if bytes.Equal(own.Buffer, name) {
				return nil, fmt.Errorf("%w: persistent handle %#x", ErrHandleTaken, uint32(SRKHandle))
			}
			return nil, ErrForeignTPM
		}
		if errors.Is(err, errSRKMissing) {
			s, err = persistSRK(t, name)
		}
		if err != nil {
			return nil, err
		}
		s.d = d
		return s, nil
	})
}

// readSRK reads the key at SRKHandle and computes its Name from its public area; what the TPM says
// the Name is counts for nothing.
func readSRK(t transport.TPM) (*SRK, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: SRKHandle}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, errSRKMissing
	}
	if err != nil {
		return nil, fmt.Errorf("reading the storage root key: %w", err)
	}
	return namedSRK(rsp.OutPublic)
}

func namedSRK(public tpm2.TPM2BPublic) (*SRK, error) {
	pub, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("parsing the storage root key: %w", err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, fmt.Errorf("naming the storage root key: %w", err)
	}
	return &SRK{name: *name, pub: *pub}, nil
}

// findSRK returns the persistent storage root key if it is what this TPM derives by the template.
func findSRK(t transport.TPM) (*SRK, error) {
	s, err := readSRK(t)
	if err != nil {
		return nil, err
	}
	own, err := primaryName(t)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(own.Buffer, s.name.Buffer) {
		return nil, fmt.Errorf("%w: persistent handle %#x", ErrHandleTaken, uint32(SRKHandle))
	}
	return s, nil
}

func createPrimary(t transport.TPM) (*tpm2.CreatePrimaryResponse, error) {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("deriving the storage root key: %w", err)
	}
	return rsp, nil
}

func primaryName(t transport.TPM) (tpm2.TPM2BName, error) {
	rsp, err := createPrimary(t)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	defer flush(t, rsp.ObjectHandle)
	s, err := namedSRK(rsp.OutPublic)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	return s.name, nil
}

// persistSRK derives the key and keeps it at SRKHandle; where want is not nil, only if it is that key.
func persistSRK(t transport.TPM, want []byte) (*SRK, error) {
	rsp, err := createPrimary(t)
	if err != nil {
		return nil, err
	}
	defer flush(t, rsp.ObjectHandle)
	s, err := namedSRK(rsp.OutPublic)
	if err != nil {
		return nil, err
	}
	if want != nil && !bytes.Equal(s.name.Buffer, want) {
		return nil, ErrForeignTPM
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: s.name},
		PersistentHandle: SRKHandle,
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("keeping the storage root key in the TPM: %w", err)
	}
	return s, nil
}

// Sessions live for one command, but for a keptSession: one that is open and not used for long breaks the
// resource manager (its context gap), and go-tpm flushes them after errors too. Which direction may be encrypted depends on
// whether the command's first parameter, or its response's, is a sized buffer.
var (
	encryptIn    = tpm2.AESEncryption(128, tpm2.EncryptIn)
	encryptOut   = tpm2.AESEncryption(128, tpm2.EncryptOut)
	encryptInOut = tpm2.AESEncryption(128, tpm2.EncryptInOut)
)

const nonceSize = 16

func (s *SRK) session(direction tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Salted(SRKHandle, s.pub), direction)
}

func (s *SRK) policyOptions(p Policy, auth []byte, direction tpm2.AuthOption) []tpm2.AuthOption {
	options := []tpm2.AuthOption{tpm2.Salted(SRKHandle, s.pub), direction}
	if p.Auth {
		options = append(options, tpm2.Auth(auth))
	}
	return options
}

func (s *SRK) policySession(p Policy, a *approval, auth []byte, direction tpm2.AuthOption) tpm2.Session {
	return tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, func(t transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		err := p.run(t, h, a)
		if err != nil {
			flush(t, h) // go-tpm leaves the session behind when this function returns an error
		}
		return err
	}, s.policyOptions(p, auth, direction)...)
}

// use authorises one command on the SRK itself, whose own authorisation is empty.
func (s *SRK) use(direction tpm2.AuthOption) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: SRKHandle, Name: s.name, Auth: s.session(direction)}
}
