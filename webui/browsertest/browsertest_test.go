package browsertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// start opens a browser at a server of pages, by path.
func start(t *testing.T, pages map[string]http.HandlerFunc) *Tab {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/favicon.ico", func(http.ResponseWriter, *http.Request) {})
	for path, f := range pages {
		mux.HandleFunc(path, f)
	}
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	return Start(t, Options{Origin: server.URL, Leaf: server.Certificate()})
}

func html(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><title>t</title><main>"+body+"</main>")
	}
}

// TestLeaves: whoever presses something reads the page that it leads to, however late that comes and however
// much it is like the one before.
func TestLeaves(t *testing.T) {
	const at = `<h1>%s</h1><a href="/next">on</a><form action="/next"><input id="field"><button>send</button></form>`
	b := start(t, map[string]http.HandlerFunc{
		"/": html(fmt.Sprintf(at, "before")),
		"/next": func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(200 * time.Millisecond) // a box has its slow moments
			html(fmt.Sprintf(at, "after"))(w, r)
		},
	})
	for _, scripts := range []bool{true, false} {
		b.Scripts(scripts)
		for what, leave := range map[string]func(){
			"a link":  func() { b.Press("a", "h1") },
			"a form":  func() { b.Press("button", "h1") },
			"a field": func() { b.Enter("#field", "h1") },
		} {
			b.Open("/", "h1")
			leave()
			if got := b.Text("h1"); got != "after" {
				t.Errorf("%s, scripts %v: the page says %q", what, scripts, got)
			}
		}
		b.Back("h1")
		if got := b.Text("h1"); got != "before" {
			t.Errorf("back, scripts %v: the page says %q", scripts, got)
		}
	}
}

// TestOpenPlace: a place of the page that is open already is no other document.
func TestOpenPlace(t *testing.T) {
	b := start(t, map[string]http.HandlerFunc{"/": html(`<h1 id="there">x</h1>`)})
	b.Open("/", "h1")
	b.Open("/#there", "h1:target")
	b.Open("/", "h1:not(:target)")
}

// TestChanging: a page that puts its parts in place of themselves all the time, and moves them, can be read,
// pressed and written into, and nothing else on it is pressed.
func TestChanging(t *testing.T) {
	b := start(t, map[string]http.HandlerFunc{"/": html(`<div id="above"></div><div id="live"><button id="other">other</button> <button id="meant">meant</button> <b>text</b><input id="field"></div>
		<script>
			let n = 0;
			window.pressed = [];
			document.addEventListener("click", (e) => pressed.push(e.target.id));
			setInterval(() => {
				const live = document.querySelector("#live");
				if (live.contains(document.activeElement) && document.activeElement.matches("input")) return;
				document.querySelector("#above").style.height = (n++ % 2) * 60 + "px";
				live.replaceWith(live.cloneNode(true));
			}, 5);
		</script>`)})
	b.Open("/", "#live")
	const times = 20
	for range times {
		b.Click("#meant")
		if got := b.Text("b"); got != "text" {
			t.Errorf("the page says %q", got)
		}
		b.Write("#field", "written")
		Eval[*bool](b, `document.activeElement.blur()`)
	}
	if got := Eval[[]string](b, "pressed"); len(got) != times || strings.Count(strings.Join(got, ""), "meant") != times {
		t.Errorf("pressed were %v", got)
	}
}

// TestComplaints: what is wrong behind the pages is told, and what is in order is not.
func TestComplaints(t *testing.T) {
	refused := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<h1>no</h1>", http.StatusForbidden) }
	const asks = `<script>const told = () => document.querySelector("main").innerHTML = "<h1>told</h1>"; `
	entered := make(chan bool, 1)
	b := start(t, map[string]http.HandlerFunc{
		"/fine": html("<h1>fine</h1>"), "/refused": refused, "/asked": html(asks + `fetch("/refused").then(told)</script>`),
		"/slow":    func(_ http.ResponseWriter, r *http.Request) { entered <- true; <-r.Context().Done() },
		"/left":    html(`<h1>x</h1><script>fetch("/slow").catch(() => {}); new EventSource("/slow")</script>`),
		"/static/": http.NotFound, "/broken": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"/asset":    html(`<h1>x</h1><img src="/static/gone.svg">`),
		"/error":    html(`<h1>x</h1><img src="/broken">`),
		"/cut":      html(asks + `fetch("/hangs-up").catch(told)</script>`),
		"/hangs-up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"/throws":   html(`<h1>x</h1><script>nothing.at.all</script>`),
		"/other":    html(`<h1>x</h1><img src="https://127.0.0.1:1/x.svg">`),
	})
	for _, x := range []struct{ path, want string }{
		{"/fine", ""}, {"/asked", ""}, {"/left", ""},
		{"/asset", "static/gone.svg"}, {"/error", "status of 500"}, {"/cut", "hangs-up"}, {"/throws", "ReferenceError"}, {"/other", "asks for https://127.0.0.1:1"},
	} {
		b.Open(x.path, "h1")
		if x.path == "/left" {
			<-entered
		}
		b.Open("/fine", "h1") // the browser tells in order
		b.mu.Lock()
		got := strings.Join(b.complaints, "; ")
		b.complaints = nil
		b.mu.Unlock()
		if x.want == "" && got != "" || !strings.Contains(got, x.want) {
			t.Errorf("%s: complaints %q, want %q", x.path, got, x.want)
		}
	}
}
