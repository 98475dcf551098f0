package appliance_test

// The dialogs that no other chapter of console_story_test.go comes to, each first where it is refused.

import (
	"path/filepath"
	"strings"
	"testing"
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
	c.Open("/connect/modern?for=strongswan&cn=gate-2.example.com", ".guide-step")
	script := c.Commands(".guide-step:first-of-type")[0]
	_, err := run(t, t.TempDir(), "bash", "-c", script)
	return err == nil
}

func (c *consoleStory) switchedOff(t *testing.T) {
	c.Open("/profiles/modern?do=off", "dialog:modal #reason")
	c.Write("#reason", " ")
	c.Press("dialog .danger", "#off-problem")
	c.Look("profile-off-refused")
	c.Write("#reason", "a stolen laptop")
	c.Press("dialog .danger", ".done")
	c.Look("profile-is-off")
	if c.enrollsModern(t) {
		t.Error("a profile that is off enrolls")
	}
	c.Open("/profiles/modern", `form[action="/profiles/modern/on"]`)
	c.Press(`form[action="/profiles/modern/on"] button`, ".done")
	if !c.enrollsModern(t) {
		t.Error("a profile that is on again does not enroll")
	}
}

func (c *consoleStory) bundle(t *testing.T) {
	upload := func(content []byte, then string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "bundle.pem")
		writeFile(t, file, content)
		c.Upload("#bundle-files", file)
		c.Press("dialog .danger", then)
	}
	c.Open("/profiles/iot?do=bundle&of=est", "dialog:modal #bundle-files")
	upload([]byte("half a file"), "#bundle-problem")
	c.Look("bundle-refused")
	upload(readFile(t, filepath.Join(c.site, "trust/bootstrap.pem")), ".done")
	c.Reads(".settings", "not baked")
	c.Press(`a[href*="do=bundle-baked"]`, "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	if strings.Contains(c.Text(".settings"), "not baked") {
		t.Errorf("after going back: %s", c.Text(".settings"))
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
	c.Open("/authorities?do=rotate", "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	c.Look("ra-rotated")
	if after := ras(); after != before+1 {
		t.Errorf("%d registration certificates, before it %d", after, before)
	}
	if !c.enrollsModern(t) {
		t.Error("no device enrolls with the new registration key")
	}
}

func (c *consoleStory) removed() {
	c.Open("/users/ada?do=remove", "dialog:modal .danger")
	c.Press("dialog .danger", "#remove-problem")
	c.Look("user-remove-refused")
	c.Open("/users/arno?do=remove", "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	c.Open("/users", "#tokens")
	if c.Has(`main a[href="/users/arno"]`) > 0 {
		c.T.Error("who was removed is still listed")
	}
}

func (c *consoleStory) uploadedTLS(t *testing.T) {
	x := newTLSStory(t, c.s, c.token, "")
	x.run(others)
	x.run(`A --fail-with-body -o requests.pem $CONSOLE/api/v1/tls/request; awk '/BEGIN/{n++} {print > ("request" n ".pem")}' requests.pem
sign request1.pem leaf.pem yesterday '+300 days'; cat leaf.pem sub.pem root.pem > chain.pem`)
	c.Open("/tls", "#chain-files")
	c.Upload("#chain-files", filepath.Join(x.dir, "chain.pem"))
	c.Press(`form[action="/tls/chain"] button`, ".done")
	c.Reads("#tls-certificates", "uploaded, not baked", "Works TLS CA")
	c.Look("tls-uploaded")
	if got := x.served(c.s.ready.EST, "root.pem"); got != x.fingerprint("leaf.pem") {
		t.Errorf("EST shows %s", got)
	}
	c.Press(`a[href="/tls?do=own"]`, "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	if strings.Contains(c.Text("#tls-certificates"), "uploaded") {
		t.Errorf("after going back: %s", c.Text("#tls-certificates"))
	}
}
