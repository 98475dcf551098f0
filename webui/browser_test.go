package webui

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"signet.internal/appliance/handover"
)

// A green run of the browser tests proves that a real browser does what they say under the page's own
// policy, that no page is wider than a phone, and that axe-core finds nothing against WCAG 2.2 AA in
// light and dark, on phone and desktop. It does not prove that the pages look good: make screenshots
// writes pictures of them; look.

// newBrowser starts headless Chromium and returns a context of one tab.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("chromium is missing: apt-get install chromium")
		}
		t.Skip("chromium is not installed")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.DisableGPU, chromedp.Flag("no-sandbox", true),
		chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// look checks the page at phone and desktop width, light and dark, and keeps pictures of it.
func look(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("SIGNET_SCREENSHOTS")
	for _, screen := range []struct {
		name  string
		width int64
	}{{"phone", 390}, {"desktop", 1280}} {
		for _, scheme := range []string{"dark", "light"} {
			name := name + "-" + screen.name + "-" + scheme
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := chromedp.Do(ctx, chromedp.EmulateViewport(screen.width, 900)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			width, err := chromedp.Run(ctx, chromedp.Evaluate[int64](`document.documentElement.scrollWidth`))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if width > screen.width {
				t.Errorf("%s: %d px wide on a screen of %d", name, width, screen.width)
			}
			accessible(t, ctx, name)
			if dir != "" {
				if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// axe is axe-core 4.14.1, which make test fetches.
const (
	axeFile   = "../build/axe/node_modules/axe-core/axe.min.js"
	axeSHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
)

// accessible has axe-core look for what people with disabilities could not use.
func accessible(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	script, err := os.ReadFile(axeFile)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("axe-core is missing: make test fetches it: %v", err)
		}
		t.Logf("%s: not looked at by axe-core, which make test fetches", name)
		return
	}
	if sum := sha256.Sum256(script); hex.EncodeToString(sum[:]) != axeSHA256 {
		t.Fatalf("%s is not the axe-core that this test knows", axeFile)
	}
	const run = `(async () => {
		const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]});
		return found.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.target.join(" ") + " " + n.html.slice(0, 160)).slice(0, 4).join("; ")).join("\n");
	})()`
	if err := chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void](string(script)+";undefined")); err != nil {
		t.Fatalf("%s: loading axe-core: %v", name, err)
	}
	found, err := chromedp.Run(ctx, chromedp.Evaluate[string](run, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%s: running axe-core: %v", name, err)
	}
	if found != "" {
		t.Errorf("%s: axe-core finds\n%s", name, found)
	}
}

// tab is a browser's tab that looks at a console.
type tab struct {
	t   *testing.T
	ctx context.Context
	box *testBox

	mu         sync.Mutex
	complaints []string // what the browser wrote to its console: blocked styles, missing files
}

// newTab opens a browser for box and fails the test at its end where the browser complained of a page.
func newTab(t *testing.T, box *testBox) *tab {
	t.Helper()
	tb := &tab{t: t, box: box, ctx: newBrowser(t)}
	err := chromedp.Listen(tb.ctx, func(ev any) {
		e, ok := ev.(*log.EventEntryAdded)
		if !ok || e.Entry.Level != log.EntryLevelError || strings.Contains(e.Entry.Text, "status of 4") || strings.HasSuffix(e.Entry.URL, "/reload-trust") {
			return // refusals are meant; a bundle that is not good is one with status 500
		}
		tb.mu.Lock()
		defer tb.mu.Unlock()
		tb.complaints = append(tb.complaints, e.Entry.Text+" "+e.Entry.URL)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(tb.ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(tb.ctx, 5*time.Minute)
	tb.ctx = ctx
	t.Cleanup(func() {
		cancel()
		tb.mu.Lock()
		defer tb.mu.Unlock()
		for _, c := range tb.complaints {
			t.Error("the browser complains:", c)
		}
	})
	return tb
}

// do takes actions and stops the test where one of them does not come to its end.
func (tb *tab) do(name string, actions ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	if err := chromedp.Do(tb.ctx, actions...); err != nil {
		tb.t.Fatalf("%s: %v", name, err)
	}
}

// step takes actions and then looks at the page, under name.
func (tb *tab) step(name string, actions ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	tb.do(name, actions...)
	look(tb.t, tb.ctx, name)
}

// open goes to a page, waits until selector is visible, and looks at it, under name.
func (tb *tab) open(name, path, selector string) {
	tb.t.Helper()
	tb.step(name, chromedp.Navigate(tb.box.URL+path), chromedp.WaitVisible(chromedp.CSS(selector)))
}

// text is what a person reads in the first element that selector finds.
func (tb *tab) text(selector string) string {
	tb.t.Helper()
	text, err := chromedp.Run(tb.ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		tb.t.Fatalf("%s: %v", selector, err)
	}
	return text
}

// enter gives the browser a session of user, who exists.
func (tb *tab) enter(user string) {
	tb.t.Helper()
	id := tb.box.console.sessions.begin(session{user: user, how: howPassword})
	_, err := chromedp.Call(tb.ctx, network.SetCookie, network.SetCookieParams{Name: sessionCookie, Value: id, URL: tb.box.URL, Secure: new(true), HTTPOnly: new(true)})
	if err != nil {
		tb.t.Fatal(err)
	}
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
	tb.step("unclaimed", chromedp.Navigate(box.URL), chromedp.WaitVisible(chromedp.CSS("#code")))
	tb.step("claim-wrong-code", chromedp.SendKeys(chromedp.CSS("#code"), "AAAA-AAAA"), chromedp.SendKeys(chromedp.CSS("#claim-user"), "alice"),
		chromedp.Submit(chromedp.CSS("#code")), chromedp.WaitVisible(chromedp.CSS("#claim-problem")))
	if got := tb.text("#claim-problem"); !strings.Contains(got, "claim code is wrong") {
		t.Errorf("wrong code says %q", got)
	}
	tb.step("claimed", chromedp.SendKeys(chromedp.CSS("#code"), "k7qm 2xpd"), chromedp.Submit(chromedp.CSS("#code")), chromedp.WaitVisible(chromedp.CSS(".secrets")))
	password := tb.text(".secrets dd:nth-of-type(2) code")
	tb.step("signed-in", chromedp.Navigate(box.URL), chromedp.WaitVisible(chromedp.CSS("#attention")))
	tb.step("signed-out", chromedp.Click(chromedp.CSS("header button")), chromedp.WaitVisible(chromedp.CSS("#user")))
	tb.step("sign-in-wrong", chromedp.SendKeys(chromedp.CSS("#user"), "alice"), chromedp.SendKeys(chromedp.CSS("#password"), "not the password"),
		chromedp.Submit(chromedp.CSS("#password")), chromedp.WaitVisible(chromedp.CSS("#sign-in-problem")))
	tb.step("signed-in-again", chromedp.SendKeys(chromedp.CSS("#password"), password), chromedp.Submit(chromedp.CSS("#password")), chromedp.WaitVisible(chromedp.CSS("#attention")))
	tb.step("mscep-admin", chromedp.Navigate(box.URL+"/certsrv/mscep_admin/"), chromedp.WaitVisible(chromedp.CSS("#cn")))
	tb.step("mscep-admin-made", chromedp.SendKeys(chromedp.CSS("#cn"), "cam-1"), chromedp.Submit(chromedp.CSS("#cn")), chromedp.WaitVisible(chromedp.CSS(".secrets")))
	if got := tb.text(".secrets"); !strings.Contains(got, "SECRET-OF-cam-1") {
		t.Errorf("the page says %q", got)
	}
	tb.step("not-found", chromedp.Navigate(box.URL+"/nowhere"), chromedp.WaitVisible(chromedp.CSS("#refusal")))
}
