package appliance_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
)

// visitor is a person at a tab of headless Chromium, who looks at the console of a running service. The
// browser believes this box's key and no other.
type visitor struct {
	t     *testing.T
	ctx   context.Context
	s     *service
	url   string // of the console, by name: addresses have no passkeys
	files string // where downloads go
	plain bool   // without JavaScript
	*watch
}

// watch is what a browser does behind the pages, of all its tabs.
type watch struct {
	mu         sync.Mutex
	complaints []string                     // what it wrote to its console, and requests to others than the box
	requests   []string                     // paths, in order
	loads      map[string]int64             // bytes by path and loader of the document, its assets among them
	pages      map[cdp.LoaderID]string      // paths of documents that are pages
	of         map[network.RequestID]string // the key in loads
	looked     map[string]bool              // paths of the pages that were looked at
}

// maxPage is what a page may weigh with its assets, in bytes over the network.
const maxPage = 100_000

// visit opens a browser at the console and fails the test at its end where the browser complained, where a
// page was too heavy and where anybody else was asked for anything.
func visit(t *testing.T, s *service) *visitor {
	t.Helper()
	path := needs(t, "chromium", "chromium")
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.ready.Console, "https://"), &tls.Config{InsecureSkipVerify: true}) // the key is held against the ready file
	if err != nil {
		t.Fatal(err)
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	conn.Close()
	if sum := sha256.Sum256(leaf.Raw); hex.EncodeToString(sum[:]) != s.ready.TLSSHA256 {
		t.Fatal("the console shows another certificate than the ready file says")
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.DisableGPU, chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 10*time.Minute)
	t.Cleanup(cancel)
	v := &visitor{t: t, ctx: ctx, s: s, url: strings.Replace(s.ready.Console, "127.0.0.1", "localhost", 1), files: t.TempDir(),
		watch: &watch{loads: map[string]int64{}, pages: map[cdp.LoaderID]string{}, of: map[network.RequestID]string{}, looked: map[string]bool{}}}
	v.begin()
	if _, err := chromedp.Call(ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: v.files}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.judge(t) })
	return v
}

// begin watches a tab.
func (v *visitor) begin() {
	v.t.Helper()
	err := chromedp.Listen(v.ctx, func(ev any) { v.watch.saw(ev, v.url) })
	if err == nil {
		_, err = chromedp.Call(v.ctx, log.Enable, cdp.Empty{})
	}
	if err == nil {
		_, err = chromedp.Call(v.ctx, network.Enable, network.EnableParams{})
	}
	if err == nil { // each page is weighed as on a first visit
		_, err = chromedp.Call(v.ctx, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	}
	if err == nil {
		err = chromedp.Do(v.ctx, chromedp.EmulateViewport(1280, 900))
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// saw keeps what an event tells.
func (w *watch) saw(ev any, origin string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := ev.(type) {
	case *log.EventEntryAdded:
		isRefusal := strings.Contains(e.Entry.Text, "status of 4") || strings.HasSuffix(e.Entry.URL, "/reload-trust")
		if e.Entry.Level == log.EntryLevelError && !isRefusal {
			w.complaints = append(w.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme != "data" && !strings.HasPrefix(e.Request.URL, origin+"/") {
			w.complaints = append(w.complaints, "the page "+e.DocumentURL+" asks for "+e.Request.URL)
			return
		}
		w.requests = append(w.requests, u.Path)
		if e.Type != network.ResourceTypeFetch && e.Type != network.ResourceTypeXHR && e.Type != network.ResourceTypeEventSource {
			w.of[e.RequestID] = string(e.LoaderID)
		}
	case *network.EventResponseReceived:
		u, err := url.Parse(e.Response.URL)
		if err == nil && e.Type == network.ResourceTypeDocument && e.Response.MimeType == "text/html" {
			w.pages[e.LoaderID] = u.Path
		}
	case *network.EventLoadingFinished:
		if loader, ok := w.of[e.RequestID]; ok {
			w.loads[loader] += int64(e.EncodedDataLength)
		}
	}
}

// judge tells at the end what was wrong behind the pages.
func (v *visitor) judge(t *testing.T) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.complaints {
		t.Error("the browser complains:", c)
	}
	heaviest, path := int64(0), ""
	for loader, p := range v.pages {
		n := v.loads[string(loader)]
		if n > heaviest {
			heaviest, path = n, p
		}
		if n >= maxPage {
			t.Errorf("%s takes %d bytes with its assets", p, n)
		}
	}
	t.Logf("%d pages were loaded, %d requests made; the heaviest, %s, took %d bytes with its assets", len(v.pages), len(v.requests), path, heaviest)
}

// asked are the paths that the browser asked for while f ran.
func (v *visitor) asked(f func()) []string {
	v.mu.Lock()
	before := len(v.requests)
	v.mu.Unlock()
	f()
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.requests[before:])
}

// do takes actions and stops the test where one of them does not come to its end.
func (v *visitor) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		v.t.Fatalf("%s: %v\nthe page is at %s and says\n%s", what, err, v.at(), v.body())
	}
}

func (v *visitor) at() string {
	location, _ := chromedp.Run(v.ctx, chromedp.Location())
	return location
}

func (v *visitor) body() string {
	text, _ := chromedp.Run(v.ctx, chromedp.Evaluate[string](`document.querySelector("main")?.innerText ?? document.body.innerText`))
	return text
}

// open goes to a page and waits until selector is visible.
func (v *visitor) open(path, selector string) {
	v.t.Helper()
	v.do("opening "+path, chromedp.Navigate(v.url+path), chromedp.WaitVisible(chromedp.CSS(selector)))
}

// press clicks on what is at selector and waits until then is visible.
func (v *visitor) press(selector, then string) {
	v.t.Helper()
	v.do("pressing "+selector, chromedp.Click(chromedp.CSS(selector)), v.shows(then))
}

func (v *visitor) shows(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.WaitVisible(chromedp.CSS(selector))
}

// write puts text into a field in place of what is there.
func (v *visitor) write(field, text string) {
	v.t.Helper()
	v.do("writing into "+field, chromedp.Clear(chromedp.CSS(field)), chromedp.SendKeys(chromedp.CSS(field), text))
}

// eval asks the page.
func eval[T any](v *visitor, script string) T {
	v.t.Helper()
	got, err := chromedp.Run(v.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		v.t.Fatalf("%s: %v", script, err)
	}
	return got
}

// text is what a person reads in the first element that selector finds.
func (v *visitor) text(selector string) string {
	v.t.Helper()
	text, err := chromedp.Run(v.ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		v.t.Fatalf("%s: %v", selector, err)
	}
	return text
}

// reads fails the test where the first element at selector lacks one of texts.
func (v *visitor) reads(selector string, texts ...string) {
	v.t.Helper()
	got := v.text(selector)
	for _, text := range texts {
		if !strings.Contains(got, text) {
			v.t.Errorf("%s: %s says %q without %q", v.at(), selector, got, text)
		}
	}
}

// has tells how many elements selector finds.
func (v *visitor) has(selector string) int {
	v.t.Helper()
	return eval[int](v, `document.querySelectorAll(`+quoted(selector)+`).length`)
}

func quoted(text string) string { return "`" + text + "`" }

// until waits for the page to become so by itself.
func (v *visitor) until(what, script string) {
	v.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if eval[bool](v, script) {
			return
		}
		if time.Now().After(end) {
			v.t.Fatalf("not so: %s\nthe page is at %s and says\n%s", what, v.at(), v.body())
		}
	}
}

// commands are the texts that the page has to copy, as its buttons copy them.
func (v *visitor) commands(selector string) []string {
	v.t.Helper()
	all := eval[[]string](v, `[...document.querySelectorAll(`+quoted(selector+" pre code")+`)].map(e => e.textContent)`)
	if len(all) == 0 {
		v.t.Fatalf("nothing to copy at %s of %s", selector, v.at())
	}
	return all
}

// download presses a link and returns the file that came, and its name.
func (v *visitor) download(link string) (name string, content []byte) {
	v.t.Helper()
	before, err := os.ReadDir(v.files)
	if err != nil {
		v.t.Fatal(err)
	}
	v.do("downloading "+link, chromedp.Click(chromedp.CSS(link)))
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		now, err := os.ReadDir(v.files)
		if err != nil {
			v.t.Fatal(err)
		}
		for _, f := range now {
			isOld := slices.ContainsFunc(before, func(b os.DirEntry) bool { return b.Name() == f.Name() })
			if !isOld && !strings.HasSuffix(f.Name(), ".crdownload") && !strings.HasPrefix(f.Name(), ".") {
				return f.Name(), readFile(v.t, filepath.Join(v.files, f.Name()))
			}
		}
	}
	v.t.Fatalf("nothing was downloaded at %s", link)
	return "", nil
}

// beside presses a link that opens another tab, and returns the visitor there.
func (v *visitor) beside(link, then string) (other *visitor, leave func()) {
	v.t.Helper()
	opened := chromedp.WaitNewTarget(v.ctx, func(i *target.Info) bool { return i.URL != "" })
	v.do("pressing "+link, chromedp.Click(chromedp.CSS(link)))
	ctx, cancel := chromedp.NewContext(v.ctx, chromedp.WithTargetID(<-opened))
	copied := *v
	copied.ctx = ctx
	copied.begin()
	copied.do("the other tab", copied.shows(then))
	return &copied, cancel
}

// front puts the visitor's tab in front of the others: the browser draws no other, and runs their timers late.
func (v *visitor) front() {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, page.BringToFront, cdp.Empty{}); err != nil {
		v.t.Fatal(err)
	}
}

// scripts switches JavaScript on or off.
func (v *visitor) scripts(on bool) {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on}); err != nil {
		v.t.Fatal(err)
	}
	v.plain = !on
}

// look holds the page against the width of a phone and against axe-core, and keeps pictures of it.
func (v *visitor) look(name string) {
	v.t.Helper()
	for _, screen := range []struct {
		name  string
		width int64
	}{{"phone", 390}, {"desktop", 1280}} {
		v.do(name, chromedp.EmulateViewport(screen.width, 900))
		if width := eval[int64](v, `document.documentElement.scrollWidth`); width > screen.width {
			v.t.Errorf("%s: %d px wide on a screen of %d", name, width, screen.width)
		}
		if dir := os.Getenv("SIGNET_SCREENSHOTS"); dir != "" {
			picture, err := chromedp.Run(v.ctx, chromedp.FullScreenshot(100))
			if err != nil {
				v.t.Fatalf("%s: %v", name, err)
			}
			writeFile(v.t, filepath.Join(dir, "service-"+name+"-"+screen.name+".png"), picture)
		}
	}
	if !v.plain {
		v.accessible(name)
	}
	if u, err := url.Parse(v.at()); err == nil {
		v.mu.Lock()
		v.looked[u.Path] = true
		v.mu.Unlock()
	}
}

// see opens a page and looks at it.
func (v *visitor) see(name, path, selector string) {
	v.t.Helper()
	v.open(path, selector)
	v.look(name)
}

// accessible has axe-core look for what people with disabilities could not use. The browser tests of webui
// hold the script against its hash, and look in light and dark at either width.
func (v *visitor) accessible(name string) {
	v.t.Helper()
	script, err := os.ReadFile("../build/axe/node_modules/axe-core/axe.min.js")
	if err != nil {
		if os.Getenv("CI") != "" {
			v.t.Fatalf("axe-core is missing: make test fetches it: %v", err)
		}
		return
	}
	if err := chromedp.Do(v.ctx, chromedp.Evaluate[chromedp.Void](string(script)+";undefined")); err != nil {
		v.t.Fatalf("%s: loading axe-core: %v", name, err)
	}
	found, err := chromedp.Run(v.ctx, chromedp.Evaluate[string](`(async () => {
		const found = await axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]});
		return found.violations.map(v => v.id + ": " + v.help + ": " + v.nodes.map(n => n.target.join(" ") + " " + n.html.slice(0, 160)).slice(0, 4).join("; ")).join("\n");
	})()`, chromedp.EvalAwaitPromise))
	if err != nil || found != "" {
		v.t.Errorf("%s: axe-core finds %v\n%s", name, err, found)
	}
}
