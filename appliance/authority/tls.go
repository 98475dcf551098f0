package authority

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// tlsState is the certificates of the box's listeners at one moment.
type tlsState struct {
	root       *pki.Issuer         // the box's own, of "tls-ca"
	ecdsa, rsa *tls.Certificate    // nil before the first was made
	uploaded   []*x509.Certificate // roots of those that others signed
}

// tlsKeys are the names of the keys that TLS certificates are over.
func tlsKeys() []string { return []string{provision.KeyTLS, provision.KeyTLSRSA} }

// Certificate answers crypto/tls with the current ECDSA certificate.
func (s *Set) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.tls.Load().ecdsa, nil
}

// LegacyCertificate answers crypto/tls with the current ECDSA certificate, or the RSA one where the
// client takes no ECDSA.
func (s *Set) LegacyCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := s.tls.Load()
	if now.rsa != nil && hello.SupportsCertificate(now.ecdsa) != nil {
		return now.rsa, nil
	}
	return now.ecdsa, nil
}

// initialTLS puts a TLS root and the leaves it certifies into a new box's identity.
func (s *Set) initialTLS(id *store.Identity, now time.Time) error {
	subject, err := pki.ParseDN("CN=" + s.cfg.Site.Name + " TLS root,O=Signet box")
	if err != nil {
		return err
	}
	key, err := s.key(provision.KeyTLSCA)
	if err != nil {
		return fmt.Errorf("TLS root: %w", err)
	}
	if id.TLSRoot, err = pki.NewRoot(subject, key, now, tlsRootValidity, nil); err != nil {
		return fmt.Errorf("TLS root: %w", err)
	}
	root, err := s.tlsRoot(*id)
	if err != nil {
		return err
	}
	for _, name := range tlsKeys() {
		if err := s.issueTLS(root, id, name, now); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) tlsRoot(id store.Identity) (*pki.Issuer, error) {
	cert, err := x509.ParseCertificate(id.TLSRoot)
	if err != nil {
		return nil, fmt.Errorf("TLS root: %w", err)
	}
	key, err := s.keyOf(provision.KeyTLSCA, cert)
	if err != nil {
		return nil, fmt.Errorf("TLS root: %w", err)
	}
	root, err := pki.NewIssuer(cert, key)
	if err != nil {
		return nil, fmt.Errorf("TLS root: %w", err)
	}
	return root, nil
}

// leafOf is where an identity keeps the box's own leaf over that key.
func leafOf(id *store.Identity, key string) *[]byte {
	if key == provision.KeyTLSRSA {
		return &id.TLSRSA
	}
	return &id.TLS
}

// issueTLS has the TLS root certify a key for the names and addresses of the box.
func (s *Set) issueTLS(root *pki.Issuer, id *store.Identity, name string, now time.Time) error {
	key, err := s.key(name)
	if err != nil {
		return fmt.Errorf("TLS certificate: %w", err)
	}
	names, addresses := s.tlsNames()
	if *leafOf(id, name), err = root.IssueServer(key.Public(), names, addresses, now, tlsValidity); err != nil {
		return fmt.Errorf("TLS certificate: %w", err)
	}
	return nil
}

// buildTLS binds an identity's TLS certificates to their keys.
func (s *Set) buildTLS(id store.Identity) (*tlsState, error) {
	root, err := s.tlsRoot(id)
	if err != nil {
		return nil, err
	}
	out := &tlsState{root: root}
	for _, name := range tlsKeys() {
		chain := id.TLSUploaded[name]
		if own := *leafOf(&id, name); chain == nil && own != nil {
			chain = [][]byte{own, root.Certificate().Raw}
		} else if chain == nil {
			continue
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		key, err := s.keyOf(name, leaf)
		if err != nil {
			return nil, fmt.Errorf("TLS certificate: %w", err)
		}
		// A signer and no more: crypto/tls takes every key with a method Decrypt for one that does RSA key
		// exchange, and refuses TLS 1.2 where it is an ECDSA key.
		served := &tls.Certificate{Certificate: chain, PrivateKey: struct{ crypto.Signer }{key}, Leaf: leaf}
		if id.TLSUploaded[name] != nil {
			above, err := x509.ParseCertificate(chain[len(chain)-1])
			if err != nil {
				return nil, fmt.Errorf("root of the uploaded TLS certificate: %w", err)
			}
			out.uploaded = append(out.uploaded, above)
			served.Certificate = chain[:len(chain)-1] // clients have the root, or do not trust it
		}
		if name == provision.KeyTLSRSA {
			out.rsa = served
		} else {
			out.ecdsa = served
		}
	}
	return out, nil
}

// refreshTLS makes a new certificate where the box's own is missing, ends soon, or lacks a name or
// address the box has; otherwise the stored one stays, and with it its fingerprint. The caller holds mu.
func (s *Set) refreshTLS(now time.Time) error {
	state := s.tls.Load()
	names, addresses := s.tlsNames()
	var due []string
	for name, served := range map[string]*tls.Certificate{provision.KeyTLS: state.ecdsa, provision.KeyTLSRSA: state.rsa} {
		if s.saved.TLSUploaded[name] == nil && (served == nil || !fits(served.Leaf, state.root.Certificate(), names, addresses, now)) {
			due = append(due, name)
		}
	}
	slices.Sort(due)
	return s.transition(func(next *store.Identity) ([]audit.Record, error) {
		var records []audit.Record
		for _, name := range due {
			if err := s.issueTLS(state.root, next, name, now); err != nil {
				return nil, err
			}
			record := s.record(audit.TLSRenewed, audit.ActorBox)
			record.Identity, record.Serial = name, serial(parsed(*leafOf(next, name)))
			records = append(records, record)
		}
		return records, nil
	})
}

// fits says whether the box's own leaf is of root, still good and carries these names and addresses.
// Addresses the box had earlier may be in it too: they come back, and each new certificate is a new
// fingerprint on the screen.
func fits(leaf, root *x509.Certificate, names []string, addresses []net.IP, now time.Time) bool {
	ends := now.After(leaf.NotAfter.Add(-tlsRenewBefore)) && lasts(root, now, tlsValidity).After(leaf.NotAfter.Add(worthRenewing))
	return leaf.CheckSignatureFrom(root) == nil && !ends && now.After(leaf.NotBefore) &&
		!slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(leaf.DNSNames, n) }) &&
		!slices.ContainsFunc(addresses, func(a net.IP) bool { return !slices.ContainsFunc(leaf.IPAddresses, a.Equal) })
}

// tlsNames are the DNS names and addresses the box's own certificates carry: the public host, localhost,
// the loopback addresses and the box's IPv4 addresses.
func (s *Set) tlsNames() ([]string, []net.IP) {
	names := []string{"localhost"}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if ip := net.ParseIP(s.cfg.Site.PublicHost); ip != nil {
		addresses = append(addresses, ip)
	} else if s.cfg.Site.PublicHost != "localhost" && s.cfg.Site.PublicHost != "" {
		names = append([]string{s.cfg.Site.PublicHost}, names...)
	}
	for _, ip := range IPv4(s.cfg.Addresses()) {
		if !slices.ContainsFunc(addresses, ip.Equal) {
			addresses = append(addresses, ip)
		}
	}
	return names, addresses
}

// TLSCSR makes requests, PEM, for certificates of the box's listeners by another authority: one over
// each key, ECDSA first. The certificate of either is uploaded by InstallTLS.
func (s *Set) TLSCSR() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, addresses := s.tlsNames()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, IPAddresses: addresses}
	if len(names[0]) > 64 {
		template.Subject = pkix.Name{}
	}
	var out bytes.Buffer
	for _, name := range tlsKeys() {
		key, err := s.key(name)
		if err != nil {
			return nil, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, crypto.Signer(key))
		if err != nil {
			return nil, fmt.Errorf("request for a TLS certificate: %w", err)
		}
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}) // a buffer takes everything
	}
	return out.Bytes(), nil
}

// InstallTLS takes a TLS certificate that another authority signed, with those above it up to the root,
// PEM, in any order. The listeners show it from the next handshake on, in place of the box's own over the
// same key; pki.ErrChain says what is wrong with it. Its renewal is the uploader's: Conditions tells in time.
func (s *Set) InstallTLS(text []byte, actor string) error {
	uploaded, err := parseChain(text)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name, chain, err := s.matchTLS(uploaded)
	if err != nil {
		return err
	}
	if err := checkServer(chain, s.cfg.Site.PublicHost, s.cfg.Now()); err != nil {
		return fmt.Errorf("%w: %w", pki.ErrChain, err)
	}
	return s.transition(func(next *store.Identity) ([]audit.Record, error) {
		raw := rawOf(chain)
		if slices.EqualFunc(raw, next.TLSUploaded[name], bytes.Equal) {
			return nil, nil
		}
		if next.TLSUploaded == nil {
			next.TLSUploaded = map[string][][]byte{}
		}
		next.TLSUploaded[name] = raw
		record := s.record(audit.TLSInstalled, actor)
		record.Identity, record.Serial = name, serial(chain[0])
		return []audit.Record{record}, nil
	})
}

// UseOwnTLS takes the uploaded certificates back: the listeners show the box's own again.
func (s *Set) UseOwnTLS(actor string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.transition(func(next *store.Identity) ([]audit.Record, error) {
		if len(next.TLSUploaded) == 0 {
			return nil, nil
		}
		next.TLSUploaded = nil
		record := s.record(audit.TLSInstalled, actor)
		record.Reason = "the uploaded certificates were taken back"
		return []audit.Record{record}, nil
	})
	return errors.Join(err, s.refreshTLS(s.cfg.Now()))
}

// matchTLS finds which TLS key is among the uploaded certificates and puts them in order.
func (s *Set) matchTLS(uploaded []*x509.Certificate) (string, []*x509.Certificate, error) {
	for _, name := range tlsKeys() {
		key, err := s.key(name)
		if err != nil {
			return "", nil, err
		}
		for _, c := range uploaded {
			if samePublic(c.PublicKey, key.Public()) {
				chain, err := pki.OrderChain(uploaded, key.Public())
				return name, chain, err
			}
		}
	}
	return "", nil, fmt.Errorf("%w: none of its certificates is over a TLS key of this box; have one of the box's own requests signed", pki.ErrChain)
}

// checkServer says what would keep clients that trust the chain's root from accepting its first
// certificate for host.
func checkServer(chain []*x509.Certificate, host string, now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if len(chain) == 1 {
		return errors.New("the certificate is signed by its own key; have an authority sign the box's request")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("clients would refuse it: %v; have the box's request signed anew", err)
	}
	if host != "" && chain[0].VerifyHostname(host) != nil {
		return fmt.Errorf("it is not for %s, the box's public_host; have the box's request signed with its names", host)
	}
	return nil
}

// OwnNames are the names and addresses that lead others to the box: those in its TLS certificates, and
// the addresses it has now. Those of the loopback are everyone's own.
func (s *Set) OwnNames() []string {
	state := s.tls.Load()
	var own []string
	add := func(name string) {
		if name != "localhost" && !slices.Contains(own, name) {
			own = append(own, name)
		}
	}
	addresses := s.cfg.Addresses()
	for _, served := range []*tls.Certificate{state.ecdsa, state.rsa} {
		if served == nil {
			continue
		}
		for _, name := range served.Leaf.DNSNames {
			add(name)
		}
		addresses = append(addresses, served.Leaf.IPAddresses...)
	}
	add(s.cfg.Site.PublicHost)
	for _, ip := range addresses {
		if !ip.IsLoopback() {
			add(ip.String())
		}
	}
	return own
}

// Bundle is the PEM of every root a client of this box may need: those of TLS first, then those of the
// active authorities.
func (s *Set) Bundle() []byte {
	state := s.tls.Load()
	roots := append([]*x509.Certificate{state.root.Certificate()}, state.uploaded...)
	for _, a := range s.cfg.Site.Authorities {
		if active := s.Snapshot(a.Name).Active; active != nil {
			roots = append(roots, active.Root())
		}
	}
	var b bytes.Buffer
	for i, c := range roots {
		if slices.ContainsFunc(roots[:i], c.Equal) {
			continue
		}
		fmt.Fprintf(&b, "# %s\n", c.Subject)
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}

// Root is the certificate at the top of the generation's chain: its own where it is a root.
func (g *Generation) Root() *x509.Certificate {
	if len(g.Chain) == 0 {
		return g.Issuer.Certificate()
	}
	return g.Chain[len(g.Chain)-1]
}
