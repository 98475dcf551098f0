package appliance_test

// What others find out about certificates of the running service, with the programs they use for it, and
// a web server that staples. As in service_test.go: on swtpm.

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
	"signet.internal/webui"
)

// TestRevocation: certificates issued over SCEP and EST say where to ask about them, and what is
// answered there is understood by openssl, GnuTLS and strongSwan, before and after a revocation.
func TestRevocation(t *testing.T) {
	staple := demo(t, "profiles/corp.yaml", "default: true", "default: false", "name: corp", "name: staple", "must_staple: false", "must_staple: true")
	s := startSite(t, variant(t, map[string]string{"profiles/staple.yaml": staple}), tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	x := newShell(t, s, tlsRoot(t, s))
	x.run("C $EST/cacerts | read_certs > devices.pem; C $EST/modern/cacerts | read_certs > modern.pem")

	d := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	d.dir = x.dir
	mustRun(t, d.dir, d.pki, "--scepca", "--url", d.url, "--caout", "ca.crt", "--raout", "ra.crt", "--outform", "pem", "--force")
	if err := d.request("scep.example.com", d.newKey("scep.key"), "scep.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	x.run("request est est.example.com ec -pkeyopt ec_paramgen_curve:P-256; openssl base64 -in est.der | post -u device:modern-demo-password $EST/modern/simpleenroll | read_certs > est.crt")

	for name, authority := range map[string]string{"scep": "devices", "est": "modern"} {
		t.Run(name, func(t *testing.T) {
			x := &shell{t: t, dir: x.dir, prefix: x.prefix + "X=" + name + " CA=" + authority + "\n"}
			s.lifeOfCertificate(t, x, token, name+".crt", authority)
		})
	}
	t.Run("the box's own certificates are good", func(t *testing.T) {
		x.in(t).says("openssl ocsp -issuer ca.crt -cert ra.crt -url $OCSP/devices -CAfile ca.crt -no_nonce 2>&1", "ra.crt: good")
	})
	t.Run("the newest CRL is told", func(t *testing.T) {
		x := x.in(t)
		x.says("C $PKI/devices.crl | openssl crl -inform DER -noout -crlnumber", fmt.Sprintf("crlNumber=0x%02X\n", s.newestCRL(t, token, "devices")))
	})
	t.Run("nothing is chunked", func(t *testing.T) { s.rawAnswers(t, x.in(t)) })
	t.Run("zlint", func(t *testing.T) { s.zlint(t, x.in(t), token) })
	t.Run("must-staple", func(t *testing.T) { s.mustStaple(t, x.in(t)) })
}

// newestCRL is the number of the CRL that the admin API says an authority signed last; what else it says has to be
// what is published.
func (s *service) newestCRL(t *testing.T, token, authority string) uint64 {
	t.Helper()
	var list webui.AuthorityList
	if code := s.api(t, "GET", "/api/v1/authorities", token, nil, &list); code != 200 {
		t.Fatalf("authorities: HTTP %d", code)
	}
	for _, a := range list.Authorities {
		if a.Name != authority {
			continue
		}
		g := a.Generations[0]
		if g.CRL == nil || !g.CRL.NextUpdate.After(g.CRL.ThisUpdate) || g.Published == nil || !strings.HasSuffix(g.Published.CRL, "/pki/"+authority+".crl") || !strings.HasSuffix(g.Published.OCSP, "/ocsp/"+authority) {
			t.Fatalf("published: %+v, %+v", g.Published, g.CRL)
		}
		return g.CRL.Number
	}
	t.Fatalf("no authority %s", authority)
	return 0
}

// lifeOfCertificate asks about $X.crt of authority $CA in every way, revokes it, and asks again.
func (s *service) lifeOfCertificate(t *testing.T, x *shell, token, crt, authority string) {
	ocsptool, pki := needtest.Program(t, "ocsptool", "gnutls-bin"), needtest.Program(t, "pki", "strongswan-pki")
	cert := x.certificate(crt)
	published := strings.Replace(s.ready.PKI, "127.0.0.1", "localhost", 1) // public_host of the demo
	if got, want := fmt.Sprint(cert.CRLDistributionPoints, cert.OCSPServer, cert.IssuingCertificateURL),
		fmt.Sprintf("[%[1]s/pki/%[2]s.crl] [%[1]s/ocsp/%[2]s] [%[1]s/pki/%[2]s.cer]", published, authority); got != want {
		t.Errorf("it says %s, want %s", got, want)
	}
	if n := cert.SerialNumber; n.Sign() != 1 || len(n.Bytes()) > 20 || n.BitLen() < 64 {
		t.Errorf("serial %x", n)
	}

	// By what the certificate itself says.
	x.run("curl -sS --fail -o issuer.cer " + cert.IssuingCertificateURL[0] + "; openssl x509 -inform DER -in issuer.cer -out issuer.pem; cmp <(openssl x509 -in issuer.pem) <(openssl x509 -in $CA.pem)")
	x.says("openssl verify -x509_strict -crl_check -crl_download -CAfile $CA.pem $X.crt", ": OK")
	x.says("C $PKI/$CA.crl -o list; openssl crl -inform DER -in list -noout -text -CAfile $CA.pem 2>&1", "verify OK", "X509v3 CRL Number", "No Revoked Certificates")
	for _, digest := range []string{"-sha1", "-sha256"} {
		x.says("openssl ocsp "+digest+" -issuer $CA.pem -cert $X.crt -url $OCSP/$CA -CAfile $CA.pem 2>&1", "Response verify OK", ": good")
	}
	x.says(ocsptool+" --ask --nonce --load-cert $X.crt --load-issuer $CA.pem --load-trust $CA.pem 2>&1", "Certificate Status: good", "Success")
	x.says(pki+" --verify --in $X.crt --cacert $CA.pem --online 2>&1", "certificate trusted", "lifetimes valid")
	const get = `openssl ocsp -issuer $CA.pem -cert $X.crt -no_nonce -reqout ask >/dev/null 2>&1
		C "$OCSP/$CA/$(openssl base64 -A -in ask | sed 's/+/%2B/g; s/\//%2F/g; s/=/%3D/g')" -o answer; cp answer escaped
		C --path-as-is "$OCSP/$CA/$(openssl base64 -A -in ask)" -o answer; cmp answer escaped
		openssl ocsp -issuer $CA.pem -cert $X.crt -no_nonce -respin answer -CAfile $CA.pem 2>&1`
	x.says(get, "Response verify OK", ": good")

	revoke := func(reason string) {
		t.Helper()
		if code := s.api(t, "POST", "/api/v1/certificates/"+x.serial(crt)+"/revoke", token, map[string]string{"reason": reason}, nil); code != 200 {
			t.Fatalf("revoking for %s: HTTP %d", reason, code)
		}
	}
	revoke("certificateHold")
	x.says("openssl ocsp -issuer $CA.pem -cert $X.crt -url $OCSP/$CA -CAfile $CA.pem 2>&1", ": revoked", "Reason: certificateHold")
	revoke("removeFromCRL")
	x.says(get, "Response verify OK", ": good")
	revoke("keyCompromise")
	for _, digest := range []string{"-sha1", "-sha256"} {
		x.says("openssl ocsp "+digest+" -issuer $CA.pem -cert $X.crt -url $OCSP/$CA -CAfile $CA.pem 2>&1", "Response verify OK", ": revoked", "Reason: keyCompromise")
	}
	x.says(ocsptool+" --ask --nonce --load-cert $X.crt --load-issuer $CA.pem --load-trust $CA.pem 2>&1 || true", "Certificate Status: revoked")
	x.says(get, "Response verify OK", ": revoked")
	// Revocations within a few seconds share one list.
	serial := strings.ToUpper(x.serial(crt))
	list := ""
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
		if list = x.run("C $PKI/$CA.crl -o list; openssl crl -inform DER -in list -noout -text -CAfile $CA.pem 2>&1"); strings.Contains(list, serial) {
			break
		}
	}
	if !strings.Contains(list, "verify OK") || !strings.Contains(list, serial) || !strings.Contains(list, "Key Compromise") {
		t.Fatalf("%s is not on the list:\n%s", serial, list)
	}
	if out, err := x.try("openssl verify -crl_check -crl_download -CAfile $CA.pem $X.crt"); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl verify: %v %s", err, out)
	}
	if out, err := x.try(pki + " --verify --in $X.crt --cacert $CA.pem --online 2>&1"); err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("pki --verify: %v %s", err, out)
	}
}

// rawAnswers reads the bytes of every kind of answer: a length, nothing chunked, and on EST a header block
// that a client with a small buffer takes.
func (s *service) rawAnswers(t *testing.T, x *shell) {
	x.run("openssl ocsp -issuer devices.pem -cert scep.crt -no_nonce -reqout ask >/dev/null 2>&1; request raw raw.example.com ec -pkeyopt ec_paramgen_curve:P-256")
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(x.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ask, csr := read("ask"), []byte(base64.StdEncoding.EncodeToString(read("raw.der")))
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("device:corp-demo-password")) + "\r\n"
	const pkcs10 = "Content-Type: application/pkcs10\r\n"
	for _, r := range []struct {
		listener, method, path, headers string
		body                            []byte
		status                          int
	}{
		{s.ready.PKI, "GET", "/pki/devices.crl", "", nil, 200},
		{s.ready.PKI, "GET", "/pki/devices.cer", "", nil, 200},
		{s.ready.PKI, "GET", "/pki/nothing.crl", "", nil, 404},
		{s.ready.PKI, "POST", "/ocsp/devices", "Content-Type: application/ocsp-request\r\n", ask, 200},
		{s.ready.PKI, "GET", "/ocsp/devices/" + base64.StdEncoding.EncodeToString(ask), "", nil, 200},
		{s.ready.PKI, "GET", "/ocsp/nobody/" + base64.StdEncoding.EncodeToString(ask), "", nil, 404},
		{s.ready.EST, "GET", "/.well-known/est/cacerts", "", nil, 200},
		{s.ready.EST, "GET", "/.well-known/est/csrattrs", "", nil, -1},
		{s.ready.EST, "POST", "/.well-known/est/simpleenroll", pkcs10 + basic, csr, 200},
		{s.ready.EST, "POST", "/.well-known/est/simpleenroll", pkcs10, csr, 401},
		{s.ready.EST, "POST", "/.well-known/est/simpleenroll", pkcs10 + basic, []byte("MAA="), 400},
		{s.ready.Legacy, "GET", "/.well-known/est/modern/cacerts", "", nil, 200},
		{s.ready.Legacy, "POST", "/.well-known/est/simplereenroll", pkcs10 + basic, csr, 401},
		{s.ready.Legacy, "GET", "/.well-known/est/nobody/cacerts", "", nil, 404},
	} {
		what := r.method + " " + r.path
		head, body := s.raw(t, r.listener, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", r.method, r.path, r.headers, len(r.body), r.body))
		status, _ := strconv.Atoi(strings.Fields(head)[1])
		if status != r.status && (r.status != -1 || status != 200 && status != 204) {
			t.Errorf("%s: HTTP %d, want %d\n%s", what, status, r.status, body)
		}
		if strings.Contains(strings.ToLower(head), "\r\ntransfer-encoding:") {
			t.Errorf("%s is chunked:\n%s", what, head)
		}
		if length := "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"; status != 204 && !strings.Contains(head+"\r\n", length) {
			t.Errorf("%s does not say that it has %d bytes:\n%s", what, len(body), head)
		}
		if strings.Contains(r.path, "/est/") && len(head) > 1000 {
			t.Errorf("%s has %d bytes of headers", what, len(head))
		}
	}
}

// raw sends bytes and returns those that come back, split where the headers end.
func (s *service) raw(t *testing.T, listener, request string) (head string, body []byte) {
	t.Helper()
	scheme, address, _ := strings.Cut(listener, "://")
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if scheme == "https" {
		conn = tls.Client(conn, &tls.Config{RootCAs: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "localhost"})
	}
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	before, body, found := bytes.Cut(answer, []byte("\r\n\r\n"))
	if !found {
		t.Fatalf("no HTTP answer: %q", answer)
	}
	return string(before), body
}

// zlint holds one certificate of each kind the box makes against the rules of the RFCs.
func (s *service) zlint(t *testing.T, x *shell, token string) {
	install := exec.Command("go", "install", "github.com/zmap/zlint/v3/cmd/zlint@v3.6.8")
	install.Dir, install.Env = x.dir, append(os.Environ(), "GOBIN="+x.dir, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		needtest.Missing(t, fmt.Sprintf("zlint cannot be built: %v\n%s", err, out))
	}
	// Roots and the links between two of them, registration and responder certificates, those of TLS; scep.crt and est.crt are devices'.
	s.order(t, "POST", "/api/v1/authorities/modern/next", token, nil)
	x.run("C $EST/modern/cacerts | read_certs > all.pem")
	for i, cert := range certificatesIn(t, filepath.Join(x.dir, "all.pem")) {
		writeFile(t, filepath.Join(x.dir, fmt.Sprintf("authority%d.lint", i)), pemOf("CERTIFICATE", cert.Raw))
	}
	s.order(t, "DELETE", "/api/v1/authorities/modern/next", token, nil)
	for i, suite := range []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.ready.Legacy, "https://"), &tls.Config{
			RootCAs: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite},
		})
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(x.dir, fmt.Sprintf("tls%d.lint", i)), pemOf("CERTIFICATE", conn.ConnectionState().VerifiedChains[0][0].Raw))
		writeFile(t, filepath.Join(x.dir, "tls-root.lint"), pemOf("CERTIFICATE", conn.ConnectionState().VerifiedChains[0][1].Raw))
		conn.Close()
	}
	x.run("openssl ocsp -issuer modern.pem -cert est.crt -url $OCSP/modern -CAfile modern.pem -resp_text 2>&1 | sed -n '/BEGIN CERT/,/END CERT/p' > responder.lint; " +
		"for name in devices.pem ra.crt scep.crt est.crt; do cp $name $name.lint; done")
	for _, name := range strings.Fields(x.run("ls *.lint")) {
		out, err := exec.Command(filepath.Join(x.dir, "zlint"), "-includeSources", "RFC5280,RFC3279,RFC5480,RFC5891,RFC8813", filepath.Join(x.dir, name)).Output()
		if err != nil {
			t.Fatalf("zlint %s: %v", name, err)
		}
		var results map[string]struct{ Result string }
		if err := json.Unmarshal(out, &results); err != nil || len(results) < 100 {
			t.Fatalf("zlint %s: %d results, %v", name, len(results), err)
		}
		for rule, r := range results {
			if r.Result != "pass" && r.Result != "NA" && r.Result != "NE" && r.Result != "info" {
				t.Errorf("%s: zlint's %s says %s", name, rule, r.Result)
			}
		}
	}
}

// mustStaple: a certificate that has to be stapled, a web server that does and does not, and a client
// that minds.
func (s *service) mustStaple(t *testing.T, x *shell) {
	nginx, client := needtest.Program(t, "/usr/sbin/nginx", "nginx-light"), needtest.Program(t, "gnutls-cli", "gnutls-bin")
	x.run("request web localhost; openssl base64 -in web.der | post -u device:corp-demo-password $EST/staple/simpleenroll | read_certs > web.crt")
	d := newDevice(t, s.ready.SCEPPlain+"/scep/staple")
	if err := d.request("localhost", d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	for _, cert := range []string{"web.crt", filepath.Join(d.dir, "k.crt")} { // both protocols
		file := cert
		if !filepath.IsAbs(file) {
			file = filepath.Join(x.dir, cert)
		}
		found := false
		for _, e := range certificatesIn(t, file)[0].Extensions {
			found = found || e.Id.String() == "1.3.6.1.5.5.7.1.24" && !e.Critical && bytes.Equal(e.Value, []byte{0x30, 3, 2, 1, 5}) // RFC 7633 §4
		}
		if !found {
			t.Errorf("%s has no TLS feature status_request", cert)
		}
	}
	x.says("openssl ocsp -issuer devices.pem -cert web.crt -no_nonce -url $OCSP/devices -CAfile devices.pem -respout staple.der 2>&1", "web.crt: good")

	ports := freePorts(2)
	writeFile(t, filepath.Join(x.dir, "nginx.conf"), []byte(fmt.Sprintf(`daemon off;
pid nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	ssl_certificate web.crt;
	ssl_certificate_key web.key;
	server { listen 127.0.0.1:%d ssl; ssl_stapling on; ssl_stapling_file staple.der; return 200; }
	server { listen 127.0.0.1:%d ssl; return 200; }
}
`, ports[0], ports[1])))
	cmd := exec.Command(nginx, "-e", "stderr", "-p", x.dir, "-c", "nginx.conf")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() })
	for _, port := range ports {
		waitListening(t, port)
	}
	connect := func(port int) (string, error) {
		return x.try(fmt.Sprintf("%s --x509cafile devices.pem -p %d localhost </dev/null 2>&1", client, port))
	}
	if out, err := connect(ports[0]); err != nil || !strings.Contains(out, "The certificate is trusted") {
		t.Errorf("with a staple: %v\n%s", err, out)
	}
	if out, err := connect(ports[1]); err == nil || !strings.Contains(out, "OCSP status") {
		t.Errorf("without a staple: %v\n%s", err, out)
	}
}

// freePorts are ports of the loopback that nobody listens on. They are below those that the kernel gives
// to whoever asks for any, who might have them before they are used.
func freePorts(n int) (ports []int) {
	for len(ports) < n {
		port := 20000 + rand.IntN(12000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			defer l.Close()
			ports = append(ports, port)
		}
	}
	return ports
}

func waitListening(t *testing.T, port int) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			conn.Close()
			return
		}
	}
	t.Fatalf("nobody listens on port %d", port)
}
