package appliance_test

// TLS certificates of somebody else's authority on the box's listeners, from the request to their end. As in service_test.go: on swtpm.

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/tpm/tpmtest"
)

// others is what somebody with openssl has: a root and an authority below it, and a configuration by which both sign requests with the
// names in them. sign REQUEST CERTIFICATE FROM TO signs as that authority; times are as date reads them.
const others = `
cat > ca.cnf <<'END'
[ca]
default_ca = c
[c]
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = p
copy_extensions = copy
x509_extensions = e
[p]
commonName = optional
[e]
basicConstraints = CA:FALSE
extendedKeyUsage = serverAuth
END
touch index.txt
openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 3650 -subj "/CN=Works root" -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout sub.key -out sub.csr -subj "/CN=Works TLS CA" 2>/dev/null
printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > sub.ext
openssl x509 -req -in sub.csr -CA root.pem -CAkey root.key -days 3000 -extfile sub.ext -out sub.pem 2>/dev/null
`

// tlsStory is that person with a shell and the console's API.
type tlsStory struct {
	*shell
	service *service
	token   string
}

// newTLSStory prepares the functions of the shell: A is curl to the API that trusts the bundle, upload FILE… prints the status and the
// answer, sign as others says.
func newTLSStory(t *testing.T, s *service, token, dir string) *tlsStory {
	x := newShell(t, s, "$BUNDLE")
	if dir != "" {
		x.dir = dir
	}
	x.prefix = `BUNDLE=` + s.ready.CABundle + "\n" + x.prefix + fmt.Sprintf(`
A() { curl -sS --cacert $BUNDLE -H "Authorization: Bearer %s" "$@"; }
upload() { cat "$@" > chain.up; A -T chain.up -H 'Content-Type: application/x-pem-file' -w ' %%{http_code}' $CONSOLE/api/v1/tls/chain; }
sign() { openssl ca -batch -notext -config ca.cnf -cert sub.pem -keyfile sub.key -in $1 -out $2 -startdate $(date -u -d "$3" +%%Y%%m%%d%%H%%M%%SZ) -enddate $(date -u -d "$4" +%%Y%%m%%d%%H%%M%%SZ) ${5:-} ${6:-} 2>sign.err || { cat sign.err; false; }; }
CONSOLE=%s
`, token, s.ready.Console)
	return &tlsStory{x, s, token}
}

// served is what a listener shows to openssl, which verifies it up to a root and against a name. It is the leaf's SHA-256.
func (x *tlsStory) served(listener, root string, more ...string) string {
	x.t.Helper()
	out := x.run(fmt.Sprintf("openssl s_client -connect %s -CAfile %s -verify_return_error -verify_hostname localhost %s </dev/null 2>&1 | tee s_client.out; openssl x509 -in s_client.out -noout -fingerprint -sha256",
		strings.TrimPrefix(listener, "https://"), root, strings.Join(more, " ")))
	if !strings.Contains(out, "Verify return code: 0 (ok)") || !strings.Contains(out, "Verified peername: localhost") {
		x.t.Errorf("%s up to %s:\n%s", listener, root, out)
	}
	_, hex, _ := strings.Cut(out, "ingerprint=")
	return strings.ToLower(strings.ReplaceAll(strings.TrimSpace(hex), ":", ""))
}

// fingerprint is the SHA-256 of a certificate in a file.
func (x *tlsStory) fingerprint(crt string) string {
	return fmt.Sprintf("%x", sha256.Sum256(x.certificate(crt).Raw))
}

// listeners are all that speak TLS.
func (x *tlsStory) listeners() map[string]string {
	r := x.service.ready
	return map[string]string{"EST": r.EST, "SCEP": r.SCEP, "console": r.Console, "legacy": r.Legacy, "legacy SCEP": r.LegacySCEP}
}

// shows fails the test where a listener shows another certificate than want, or RSA-only clients of the legacy ones another than wantRSA.
func (x *tlsStory) shows(root, want, wantRSA string) {
	x.t.Helper()
	for name, listener := range x.listeners() {
		if got := x.served(listener, root); got != want {
			x.t.Errorf("%s shows %s, want %s", name, got, want)
		}
		if strings.HasPrefix(name, "legacy") {
			if got := x.served(listener, root, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"); got != wantRSA {
				x.t.Errorf("%s shows %s to clients of RSA, want %s", name, got, wantRSA)
			}
		}
	}
}

// TestUploadedTLS: somebody else's authority signs the box's requests, and every listener shows its certificates at once, over a restart,
// until they are dropped.
func TestUploadedTLS(t *testing.T) {
	swtpm, state := tpmtest.Start(t), t.TempDir()
	s := start(t, swtpm, state)
	token := s.claim(t)
	x := newTLSStory(t, s, token, "")
	own := tlsRoot(t, s)
	x.run(others)
	x.run(`A --fail-with-body -o requests.pem $CONSOLE/api/v1/tls/request; awk '/BEGIN/{n++} {print > ("request" n ".pem")}' requests.pem`)
	for file, key := range map[string]string{"request1.pem": "id-ecPublicKey", "request2.pem": "rsaEncryption"} {
		x.says("openssl req -in "+file+" -noout -verify -text", "verify OK", key, "DNS:localhost", "IP Address:127.0.0.1")
	}
	before, beforeRSA := x.served(s.ready.Console, own), x.served(s.ready.Legacy, own, "-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256")
	if before != s.ready.TLSSHA256 {
		t.Errorf("the console shows %s, the ready file says %s", before, s.ready.TLSSHA256)
	}

	t.Run("suites", func(t *testing.T) { x.in(t).suites(own) })
	t.Run("refused", func(t *testing.T) { x.in(t).refused(before) })
	x.shows(own, before, beforeRSA)
	if t.Failed() {
		return
	}

	x.run("sign request1.pem ecdsa.pem yesterday '+90 days'; sign request2.pem rsa.pem yesterday '+90 days'")
	for _, file := range []string{"ecdsa", "rsa"} {
		if out := x.run("upload root.pem " + file + ".pem sub.pem"); !strings.HasSuffix(out, " 204") && !strings.HasSuffix(out, " 200") {
			t.Fatalf("uploading: %s", out)
		}
	}
	x.shows("root.pem", x.fingerprint("ecdsa.pem"), x.fingerprint("rsa.pem"))
	if out, err := x.try("openssl s_client -connect " + strings.TrimPrefix(s.ready.EST, "https://") + " -CAfile " + own + " -verify_return_error </dev/null 2>&1"); err == nil {
		t.Errorf("the box's own root still leads to it: %s", out)
	}
	if out, err := x.try("curl -sS --cacert " + own + " " + s.ready.EST + "/.well-known/est/cacerts"); err == nil {
		t.Errorf("curl with the box's own root: %s", out)
	}
	s.trustAnew(t)
	if n := installs(t, s, token); n != 2 {
		t.Errorf("%d records of uploads", n)
	}
	t.Run("devices", func(t *testing.T) { x.in(t).devices("root.pem") })

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = start(t, swtpm, state)
	x = newTLSStory(t, s, token, x.dir)
	x.shows("root.pem", x.fingerprint("ecdsa.pem"), x.fingerprint("rsa.pem"))
	if s.ready.TLSSHA256 != x.fingerprint("ecdsa.pem") {
		t.Errorf("the ready file says %s", s.ready.TLSSHA256)
	}

	// One that ends soon is served, and a person is told.
	if what := x.conditions(); strings.Contains(what, "of the box's listeners") {
		t.Errorf("with 90 days to go: %s", what)
	}
	x.run("sign request1.pem ending.pem '-80 days' '+10 days'; upload ending.pem sub.pem root.pem")
	x.shows("root.pem", x.fingerprint("ending.pem"), x.fingerprint("rsa.pem"))
	want := "The ECDSA certificate of the box's listeners ends on " + x.certificate("ending.pem").NotAfter.UTC().Format(time.DateOnly) + "."
	if what := x.conditions(); !strings.Contains(what, want) || strings.Contains(what, "The RSA certificate of") {
		t.Errorf("with ten days to go it says %q, not %q", what, want)
	}

	x.says("A --fail-with-body -X DELETE -w '%{http_code}' $CONSOLE/api/v1/tls/chain", "20")
	x.shows(own, before, beforeRSA)
	if what := x.conditions(); strings.Contains(what, "of the box's listeners") {
		t.Errorf("after dropping it: %s", what)
	}
	bundle, err := os.ReadFile(s.ready.CABundle)
	if err != nil || strings.Contains(string(bundle), "Works root") {
		t.Errorf("the bundle still has the other root: %v", err)
	}
	s.trustAnew(t)
	if n := installs(t, s, token); n != 4 {
		t.Errorf("%d records of uploads and their end", n)
	}
}

func (x *tlsStory) in(t *testing.T) *tlsStory { return &tlsStory{x.shell.in(t), x.service, x.token} }

// suites tries what the listeners do not speak: TLS 1.2 but on the legacy ones, and there nothing without forward secrecy and AEAD.
func (x *tlsStory) suites(root string) {
	for name, listener := range x.listeners() {
		tries := []string{"-tls1_2"}
		if strings.HasPrefix(name, "legacy") {
			x.served(listener, root, "-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305")
			tries = []string{"-tls1_1 -cipher ALL:@SECLEVEL=0", "-tls1_2 -cipher ECDHE-RSA-AES128-SHA", "-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA", "-tls1_2 -cipher ECDHE-RSA-AES128-SHA256", "-tls1_2 -cipher AES128-GCM-SHA256"}
		}
		for _, try := range tries {
			out, err := x.try("openssl s_client -connect " + strings.TrimPrefix(listener, "https://") + " -CAfile " + root + " " + try + " </dev/null 2>&1")
			if err == nil || !strings.Contains(out, "alert") {
				x.t.Errorf("%s with %s: %s", name, try, out)
			}
		}
	}
}

// refused uploads what clients would not accept. Nothing of it is served.
func (x *tlsStory) refused(before string) {
	x.run(`
	sign request1.pem good.pem yesterday '+90 days'
	sign request1.pem ended.pem '-90 days' yesterday
	sign request1.pem early.pem tomorrow '+90 days'
	openssl req -new -newkey rsa:2048 -nodes -keyout foreign.key -out foreign.csr -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null
	sign foreign.csr foreign.pem yesterday '+90 days'
	printf 'subjectAltName=DNS:www.example.com\nextendedKeyUsage=serverAuth\n' > name.ext
	openssl x509 -req -in request1.pem -CA sub.pem -CAkey sub.key -days 90 -extfile name.ext -out name.pem 2>/dev/null
	printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=clientAuth\n' > client.ext
	openssl x509 -req -in request1.pem -CA sub.pem -CAkey sub.key -days 90 -extfile client.ext -out client.pem 2>/dev/null
	openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 9 -subj "/CN=Works root" 2>/dev/null`)
	for name, c := range map[string]struct{ files, says string }{
		"of another key":        {"foreign.pem sub.pem root.pem", "none of its certificates is over a TLS key of this box"},
		"ended":                 {"ended.pem sub.pem root.pem", "expired"},
		"not begun":             {"early.pem sub.pem root.pem", "not yet valid"},
		"without the name":      {"name.pem sub.pem root.pem", "it is not for localhost"},
		"for clients":           {"client.pem sub.pem root.pem", "clients would refuse it"},
		"without what is above": {"good.pem root.pem", `Works TLS CA`},
		"without the root":      {"good.pem sub.pem", `Works root`},
		"under another root":    {"good.pem sub.pem other.pem", `Works root`},
		"with a key in it":      {"good.pem sub.pem root.pem sub.key", "upload certificates only"},
		"a request":             {"request1.pem", "does not begin with a PEM certificate"},
	} {
		if out := x.run("upload " + c.files); !strings.HasSuffix(out, " 422") || !strings.Contains(out, c.says) {
			x.t.Errorf("a chain %s: %s\nwithout %q", name, out, c.says)
		}
	}
	if got := x.served(x.service.ready.Console, "$BUNDLE"); got != before {
		x.t.Errorf("after refusals the console shows %s", got)
	}
}

// devices enroll over connections that the uploaded chain protects, trusting its root and nothing of the box's.
func (x *tlsStory) devices(root string) {
	s := x.service
	d := newESTDevice(x.t, s.ready.Legacy, filepath.Join(x.dir, root), "")
	d.request("first", "uploaded.example.com")
	if err := d.enroll("first", "first.crt", "--userpass", "device:corp-demo-password"); err != nil {
		x.t.Errorf("strongSwan: %v", err)
	} else if err := d.enroll("first", "second.crt", "--cert", "first.crt", "--key", "first.key"); err != nil {
		x.t.Errorf("strongSwan renewing: %v", err)
	}
	x.run("B() { curl -sS --fail-with-body --cacert " + root + ` "$@"; }
	B $EST/cacerts | read_certs > ca.pem
	request curl curl.example.com; openssl base64 -in curl.der | B -u device:corp-demo-password -H 'Content-Type: application/pkcs10' --data-binary @- $EST/simpleenroll | read_certs > curl.crt
	openssl verify -CAfile ca.pem curl.crt
	B "` + s.ready.SCEP + `/scep/corp?operation=GetCACaps" | grep SCEPStandard
	B "` + s.ready.LegacySCEP + `/scep/corp?operation=GetCACaps" | grep SCEPStandard`)
}

// conditions are the sentences that the console has for a person.
func (x *tlsStory) conditions() string {
	x.t.Helper()
	return x.run("A --fail-with-body $CONSOLE/api/v1/status")
}

// trustAnew has the API's client trust what the bundle holds now.
func (s *service) trustAnew(t *testing.T) {
	t.Helper()
	pool := x509.NewCertPool()
	for _, c := range certificatesIn(t, s.ready.CABundle) {
		pool.AddCert(c)
	}
	s.client.CloseIdleConnections()
	s.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
}

// installs counts the audit records of uploaded TLS certificates, those taken back among them.
func installs(t *testing.T, s *service, token string) int {
	t.Helper()
	n := 0
	var page auditPage
	s.api(t, "GET", "/api/v1/audit", token, nil, &page)
	for _, r := range page.Records {
		if r.Action == "tls_installed" && r.Outcome == "success" && r.Actor == "ada" {
			n++
		}
	}
	return n
}
