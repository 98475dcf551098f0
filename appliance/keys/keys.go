// Package keys is the key holder: it creates, keeps and opens the box's keys, and answers signing
// and decryption requests by key name over a socket, so that the enrollment service never has a
// private key.
//
// A Vault is what provisioning makes and every boot opens: one root secret sealed by the TPM, keys
// resident in the TPM, and keys wrapped under the root secret. A Holder is made of what a Vault
// hands over and serves Clients; on the box it is a process of its own, on a host it is in the
// service's process at the other end of a net.Pipe.
//
// Keys and secrets of run time are made by the Holder, under a secret of their own, and written by the
// Vault, which alone has the key of KEYS' MAC: a Holder can add and remove those, up to a number, and
// touch nothing that was provisioned.
//
// The anchor is a counter in the TPM by which the service knows the newest of its disks; the Holder moves it, and
// bounds how often.
package keys

import (
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"signet.internal/tpm"
)

// Protections of a key.
const (
	Resident = "resident" // made in the TPM and never outside it
	Sealed   = "sealed"   // a software key, wrapped under the root secret, opened once a boot
)

// Names of the keys every box has, beside one "authority/<name>" per authority.
const (
	NameAudit       = "audit"
	NameAttestation = "attestation" // signs only what the TPM itself states
	NameTLSCA       = "tls-ca"
	NameTLS         = "tls"
	NameRA          = "ra" // decrypts, as the keys made after it do

	AuthorityPrefix = "authority/"
)

// Spec asks for a key.
type Spec struct {
	Name       string
	Algorithm  string // rsa-2048, rsa-3072, rsa-4096, ecdsa-p256 or ecdsa-p384
	Protection string // Resident or Sealed
}

func (s Spec) String() string { return fmt.Sprintf("%q (%s, %s)", s.Name, s.Algorithm, s.Protection) }

// usage is what the TPM will let a resident key do.
func (s Spec) usage() tpm.Usage {
	switch {
	case s.Name == NameAttestation:
		return tpm.UsageAttest
	case isRA(s.Name):
		return tpm.UsageSignDecrypt
	}
	return tpm.UsageSign
}

// Info describes a key to clients.
type Info struct {
	Name       string
	Algorithm  string
	Protection string
	Public     crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
}

func (i Info) spec() Spec {
	return Spec{Name: i.Name, Algorithm: i.Algorithm, Protection: i.Protection}
}

// Kinds of machine.
const (
	KindBox  = "box"
	KindHost = "host"
)

// Binding says what the keys are tied to. On a box: what booted, as the site's policy key approves
// it. On a host: nothing but its TPM.
type Binding struct {
	Kind       string                // KindBox or KindHost
	PolicyKey  *rsa.PublicKey        // box: the site's policy key
	Signatures []tpm.PolicySignature // box: the running image's approvals
	Epoch      uint32                // box: the running image's epoch
}

// References under which the site's policy key approves values of PCR 11.
const (
	refUse         = "use"
	refEpochPrefix = "epoch:"
)

// rootPolicy is the policy of the root secret, sealed in epoch.
func (b Binding) rootPolicy(epoch uint32) tpm.Policy {
	if b.Kind == KindHost {
		// With an empty authorisation value: whoever has the KEYS file and the TPM opens it.
		return tpm.Policy{Auth: true}
	}
	return tpm.Policy{Key: b.PolicyKey, PCR: tpm.BootPCR, Ref: fmt.Sprintf("%s%d", refEpochPrefix, epoch), Signatures: b.Signatures}
}

// usePolicy is the policy of every resident key.
func (b Binding) usePolicy() tpm.Policy {
	if b.Kind == KindHost {
		return tpm.Policy{Auth: true}
	}
	return tpm.Policy{Key: b.PolicyKey, PCR: tpm.BootPCR, Ref: refUse, Signatures: b.Signatures, Auth: true}
}

func (b Binding) check() error {
	switch {
	case b.Kind == KindHost:
		return nil
	case b.Kind != KindBox:
		return fmt.Errorf("unknown kind of machine %q", b.Kind)
	case b.PolicyKey == nil || len(b.Signatures) == 0:
		return &Error{
			What: "the running image carries no signed measurements",
			Mend: "boot the image that signet bake made, from its own boot entry",
		}
	}
	for _, s := range b.Signatures {
		if s.Ref == refUse {
			return nil
		}
	}
	return &Error{
		What: "the running image carries no approval to use the box's keys",
		Mend: "bake the image again with the site's policy key and install it",
	}
}

// Storage is where KEYS lies: StorageSize bytes, a partition on the box, a file on a host. What lies
// past the end of a shorter file reads as zeros.
//
// Who can change it can destroy the keys, put back an older generation, in which what was made since is
// missing and what was removed since is back, or put in a container of another box; a container this TPM
// did not make, or whose marker is not in this TPM, is refused, and nothing in it can be changed without
// the root secret.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrNotProvisioned says that this machine has no keys yet, neither in its TPM nor in KEYS, or that
// an earlier Provision was cut short before any key could have been used: Provision may be called.
var ErrNotProvisioned = errors.New("this machine is not provisioned")

// Error is a state of TPM and KEYS in which the keys stay closed, and what a technician does about it.
type Error struct {
	What string // what is wrong, one sentence without stop
	Mend string // what to do
	Err  error  // what lies beneath, for the log; may be nil
}

func (e *Error) Error() string {
	s := e.What + "; " + e.Mend
	if e.Err != nil {
		s += " (" + e.Err.Error() + ")"
	}
	return s
}

// Unwrap returns what lies beneath.
func (e *Error) Unwrap() error { return e.Err }
