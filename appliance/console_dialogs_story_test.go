package appliance_test

// The dialogs that no other chapter of console_story_test.go comes to, each first where it is refused.

import (
	"cmp"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"signet.internal/webui/browsertest"
)

// dialogs switches a profile off, replaces a bundle and the RA key, removes a user, and has the box
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
	c.twice(c.linkOf(`a[href*="do=bundle-baked"]`), ".danger", ".done", "#bundle-baked-problem", "baked")
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
	c.closes("/authorities?do=rotate")
	if n := ras(); n != before {
		t.Errorf("%d RA certificates after the dialog was closed, before it %d", n, before)
	}
	c.Open("/authorities?do=rotate", "dialog:modal .danger")
	c.Press("dialog .danger", ".done")
	c.Look("ra-rotated")
	if after := ras(); after != before+1 {
		t.Errorf("%d RA certificates, before it %d", after, before)
	}
	if !c.enrollsModern(t) {
		t.Error("no device enrolls with the new RA key")
	}
}

func (c *consoleStory) removed() {
	c.Open("/users/ada?do=remove", "dialog:modal .danger")
	c.Press("dialog .danger", "#remove-problem")
	c.Look("user-remove-refused")
	c.Open("/users/arno?do=remove", "dialog:modal .danger")
	late, leave := c.Another("/users/arno?do=remove", "dialog:modal .danger")
	defer leave()
	c.Front()
	c.Press("dialog .danger", ".done")
	late.Front()
	late.Press("dialog .danger", "#refusal")
	late.Reads("#refusal", "no such user")
	c.Front()
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
	c.twice("/tls?do=own", ".danger", ".done", ".done", "the box’s own certificate again")
	if strings.Contains(c.Text("#tls-certificates"), "uploaded") {
		t.Errorf("after going back: %s", c.Text("#tls-certificates"))
	}
}

// ordered is a form that was sent, in a chapter.
type ordered struct {
	browsertest.Order
	chapter string
}

// note keeps the forms that were sent since it was last called.
func (c *consoleStory) note() {
	for _, o := range c.Orders() {
		c.orders = append(c.orders, ordered{o, c.chapter})
	}
}

// elsewhere is what of a dialog other tests show, or none can.
var elsewhere = map[string]string{
	"authorities rotate: refused": "TestConsoleOnOlderDisk",
	"box acknowledge: refused":    "TestConsoleOnOlderDisk",
	"box acknowledge: taken":      "TestConsoleOnOlderDisk",
	"tls own: refused":            "nothing: a box that shows its own certificates is told so again",
}

// noDialogIsLeft holds the chapters against the templates: the form of each dialog was sent, was taken and was
// refused.
func (c *consoleStory) noDialogIsLeft(t *testing.T) {
	all := dialogs(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		shown := map[string]string{}
		for _, o := range c.orders {
			if became := map[bool]string{true: "refused", false: "taken"}[o.Status >= 400]; all[name].MatchString(o.Path) && shown[became] == "" {
				shown[became] = o.chapter
			}
		}
		for _, became := range []string{"taken", "refused"} {
			where := cmp.Or(shown[became], elsewhere[name+": "+became])
			if t.Logf("%s: %s in %s", name, became, where); where == "" {
				t.Error("which no chapter has")
			}
		}
	}
}

var (
	templateComment = regexp.MustCompile(`(?s)\{\{/\*.*?\*/\}\}`)
	dialogElement   = regexp.MustCompile(`(?s)([^\n]*)<dialog open.*?</dialog>`)
	dialogAddress   = regexp.MustCompile(`eq \.(?:Do|Dialog) "([^"]+)"`)
	dialogForm      = regexp.MustCompile(`<form method="post" action="((?:\{\{.*?\}\}|[^"{])*)"`)
	eitherOr        = regexp.MustCompile(`\{\{if eq \.Do "([^"]+)"\}\}(.*?)\{\{else\}\}(.*?)\{\{end\}\}`)
	templateAction  = regexp.MustCompile(`\{\{.*?\}\}`)
)

// dialogs are where the templates' dialogs send their forms, by template and what the address says to open them.
func dialogs(t *testing.T) map[string]*regexp.Regexp {
	t.Helper()
	paths := map[string]*regexp.Regexp{}
	files, err := filepath.Glob("../webui/templates/*.html")
	if err != nil || len(files) == 0 {
		t.Fatal("no templates: ", err)
	}
	for _, file := range files {
		text := templateComment.ReplaceAllString(string(readFile(t, file)), "")
		for _, d := range dialogElement.FindAllStringSubmatch(text, -1) {
			page := strings.TrimSuffix(filepath.Base(file), ".html")
			names := dialogAddress.FindAllStringSubmatch(d[1], -1)
			if len(names) == 0 {
				t.Errorf("a dialog of %s opens by no address: %s", page, d[1])
			}
			form := dialogForm.FindStringSubmatch(d[0])
			if form == nil {
				continue // it orders nothing
			}
			for _, name := range names {
				path := eitherOr.ReplaceAllStringFunc(form[1], func(s string) string {
					m := eitherOr.FindStringSubmatch(s)
					if m[1] == name[1] {
						return m[2]
					}
					return m[3]
				})
				path = templateAction.ReplaceAllString(strings.ReplaceAll(path, "{{$what}}", name[1]), "[^/]+")
				paths[page+" "+name[1]] = regexp.MustCompile("^" + path + "$")
			}
		}
	}
	if len(paths) < 25 {
		t.Errorf("only %d dialogs in the templates", len(paths))
	}
	return paths
}
