package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// CounterHandle is the NV index of the state-rollback counter, in the range for the owner (TCG registry
// of reserved TPM 2.0 handles §2.2.2).
//
// Who can send commands to the TPM can remove the counter as long as the owner hierarchy has no password,
// which shows, and cannot set it back: a TPM begins every counter above all that it ever had (TPM 2.0
// Part 1 §37.2.4, "NV Counter").
const CounterHandle tpm2.TPMHandle = 0x01815348

const counterSize = 8 // TPM 2.0 Part 2 §13.2: a counter is 64 bits, big-endian

var (
	// ErrNoCounter says that there is no counter that the authorisation value opens: none was ever made,
	// or it was removed from the TPM.
	ErrNoCounter = errors.New("the TPM has no state-rollback counter of this box")
	// ErrCounterMoved says that the counter does not stand where it was expected to.
	ErrCounterMoved = errors.New("the TPM's state-rollback counter does not stand where it was expected to")
)

// Counter is a monotonic counter in the TPM's NV memory that only who knows its authorisation value
// reads or advances. Every step is a write to memory that wears out, after some hundred thousand on most
// TPMs: the caller bounds how often. Safe for concurrent use, as far as the Device's queue goes.
type Counter struct {
	srk  *SRK
	auth []byte
}

// Counter returns the counter of an authorisation value (32 hex characters), whether it is there or not.
func (s *SRK) Counter(auth []byte) (*Counter, error) {
	if err := checkAuth(auth); err != nil {
		return nil, fmt.Errorf("opening the state-rollback counter: %w", err)
	}
	return &Counter{srk: s, auth: auth}, nil
}

func counterPublic() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex:    CounterHandle,
		NameAlg:    tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{AuthWrite: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTCounter},
		DataSize:   counterSize,
	}
}

// Read returns where the counter stands, or ErrNoCounter; ErrHandleTaken if the index is somebody else's.
// The answer is authenticated: nobody between this process and the TPM can make one up.
func (c *Counter) Read() (uint64, error) {
	n, err := get(c.srk.d, c.read)
	if err != nil {
		return 0, fmt.Errorf("reading the state-rollback counter: %w", err)
	}
	return n, nil
}

// Advance adds one to the counter, which stands at from, and returns where it stands then. ErrCounterMoved
// unless it stands there, ErrNoCounter if there is none: nothing was written. After another error the
// counter may have been advanced.
func (c *Counter) Advance(from uint64) (uint64, error) {
	n, err := get(c.srk.d, func(t transport.TPM) (uint64, error) {
		now, err := c.read(t)
		if err != nil {
			return 0, err
		}
		if now != from {
			return 0, fmt.Errorf("%w: it stands at %d, not at %d", ErrCounterMoved, now, from)
		}
		return c.increment(t)
	})
	if err != nil {
		return 0, fmt.Errorf("advancing the state-rollback counter: %w", err)
	}
	return n, nil
}

// Make makes the counter and returns where it begins, above every counter that this TPM ever had. What is
// there under another authorisation value, or was never advanced, it replaces; ErrCounterMoved if there is
// one that can be read, ErrHandleTaken if the index is no such counter.
func (c *Counter) Make() (uint64, error) { return c.make(false) }

// Remake is Make also where there is one that can be read: for provisioning, which may begin again.
func (c *Counter) Remake() (uint64, error) { return c.make(true) }

func (c *Counter) make(anew bool) (uint64, error) {
	n, err := get(c.srk.d, func(t transport.TPM) (uint64, error) {
		now, err := c.read(t)
		if err == nil && !anew {
			return 0, fmt.Errorf("%w: it is there already and stands at %d", ErrCounterMoved, now)
		}
		if err != nil && !errors.Is(err, ErrNoCounter) {
			return 0, err
		}
		if err := c.define(t); err != nil {
			return 0, err
		}
		return c.increment(t)
	})
	if err != nil {
		return 0, fmt.Errorf("making the state-rollback counter: %w", err)
	}
	return n, nil
}

// findCounter returns the index's Name and whether it was ever advanced; a nil Name if it is not defined.
func findCounter(t transport.TPM) (name *tpm2.TPM2BName, written bool, err error) {
	return findIndex(t, counterPublic())
}

func (c *Counter) read(t transport.TPM) (uint64, error) {
	name, written, err := findCounter(t)
	if err != nil {
		return 0, err
	}
	if !written {
		return 0, ErrNoCounter
	}
	rsp, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: CounterHandle, Name: *name, Auth: c.session(encryptOut)},
		NVIndex:    tpm2.NamedHandle{Handle: CounterHandle, Name: *name},
		Size:       counterSize,
	}.Execute(t)
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
		return 0, fmt.Errorf("%w: the one there takes another authorisation value", ErrNoCounter)
	}
	if err != nil {
		return 0, err
	}
	if len(rsp.Data.Buffer) != counterSize {
		return 0, fmt.Errorf("the TPM answered with %d bytes", len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

func (c *Counter) increment(t transport.TPM) (uint64, error) {
	name, _, err := findCounter(t)
	if err != nil {
		return 0, err
	}
	if name == nil {
		return 0, ErrNoCounter
	}
	_, err = tpm2.NVIncrement{
		// No parameter that could be encrypted; the salt alone keeps the session's key from the bus.
		AuthHandle: tpm2.AuthHandle{Handle: CounterHandle, Name: *name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Auth(c.auth), tpm2.Salted(SRKHandle, c.srk.pub))},
		NVIndex:    tpm2.NamedHandle{Handle: CounterHandle, Name: *name},
	}.Execute(t)
	if err != nil {
		return 0, explain(err)
	}
	return c.read(t)
}

// define makes the index, after removing what is there. Its authorisation value travels encrypted.
func (c *Counter) define(t transport.TPM) error {
	name, _, err := findCounter(t)
	if err != nil {
		return err
	}
	owner := func(direction tpm2.AuthOption) tpm2.AuthHandle {
		return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: c.srk.session(direction)}
	}
	if name != nil {
		_, err := tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: CounterHandle, Name: *name}}.Execute(t)
		if err != nil {
			return fmt.Errorf("removing the one that is there: %w", err)
		}
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: owner(encryptIn), Auth: tpm2.TPM2BAuth{Buffer: c.auth}, PublicInfo: tpm2.New2B(counterPublic())}.Execute(t)
	if errors.Is(err, tpm2.TPMRCNVSpace) {
		return fmt.Errorf("the TPM has no room for it: %s: %w", clearMend, err)
	}
	return err
}

func (c *Counter) session(direction tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Auth(c.auth), tpm2.Salted(SRKHandle, c.srk.pub), direction)
}
