package keys

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"

	"signet.internal/tpm"
)

const (
	handoverVersion = 1
	maxHandover     = 1 << 20
)

// Handover is what a Holder needs of the vault: opened sealed keys, the authorisation values of resident
// ones, secrets, and what more of them are made from, in a form of its own (both ends come from one image). It is as secret as the keys:
// the caller passes it on through a pipe and wipes it.
func (v *Vault) Handover() ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.forgot {
		return nil, errClosed
	}
	// A fixed buffer: growing would leave copies behind.
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, maxHandover))
	b.AddUint8(handoverVersion)
	addString(b, v.contents.Kind)
	addBytes(b, v.contents.SRKName)
	var policyKey []byte
	if v.binding.Kind == KindBox {
		var err error
		if policyKey, err = x509.MarshalPKIXPublicKey(v.binding.PolicyKey); err != nil {
			return nil, fmt.Errorf("handing keys over: encoding the policy key: %w", err)
		}
	}
	addBytes(b, policyKey)
	var approvals []tpm.PolicySignature
	for _, s := range v.binding.Signatures {
		if s.Ref == refUse {
			approvals = append(approvals, s)
		}
	}
	b.AddUint16(uint16(len(approvals)))
	for _, s := range approvals {
		addBytes(b, s.Policy)
		addBytes(b, s.Signature)
	}
	addBytes(b, v.creation)
	b.AddUint64(v.contents.Anchor)
	b.AddUint16(uint16(len(v.openings)))
	for _, r := range v.contents.Keys {
		opening, opened := v.openings[r.Name]
		if !opened {
			continue
		}
		addString(b, r.Name)
		addString(b, r.Algorithm)
		addString(b, r.Protection)
		created := uint8(0)
		if r.Created {
			created = 1
		}
		b.AddUint8(created)
		addBytes(b, r.Blob.Public)
		addBytes(b, r.Blob.Private)
		addBytes(b, opening)
	}
	b.AddUint16(uint16(len(v.values)))
	for _, s := range v.contents.Secrets {
		if value, opened := v.values[s.Name]; opened {
			addString(b, s.Name)
			addBytes(b, value)
		}
	}
	out, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("handing keys over: %w", err)
	}
	return out, nil
}

// ReadHandover reads a handover to its end into one buffer: a buffer that grows would leave copies of
// the keys behind, which nobody wipes. The caller wipes what is returned, also next to an error.
func ReadHandover(r io.Reader) ([]byte, error) {
	b := make([]byte, maxHandover+1)
	n, err := io.ReadFull(r, b)
	switch {
	case err == nil:
		return b, fmt.Errorf("%w: longer than %d bytes", errHandover, maxHandover)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return b[:n], nil
	}
	return b[:n], fmt.Errorf("reading the handover: %w", err)
}

var errHandover = errors.New("the handover is not one of this firmware's")

// handedOver is a parsed handover. Its slices point into it.
type handedOver struct {
	binding     Binding
	srkName     []byte
	creation    []byte
	anchorFirst uint64 // see Anchor.First
	keys        []handedKey
	secrets     map[string][]byte
}

type handedKey struct {
	spec    Spec
	created bool
	blob    tpm.Blob // resident
	opening []byte   // see material.open
}

func parseHandover(b []byte) (*handedOver, error) {
	s := cryptobyte.String(b)
	var version uint8
	var policyKey []byte
	var count uint16
	h := &handedOver{}
	if !s.ReadUint8(&version) || version != handoverVersion ||
		!readString(&s, &h.binding.Kind) || !readBytes(&s, &h.srkName) || !readBytes(&s, &policyKey) || !s.ReadUint16(&count) {
		return nil, errHandover
	}
	if h.binding.Kind == KindBox {
		key, err := x509.ParsePKIXPublicKey(policyKey)
		if err != nil {
			return nil, fmt.Errorf("%w: policy key: %v", errHandover, err)
		}
		rsaKey, ok := key.(*rsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("%w: the policy key is not RSA", errHandover)
		}
		h.binding.PolicyKey = rsaKey
	}
	for range count {
		a := tpm.PolicySignature{Ref: refUse}
		if !readBytes(&s, &a.Policy) || !readBytes(&s, &a.Signature) {
			return nil, errHandover
		}
		h.binding.Signatures = append(h.binding.Signatures, a)
	}
	if !readBytes(&s, &h.creation) || !s.ReadUint64(&h.anchorFirst) || !s.ReadUint16(&count) {
		return nil, errHandover
	}
	for range count {
		var k handedKey
		var created uint8
		if !readString(&s, &k.spec.Name) || !readString(&s, &k.spec.Algorithm) || !readString(&s, &k.spec.Protection) || !s.ReadUint8(&created) ||
			!readBytes(&s, &k.blob.Public) || !readBytes(&s, &k.blob.Private) || !readBytes(&s, &k.opening) {
			return nil, errHandover
		}
		k.created = created == 1
		h.keys = append(h.keys, k)
	}
	if !s.ReadUint16(&count) {
		return nil, errHandover
	}
	h.secrets = make(map[string][]byte)
	for range count {
		var name string
		var value []byte
		if !readString(&s, &name) || !readBytes(&s, &value) {
			return nil, errHandover
		}
		h.secrets[name] = value
	}
	if !s.Empty() {
		return nil, errHandover
	}
	return h, nil
}
