package appliance_test

// The life of authorities, with real clients on both sides of every change. As in service_test.go: on swtpm.

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"signet.internal/tpm/tpmtest"
	"signet.internal/webui"
)

// TestLifeOfAuthorities: a subordinate gets its certificate from a root of openssl's; a root rolls over
// while devices renew; the RA key is replaced while devices hold the old certificate.
func TestLifeOfAuthorities(t *testing.T) {
	site := variant(t, map[string]string{
		"site.yaml": demo(t, "site.yaml", "authorities:\n", "authorities:\n"+
			"  - {name: branch, mode: subordinate, subject: \"CN=Branch CA,O=Signet Demo\", path_len: 0, crl_validity: 12h, key: {algorithm: rsa-2048, protection: resident}}\n",
			"{name: modern, mode: root,", "{name: modern, mode: root, path_len: 0,"),
		"profiles/branch.yaml": demo(t, "profiles/corp.yaml", "default: true", "default: false", "name: corp", "name: branch", "authority: devices", "authority: branch"),
	})
	swtpm, state := tpmtest.Start(t), t.TempDir()
	s := startSite(t, site, swtpm, state, nil)
	token := s.claim(t)
	root := tlsRoot(t, s)
	changed := newShell(t, s, root)
	t.Run("subordinate", func(t *testing.T) { s.subordinate(t, newShell(t, s, root), token) })
	t.Run("rollover", func(t *testing.T) { s.rollover(t, changed.in(t), token) })
	before := newDevice(t, s.ready.SCEPPlain+"/scep/corp")
	t.Run("RA key", func(t *testing.T) { s.rotation(t, before, token) })
	if t.Failed() {
		return
	}
	t.Run("after a restart", func(t *testing.T) {
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		s := startSite(t, site, swtpm, state, nil)
		x := newShell(t, s, root)
		x.dir = changed.dir
		d := device{t: t, pki: before.pki, url: s.ready.SCEPPlain + "/scep/corp", dir: before.dir}
		for _, crt := range []string{"est", "renewed"} { // of the generation before, and of this one
			x.says("openssl base64 -in est.der | post --cert "+crt+".crt --key est.key $EST/simplereenroll | read_certs > again.crt; openssl verify -CAfile new.pem again.crt", "again.crt: OK")
		}
		if err := d.request("again.example.com", d.newKey("again.key"), "again.crt", "--password", "corp-demo-challenge"); err != nil {
			t.Errorf("with the RA certificate of before: %v", err)
		}
	})
}

// order gives an administrator's order and fails the test where it is refused.
func (s *service) order(t *testing.T, method, path, token string, out any) {
	t.Helper()
	if code := s.api(t, method, path, token, nil, out); code != http.StatusOK {
		t.Fatalf("%s %s: HTTP %d", method, path, code)
	}
}

// upload sends PEM certificates and returns the status and the answer.
func (s *service) upload(t *testing.T, path, token string, pem []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequest("PUT", s.ready.Console+path, bytes.NewReader(pem))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-pem-file")
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	body.ReadFrom(resp.Body)
	return resp.StatusCode, body.String()
}

func (s *service) subordinate(t *testing.T, x *shell, token string) {
	post := "openssl base64 -in d.der | post -u device:corp-demo-password -o answer -w '%{http_code}' $EST/branch/simpleenroll || true"
	x.says("request d d.example.com; "+post, "503") // nothing to sign with yet

	var asked webui.AuthorityCSR
	s.order(t, "GET", "/api/v1/authorities/branch/request", token, &asked)
	writeFile(t, filepath.Join(x.dir, "branch.csr"), []byte(asked.CSR))
	x.run("openssl req -verify -in branch.csr -outform DER -out branch.csr.der 2>/dev/null")
	checkCertification(t, asked.Certification, filepath.Join(x.dir, "branch.csr.der"))
	if n := strings.Count(x.run("openssl req -noout -text -in branch.csr; C $EST/modern/cacerts | read_certs | openssl x509 -noout -text"), "CA:TRUE, pathlen:0"); n != 2 {
		t.Errorf("path_len is in %d of request and root", n)
	}

	// Roots of somebody's own: one that may have subordinates, and a stranger.
	x.run(`for name in root stranger; do openssl req -x509 -newkey rsa:2048 -nodes -keyout $name.key -out $name.pem -days 30 -subj "/CN=Offline $name" \
		-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null; done
		printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > ca.ext
		printf 'basicConstraints=CA:FALSE\n' > leaf.ext
		openssl x509 -req -in branch.csr -CA root.pem -CAkey root.key -days 20 -extfile ca.ext -out branch.pem 2>/dev/null
		openssl x509 -req -in branch.csr -CA root.pem -CAkey root.key -days 20 -extfile leaf.ext -out leaf.pem 2>/dev/null
		openssl x509 -req -in branch.csr -CA stranger.pem -CAkey stranger.key -days 20 -extfile ca.ext -out strange.pem 2>/dev/null`)
	for _, wrong := range []string{"leaf.pem root.pem", "branch.pem", "branch.pem stranger.pem", "strange.pem root.pem", "root.pem"} {
		if code, said := s.upload(t, "/api/v1/authorities/branch/chain", token, []byte(x.run("cat "+wrong))); code != http.StatusUnprocessableEntity {
			t.Errorf("chain of %s: HTTP %d %s", wrong, code, said)
		}
	}
	if code, said := s.upload(t, "/api/v1/authorities/devices/chain", token, []byte(x.run("cat branch.pem root.pem"))); code != http.StatusConflict {
		t.Errorf("a chain for a root: HTTP %d %s", code, said)
	}
	if code, said := s.upload(t, "/api/v1/authorities/branch/chain", token, []byte(x.run("cat root.pem branch.pem"))); code != http.StatusOK {
		t.Fatalf("the chain: HTTP %d %s", code, said)
	}

	x.says(post, "200")
	x.says("read_certs < answer > d.crt; openssl verify -x509_strict -CAfile root.pem -untrusted branch.pem d.crt", "d.crt: OK")
	x.says("C $EST/branch/cacerts | read_certs", "CN = Branch CA", "CN = Offline root")
	d := newDevice(t, s.ready.SCEPPlain+"/scep/branch")
	if err := d.request("plc.example.com", d.newKey("plc.key"), "plc.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	x.says("openssl verify -x509_strict -CAfile root.pem -untrusted branch.pem "+filepath.Join(d.dir, "plc.crt"), ": OK")
	x.says("openssl ocsp -issuer branch.pem -cert d.crt -url $OCSP/branch -CAfile root.pem -verify_other branch.pem 2>&1", "Response verify OK", "d.crt: good")
	x.says(`C -o branch.crl $PKI/branch.crl; openssl crl -inform DER -in branch.crl -CAfile branch.pem -noout -lastupdate -nextupdate 2>&1
		at() { date -d "$(openssl crl -inform DER -in branch.crl -noout $1 | cut -d= -f2)" +%s; }
		echo $(( ($(at -nextupdate) - $(at -lastupdate)) / 3600 )) hours`, "verify OK", "\n12 hours") // crl_validity
	x.says("grep -c BEGIN $BUNDLE; openssl crl2pkcs7 -nocrl -certfile $BUNDLE | openssl pkcs7 -print_certs -noout", "CN = Offline root")
}

// checkCertification holds the TPM's word for a key to the request it came with.
func checkCertification(t *testing.T, c *webui.Certification, csr string) {
	t.Helper()
	if c == nil {
		t.Fatal("no word of the TPM for the key")
	}
	der, err := os.ReadFile(csr)
	if err != nil {
		t.Fatal(err)
	}
	nonce, sum := sha256.Sum256(der), sha256.Sum256(c.Attest)
	if !bytes.Contains(c.Attest, nonce[:]) {
		t.Error("the TPM's statement is not about this request")
	}
	key, err := x509.ParsePKIXPublicKey(c.AttestationKey)
	if err != nil {
		t.Fatal(err)
	}
	isGood := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		isGood = ecdsa.VerifyASN1(key, sum[:], c.Signature)
	case *rsa.PublicKey:
		isGood = rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], c.Signature) == nil
	}
	if !isGood {
		t.Errorf("the TPM's statement is not signed by its attestation key (%T)", key)
	}
}

func (s *service) rollover(t *testing.T, x *shell, token string) {
	const authority = "/api/v1/authorities/devices"
	scep := s.ready.SCEPPlain + "/scep/corp"
	caps := func() []string { return strings.Fields(x.run("C '" + scep + "?operation=GetCACaps'")) }
	x.run("C $EST/cacerts | read_certs > old.pem")
	x.run("request est est.example.com; openssl base64 -in est.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > est.crt")
	d := newDevice(t, scep)
	for _, cn := range []string{"plc", "gone"} {
		if err := d.request(cn+".example.com", d.newKey(cn+".key"), cn+".crt", "--password", "corp-demo-challenge"); err != nil {
			t.Fatal(err)
		}
	}
	if slices.Contains(caps(), "GetNextCACert") {
		t.Error("GetNextCACert is offered where there is no next CA")
	}

	var shown webui.AuthorityDetails
	s.order(t, "POST", authority+"/next", token, &shown)
	if n := len(shown.Generations); n != 2 || shown.Generations[1].State != webui.GenerationNext {
		t.Fatalf("%d generations: %+v", n, shown.Generations)
	}
	writeFile(t, filepath.Join(x.dir, "new.pem"), []byte(shown.Generations[1].PEM))
	if !slices.Contains(caps(), "GetNextCACert") {
		t.Error("GetNextCACert is not offered")
	}
	x.run("C -o next.p7 '" + scep + "?operation=GetNextCACert'; openssl cms -verify -inform DER -in next.p7 -CAfile old.pem -purpose any -binary -out next.der 2>/dev/null; " +
		"openssl pkcs7 -inform DER -in next.der -print_certs | openssl x509 -out next.pem; cmp <(openssl x509 -in new.pem) next.pem")

	// Both roots and the links between them: whoever trusts one gets to the other.
	x.run("C $EST/cacerts | read_certs > all.pem")
	links := ""
	for _, cert := range certificatesIn(t, filepath.Join(x.dir, "all.pem")) {
		old, next := x.certificate("old.pem"), x.certificate("new.pem")
		switch {
		case cert.Equal(old):
			links += "old "
		case cert.Equal(next):
			links += "new "
		case cert.CheckSignatureFrom(old) == nil && bytes.Equal(cert.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo):
			writeFile(t, filepath.Join(x.dir, "new-with-old.pem"), pemOf("CERTIFICATE", cert.Raw))
			links += "new-with-old "
		case cert.CheckSignatureFrom(next) == nil && bytes.Equal(cert.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo):
			writeFile(t, filepath.Join(x.dir, "old-with-new.pem"), pemOf("CERTIFICATE", cert.Raw))
			links += "old-with-new "
		default:
			links += cert.Subject.String()
		}
	}
	if links != "old new new-with-old old-with-new " {
		t.Errorf("cacerts holds %s", links)
	}
	x.says("openssl verify -x509_strict -CAfile old.pem new-with-old.pem; openssl verify -x509_strict -CAfile new.pem old-with-new.pem", "new-with-old.pem: OK", "old-with-new.pem: OK")

	// A strongSwan that fetches everything at once still gets by.
	swan := newESTDevice(t, s.ready.Legacy, tlsRoot(t, s), "")
	if _, err := swan.pki("--estca", "--caout", "ca.crt", "--outform", "pem", "--force"); err != nil {
		t.Errorf("pki --estca with both roots: %v", err)
	}
	// Until it is active it issues nothing.
	x.says("openssl base64 -in est.der | post --cert est.crt --key est.key $EST/simplereenroll | read_certs > early.crt; openssl verify -CAfile old.pem early.crt", ": OK")

	s.order(t, "POST", authority+"/next/activate", token, &shown)
	if slices.Contains(caps(), "GetNextCACert") {
		t.Error("GetNextCACert is offered after the change")
	}
	x.says("openssl base64 -in est.der | post --cert est.crt --key est.key $EST/simplereenroll | read_certs > renewed.crt; openssl verify -x509_strict -CAfile new.pem renewed.crt", "renewed.crt: OK")
	x.says("openssl verify -CAfile old.pem -untrusted new-with-old.pem renewed.crt; openssl verify -CAfile new.pem -untrusted old-with-new.pem est.crt", "renewed.crt: OK", "est.crt: OK")

	// strongSwan with everything of before the change, RA certificate and root, then with what is there now.
	if err := d.request("plc.example.com", d.newKey("late.key"), "late.crt", "--cert", "plc.crt", "--key", "plc.key"); err != nil {
		t.Errorf("a renewal with the certificates of before: %v", err)
	}
	mustRun(t, d.dir, d.pki, "--scepca", "--url", d.url, "--caout", "ca.crt", "--raout", "ra.crt", "--outform", "pem", "--force")
	if err := d.request("plc.example.com", d.newKey("new.key"), "new.crt", "--cert", "plc.crt", "--key", "plc.key"); err != nil {
		t.Fatal(err)
	}
	d.serial("new.crt")
	x.says("openssl verify -x509_strict -CAfile new.pem "+filepath.Join(d.dir, "new.crt"), ": OK")
	x.says("openssl x509 -in "+filepath.Join(d.dir, "new.crt")+" -noout -text", "/pki/devices.2.crl", "/pki/devices.2.cer", "/ocsp/devices")

	// The old generation goes on answering for what it issued.
	gone := filepath.Join(d.dir, "gone.crt")
	serial := fmt.Sprintf("%x", certificatesIn(t, gone)[0].SerialNumber.Bytes())
	if code := s.api(t, "POST", "/api/v1/certificates/"+serial+"/revoke", token, map[string]string{"reason": "cessationOfOperation"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	x.says("openssl ocsp -issuer old.pem -cert "+gone+" -url $OCSP/devices -CAfile old.pem 2>&1", "Response verify OK", ": revoked")
	x.says("openssl ocsp -issuer old.pem -cert est.crt -url $OCSP/devices -CAfile old.pem 2>&1", "Response verify OK", ": good")
	x.says("openssl ocsp -issuer new.pem -cert renewed.crt -url $OCSP/devices -CAfile new.pem 2>&1", "Response verify OK", ": good")
	x.run("for i in {1..60}; do C $PKI/devices.crl -o list; openssl crl -inform DER -in list -noout -text | grep -qi " + serial + " && exit 0; sleep 0.25; done; exit 1")
	x.says("openssl verify -crl_check -crl_download -CAfile old.pem est.crt; openssl verify -crl_check -crl_download -CAfile new.pem renewed.crt", "est.crt: OK", "renewed.crt: OK")
	if out, err := x.try("openssl verify -crl_check -crl_download -CAfile old.pem " + gone); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl verify: %v %s", err, out)
	}

	// A next one can be taken back; what is active cannot.
	s.order(t, "POST", authority+"/next", token, nil)
	s.order(t, "DELETE", authority+"/next", token, nil)
	if code := s.api(t, "POST", authority+"/next/activate", token, nil, nil); code != http.StatusConflict {
		t.Errorf("activating what was taken back: HTTP %d", code)
	}
	if slices.Contains(caps(), "GetNextCACert") {
		t.Error("GetNextCACert is offered for a CA that was taken back")
	}
}

// rotation replaces the RA key, of which a device has the certificate.
func (s *service) rotation(t *testing.T, before *device, token string) {
	s.order(t, "POST", "/api/v1/ra/rotate", token, nil)
	after := newDevice(t, before.url)
	old, fresh := certificatesIn(t, filepath.Join(before.dir, "ra.crt"))[0], certificatesIn(t, filepath.Join(after.dir, "ra.crt"))[0]
	if bytes.Equal(old.RawSubjectPublicKeyInfo, fresh.RawSubjectPublicKeyInfo) {
		t.Error("the RA key is the same")
	}
	for name, d := range map[string]*device{"before": before, "after": after} {
		if err := d.request(name+".example.com", d.newKey("k.key"), "k.crt", "--password", "corp-demo-challenge"); err != nil {
			t.Errorf("with the RA certificate of %s: %v", name, err)
			continue
		}
		d.serial("k.crt")
	}
	if !s.has(t, token, "ra_renewed", "success", "ra.2") {
		t.Error("the new RA key is not in the log")
	}
}
