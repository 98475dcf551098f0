package appliance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"signet.internal/provision"
)

// testCA makes certificates.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newTestCA(t testing.TB, name string, notAfter time.Time) *testCA {
	t.Helper()
	ca := &testCA{t: t}
	ca.cert, ca.key = ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true})
	return ca
}

// issue fills in what a template leaves open; without a certificate of its own the CA's signs itself.
func (ca *testCA) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	ca.n++
	template.SerialNumber = big.NewInt(ca.n)
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-24 * time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(24 * time.Hour)
	}
	parent, signer := ca.cert, ca.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, key
}

// client is a certificate for clients.
func (ca *testCA) client(name string) *x509.Certificate {
	cert, _ := ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return cert
}

func noneRevoked(*x509.Certificate) (bool, error) { return false, nil }

// TestSource: the address a request counts under is nothing that its sender can choose.
func TestSource(t *testing.T) {
	site := &provision.Site{TrustedProxies: &provision.TrustedProxies{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("2001:db8:1::/64")},
	}}
	p := newProxies(site, time.Now, noneRevoked)
	many := strings.Repeat("10.0.0.1, ", 100)
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"nobody's proxy", "192.0.2.9:1000", []string{"198.51.100.7"}, "192.0.2.9"},
		{"just outside the network", "10.0.0.16:1000", []string{"198.51.100.7"}, "10.0.0.16"},
		{"no header", "10.0.0.1:1000", nil, "10.0.0.1"},
		{"empty header", "10.0.0.1:1000", []string{""}, "10.0.0.1"},
		{"one hop", "10.0.0.1:1000", []string{"198.51.100.7"}, "198.51.100.7"},
		{"the client's own word before it", "10.0.0.1:1000", []string{"10.0.0.2, 203.0.113.1, 198.51.100.7"}, "198.51.100.7"},
		{"the client's own word in a header of its own", "10.0.0.1:1000", []string{"203.0.113.1", "198.51.100.7"}, "198.51.100.7"},
		{"the client says that it is a proxy", "10.0.0.1:1000", []string{"10.0.0.3", "198.51.100.7"}, "198.51.100.7"},
		{"two proxies", "10.0.0.1:1000", []string{"203.0.113.1, 198.51.100.7, 10.0.0.2"}, "198.51.100.7"},
		{"two proxies, a header each", "10.0.0.1:1000", []string{"198.51.100.7", "10.0.0.2"}, "198.51.100.7"},
		{"proxies alone", "10.0.0.1:1000", []string{"10.0.0.3,10.0.0.2"}, "10.0.0.3"},
		{"port", "10.0.0.1:1000", []string{"198.51.100.7:4711"}, "198.51.100.7"},
		{"IPv6", "10.0.0.1:1000", []string{"2001:db8:2::7"}, "2001:db8:2::7"},
		{"IPv6 in brackets", "10.0.0.1:1000", []string{"[2001:db8:2::7]"}, "2001:db8:2::7"},
		{"IPv6 and port", "10.0.0.1:1000", []string{"[2001:db8:2::7]:4711"}, "2001:db8:2::7"},
		{"IPv6 with zone", "10.0.0.1:1000", []string{"fe80::7%eth0"}, "fe80::7"},
		{"IPv4 in IPv6", "10.0.0.1:1000", []string{"::ffff:198.51.100.7"}, "198.51.100.7"},
		{"a proxy as IPv4 in IPv6", "[::ffff:10.0.0.1]:1000", []string{"198.51.100.7"}, "198.51.100.7"},
		{"IPv6 proxy", "[2001:db8:1::1]:1000", []string{"198.51.100.7, 2001:db8:1::2"}, "198.51.100.7"},
		{"a word", "10.0.0.1:1000", []string{"198.51.100.7, unknown"}, "10.0.0.1"},
		{"a word behind a proxy", "10.0.0.1:1000", []string{"198.51.100.7, _hidden, 10.0.0.2"}, "10.0.0.2"},
		{"nothing behind a comma", "10.0.0.1:1000", []string{"198.51.100.7,"}, "10.0.0.1"},
		{"brackets the wrong way round", "10.0.0.1:1000", []string{"]198.51.100.7["}, "10.0.0.1"},
		{"a control character", "10.0.0.1:1000", []string{"198.51.100.7\x00"}, "10.0.0.1"},
		{"more hops than are read", "10.0.0.1:1000", []string{"198.51.100.7, " + many + "10.0.0.2"}, "10.0.0.1"},
		{"not from an address", "@", []string{"198.51.100.7"}, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{headerForwarded: c.forwarded}}
		if got := p.source(r).String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if d := r.Header[headerForwarded]; len(d) > 0 && d[len(d)-1] != c.forwarded[len(c.forwarded)-1] {
			t.Errorf("%s: the header was changed to %q", c.name, d)
		}
	}
	none := newProxies(&provision.Site{}, time.Now, noneRevoked)
	if got := none.source(&http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{headerForwarded: {"198.51.100.7"}}}); got.String() != "10.0.0.1" {
		t.Errorf("without trusted proxies: %s", got)
	}
}

func escaped(cert *x509.Certificate) string {
	return url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
}

// TestClientCertificates: a header is believed of a proxy with a certificate of its own alone, and what a
// proxy shows of itself is never a client's.
func TestClientCertificates(t *testing.T) {
	proxyCA, deviceCA := newTestCA(t, "Proxies", time.Time{}), newTestCA(t, "Devices", time.Time{})
	proxy, device, other := proxyCA.client("proxy"), deviceCA.client("device"), deviceCA.client("other")
	expired, _ := proxyCA.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "old"}, NotAfter: time.Now().Add(-time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	server, _ := proxyCA.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "server"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	revoked := proxyCA.client("stolen")
	trusted := &provision.TrustedProxies{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}, File: "trust/proxies.pem", Certificates: []*x509.Certificate{proxyCA.cert}}
	unknown := proxyCA.client("new")
	isRevoked := func(c *x509.Certificate) (bool, error) {
		if c == unknown {
			return false, errors.New("the store is closed")
		}
		return c == revoked, nil
	}
	believing := newProxies(&provision.Site{TrustedProxies: trusted}, time.Now, isRevoked)
	sourcesOnly := newProxies(&provision.Site{TrustedProxies: &provision.TrustedProxies{Networks: trusted.Networks}}, time.Now, isRevoked)
	none := newProxies(&provision.Site{}, time.Now, isRevoked)

	const near, far = "10.0.0.1:1000", "192.0.2.9:1000"
	der := base64.StdEncoding.EncodeToString(device.Raw)
	long := []*x509.Certificate{proxy}
	for len(long) <= maxProxyChain {
		long = append(long, device)
	}
	chain := func(c ...*x509.Certificate) []*x509.Certificate { return c }
	for _, c := range []struct {
		name    string
		p       *proxies
		peer    string
		shown   []*x509.Certificate
		headers []string
		want    []*x509.Certificate
	}{
		{"a device itself", believing, far, chain(device, deviceCA.cert), nil, chain(device, deviceCA.cert)},
		{"a device itself, with a header", believing, far, chain(other), []string{escaped(device)}, chain(other)},
		{"nothing shown, a header", believing, far, nil, []string{escaped(device)}, nil},
		{"a proxy's certificate from elsewhere", believing, far, chain(proxy), []string{escaped(device)}, chain(proxy)},
		{"nginx", believing, near, chain(proxy), []string{escaped(device)}, chain(device)},
		{"HAProxy", believing, near, chain(proxy), []string{der}, chain(device)},
		{"the proxy's client showed none", believing, near, chain(proxy), nil, nil},
		{"the same with an empty header", believing, near, chain(proxy), []string{""}, nil},
		{"two headers", believing, near, chain(proxy), []string{escaped(device), escaped(other)}, nil},
		{"two certificates", believing, near, chain(proxy), []string{escaped(device) + escaped(other)}, nil},
		{"half a certificate, then one", believing, near, chain(proxy), []string{escaped(device)[:200] + escaped(other)}, nil},
		{"text after it", believing, near, chain(proxy), []string{escaped(device) + "x"}, nil},
		{"text before it", believing, near, chain(proxy), []string{"x" + escaped(device)}, nil},
		{"a key", believing, near, chain(proxy), []string{strings.ReplaceAll(escaped(device), "CERTIFICATE", "PRIVATE%20KEY")}, nil},
		{"a header in the PEM", believing, near, chain(proxy), []string{strings.Replace(escaped(device), "-----%0A", "-----%0AProc-Type:%204%0A%0A", 1)}, nil},
		{"bad escapes", believing, near, chain(proxy), []string{"-----BEGIN%ZZ"}, nil},
		{"garbage after the DER", believing, near, chain(proxy), []string{base64.StdEncoding.EncodeToString(append(device.Raw[:len(device.Raw):len(device.Raw)], 0))}, nil},
		{"a subject, no certificate", believing, near, chain(proxy), []string{"/CN=device"}, nil},
		{"more than a certificate takes", believing, near, chain(proxy), []string{strings.Repeat("A", maxClientHeader+4)}, nil},
		{"a proxy without a certificate", believing, near, nil, []string{escaped(device)}, nil},
		{"a proxy with somebody else's", believing, near, chain(device), []string{escaped(other)}, nil},
		{"a proxy whose certificate has ended", believing, near, chain(expired), []string{escaped(device)}, nil},
		{"a proxy with a server's certificate", believing, near, chain(server), []string{escaped(device)}, nil},
		{"a proxy whose certificate is revoked", believing, near, chain(revoked), []string{escaped(device)}, nil},
		{"a proxy nobody can look up", believing, near, chain(unknown), []string{escaped(device)}, nil},
		{"a proxy with a long chain", believing, near, long, []string{escaped(device)}, nil},
		{"no bundle", sourcesOnly, near, chain(proxy), []string{escaped(device)}, nil},
		{"no bundle, a certificate of a device's authority", sourcesOnly, near, chain(device), nil, nil},
		{"no trusted proxies", none, near, chain(device), []string{escaped(other)}, chain(device)},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{headerClient: c.headers}, TLS: &tls.ConnectionState{PeerCertificates: c.shown}}
		got := c.p.clientCertificates(r)
		if len(got) != len(c.want) {
			t.Errorf("%s: %d certificates, want %d", c.name, len(got), len(c.want))
			continue
		}
		for i := range got {
			if !got[i].Equal(c.want[i]) {
				t.Errorf("%s: certificate %d is %s, want %s", c.name, i, got[i].Subject, c.want[i].Subject)
			}
		}
	}
	if got := believing.clientCertificates(&http.Request{RemoteAddr: near, Header: http.Header{headerClient: {escaped(device)}}}); got != nil {
		t.Error("a client certificate without TLS")
	}
}

// TestProxiesExpire: once the authority of the proxies has ended no header is believed, and the box says so.
func TestProxiesExpire(t *testing.T) {
	ends := time.Now().Add(time.Hour).Truncate(time.Second)
	ca := newTestCA(t, "Proxies", ends)
	proxy, device := ca.client("proxy"), newTestCA(t, "Devices", time.Time{}).client("device")
	now := ends
	p := newProxies(&provision.Site{TrustedProxies: &provision.TrustedProxies{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, File: "trust/proxies.pem", Certificates: []*x509.Certificate{ca.cert},
	}}, func() time.Time { return now }, noneRevoked)
	ask := func() int {
		r := &http.Request{RemoteAddr: "10.0.0.1:1", Header: http.Header{headerClient: {escaped(device)}}, TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{proxy}}}
		return len(p.clientCertificates(r))
	}
	if n, told := ask(), p.conditions(now); n != 1 || len(told) != 0 {
		t.Errorf("before: %d certificates, conditions %v", n, told)
	}
	now = ends.Add(time.Second)
	told := p.conditions(now)
	if n := ask(); n != 0 || len(told) != 1 {
		t.Fatalf("after: %d certificates, conditions %v", n, told)
	}
	if want := "Proxies are not believed about client certificates: certificate CN=Proxies in trust/proxies.pem expired on " + ends.UTC().Format(time.DateOnly) + "."; told[0].What != want {
		t.Errorf("%q, want %q", told[0].What, want)
	}
}

func FuzzHeaderCertificate(f *testing.F) {
	cert := newTestCA(f, "CA", time.Time{}).client("device")
	f.Add(escaped(cert))
	f.Add(base64.StdEncoding.EncodeToString(cert.Raw))
	f.Add("-----BEGIN%20CERTIFICATE-----%0A%0A-----END%20CERTIFICATE-----%0A")
	f.Fuzz(func(t *testing.T, value string) {
		if c := headerCertificate(value); c != nil && len(c.Raw) == 0 {
			t.Error("a certificate of nothing")
		}
	})
}
