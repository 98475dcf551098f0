package keys

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"signet.internal/tpm"
)

// maxInFlight bounds the requests a holder works on, over all its clients; more are refused as busy.
const maxInFlight = 32

// maxUnanswered bounds the answers that one client has not read yet; at that the holder reads no more
// from it.
const maxUnanswered = 2 * maxInFlight

// Holder has the opened keys and uses them for its clients. Whoever can send it requests can use
// every key, read every secret, take away what was made at run time, and advance the anchor once an hour, but
// nothing else.
type Holder struct {
	slots chan struct{}

	mu      sync.RWMutex
	keys    map[string]*heldKey
	secrets map[string][]byte

	changing sync.Mutex // taken before mu, for as long as the TPM and the vault take
	srk      *tpm.SRK
	policy   tpm.Policy // of resident keys
	creation []byte     // what keys and secrets of run time are made from
	recorder recorder

	anchor anchor // guards itself
}

type heldKey struct {
	info    Info
	created bool // at run time
	spki    []byte
	key     privateKey
}

// NewHolder makes a holder of what Vault.Handover returned. The caller wipes handover afterwards. At the
// other end of vault is Vault.ServeRecords; with none, keys and secrets can be used but neither made nor
// removed. The caller closes vault when the holder serves nobody any more.
func NewHolder(dev *tpm.Device, handover []byte, vault net.Conn) (*Holder, error) {
	// Resident keys, the creation secret and secrets stay slices of it.
	h, err := parseHandover(bytes.Clone(handover))
	if err != nil {
		return nil, err
	}
	srk, err := dev.OpenSRK(h.srkName)
	if err != nil {
		return nil, explain(err)
	}
	counter, err := anchorCounter(srk, h.creation)
	if err != nil {
		return nil, err
	}
	holder := &Holder{
		slots: make(chan struct{}, maxInFlight), keys: make(map[string]*heldKey), secrets: h.secrets,
		srk: srk, policy: h.binding.usePolicy(), creation: h.creation, recorder: recorder{conn: vault},
		anchor: anchor{counter: counter, first: h.anchorFirst, now: time.Now},
	}
	for _, k := range h.keys {
		opened, err := holder.open(k)
		switch {
		case err == nil:
			holder.keys[k.spec.Name] = opened
		case !k.created: // what an earlier holder recorded keeps nothing else closed: see Vault.open
			return nil, fmt.Errorf("key %q: %w", k.spec.Name, err)
		}
	}
	return holder, nil
}

// open makes a key usable. A sealed one's PKCS #8 is wiped.
func (h *Holder) open(k handedKey) (*heldKey, error) {
	var key privateKey
	var err error
	if k.spec.Protection == Resident {
		key, err = newResidentKey(h.srk, k, h.policy)
	} else {
		key, err = newSoftwareKey(k.opening)
		clear(k.opening)
	}
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.public())
	if err != nil {
		return nil, fmt.Errorf("encoding its public key: %w", err)
	}
	return &heldKey{
		info:    Info{Name: k.spec.Name, Algorithm: k.spec.Algorithm, Protection: k.spec.Protection, Public: key.public()},
		created: k.created, spki: spki, key: key,
	}, nil
}

// Serve answers one client until it closes conn, and closes it too. A client that does not speak the
// protocol is cut off with an error.
func (h *Holder) Serve(conn net.Conn) error {
	var writing sync.Mutex
	var inFlight sync.WaitGroup
	unanswered := make(chan struct{}, maxUnanswered)
	defer inFlight.Wait()
	defer conn.Close()
	reply := func(f frame) error {
		b, err := f.encode()
		if err != nil { // the list of very many keys
			if b, err = (frame{code: statusFailed, id: f.id, body: []byte("the answer is too long")}).encode(); err != nil {
				return err
			}
		}
		writing.Lock()
		defer writing.Unlock()
		_, err = conn.Write(b)
		return err
	}
	for {
		request, err := readFrame(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serving keys: %w", err)
		}
		work, ok := h.parse(request)
		if !ok {
			return fmt.Errorf("serving keys: %w: operation %d", errFrame, request.code)
		}
		unanswered <- struct{}{}
		select {
		case h.slots <- struct{}{}:
		default:
			<-unanswered
			if err := reply(frame{code: statusBusy, id: request.id}); err != nil {
				return fmt.Errorf("serving keys: %w", err)
			}
			continue
		}
		inFlight.Go(func() {
			defer func() { <-unanswered }()
			body, err := recovered(work)
			<-h.slots
			f := frame{id: request.id, body: body}
			if err != nil {
				f.code, f.body = status(err)
			}
			// A client that is gone is noticed by the next read.
			_ = reply(f)
		})
	}
}

// recovered turns a panic into an error: one request must not take from the box, for the rest of the
// boot, keys that nothing can open again.
func recovered(work func() ([]byte, error)) (body []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			body, err = nil, fmt.Errorf("the key holder's own software failed: %v", r)
		}
	}()
	return work()
}

// parse returns the work a request asks for, or false if it is malformed.
func (h *Holder) parse(f frame) (work func() ([]byte, error), ok bool) {
	switch f.code {
	case opList:
		return h.list, len(f.body) == 0
	case opPublic:
		s := cryptobyte.String(f.body)
		var name string
		if !readString(&s, &name) || !s.Empty() {
			return nil, false
		}
		return func() ([]byte, error) {
			k, err := h.key(name)
			if err != nil {
				return nil, err
			}
			return k.encoded()
		}, true
	case opSign:
		var r signRequest
		if !r.decode(f.body) {
			return nil, false
		}
		return func() ([]byte, error) { return h.sign(r) }, true
	case opDecrypt:
		var r decryptRequest
		if !r.decode(f.body) {
			return nil, false
		}
		return func() ([]byte, error) { return h.decrypt(r) }, true
	case opAnchor, opAdvance:
		return h.parseAnchor(f)
	}
	return h.manage(f)
}

func (h *Holder) key(name string) (*heldKey, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	k := h.keys[name]
	if k == nil {
		return nil, ErrNoKey
	}
	return k, nil
}

func (h *Holder) list() ([]byte, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var b cryptobyte.Builder
	b.AddUint16(uint16(len(h.keys)))
	for _, name := range slices.Sorted(maps.Keys(h.keys)) {
		h.keys[name].encode(&b)
	}
	return b.Bytes()
}

func (k *heldKey) encoded() ([]byte, error) {
	var b cryptobyte.Builder
	k.encode(&b)
	return b.Bytes()
}

func (k *heldKey) encode(b *cryptobyte.Builder) {
	addString(b, k.info.Name)
	addString(b, k.info.Algorithm)
	addString(b, k.info.Protection)
	addBytes(b, k.spki)
}

func (h *Holder) sign(r signRequest) ([]byte, error) {
	k, err := h.key(r.name)
	if err != nil {
		return nil, err
	}
	hash, ok := hashes[r.hash]
	if !ok || !k.signs(hash) {
		return nil, refused("hash not for signing; use SHA-256, SHA-384 or SHA-512")
	}
	if len(r.digest) != hash.Size() {
		return nil, refused(fmt.Sprintf("digest of %d bytes for %v", len(r.digest), hash))
	}
	// A longer salt protects nothing more, and memory is set aside for it before it is found too long.
	if r.scheme == schemePSS && (r.salt < rsa.PSSSaltLengthEqualsHash || int(r.salt) > hash.Size()) {
		return nil, refused(fmt.Sprintf("PSS salt of %d bytes; ask for rsa.PSSSaltLengthAuto, rsa.PSSSaltLengthEqualsHash or at most the hash's length", r.salt))
	}
	return k.key.sign(r.digest, hash, r.scheme, int(r.salt))
}

func (h *Holder) decrypt(r decryptRequest) ([]byte, error) {
	k, err := h.key(r.name)
	if err != nil {
		return nil, err
	}
	pub, ok := k.info.Public.(*rsa.PublicKey)
	if !ok || !isRA(r.name) {
		return nil, refused("the key does not decrypt")
	}
	switch r.scheme {
	case schemePKCS1v15:
		if err := sessionKeyFits(pub, int(r.keyLength)); err != nil {
			return nil, refused(err.Error())
		}
		if err := checkCiphertext(pub, r.ciphertext); err != nil {
			return nil, err
		}
		return k.key.decryptSessionKey(r.ciphertext, int(r.keyLength))
	case schemeOAEP:
		hash, ok1 := hashes[r.hash]
		mgfHash, ok2 := hashes[r.mgfHash]
		if !ok1 || !ok2 {
			return nil, refused("unknown hash")
		}
		if err := checkCiphertext(pub, r.ciphertext); err != nil {
			return nil, err
		}
		return k.key.decryptOAEP(r.ciphertext, hash, mgfHash, r.label)
	}
	return nil, refused("unknown encryption scheme")
}

// refusal is an error of the client's making.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

func refused(text string) error { return &refusal{text} }

// status is how an error goes over the wire. Texts hold no secrets.
func status(err error) (code uint8, body []byte) {
	var r *refusal
	switch {
	case errors.Is(err, tpm.ErrBusy), errors.Is(err, ErrBusy):
		return statusBusy, nil
	case errors.Is(err, ErrExists):
		return statusExists, nil
	case errors.Is(err, ErrAnchorSoon):
		return statusSoon, nil
	case errors.Is(err, tpm.ErrCounterMoved), errors.Is(err, tpm.ErrNoCounter):
		return statusMoved, nil
	case errors.Is(err, ErrNotRecorded):
		return statusUnrecorded, nil
	case errors.Is(err, ErrNoKey):
		return statusNoKey, nil
	case errors.Is(err, rsa.ErrDecryption):
		return statusDecryption, nil
	case errors.As(err, &r):
		return statusRefused, []byte(r.text)
	case errors.Is(err, tpm.ErrAlgorithm):
		return statusRefused, []byte(err.Error())
	}
	return statusFailed, []byte(err.Error())
}
