package keys

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzServe(f *testing.F) {
	for _, fr := range []frame{{code: opList}, {code: opPublic, body: []byte("\x03tls")}} {
		b, err := fr.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	pkcs8, err := generate("ecdsa-p256")
	if err != nil {
		f.Fatal(err)
	}
	key, err := newSoftwareKey(pkcs8)
	if err != nil {
		f.Fatal(err)
	}
	sign, err := signRequest{name: "tls", hash: 2, scheme: schemeECDSA, digest: make([]byte, 32)}.encode()
	if err != nil {
		f.Fatal(err)
	}
	b, err := frame{code: opSign, body: sign}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for op, r := range map[uint8]manageRequest{
		opCreate:       {names: []string{"ra.2", "rsa-2048", Sealed}},
		opDelete:       {names: []string{"ra.2"}},
		opPutSecret:    {names: []string{"secret/a"}, value: []byte("new value")},
		opSecret:       {names: []string{"secret/a"}},
		opDeleteSecret: {names: []string{"secret/a"}},
		opCertify:      {names: []string{"tls"}, value: []byte("nonce")},
	} {
		body, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		b, err := frame{code: op, body: body}.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, request := range []frame{{code: opAnchor}, {code: opAnchor, body: []byte{1}}, {code: opAdvance, body: make([]byte, 8)}, {code: opAdvance}} {
		b, err := request.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	// Without a TPM and a vault: making a key in the one panics, which is answered, and nothing is recorded.
	h := &Holder{
		keys:    map[string]*heldKey{"tls": {info: Info{Name: "tls", Public: key.public()}, key: key}},
		secrets: map[string][]byte{"secret/a": []byte("value")}, slots: make(chan struct{}, maxInFlight),
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, ours)
		go func() {
			ours.Write(b)
			ours.Close()
		}()
		_ = h.Serve(theirs) // an error is right, a panic or a hang is not
	})
}

func FuzzParse(f *testing.F) {
	c := &contents{Format: contentsFormat, State: stateProvisioned, Kind: KindBox}
	payload, err := c.encode([]byte("key"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	c.Keys = []record{{Name: "ra.2", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: make([]byte, 40)}}
	c.Secrets = []secret{{Name: "secret/a", Wrapped: make([]byte, 40)}}
	v := &Vault{
		contents: c, binding: Binding{Kind: KindHost}, creation: make([]byte, 32),
		openings: map[string][]byte{"ra.2": []byte("PKCS #8")}, values: map[string][]byte{"secret/a": []byte("value")},
	}
	handover, err := v.Handover()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(handover)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeContents(b); err == nil {
			_, _ = c.marker()
		}
		_, _ = parseHandover(b)
		header := &memory{medium: append(bytes.Clone(b), make([]byte, StorageSize)...)[:StorageSize]}
		if _, err := readContainer(header); err != nil {
			t.Errorf("reading a container: %v", err)
		}
	})
}

// nowhere is a Storage that keeps nothing.
type nowhere struct{}

func (nowhere) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nowhere) Sync() error                            { return nil }

// Whatever comes in place of a holder's requests, what KEYS holds of the site is the same afterwards, and
// the rest within its bounds.
func FuzzRecord(f *testing.F) {
	site := record{Name: "tls", Algorithm: "ecdsa-p256", Protection: Sealed, Wrapped: make([]byte, 40)}
	made := record{Name: "ra.2", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: make([]byte, 40)}
	for op, v := range map[uint8]any{recordKey: made, recordSecret: secret{Name: "secret/a", Wrapped: make([]byte, 40)}} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(op, b)
	}
	f.Add(uint8(removeKey), []byte("ra.3"))
	f.Add(uint8(removeSecret), []byte("secret/b"))
	f.Fuzz(func(t *testing.T, op uint8, body []byte) {
		other := made
		other.Name = "ra.3"
		c := &contents{Format: contentsFormat, State: stateProvisioned, Kind: KindBox, Keys: []record{other, site}, Secrets: []secret{{Name: "secret/b", Wrapped: make([]byte, 40)}}}
		v := &Vault{contents: c, container: &container{st: nowhere{}}}
		if err := v.record(frame{code: op, body: body}); err != nil {
			if v.contents != c {
				t.Error("a refused request changed something")
			}
			return
		}
		after, err := decodeContents(v.container.newest().payload)
		if err != nil || !v.container.same() {
			t.Fatalf("same %v, %v", v.container.same(), err)
		}
		i, found := after.keyIndex("tls")
		if !found || !cmp.Equal(after.Keys[i], site) {
			t.Error("the site's key changed")
		}
		for _, r := range after.Keys {
			if r.Name != "tls" && (checkCreated(r.spec()) != nil || !r.Created || len(r.Wrapped) > maxWrapped) {
				t.Errorf("recorded %+v", r)
			}
		}
		for _, s := range after.Secrets {
			if checkSecretName(s.Name) != nil || len(s.Wrapped) > sealing+MaxSecret {
				t.Errorf("recorded secret %q", s.Name)
			}
		}
	})
}
