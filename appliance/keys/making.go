package keys

import (
	"bytes"
	"crypto/x509"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// manage returns the work of an operation from opCreate to opCertify, or false if the request is malformed.
func (h *Holder) manage(f frame) (work func() ([]byte, error), ok bool) {
	names := 1
	if f.code == opCreate {
		names = 3
	}
	var r manageRequest
	if f.code < opCreate || f.code > opCertify || !r.decode(f.body, names) {
		return nil, false
	}
	if takesValue := f.code == opPutSecret || f.code == opCertify; !takesValue && len(r.value) > 0 {
		return nil, false
	}
	return func() ([]byte, error) {
		switch f.code {
		case opCreate:
			return h.create(Spec{Name: r.names[0], Algorithm: r.names[1], Protection: r.names[2]})
		case opDelete:
			return nil, h.remove(r.names[0])
		case opPutSecret:
			return nil, h.putSecret(r.names[0], r.value)
		case opSecret:
			return h.secret(r.names[0])
		case opDeleteSecret:
			return nil, h.removeSecret(r.names[0])
		}
		return h.certify(r.names[0], r.value)
	}, true
}

// create makes a key, has it recorded, and serves it only then. Making is for one at a time: others are
// told to come back.
func (h *Holder) create(s Spec) ([]byte, error) {
	if err := checkCreated(s); err != nil {
		return nil, refused(err.Error())
	}
	if !h.changing.TryLock() {
		return nil, ErrBusy
	}
	defer h.changing.Unlock()
	if k, err := h.key(s.Name); err == nil {
		if !k.created || k.info.spec() != s {
			return nil, ErrExists
		}
		return k.encoded()
	}
	if h.createdKeys() >= MaxCreated {
		return nil, errTooManyKeys
	}
	m := createdFrom(h.creation)
	r, opening, err := m.make(h.srk, s, h.policy)
	if err != nil {
		return nil, err
	}
	clear(opening)
	// Opened as after a boot: what could not be is never recorded.
	if opening, err = m.open(r); err != nil {
		return nil, err
	}
	k, err := h.open(handedKey{spec: s, created: true, blob: r.Blob, opening: opening})
	if err != nil {
		return nil, err
	}
	r.Created = true
	if err := h.recorder.askJSON(recordKey, r); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[s.Name] = k
	return k.encoded()
}

func (h *Holder) createdKeys() (n int) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, k := range h.keys {
		if k.created {
			n++
		}
	}
	return n
}

// remove has KEYS forget a key that was made at run time, and then forgets it. What is in flight with it
// goes on. One that is in KEYS and did not open is removed too.
func (h *Holder) remove(name string) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	if k, err := h.key(name); err == nil && !k.created {
		return errProvisioned
	}
	if err := h.recorder.ask(removeKey, []byte(name)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, name)
	return nil
}

func (h *Holder) putSecret(name string, value []byte) error {
	if err := checkSecretName(name); err != nil {
		return refused(err.Error())
	}
	if len(value) == 0 || len(value) > MaxSecret {
		return errSecretSize
	}
	h.changing.Lock()
	defer h.changing.Unlock()
	wrapped, err := createdFrom(h.creation).seal(secretContext(name), value)
	if err != nil {
		return err
	}
	if err := h.recorder.askJSON(recordSecret, secret{Name: name, Wrapped: wrapped}); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.secrets[name])
	h.secrets[name] = bytes.Clone(value)
	return nil
}

func (h *Holder) secret(name string) ([]byte, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	value, ok := h.secrets[name]
	if !ok {
		return nil, ErrNoKey
	}
	return bytes.Clone(value), nil
}

func (h *Holder) removeSecret(name string) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	if err := h.recorder.ask(removeSecret, []byte(name)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.secrets[name])
	delete(h.secrets, name)
	return nil
}

// certify has the attestation key state that a key is resident.
func (h *Holder) certify(name string, nonce []byte) ([]byte, error) {
	if len(nonce) == 0 || len(nonce) > maxNonce {
		return nil, refused(fmt.Sprintf("a nonce has 1 to %d bytes", maxNonce))
	}
	k, err := h.key(name)
	if err != nil {
		return nil, err
	}
	key, ok := k.key.(residentKey)
	if !ok {
		return nil, refused("the key is sealed, and a TPM certifies only keys that live in it")
	}
	attestation, err := h.key(NameAttestation)
	if err != nil {
		return nil, refused("there is no attestation key")
	}
	signer, ok := attestation.key.(residentKey)
	if !ok {
		return nil, refused("the attestation key is not resident")
	}
	c, err := key.key.Certify(signer.key, nonce)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.public())
	if err != nil {
		return nil, fmt.Errorf("encoding the attestation key: %w", err)
	}
	var b cryptobyte.Builder
	for _, part := range [][]byte{c.Attest, c.Signature, c.Public, spki} {
		addBytes(&b, part)
	}
	return b.Bytes()
}
