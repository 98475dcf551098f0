package appliance_test

// EST clients nobody here wrote against the running service, and every way to ask for a certificate held
// against what the profiles list. As in service_test.go: on swtpm, so nothing is said about boot policies.

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

// variant is a copy of the demo site with files of it changed: content by path.
func variant(t *testing.T, files map[string]string) string {
	t.Helper()
	site := t.TempDir()
	if err := os.CopyFS(site, os.DirFS(demoSite)); err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		if err := os.WriteFile(filepath.Join(site, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return site
}

// demo is a file of the demo site in which each of pairs, old and new in turn, is replaced. All of old
// have to be there.
func demo(t *testing.T, path string, pairs ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(demoSite, path))
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%s of the demo does not say %q", path, pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// costly is a hash in the demo's profiles.
var costly = regexp.MustCompile(`\$argon2id\$[^"]+`)

// cheap replaces the hash in a profile's est by one of the same password that costs less: here a hundred
// are wrong.
func cheap(profile, password string) string {
	i := strings.Index(profile, "\nest:")
	salt := []byte("of the tests")
	encode := base64.RawStdEncoding.EncodeToString
	hash := "$argon2id$v=19$m=19456,t=2,p=1$" + encode(salt) + "$" + encode(argon2.IDKey([]byte(password), salt, 2, 19456, 1, 32))
	return profile[:i] + costly.ReplaceAllLiteralString(profile[i:], hash)
}

// estSite is the demo with a profile for each thing it has none for.
func estSite(t *testing.T) string {
	corp := []string{"default: true", "default: false"}
	files := map[string]string{
		"profiles/corp.yaml":   demo(t, "profiles/corp.yaml"),
		"profiles/modern.yaml": demo(t, "profiles/modern.yaml"),
		"profiles/legacy.yaml": demo(t, "profiles/legacy.yaml"),
		// A key made by the box.
		"profiles/keys.yaml": demo(t, "profiles/corp.yaml", append(corp, "name: corp", "name: keys", "est:\n", "est:\n  server_key: ecdsa-p256\n")...),
		// Held requests for clients that know nothing but passwords.
		"profiles/manual.yaml": demo(t, "profiles/corp.yaml", append(corp, "name: corp", "name: manual",
			"approval: {default: auto}", "approval: {default: auto, manual_if: {cn_suffix: [.approve.test]}}", "est:\n", "est:\n  retry_after: 1s\n")...),
		// A one-time challenge as password, and nothing else.
		"profiles/ticket.yaml": demo(t, "profiles/iot.yaml", "name: iot", "name: ticket", "certificate: [issued, {bundle: trust/bootstrap.pem}]", "challenge: true"),
		// Nothing for devices without TLS 1.3.
		"profiles/strict.yaml": demo(t, "profiles/modern.yaml", "name: modern", "name: strict", "est:\n  legacy_tls: true", "est:\n  legacy_tls: false"),
	}
	for path, content := range files {
		if password := everyProfile[strings.TrimSuffix(filepath.Base(path), ".yaml")].password; password != "" {
			files[path] = cheap(content, password)
		}
	}
	return variant(t, files)
}

// TestEST: strongSwan, Bouncy Castle, and curl with openssl, on both listeners; then every combination
// of route, listener and credential.
func TestEST(t *testing.T) {
	s := startSite(t, estSite(t), tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	root := tlsRoot(t, s)
	t.Run("strongSwan as it is installed", func(t *testing.T) { s.strongSwanEST(t, s.ready.Legacy, root, "") })
	t.Run("strongSwan with TLS 1.3", func(t *testing.T) { s.strongSwanEST(t, s.ready.EST, root, "1.3") })
	t.Run("TLS 1.2 where there is none", func(t *testing.T) {
		d := newESTDevice(t, s.ready.EST, root, "")
		if out, err := d.pki("--estca", "--caout", "ca.crt", "--outform", "pem", "--force"); err == nil {
			t.Errorf("the listener for TLS 1.3 answered strongSwan as it is installed: %s", out)
		}
	})
	t.Run("Bouncy Castle", func(t *testing.T) { s.bouncyCastle(t, token, root) })
	t.Run("curl and openssl", func(t *testing.T) { s.curlEST(t, token, root) })
	t.Run("every combination", func(t *testing.T) { s.combinations(t, token) })
}

// tlsRoot writes the root of the box's TLS certificates to a file.
func tlsRoot(t *testing.T, s *service) string {
	t.Helper()
	for _, cert := range certificatesIn(t, s.ready.CABundle) {
		pool := x509.NewCertPool()
		pool.AddCert(cert)
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.ready.Console, "https://"), &tls.Config{RootCAs: pool})
		if err == nil {
			conn.Close()
			path := filepath.Join(t.TempDir(), "tls-root.pem")
			writeFile(t, path, pemOf("CERTIFICATE", cert.Raw))
			return path
		}
	}
	t.Fatal("no certificate of the bundle is above the box's TLS certificate")
	return ""
}

// certificatesIn are the certificates of a PEM file.
func certificatesIn(t *testing.T, path string) []*x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		t.Fatalf("there is no certificate in %s", path)
	}
	return all
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// shell is bash in a directory with functions and variables of its own. It fails the test where a command fails.
type shell struct {
	t      *testing.T
	dir    string
	prefix string
}

// newShell prepares C, which is curl that trusts the box and fails on a refusal, and the addresses.
func newShell(t *testing.T, s *service, root string) *shell {
	t.Helper()
	needtest.Program(t, "curl", "curl")
	needtest.Program(t, "openssl", "openssl")
	return &shell{t: t, dir: t.TempDir(), prefix: fmt.Sprintf(`C() { curl -sS --fail-with-body --cacert %s "$@"; }
post() { C -H 'Content-Type: application/pkcs10' --data-binary @- "$@"; }
read_certs() { openssl base64 -d | openssl pkcs7 -inform DER -print_certs; }
request() { openssl req -new -newkey "${3:-rsa:2048}" ${4:-} ${5:-} -nodes -keyout $1.key -subj "/CN=$2" -addext "subjectAltName=DNS:$2" -outform DER -out $1.der 2>/dev/null; }
EST=%s/.well-known/est LEGACY=%s/.well-known/est PKI=%s/pki OCSP=%s/ocsp BUNDLE=%s
`, root, s.ready.EST, s.ready.Legacy, s.ready.PKI, s.ready.OCSP, s.ready.CABundle)}
}

// in is the shell for a part of its test.
func (x shell) in(t *testing.T) *shell {
	x.t = t
	return &x
}

// try runs a script and returns what it printed.
func (x *shell) try(script string) (string, error) {
	x.t.Helper()
	return run(x.t, x.dir, "bash", "-euo", "pipefail", "-c", x.prefix+script)
}

func (x *shell) run(script string) string {
	x.t.Helper()
	out, err := x.try(script)
	if err != nil {
		x.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return out
}

// says fails the test where the output of a script lacks what it is expected to say.
func (x *shell) says(script string, expected ...string) {
	x.t.Helper()
	out := x.run(script)
	for _, e := range expected {
		if !strings.Contains(out, e) {
			x.t.Errorf("%s\nsays\n%s\nwithout %q", script, out, e)
		}
	}
}

// serial is the serial of a PEM certificate in lower-case hex.
func (x *shell) serial(crt string) string {
	x.t.Helper()
	return fmt.Sprintf("%x", x.certificate(crt).SerialNumber.Bytes())
}

func (x *shell) certificate(crt string) *x509.Certificate {
	x.t.Helper()
	return certificatesIn(x.t, filepath.Join(x.dir, crt))[0]
}

// estDevice is strongSwan's EST client in a directory of its own, against one listener.
type estDevice struct {
	t    *testing.T
	prog string
	dir  string
	base []string
	env  []string
}

// newESTDevice prepares strongSwan for a version of TLS, "" for what it speaks as it is installed.
func newESTDevice(t *testing.T, listener, root, version string) *estDevice {
	t.Helper()
	d := &estDevice{t: t, prog: needtest.Program(t, "pki", "strongswan-pki"), dir: t.TempDir(), base: []string{"--url", listener, "--cacert", root}}
	if version != "" {
		conf := filepath.Join(d.dir, "strongswan.conf")
		writeFile(t, conf, []byte("pki {\n tls {\n version_max = "+version+"\n }\n}\ninclude /etc/strongswan.conf\n"))
		d.env = []string{"STRONGSWAN_CONF=" + conf}
	}
	return d
}

// pki runs a command of strongSwan's pki and returns its standard output; the error holds the rest.
func (d *estDevice) pki(command string, more ...string) ([]byte, error) {
	d.t.Helper()
	cmd := exec.Command(d.prog, append(append([]string{command}, d.base...), more...)...)
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), d.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, err
}

// request writes a request for cn with a new RSA key, as KEY.der and KEY.key.
func (d *estDevice) request(key, cn string) {
	d.t.Helper()
	mustRun(d.t, d.dir, needtest.Program(d.t, "openssl", "openssl"), "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key+".p8", "-subj", "/C=CH/CN="+cn,
		"-addext", "subjectAltName=DNS:"+cn, "-outform", "DER", "-out", key+".der")
	mustRun(d.t, d.dir, needtest.Program(d.t, "openssl", "openssl"), "rsa", "-traditional", "-in", key+".p8", "-out", key+".key")
}

func (d *estDevice) enroll(key, out string, more ...string) error {
	d.t.Helper()
	crt, err := d.pki("--est", append([]string{"--in", key + ".der", "--outform", "pem"}, more...)...)
	if err == nil {
		writeFile(d.t, filepath.Join(d.dir, out), crt)
	}
	return err
}

// strongSwanEST: CA certificates, enrollment by password, renewal by certificate with the same key and
// with a new one, and refusals.
func (s *service) strongSwanEST(t *testing.T, listener, root, version string) {
	d := newESTDevice(t, listener, root, version)
	if _, err := d.pki("--estca", "--caout", "ca.crt", "--outform", "pem", "--force"); err != nil {
		t.Fatalf("pki --estca: %v", err)
	}
	cn := "swan" + strings.ReplaceAll(version, ".", "") + ".example.com"
	d.request("first", cn)
	if err := d.enroll("first", "none.crt", "--userpass", "device:wrong-password"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a wrong password: %v", err)
	}
	if err := d.enroll("first", "none.crt"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with nothing: %v", err)
	}
	if err := d.enroll("first", "first.crt", "--userpass", "device:corp-demo-password"); err != nil {
		t.Fatal(err)
	}
	if err := d.enroll("first", "second.crt", "--cert", "first.crt", "--key", "first.key"); err != nil {
		t.Fatalf("renewal: %v", err)
	}
	d.request("third", cn)
	if err := d.enroll("third", "third.crt", "--cert", "second.crt", "--key", "first.key"); err != nil {
		t.Fatalf("renewal to another key: %v", err)
	}
	serials := map[string]bool{}
	for _, crt := range []string{"first.crt", "second.crt", "third.crt"} {
		if out := mustRun(t, d.dir, "openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "ca.crt", crt); !strings.Contains(out, ": OK") {
			t.Errorf("openssl verify: %s", out)
		}
		cert := certificatesIn(t, filepath.Join(d.dir, crt))[0]
		if serials[cert.SerialNumber.String()] = true; cert.Subject.CommonName != cn {
			t.Errorf("%s is for %s", crt, cert.Subject)
		}
	}
	if len(serials) != 3 {
		t.Errorf("%d certificates of three enrollments", len(serials))
	}
	d.request("other", "other.example.com")
	if err := d.enroll("other", "none.crt", "--cert", "second.crt", "--key", "first.key"); err == nil {
		t.Error("a renewal got another name")
	}
}

// bouncyCastle runs the program of package est, compiled once, on both listeners.
func (s *service) bouncyCastle(t *testing.T, token, root string) {
	path, dir := classPath(t, "Enroll.java"), t.TempDir()
	for name, listener := range map[string]string{"TLSv1.2": s.ready.Legacy, "TLSv1.3": s.ready.EST} {
		var out string
		done := make(chan error, 1)
		go func() {
			var err error
			out, err = run(t, dir, "java", "-Djdk.tls.client.protocols="+name, "-cp", path, "Enroll", strings.TrimPrefix(listener, "https://"), root, "device", "corp-demo-password")
			done <- err
		}()
		held := s.waitPending(t, token, "dev.approve.test")
		if code := s.api(t, "POST", "/api/v1/pending/"+held+"/approve", token, nil, nil); code != 200 {
			t.Errorf("approving: HTTP %d", code)
		}
		if err := <-done; err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, said := range []string{"CN=Demo Devices CA", "enrolled CN=dev", "renewed CN=dev", "refused 401", "pending 1", "approved CN=dev.approve.test"} {
			if !strings.Contains(out, said+"\n") {
				t.Errorf("%s: it does not say %q:\n%s", name, said, out)
			}
		}
	}
}

// curlEST is every operation as a person with a shell does it.
func (s *service) curlEST(t *testing.T, token, root string) {
	x := newShell(t, s, root)
	for _, listener := range []string{"$EST", "$LEGACY"} {
		// cacerts in base64 and csrattrs, which says something or 204.
		x.says("C "+listener+"/cacerts | read_certs | tee ca.pem", "CN = Demo Devices CA")
		x.says("C "+listener+"/modern/cacerts | read_certs | tee modern-ca.pem", "CN = Demo Modern CA")
		x.says("C -o attrs -w '%{http_code} %{content_type} ' "+listener+"/csrattrs; [ ! -s attrs ] || openssl base64 -d -in attrs | openssl asn1parse -inform DER", "20")

		// Basic, in lines, in one line, and chunked.
		x.run("request a a.example.com; openssl base64 -in a.der | post -u device:corp-demo-password " + listener + "/simpleenroll | read_certs > a.crt; openssl verify -x509_strict -CAfile ca.pem a.crt")
		x.run("request b b.example.com ec -pkeyopt ec_paramgen_curve:P-256; openssl base64 -A -in b.der | post -H 'Transfer-Encoding: chunked' -u device:modern-demo-password " + listener + "/modern/simpleenroll | read_certs > b.crt; openssl verify -x509_strict -CAfile modern-ca.pem b.crt")

		// The issued certificate renews itself, also by simpleenroll.
		for i, operation := range []string{"simplereenroll", "simpleenroll"} {
			next := fmt.Sprintf("a%d.crt", i)
			x.run("openssl base64 -in a.der | post --cert a.crt --key a.key " + listener + "/" + operation + " | read_certs > " + next + "; openssl verify -CAfile ca.pem " + next)
			if x.serial(next) == x.serial("a.crt") {
				t.Errorf("%s gave the same certificate", operation)
			}
		}

		// A refusal has a status, a challenge spelled as libest wants it, and no body.
		for _, user := range []string{"", "-u device:wrong-password", "-u nobody:corp-demo-password"} {
			out := x.run("openssl base64 -in a.der | curl -sS --cacert " + root + " -D - -o body -w 'size %{size_download}' -H 'Content-Type: application/pkcs10' --data-binary @- " + user + " " + listener + "/simpleenroll")
			for _, want := range []string{" 401 ", "\nWWW-Authenticate: Basic realm=", "\nContent-Length: 0\r", "size 0"} {
				if !strings.Contains(out, want) {
					t.Errorf("with %q:\n%s\nwithout %q", user, out, want)
				}
			}
		}
	}

	// What the README tells people to type.
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n## EST\n")
	_, typed, _ := strings.Cut(section, "\n```\n")
	typed, _, _ = strings.Cut(typed, "\n```\n")
	x.run(strings.NewReplacer("ca-bundle.pem", "$BUNDLE", "https://BOX", s.ready.EST).Replace(typed))
	x.says("openssl verify -x509_strict -CAfile ca.pem dev.crt; openssl x509 -in dev.crt -noout -subject", "dev.crt: OK", "CN = dev.example.com")

	// A factory's certificate lets a device in at iot.
	x.run(fmt.Sprintf("request boot factory.test; openssl req -inform DER -in boot.der -out boot.csr; openssl x509 -req -in boot.csr -CA %[1]s.crt -CAkey %[1]s.key -days 1 -out boot.crt 2>/dev/null",
		absolute(t, demoSite+"/demo-keys/bootstrap-ca")))
	x.run("request m meter.example.com; openssl base64 -in m.der | post --cert boot.crt --key boot.key $EST/iot/simpleenroll | read_certs > m.crt; openssl verify -x509_strict -CAfile ca.pem m.crt")
	if out, err := x.try("openssl base64 -in m.der | post --cert boot.crt --key boot.key $EST/simpleenroll"); err == nil {
		t.Errorf("another profile took the factory's certificate: %s", out)
	}

	// One name waits for a person; the same request then gets its certificate, and gets the same one again.
	const wait = "openssl base64 -in d.der | post --cert boot.crt --key boot.key -D - -o answer $LEGACY/iot/simpleenroll"
	x.says("request d door.approve.test; "+wait, " 202 ", "\nRetry-After: 60\r", "\nContent-Length: 0\r")
	x.says(wait, " 202 ")
	if code := s.api(t, "POST", "/api/v1/pending/"+s.waitPending(t, token, "door.approve.test")+"/approve", token, nil, nil); code != 200 {
		t.Fatalf("approving: HTTP %d", code)
	}
	x.says(wait+"; read_certs < answer > d.crt; openssl verify -CAfile ca.pem d.crt", " 200 ", "d.crt: OK")
	x.says(wait+"; read_certs < answer > again.crt; cmp d.crt again.crt", " 200 ")
	if !s.has(t, token, "est_simpleenroll", "success", "door.approve.test") || !s.has(t, token, "request_approved", "success", "door.approve.test") {
		t.Error("approval or certificate is not in the log")
	}

	// A key made by the box: it is the certificate's, and never the same twice.
	x.run("request k made.example.com ec -pkeyopt ec_paramgen_curve:P-256")
	for _, name := range []string{"one", "two"} {
		x.run("openssl base64 -in k.der | post -u device:corp-demo-password $EST/keys/serverkeygen | tr -d '\\r' > parts; " +
			`awk '/^$/{n++} n==1 && /^[A-Za-z0-9+\/=]+$/' parts | openssl base64 -d | openssl pkey -inform DER -pubout > ` + name + ".pub; " +
			`awk '/pkcs7-mime/{n=1} n && /^$/{m=1} m && /^[A-Za-z0-9+\/=]+$/' parts | read_certs > ` + name + ".crt; " +
			"openssl x509 -in " + name + ".crt -noout -pubkey | cmp - " + name + ".pub; openssl verify -CAfile ca.pem " + name + ".crt")
	}
	if x.run("cat one.pub") == x.run("cat two.pub") {
		t.Error("the same key twice")
	}
	if out, err := x.try("openssl base64 -in k.der | post -u device:corp-demo-password $EST/serverkeygen"); err == nil || !strings.Contains(out, "this profile makes no keys") {
		t.Errorf("serverkeygen where it is off: %s", out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
