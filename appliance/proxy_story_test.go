package appliance_test

// The recipes of configs/guides, run as they stand there by the real servers, in front of the service.

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

// recipe is the configuration in a guide with the addresses, names and paths of the test. What it replaces
// has to be there, so that the guide and the test are about the same thing.
func recipe(t *testing.T, guide, language string, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../configs/guides", guide))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatalf("%s has no %s configuration", guide, language)
	}
	out := string(block[1])
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(out, pairs[i]) {
			t.Fatalf("the configuration in %s does not say %q", guide, pairs[i])
		}
		out = strings.ReplaceAll(out, pairs[i], pairs[i+1])
	}
	return out
}

// newAuthority is a CA of the test's own.
func newAuthority(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// writePair writes NAME.pem and NAME.key, and NAME-both.pem with both.
func writePair(t *testing.T, dir, name string, pair *tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	crt, keyPEM := pemOf("CERTIFICATE", pair.Certificate[0]), pemOf("PRIVATE KEY", key)
	writeFile(t, filepath.Join(dir, name+".pem"), crt)
	writeFile(t, filepath.Join(dir, name+".key"), keyPEM)
	writeFile(t, filepath.Join(dir, name+"-both.pem"), append(crt, keyPEM...))
}

// startProgram runs a server in the foreground until the test ends.
func startProgram(t *testing.T, port int, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // an interrupt is ignored where nobody sits
		cmd.Wait()
	})
	waitListening(t, port)
}

// bridge is a proxy in front of the service.
type bridge struct {
	*service
	token string
	dir   string // with what the proxy and its clients have
	url   string // where it answers
}

// sourceOf is the source of the newest record about an identity.
func (b *bridge) sourceOf(t *testing.T, identity string) string {
	t.Helper()
	var page auditPage
	b.api(t, "GET", "/api/v1/audit?limit=500", b.token, nil, &page)
	for _, r := range page.Records {
		if r.Identity == identity && r.Source != "" {
			return r.Source
		}
	}
	return ""
}

// TestProxies: nginx and HAProxy, set up as the guides say, bridge devices that speak TLS 1.2 alone.
func TestProxies(t *testing.T) {
	proxyCA := newAuthority(t, "Proxies")
	site := variant(t, map[string]string{
		"site.yaml": demo(t, "site.yaml", "network: {dhcp: true}",
			"network: {dhcp: true}\ntrusted_proxies: {enabled: true, networks: [127.0.0.1/32], bundle: trust/proxies.pem}"),
		"trust/proxies.pem": string(pemOf("CERTIFICATE", proxyCA.Certificate[0])),
	})
	s := startSite(t, site, tpmtest.Start(t), t.TempDir(), nil)
	b := &bridge{service: s, token: s.claim(t)}
	address := func(url string) string { return url[strings.LastIndex(url, "/")+1:] }

	dir := t.TempDir()
	server := newAuthority(t, "Devices see this one")
	writePair(t, dir, "server-ca", server)
	writePair(t, dir, "server", serverCertificate(t, server))
	writePair(t, dir, "proxy", madeBy(t, "the proxy", proxyCA))
	writePair(t, dir, "stranger", madeBy(t, "not the proxy", demoPointer(t, "bootstrap-ca")))
	writeFile(t, filepath.Join(dir, "devices-ca.pem"), append(pemOf("CERTIFICATE", demoKey(t, "bootstrap-ca").Certificate[0]), readFile(t, s.ready.CABundle)...))
	writeFile(t, filepath.Join(dir, "box-ca.pem"), readFile(t, s.ready.CABundle))
	b.dir = dir

	t.Run("nginx", func(t *testing.T) {
		nginx := needtest.Program(t, "/usr/sbin/nginx", "nginx-light")
		run := func(t *testing.T, own string) string {
			port := freePorts(1)[0]
			work := t.TempDir()
			writeFile(t, filepath.Join(work, "signet.conf"), []byte(recipe(t, "nginx.md", "nginx",
				"192.0.2.10:443;", address(s.ready.EST)+";", "192.0.2.10:8443;", address(s.ready.SCEP)+";", "listen 443 ssl", fmt.Sprintf("listen 127.0.0.1:%d ssl", port),
				"/etc/nginx/signet/proxy", dir+"/"+own, "/etc/nginx/signet/", dir+"/", "signet.example.com", "localhost")))
			user := ""
			if os.Geteuid() == 0 {
				user = "user root;"
			}
			writeFile(t, filepath.Join(work, "nginx.conf"), []byte(fmt.Sprintf(`daemon off; %s pid %s/pid; error_log stderr; events {}
http { access_log off; client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/f; uwsgi_temp_path %[2]s/u; scgi_temp_path %[2]s/s; include %[2]s/signet.conf; }
`, user, work)))
			startProgram(t, port, nginx, "-e", "stderr", "-p", work, "-c", filepath.Join(work, "nginx.conf"))
			return fmt.Sprintf("https://localhost:%d", port)
		}
		b.bridges(t, "nginx", run(t, "proxy"), run(t, "stranger"))
	})
	t.Run("HAProxy", func(t *testing.T) {
		haproxy := needtest.Program(t, "/usr/sbin/haproxy", "haproxy")
		run := func(t *testing.T, own string) string {
			port := freePorts(1)[0]
			config := filepath.Join(t.TempDir(), "haproxy.cfg")
			writeFile(t, config, []byte(recipe(t, "haproxy.md", "haproxy",
				"192.0.2.10:443 ", address(s.ready.EST)+" ", "192.0.2.10:8443 ", address(s.ready.SCEP)+" ", "bind :443 ", fmt.Sprintf("bind 127.0.0.1:%d ", port),
				"/etc/haproxy/signet/proxy.pem", dir+"/"+own+"-both.pem", "/etc/haproxy/signet/server.pem", dir+"/server-both.pem", "/etc/haproxy/signet/", dir+"/",
				"signet.example.com", "localhost")))
			startProgram(t, port, haproxy, "-db", "-f", config)
			return fmt.Sprintf("https://localhost:%d", port)
		}
		b.bridges(t, "haproxy", run(t, "proxy"), run(t, "stranger"))
	})
	t.Run("nobody's proxy", func(t *testing.T) { b.direct(t) })
}

// bridges holds a proxy at good, and the same with a certificate of its own that the box does not take for
// a proxy's at bad, against what the guide says.
func (b *bridge) bridges(t *testing.T, name, good, bad string) {
	x := newShell(t, b.service, filepath.Join(b.dir, "server-ca.pem"))
	// What no device may reach by claiming: every header is sent with each request.
	x.prefix += fmt.Sprintf(`P=%s BAD=%s DIR=%s
export OPENSSL_CONF=
D() { C --tls-max 1.2 --interface 127.0.0.77 -H 'X-Forwarded-For: 203.0.113.5, 127.0.0.1' -H 'X-Forwarded-For: 203.0.113.6' "$@"; }
send() { openssl base64 -in $1.der | D -H 'Content-Type: application/pkcs10' --data-binary @- "${@:2}"; }
escaped() { openssl x509 -in "$1" | sed 's/ /%%20/g; s/+/%%2B/g' | awk '{ printf "%%s%%%%0A", $0 }'; }
`, good, bad, b.dir)
	cn := name + ".example.com"

	// A device of TLS 1.2 is not served by the listener behind.
	if out, err := x.try(`C --cacert $BUNDLE --tls-max 1.2 $EST/corp/cacerts`); err == nil {
		t.Errorf("the box itself speaks TLS 1.2 there: %s", out)
	}
	x.says(`D $P/.well-known/est/corp/cacerts | read_certs`, "Demo Devices CA")
	x.run(`request a ` + cn)
	x.says(`send a -u device:wrong-password -o /dev/null -w '%{http_code}' $P/.well-known/est/corp/simpleenroll || true`, "401")
	x.run(`send a -u device:corp-demo-password $P/.well-known/est/corp/simpleenroll | read_certs > a.crt`)
	if got := b.sourceOf(t, cn); got != "127.0.0.77" {
		t.Errorf("the log has %s as the device's address", got)
	}

	// Its own certificate through the proxy, with the same key and with another.
	x.run(`send a --cert a.crt --key a.key $P/.well-known/est/corp/simplereenroll | read_certs > b.crt; request c ` + cn + `; send c --cert b.crt --key a.key $P/.well-known/est/corp/simplereenroll | read_certs > c.crt
		openssl verify -CAfile $BUNDLE a.crt b.crt c.crt`)
	if first, last := x.serial("a.crt"), x.serial("c.crt"); first == last || !b.has(t, b.token, "est_simplereenroll", "success", cn) {
		t.Errorf("renewed %s to %s", first, last)
	}
	// What a client says in the header is worth nothing, with a certificate of its own and without.
	forged := `-H "X-SSL-Client-Cert: $(escaped a.crt)" -H "X-SSL-Client-Cert: $(openssl x509 -in a.crt -outform DER | openssl base64 -A)" -H "X_SSL_Client_Cert: $(escaped a.crt)"`
	x.run(`request d ` + cn)
	for what, script := range map[string]string{
		"nothing shown":                       `send d $P/.well-known/est/corp/simplereenroll`,
		"a forged header":                     `send d -H "X-SSL-Client-Cert: $(escaped a.crt)" $P/.well-known/est/corp/simplereenroll`,
		"forged headers":                      `send d ` + forged + ` $P/.well-known/est/corp/simplereenroll`,
		"a forged header, and a stranger's":   `send d ` + forged + ` --cert $DIR/stranger.pem --key $DIR/stranger.key $P/.well-known/est/corp/simplereenroll`,
		"by a proxy without its certificate":  `send d --cert a.crt --key a.key $BAD/.well-known/est/corp/simplereenroll`,
		"the same at the factory's door":      `send d --cert $DIR/stranger.pem --key $DIR/stranger.key $BAD/.well-known/est/iot/simpleenroll`,
		"that proxy's own, which is a device": `send d $BAD/.well-known/est/iot/simpleenroll`,
	} {
		if out, err := x.try(script + ` -o answer -w '%{http_code}' 2>errors || true`); err != nil || out != "401" {
			t.Errorf("%s: %s %v", what, out, err)
		}
	}
	// The certificate of the factory lets a device in where the proxy is believed.
	x.run(`send d --cert $DIR/stranger.pem --key $DIR/stranger.key $P/.well-known/est/iot/simpleenroll | read_certs > d.crt; openssl verify -CAfile $BUNDLE d.crt`)
	// Revoked is revoked, whoever passes it on.
	if code := b.api(t, "POST", "/api/v1/certificates/"+x.serial("c.crt")+"/revoke", b.token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
		t.Errorf("revoking: HTTP %d", code)
	}
	x.says(`request e `+cn+`; send e --cert c.crt --key c.key -o /dev/null -w '%{http_code}' $P/.well-known/est/corp/simplereenroll || true`, "401")

	d := newESTDevice(t, good, filepath.Join(b.dir, "server-ca.pem"), "")
	d.request("swan", "swan-"+cn)
	if err := d.enroll("swan", "swan.crt", "--userpass", "device:corp-demo-password"); err != nil {
		t.Fatalf("strongSwan as it is installed: %v", err)
	}
	if err := d.enroll("swan", "again.crt", "--cert", "swan.crt", "--key", "swan.key"); err != nil {
		t.Errorf("its renewal: %v", err)
	}
	b.scepThrough(t, name, good, bad)
}

// scepThrough has strongSwan enroll by SCEP through a proxy. It speaks no TLS for SCEP, so the test does
// it for it, as a device of TLS 1.2 would.
func (b *bridge) scepThrough(t *testing.T, name, good, bad string) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(readFile(t, filepath.Join(b.dir, "server-ca.pem")))
	factory := madeBy(t, "made in the factory", demoPointer(t, "bootstrap-ca"))
	through := func(to, path string, client *tls.Certificate, header http.Header) string {
		target, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12}
		if client != nil { // whatever the proxy says whose it wants
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
		}
		front := httptest.NewServer(&httputil.ReverseProxy{
			Transport: &http.Transport{TLSClientConfig: config, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 78)}}).DialContext},
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				for name, values := range header {
					r.Out.Header[name] = values
				}
			},
			ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		})
		t.Cleanup(front.Close)
		return front.URL + path
	}
	escaped := url.PathEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: factory.Certificate[0]})))
	forged := http.Header{"X-Ssl-Client-Cert": {escaped}, "X-Forwarded-For": {"203.0.113.5"}}

	cn := "scep-" + name + ".example.com"
	d := newDevice(t, through(good, "/scep/corp", nil, forged))
	if err := d.request(cn, d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatalf("/scep: %v", err)
	}
	d.serial("k.crt")
	if got := b.sourceOf(t, cn); got != "127.0.0.78" {
		t.Errorf("the log has %s as the device's address", got)
	}
	cn = "mtls-" + name + ".example.com"
	d = newDevice(t, through(good, "/scep-mtls/iot", factory, nil))
	if err := d.request(cn, d.newKey("m.key"), "m.crt", "--password", b.mint(t, b.token, "iot", cn)); err != nil {
		t.Fatalf("/scep-mtls: %v", err)
	}
	d.serial("m.crt")
	stranger := demoKey(t, "connector")
	for what, address := range map[string]string{
		"no certificate":                     through(good, "/scep-mtls/iot", nil, nil),
		"a forged header":                    through(good, "/scep-mtls/iot", nil, forged),
		"a forged header and a stranger's":   through(good, "/scep-mtls/iot", &stranger, forged),
		"by a proxy without its certificate": through(bad, "/scep-mtls/iot", factory, nil),
		"the same with nothing shown":        through(bad, "/scep-mtls/iot", nil, forged),
	} {
		resp, err := http.Get(address + "?operation=PKIOperation&message=MA")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("/scep-mtls, %s: HTTP %d", what, resp.StatusCode)
		}
	}
}

// direct: whoever connects from elsewhere is not believed about anything, and neither is who connects from a
// proxy's address without its certificate.
func (b *bridge) direct(t *testing.T) {
	x := newShell(t, b.service, tlsRoot(t, b.service))
	x.prefix += fmt.Sprintf("DIR=%s\n", b.dir) + `escaped() { openssl x509 -in "$1" | sed 's/ /%20/g; s/+/%2B/g' | awk '{ printf "%s%%0A", $0 }'; }
send() { openssl base64 -in $1.der | post "${@:2}"; }
`
	const cn = "direct.example.com"
	x.run(`request a ` + cn + `; send a --interface 127.0.0.88 -H 'X-Forwarded-For: 203.0.113.5' -u device:corp-demo-password $EST/corp/simpleenroll | read_certs > a.crt`)
	if got := b.sourceOf(t, cn); got != "127.0.0.88" {
		t.Errorf("the log has %s as the address of who connected from 127.0.0.88", got)
	}
	x.run(`request b ` + cn)
	forged := `-H "X-SSL-Client-Cert: $(escaped a.crt)" $EST/corp/simplereenroll -o answer -w '%{http_code}' 2>errors || true`
	for what, from := range map[string]string{
		"from elsewhere, with a proxy's certificate": `--interface 127.0.0.88 --cert $DIR/proxy.pem --key $DIR/proxy.key`,
		"from elsewhere":         `--interface 127.0.0.88`,
		"from a proxy's address": `--interface 127.0.0.1`,
		"from a proxy's address, with another certificate": `--interface 127.0.0.1 --cert a.crt --key a.key`,
	} {
		if out, err := x.try(`send b ` + from + ` ` + forged); err != nil || out != "401" {
			t.Errorf("%s: %s %v", what, out, err)
		}
	}
	x.run(`send b --interface 127.0.0.1 --cert $DIR/proxy.pem --key $DIR/proxy.key -H "X-SSL-Client-Cert: $(escaped a.crt)" $EST/corp/simplereenroll | read_certs > b.crt`)
	if x.serial("a.crt") == x.serial("b.crt") {
		t.Error("the proxy's word renewed nothing")
	}
	// The proxy's own authority is asked for, for proxies that choose by it.
	asked := false
	config := b.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		for _, name := range info.AcceptableCAs {
			asked = asked || bytes.Contains(name, []byte("Proxies"))
		}
		return &tls.Certificate{}, nil
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(b.ready.EST, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if !asked {
		t.Error("listener est does not say that it takes certificates of the proxies' authority")
	}
}

// serverCertificate is one for localhost.
func serverCertificate(t *testing.T, ca *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func demoPointer(t *testing.T, name string) *tls.Certificate {
	pair := demoKey(t, name)
	return &pair
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGuides: what the guides say of site.yaml loads.
func TestGuides(t *testing.T) {
	line := strings.TrimSpace(regexp.MustCompile(`(?m)^trusted_proxies: .*$`).FindString(string(readFile(t, "../configs/guides/nginx.md"))))
	site := variant(t, map[string]string{
		"site.yaml":         demo(t, "site.yaml", "network: {dhcp: true}", "network: {dhcp: true}\n"+line),
		"trust/proxies.pem": string(pemOf("CERTIFICATE", newAuthority(t, "Proxies").Certificate[0])),
	})
	loaded, err := provision.Load(os.DirFS(site))
	if err != nil || loaded.TrustedProxies == nil || len(loaded.TrustedProxies.Certificates) != 1 {
		t.Errorf("%q: %v", line, err)
	}
}
