package webui

import (
	"strings"
	"testing"

	"signet.internal/appliance/handover"
	"signet.internal/webui/browsertest"
)

// A green run of the browser tests proves that a real browser does what they say under the page's own
// policy, that no page is wider than a phone, and that axe-core finds nothing against WCAG 2.2 AA in
// light and dark, on phone and desktop. It does not prove that the pages look good: make screenshots
// writes pictures of them; look.

// tab is a browser's tab that looks at a box.
type tab struct {
	*browsertest.Tab
	box *testBox
}

// newTab opens a browser for box, by name: addresses have no passkeys.
func newTab(t *testing.T, box *testBox) *tab {
	t.Helper()
	return &tab{box: box, Tab: browsertest.Start(t, browsertest.Options{
		Origin: strings.Replace(box.URL, "127.0.0.1", "localhost", 1), Leaf: box.Certificate(), Closely: true})}
}

// enter gives the browser a session of user, who exists.
func (tb *tab) enter(user string) {
	tb.T.Helper()
	tb.Cookie(sessionCookie, tb.box.console.sessions.begin(session{user: user, how: howPassword}))
}

func TestBrowser(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.Boot.Conditions = []handover.Condition{{
			What: "Keys are not protected against a changed disk, because Secure Boot is off.",
			Mend: "Bake the site with secure_boot: own-keys, and flash the box again.",
		}}
	})
	box.enroll(40)
	tb := newTab(t, box)
	tb.See("unclaimed", "/", "#code")
	tb.Write("#code", "AAAA-AAAA")
	tb.Write("#claim-user", "alice")
	tb.Enter("#code", "#claim-problem")
	tb.Look("claim-wrong-code")
	tb.Reads("#claim-problem", "claim code is wrong")
	tb.Write("#code", "k7qm 2xpd")
	tb.Enter("#code", ".secrets")
	tb.Look("claimed")
	password := tb.Text(".secrets dd:nth-of-type(2) code")
	tb.See("signed-in", "/", "#attention")
	tb.Press("header button", "#user")
	tb.Look("signed-out")
	tb.Write("#user", "alice")
	tb.Write("#password", "not the password")
	tb.Enter("#password", "#sign-in-problem")
	tb.Look("sign-in-wrong")
	tb.Write("#password", password)
	tb.Enter("#password", "#attention")
	tb.Look("signed-in-again")
	tb.See("mscep-admin", "/certsrv/mscep_admin/", "#cn")
	tb.Write("#cn", "cam-1")
	tb.Enter("#cn", ".secrets")
	tb.Look("mscep-admin-made")
	tb.Reads(".secrets", "SECRET-OF-cam-1")
	tb.See("not-found", "/nowhere", "#refusal")
}
