package scep

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a CA outside the box that makes client certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	return authority{parse(t, must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))), key}
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// fixed is a bundle that is never replaced.
func fixed(p *x509.CertPool) func() *x509.CertPool { return func() *x509.CertPool { return p } }

// issue makes a client certificate that ends after the given time from now.
func (a authority) issue(usage x509.ExtKeyUsage, validity time.Duration) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "factory"}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// mutualListener starts the listener that asks for client certificates, as the box does.
func (s *service) mutualListener() *httptest.Server {
	web := httptest.NewUnstartedServer(s.server.HandlerMTLS())
	web.TLS = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert}
	web.StartTLS()
	s.t.Cleanup(web.Close)
	return web
}

func TestMTLSRoute(t *testing.T) {
	ours, others := newAuthority(t, "bootstrap"), newAuthority(t, "somebody")
	s := newService(t, func(c *Config) {
		for i := range c.Profiles {
			switch c.Profiles[i].Name {
			case "corp":
				c.Profiles[i].MTLS = MTLS{Mode: "optional", Pool: fixed(ours.pool())}
			case "iot":
				pool := x509.NewCertPool()
				pool.AddCert(c.Profiles[i].Authority().CA)
				c.Profiles[i].MTLS = MTLS{Mode: "optional", Pool: fixed(pool)}
			case "modern":
				c.Profiles[i].MTLS = MTLS{Mode: "required", Pool: fixed(others.pool())}
			}
		}
	})
	web := s.mutualListener()
	d := newDevice(t, rsaKey(t, 2048), "dev")
	message := func(profile string) []byte {
		w := s.good()
		w.recipient = s.ra[profile]
		return d.message(w)
	}
	post := func(path string, body []byte, certs ...tls.Certificate) exchanged {
		client := web.Client()
		transport := client.Transport.(*http.Transport).Clone()
		transport.TLSClientConfig.Certificates = certs
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Post(web.URL+path+"?operation=PKIOperation", "", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return exchanged{status: resp.StatusCode, reply: must(io.ReadAll(resp.Body)), header: resp.Header}
	}
	good := ours.issue(x509.ExtKeyUsageClientAuth, time.Minute)
	foreign := others.issue(x509.ExtKeyUsageClientAuth, time.Minute)
	crowd := good
	for range maxChain {
		crowd.Certificate = append(crowd.Certificate[:len(crowd.Certificate):len(crowd.Certificate)], others.cert.Raw)
	}

	for name, c := range map[string]struct {
		path   string
		certs  []tls.Certificate
		status int
		says   string
	}{
		"no certificate":             {"/scep-mtls/corp", nil, 401, "no client certificate"},
		"too many certificates":      {"/scep-mtls/corp", []tls.Certificate{crowd}, 401, "too many client certificates"},
		"another profile's":          {"/scep-mtls/corp", []tls.Certificate{foreign}, 401, "does not trust"},
		"ours at another profile":    {"/scep-mtls/modern", []tls.Certificate{good}, 401, "does not trust"},
		"expired":                    {"/scep-mtls/corp", []tls.Certificate{ours.issue(x509.ExtKeyUsageClientAuth, -time.Minute)}, 401, "does not trust"},
		"for servers":                {"/scep-mtls/corp", []tls.Certificate{ours.issue(x509.ExtKeyUsageServerAuth, time.Minute)}, 401, "does not trust"},
		"a profile that takes none":  {"/scep-mtls/legacy", []tls.Certificate{good}, 404, "use /scep/<profile>"},
		"no such profile":            {"/scep-mtls/unknown", []tls.Certificate{good}, 404, "/scep-mtls/<profile>"},
		"the plain path here":        {"/scep/corp", []tls.Certificate{good}, 404, "/scep-mtls/<profile>"},
		"another server's path here": {"/cgi-bin/pkiclient.exe", []tls.Certificate{good}, 404, "/scep-mtls/<profile>"},
	} {
		t.Run(name, func(t *testing.T) {
			checkHTTPRefusal(t, post(c.path, message("corp"), c.certs...), c.status, c.says)
		})
	}

	for _, path := range []string{"/scep-mtls/corp", "/scep-mtls/corp/pkiclient.exe", "/scep-mtls", "/scep-mtls/cgi-bin/pkiclient.exe"} {
		if r := s.openReply(post(path, message("corp"), good)); r.status != "0" {
			t.Errorf("%s: pkiStatus %s, %s", path, r.status, r.text)
		}
	}
	if r := s.openReply(post("/scep-mtls/modern", message("modern"), foreign)); r.status != "0" {
		t.Errorf("required: pkiStatus %s, %s", r.status, r.text)
	}
	// A certificate of the box's own opens the route where its authority is the bundle, until it is revoked.
	own := d.issued(s.openReply(s.post("iot", message("iot"))))
	mine := tls.Certificate{Certificate: [][]byte{own.Raw}, PrivateKey: d.key}
	if r := s.openReply(post("/scep-mtls/iot", message("iot"), mine)); r.status != "0" {
		t.Errorf("by a certificate of our own: pkiStatus %s, %s", r.status, r.text)
	}
	if err := s.engine.Revoke(t.Context(), serialOf(own), "superseded", "test"); err != nil {
		t.Fatal(err)
	}
	checkHTTPRefusal(t, post("/scep-mtls/iot", message("iot"), mine), 401, "is revoked")
	// The challenge is asked for all the same.
	wrong := newDevice(t, d.key, "dev")
	wrong.csr = makeCSR(t, d.key, "dev", "wrong-challenge")
	if r := s.openReply(post("/scep-mtls/corp", wrong.message(s.good()), good)); r.status != "2" || r.fail != badRequest {
		t.Errorf("wrong challenge: pkiStatus %s, failInfo %s", r.status, r.fail)
	}
	// The plain route of optional issues, that of required does not.
	if r := s.openReply(s.post("corp", message("corp"))); r.status != "0" {
		t.Errorf("/scep with optional: pkiStatus %s, %s", r.status, r.text)
	}
	if r := s.openReply(s.post("modern", message("modern"))); r.status != "2" || r.fail != badRequest || !strings.Contains(r.text, "use /scep-mtls/<profile>") {
		t.Errorf("/scep with required: pkiStatus %s, failInfo %s: %s", r.status, r.fail, r.text)
	}
	// The route is on no other listener.
	for _, l := range []listener{plain, secure} {
		if p, _ := s.server.locate("/scep-mtls/corp", l); p != nil {
			t.Errorf("/scep-mtls/corp is served on listener %d", l)
		}
	}
	s.checkLog()
}

// A bundle that is not there lets nobody in, not even whom the machine trusts.
func TestNoBundleIsNotTheMachines(t *testing.T) {
	public := newAuthority(t, "public")
	file := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	client := parse(t, public.issue(x509.ExtKeyUsageClientAuth, time.Minute).Certificate[0])
	if _, err := client.Verify(x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Skipf("another test read the machine's authorities first: %v", err)
	}
	s := newService(t, func(c *Config) {
		c.Profiles[0].MTLS = MTLS{Mode: "optional", Pool: fixed(nil)}
		c.ClientCertificates = func(*http.Request) []*x509.Certificate { return []*x509.Certificate{client} }
	})
	var name string
	for _, p := range s.server.profiles {
		if p.MTLS.Mode == mtlsOptional {
			name = p.Name
		}
	}
	w := httptest.NewRecorder()
	s.server.HandlerMTLS().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "https://box/scep-mtls/"+name+"?operation=GetCACaps", nil))
	if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), "does not trust") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
