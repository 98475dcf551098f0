package appliance_test

// The dialogs that no other chapter of console_story_test.go comes to, each first where it is refused.

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// dialogs switches a profile off, replaces a bundle and the registration key, removes a user, and has the box
// show certificates of another authority.
func (c *consoleStory) dialogs(t *testing.T) {
	c.be("ada")
	c.switchedOff(t)
	c.bundle(t)
	c.registrationKey(t)
	c.removed()
	c.uploadedTLS(t)
}

// enrollsModern tells whether a device enrolls with profile modern as its page says.
func (c *consoleStory) enrollsModern(t *testing.T) bool {
	t.Helper()
	c.open("/connect/modern?for=strongswan&cn=gate-2.example.com", ".guide-step")
	script := c.commands(".guide-step:first-of-type")[0]
	_, err := run(t, t.TempDir(), "bash", "-c", script)
	return err == nil
}

func (c *consoleStory) switchedOff(t *testing.T) {
	c.open("/profiles/modern?do=off", "dialog:modal #reason")
	c.write("#reason", " ")
	c.press("dialog .danger", "#off-problem")
	c.look("profile-off-refused")
	c.write("#reason", "a stolen laptop")
	c.press("dialog .danger", ".done")
	c.look("profile-is-off")
	if c.enrollsModern(t) {
		t.Error("a profile that is off enrolls")
	}
	c.open("/profiles/modern", `form[action="/profiles/modern/on"]`)
	c.press(`form[action="/profiles/modern/on"] button`, ".done")
	if !c.enrollsModern(t) {
		t.Error("a profile that is on again does not enroll")
	}
}

func (c *consoleStory) bundle(t *testing.T) {
	upload := func(content []byte, then string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "bundle.pem")
		writeFile(t, file, content)
		c.do("uploading", chromedp.SetUploadFiles(chromedp.CSS("#bundle-files"), []string{file}), chromedp.Click(chromedp.CSS("dialog .danger")), c.shows(then))
	}
	c.open("/profiles/iot?do=bundle&of=est", "dialog:modal #bundle-files")
	upload([]byte("half a file"), "#bundle-problem")
	c.look("bundle-refused")
	upload(readFile(t, filepath.Join(c.site, "trust/bootstrap.pem")), ".done")
	c.reads(".settings", "not baked")
	c.press(`a[href*="do=bundle-baked"]`, "dialog:modal .danger")
	c.press("dialog .danger", ".done")
	if strings.Contains(c.text(".settings"), "not baked") {
		t.Errorf("after going back: %s", c.text(".settings"))
	}
}

func (c *consoleStory) registrationKey(t *testing.T) {
	ras := func() (n int) {
		t.Helper()
		var a struct{ RAs []any }
		if code := c.s.api(t, "GET", "/api/v1/authorities/modern", c.token, nil, &a); code != 200 {
			t.Fatalf("authority: HTTP %d", code)
		}
		return len(a.RAs)
	}
	before := ras()
	c.open("/authorities?do=rotate", "dialog:modal .danger")
	c.press("dialog .danger", ".done")
	c.look("ra-rotated")
	if after := ras(); after != before+1 {
		t.Errorf("%d registration certificates, before it %d", after, before)
	}
	if !c.enrollsModern(t) {
		t.Error("no device enrolls with the new registration key")
	}
}

func (c *consoleStory) removed() {
	c.open("/users/ada?do=remove", "dialog:modal .danger")
	c.press("dialog .danger", "#remove-problem")
	c.look("user-remove-refused")
	c.open("/users/arno?do=remove", "dialog:modal .danger")
	c.press("dialog .danger", ".done")
	c.open("/users", "#tokens")
	if c.has(`main a[href="/users/arno"]`) > 0 {
		c.t.Error("who was removed is still listed")
	}
}

func (c *consoleStory) uploadedTLS(t *testing.T) {
	x := newTLSStory(t, c.s, c.token, "")
	x.run(others)
	x.run(`A --fail-with-body -o requests.pem $CONSOLE/api/v1/tls/request; awk '/BEGIN/{n++} {print > ("request" n ".pem")}' requests.pem
sign request1.pem leaf.pem yesterday '+300 days'; cat leaf.pem sub.pem root.pem > chain.pem`)
	c.open("/tls", "#chain-files")
	c.do("uploading the chain", chromedp.SetUploadFiles(chromedp.CSS("#chain-files"), []string{filepath.Join(x.dir, "chain.pem")}), chromedp.Click(chromedp.CSS(`form[action="/tls/chain"] button`)), c.shows(".done"))
	c.reads("#tls-certificates", "uploaded, not baked", "Works TLS CA")
	c.look("tls-uploaded")
	if got := x.served(c.s.ready.EST, "root.pem"); got != x.fingerprint("leaf.pem") {
		t.Errorf("EST shows %s", got)
	}
	c.press(`a[href="/tls?do=own"]`, "dialog:modal .danger")
	c.press("dialog .danger", ".done")
	if strings.Contains(c.text("#tls-certificates"), "uploaded") {
		t.Errorf("after going back: %s", c.text("#tls-certificates"))
	}
}
