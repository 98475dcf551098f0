package webui

import (
	"archive/zip"
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/pki"
)

// upload sends a form with files as a browser does.
func (b *testBox) upload(path string, values url.Values, files map[string][]byte, change ...func(*http.Request)) reply {
	b.t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for name, all := range values {
		for _, value := range all {
			if err := form.WriteField(name, value); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	for name, content := range files {
		part, err := form.CreateFormFile("files", name)
		if err != nil {
			b.t.Fatal(err)
		}
		part.Write(content) // a buffer takes everything
	}
	if err := form.Close(); err != nil {
		b.t.Fatal(err)
	}
	return b.send(http.MethodPost, path, &body, append([]func(*http.Request){
		header("Content-Type", form.FormDataContentType()), header("Sec-Fetch-Site", "same-origin")}, change...)...)
}

// ordered checks that a form took effect: the box was ordered it, and the browser goes to a page that says so.
func (b *testBox) ordered(got reply, page, order, says string, who func(*http.Request)) reply {
	b.t.Helper()
	to := got.Header.Get("Location")
	if got.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to, page+"?done=") || b.fake.last() != "alice: "+order {
		b.t.Fatalf("status %d to %q, ordered %q, want %q: %.300s", got.StatusCode, to, b.fake.last(), order, got.body)
	}
	after := b.get(to, who)
	after.says(b.t, 200, says)
	return after
}

// TestAuthorityPages: a subordinate gets its chain and a root changes over, by the forms of its page, which
// offers what makes sense and no more; what cannot be taken back is asked about first.
func TestAuthorityPages(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	list := box.get("/authorities", admin)
	list.says(t, 200, `href="/authorities/devices"`, "issuing", "Subordinate: somebody else", "waits for its certificate", `href="/profiles/corp"`, "RA key", `href="/authorities?do=rotate"`)
	list.saysNot(t, "<dialog", "/ra/rotate\"")

	devices := box.get("/authorities/devices", admin)
	devices.says(t, 200, `action="/authorities/devices/next"`, "it signs itself", "SHA-1", "<h2 id=\"rollover\"",
		"<code>http://pki.example/pki/devices.crl</code>", "number 7, signed", "next update", "http://pki.example/ocsp/devices")
	devices.saysNot(t, "/authorities/devices/chain\"", "/next/activate", "do=cancel", "ceremony.zip")
	plant := box.get("/authorities/plant", admin)
	plant.says(t, 200, `href="/authorities/plant/ceremony.zip"`, `action="/authorities/plant/chain" enctype="multipart/form-data"`, "openssl x509 -req -in plant.csr.pem")
	plant.saysNot(t, `action="/authorities/plant/next"`, "rollover")
	box.get("/authorities/nothing", admin).says(t, 404, "no such authority")

	chain := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	got := box.upload("/authorities/plant/chain", nil, map[string][]byte{"plant.pem": chain}, admin)
	box.ordered(got, "/authorities/plant", "install plant", "checked and are in use", admin).says(t, 200, "Renew its certificate", "Above")

	box.ordered(box.submit("/authorities/devices/next", nil, admin), "/authorities/devices", "prepare devices", "It issues nothing yet", admin).
		says(t, 200, `href="/authorities/devices?do=activate"`, `href="/authorities/devices?do=cancel"`, "generation 2 ready")
	dialog := box.get("/authorities/devices?do=cancel", admin)
	dialog.says(t, 200, "<dialog open", `action="/authorities/devices/next/cancel"`, "Its key is destroyed")
	box.ordered(box.submit("/authorities/devices/next/cancel", nil, admin), "/authorities/devices", "cancel devices", "Cancelled", admin).saysNot(t, "do=activate")
	box.submit("/authorities/devices/next", nil, admin)
	box.get("/authorities/devices?do=activate", admin).says(t, 200, "<dialog open", "cannot be taken back", `action="/authorities/devices/next/activate"`)
	box.fake.failNext(&ConflictError{"the clock is wrong", "set the clock"})
	box.submit("/authorities/devices/next/activate", nil, admin).says(t, 409, "<dialog open", "The clock is wrong.", "Set the clock.", `id="activate-problem"`)
	box.ordered(box.submit("/authorities/devices/next/activate", nil, admin), "/authorities/devices", "activate devices", "It issues from now on", admin).says(t, 200, "Issues no more since", "2026-11-21")
	box.submit("/authorities/modern/next/activate", nil, admin).says(t, 409, "No next generation was prepared.", "Prepare one first.")

	box.get("/authorities?do=rotate", admin).says(t, 200, "<dialog open", `action="/ra/rotate"`)
	box.fake.failNext(ErrKeysBusy)
	busy := box.submit("/ra/rotate", nil, admin)
	busy.says(t, 503, "<dialog open", "key holder is busy")
	if busy.Header.Get("Retry-After") == "" {
		t.Error("busy without Retry-After")
	}
	box.ordered(box.submit("/ra/rotate", nil, admin), "/authorities", "rotate ra", "was replaced", admin)
	box.fake.failNext(errors.New("the disk is on fire"))
	box.submit("/ra/rotate", nil, admin).says(t, 500, "Request <code>")

	file := box.get("/authorities/devices/chain.pem?generation=1", admin)
	if block, _ := pem.Decode(file.body); file.StatusCode != 200 || block == nil || file.Header.Get("Content-Disposition") != `attachment; filename="devices-1.pem"` {
		t.Errorf("chain: status %d %v", file.StatusCode, file.Header)
	}
	box.get("/authorities/devices/chain.pem?generation=7", admin).says(t, 409, "no certificate of that generation")
}

// TestOrderPagesByRole: auditors and operators see the pages and none of the orders; other web sites order
// nothing.
func TestOrderPagesByRole(t *testing.T) {
	for _, as := range []role{auditor, operator} {
		box := newBox(t)
		who := bearer(box.claimAs(as, as))
		for _, page := range []string{"/authorities?do=rotate", "/authorities/devices?do=activate", "/authorities/plant", "/profiles", "/profiles/corp?do=off", "/profiles/corp?do=bundle&of=est", "/tls?do=own"} {
			got := box.get(page, who)
			got.says(t, 200, "<h1")
			got.saysNot(t, `action="/authorities`, `action="/profiles`, `action="/ra/`, `action="/tls`, "<dialog", "do=")
		}
		for _, form := range []string{"/authorities/devices/next", "/ra/rotate", "/profiles/corp/off", "/profiles/corp/bundle", "/profiles/corp/challenge", "/tls/chain", "/tls/own"} {
			box.submit(form, nil, who).says(t, 403)
		}
		if len(box.fake.orders) != 0 {
			t.Errorf("as %s the box was ordered %v", as, box.fake.orders)
		}
	}
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	box.submit("/ra/rotate", nil, admin, header("Sec-Fetch-Site", "cross-site")).says(t, 403)
	box.upload("/tls/chain", nil, map[string][]byte{"x": {1}}, admin, header("Sec-Fetch-Site", "cross-site")).says(t, 403)
	box.submit("/profiles/corp/off", url.Values{"reason": {"x"}}, admin, header("Content-Type", "text/plain")).says(t, 415)
	if len(box.fake.orders) != 0 {
		t.Errorf("the box was ordered %v", box.fake.orders)
	}
}

// TestUploads: certificates come as files, in PEM and DER, or pasted, or both; anything else is refused
// with the reason at the form, and nothing that is not a certificate gets to the box.
func TestUploads(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	one, two := box.fake.authorities[0].Generations[0].Certificate, box.fake.authorities[1].Generations[0].Certificate
	crlf := strings.ReplaceAll(string(pemOf(one)), "\n", "\r\n") // as browsers send text
	const path = "/authorities/plant/chain"
	good := func(name string, got reply) {
		t.Helper()
		if got.StatusCode != http.StatusSeeOther || box.fake.last() != "alice: install plant" {
			t.Errorf("%s: status %d, ordered %q: %.300s", name, got.StatusCode, box.fake.last(), got.body)
		}
	}
	good("pasted", box.submit(path, url.Values{"pem": {crlf}}, admin))
	good("PEM file", box.upload(path, nil, map[string][]byte{"a.pem": pemOf(one)}, admin))
	good("DER files", box.upload(path, nil, map[string][]byte{"a.cer": one.Raw, "b.cer": two.Raw}, admin))
	good("file and paste", box.upload(path, url.Values{"pem": {crlf}}, map[string][]byte{"b.pem": append([]byte("subject=CN = x\n"), pemOf(two)...)}, admin))

	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("not to be kept")})
	many := map[string][]byte{}
	for _, name := range strings.Split("abcdefghijk", "") {
		many[name] = one.Raw
	}
	before := len(box.fake.orders)
	for name, c := range map[string]struct {
		got  reply
		says string
	}{
		"nothing":       {box.upload(path, nil, nil, admin), "There is no certificate."},
		"nonsense":      {box.submit(path, url.Values{"pem": {"nonsense <b>"}}, admin), "What was pasted holds no certificate."},
		"a private key": {box.upload(path, nil, map[string][]byte{"k.pem": append(pemOf(one), key...)}, admin), "holds a private key"},
		"a request":     {box.submit(path, url.Values{"pem": {"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}}, admin), "holds a block"},
		"a broken one":  {box.submit(path, url.Values{"pem": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}, admin), "cannot be read"},
		"half of it":    {box.submit(path, url.Values{"pem": {strings.Replace(crlf, "MII", "M!I", 1) + crlf}}, admin), "has 2 blocks, of which 1 can be read"},
		"too many":      {box.upload(path, nil, many, admin), "11 files are more than 10."},
		"too much":      {box.upload(path, nil, map[string][]byte{"a": make([]byte, maxUpload)}, admin), "larger than 256 KiB"},
		"not whole": {box.send(http.MethodPost, path, strings.NewReader("--x\r\nContent-Disposition: form-data; name=\"pem\"\r\n\r\nabc"), admin,
			header("Content-Type", "multipart/form-data; boundary=x")), "did not arrive whole"},
	} {
		c.got.says(t, 422, c.says, `id="chain-problem"`)
		c.got.saysNot(t, "not to be kept", "<b>")
		if len(box.fake.orders) != before {
			t.Fatalf("%s got to the box", name)
		}
	}
	box.submit(path, url.Values{"pem": {strings.Repeat("x", maxBody)}}, admin).says(t, 413)
}

// TestCeremony runs what the page and the file for the ceremony say with openssl, as somebody at an offline
// machine would, and the chain that comes out passes the box's checks.
func TestCeremony(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is missing: apt-get install openssl")
		}
		t.Skip("openssl is not installed")
	}
	key := newAuditKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Plant CA"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	a := authorityView{AuthorityDetails: AuthorityDetails{Name: "plant", Mode: "subordinate"}, Subject: "CN=Plant CA"}
	attestation := newAuditKey(t)
	public, err := x509.MarshalPKIXPublicKey(attestation.Public())
	if err != nil {
		t.Fatal(err)
	}
	request := AuthorityRequest{Generation: 1, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}
	attest := append([]byte("TPMS_ATTEST with "), digest(der)...)
	signature, err := ecdsa.SignASN1(rand.Reader, attestation, digest(attest))
	if err != nil {
		t.Fatal(err)
	}
	request.Certification = &Certification{Attest: attest, Signature: signature, Public: []byte{1}, AttestationKey: public}
	body, err := packCeremony(a, request, start)
	if err != nil {
		t.Fatal(err)
	}
	pack, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := ""
	for _, f := range pack.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if f.Name == "README.txt" {
			text = string(content)
		}
	}
	run := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-e", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	run(`openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 3000 -subj "/CN=Offline root" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign`)
	var commands []string
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "   "); ok && (strings.HasPrefix(command, "openssl ") || strings.HasPrefix(command, "od ") || strings.HasPrefix(command, "cat ")) {
			commands = append(commands, command)
		}
	}
	if len(commands) != 6 {
		t.Fatalf("README.txt has %d commands, want 6:\n%s", len(commands), text)
	}
	said := run(strings.Join(commands, ""))
	for _, want := range []string{requestHash(request.PEM), "Verified OK\n1\n", "Plant CA"} {
		if !strings.Contains(said, want) {
			t.Errorf("the commands do not print %q:\n%s", want, said)
		}
	}
	var chain []*x509.Certificate
	content, err := os.ReadFile(filepath.Join(dir, "plant-chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	subject, err := pki.ParseDN("CN=Plant CA")
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.CheckChain(chain, key.Public(), subject, time.Now()); err != nil || len(chain) != 2 {
		t.Errorf("the box would refuse the chain of %d: %v", len(chain), err)
	}
}

func digest(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
