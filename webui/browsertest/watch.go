package browsertest

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// maxPage is what a page may weigh with its assets, in bytes over the network.
const maxPage = 100_000

// networkChanged is how requests end that were on their way when an address came to this machine or went.
const networkChanged = "net::ERR_NETWORK_CHANGED"

// watch is what a browser does behind the pages, of all its tabs.
type watch struct {
	mu         sync.Mutex
	complaints []string
	requests   []string                     // paths, in order
	loads      map[string]int64             // bytes by loader of the document, its assets among them
	pages      map[cdp.LoaderID]string      // paths of documents that are pages
	of         map[network.RequestID]string // the key in loads
	looked     map[string]bool              // paths of the pages that were looked at
	sent       map[network.RequestID]string // paths of forms on their way
	orders     []Order
}

// Order is a form that was sent to the console, and what became of it.
type Order struct {
	Path   string
	Status int64 // of HTTP: 400 and more for what was refused
}

func newWatch() *watch {
	return &watch{sent: map[network.RequestID]string{}, loads: map[string]int64{}, pages: map[cdp.LoaderID]string{}, of: map[network.RequestID]string{}, looked: map[string]bool{}}
}

// begin watches a tab.
func (b *Tab) begin() {
	b.T.Helper()
	origin := b.Origin
	err := chromedp.Listen(b.Context, func(ev any) { b.watch.saw(ev, origin) })
	if err == nil {
		_, err = chromedp.Call(b.Context, log.Enable, cdp.Empty{})
	}
	if err == nil {
		_, err = chromedp.Call(b.Context, network.Enable, network.EnableParams{})
	}
	if err == nil { // each page is weighed as on a first visit
		_, err = chromedp.Call(b.Context, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	}
	if err == nil {
		err = chromedp.Do(b.Context, chromedp.EmulateViewport(1280, 900))
	}
	if err != nil {
		b.T.Fatal(err)
	}
}

// saw keeps what an event tells.
func (w *watch) saw(ev any, origin string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := ev.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && !isMeant(e.Entry, origin) {
			w.complaints = append(w.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		w.complaints = append(w.complaints, (&chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails}).Error())
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme != "data" && !strings.HasPrefix(e.Request.URL, origin+"/") {
			w.complaints = append(w.complaints, "the page "+e.DocumentURL+" asks for "+e.Request.URL)
			return
		}
		w.requests = append(w.requests, u.Path)
		if e.RedirectResponse != nil {
			w.answered(e.RequestID, e.RedirectResponse.Status)
		}
		if e.Type == network.ResourceTypeDocument && e.Request.Method == "POST" {
			w.sent[e.RequestID] = u.Path
		}
		if e.Type != network.ResourceTypeFetch && e.Type != network.ResourceTypeXHR && e.Type != network.ResourceTypeEventSource {
			w.of[e.RequestID] = string(e.LoaderID)
		}
	case *network.EventResponseReceived:
		w.answered(e.RequestID, e.Response.Status)
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

// answered keeps what became of a form.
func (w *watch) answered(id network.RequestID, status int64) {
	if path, ok := w.sent[id]; ok {
		delete(w.sent, id)
		w.orders = append(w.orders, Order{path, status})
	}
}

// Orders are the forms that were sent since the last call.
func (w *watch) Orders() []Order {
	w.mu.Lock()
	defer w.mu.Unlock()
	orders := w.orders
	w.orders = nil
	return orders
}

// isMeant tells whether an error that the browser wrote is none of the console's: a refusal, which stories ask
// for, or the machine's network. Requests that end because their page was left are no errors to the browser.
func isMeant(e *log.Entry, origin string) bool {
	isAsset := strings.HasPrefix(e.URL, origin+"/static/")
	isRefusal := strings.Contains(e.Text, "status of 4") && !isAsset
	isBadBundle := strings.HasSuffix(e.URL, "/reload-trust")
	return isRefusal || isBadBundle || strings.Contains(e.Text, networkChanged)
}

// judge tells at the end what was wrong behind the pages.
func (w *watch) judge(t *testing.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.complaints {
		t.Error("the browser complains:", c)
	}
	heaviest, path := int64(0), ""
	for loader, p := range w.pages {
		n := w.loads[string(loader)]
		if n > heaviest {
			heaviest, path = n, p
		}
		if n >= maxPage {
			t.Errorf("%s takes %d bytes with its assets", p, n)
		}
	}
	t.Logf("%d pages were loaded, %d requests made; the heaviest, %s, took %d bytes with its assets", len(w.pages), len(w.requests), path, heaviest)
}

// Asked are the paths that the browser asked for while f ran.
func (w *watch) Asked(f func()) []string {
	w.mu.Lock()
	before := len(w.requests)
	w.mu.Unlock()
	f()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.requests[before:])
}

func (w *watch) lookedAt(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked[path] = true
}

// Looked tells whether a page of that path was looked at.
func (w *watch) Looked(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.looked[path]
}
