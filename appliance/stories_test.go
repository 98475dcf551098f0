package appliance_test

// As in service_test.go: real clients against the running service on swtpm.

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

// device is one strongSwan client in a directory of its own.
type device struct {
	t   *testing.T
	pki string
	url string
	dir string
}

// newDevice fetches the CA and RA certificates at url.
func newDevice(t *testing.T, url string) *device {
	t.Helper()
	d := &device{t: t, pki: needtest.Program(t, "pki", "strongswan-pki"), url: url, dir: t.TempDir()}
	mustRun(t, d.dir, d.pki, "--scepca", "--url", url, "--caout", "ca.crt", "--raout", "ra.crt", "--outform", "pem", "--force")
	return d
}

// newKey makes a key and returns its file's name.
func (d *device) newKey(name string) string {
	d.t.Helper()
	key, err := exec.Command(d.pki, "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem").Output()
	if err != nil {
		d.t.Fatalf("pki --gen: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, name), key, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return name
}

// request runs pki --scep for cn with a key; the certificate goes to out. The error holds what the
// client said.
func (d *device) request(cn, key, out string, more ...string) error {
	args := append([]string{"--scep", "--url", d.url, "--in", key, "--dn", "C=CH, CN=" + cn, "--san", cn,
		"--cacert-enc", "ra.crt", "--cacert-sig", "ra.crt", "--cacert", "ca.crt", "--outform", "pem"}, more...)
	cmd := exec.Command(d.pki, args...)
	cmd.Dir = d.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	crt, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, stderr.String())
	}
	return os.WriteFile(filepath.Join(d.dir, out), crt, 0o600)
}

// serial verifies a certificate with openssl and returns its serial in lower-case hex.
func (d *device) serial(crt string) string {
	d.t.Helper()
	openssl := needtest.Program(d.t, "openssl", "openssl")
	if out := mustRun(d.t, d.dir, openssl, "verify", "-x509_strict", "-CAfile", "ca.crt", crt); !strings.Contains(out, ": OK") {
		d.t.Errorf("openssl verify: %s", out)
	}
	out := strings.TrimSpace(mustRun(d.t, d.dir, openssl, "x509", "-in", crt, "-noout", "-serial"))
	return strings.ToLower(strings.TrimPrefix(out, "serial="))
}

// has says whether the audit log has a record of these.
func (s *service) has(t *testing.T, token, action, outcome, identity string) bool {
	t.Helper()
	var page auditPage
	s.api(t, "GET", "/api/v1/audit?limit=500", token, nil, &page)
	for _, r := range page.Records {
		if r.Action == action && r.Outcome == outcome && r.Identity == identity {
			return true
		}
	}
	return false
}

func (s *service) mint(t *testing.T, token, profile, cn string) string {
	t.Helper()
	var out struct{ Challenge string }
	if code := s.api(t, "POST", "/api/v1/challenges", token, map[string]string{"profile": profile, "cn": cn}, &out); code != 200 || out.Challenge == "" {
		t.Fatalf("minting a challenge: HTTP %d", code)
	}
	return out.Challenge
}

// waitPending waits for the held request of cn and returns its id.
func (s *service) waitPending(t *testing.T, token, cn string) string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var out struct {
			Pending []struct{ ID, Identity, Profile string }
		}
		s.api(t, "GET", "/api/v1/pending", token, nil, &out)
		for _, p := range out.Pending {
			if p.Identity == cn {
				return p.ID
			}
		}
	}
	t.Fatalf("no request of %s waits for approval", cn)
	return ""
}

func TestRenewalAndRevocation(t *testing.T) {
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	const cn = "plc-7.example.com"
	d := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	if err := d.request(cn, d.newKey("first.key"), "first.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	first := d.serial("first.crt")

	// RenewalReq with a new key, the old certificate as the only proof.
	if err := d.request(cn, d.newKey("second.key"), "second.crt", "--cert", "first.crt", "--key", "first.key"); err != nil {
		t.Fatalf("renewal: %v", err)
	}
	second := d.serial("second.crt")
	if first == second || !s.has(t, token, "scep_renewalreq", "success", cn) {
		t.Errorf("renewed %s to %s; in the log: %v", first, second, s.has(t, token, "scep_renewalreq", "success", cn))
	}
	if err := d.request("other.example.com", "second.key", "other.crt", "--cert", "second.crt", "--key", "second.key"); err == nil {
		t.Error("a renewal got another name")
	}

	var shown struct{ Serial, State, PEM string }
	if code := s.api(t, "GET", "/api/v1/certificates/"+second, token, nil, &shown); code != 200 || shown.State != "issued" || !strings.Contains(shown.PEM, "CERTIFICATE") {
		t.Errorf("HTTP %d, %+v", code, shown)
	}
	if code := s.api(t, "POST", "/api/v1/certificates/"+second+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	if s.api(t, "GET", "/api/v1/certificates/"+second, token, nil, &shown); shown.State != "revoked" {
		t.Errorf("after revocation: %+v", shown)
	}
	if code := s.api(t, "POST", "/api/v1/certificates/"+second+"/revoke", token, map[string]string{"reason": "tired"}, nil); code != 422 && code != 409 {
		t.Errorf("a reason that is none: HTTP %d", code)
	}
	if err := d.request(cn, d.newKey("third.key"), "third.crt", "--cert", "second.crt", "--key", "second.key"); err == nil {
		t.Error("a revoked certificate was renewed")
	}
}

func TestApproval(t *testing.T) {
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	for _, approved := range []bool{true, false} {
		t.Run(map[bool]string{true: "approved", false: "denied"}[approved], func(t *testing.T) {
			cn := fmt.Sprintf("door-%v.approve.test", approved)
			secret := s.mint(t, token, "iot", cn)
			d := newDevice(t, s.ready.SCEPPlain+"/scep/iot")
			key := d.newKey("door.key")
			done := make(chan error, 1)
			go func() { done <- d.request(cn, key, "door.crt", "--password", secret, "-t", "1", "-m", "60") }()
			id := s.waitPending(t, token, cn)
			if code := s.api(t, "POST", "/api/v1/pending/"+id+"/approve", "", nil, nil); code != 401 {
				t.Errorf("approving as nobody: HTTP %d", code)
			}
			verb, body := "/approve", map[string]string(nil)
			if !approved {
				verb, body = "/deny", map[string]string{"reason": "not on the list"}
			}
			var in any
			if body != nil {
				in = body
			}
			if code := s.api(t, "POST", "/api/v1/pending/"+id+verb, token, in, nil); code != 200 {
				t.Fatalf("deciding: HTTP %d", code)
			}
			err := <-done
			if (err == nil) != approved {
				t.Fatalf("approved %v, client: %v", approved, err)
			}
			if approved {
				d.serial("door.crt")
				if !s.has(t, token, "request_approved", "success", cn) || !s.has(t, token, "scep_pkcsreq", "success", cn) {
					t.Error("approval or certificate is not in the log")
				}
			} else if !s.has(t, token, "request_denied", "refused", cn) && !s.has(t, token, "request_denied", "success", cn) {
				t.Error("denial is not in the log")
			}
			if code := s.api(t, "POST", "/api/v1/pending/"+id+verb, token, in, nil); code != 404 && code != 409 {
				t.Errorf("deciding twice: HTTP %d", code)
			}
		})
	}
}

func TestOneTimeChallenge(t *testing.T) {
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	const cn = "camera-1.example.com"
	secret := s.mint(t, token, "iot", cn)
	d := newDevice(t, s.ready.SCEPPlain+"/scep/iot")
	if err := d.request("camera-2.example.com", d.newKey("other.key"), "other.crt", "--password", secret); err == nil {
		t.Error("a challenge of another device was taken")
	}
	if err := d.request(cn, d.newKey("a.key"), "a.crt", "--password", secret); err != nil {
		t.Fatal(err)
	}
	d.serial("a.crt")
	if err := d.request(cn, d.newKey("b.key"), "b.crt", "--password", secret); err == nil {
		t.Error("a challenge was taken twice")
	}
	if !s.has(t, token, "challenge_minted", "success", cn) {
		t.Error("minting is not in the log")
	}
	// The page scripts know from NDES mints from the same store.
	req, err := http.NewRequest("GET", s.ready.Console+"/certsrv/mscep_admin/?profile=iot&cn=camera-3.example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("ada", token)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	found := regexp.MustCompile(`The enrollment challenge password is: <B> (\S+)`).FindSubmatch(page)
	if err != nil || found == nil {
		t.Fatalf("HTTP %d, %v: %s", resp.StatusCode, err, page)
	}
	if err := d.request("camera-3.example.com", d.newKey("c.key"), "c.crt", "--password", string(found[1])); err != nil {
		t.Errorf("the challenge of the page: %v", err)
	}

	for _, wrong := range []struct {
		profile string
		code    int
	}{{"corp", 409}, {"nobody", 404}} {
		if code := s.api(t, "POST", "/api/v1/challenges", token, map[string]string{"profile": wrong.profile, "cn": cn}, nil); code != wrong.code {
			t.Errorf("minting for %s: HTTP %d, want %d", wrong.profile, code, wrong.code)
		}
	}
	if code := s.api(t, "POST", "/api/v1/challenges", token, map[string]string{"profile": "iot", "cn": cn, "ttl": "25h"}, nil); code != 422 {
		t.Errorf("a challenge for longer than the profile's: HTTP %d", code)
	}
}

func TestLegacyClient(t *testing.T) {
	scepclient := needtest.Program(t, "scepclient", "scep")
	s := start(t, tpmtest.Start(t), t.TempDir())
	enroll := func(profile, challenge string) (string, string, error) {
		dir := t.TempDir()
		out, err := run(t, dir, scepclient, "-server-url", s.ready.SCEPPlain+"/scep/"+profile, "-challenge", challenge,
			"-private-key", "k.key", "-certificate", "out.crt", "-cn", "printer.example.com", "-keySize", "2048")
		return dir, out, err
	}
	dir, out, err := enroll("legacy", "legacy-demo-challenge")
	if err != nil {
		t.Fatalf("scepclient: %v\n%s", err, out)
	}
	if out := mustRun(t, dir, needtest.Program(t, "openssl", "openssl"), "verify", "-CAfile", s.ready.CABundle, "out.crt"); !strings.Contains(out, ": OK") {
		t.Errorf("openssl verify: %s", out)
	}
	if dir, _, _ := enroll("corp", "corp-demo-challenge"); fileExists(filepath.Join(dir, "out.crt")) {
		t.Error("a profile without legacy switches answered SHA-1 and single DES")
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// sign makes a signed challenge as the demo's connector does.
func sign(t *testing.T, key *rsa.PrivateKey, cn, nonce string) string {
	t.Helper()
	now := time.Now().Unix()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]string{"alg": "RS256"}) + "." + part(map[string]any{
		"version": "v1", "iss": "demo-connector", "sub": "device-of-" + cn, "aud": "signet-demo", "iat": now, "exp": now + 600,
		"nonce": nonce, "device_name": cn, "san_dns": []string{cn},
	})
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func demoKey(t *testing.T, name string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(demoSite+"/demo-keys/"+name+".crt", demoSite+"/demo-keys/"+name+".key")
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestSignedChallenge: a connector signs, the box verifies, counts and forgets nothing; the
// connector's certificate is replaced while the box runs, and a bad file changes nothing.
func TestSignedChallenge(t *testing.T) {
	site := t.TempDir()
	if err := os.CopyFS(site, os.DirFS(demoSite)); err != nil {
		t.Fatal(err)
	}
	reload := make(chan os.Signal)
	var ahead atomic.Int64 // of the box's clock
	s := startWith(t, site, tpmtest.Start(t), t.TempDir(), []string{"scep", "console", "plain"}, func(c *appliance.Config) {
		c.Reload, c.Now = reload, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	token := s.claim(t)
	connector := demoKey(t, "connector").PrivateKey.(*rsa.PrivateKey)
	d := newDevice(t, s.ready.SCEPPlain+"/scep/intune")
	enroll := func(name string, key *rsa.PrivateKey) error {
		return d.request(name, d.newKey(name+".key"), name+".crt", "--password", sign(t, key, name, "nonce-"+name))
	}
	secret := sign(t, connector, "laptop-1", "n-1")
	if err := d.request("laptop-1", d.newKey("1.key"), "1.crt", "--password", secret); err != nil {
		t.Fatal(err)
	}
	d.serial("1.crt")
	if err := d.request("laptop-1", d.newKey("1b.key"), "1b.crt", "--password", secret); err == nil {
		t.Error("a signed challenge was taken twice")
	}
	if err := d.request("laptop-2", d.newKey("2.key"), "2.crt", "--password", sign(t, connector, "laptop-3", "n-2")); err == nil {
		t.Error("a challenge for another device was taken")
	}
	if err := d.request("laptop-4", d.newKey("4.key"), "4.crt", "--password", "intune-demo-challenge"); err != nil {
		t.Errorf("the static challenge beside it: %v", err)
	}
	if !s.has(t, token, "scep_pkcsreq_intune", "success", "laptop-1") {
		t.Error("scep_pkcsreq_intune is not in the log")
	}
	metrics := s.get(t, "/metrics", token)
	for _, want := range []string{`outcome="success",profile="intune"} 1`, `outcome="replay",profile="intune"} 1`, `outcome="claim_mismatch",profile="intune"} 1`, `outcome="compliance_failed"`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics do not say %s", want)
		}
	}
	if s.api(t, "GET", "/metrics", "", nil, nil) != 401 {
		t.Error("metrics without a token")
	}
	var stats struct {
		Profiles []struct {
			PathID   string `json:"path_id"`
			Enabled  bool
			Counters map[string]int
		}
	}
	s.api(t, "GET", "/api/v1/admin/scep/intune/stats", token, nil, &stats)
	for _, p := range stats.Profiles {
		if p.Enabled != (p.PathID == "intune") || p.Enabled && p.Counters["replay"] != 1 {
			t.Errorf("stats: %+v", p)
		}
	}

	// A file that is no bundle: said, recorded, and the old certificate stays.
	file := filepath.Join(site, "trust", "connector.pem")
	if err := os.WriteFile(file, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	reloadBy := map[string]func() int{
		"API": func() int {
			return s.api(t, "POST", "/api/v1/admin/scep/intune/reload-trust", token, map[string]string{"path_id": "intune"}, nil)
		},
		"SIGHUP": func() int { reload <- syscall.SIGHUP; reload <- syscall.SIGHUP; return 0 },
	}
	if code := reloadBy["API"](); code != 500 {
		t.Errorf("reloading a bad file: HTTP %d", code)
	}
	reloadBy["SIGHUP"]()
	if err := enroll("laptop-5", connector); err != nil {
		t.Errorf("after a bad file: %v", err)
	}
	for _, how := range []string{"API", "SIGHUP"} {
		key, cert := newConnector(t, time.Now().Add(time.Hour))
		if err := os.WriteFile(file, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		if code := reloadBy[how](); code != 0 && code != 200 {
			t.Fatalf("reloading by %s: HTTP %d", how, code)
		}
		if err := enroll("laptop-new-"+strings.ToLower(how), key); err != nil {
			t.Errorf("the connector's successor, read by %s: %v", how, err)
		}
		if err := enroll("laptop-old-"+strings.ToLower(how), connector); err == nil {
			t.Errorf("the replaced connector is still trusted after %s", how)
		}
	}
	// A certificate that ends while it is trusted turns its profile off, and no other.
	const good = 10 * time.Minute
	_, cert := newConnector(t, time.Now().Add(good))
	if err := os.WriteFile(file, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := reloadBy["API"](); code != 200 {
		t.Fatalf("reloading a certificate that is still good: HTTP %d", code)
	}
	ahead.Store(int64(good))
	if err := d.request("laptop-6", d.newKey("6.key"), "6.crt", "--password", "intune-demo-challenge"); err == nil {
		t.Error("a profile with an expired certificate in its trust issues")
	}
	corp := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	if err := corp.request("laptop-7", corp.newKey("7.key"), "7.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Errorf("another profile: %v", err)
	}
	if status := s.get(t, "/api/v1/status", token); !strings.Contains(status, "Profile intune is off: certificate CN=connector in trust/connector.pem expired") {
		t.Errorf("status says nothing: %s", status)
	}

	for profile, want := range map[string]int{"corp": 409, "nobody": 404} {
		if code := s.api(t, "POST", "/api/v1/admin/scep/intune/reload-trust", token, map[string]string{"path_id": profile}, nil); code != want {
			t.Errorf("reloading %s: HTTP %d, want %d", profile, code, want)
		}
	}
}

func (s *service) get(t *testing.T, path, token string) string {
	t.Helper()
	req, err := http.NewRequest("GET", s.ready.Console+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func newConnector(t *testing.T, notAfter time.Time) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "connector"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pemOf("CERTIFICATE", der)
}

// TestClientCertificate: strongSwan speaks no TLS with a client certificate, so a proxy of the test
// does it for it.
func TestClientCertificate(t *testing.T) {
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	target, err := url.Parse(s.ready.EST)
	if err != nil || s.ready.EST == "" {
		t.Fatalf("listener est is at %q: %v", s.ready.EST, err)
	}
	through := func(client *tls.Certificate) string {
		config := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
		if client != nil {
			config.Certificates = []tls.Certificate{*client}
		}
		proxy := &httputil.ReverseProxy{
			Transport: &http.Transport{TLSClientConfig: config},
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
			ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		}
		server := httptest.NewServer(proxy)
		t.Cleanup(server.Close)
		return server.URL + "/scep-mtls/iot"
	}
	bootstrap := demoKey(t, "bootstrap-ca")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "made in the factory"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, bootstrap.Leaf, key.Public(), bootstrap.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	factory := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	stranger := demoKey(t, "connector")

	const cn = "meter-1.example.com"
	d := newDevice(t, through(factory))
	if err := d.request(cn, d.newKey("wrong.key"), "wrong.crt", "--password", "guess"); err == nil {
		t.Error("the client certificate took the challenge's place")
	}
	if err := d.request(cn, d.newKey("k.key"), "k.crt", "--password", s.mint(t, token, "iot", cn)); err != nil {
		t.Fatal(err)
	}
	d.serial("k.crt")
	for name, client := range map[string]*tls.Certificate{"none": nil, "one of another CA": &stranger} {
		resp, err := http.Get(through(client) + "?operation=PKIOperation&message=MA")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("client certificate %s: HTTP %d", name, resp.StatusCode)
		}
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
