package authority

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// Bounds of an uploaded chain.
const (
	maxChain    = 10
	maxChainPEM = 128 << 10
	maxChainRSA = 8192 // bits, as crypto/tls has it
)

// Request asks for a subordinate's certificate.
type Request struct {
	Generation int
	DER        []byte // PKCS#10
	PEM        []byte // the same
	// Certification is the TPM's statement that the key cannot leave it, over SHA-256 of DER; nil where
	// the site keeps the key outside of the TPM.
	Certification *keys.Certification
}

// CSR makes the request for the certificate of a subordinate: of the generation that waits for its chain,
// else of the active one, whose certificate can be renewed under the same key. Nothing is recorded: the
// request can be made again at any time. Errors: ErrUnknown; ErrRoot.
func (s *Set) CSR(name string) (*Request, error) {
	a, err := s.of(name)
	if err != nil {
		return nil, err
	}
	if a.Mode != provision.ModeSubordinate {
		return nil, fmt.Errorf("authority %s: %w", name, ErrRoot)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot := s.Snapshot(name)
	out := &Request{Generation: snapshot.Waiting}
	if out.Generation == 0 {
		out.Generation = snapshot.Active.Number
	}
	keyName := authorityKey(name, out.Generation)
	key, err := s.key(keyName)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	if out.DER, err = pki.NewAuthorityCSR(a.Subject, key, a.PathLen); err != nil {
		return nil, fmt.Errorf("authority %s: %w", name, err)
	}
	out.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: out.DER})
	if key.Info().Protection == keys.Resident {
		nonce := sha256.Sum256(out.DER)
		certification, err := s.cfg.Keys.Certify(keyName, nonce[:])
		if err != nil {
			return nil, fmt.Errorf("authority %s: %w", name, err)
		}
		out.Certification = &certification
	}
	return out, nil
}

// InstallChain takes the certificates of a subordinate, PEM: its own and those above it up to the root,
// in any order. They are checked in full (see [pki.CheckChain]) before anything changes. Where a
// generation waits for its chain it becomes the active one if it is the authority's first, else the next;
// a chain over the key of the next or active generation renews that one's certificate. The chain that is
// in use already changes nothing. Errors: ErrUnknown; ErrRoot;
// pki.ErrChain, whose text says what is wrong with it.
func (s *Set) InstallChain(name string, text []byte, actor string) error {
	return s.order(name, func(a provision.Authority, next *store.Identity) ([]audit.Record, error) {
		if a.Mode != provision.ModeSubordinate {
			return nil, ErrRoot
		}
		uploaded, err := parseChain(text)
		if err != nil {
			return nil, err
		}
		certs, now := next.Authorities[name], s.cfg.Now()
		g, chain, err := s.match(name, certs, uploaded)
		if err != nil {
			return nil, err
		}
		if err := pki.CheckChain(chain, chain[0].PublicKey, a.Subject, now); err != nil {
			return nil, err
		}
		if a.PathLen != nil {
			if err := pki.CheckRoom(chain, *a.PathLen); err != nil {
				return nil, err
			}
		}
		raw := rawOf(chain)
		if slices.EqualFunc(raw, g.Chain, bytes.Equal) {
			return nil, nil
		}
		if before := parsed(first(g.Chain)); before != nil &&
			(!bytes.Equal(before.RawSubject, chain[0].RawSubject) || !bytes.Equal(before.SubjectKeyId, chain[0].SubjectKeyId)) {
			return nil, fmt.Errorf("%w: its name or key identifier is encoded otherwise than in the certificate it renews, so what was issued would no longer lead to it; have the request signed with both as they are", pki.ErrChain)
		}
		g.Chain = raw
		records := []audit.Record{s.recordOf(audit.AuthorityInstalled, actor, name, g.Number, chain[0])}
		switch {
		case g.State == store.GenerationWaiting && inState(certs, store.GenerationActive) != nil:
			g.State = store.GenerationNext
		case g.State == store.GenerationWaiting:
			records = append(records, s.recordOf(audit.AuthorityActivated, actor, name, g.Number, chain[0]))
			fallthrough
		case g.State == store.GenerationActive: // what it certified ended with the certificate before
			if err := s.activate(a, next, &certs, g, now); err != nil {
				return nil, err
			}
		}
		next.Authorities[name] = certs
		return records, nil
	})
}

// match finds which generation's key is among the uploaded certificates and puts them in order.
func (s *Set) match(name string, certs store.AuthorityCerts, uploaded []*x509.Certificate) (*store.GenerationCerts, []*x509.Certificate, error) {
	for _, state := range []store.GenerationState{store.GenerationWaiting, store.GenerationNext, store.GenerationActive} {
		g := inState(certs, state)
		if g == nil {
			continue
		}
		key, err := s.key(authorityKey(name, g.Number))
		if err != nil {
			return nil, nil, err
		}
		for _, c := range uploaded {
			if samePublic(c.PublicKey, key.Public()) {
				chain, err := pki.OrderChain(uploaded, key.Public())
				return g, chain, err
			}
		}
	}
	return nil, nil, fmt.Errorf("%w: none of its certificates is over this authority's key; have the authority's own request signed and upload that certificate with those above it", pki.ErrChain)
}

// parseChain reads PEM certificates; text around them does not count.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxChainPEM {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d; upload certificates only", pki.ErrChain, len(text), maxChainPEM)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: it has a block %.40q; upload certificates only, in PEM", pki.ErrChain, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d is not readable: %v", pki.ErrChain, len(certs)+1, err)
		}
		// One signature by a larger key is minutes of work.
		if k, ok := cert.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() > maxChainRSA {
			return nil, fmt.Errorf("%w: certificate %d has an RSA key of %d bits, more than %d, which clients refuse", pki.ErrChain, len(certs)+1, k.N.BitLen(), maxChainRSA)
		}
		if certs = append(certs, cert); len(certs) > maxChain {
			return nil, fmt.Errorf("%w: it has more than %d certificates; upload those above this key only", pki.ErrChain, maxChain)
		}
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: there is no PEM certificate in it; convert DER with openssl x509 -inform der", pki.ErrChain)
	}
	return certs, nil
}

// first is the first certificate of a chain; nil if there is none.
func first(chain [][]byte) []byte {
	if len(chain) == 0 {
		return nil
	}
	return chain[0]
}

func rawOf(chain []*x509.Certificate) [][]byte {
	var raw [][]byte
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	return raw
}
