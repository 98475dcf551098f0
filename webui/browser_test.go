package webui

import (
	"context"
	"errors"
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
	"github.com/chromedp/chromedp"

	"signet.internal/appliance/handover"
)

// A green run proves that a real browser can claim the box, sign out, fail to sign in, sign in and
// page through the log under the page's own policy, and that no page is wider than a phone. It does
// not prove that the pages look good: set SIGNET_SCREENSHOTS to a directory and look.

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
			if dir != "" {
				if err := os.WriteFile(filepath.Join(dir, name+"-"+screen.name+"-"+scheme+".png"), picture, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestBrowser(t *testing.T) {
	ctx := newBrowser(t)
	box := newBox(t, func(c *Config) {
		c.Boot.Conditions = []handover.Condition{{
			What: "Keys are not protected against a changed disk, because Secure Boot is off.",
			Mend: "Bake the site with secure_boot: own-keys, and flash the box again.",
		}}
	})
	box.enroll(40)

	var mu sync.Mutex
	var complaints []string // what the browser wrote to its console: blocked styles, missing files
	err := chromedp.Listen(ctx, func(ev any) {
		e, ok := ev.(*log.EventEntryAdded)
		if !ok || e.Entry.Level != log.EntryLevelError || strings.Contains(e.Entry.Text, "status of 40") {
			return // the refusals below are meant
		}
		mu.Lock()
		defer mu.Unlock()
		complaints = append(complaints, e.Entry.Text+" "+e.Entry.URL)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	step := func(name string, actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, actions...); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		look(t, ctx, name)
	}
	textOf := func(selector string) string {
		t.Helper()
		text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(selector)))
		if err != nil {
			t.Fatalf("%s: %v", selector, err)
		}
		return text
	}

	step("unclaimed", chromedp.Navigate(box.URL), chromedp.WaitVisible(chromedp.CSS("#code")))
	step("claim-wrong-code", chromedp.SendKeys(chromedp.CSS("#code"), "AAAA-AAAA"), chromedp.SendKeys(chromedp.CSS("#claim-user"), "alice"),
		chromedp.Submit(chromedp.CSS("#code")), chromedp.WaitVisible(chromedp.CSS("#form-problem")))
	if got := textOf("#form-problem"); !strings.Contains(got, "claim code is wrong") {
		t.Errorf("wrong code says %q", got)
	}
	step("claimed", chromedp.SendKeys(chromedp.CSS("#code"), "k7qm 2xpd"), chromedp.Submit(chromedp.CSS("#code")), chromedp.WaitVisible(chromedp.CSS(".secrets")))
	password := textOf(".secrets dd:nth-of-type(2) code")
	step("signed-in", chromedp.Navigate(box.URL), chromedp.WaitVisible(chromedp.CSS(".log")))
	step("older", chromedp.Click(chromedp.CSS(`.paging a[rel=next]`)), chromedp.WaitVisible(chromedp.CSS(".log")))
	step("everything", chromedp.Navigate(box.URL+"/?show=all"), chromedp.WaitVisible(chromedp.CSS(".log")))
	step("signed-out", chromedp.Click(chromedp.CSS("header button")), chromedp.WaitVisible(chromedp.CSS("#user")))
	step("sign-in-wrong", chromedp.SendKeys(chromedp.CSS("#user"), "alice"), chromedp.SendKeys(chromedp.CSS("#password"), "not the password"),
		chromedp.Submit(chromedp.CSS("#password")), chromedp.WaitVisible(chromedp.CSS("#form-problem")))
	step("signed-in-again", chromedp.SendKeys(chromedp.CSS("#password"), password), chromedp.Submit(chromedp.CSS("#password")), chromedp.WaitVisible(chromedp.CSS(".log")))
	held := box.request("gate-north-4.example.com.wait")
	box.request("door.wait")
	approve := `form[action="/pending/` + held.ID + `/approve"] button`
	step("pending", chromedp.Navigate(box.URL), chromedp.WaitVisible(chromedp.CSS(approve)))
	step("approved", chromedp.Click(chromedp.CSS(approve)), chromedp.WaitNotPresent(chromedp.CSS(approve)))
	if list, err := box.engine.PendingRequests(); err != nil || len(list) != 1 {
		t.Errorf("after a click on Approve %d requests wait: %v", len(list), err)
	}
	if err := errors.Join(box.fake.PrepareNext("devices", "alice"), box.fake.SwitchProfile("corp", true, "a stolen laptop", "alice")); err != nil {
		t.Fatal(err)
	}
	on := `form[action="/profiles/corp/on"] button`
	step("orders", chromedp.Navigate(box.URL), chromedp.Click(chromedp.CSS("article:first-child details.orders summary")),
		chromedp.Click(chromedp.CSS("tbody th details.orders summary")), chromedp.WaitVisible(chromedp.CSS(on)))
	step("ordered", chromedp.Click(chromedp.CSS(on)), chromedp.WaitNotPresent(chromedp.CSS(on)))
	if s, err := box.fake.Settings("corp"); err != nil || s.Off != nil {
		t.Errorf("after a click the profile is %+v: %v", s.Off, err)
	}
	step("mscep-admin", chromedp.Navigate(box.URL+"/certsrv/mscep_admin/"), chromedp.WaitVisible(chromedp.CSS("#cn")))
	step("mscep-admin-made", chromedp.SendKeys(chromedp.CSS("#cn"), "cam-1"), chromedp.Submit(chromedp.CSS("#cn")), chromedp.WaitVisible(chromedp.CSS(".secrets")))
	if got := textOf(".secrets"); !strings.Contains(got, "SECRET-OF-cam-1") {
		t.Errorf("the page says %q", got)
	}
	step("not-found", chromedp.Navigate(box.URL+"/nowhere"), chromedp.WaitVisible(chromedp.CSS("#refusal")))
	mu.Lock()
	defer mu.Unlock()
	for _, c := range complaints {
		t.Error("the browser complains:", c)
	}
}
