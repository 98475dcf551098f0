package appliance_test

// The administrator's part of the story in console_story_test.go.

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"signet.internal/appliance/audit"
)

// trust walks SCEP and EST, and has bundles read again that are broken on the disk, and mended.
func (c *consoleStory) trust(t *testing.T) {
	c.be("ada")
	c.see("scep", "/scep", "#scep-profiles")
	c.press(`a[href$="#intune-intune"]`, "#intune-intune")
	c.look("scep-intune")
	c.do("reload", chromedp.Reload(), c.shows("#intune-intune"))
	c.press(`.tabs a[href="/scep?tab=activity"]`, "#enrollments")
	c.look("scep-activity")
	c.reads("#enrollments", "printer-3f.example.com")
	c.press(`.chips a[href$="show=renewal"]`, `.chips a[aria-current][href$="show=renewal"]`)
	if got := c.text("main"); strings.Contains(got, "printer-3f.example.com") {
		t.Errorf("a first certificate is among the renewals: %s", got)
	}
	c.do("back, twice", chromedp.NavigateBack(), c.shows("#enrollments"), chromedp.NavigateBack(), c.shows("#intune-intune"))
	c.see("est", "/est", "#est-profiles")
	c.see("est-activity", "/est?tab=activity", "#enrollments")
	c.reads("#enrollments", "plc-7.example.com")
	for _, x := range []struct{ page, profile, card, file string }{
		{"/scep?tab=intune", "intune", "#intune-intune", "trust/connector.pem"},
		{"/est?tab=trust", "iot", "#trust-iot", "trust/bootstrap.pem"},
	} {
		path := filepath.Join(c.site, x.file)
		good := readFile(t, path)
		writeFile(t, path, []byte("half a file"))
		name := strings.Trim(strings.SplitN(x.page, "?", 2)[0], "/")
		c.open(x.page, x.card)
		before := c.text(x.card + " tbody")
		c.press(x.card+" a.button", "dialog:modal")
		c.press("dialog form button", "dialog:modal #reload-problem")
		c.reads("#reload-problem", "no certificate in it")
		c.look(name + "-reload-refused")
		c.reads(x.card+" tbody", before)
		writeFile(t, path, good)
		c.press("dialog form button", ".done")
		if c.has("dialog") > 0 {
			t.Error("the dialog stays open")
		}
		c.reads(x.card+" tbody", before)
		c.look(name + "-reloaded")
	}
}

// challenge replaces the challenge of profile corp and goes back to the baked one.
func (c *consoleStory) challenge(t *testing.T) {
	c.be("ada")
	const badge = ".badge.warn"
	marked := func(want bool) {
		t.Helper()
		for path, selector := range map[string]string{"/profiles/corp": ".settings li:first-child", "/scep": `#scep-profiles article:has(a[href="/profiles/corp"])`, "/profiles": `#profile-list tr:has(a[href="/profiles/corp"])`, "/": `#profiles li:has(a[href="/profiles/corp"])`} {
			c.open(path, selector)
			if got := strings.Contains(c.text(selector), "not baked"); got != want && (path == "/profiles/corp" || c.device == "") {
				t.Errorf("%s says not baked: %v, want %v: %s", path, got, want, c.text(selector))
			}
		}
	}
	c.open("/connect/corp?for=strongswan&cn=lamp-1.example.com", ".guide-step")
	script := c.commands(".guide-step:first-of-type")[0]
	by := func(challenge string, want bool) {
		t.Helper()
		out, err := run(t, t.TempDir(), "bash", "-c", strings.Replace(script, "CHALLENGE='corp-demo-challenge'", "CHALLENGE='"+challenge+"'", 1))
		if (err == nil) != want {
			t.Errorf("by %s: %v: %s", challenge, err, out)
		}
	}
	// The password of the set-up is replaced as well: back with it first, by its own dialog.
	c.open("/profiles/corp", ".settings")
	c.press(`a[href$="do=password-baked&of=device"]`, "dialog:modal")
	c.press("dialog .danger", ".done")
	c.device = ""
	marked(false)
	c.open("/profiles/corp", ".settings")
	c.press(`a[href$="do=challenge"]`, "dialog:modal")
	c.do("a hash of one's own", chromedp.Click(chromedp.CSS("dialog summary")), chromedp.SendKeys(chromedp.CSS("#hash"), "plain"), chromedp.Submit(chromedp.CSS("#hash")), c.shows("dialog:modal #challenge-problem"))
	c.look("challenge-refused")
	c.press(`dialog input[name=generate] ~ .choices .danger`, ".new-secret")
	c.look("challenge-made")
	made := strings.TrimSpace(c.text(".new-secret code"))
	marked(true)
	by("corp-demo-challenge", false)
	by(made, true)
	c.see("profile-not-baked", "/profiles/corp", ".settings "+badge)
	c.press(`a[href$="do=challenge-baked"]`, "dialog:modal")
	c.press("dialog .danger", ".done")
	marked(false)
	by(made, false)
	by("corp-demo-challenge", true)
}

// rollover prepares the next generation of authority modern and activates it.
func (c *consoleStory) rollover(t *testing.T) {
	c.be("ada")
	c.see("authorities", "/authorities", "#authority-list")
	c.see("authority", "/authorities/modern", "#rollover")
	if n := c.has("main .badge.warn, main .badge.bad"); n > 0 {
		t.Errorf("%d badges warn of an authority that is new: %s", n, c.body())
	}
	prepare := func() { c.press(`form[action$="/next"] button`, ".done") }
	prepare()
	c.look("authority-prepared")
	c.press(`a[href$="do=activate"]`, "dialog:modal .danger")
	c.look("authority-activate")
	if code := c.s.api(t, "DELETE", "/api/v1/authorities/modern/next", c.token, nil, nil); code >= 300 { // by somebody else, meanwhile
		t.Fatalf("cancelling: HTTP %d", code)
	}
	c.press("dialog .danger", "#activate-problem")
	c.look("authority-activate-refused")
	if top := eval[float64](c.visitor, `document.querySelector("#activate-problem").getBoundingClientRect().top`); top > 600 {
		t.Errorf("the refusal is %.0f px down, where nobody looks", top)
	}
	c.open("/authorities/modern", "#rollover")
	prepare()
	c.press(`a[href$="do=cancel"]`, "dialog:modal .danger")
	c.look("authority-cancel")
	c.press("dialog .danger", ".done")
	prepare()
	c.press(`a[href$="do=activate"]`, "dialog:modal .danger")
	c.press("dialog .danger", ".done")
	c.look("authority-activated")
	issuing := eval[string](c.visitor, `[...document.querySelectorAll(".certificate")].find(e => e.querySelector("h3").textContent.includes("issuing")).querySelectorAll("dt").values().find(e => e.textContent === "SHA-1").nextElementSibling.textContent`)
	const cn = "gate-1.example.com"
	c.open("/connect/modern?for=strongswan&cn="+cn, ".guide-step")
	_, dir := c.enrolls(cn, c.commands(".guide-step:first-of-type")[0])
	sha1 := mustRun(t, dir, "bash", "-c", "openssl x509 -in signet-ca.pem -noout -fingerprint -sha1 | tr -d : | cut -d= -f2")
	if !strings.EqualFold(strings.TrimSpace(sha1), strings.TrimSpace(issuing)) {
		t.Errorf("the device got a certificate of %s, the page says that %s issues", sha1, issuing)
	}
	mustRun(t, dir, "openssl", "verify", "-CAfile", "signet-ca.pem", cn+".crt")
}

// auditLog searches, has a record verified, and takes proof, export and key home.
func (c *consoleStory) auditLog(t *testing.T) {
	c.be("arno")
	c.see("audit", "/audit", ".records")
	c.write("#q", "door-1.approve.test")
	c.do("searching", chromedp.SetValue(chromedp.CSS("#outcome"), "success"), chromedp.Submit(chromedp.CSS("#q")), chromedp.WaitNotPresent(chromedp.CSS(`.records a[href="/audit/0"]`)), c.shows(".records"))
	if got := c.text(".records tbody"); !strings.Contains(got, "door-1.approve.test") || strings.Contains(got, "plc-7") {
		t.Errorf("the search finds %s", got)
	}
	c.look("audit-search")
	c.see("audit-none", "/audit?q=nobody", ".empty")
	c.open("/audit?q=door-1.approve.test&action=request_approved", ".records")
	c.press(".records .time a", "#proof")
	c.press(`a[href$="?do=verify#proof"]`, ".verdict")
	c.reads(".verdict", "exactly as shown")
	if c.has(".proof-steps .bad") > 0 {
		t.Error("a step of the proof is wrong")
	}
	c.look("record")
	name, content := c.download(`a[href$="/proof.json"]`)
	var p struct {
		Index, Size     uint64
		Leaf            string
		Hashes          [][]byte
		Checkpoint, Key string
	}
	if err := json.Unmarshal(content, &p); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	key, err := audit.NewVerifier(p.Key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Open([]byte(p.Checkpoint), note.VerifierList(key))
	if err != nil {
		t.Fatalf("the checkpoint: %v\n%s", err, p.Checkpoint)
	}
	root, err := base64.StdEncoding.DecodeString(strings.SplitN(signed.Text, "\n", 4)[2]) // origin, size, root
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, p.Size, rfc6962.DefaultHasher.HashLeaf([]byte(p.Leaf)), p.Hashes, root); err != nil {
		t.Errorf("the proof: %v", err)
	}
	if !strings.Contains(p.Leaf, "door-1.approve.test") || !strings.Contains(p.Leaf, "olga") {
		t.Errorf("the record is %s", p.Leaf)
	}

	c.open("/audit", ".records")
	_, text := c.download(`a[href="/api/v1/audit/key"]`)
	if strings.TrimSpace(string(text)) != strings.TrimSpace(p.Key) {
		t.Errorf("the key is %s, and in the proof %s", text, p.Key)
	}
	name, export := c.download(`a[href="/api/v1/audit/export"]`)
	report, err := audit.Verify(bytes.NewReader(export), key)
	if err != nil || report.Records <= p.Index || !strings.HasSuffix(name, ".ndjson") {
		t.Errorf("%s: %+v, %v", name, report, err)
	}
	changed := bytes.Replace(export, []byte("door-1.approve.test"), []byte("door-2.approve.test"), 1)
	if _, err := audit.Verify(bytes.NewReader(changed), key); err == nil {
		t.Error("a changed export is good as well")
	}
	if name, _ := c.download(`a[href="/api/v1/audit/checkpoint"]`); name != "signet-checkpoint.txt" {
		t.Errorf("the checkpoint is in %s", name)
	}
}

func (c *consoleStory) box(t *testing.T) {
	c.be("ada")
	c.see("box", "/box", "#tpm")
	name, bundle := c.download(`a[href="/api/v1/support-bundle"]`)
	files, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil || len(files.File) < 3 {
		t.Fatalf("%s: %v", name, err)
	}
	for _, f := range files.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{c.token, c.passwords["ada"], c.passwords["olga"], "demo-challenge", "argon2id", "door-1.approve.test"} {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s of the support bundle has %q", f.Name, secret)
			}
		}
	}

	// A token that can do one thing.
	c.open("/account?do=token", "dialog:modal #token-name")
	c.look("token")
	if n := c.has(`dialog input[name="profile"]`); n != 1 {
		t.Errorf("%d profiles to mint for; one takes challenges that are minted", n)
	}
	c.write("#token-name", "  ")
	c.do("the profile", chromedp.Click(chromedp.CSS(`dialog input[value="iot"]`)))
	c.press("dialog form button", "dialog:modal #token-problem")
	c.look("token-refused")
	c.write("#token-name", "Jamf") // the profile stays ticked, and the role follows it
	c.press("dialog form button", ".secrets")
	c.reads(".secrets", "makes challenges at iot, and can do nothing else")
	c.look("token-made")
	token := strings.TrimSpace(c.text(".secrets code"))
	for _, x := range []struct {
		method, path, profile string
		want                  int
	}{{"POST", "/api/v1/challenges", "iot", 200}, {"POST", "/api/v1/challenges", "corp", 403}, {"GET", "/api/v1/status", "", 403}} {
		var in any
		if x.profile != "" {
			in = map[string]string{"profile": x.profile, "cn": "ipad-1"}
		}
		if code := c.s.api(t, x.method, x.path, token, in, nil); code != x.want {
			t.Errorf("%s %s of %q with the token: HTTP %d, want %d", x.method, x.path, x.profile, code, x.want)
		}
	}
	c.open("/users", "#tokens")
	c.reads("#tokens ~ table", "Jamf", "mint for iot")

	c.see("tls", "/tls", "#tls-certificates")
	if _, request := c.download(`a[href="/tls/ecdsa.csr.pem"]`); !bytes.HasPrefix(request, []byte("-----BEGIN CERTIFICATE REQUEST-----")) {
		t.Errorf("the request is %s", request)
	}
	file := filepath.Join(t.TempDir(), "tls.pem")
	writeFile(t, file, []byte("not a certificate"))
	c.do("a wrong file", chromedp.SetUploadFiles(chromedp.CSS("#chain-files"), []string{file}), chromedp.Click(chromedp.CSS(`form[action="/tls/chain"] button`)), c.shows("#chain-problem"))
	c.look("tls-refused")
}

// rest looks at what the story did not come to, and that it came to every page of the navigation.
func (c *consoleStory) rest(t *testing.T) {
	c.be("ada")
	c.see("not-found", "/nowhere", "#refusal")
	c.see("account", "/account", "#sessions")
	c.see("user", "/users/olga", "#user")
	c.see("connect", "/connect", "#connect-profiles")
	c.see("connect-apple", "/connect/iot?for=apple&cn=ipad-1", ".guide-step")
	c.see("connect-ios", "/connect/corp?for=ios&cn=switch-1", ".guide-step")
	c.see("connect-intune", "/connect/intune?for=intune", ".guide-step")
	c.see("profiles", "/profiles", "#profile-list")
	c.see("profile-off", "/profiles/iot?do=off", "dialog:modal")
	c.see("ra-rotate", "/authorities?do=rotate", "dialog:modal")
	c.see("mscep", "/certsrv/mscep_admin/", "#cn")
	c.see("end", "/", "#attention")
	for _, path := range eval[[]string](c.visitor, `[...document.querySelectorAll("nav.sections a")].map(a => a.pathname)`) {
		if !c.looked[path] {
			t.Errorf("nobody looked at %s", path)
		}
	}
	// What is not said with a link is not asked for: no page leads nowhere.
	for _, path := range eval[[]string](c.visitor, `[...document.querySelectorAll("main a[href^='/']")].map(a => a.getAttribute("href"))`) {
		req, err := http.NewRequest("GET", c.s.ready.Console+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		resp, err := c.s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("the overview leads to %s: HTTP %d", path, resp.StatusCode)
		}
	}
}
