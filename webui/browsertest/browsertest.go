// Package browsertest has a person look at the console of a running box in headless Chromium, for tests.
//
// Pages change while a test looks at them: a form leads to the next document, live.js puts regions in place of
// others. So whatever is read is read in one evaluation, whatever leads to another document waits for that
// document, and what the page took from under a hand is tried again. A wait ends after a minute.
package browsertest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const (
	patience = time.Minute
	pause    = 20 * time.Millisecond
)

// Options say what a browser looks at and how closely.
type Options struct {
	Origin   string            // of the console: https://HOST:PORT
	Leaf     *x509.Certificate // whose key is believed, and no other
	Pictures string            // begins the names of pictures
	// Closely: each look is by light and dark, and axe-core sees each of them. Else it is by light alone, and
	// axe-core sees the widest.
	Closely bool
}

// Tab is a tab of a browser. Its methods stop or fail the test T.
type Tab struct {
	T       *testing.T
	Context context.Context // for what else chromedp can do
	Options
	files string // where downloads go
	plain bool   // without JavaScript
	marks int
	*watch
}

// Start opens a browser and fails the test at its end where the browser complained, a page was too heavy or
// anybody but the box was asked for anything. Without Chromium the test is skipped, or fails where CI is set.
func Start(t *testing.T, o Options) *Tab {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is missing: apt-get install chromium")
		}
		t.Skip("chromium is missing: apt-get install chromium")
	}
	key := sha256.Sum256(o.Leaf.RawSubjectPublicKeyInfo)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.DisableGPU, chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("allow-pre-commit-input", true), // else what is pressed before the first frame is drawn is lost
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 30*time.Minute) // a story takes one or two
	t.Cleanup(cancel)
	b := &Tab{T: t, Context: ctx, Options: o, files: t.TempDir(), watch: newWatch()}
	b.begin()
	if _, err := chromedp.Call(ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: b.files}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.judge(t) })
	return b
}

// helpers is what scripts of this package begin with: first is the first element that selector finds, if a person
// can see it.
const helpers = `const first = (selector) => {
	const e = document.querySelector(selector);
	return e && e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length ? e : null;
};
const loaded = document.readyState === "complete";
`

// quoted is text as JavaScript has it.
func quoted(text string) string {
	q, err := json.Marshal(text)
	if err != nil {
		panic(err) // strings always have one
	}
	return string(q)
}

// evaluate asks the page, and again where the document went away meanwhile.
func evaluate[V any](ctx context.Context, script string, options ...chromedp.EvaluateOption) (V, error) {
	for {
		got, err := chromedp.Run(ctx, chromedp.Evaluate[V](script, options...))
		var gone *cdproto.Error
		if !errors.As(err, &gone) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, err
		case <-time.After(pause):
		}
	}
}

// ask has the page run the body of a function until that returns something.
func ask[V any](ctx context.Context, body string) (V, error) {
	for {
		got, err := evaluate[*V](ctx, "(() => {"+helpers+body+"})()")
		if got != nil {
			return *got, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			var none V
			return none, err
		case <-time.After(pause):
		}
	}
}

// within does something that takes a minute at most.
func (b *Tab) within(what string, f func(ctx context.Context) error) {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.Context, patience)
	defer cancel()
	if err := f(ctx); err != nil {
		b.T.Fatalf("%s: %v\nthe page is at %s and says\n%s", what, err, b.At(), b.Body())
	}
}

// leaves does what leads to another document and waits until that is loaded and then is visible.
func (b *Tab) leaves(what, then string, act func(ctx context.Context) error) {
	b.T.Helper()
	b.marks++
	b.within(what, func(ctx context.Context) error {
		if _, err := evaluate[int](ctx, fmt.Sprintf("window.leaving = %d", b.marks)); err != nil {
			return err
		}
		if err := act(ctx); err != nil {
			return err
		}
		_, err := ask[bool](ctx, fmt.Sprintf("if (window.leaving !== %d && loaded && first(%s)) return true", b.marks, quoted(then)))
		if err != nil {
			return fmt.Errorf("waiting for %s on the page it leads to: %w", then, err)
		}
		return nil
	})
}

// Open goes to a page and waits until selector is visible.
func (b *Tab) Open(path, selector string) {
	b.T.Helper()
	b.leaves("opening "+path, selector, func(ctx context.Context) error {
		for {
			got, err := chromedp.Call(ctx, page.Navigate, page.NavigateParams{URL: b.Origin + path})
			switch {
			case err != nil:
				return err
			case got.ErrorText == networkChanged:
				continue
			case got.ErrorText != "":
				return errors.New(got.ErrorText)
			case got.LoaderID == "": // another place of the same document
				_, err = evaluate[int](ctx, "window.leaving = 0")
			}
			return err
		}
	})
}

// Press clicks on what leads to another document, and waits until then is visible there.
func (b *Tab) Press(selector, then string) {
	b.T.Helper()
	b.leaves("pressing "+selector, then, func(ctx context.Context) error { return b.click(ctx, selector) })
}

// Click clicks on what stays in the page.
func (b *Tab) Click(selector string) {
	b.T.Helper()
	b.within("clicking on "+selector, func(ctx context.Context) error { return b.click(ctx, selector) })
}

// click clicks where a person would: on what is visible, can be used and is not covered. Where the page changes
// in between, so that something else is hit, that hears nothing of it, and it is tried again. Without JavaScript
// nothing changes by itself.
func (b *Tab) click(ctx context.Context, selector string) error {
	for {
		at, err := ask[[2]float64](ctx, `
			const e = first(`+quoted(selector)+`);
			if (!loaded || !e || e.matches(":disabled")) return null;
			e.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
			const box = e.getClientRects()[0], x = box.left + box.width / 2, y = box.top + box.height / 2;
			const isMeant = (hit) => e.contains(hit) || hit?.closest("label")?.control === e;
			if (!isMeant(document.elementFromPoint(x, y))) return null;
			removeEventListener("click", window.judge, true);
			window.hit = false;
			window.judge = (event) => {
				window.hit = isMeant(event.target);
				if (!window.hit) { event.preventDefault(); event.stopImmediatePropagation(); }
			};
			addEventListener("click", window.judge, {capture: true, once: true});
			return [x, y]`)
		if err != nil {
			return fmt.Errorf("nothing to click on: %w", err)
		}
		if err := chromedp.Do(ctx, chromedp.MouseClickXY(at[0], at[1])); err != nil {
			return err
		}
		isHit, err := evaluate[bool](ctx, "window.hit !== false")
		if err != nil || isHit || b.plain {
			return err
		}
	}
}

// Write puts text into a field in place of what is there, and leaves the focus in it.
func (b *Tab) Write(field, text string) {
	b.T.Helper()
	b.within("writing into "+field, func(ctx context.Context) error {
		for {
			if err := focus(ctx, field, `e.value = ""`); err != nil {
				return err
			}
			if _, err := chromedp.Call(ctx, input.InsertText, input.InsertTextParams{Text: text}); err != nil {
				return err
			}
			isThere, err := evaluate[bool](ctx, "document.querySelector("+quoted(field)+")?.value === "+quoted(text))
			if err != nil || isThere {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

// focus puts the focus into field, after which live.js leaves its region alone.
func focus(ctx context.Context, field, and string) error {
	_, err := ask[bool](ctx, `const e = first(`+quoted(field)+`); if (!loaded || !e) return null; e.focus(); `+and+`; return document.activeElement === e || null`)
	return err
}

// Enter presses the key of that name in a field, which sends its form.
func (b *Tab) Enter(field, then string) {
	b.T.Helper()
	b.leaves("Enter in "+field, then, func(ctx context.Context) error {
		if err := focus(ctx, field, ""); err != nil {
			return err
		}
		return chromedp.Do(ctx, chromedp.KeyEvent(kb.Enter))
	})
}

// Escape presses the key of that name, which closes a modal dialog.
func (b *Tab) Escape(then string) {
	b.T.Helper()
	b.leaves("Escape", then, func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.KeyEvent(kb.Escape)) })
}

// Choose takes one of the options of a select element.
func (b *Tab) Choose(field, value string) {
	b.T.Helper()
	b.within("choosing "+value+" in "+field, func(ctx context.Context) error {
		_, err := ask[bool](ctx, `const e = first(`+quoted(field)+`); if (!loaded || !e) return null; e.value = `+quoted(value)+`; return e.value === `+quoted(value)+` || null`)
		return err
	})
}

// Upload puts files into a field for them.
func (b *Tab) Upload(field string, files ...string) {
	b.T.Helper()
	b.within("files into "+field, func(ctx context.Context) error {
		for {
			e, err := evaluate[*runtime.RemoteObject](ctx, "document.querySelector("+quoted(field)+")")
			if err != nil {
				return err
			}
			_, err = chromedp.Call(ctx, dom.SetFileInputFiles, dom.SetFileInputFilesParams{Files: files, ObjectID: e.ObjectID})
			var gone *cdproto.Error
			if !errors.As(err, &gone) || ctx.Err() != nil {
				return err
			}
		}
	})
}

// Back goes back in the history to a page where then is visible.
func (b *Tab) Back(then string) {
	b.T.Helper()
	b.Script("history.back()", then)
}

// Reload loads the page again.
func (b *Tab) Reload(then string) {
	b.T.Helper()
	b.Script("location.reload()", then)
}

// Script runs a script that leads to another document, where then is visible.
func (b *Tab) Script(script, then string) {
	b.T.Helper()
	b.leaves(script, then, func(ctx context.Context) error {
		return chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void](script))
	})
}

// Shows waits until selector is visible on the page as it is, or becomes by itself.
func (b *Tab) Shows(selector string) {
	b.T.Helper()
	b.Text(selector)
}

// Until waits for the page to become so by itself.
func (b *Tab) Until(what, script string) {
	b.T.Helper()
	b.within("not so: "+what, func(ctx context.Context) error {
		_, err := ask[bool](ctx, "return ("+script+") ? true : null")
		return err
	})
}

// Eval asks the page.
func Eval[V any](b *Tab, script string) V {
	b.T.Helper()
	ctx, cancel := context.WithTimeout(b.Context, patience)
	defer cancel()
	got, err := evaluate[V](ctx, script)
	if err != nil {
		b.T.Fatalf("%s: %v", script, err)
	}
	return got
}

// Text is what a person reads in the first element that selector finds, once it is visible.
func (b *Tab) Text(selector string) (text string) {
	b.T.Helper()
	b.within("nothing visible at "+selector, func(ctx context.Context) (err error) {
		text, err = ask[string](ctx, "return first("+quoted(selector)+")?.innerText")
		return err
	})
	return text
}

// Reads fails the test where the first element at selector lacks one of texts.
func (b *Tab) Reads(selector string, texts ...string) {
	b.T.Helper()
	got := b.Text(selector)
	for _, text := range texts {
		if !strings.Contains(got, text) {
			b.T.Errorf("%s: %s says %q without %q", b.At(), selector, got, text)
		}
	}
}

// Has tells how many elements selector finds.
func (b *Tab) Has(selector string) int {
	b.T.Helper()
	return Eval[int](b, "document.querySelectorAll("+quoted(selector)+").length")
}

// At is where the tab is.
func (b *Tab) At() string {
	ctx, cancel := context.WithTimeout(b.Context, patience)
	defer cancel()
	location, err := evaluate[string](ctx, "location.href")
	return location + errorText(err)
}

// Body is what a person reads on the page.
func (b *Tab) Body() string {
	ctx, cancel := context.WithTimeout(b.Context, patience)
	defer cancel()
	text, err := evaluate[string](ctx, `document.querySelector("main")?.innerText ?? document.body?.innerText ?? ""`)
	return text + errorText(err)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Commands are the texts that the page has to copy, as its buttons copy them.
func (b *Tab) Commands(selector string) []string {
	b.T.Helper()
	all := Eval[[]string](b, `[...document.querySelectorAll(`+quoted(selector+" pre code")+`)].map(e => e.textContent)`)
	if len(all) == 0 {
		b.T.Fatalf("nothing to copy at %s of %s", selector, b.At())
	}
	return all
}

// Download presses a link and returns the file that came, and its name.
func (b *Tab) Download(link string) (name string, content []byte) {
	b.T.Helper()
	before := b.downloads()
	b.Click(link)
	b.within("downloading "+link, func(ctx context.Context) (err error) {
		for ; ctx.Err() == nil; time.Sleep(pause) {
			for _, name = range b.downloads() {
				if !slices.Contains(before, name) {
					content, err = os.ReadFile(filepath.Join(b.files, name))
					return err
				}
			}
		}
		return ctx.Err()
	})
	return name, content
}

// downloads are the names of the files that are whole.
func (b *Tab) downloads() (names []string) {
	b.T.Helper()
	files, err := os.ReadDir(b.files)
	if err != nil {
		b.T.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".crdownload") && !strings.HasPrefix(f.Name(), ".") {
			names = append(names, f.Name())
		}
	}
	return names
}

// Beside presses a link that opens another tab, and returns that.
func (b *Tab) Beside(link, then string) (other *Tab, leave func()) {
	b.T.Helper()
	opened := chromedp.WaitNewTarget(b.Context, func(i *target.Info) bool { return i.URL != "" })
	b.Click(link)
	ctx, cancel := chromedp.NewContext(b.Context, chromedp.WithTargetID(<-opened))
	copied := *b
	copied.Context = ctx
	copied.begin()
	copied.Until("the other tab is loaded", "loaded && first("+quoted(then)+")")
	return &copied, cancel
}

// Another opens a page in another tab of the same browser.
func (b *Tab) Another(path, selector string) (other *Tab, leave func()) {
	b.T.Helper()
	ctx, cancel := chromedp.NewContext(b.Context)
	copied := *b
	copied.Context, copied.plain = ctx, false
	copied.begin()
	copied.Open(path, selector)
	return &copied, cancel
}

// Front puts the tab in front of the others: the browser draws no other, and runs their timers late.
func (b *Tab) Front() {
	b.T.Helper()
	if _, err := chromedp.Call(b.Context, page.BringToFront, cdp.Empty{}); err != nil {
		b.T.Fatal(err)
	}
}

// Scripts switches JavaScript of pages on or off.
func (b *Tab) Scripts(on bool) {
	b.T.Helper()
	if _, err := chromedp.Call(b.Context, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on}); err != nil {
		b.T.Fatal(err)
	}
	b.plain = !on
}

// Cookie gives the browser a cookie of the console.
func (b *Tab) Cookie(name, value string) {
	b.T.Helper()
	_, err := chromedp.Call(b.Context, network.SetCookie, network.SetCookieParams{Name: name, Value: value, URL: b.Origin, Secure: new(true), HTTPOnly: new(true)})
	if err != nil {
		b.T.Fatal(err)
	}
}

// Authenticator gives the browser a device that makes passkeys and whose owner is there, and verified or not.
func (b *Tab) Authenticator() (setVerified func(yes bool)) {
	b.T.Helper()
	if _, err := chromedp.Call(b.Context, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		b.T.Fatal(err)
	}
	device, err := chromedp.Call(b.Context, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
	if err != nil {
		b.T.Fatal(err)
	}
	return func(yes bool) {
		b.T.Helper()
		if _, err := chromedp.Call(b.Context, webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: device.AuthenticatorID, IsUserVerified: yes}); err != nil {
			b.T.Fatal(err)
		}
	}
}
