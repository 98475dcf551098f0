package appliance

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"signet.internal/provision"
)

// proxies are the trusted proxies of a site; without any, what a request says about where it came from
// is ignored. A proxy is believed by the address it connects from, and about client certificates only
// if it shows one of its own besides.
type proxies struct {
	networks []netip.Prefix
	roots    *x509.CertPool // whom a proxy's own certificate chains to; nil: never asked
	now      func() time.Time
}

// Headers of proxies: the addresses a request passed, and the certificate a client showed the proxy.
const (
	headerForwarded = "X-Forwarded-For"
	headerClient    = "X-Ssl-Client-Cert"
)

// maxHops bounds what is read of X-Forwarded-For, from the right.
const maxHops = 16

// maxClientHeader bounds a certificate in a header, encoded.
const maxClientHeader = 16 << 10

func newProxies(p *provision.TrustedProxies, now func() time.Time) *proxies {
	out := &proxies{now: now}
	if p == nil {
		return out
	}
	out.networks = p.Networks
	if len(p.Certificates) > 0 {
		out.roots = x509.NewCertPool()
		addAll(out.roots, p.Certificates)
	}
	return out
}

func (p *proxies) trusts(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// source is the address limits and audit records count a request under: the peer's, or behind trusted
// proxies the rightmost address of X-Forwarded-For that is none of theirs. What stands to the left of
// that was written by the client.
func (p *proxies) source(r *http.Request) netip.Addr {
	source := sourceOfAddr(r.RemoteAddr)
	if !p.trusts(source) {
		return source
	}
	hops := strings.Split(strings.Join(r.Header.Values(headerForwarded), ","), ",")
	for i := len(hops) - 1; i >= max(0, len(hops)-maxHops); i-- {
		hop := hopAddr(hops[i])
		if !hop.IsValid() {
			return source // the proxy that wrote this is the last that is known
		}
		if source = hop; !p.trusts(hop) {
			return hop
		}
	}
	return source
}

// hopAddr reads one element of X-Forwarded-For, with or without a port.
func hopAddr(s string) netip.Addr {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone("")
	}
	return sourceOfAddr(s)
}

// clientCertificates are those the client showed in TLS, its own first, of which it is known that it has
// the key and nothing else: those of the connection, or the one a trusted proxy passes on. A proxy's
// own certificate is never a client's.
func (p *proxies) clientCertificates(r *http.Request) []*x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	if !p.trusts(sourceOfAddr(r.RemoteAddr)) || !p.isProxy(r.TLS.PeerCertificates) {
		return r.TLS.PeerCertificates
	}
	values := r.Header.Values(headerClient)
	if len(values) != 1 || len(values[0]) > maxClientHeader {
		return nil
	}
	cert := headerCertificate(values[0])
	if cert == nil {
		return nil
	}
	return []*x509.Certificate{cert}
}

// isProxy reports whether a connection's certificate is one of a trusted proxy's.
func (p *proxies) isProxy(peer []*x509.Certificate) bool {
	if p.roots == nil {
		return false
	}
	between := x509.NewCertPool()
	addAll(between, peer[1:])
	_, err := peer[0].Verify(x509.VerifyOptions{
		Roots: p.roots, Intermediates: between, CurrentTime: p.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil
}

// headerCertificate reads a certificate as nginx ($ssl_client_escaped_cert: PEM, percent-encoded) and
// HAProxy (%[ssl_c_der,base64]: DER in base64) write it; nil where it is neither.
func headerCertificate(value string) *x509.Certificate {
	var der []byte
	if strings.HasPrefix(value, "-----BEGIN") {
		text, err := url.PathUnescape(value)
		if err != nil {
			return nil
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
			return nil
		}
		der = block.Bytes
	} else {
		var err error
		if der, err = base64.StdEncoding.DecodeString(value); err != nil {
			return nil
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}
