package exchange

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A source is known by its address where nothing else says whom a request is from.
func TestRemoteAddr(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	for address, want := range map[string]string{
		"192.0.2.1:5": "192.0.2.1", "[::ffff:192.0.2.1]:5": "192.0.2.1", "[2001:db8::1]:5": "2001:db8::1", "[fe80::1%eth0]:5": "fe80::1", "@": "invalid IP", "192.0.2.1": "invalid IP",
	} {
		r.RemoteAddr = address
		if got := RemoteAddr(r).String(); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}

// A burst is worked off: who comes while all slots are taken waits for one, and not for ever.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSlots(1, 3*time.Second)
		if !s.Enter(t.Context()) {
			t.Fatal("an idle server has no slot")
		}
		entered := make(chan bool)
		try := func(ctx context.Context) { entered <- s.Enter(ctx) }
		go try(t.Context())
		synctest.Wait()
		s.Leave()
		if !<-entered {
			t.Error("refused although a slot came free")
		}
		go try(t.Context()) // nobody leaves
		if <-entered {
			t.Error("more requests than slots")
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		go try(gone)
		if <-entered {
			t.Error("a client that is gone got a slot")
		}
	})
}

// began is an exchange with a recorder at its end.
func began(method string) (*Exchange, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	x := New(w, httptest.NewRequest(method, "/", nil), netip.MustParseAddr("192.0.2.1"))
	return &x, w
}

func TestReply(t *testing.T) {
	for _, tt := range []struct {
		method, contentType, body string
		status                    int
		length, got               string
	}{
		{"GET", "text/x", "body", 200, "4", "body"},
		{"HEAD", "text/x", "body", 200, "4", ""},
		{"POST", "", "", 202, "0", ""},
		{"GET", "", "", 204, "", ""},
	} {
		x, w := began(tt.method)
		x.OmitDate()
		x.Reply(tt.status, tt.contentType, []byte(tt.body))
		date, has := w.Header()["Date"]
		if w.Code != tt.status || x.Status != tt.status || w.Body.String() != tt.got || w.Header().Get("Content-Length") != tt.length ||
			w.Header().Get("Content-Type") != tt.contentType || !has || date != nil || x.Err != nil {
			t.Errorf("%+v: %d %v %q", tt, w.Code, w.Header(), w.Body)
		}
	}
}

func TestRefuse(t *testing.T) {
	x, w := began("POST")
	x.Refuse(http.StatusBadRequest, "do this")
	if w.Code != 400 || w.Body.String() != "do this\n" || x.Outcome != "refused" || x.Reason != "do this" {
		t.Errorf("%d %q, %+v", w.Code, w.Body, x)
	}
	if x, _ = began("POST"); x.ID == "" {
		t.Error("an exchange without a name")
	}
	if x.Refuse(http.StatusInternalServerError, "see the log"); x.Outcome != "error" {
		t.Errorf("outcome %s", x.Outcome)
	}
	// Those refused together do not return together.
	seconds := map[string]bool{}
	for range 200 {
		x, w := began("GET")
		x.RetryLater("busy")
		after := w.Header().Get("Retry-After")
		if n, err := strconv.Atoi(after); err != nil || n < 5 || n > 15 || w.Code != 503 || x.Outcome != "busy" {
			t.Fatalf("%d %q %s", w.Code, after, x.Outcome)
		}
		seconds[after] = true
	}
	if len(seconds) < 5 {
		t.Errorf("200 clients return at %d moments", len(seconds))
	}
}

// failing is a connection that is gone.
type failing struct{ http.ResponseWriter }

func (failing) Write([]byte) (int, error) { return 0, errors.New("gone") }

// An answer that did not arrive is in the log, and no error before it is forgotten.
func TestReplyToNobody(t *testing.T) {
	for _, earlier := range []error{nil, errors.New("earlier")} {
		x, w := began("GET")
		x.W, x.Err = failing{w}, earlier
		x.Reply(200, "text/x", []byte("body"))
		if x.Err == nil || earlier != nil && !errors.Is(x.Err, earlier) {
			t.Errorf("error %v after %v", x.Err, earlier)
		}
	}
}

func TestLog(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	x, _ := began("GET")
	x.Serial = "2a"
	x.Refuse(http.StatusForbidden, "no")
	x.Err = errors.New("because")
	x.Log(log, "scep", slog.String("profile", "corp"), slog.String("operation", ""))
	want := regexp.MustCompile(`level=INFO msg=scep request=\w{12} source=192\.0\.2\.1 outcome=refused status=403 took=\S+ profile=corp serial=2a reason=no error=because\n$`)
	if !want.MatchString(b.String()) {
		t.Errorf("%s", b.String())
	}
	b.Reset()
	long := strings.Repeat("1.", 1<<20)
	x.Reason, x.Err = long, errors.New(long)
	if x.Log(log, "scep"); b.Len() > 3*maxLogged {
		t.Errorf("a line of %d bytes", b.Len())
	}
	x.Outcome = "error"
	if x.Log(log, "scep"); !strings.Contains(b.String(), "level=ERROR") {
		t.Errorf("%s", b.String())
	}
}
