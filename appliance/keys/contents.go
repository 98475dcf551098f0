package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"signet.internal/tpm"
)

// contentsFormat is the version of contents and of the marker made of it.
const contentsFormat = 1

// States of a container.
const (
	stateProvisioning = "provisioning" // no key in it has ever been used
	stateProvisioned  = "provisioned"
)

// contents is the payload of a generation: JSON, then 32 bytes of HMAC-SHA256 under a key derived
// from the root secret. Nothing in it is secret in clear.
type contents struct {
	Format      int      `json:"format"`
	State       string   `json:"state"`
	Kind        string   `json:"kind"`
	Site        string   `json:"site"`
	SRKName     []byte   `json:"srk_name"`
	Epoch       uint32   `json:"epoch"`      // the root secret is sealed for this epoch
	Root        tpm.Blob `json:"root"`       // the root secret
	Commitment  []byte   `json:"commitment"` // derived from the root secret: the marker names it by this
	Initialised bool     `json:"initialised"`
	Anchor      uint64   `json:"anchor,omitzero"` // where the state-rollback counter began; 0: provisioned before boxes had one
	Keys        []record `json:"keys"`            // sorted by name
	Secrets     []secret `json:"secrets,omitempty"`
}

// record is one key as it is kept.
type record struct {
	Name       string   `json:"name"`
	Algorithm  string   `json:"algorithm"`
	Protection string   `json:"protection"`
	Created    bool     `json:"created,omitzero"`  // at run time: the site does not know it, nor does the marker
	Blob       tpm.Blob `json:"blob,omitzero"`     // resident
	Wrapped    []byte   `json:"wrapped,omitempty"` // sealed: see wrap
}

func (r record) spec() Spec {
	return Spec{Name: r.Name, Algorithm: r.Algorithm, Protection: r.Protection}
}

// secret is a value handed in at run time as it is kept.
type secret struct {
	Name    string `json:"name"`
	Wrapped []byte `json:"wrapped"` // see wrap
}

// encode returns the payload.
func (c *contents) encode(macKey []byte) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding KEYS: %w", err)
	}
	return append(b, mac(macKey, b)...), nil
}

func mac(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return h.Sum(nil)
}

// decodeContents parses a payload, whose MAC is checked later: its key comes out of the contents.
func decodeContents(payload []byte) (*contents, error) {
	if len(payload) < sha256.Size {
		return nil, fmt.Errorf("decoding KEYS: payload of %d bytes", len(payload))
	}
	dec := json.NewDecoder(bytes.NewReader(payload[:len(payload)-sha256.Size]))
	dec.DisallowUnknownFields()
	var c contents
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("decoding KEYS: %w", err)
	}
	if c.Format != contentsFormat {
		return nil, fmt.Errorf("decoding KEYS: format %d", c.Format)
	}
	if c.State != stateProvisioning && c.State != stateProvisioned {
		return nil, fmt.Errorf("decoding KEYS: state %q", c.State)
	}
	return &c, nil
}

// authentic says whether payload is what the holder of macKey wrote.
func authentic(payload, macKey []byte) bool {
	body := payload[:len(payload)-sha256.Size]
	return hmac.Equal(payload[len(body):], mac(macKey, body))
}

// marker is what stands in the TPM's NV for these contents: the magic "SGNM", a version, and a digest
// of what makes the box this box. It changes with none of State, Initialised, Epoch, sealed keys, and
// what was made at run time.
func (c *contents) marker() ([]byte, error) {
	h := sha256.New()
	field := func(b []byte) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	field([]byte("signet provisioned marker"))
	field([]byte(c.Kind))
	field([]byte(c.Site))
	field(c.SRKName)
	field(c.Commitment)
	for _, r := range c.Keys {
		if r.Protection != Resident || r.Created {
			continue
		}
		name, err := r.Blob.Name()
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", r.Name, err)
		}
		field([]byte(r.Name))
		field(name)
	}
	marker := append([]byte("SGNM"), 0, 0, 0, contentsFormat)
	return h.Sum(marker), nil
}

// differences lists how the keys that were provisioned differ from the keys asked for. A key that the box
// made by itself is no answer to a site that asks for one of its name.
func (c *contents) differences(specs []Spec) []string {
	have, want := make(map[string]Spec), make(map[string]Spec)
	var found []string
	created := make(map[string]bool)
	for _, r := range c.Keys {
		have[r.Name], created[r.Name] = r.spec(), r.Created
	}
	for _, s := range specs {
		want[s.Name] = s
		h, ok := have[s.Name]
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("key %v is new", s))
		case created[s.Name]:
			found = append(found, fmt.Sprintf("key %v has the name of one that the box made by itself", s))
		case h != s:
			found = append(found, fmt.Sprintf("key %v was %v", s, h))
		}
	}
	for _, r := range c.Keys {
		if _, ok := want[r.Name]; !ok && !r.Created {
			found = append(found, fmt.Sprintf("key %v is no longer asked for", r.spec()))
		}
	}
	return found
}

func checkSpecs(specs []Spec) error {
	if len(specs) == 0 {
		return fmt.Errorf("no keys asked for")
	}
	seen := make(map[string]bool)
	for _, s := range specs {
		if s.Name == "" || len(s.Name) > maxName || seen[s.Name] {
			return fmt.Errorf("key name %q is empty, too long or there twice", s.Name)
		}
		seen[s.Name] = true
		if s.Protection != Resident && s.Protection != Sealed {
			return fmt.Errorf("key %q: unknown protection %q", s.Name, s.Protection)
		}
		if s.Name == NameAttestation && s.Protection != Resident {
			return fmt.Errorf("key %q has to be resident", s.Name)
		}
	}
	return nil
}

func sortedSpecs(specs []Spec) []Spec {
	return slices.SortedFunc(slices.Values(specs), func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
}

// Labels under which everything is derived from the root secret (HKDF-SHA256, no salt). They are
// format: none may ever change.
const (
	labelDisk       = "signet/disk/1"
	labelWrap       = "signet/wrap/1"
	labelMAC        = "signet/keys-mac/1"
	labelCommitment = "signet/commitment/1"
	labelAuth       = "signet/auth/1/" // + key name
	labelCreation   = "signet/creation/1"

	// From the creation secret.
	labelCreatedWrap = "signet/created-wrap/1"
	labelCreatedAuth = "signet/created-auth/1/" // + key name
	labelAnchorAuth  = "signet/anchor-auth/1"
)

func derive(from []byte, label string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, from, nil, label, 32)
	if err != nil {
		return nil, fmt.Errorf("deriving a secret: %w", err)
	}
	return key, nil
}

// deriveAuth is the authorisation value of a resident key: 32 hex characters, because go-tpm cuts
// binary ones off at a zero byte.
func deriveAuth(from []byte, label string) ([]byte, error) {
	key, err := derive(from, label)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return hex.AppendEncode(nil, key[:16]), nil
}
