package est

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// serverKeyGen answers serverkeygen: a key made here and a certificate for it (RFC 7030 §4.4), req with the CSR that template makes for
// that key. The key is in memory until the answer has left, and nowhere else: the answer is not kept, so the same request sent again is
// a new one, and it waits for nobody.
//
// Everything that can go wrong with handing out the key is done before the certificate is asked for: none is issued to a device that
// is then told no.
func (s *Server) serverKeyGen(x *call, template *pki.Template, req enroll.Request) {
	asked, err := readWish(template.RawInfo())
	if err != nil {
		s.failCounted(x, err)
		return
	}
	to, err := asked.recipient(x.peer)
	if err != nil {
		s.failCounted(x, err)
		return
	}
	if to != nil && x.profile.KeySigner == nil {
		s.failCounted(x, refuse(http.StatusBadRequest, "this profile hands out no encrypted keys: ask for none to be encrypted, or make the key on the device"))
		return
	}
	if isLibest(x.R) && strings.HasPrefix(x.profile.ServerKeyGen, "ecdsa") { // it would throw away a key that is not RSA, and the certificate with it
		s.failCounted(x, refuse(http.StatusBadRequest, "libest reads RSA keys only: have the profile make those, or make the key on the device"))
		return
	}
	key, err := x.profile.keys.take(x.R.Context())
	if err != nil {
		s.fail(x, err)
		return
	}
	isUnused := true
	defer func() {
		if isUnused {
			x.profile.keys.putBack(key)
		} else {
			wipe(key)
		}
	}()
	part, err := x.profile.keyPart(key, to)
	if err != nil {
		s.fail(x, err)
		return
	}
	defer clear(part.der)
	if req.CSR, err = template.ForKey(key.Public()); err != nil {
		s.fail(x, err)
		return
	}
	req.AnswerNow = true
	isUnused = false // whatever becomes of the engine
	res, err := s.engine.Enroll(x.R.Context(), req)
	isUnused = enroll.IsUnproven(err)
	if err != nil {
		s.fail(x, err)
		return
	}
	certificate, err := cms.CertsOnly([][]byte{res.Certificate})
	if err != nil {
		s.fail(x, err)
		return
	}
	x.issued(res)
	contentType, body := multipart(linesFor(x.R), part, mimePart{contentTypeCertsOnly, certificate})
	defer clear(body)
	x.reply(http.StatusOK, contentType, body)
}

// keyPart is the private key as it is handed out (RFC 7030 §4.4.2): for a recipient in CMS, else as it is, for TLS to protect.
func (p *profile) keyPart(key crypto.Signer, to *recipient) (mimePart, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return mimePart{}, fmt.Errorf("encoding the new key: %w", err)
	}
	if to == nil {
		return mimePart{"application/pkcs8", der}, nil
	}
	defer clear(der)
	certificate, signer := p.KeySigner()
	signed, err := signKeyPackage(der, certificate, signer)
	if err != nil {
		return mimePart{}, fmt.Errorf("signing the new key: %w", err)
	}
	defer clear(signed)
	sealed, err := to.seal(signed)
	if err != nil {
		return mimePart{}, fmt.Errorf("encrypting the new key: %w", err)
	}
	return mimePart{"application/pkcs7-mime; smime-type=server-generated-key", sealed}, nil
}

// mimePart is one part of a multipart answer, to be sent in base64.
type mimePart struct {
	contentType string
	der         []byte
}

// boundary has no character that needs quoting, and a hyphen, which base64 has not, before it.
const boundary = "signet-part-of-est-answer"

// multipart returns the content type and the body of an answer in parts (RFC 2046 §5.1), in the narrow form that libest reads: no
// preamble, the two header fields in this order and no other.
func multipart(l lines, parts ...mimePart) (contentType string, body []byte) {
	size := 256
	for _, p := range parts {
		size += 2*len(p.der) + 256
	}
	body = make([]byte, 0, size) // large enough that no copy of a private key is left behind
	for _, p := range parts {
		body = append(body, "--"+boundary+"\r\nContent-Type: "+p.contentType+"\r\nContent-Transfer-Encoding: base64\r\n\r\n"...)
		text := l.encode(p.der)
		body = append(body, text...)
		clear(text)
		body = append(body, "\r\n"...)
	}
	return "multipart/mixed; boundary=" + boundary, append(body, "--"+boundary+"--\r\n"...)
}

// keyMaker makes keys of one kind. RSA keys take long enough to make that whoever asks for them without a proof could keep a
// processor busy. They are therefore made one at a time, few requests wait for one, so that others are answered meanwhile, and the key
// made for a request that proved nothing is used for the next: nobody has seen it.
type keyMaker struct {
	generate func() (crypto.Signer, error)
	isCheap  bool // no key is worth keeping

	waiting chan struct{} // one element per request that waits for a key, the one it is made for among them
	making  chan struct{} // one element while a key is made
	mu      sync.Mutex    // guards unused
	unused  []crypto.Signer
}

// maxMaking is how many requests wait for a key to be made.
const maxMaking = 4

func newKeyMaker(algorithm string) (*keyMaker, error) {
	onCurve := func(c elliptic.Curve) *keyMaker {
		return &keyMaker{isCheap: true, generate: func() (crypto.Signer, error) { return ecdsa.GenerateKey(c, rand.Reader) }}
	}
	ofBits := func(n int) *keyMaker {
		return &keyMaker{
			generate: func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, n) },
			waiting:  make(chan struct{}, maxMaking), making: make(chan struct{}, 1),
		}
	}
	switch algorithm {
	case "ecdsa-p256":
		return onCurve(elliptic.P256()), nil
	case "ecdsa-p384":
		return onCurve(elliptic.P384()), nil
	case "rsa-2048":
		return ofBits(2048), nil
	case "rsa-3072":
		return ofBits(3072), nil
	case "rsa-4096":
		return ofBits(4096), nil
	}
	return nil, fmt.Errorf("serverkeygen cannot make a key of kind %q: use rsa-2048, rsa-3072, rsa-4096, ecdsa-p256 or ecdsa-p384", algorithm)
}

// take returns a key that nobody has. The error is enroll.ErrBusy where too many wait for one, or ctx's.
func (m *keyMaker) take(ctx context.Context) (crypto.Signer, error) {
	if !m.isCheap {
		if key := m.kept(); key != nil {
			return key, nil
		}
		select {
		case m.waiting <- struct{}{}:
			defer func() { <-m.waiting }()
		default:
			return nil, fmt.Errorf("making a key: %w", enroll.ErrBusy)
		}
		select {
		case m.making <- struct{}{}:
			defer func() { <-m.making }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if key := m.kept(); key != nil { // put back meanwhile
			return key, nil
		}
	}
	key, err := m.generate()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func (m *keyMaker) kept() crypto.Signer {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.unused)
	if n == 0 {
		return nil
	}
	key := m.unused[n-1]
	m.unused = m.unused[:n-1]
	return key
}

// putBack takes a key that was neither handed out nor certified. There are never more of them than requests in flight at a time.
func (m *keyMaker) putBack(key crypto.Signer) {
	if m.isCheap {
		wipe(key)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unused = append(m.unused, key)
}

// wipe overwrites a private key as far as it is in reach: copies that crypto/rsa and crypto/ecdsa keep for their own use, and those
// on the way through TLS, are left to the garbage collector.
func wipe(key crypto.Signer) {
	var secrets []*big.Int
	switch k := key.(type) {
	case *rsa.PrivateKey:
		secrets = append(secrets, k.D, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv)
		secrets = append(secrets, k.Primes...)
	case *ecdsa.PrivateKey:
		secrets = append(secrets, k.D)
	}
	for _, n := range secrets {
		if n != nil {
			clear(n.Bits())
		}
	}
}
