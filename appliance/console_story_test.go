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

	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"signet.internal/tpm/tpmtest"
)

// consoleStory is a visitor who becomes one person after the other.
type consoleStory struct {
	*visitor
	site      string            // directory
	token     string            // of ada, for what others do meanwhile
	passwords map[string]string // by user
	who       string            // is signed in
	device    string            // password of EST user device in profile corp
}

func TestConsole(t *testing.T) {
	needs(t, "pki", "strongswan-pki")
	needs(t, "curl", "curl")
	needs(t, "openssl", "openssl")
	site := variant(t, nil)
	c := &consoleStory{site: site, passwords: map[string]string{}}
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
		{"the next generation of an authority", c.rollover},
		{"the audit log", c.auditLog},
		{"box, tokens and TLS", c.box},
		{"every other dialog", c.dialogs},
		{"every other page", c.rest},
	} {
		ok := t.Run(chapter.name, func(t *testing.T) {
			c.t = t
			begun := time.Now()
			chapter.f(t)
			t.Logf("%.1f s", time.Since(begun).Seconds())
		})
		c.t = t
		if !ok && len(c.passwords) < 3 {
			return // there is nobody who could do the rest
		}
	}
}

// be signs in as a user, by password.
func (c *consoleStory) be(user string) {
	c.t.Helper()
	if c.who == user {
		return
	}
	c.leave()
	c.write("#user", user)
	c.write("#password", c.passwords[user])
	c.do("signing in as "+user, chromedp.Submit(chromedp.CSS("#password")), c.shows("header .who"))
	c.reads("header .who-name", user)
	c.who = user
}

// leave signs out.
func (c *consoleStory) leave() {
	c.t.Helper()
	c.open("/", "main")
	if c.has(`form[action="/sign-out"]`) > 0 {
		c.press(`form[action="/sign-out"] button`, "#user")
	}
	c.who = ""
}

// enrolls runs a script of a page in a directory of its own and returns the certificate's serial.
func (c *consoleStory) enrolls(cn, script string, words ...string) (serial, dir string) {
	c.t.Helper()
	dir = c.t.TempDir()
	typed(c.t, dir, script, words...)
	cert := certificatesIn(c.t, filepath.Join(dir, cn+".crt"))[0]
	if cert.Subject.CommonName != cn {
		c.t.Errorf("%s got a certificate for %s", cn, cert.Subject)
	}
	return fmt.Sprintf("%x", cert.SerialNumber.Bytes()), dir
}

func (c *consoleStory) claimed(t *testing.T) {
	c.see("unclaimed", "/audit", "#code")
	if !strings.HasPrefix(c.at(), c.url+"/sign-in") {
		t.Errorf("a stranger is at %s", c.at())
	}
	c.open("/", "#code")
	c.write("#code", "AAAA-AAAA")
	c.write("#claim-user", "ada")
	c.press(".panel button", "#claim-problem")
	c.reads("#claim-problem", "claim code is wrong")
	c.look("claim-refused")
	c.write("#code", strings.ToLower(c.s.ready.ClaimCode))
	c.press(".panel button", ".secrets")
	c.look("claimed")
	if n := c.has(".secrets button.copy:not([hidden])"); n != 2 {
		t.Errorf("%d of password and token can be copied", n)
	}
	c.passwords["ada"] = c.text(".secrets dd:nth-of-type(2) code")
	c.token = c.text(".secrets dd:nth-of-type(3) code")
	c.who = "ada"
	c.press(`a[href="/setup"]`, "#arrivals")
}

// firstDevices goes from the set-up to devices that show up on it, in another tab as the page says.
func (c *consoleStory) firstDevices(t *testing.T) {
	c.look("setup")
	challenge := strings.TrimSpace(c.text(".walk .copyable code"))
	c.do("asking for a password", chromedp.Click(chromedp.CSS(".walk li:nth-child(3) summary")))
	c.press(`input[value="password"] ~ button`, ".walk [role=status]")
	c.device = strings.TrimSpace(c.text(".walk .copyable code"))
	if c.device == "" || c.device == challenge {
		t.Fatalf("the password is %q", c.device)
	}
	c.look("setup-made")
	c.reads(".walk", challenge) // which is for SCEP still
	eval[bool](c.visitor, `window.isFirstLoad = true`)

	tab, leave := c.beside(`section[aria-labelledby="connect"] button[value="strongswan"]`, "#step-name")
	defer leave()
	const swan = "printer-3f.example.com"
	named := func(cn string) {
		tab.write("#cn", cn)
		tab.press(`form[action="/connect/corp"] button`, `#cn[value="`+cn+`"]`)
	}
	named(swan)
	tab.look("connect-strongswan")
	tab.reads("#step-proof ~ ul", challenge)
	tab.reads("#addresses ~ .cards", "SCEP, for TLS 1.2 too", "SCEP, without TLS", "EST, for TLS 1.2 too")
	c.enrolls(swan, tab.commands(".guide-step:first-of-type")[0])
	c.front()
	arrived := func(cn string) string {
		return `window.isFirstLoad && document.querySelector("#arrivals").textContent.includes(` + quoted(cn) + `)`
	}
	c.until("the printer is on the page", arrived(swan))
	c.look("setup-arrived")

	const curl = "plc-7.example.com"
	tab.front()
	tab.press(`.kinds button[value="curl"]`, `.kinds button[value="curl"][aria-current]`)
	named(curl)
	tab.look("connect-curl")
	tab.reads(".guide-step", "Paste it as it is")
	if strings.Contains(tab.at(), c.device) {
		t.Error("the password is in the address")
	}
	c.enrolls(curl, tab.commands(".guide-step:first-of-type")[0])
	c.front()
	c.until("the controller is on the page", arrived(curl))
	if got := strings.TrimSpace(c.text(".walk .copyable code")); got != c.device {
		t.Errorf("the password on the page became %q", got)
	}
	c.press(`#arrivals a.button`, "#attention")
	c.reads("#newest", swan, curl)
	c.look("overview")
	if _, err := run(t, t.TempDir(), "bash", "-c", strings.ReplaceAll(tab.commands(".guide-step:first-of-type")[0], c.device, "PASSWORD")); err == nil {
		t.Error("the word PASSWORD itself was good")
	}
	c.until("the refusal is counted without a reload", `document.querySelector("#week .figures div:nth-child(2) dd").textContent === "1"`)
}

func (c *consoleStory) passkey(t *testing.T) {
	if _, err := chromedp.Call(c.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(c.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}}); err != nil {
		t.Fatal(err)
	}
	c.press("header .who", "#passkey-name")
	c.write("#passkey-name", "work laptop")
	c.press("#passkey-add button", ".done")
	c.look("passkey-added")
	c.leave()
	c.open("/sign-in?next=/certificates", "#passkey-sign-in button")
	c.write("#user", "ada")
	c.write("#password", "not the password")
	c.do("a wrong password", chromedp.Submit(chromedp.CSS("#password")), c.shows("#sign-in-problem"))
	c.look("sign-in-refused")
	c.reads("#sign-in-problem", "User name or password is wrong", "an administrator can set you a new password")
	c.press("#passkey-sign-in button", "#list")
	c.reads("#list", "plc-7.example.com")
	c.who = "ada"
	c.open("/audit?action=signed_in", ".records")
	c.reads(".records tbody tr:first-child", "ada", "passkey work laptop")
}

func (c *consoleStory) roles(t *testing.T) {
	c.be("ada")
	c.see("users", "/users", "#people")
	c.press(`a[href="/users?do=add"]`, "dialog:modal #add-user")
	c.write("#add-user", "ada")
	c.press("dialog form button", "dialog:modal #add-problem")
	c.reads("#add-problem", "already")
	c.look("user-refused")
	for user, role := range map[string]string{"olga": "operator", "arno": "auditor"} {
		c.open("/users?do=add", "dialog:modal #add-user")
		c.write("#add-user", user)
		c.do("the role", chromedp.Click(chromedp.CSS(`dialog input[value="`+role+`"]`)))
		c.press("dialog form button", ".secrets")
		c.passwords[user] = strings.TrimSpace(c.text(".secrets dd:nth-of-type(2) code"))
	}
	c.look("user-added")
	serial := c.serialOf("plc-7.example.com")
	for _, user := range []string{"olga", "arno"} {
		c.be(user)
		for _, path := range []string{"/scep", "/scep/intune", "/est"} {
			asked := c.asked(func() { c.open(path, ".gated") })
			if slices.ContainsFunc(asked, func(p string) bool { return strings.HasPrefix(p, "/api/") }) || c.has("main form, dialog, .tabs, .card") > 0 {
				t.Errorf("%s at %s asks for %v and sees %s", user, path, asked, c.body())
			}
			c.reads(".gated", user, "administrators")
		}
		c.look("scep-gated-" + user)
		c.see("users-refused-"+user, "/users", "#refusal")
		c.open("/certificates/"+serial, "#state")
		if n := c.has(`a[href$="do=revoke"]`); n != map[string]int{"olga": 1, "arno": 0}[user] {
			t.Errorf("%s sees %d ways to revoke", user, n)
		}
		c.open("/connect/iot", "#step-proof")
		if n := c.has(`form[action="/connect/iot/challenge"]`); n != map[string]int{"olga": 1, "arno": 0}[user] {
			t.Errorf("%s sees %d ways to make a challenge", user, n)
		}
	}
	// Nothing that an auditor sees orders anything, also where the address asks for a dialog.
	for path, selector := range map[string]string{"/": "#attention", "/setup": "#arrivals", "/pending": "#waiting", "/certificates": "#list", "/certificates/" + serial + "?do=revoke": "#state",
		"/connect/corp": "#addresses", "/authorities?do=rotate": "#authority-list", "/authorities/devices?do=activate": "#generations", "/profiles": "#profile-list",
		"/profiles/corp?do=off": "#rules", "/audit": "#records", "/box": "#tpm", "/tls?do=own": "#tls-certificates"} {
		c.open(path, selector)
		if n := c.has("main form[method=post], dialog"); n > 0 {
			t.Errorf("an auditor sees %d forms and dialogs at %s", n, path)
		}
	}
}

// serialOf is the serial of the newest certificate of cn.
func (c *consoleStory) serialOf(cn string) string {
	c.t.Helper()
	var out struct {
		Certificates []struct{ Serial string }
	}
	if code := c.s.api(c.t, "GET", "/api/v1/certificates?q="+cn, c.token, nil, &out); code != 200 || len(out.Certificates) == 0 {
		c.t.Fatalf("certificates of %s: HTTP %d, %+v", cn, code, out)
	}
	return out.Certificates[0].Serial
}

// held is a device whose name a person has to look at.
func (c *consoleStory) held(t *testing.T) {
	const cn = "door-1.approve.test"
	c.be("olga")
	c.open("/setup?profile=iot", "#cn")
	c.write("#cn", cn)
	c.press(`input[value="one-time"] ~ button`, ".walk [role=status]")
	c.look("setup-one-time")
	tab, leave := c.beside(`section[aria-labelledby="connect"] button[value="strongswan"]`, ".made")
	defer leave()
	tab.look("connect-minted")
	tab.reads("#made", "Challenge for "+cn)
	tab.reads(".guide-step", "Paste it as it is")
	tab.reads(".guide-step:last-of-type", "Replace factory.crt and factory.key")
	tab.reads("#step-guide ~ .hint", "approve", "Approvals")
	script := tab.commands(".guide-step:first-of-type")[0]
	c.front()
	c.see("approvals-none", "/pending", "#waiting .empty")
	eval[bool](c.visitor, `window.isFirstLoad = true`)

	// The command has strongSwan ask again each 10 seconds; here it is told to do so each second.
	dir, done := t.TempDir(), make(chan error, 1)
	var said string
	go func() {
		out, err := run(t, dir, "bash", "-c", strings.Replace(script, "--interval 10 ", "--interval 1 --maxpolltime 120 ", 1))
		said = out
		done <- err
	}()
	c.until("the request is on the page", `window.isFirstLoad && !!document.querySelector("#waiting tbody tr")`)
	c.until("and in the navigation", `document.querySelector('nav a[href="/pending"]').textContent.includes("1")`)
	c.look("approvals")
	c.press("#waiting a.name", ".decision")
	c.reads(".decision", cn+" ends in .approve.test")
	c.reads("main", "Common name", "RSA 2048", "sign data, encrypt keys")
	c.look("request")
	c.press(`a[href$="do=deny"]`, "dialog:modal #reason")
	c.do("spaces as a reason", chromedp.SendKeys(chromedp.CSS("#reason"), "  "), chromedp.Click(chromedp.CSS("dialog button.danger")), c.shows("dialog:modal #deny-problem"))
	c.look("request-deny-refused")
	c.press("dialog a.quiet", ".decision button")
	c.press(".decision form button", ".done")
	c.look("request-approved")
	c.reads(".done", "Approved. The certificate is issued", "Certificate of "+cn)
	select {
	case err := <-done:
		if err != nil || !strings.Contains(said, "Approve it at "+c.url+"/pending") {
			t.Errorf("the device: %v: %s", err, said)
		}
	case <-time.After(time.Minute):
		t.Fatal("the device got nothing")
	}
	if cert := certificatesIn(t, filepath.Join(dir, cn+".crt"))[0]; cert.Subject.CommonName != cn {
		t.Errorf("the device got a certificate for %s", cert.Subject)
	}
	c.be("arno")
	c.open("/audit?q="+cn, ".records")
	c.reads(".records", "olga")
}

// revoked is the same device's certificate, which is revoked by dialog.
func (c *consoleStory) revoked(t *testing.T) {
	c.be("olga")
	c.see("certificates", "/certificates", "#list")
	c.write("#q", "door-1")
	c.do("searching", chromedp.Submit(chromedp.CSS("#q")), chromedp.WaitNotPresent(chromedp.CSS(`#list a[href*="plc"]`)), c.shows("#list a.name"))
	c.press("#list a.name", "#state")
	c.look("certificate")
	serial := regexp.MustCompile(`[0-9a-f]{20,}`).FindString(c.at())
	c.press(`a[href$="do=revoke"]`, "dialog:modal .options")
	// A reason that is none comes only from a page that was tampered with, or from another release.
	eval[bool](c.visitor, `(() => { document.querySelector('dialog input[value="keyCompromise"]').value = "tired"; return true })()`)
	c.do("a reason that is none", chromedp.Click(chromedp.CSS(`dialog input[value="tired"]`)))
	c.press("dialog button.danger", "dialog:modal #revoke-problem")
	c.look("revoke-refused")
	c.do("the reason", chromedp.Click(chromedp.CSS(`dialog input[value="keyCompromise"]`)))
	c.press("dialog button.danger", ".done")
	c.reads("#state", "revoked", "keyCompromise")
	c.look("certificate-revoked")
	if n := c.has(`a[href$="do=revoke"]`); n > 0 {
		t.Error("the page would revoke it again")
	}
	c.listed("devices", serial)

	// Somebody else is faster.
	printer := c.serialOf("printer-3f.example.com")
	c.open("/certificates/"+printer+"?do=revoke", "dialog:modal .options")
	if code := c.s.api(t, "POST", "/api/v1/certificates/"+printer+"/revoke", c.token, map[string]string{"reason": "superseded"}, nil); code != 200 {
		t.Fatalf("revoking: HTTP %d", code)
	}
	c.do("the reason", chromedp.Click(chromedp.CSS(`dialog input[value="keyCompromise"]`)))
	c.press("dialog button.danger", "#revoke-problem")
	c.reads("#revoke-problem", "revoked")
	c.reads("dialog", "Reason: superseded")
	c.look("revoke-late")
	if c.has("dialog form") > 0 {
		t.Error("the dialog would revoke it again")
	}
}

// listed waits for a serial on an authority's revocation list, which is signed within seconds.
func (c *consoleStory) listed(authority, serial string) {
	c.t.Helper()
	for range 120 {
		list := mustRun(c.t, c.t.TempDir(), "bash", "-c", "curl -sS --fail "+c.s.ready.PKI+"/pki/"+authority+".crl | openssl crl -inform DER -noout -text")
		if strings.Contains(list, strings.ToUpper(serial)) {
			return
		}
		time.Sleep(250 * time.Millisecond)
	}
	c.t.Errorf("%s is not on the list of %s", serial, authority)
}

func (c *consoleStory) withoutScripts(t *testing.T) {
	c.be("ada")
	c.leave()
	c.scripts(false)
	defer c.scripts(true)
	c.see("plain-sign-in", "/sign-in", "#user")
	if c.has("#passkey-sign-in:not([hidden])") > 0 {
		t.Error("a passkey is offered, which needs JavaScript")
	}
	c.be("olga")
	c.look("plain-overview")
	serial := c.serialOf("plc-7.example.com")
	c.open("/certificates", "#list")
	c.press(`#list a[href="/certificates/`+serial+`"]`, "#state")
	c.press(`a[href$="do=hold"]`, "dialog[open]")
	if c.has("dialog:modal") > 0 {
		t.Error("a script made the dialog modal")
	}
	c.look("plain-hold")
	c.press("dialog form button", ".done")
	c.reads("#state", "on hold")
	c.press(`a[href$="do=release"]`, "dialog[open]")
	c.press("dialog form button", ".done")
	c.press(`a[href$="do=revoke"]`, "dialog[open] .options")
	c.do("the reason", chromedp.Click(chromedp.CSS(`dialog input[value="cessationOfOperation"]`)))
	c.press("dialog button.danger", ".done")
	c.reads("#state", "revoked", "cessationOfOperation")
	c.listed("devices", serial)

	c.be("ada")
	c.open("/scep?tab=intune", "#intune-intune")
	c.press(`#intune-intune a.button`, "dialog[open]")
	c.press("dialog form button", ".done")
	if c.has("dialog") > 0 {
		t.Error("the dialog stays open")
	}
}
