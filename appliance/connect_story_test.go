package appliance_test

// What the console tells people to type, typed: the commands of the pages "Connect a device", taken from
// the pages of the running service, with the clients they are for. Those for Cisco IOS, Apple's devices,
// Intune and ChromeOS are held only against what they say, because none of these is at hand.

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

// command is what a page has in a box to copy.
var command = regexp.MustCompile(`(?s)<pre tabindex="0"><code>(.*?)</code></pre>`)

// page sends a request for a page of the console, a form where there is one, and returns what it answers.
func (s *service) page(t *testing.T, token, path string, form url.Values) string {
	t.Helper()
	method, body := http.MethodGet, io.Reader(nil)
	if form != nil {
		method, body = http.MethodPost, strings.NewReader(form.Encode())
	}
	req, err := http.NewRequest(method, s.ready.Console+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: HTTP %d, %v: %s", method, path, resp.StatusCode, err, text)
	}
	return string(text)
}

// commands are those of a page, in order.
func commands(t *testing.T, page string) []string {
	t.Helper()
	var all []string
	for _, m := range command.FindAllStringSubmatch(page, -1) {
		all = append(all, html.UnescapeString(m[1]))
	}
	if len(all) == 0 {
		t.Fatalf("the page has nothing to copy:\n%s", page)
	}
	return all
}

// typed runs commands in a directory, with words replaced as the page asks for.
func typed(t *testing.T, dir, script string, words ...string) string {
	t.Helper()
	out, err := run(t, dir, "bash", "-c", strings.NewReplacer(words...).Replace(script))
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return out
}

func TestConnectADevice(t *testing.T) {
	needtest.Program(t, "pki", "strongswan-pki")
	needtest.Program(t, "curl", "curl")
	openssl := needtest.Program(t, "openssl", "openssl")
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	ours := func(t *testing.T, dir, crt, cn string) string {
		t.Helper()
		if out := mustRun(t, dir, openssl, "verify", "-x509_strict", "-CAfile", s.ready.CABundle, crt); !strings.Contains(out, ": OK") {
			t.Errorf("openssl verify: %s", out)
		}
		cert := certificatesIn(t, filepath.Join(dir, crt))[0]
		if cert.Subject.CommonName != cn {
			t.Errorf("%s is for %s", crt, cert.Subject)
		}
		return fmt.Sprintf("%x", cert.SerialNumber)
	}
	const password = "corp-demo-password"

	t.Run("strongSwan", func(t *testing.T) {
		const cn = "swan-9.example.com"
		steps := commands(t, s.page(t, token, "/connect/corp?for=strongswan&cn="+cn, nil))
		if len(steps) != 3 {
			t.Fatalf("%d steps: enroll and renew by SCEP, and EST", len(steps))
		}
		dir := t.TempDir()
		typed(t, dir, steps[0])
		first := ours(t, dir, cn+".crt", cn)
		typed(t, dir, steps[1])
		if second := ours(t, dir, cn+".crt", cn); second == first {
			t.Error("the renewed certificate is the old one")
		}
		if info, err := os.Stat(filepath.Join(dir, cn+".key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key is %v, %v", info.Mode(), err)
		}
		dir = t.TempDir()
		typed(t, dir, steps[2], "PASSWORD", password)
		ours(t, dir, cn+".crt", cn)

		// Another authority's certificate stops it before the challenge is sent anywhere.
		elsewhere := strings.Replace(steps[0], "/scep/corp", "/scep/modern", 1)
		if out, err := run(t, t.TempDir(), "bash", "-c", elsewhere); err == nil {
			t.Errorf("the commands went on with another CA certificate: %s", out)
		}
	})
	t.Run("a challenge that was made on the page", func(t *testing.T) {
		const cn = "cam-9.example.com"
		page := s.page(t, token, "/connect/iot/challenge", url.Values{"cn": {cn}, "for": {"strongswan"}})
		if !strings.Contains(page, "Paste it as it is") {
			t.Error("the page wants something replaced")
		}
		dir := t.TempDir()
		typed(t, dir, commands(t, page)[0])
		ours(t, dir, cn+".crt", cn)
		if out, err := run(t, t.TempDir(), "bash", "-c", commands(t, page)[0]); err == nil {
			t.Errorf("the challenge was good twice: %s", out)
		}
	})
	t.Run("curl and openssl", func(t *testing.T) {
		const cn = "curl-9.example.com"
		steps := commands(t, s.page(t, token, "/connect/corp?for=curl&cn="+cn, nil))
		dir := t.TempDir()
		typed(t, dir, steps[0], "PASSWORD", password)
		first := ours(t, dir, cn+".crt", cn)
		typed(t, dir, steps[1])
		mustRun(t, dir, openssl, "verify", "-CAfile", "signet-ca.pem", cn+".crt")
		typed(t, dir, steps[2])
		if ours(t, dir, cn+".crt", cn) == first {
			t.Error("the renewed certificate is the old one")
		}
		if out, err := run(t, t.TempDir(), "bash", "-c", steps[0]); err == nil || !strings.Contains(out, "401") {
			t.Errorf("with the word PASSWORD itself: %v, %s", err, out)
		}
	})
	t.Run("curl, where a person has to approve", func(t *testing.T) {
		const cn = "meter-9.approve.test"
		dir := t.TempDir()
		mustRun(t, dir, "bash", "-c", fmt.Sprintf(`openssl req -newkey rsa:2048 -nodes -keyout factory.key -subj /CN=meter-9.factory.test -out factory.csr 2>/dev/null &&
openssl x509 -req -in factory.csr -CA %[1]s.crt -CAkey %[1]s.key -days 1 -out factory.crt 2>/dev/null`, absolute(t, demoSite+"/demo-keys/bootstrap-ca")))
		script := strings.ReplaceAll(commands(t, s.page(t, token, "/connect/iot?for=curl&cn="+cn, nil))[0], "sleep 10", "sleep 1")
		type end struct {
			out string
			err error
		}
		done := make(chan end, 1)
		go func() {
			out, err := run(t, dir, "bash", "-c", script)
			done <- end{out, err}
		}()
		if code := s.api(t, "POST", "/api/v1/pending/"+s.waitPending(t, token, cn)+"/approve", token, nil, nil); code != 200 {
			t.Fatalf("approving: HTTP %d", code)
		}
		if got := <-done; got.err != nil || !strings.Contains(got.out, "until somebody approves it at "+s.ready.Console+"/pending") {
			t.Fatalf("%v: %s\n%s", got.err, got.out, script)
		}
		ours(t, dir, cn+".crt", cn)
		if out, err := run(t, t.TempDir(), "bash", "-c", script); err == nil {
			t.Errorf("without the factory’s files: %s", out)
		}
	})
	t.Run("an EC key where the profile takes no other", func(t *testing.T) {
		// The demo's profiles take RSA too; what is typed for them is above.
		site := variant(t, map[string]string{"profiles/corp.yaml": demo(t, "profiles/corp.yaml", "keys: {rsa: {min_bits: 2048}, ecdsa: [p256, p384]}", "keys: {ecdsa: [p384]}")})
		s := startSite(t, site, tpmtest.Start(t), t.TempDir(), nil)
		dir := t.TempDir()
		typed(t, dir, commands(t, s.page(t, s.claim(t), "/connect/corp?for=curl", nil))[0], "PASSWORD", password)
		mustRun(t, dir, openssl, "verify", "-x509_strict", "-CAfile", s.ready.CABundle, "device-1.example.com.crt")
	})
	t.Run("certmonger", func(t *testing.T) { s.typedIntoCertmonger(t, token, ours) })
	t.Run("configuration profile", func(t *testing.T) {
		const cn = "ipad-9.example.com"
		file := s.page(t, token, "/connect/iot/mobileconfig", url.Values{"cn": {cn}})
		value := func(key, kind string) string {
			m := regexp.MustCompile(`<key>` + key + `</key>\s*<` + kind + `>([^<]*)<`).FindStringSubmatch(file)
			if m == nil {
				t.Fatalf("%s is not in\n%s", key, file)
			}
			return m[1]
		}
		d := newDevice(t, value("URL", "string"))
		got := sha1.Sum(certificatesIn(t, filepath.Join(d.dir, "ca.crt"))[0].Raw)
		if want, err := base64.StdEncoding.DecodeString(value("CAFingerprint", "data")); err != nil || !bytes.Equal(want, got[:]) {
			t.Errorf("fingerprint %x, the CA certificate's is %x: %v", want, got, err)
		}
		if err := d.request(cn, d.newKey("k"), "out.crt", "--password", value("Challenge", "string")); err != nil {
			t.Errorf("with what the file says: %v", err)
		}
	})
	t.Run("Cisco IOS", func(t *testing.T) {
		script := strings.Join(commands(t, s.page(t, token, "/connect/corp?for=ios", nil)), "")
		m := regexp.MustCompile(`(?m)^ enrollment url (\S+)$`).FindStringSubmatch(script)
		if m == nil {
			t.Fatalf("no address in\n%s", script)
		}
		for _, address := range []string{m[1], strings.TrimSuffix(m[1], "/pkiclient.exe") + "/cgi-bin/pkiclient.exe"} {
			resp, err := s.client.Get(address + "?operation=GetCACaps&message=SIGNET-CORP")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: HTTP %d", address, resp.StatusCode)
			}
		}
	})
}

// typedIntoCertmonger gives the page's commands to a daemon of certmonger on a session bus of its own, as
// the user of this test: sudo and the directories of the machine's certificates are all that is changed.
func (s *service) typedIntoCertmonger(t *testing.T, token string, ours func(t *testing.T, dir, crt, cn string) string) {
	const cn = "monger-9.example.com"
	const daemon = "/usr/lib/certmonger/certmonger-session"
	needtest.Program(t, daemon, "certmonger")
	needtest.Program(t, "getcert", "certmonger")
	bus := needtest.Program(t, "dbus-run-session", "dbus-daemon")
	steps := commands(t, s.page(t, token, "/connect/corp?for=certmonger&cn="+cn, nil))
	dir := t.TempDir()
	var script strings.Builder
	for _, name := range []string{"REQUESTS_DIR", "CAS_DIR", "LOCAL_CA_DIR", "CONFIG_DIR", "TMPDIR"} {
		path := filepath.Join(dir, strings.ToLower(name))
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&script, "export CERTMONGER_%s=%s\n", name, path)
	}
	fmt.Fprintf(&script, "%s -n & daemon=$!\ntrap 'kill $daemon; wait $daemon' EXIT\nfor i in $(seq 100); do getcert list-cas -s >/dev/null 2>&1 && break; sleep .1; done\n", daemon)
	script.WriteString(strings.Join(steps, ""))
	whole := strings.NewReplacer("sudo getcert add-scep-ca", "getcert add-scep-ca -s", "sudo getcert request", "getcert request -s", "sudo getcert list", "getcert list -s",
		"/etc/ssl/private/", dir+"/", "/etc/ssl/certs/", dir+"/").Replace(script.String())
	cmd := exec.CommandContext(t.Context(), bus, "--", "bash", "-c", whole)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "MONITORING") {
		t.Fatalf("%v\n%s\n%s", err, whole, out)
	}
	ours(t, dir, cn+".crt", cn)
}

// TestTrustIsReloaded: an administrator has the box read a bundle of EST again. Whom it names is let in
// from then on and nobody else; what cannot be used changes nothing.
func TestTrustIsReloaded(t *testing.T) {
	site := variant(t, nil)
	s := startSite(t, site, tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	x := newShell(t, s, tlsRoot(t, s))
	x.run(fmt.Sprintf(`signed() { request $1 $1.factory.test; openssl req -inform DER -in $1.der -out $1.csr; openssl x509 -req -in $1.csr -CA $2.crt -CAkey $2.key -days 1 -out $1.crt 2>/dev/null; }
openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -subj "/CN=Another factory" -days 2 -out other.crt 2>/dev/null
signed a %s; signed b other`, absolute(t, demoSite+"/demo-keys/bootstrap-ca")))
	enrolls := func(when string, a, b bool) {
		t.Helper()
		for device, want := range map[string]bool{"a": a, "b": b} {
			out, err := x.try(fmt.Sprintf("request m %[1]s.meter.example.com; openssl base64 -in m.der | post --cert %[1]s.crt --key %[1]s.key $EST/iot/simpleenroll", device))
			if (err == nil) != want {
				t.Errorf("%s: device %s: %v: %s", when, device, err, out)
			}
		}
	}
	reload := func(profile string, want int) {
		t.Helper()
		if got := s.api(t, "POST", "/api/v1/admin/est/reload-trust", token, map[string]string{"path_id": profile}, nil); got != want {
			t.Errorf("reloading %s: HTTP %d, want %d", profile, got, want)
		}
	}
	bundle := filepath.Join(site, "trust/bootstrap.pem")
	enrolls("at first", true, false)
	writeFile(t, bundle, readFile(t, filepath.Join(x.dir, "other.crt")))
	enrolls("before it is read again", true, false)
	reload("iot", 200)
	enrolls("with another file", false, true)
	writeFile(t, bundle, []byte("nothing of use"))
	reload("iot", 500)
	enrolls("with a bad file", false, true)
	reload("corp", 409)
	reload("nobody", 404)

	var shown struct {
		Profiles []struct {
			Profile string `json:"path_id"`
			Anchors []struct {
				Subject string `json:"subject"`
			} `json:"trust_anchors"`
			Counters map[string]int `json:"counters"`
		}
	}
	s.api(t, "GET", "/api/v1/admin/est/profiles", token, nil, &shown)
	found := false
	for _, p := range shown.Profiles {
		found = found || p.Profile == "iot" && len(p.Anchors) == 1 && p.Anchors[0].Subject == "CN=Another factory" &&
			p.Counters["success_simpleenroll"] == 4 && p.Counters["auth_failed_mtls"] == 4 && len(p.Counters) == 12
	}
	if !found {
		t.Errorf("shown as %+v", shown)
	}
	// The page counts by the audit log, in which the refusals of a minute are one at once and the others later.
	if html := s.page(t, token, "/est", nil); !strings.Contains(html, "<dd>4 issued, ") || strings.Contains(html, "<dd>4 issued, 0 refused") {
		t.Errorf("the page counts otherwise: %s", html)
	}
	var page auditPage
	s.api(t, "GET", "/api/v1/audit?limit=500", token, nil, &page)
	count := map[string]int{}
	for _, r := range page.Records {
		if r.Action == "trust_replaced" && r.Profile == "iot" && r.Actor != "box" {
			count[r.Outcome]++
		}
	}
	if count["success"] != 1 || count["refused"] != 1 {
		t.Errorf("in the log: %v", count)
	}
}

// TestConnectBelowAnotherAuthority: the commands and the configuration profile hold where the CA certificate
// is not a root's.
func TestConnectBelowAnotherAuthority(t *testing.T) {
	site := variant(t, map[string]string{
		"site.yaml": demo(t, "site.yaml", "authorities:\n", "authorities:\n"+
			"  - {name: branch, mode: subordinate, subject: \"CN=Branch CA,O=Signet Demo\", key: {algorithm: rsa-2048, protection: resident}}\n"),
		"profiles/branch.yaml": demo(t, "profiles/corp.yaml", "default: true", "default: false", "name: corp", "name: branch", "authority: devices", "authority: branch"),
	})
	s := startSite(t, site, tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	if page := s.page(t, token, "/connect/branch?for=strongswan", nil); !strings.Contains(page, "Not ready yet") {
		t.Error("the page does not say that the authority waits for its certificate")
	}
	x := newShell(t, s, tlsRoot(t, s))
	var asked struct {
		CSR string `json:"csr"`
	}
	s.order(t, "GET", "/api/v1/authorities/branch/request", token, &asked)
	writeFile(t, filepath.Join(x.dir, "branch.csr"), []byte(asked.CSR))
	x.run(`openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 30 -subj "/CN=Offline root" -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
		printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' > ca.ext
		openssl x509 -req -in branch.csr -CA root.pem -CAkey root.key -days 20 -extfile ca.ext -out branch.pem 2>/dev/null`)
	if code, said := s.upload(t, "/api/v1/authorities/branch/chain", token, []byte(x.run("cat branch.pem root.pem"))); code != http.StatusOK {
		t.Fatalf("the chain: HTTP %d %s", code, said)
	}
	const cn = "plc-9.example.com"
	steps := commands(t, s.page(t, token, "/connect/branch?for=strongswan&cn="+cn, nil))
	typed(t, x.dir, steps[0]) // with corp's challenge: it has corp's hash
	typed(t, x.dir, steps[1])
	x.says("openssl verify -x509_strict -CAfile root.pem -untrusted branch.pem "+cn+".crt", ": OK")
	file := s.page(t, token, "/connect/branch/mobileconfig?cn="+cn, nil)
	for _, kind := range []string{"com.apple.security.pkcs1", "com.apple.security.root", "com.apple.security.scep"} {
		if n := strings.Count(file, "<string>"+kind+"</string>"); n != 1 {
			t.Errorf("%d payloads of %s", n, kind)
		}
	}
}
