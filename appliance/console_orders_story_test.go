package appliance_test

// The administrator's part of the story in console_story_test.go.

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"signet.internal/appliance/audit"
	"signet.internal/webui/browsertest"
)

// trust walks SCEP and EST, and has bundles read again that are broken on the disk, and mended.
func (c *consoleStory) trust(t *testing.T) {
	c.be("ada")
	c.See("scep", "/scep", "#scep-profiles")
	c.Press(`a[href$="#intune-intune"]`, "#intune-intune")
	c.Look("scep-intune")
	c.Reload("#intune-intune")
	c.Press(`.tabs a[href="/scep?tab=activity"]`, "#enrollments")
	c.Look("scep-activity")
	c.Reads("#enrollments", "printer-3f.example.com")
	c.Press(`.chips a[href$="show=renewal"]`, `.chips a[aria-current][href$="show=renewal"]`)
	if got := c.Text("main"); strings.Contains(got, "printer-3f.example.com") {
		t.Errorf("a first certificate is among the renewals: %s", got)
	}
	c.Back("#enrollments")
	c.Back("#intune-intune")
	c.See("est", "/est", "#est-profiles")
	c.See("est-activity", "/est?tab=activity", "#enrollments")
	c.Reads("#enrollments", "plc-7.example.com")
	for _, x := range []struct{ page, profile, card, file string }{
		{"/scep?tab=intune", "intune", "#intune-intune", "trust/connector.pem"},
		{"/est?tab=trust", "iot", "#trust-iot", "trust/bootstrap.pem"},
	} {
		path := filepath.Join(c.site, x.file)
		good := readFile(t, path)
		writeFile(t, path, []byte("half a file"))
		name := strings.Trim(strings.SplitN(x.page, "?", 2)[0], "/")
		c.Open(x.page, x.card)
		before := c.Text(x.card + " tbody")
		c.Press(x.card+" a.button", "dialog:modal")
		c.Press("dialog form button", "dialog:modal #reload-problem")
		c.Reads("#reload-problem", "no certificate in it")
		c.Look(name + "-reload-refused")
		c.Reads(x.card+" tbody", before)
		writeFile(t, path, good)
		c.Press("dialog form button", ".done")
		if c.Has("dialog") > 0 {
			t.Error("the dialog stays open")
		}
		c.Reads(x.card+" tbody", before)
		c.Look(name + "-reloaded")
	}
}

// challenge replaces the challenge of profile corp and goes back to the baked one.
func (c *consoleStory) challenge(t *testing.T) {
	c.be("ada")
	const badge = ".badge.warn"
	marked := func(want bool) {
		t.Helper()
		for path, selector := range map[string]string{"/profiles/corp": ".settings li:first-child", "/scep": `#scep-profiles article:has(a[href="/profiles/corp"])`, "/profiles": `#profile-list tr:has(a[href="/profiles/corp"])`, "/": `#profiles li:has(a[href="/profiles/corp"])`} {
			c.Open(path, selector)
			if got := strings.Contains(c.Text(selector), "not baked"); got != want && (path == "/profiles/corp" || c.device == "") {
				t.Errorf("%s says not baked: %v, want %v: %s", path, got, want, c.Text(selector))
			}
		}
	}
	c.Open("/connect/corp?for=strongswan&cn=lamp-1.example.com", ".guide-step")
	script := c.Commands(".guide-step:first-of-type")[0]
	by := func(challenge string, want bool) {
		t.Helper()
		out, err := run(t, t.TempDir(), "bash", "-c", strings.Replace(script, "CHALLENGE='corp-demo-challenge'", "CHALLENGE='"+challenge+"'", 1))
		if (err == nil) != want {
			t.Errorf("by %s: %v: %s", challenge, err, out)
		}
	}
	// The password of the set-up is replaced as well: back with it first, by its own dialog.
	c.Open("/profiles/corp", ".settings")
	c.twice(c.linkOf(`a[href$="do=password-baked&of=device"]`), ".danger", ".done", "#password-baked-problem", "baked")
	c.password(t)
	c.device = ""
	marked(false)
	c.Open("/profiles/corp", ".settings")
	c.Press(`a[href$="do=challenge"]`, "dialog:modal")
	c.Click("dialog summary")
	c.Write("#hash", "plain")
	c.Enter("#hash", "dialog:modal #challenge-problem")
	c.Look("challenge-refused")
	c.Press(`dialog input[name=generate] ~ .choices .danger`, ".new-secret")
	c.Look("challenge-made")
	made := strings.TrimSpace(c.Text(".new-secret code"))
	marked(true)
	issued, refused := c.since(t, "corp")
	by("corp-demo-challenge", false)
	by(made, true)
	c.See("profile-not-baked", "/profiles/corp", ".settings "+badge)
	c.twice(c.linkOf(`a[href$="do=challenge-baked"]`), ".danger", ".done", "#challenge-baked-problem", "baked")
	marked(false)
	by(made, false)
	by("corp-demo-challenge", true)
	// A minute's refusals of one kind from one source are one record.
	if i, r := c.since(t, "corp"); i != issued+2 || r <= refused || r > refused+2 {
		t.Errorf("since the box started %d were issued and %d refused, before two and two more %d and %d", i, r, issued, refused)
	}
}

// password replaces the password of EST user device, and goes back to the baked one.
func (c *consoleStory) password(t *testing.T) {
	c.Open("/profiles/corp?do=password&of=device", "dialog:modal")
	c.Click("dialog summary")
	c.Write("#hash", "plain")
	c.Enter("#hash", "dialog:modal #password-problem")
	c.Press(`dialog input[name=generate] ~ .choices .danger`, ".new-secret")
	c.Open("/profiles/corp?do=password-baked&of=device", "dialog:modal")
	c.Press("dialog .danger", ".done")
}

// since is what the page of SCEP says a profile issued and refused since the box started.
func (c *consoleStory) since(t *testing.T, profile string) (issued, refused int) {
	t.Helper()
	c.Open("/scep", "#scep-profiles")
	card := c.Text(`#scep-profiles article:has(a[href="/profiles/` + profile + `"])`)
	_, said, _ := strings.Cut(card, "Since the box started")
	if _, err := fmt.Sscanf(strings.TrimSpace(said), "%d issued, %d refused", &issued, &refused); err != nil {
		t.Fatalf("the card of %s: %v: %s", profile, err, card)
	}
	return issued, refused
}

// secret enters the key of the webhook that profile modern asks, without which it issues nothing.
func (c *consoleStory) secret(t *testing.T) {
	c.be("ada")
	if c.enrollsModern(t) || len(c.hook.questions()) > 0 {
		t.Error("modern issues without the webhook's key")
	}
	c.See("overview-secret", "/", "#attention")
	c.Reads("#attention", "Profile modern issues nothing: the compliance webhook's key was not entered yet.")
	c.Open("/profiles/modern", ".settings")
	c.Press(`a[href*="do=secret"]`, "dialog:modal #value")
	c.Write("#value", "whsec_AAAA")
	c.Press("dialog form button", "dialog:modal #secret-problem")
	c.Look("secret-refused")
	if c.Has(`#value[value]:not([value=""])`) > 0 {
		t.Error("the secret is shown again")
	}
	c.Write("#value", "whsec_"+base64.StdEncoding.EncodeToString(c.hook.key))
	c.Press("dialog form button", ".done")
	c.Look("secret-entered")
	if strings.Contains(c.Body(), "whsec_") {
		t.Error("the secret is on the page")
	}
	if !c.enrollsModern(t) || len(c.hook.questions()) != 1 {
		t.Error("with its key the webhook was not asked, or nothing issued")
	}
}

// rollover prepares the next generation of authority modern and activates it.
func (c *consoleStory) rollover(t *testing.T) {
	c.be("ada")
	c.See("authorities", "/authorities", "#authority-list")
	c.See("authority", "/authorities/modern", "#rollover")
	if n := c.Has("main .badge.warn, main .badge.bad"); n > 0 {
		t.Errorf("%d badges warn of an authority that is new: %s", n, c.Body())
	}
	prepare := func() { c.Press(`form[action$="/next"] button`, ".done") }
	prepare()
	c.Look("authority-prepared")
	c.Press(`a[href$="do=activate"]`, "dialog:modal .danger")
	c.Look("authority-activate")
	if code := c.s.api(t, "DELETE", "/api/v1/authorities/modern/next", c.token, nil, nil); code >= 300 { // by somebody else, meanwhile
		t.Fatalf("cancelling: HTTP %d", code)
	}
	c.Press("dialog .danger", "#activate-problem")
	c.Look("authority-activate-refused")
	if top := browsertest.Eval[float64](c.Tab, `document.querySelector("#activate-problem").getBoundingClientRect().top`); top > 600 {
		t.Errorf("the refusal is %.0f px down, where nobody looks", top)
	}
	c.Open("/authorities/modern", "#rollover")
	prepare()
	c.Press(`a[href$="do=cancel"]`, "dialog:modal .danger")
	c.Look("authority-cancel")
	c.twice("/authorities/modern?do=cancel", ".danger", ".done", "#cancel-problem", "no next generation")
	prepare()
	c.Press(`a[href$="do=activate"]`, "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	c.Look("authority-activated")
	issuing := browsertest.Eval[string](c.Tab, `[...document.querySelectorAll(".certificate")].find(e => e.querySelector("h3").textContent.includes("issuing")).querySelectorAll("dt").values().find(e => e.textContent === "SHA-1").nextElementSibling.textContent`)
	const cn = "gate-1.example.com"
	c.Open("/connect/modern?for=strongswan&cn="+cn, ".guide-step")
	_, dir := c.enrolls(cn, c.Commands(".guide-step:first-of-type")[0])
	sha1 := mustRun(t, dir, "bash", "-c", "openssl x509 -in signet-ca.pem -noout -fingerprint -sha1 | tr -d : | cut -d= -f2")
	if !strings.EqualFold(strings.TrimSpace(sha1), strings.TrimSpace(issuing)) {
		t.Errorf("the device got a certificate of %s, the page says that %s issues", sha1, issuing)
	}
	mustRun(t, dir, "openssl", "verify", "-CAfile", "signet-ca.pem", cn+".crt")
}

// auditLog searches, has a record verified, and takes proof, export and key home.
func (c *consoleStory) auditLog(t *testing.T) {
	c.be("arno")
	c.See("audit", "/audit", ".records")
	c.Write("#q", "door-1.approve.test")
	c.Choose("#outcome", "success")
	c.Enter("#q", ".records")
	if got := c.Text(".records tbody"); !strings.Contains(got, "door-1.approve.test") || strings.Contains(got, "plc-7") {
		t.Errorf("the search finds %s", got)
	}
	c.Look("audit-search")
	c.See("audit-none", "/audit?q=nobody", ".empty")
	c.Open("/audit?q=door-1.approve.test&action=request_approved", ".records")
	c.Press(".records .time a", "#proof")
	c.Press(`a[href$="?do=verify#proof"]`, ".verdict")
	c.Reads(".verdict", "exactly as shown")
	if c.Has(".proof-steps .bad") > 0 {
		t.Error("a step of the proof is wrong")
	}
	c.Look("record")
	name, content := c.Download(`a[href$="/proof.json"]`)
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

	c.Open("/audit", ".records")
	_, text := c.Download(`a[href="/api/v1/audit/key"]`)
	if strings.TrimSpace(string(text)) != strings.TrimSpace(p.Key) {
		t.Errorf("the key is %s, and in the proof %s", text, p.Key)
	}
	name, export := c.Download(`a[href="/api/v1/audit/export"]`)
	report, err := audit.Verify(bytes.NewReader(export), key)
	if err != nil || report.Records <= p.Index || !strings.HasSuffix(name, ".ndjson") {
		t.Errorf("%s: %+v, %v", name, report, err)
	}
	changed := bytes.Replace(export, []byte("door-1.approve.test"), []byte("door-2.approve.test"), 1)
	if _, err := audit.Verify(bytes.NewReader(changed), key); err == nil {
		t.Error("a changed export is good as well")
	}
	name, kept := c.Download(`a[href="/api/v1/audit/checkpoint"]`)
	if name != "signet-checkpoint.txt" {
		t.Errorf("the checkpoint is in %s", name)
	}
	c.compares(string(kept), ".verdict.good", "the log continues this checkpoint")
	c.Look("audit-continues")
	if code := c.s.api(t, "POST", "/api/v1/tokens", c.token, map[string]string{"name": "one record more"}, nil); code >= 300 {
		t.Fatalf("a token: HTTP %d", code)
	}
	c.compares(string(kept), ".verdict.good", "the log continues this checkpoint")
	lines := strings.SplitN(string(kept), "\n", 3)
	c.compares(lines[0]+"\n1\n"+lines[2], "#checkpoint-problem", "did not sign this checkpoint")
	c.Look("audit-continues-not")
	c.compares("nothing of the kind", "#checkpoint-problem", "no signed checkpoint")
}

// compares has the page hold the log against a checkpoint.
func (c *consoleStory) compares(checkpoint, verdict string, says ...string) {
	c.T.Helper()
	c.Open("/audit", "#checkpoint")
	c.Write("#checkpoint", checkpoint)
	c.Press(`section[aria-labelledby="continues"] button`, verdict)
	c.Reads(verdict, says...)
}

func (c *consoleStory) box(t *testing.T) {
	c.be("ada")
	c.See("box", "/box", "#tpm")
	name, bundle := c.Download(`a[href="/api/v1/support-bundle"]`)
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
	c.Open("/account?do=token", "dialog:modal #token-name")
	c.Look("token")
	if n := c.Has(`dialog input[name="profile"]`); n != 1 {
		t.Errorf("%d profiles to mint for; one takes challenges that are minted", n)
	}
	c.Write("#token-name", "  ")
	c.Click(`dialog input[value="iot"]`)
	c.Press("dialog form button", "dialog:modal #token-problem")
	c.Look("token-refused")
	c.Write("#token-name", "Jamf") // the profile stays ticked, and the role follows it
	c.Press("dialog form button", ".secrets")
	c.Reads(".secrets", "makes challenges at iot, and can do nothing else")
	c.Look("token-made")
	token := strings.TrimSpace(c.Text(".secrets code"))
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
	c.Open("/users", "#tokens")
	c.Reads("#tokens ~ table", "Jamf", "make challenges at iot")

	c.See("tls", "/tls", "#tls-certificates")
	if _, request := c.Download(`a[href="/tls/ecdsa.csr.pem"]`); !bytes.HasPrefix(request, []byte("-----BEGIN CERTIFICATE REQUEST-----")) {
		t.Errorf("the request is %s", request)
	}
	file := filepath.Join(t.TempDir(), "tls.pem")
	writeFile(t, file, []byte("not a certificate"))
	c.Upload("#chain-files", file)
	c.Press(`form[action="/tls/chain"] button`, "#chain-problem")
	c.Look("tls-refused")
}

// rest looks at what the story did not come to, and that it came to every page of the navigation.
func (c *consoleStory) rest(t *testing.T) {
	c.be("ada")
	c.See("not-found", "/nowhere", "#refusal")
	c.See("account", "/account", "#sessions")
	c.See("user", "/users/olga", "#user")
	c.See("connect", "/connect", "#connect-profiles")
	c.See("connect-apple", "/connect/iot?for=apple&cn=ipad-1", ".guide-step")
	c.See("connect-ios", "/connect/corp?for=ios&cn=switch-1", ".guide-step")
	c.See("connect-intune", "/connect/intune?for=intune", ".guide-step")
	c.See("profiles", "/profiles", "#profile-list")
	c.See("profile-off", "/profiles/iot?do=off", "dialog:modal")
	c.See("ra-rotate", "/authorities?do=rotate", "dialog:modal")
	c.See("mscep", "/certsrv/mscep_admin/", "#cn")
	c.See("end", "/", "#attention")
	for _, path := range browsertest.Eval[[]string](c.Tab, `[...document.querySelectorAll("nav.sections a")].map(a => a.pathname)`) {
		if !c.Looked(path) {
			t.Errorf("nobody looked at %s", path)
		}
	}
	// What is not said with a link is not asked for: no page leads nowhere.
	for _, path := range browsertest.Eval[[]string](c.Tab, `[...document.querySelectorAll("main a[href^='/']")].map(a => a.getAttribute("href"))`) {
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
