package appliance

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/exchange"
	"signet.internal/appliance/handover"
	"signet.internal/provision"
)

// proxies are the trusted proxies of a site; without any, what a request says about where it came from
// is ignored. A proxy is believed by the address it connects from, and about client certificates only
// if it shows one of its own besides.
//
// Whoever can send from the networks says which address a request counts under. Whoever has a key and
// certificate of the bundle besides can show any certificate as a client's, without having its key.
type proxies struct {
	networks []netip.Prefix
	bundle   *bundle // whom a proxy's own certificate chains to; nil: no header is believed about clients
	now      func() time.Time

	isRevoked func(*x509.Certificate) (bool, error) // where an authority of the box issued it
}

// Headers of proxies: the addresses a request passed, and the certificate a client showed the proxy.
const (
	headerForwarded = "X-Forwarded-For"
	headerClient    = "X-Ssl-Client-Cert"
)

// maxHops bounds what is read of X-Forwarded-For, from the right.
const maxHops = 16

// maxProxyChain bounds the certificates a proxy may show, its own and those above it.
const maxProxyChain = 8

// maxClientHeader bounds a certificate in a header, encoded.
const maxClientHeader = 16 << 10

// bundleProxies is what logs call the bundle; no profile has it, so nobody can replace it.
const bundleProxies = "proxies"

func newProxies(site *provision.Site, now func() time.Time, isRevoked func(*x509.Certificate) (bool, error)) *proxies {
	p := &proxies{now: now, isRevoked: isRevoked}
	if site.TrustedProxies == nil {
		return p
	}
	p.networks = site.TrustedProxies.Networks
	for _, u := range site.Bundles() {
		if u.Field == provision.FieldProxies {
			p.bundle = newBundle(bundleProxies, u.Bundle)
		}
	}
	return p
}

func (p *proxies) trusts(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// source is the address limits and audit records count a request under: the peer's, or behind trusted
// proxies the rightmost address of X-Forwarded-For that is none of theirs. What stands to the left of
// that was written by the client.
func (p *proxies) source(r *http.Request) netip.Addr {
	source := exchange.AddrOf(r.RemoteAddr)
	values := r.Header.Values(headerForwarded) // several are one, in their order (RFC 9110 §5.3)
	for range maxHops {
		if len(values) == 0 || !p.trusts(source) {
			break
		}
		last := len(values) - 1
		text := values[last]
		if comma := strings.LastIndexByte(text, ','); comma >= 0 {
			values = append(slices.Clone(values[:last]), text[:comma])
			text = text[comma+1:]
		} else {
			values = values[:last]
		}
		hop := hopAddr(text)
		if !hop.IsValid() {
			break // the proxy that wrote this is the last that is known
		}
		source = hop
	}
	return source
}

// hopAddr reads one element of X-Forwarded-For: an address, in brackets or not, with a port or not.
func hopAddr(s string) netip.Addr {
	s = strings.TrimSpace(s)
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return a.Unmap().WithZone("")
	}
	return exchange.AddrOf(s)
}

// clientCertificates are those the client showed in TLS, its own first, of which it is known that it has
// the key and nothing else: those of the connection, or from a trusted proxy's address the one it
// passes on. What the connection shows there is the proxy's, and never a client's.
func (p *proxies) clientCertificates(r *http.Request) []*x509.Certificate {
	if r.TLS == nil {
		return nil
	}
	peer := r.TLS.PeerCertificates
	if !p.trusts(exchange.AddrOf(r.RemoteAddr)) {
		return peer
	}
	values := r.Header.Values(headerClient)
	if len(values) != 1 || len(values[0]) > maxClientHeader || !p.isProxy(peer) {
		return nil
	}
	if cert := headerCertificate(values[0]); cert != nil {
		return []*x509.Certificate{cert}
	}
	return nil
}

// isProxy reports whether a connection's certificates are those of a proxy that is believed now.
func (p *proxies) isProxy(peer []*x509.Certificate) bool {
	if p.bundle == nil || len(peer) == 0 || len(peer) > maxProxyChain {
		return false
	}
	between := x509.NewCertPool()
	addAll(between, peer[1:])
	_, err := peer[0].Verify(x509.VerifyOptions{
		Roots: p.bundle.now().pool, Intermediates: between, CurrentTime: p.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return false
	}
	revoked, err := p.isRevoked(peer[0])
	return err == nil && !revoked
}

// conditions tell of a certificate that has ended.
func (p *proxies) conditions(now time.Time) []handover.Condition {
	if p.bundle == nil {
		return nil
	}
	cert := firstExpired(p.bundle.now().certificates, now)
	if cert == nil {
		return nil
	}
	return []handover.Condition{{
		What: "Proxies are not believed about client certificates: " + expiredText(cert, p.bundle.file) + ".",
		Mend: "Replace the certificate in the site and bake it again; on a host replace the file and reload.",
	}}
}

// headerCertificate reads a certificate as nginx ($ssl_client_escaped_cert: PEM, percent-encoded) and
// HAProxy (%[ssl_c_der,base64]: DER in base64) write it; nil where it is neither.
func headerCertificate(value string) *x509.Certificate {
	var der []byte
	if strings.HasPrefix(value, "-----BEGIN") {
		text, err := url.PathUnescape(value)
		if err != nil || strings.Count(text, "-----BEGIN") != 1 {
			return nil
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
			return nil
		}
		der = block.Bytes
	} else {
		var err error
		if der, err = base64.StdEncoding.Strict().DecodeString(value); err != nil {
			return nil
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}
