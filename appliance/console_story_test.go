package appliance_test

// What an administrator, an operator and an auditor do with a box in its first hour, in Chromium against the
// whole service on swtpm, with devices by strongSwan and curl that do what the pages say. It does not prove
// that a person understands the pages, nor passkeys of real authenticators.

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
	"signet.internal/webui/browsertest"
)

// consoleStory is a visitor who becomes one person after the other.
type consoleStory struct {
	*visitor
	site      string            // directory
	token     string            // of ada, for what others do meanwhile
	passwords map[string]string // by user
	who       string            // is signed in
	device    string            // password of EST user device in profile corp
	held1     heldDevice        // the first that had to wait
	hook      *webhook          // that profile modern asks
	chapter   string
	orders    []ordered
}

func TestConsole(t *testing.T) {
	needtest.Program(t, "pki", "strongswan-pki")
	needtest.Program(t, "curl", "curl")
	needtest.Program(t, "openssl", "openssl")
	hook := newWebhook(t)
	site := variant(t, map[string]string{
		"profiles/modern.yaml": demo(t, "profiles/modern.yaml") + "\ncompliance: {url: \"" + hook.URL + "\", roots: trust/compliance.pem}\n",
		"trust/compliance.pem": string(pemOf("CERTIFICATE", hook.Certificate().Raw)),
	})
	c := &consoleStory{site: site, hook: hook, passwords: map[string]string{}}
	c.visitor = visit(t, startSite(t, site, tpmtest.Start(t), t.TempDir(), nil))
	for _, chapter := range []struct {
		name string
		f    func(t *testing.T)
	}{
		{"claim", c.claimed},
		{"the first devices", c.firstDevices},
		{"password and passkey", c.passkey},
		{"three roles", c.roles},
		{"a request that is held", c.held},
		{"a certificate is revoked", c.revoked},
		{"without JavaScript", c.withoutScripts},
		{"SCEP and EST", c.trust},
		{"a challenge is replaced", c.challenge},
		{"a secret is entered", c.secret},
		{"the next generation of an authority", c.rollover},
		{"the audit log", c.auditLog},
		{"box, tokens and TLS", c.box},
		{"people", c.people},
		{"every other dialog", c.dialogs},
		{"every other page", c.rest},
		{"no dialog is left", c.noDialogIsLeft},
	} {
		ok := t.Run(chapter.name, func(t *testing.T) {
			c.T, c.chapter = t, chapter.name
			defer c.note()
			begun := time.Now()
			chapter.f(t)
			t.Logf("%.1f s", time.Since(begun).Seconds())
		})
		c.T = t
		if !ok && len(c.passwords) < 3 {
			return // there is nobody who could do the rest
		}
	}
}

// be signs in as a user, by password.
func (c *consoleStory) be(user string) {
	c.T.Helper()
	if c.who == user {
		return
	}
	c.leave()
	c.Write("#user", user)
	c.Write("#password", c.passwords[user])
	c.Enter("#password", "header .who")
	c.Reads("header .who-name", user)
	c.who = user
}

// leave signs out.
func (c *consoleStory) leave() {
	c.T.Helper()
	c.Open("/", "main")
	if c.Has(`form[action="/sign-out"]`) > 0 {
		c.Press(`form[action="/sign-out"] button`, "#user")
	}
	c.who = ""
}

// enrolls runs a script of a page in a directory of its own and returns the certificate's serial.
func (c *consoleStory) enrolls(cn, script string, words ...string) (serial, dir string) {
	c.T.Helper()
	dir = c.T.TempDir()
	typed(c.T, dir, script, words...)
	cert := certificatesIn(c.T, filepath.Join(dir, cn+".crt"))[0]
	if cert.Subject.CommonName != cn {
		c.T.Errorf("%s got a certificate for %s", cn, cert.Subject)
	}
	return fmt.Sprintf("%x", cert.SerialNumber.Bytes()), dir
}

func (c *consoleStory) claimed(t *testing.T) {
	c.See("unclaimed", "/audit", "#code")
	if !strings.HasPrefix(c.At(), c.Origin+"/sign-in") {
		t.Errorf("a stranger is at %s", c.At())
	}
	c.Open("/", "#code")
	c.Write("#code", "AAAA-AAAA")
	c.Write("#claim-user", "ada")
	c.Press(".panel button", "#claim-problem")
	c.Reads("#claim-problem", "claim code is wrong")
	c.Look("claim-refused")
	c.Write("#code", strings.ToLower(c.s.ready.ClaimCode))
	c.Press(".panel button", ".secrets")
	c.Look("claimed")
	if n := c.Has(".secrets button.copy:not([hidden])"); n != 2 {
		t.Errorf("%d of password and token can be copied", n)
	}
	c.passwords["ada"] = c.Text(".secrets dd:nth-of-type(2) code")
	c.token = c.Text(".secrets dd:nth-of-type(3) code")
	c.who = "ada"
	c.Press(`a[href="/setup"]`, "#arrivals")
}

// firstDevices goes from the set-up to devices that show up on it, in another tab as the page says.
func (c *consoleStory) firstDevices(t *testing.T) {
	c.Look("setup")
	challenge := strings.TrimSpace(c.Text(".walk .copyable code"))
	c.Click(".walk li:nth-child(3) summary")
	c.Press(`input[value="password"] ~ button`, ".walk [role=status]")
	c.device = strings.TrimSpace(c.Text(".walk .copyable code"))
	if c.device == "" || c.device == challenge {
		t.Fatalf("the password is %q", c.device)
	}
	c.Look("setup-made")
	c.Reads(".walk", challenge) // which is for SCEP still
	browsertest.Eval[bool](c.Tab, `window.isFirstLoad = true`)

	tab, leave := c.Beside(`section[aria-labelledby="connect"] button[value="strongswan"]`, "#step-name")
	defer leave()
	const swan = "printer-3f.example.com"
	named := func(cn string) {
		tab.Write("#cn", cn)
		tab.Press(`form[action="/connect/corp"] button`, `#cn[value="`+cn+`"]`)
	}
	named(swan)
	tab.Look("connect-strongswan")
	tab.Reads("#step-proof ~ ul", challenge)
	tab.Reads("#addresses ~ .cards", "SCEP, for TLS 1.2 too", "SCEP, without TLS", "EST, for TLS 1.2 too")
	c.enrolls(swan, tab.Commands(".guide-step:first-of-type")[0])
	c.Front()
	arrived := func(cn string) string {
		return `window.isFirstLoad && document.querySelector("#arrivals").textContent.includes(` + "`" + cn + "`" + `)`
	}
	c.Until("the printer is on the page", arrived(swan))
	c.Look("setup-arrived")

	const curl = "plc-7.example.com"
	tab.Front()
	tab.Press(`.kinds button[value="curl"]`, `.kinds button[value="curl"][aria-current]`)
	named(curl)
	tab.Look("connect-curl")
	tab.Reads(".guide-step", "Paste it as it is")
	if strings.Contains(tab.At(), c.device) {
		t.Error("the password is in the address")
	}
	c.enrolls(curl, tab.Commands(".guide-step:first-of-type")[0])
	c.Front()
	c.Until("the controller is on the page", arrived(curl))
	if got := strings.TrimSpace(c.Text(".walk .copyable code")); got != c.device {
		t.Errorf("the password on the page became %q", got)
	}
	c.Press(`#arrivals a.button`, "#attention")
	c.Reads("#newest", swan, curl)
	c.Look("overview")
	if _, err := run(t, t.TempDir(), "bash", "-c", strings.ReplaceAll(tab.Commands(".guide-step:first-of-type")[0], c.device, "PASSWORD")); err == nil {
		t.Error("the word PASSWORD itself was good")
	}
	c.Until("the refusal is counted without a reload", `document.querySelector("#week .figures div:nth-child(2) dd").textContent === "1"`)
}

func (c *consoleStory) passkey(t *testing.T) {
	c.Authenticator()
	c.Press("header .who", "#passkey-name")
	c.Write("#passkey-name", "work laptop")
	c.Press("#passkey-add button", ".done")
	c.Look("passkey-added")
	c.leave()
	c.Open("/sign-in?next=/certificates", "#passkey-sign-in button")
	c.Write("#user", "ada")
	c.Write("#password", "not the password")
	c.Enter("#password", "#sign-in-problem")
	c.Look("sign-in-refused")
	c.Reads("#sign-in-problem", "User name or password is wrong", "an administrator can set you a new password")
	c.Press("#passkey-sign-in button", "#list")
	c.Reads("#list", "plc-7.example.com")
	c.who = "ada"
	c.Open("/audit?action=signed_in", ".records")
	c.Reads(".records tbody tr:first-child", "ada", "passkey work laptop")
}

func (c *consoleStory) roles(t *testing.T) {
	c.be("ada")
	c.See("users", "/users", "#people")
	c.Press(`a[href="/users?do=add"]`, "dialog:modal #add-user")
	c.Write("#add-user", "ada")
	c.Press("dialog form button", "dialog:modal #add-problem")
	c.Reads("#add-problem", "already")
	c.Look("user-refused")
	for user, role := range map[string]string{"olga": "operator", "arno": "auditor"} {
		c.Open("/users?do=add", "dialog:modal #add-user")
		c.Write("#add-user", user)
		c.Click(`dialog input[value="` + role + `"]`)
		c.Press("dialog form button", ".secrets")
		c.passwords[user] = strings.TrimSpace(c.Text(".secrets dd:nth-of-type(2) code"))
	}
	c.Look("user-added")
	serial := c.serialOf("plc-7.example.com")
	for _, user := range []string{"olga", "arno"} {
		c.be(user)
		for _, path := range []string{"/scep", "/scep/intune", "/est"} {
			asked := c.Asked(func() { c.Open(path, ".gated") })
			if slices.ContainsFunc(asked, func(p string) bool { return strings.HasPrefix(p, "/api/") }) || c.Has("main form, dialog, .tabs, .card") > 0 {
				t.Errorf("%s at %s asks for %v and sees %s", user, path, asked, c.Body())
			}
			c.Reads(".gated", user, "administrators")
		}
		c.Look("scep-gated-" + user)
		c.See("users-refused-"+user, "/users", "#refusal")
		c.Open("/certificates/"+serial, "#state")
		if n := c.Has(`a[href$="do=revoke"]`); n != map[string]int{"olga": 1, "arno": 0}[user] {
			t.Errorf("%s sees %d ways to revoke", user, n)
		}
		c.Open("/connect/iot", "#step-proof")
		if n := c.Has(`form[action="/connect/iot/challenge"]`); n != map[string]int{"olga": 1, "arno": 0}[user] {
			t.Errorf("%s sees %d ways to make a challenge", user, n)
		}
	}
	// Nothing that an auditor sees orders anything, also where the address asks for a dialog.
	for path, selector := range map[string]string{"/": "#attention", "/setup": "#arrivals", "/pending": "#waiting", "/certificates": "#list", "/certificates/" + serial + "?do=revoke": "#state",
		"/connect/corp": "#addresses", "/authorities?do=rotate": "#authority-list", "/authorities/devices?do=activate": "#generations", "/profiles": "#profile-list",
		"/profiles/corp?do=off": "#rules", "/audit": "#records", "/box": "#tpm", "/tls?do=own": "#tls-certificates"} {
		c.Open(path, selector)
		if n := c.Has("main form[method=post], dialog"); n > 0 {
			t.Errorf("an auditor sees %d forms and dialogs at %s", n, path)
		}
	}
}

// serialOf is the serial of the newest certificate of cn.
func (c *consoleStory) serialOf(cn string) string {
	c.T.Helper()
	var out struct {
		Certificates []struct{ Serial string }
	}
	if code := c.s.api(c.T, "GET", "/api/v1/certificates?q="+cn, c.token, nil, &out); code != 200 || len(out.Certificates) == 0 {
		c.T.Fatalf("certificates of %s: HTTP %d, %+v", cn, code, out)
	}
	return out.Certificates[0].Serial
}

// held is a device whose name a person has to look at.
func (c *consoleStory) held(t *testing.T) {
	const cn = "door-1.approve.test"
	c.be("olga")
	c.Open("/setup?profile=iot", "#cn")
	c.Write("#cn", cn)
	c.Press(`input[value="one-time"] ~ button`, ".walk [role=status]")
	c.Look("setup-one-time")
	tab, leave := c.Beside(`section[aria-labelledby="connect"] button[value="strongswan"]`, ".made")
	defer leave()
	tab.Look("connect-minted")
	c.held1 = heldDevice{cn: cn, challenge: strings.TrimSpace(tab.Text(".made .secret"))}
	tab.Reads("#made", "Challenge for "+cn)
	tab.Reads(".guide-step", "Paste it as it is")
	tab.Reads(".guide-step:last-of-type", "Replace factory.crt and factory.key")
	tab.Reads("#step-guide ~ .hint", "approve", "Approvals")
	c.held1.script = tab.Commands(".guide-step:first-of-type")[0]
	c.Front()
	c.See("approvals-none", "/pending", "#waiting .empty")
	browsertest.Eval[bool](c.Tab, `window.isFirstLoad = true`)

	waits := c.held1.asks(t)
	c.Until("the request is on the page", `window.isFirstLoad && !!document.querySelector("#waiting tbody tr")`)
	c.Until("and in the navigation", `document.querySelector('nav a[href="/pending"]').textContent.includes("1")`)
	c.Look("approvals")
	c.Press("#waiting a.name", ".decision")
	c.Reads(".decision", cn+" ends in .approve.test")
	c.Reads("main", "Common name", "RSA 2048", "digitalSignature, keyEncipherment")
	c.Look("request")
	c.Press(`a[href$="do=deny"]`, "dialog:modal #reason")
	c.Write("#reason", "  ")
	c.Press("dialog button.danger", "dialog:modal #deny-problem")
	c.Look("request-deny-refused")
	c.Press("dialog a.quiet", ".decision button")
	c.Press(".decision form button", ".done")
	c.Look("request-approved")
	c.Reads(".done", "Approved. The certificate is issued", "Certificate of "+cn)
	if said, err := waits(); err != nil || !strings.Contains(said, "Approve it at "+c.Origin+"/pending") {
		t.Errorf("the device: %v: %s", err, said)
	}
	c.be("arno")
	c.Open("/audit?q="+cn, ".records")
	c.Reads(".records", "olga")
}

// heldDevice is one whose name a person has to look at, and what its page has it run.
type heldDevice struct{ cn, challenge, script string }

// asks has the device ask until somebody decided; waits returns what it said, and an error where it got no
// certificate. The command has strongSwan ask again each 10 seconds; here it is told to do so each second.
func (d heldDevice) asks(t *testing.T) (waits func() (said string, err error)) {
	t.Helper()
	dir, done := t.TempDir(), make(chan error, 1)
	var said string
	go func() {
		out, err := run(t, dir, "bash", "-c", strings.Replace(d.script, "--interval 10 ", "--interval 1 --maxpolltime 240 ", 1))
		said = out
		done <- err
	}()
	return func() (string, error) {
		t.Helper()
		select {
		case err := <-done:
			if err == nil {
				if cert := certificatesIn(t, filepath.Join(dir, d.cn+".crt"))[0]; cert.Subject.CommonName != d.cn {
					t.Errorf("the device got a certificate for %s", cert.Subject)
				}
			}
			return said, err
		case <-time.After(5 * time.Minute):
			t.Fatalf("%s got no answer", d.cn)
		}
		return "", nil
	}
}

// another is a second device like d, with a challenge of its own.
func (c *consoleStory) another(d heldDevice, cn string) heldDevice {
	c.T.Helper()
	var out struct{ Challenge string }
	if code := c.s.api(c.T, "POST", "/api/v1/challenges", c.token, map[string]string{"profile": "iot", "cn": cn}, &out); code != 200 || out.Challenge == "" {
		c.T.Fatalf("a challenge: HTTP %d", code)
	}
	return heldDevice{cn, out.Challenge, strings.NewReplacer(d.cn, cn, d.challenge, out.Challenge).Replace(d.script)}
}

// revoked is the same device's certificate, which is revoked by dialog.
func (c *consoleStory) revoked(t *testing.T) {
	c.be("olga")
	c.See("certificates", "/certificates", "#list")
	c.Write("#q", "door-1")
	c.Enter("#q", "#list a.name")
	if got := c.Text("#list"); strings.Contains(got, "plc-7") {
		t.Errorf("the search finds %s", got)
	}
	c.Press("#list a.name", "#state")
	c.Look("certificate")
	serial := regexp.MustCompile(`[0-9a-f]{20,}`).FindString(c.At())
	c.Press(`a[href$="do=revoke"]`, "dialog:modal .options")
	// A reason that is none comes only from a page that was tampered with, or from another release.
	browsertest.Eval[bool](c.Tab, `(() => { document.querySelector('dialog input[value="keyCompromise"]').value = "tired"; return true })()`)
	c.Click(`dialog input[value="tired"]`)
	c.Press("dialog button.danger", "dialog:modal #revoke-problem")
	c.Look("revoke-refused")
	c.Click(`dialog input[value="keyCompromise"]`)
	c.Press("dialog button.danger", ".done")
	c.Reads("#state", "revoked", "keyCompromise")
	c.Look("certificate-revoked")
	if n := c.Has(`a[href$="do=revoke"]`); n > 0 {
		t.Error("the page would revoke it again")
	}
	c.listed("devices", serial)

	// Somebody else is faster.
	printer := c.serialOf("printer-3f.example.com")
	c.Open("/certificates/"+printer+"?do=revoke", "dialog:modal .options")
	if code := c.s.api(t, "POST", "/api/v1/certificates/"+printer+"/revoke", c.token, map[string]string{"reason": "superseded"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	c.Click(`dialog input[value="keyCompromise"]`)
	c.Press("dialog button.danger", "#revoke-problem")
	c.Reads("#revoke-problem", "revoked")
	c.Reads("dialog", "Reason: superseded")
	c.Look("revoke-late")
	if c.Has("dialog form") > 0 {
		t.Error("the dialog would revoke it again")
	}
}

// listed waits for a serial on an authority's revocation list, which is signed within seconds.
func (c *consoleStory) listed(authority, serial string) {
	c.T.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(250 * time.Millisecond) {
		list := mustRun(c.T, c.T.TempDir(), "bash", "-c", "curl -sS --fail "+c.s.ready.PKI+"/pki/"+authority+".crl | openssl crl -inform DER -noout -text")
		if strings.Contains(list, strings.ToUpper(serial)) {
			return
		}
	}
	c.T.Errorf("%s is not on the list of %s", serial, authority)
}

func (c *consoleStory) withoutScripts(t *testing.T) {
	c.be("ada")
	c.leave()
	c.Scripts(false)
	defer c.Scripts(true)
	c.See("plain-sign-in", "/sign-in", "#user")
	if c.Has("#passkey-sign-in:not([hidden])") > 0 {
		t.Error("a passkey is offered, which needs JavaScript")
	}
	c.be("olga")
	c.Look("plain-overview")
	serial := c.serialOf("plc-7.example.com")
	c.Open("/certificates", "#list")
	c.Press(`#list a[href="/certificates/`+serial+`"]`, "#state")
	c.Press(`a[href$="do=hold"]`, "dialog[open]")
	if c.Has("dialog:modal") > 0 {
		t.Error("a script made the dialog modal")
	}
	c.Look("plain-hold")
	c.twice("/certificates/"+serial+"?do=hold", "form button", ".done", "dialog[open]", "This certificate is on hold already")
	c.Reads("#state", "on hold")
	c.twice("/certificates/"+serial+"?do=release", "form button", ".done", "dialog[open]", "This certificate is not on hold")
	c.Press(`a[href$="do=revoke"]`, "dialog[open] .options")
	c.Click(`dialog input[value="cessationOfOperation"]`)
	c.Press("dialog button.danger", ".done")
	c.Reads("#state", "revoked", "cessationOfOperation")
	c.listed("devices", serial)
	c.plainDecisions(t)

	c.be("ada")
	c.Open("/scep?tab=intune", "#intune-intune")
	c.Press(`#intune-intune a.button`, "dialog[open]")
	c.Press("dialog form button", ".done")
	if c.Has("dialog") > 0 {
		t.Error("the dialog stays open")
	}
}

// plainDecisions approves one request and denies another.
func (c *consoleStory) plainDecisions(t *testing.T) {
	good, bad := c.another(c.held1, "door-2.approve.test"), c.another(c.held1, "door-3.approve.test")
	goodWaits, badWaits := good.asks(t), bad.asks(t)
	decide := func(d heldDevice) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(250 * time.Millisecond) {
			c.Open("/pending", "#waiting")
			if strings.Contains(c.Text("#waiting"), d.cn) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not among the requests: %s", d.cn, c.Body())
			}
		}
		link := browsertest.Eval[string](c.Tab, "[...document.querySelectorAll(`#waiting a.name`)].find(e => e.textContent.includes(`"+d.cn+"`)).getAttribute('href')")
		c.Press(`#waiting a[href="`+link+`"]`, ".decision")
	}
	decide(good)
	c.Look("plain-request")
	c.Press(".decision form button", ".done")
	c.Reads(".done", "Approved", good.cn)
	decide(bad)
	c.Press(`a[href$="do=deny"]`, "dialog[open] #reason")
	c.Look("plain-deny")
	c.Write("#reason", "not one of ours")
	c.Press("dialog button.danger", ".done")
	c.Reads(".done", "Denied", bad.cn)
	c.Press(".done a", ".facts")
	c.Reads("main", "denied", "not one of ours", "olga")
	if said, err := goodWaits(); err != nil {
		t.Errorf("the device that was approved: %v: %s", err, said)
	}
	if said, err := badWaits(); err == nil {
		t.Errorf("the device that was denied got a certificate: %s", said)
	}
}
