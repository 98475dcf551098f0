package compliance

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	key = []byte("0123456789abcdef0123456789SECRET")
	now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// receiver is a webhook as a site would write it: it verifies before it answers.
type receiver struct {
	t *testing.T
	*httptest.Server
	status      int
	contentType string
	location    string
	body        string

	mu     sync.Mutex
	ids    map[string]bool
	bodies [][]byte
}

func newReceiver(t *testing.T, body string) *receiver {
	r := &receiver{t: t, status: 200, contentType: "application/json; charset=utf-8", body: body, ids: map[string]bool{}}
	r.Server = httptest.NewTLSServer(r)
	r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		r.t.Errorf("reading the question: %v", err)
	}
	if q.Method != "POST" || q.URL.RequestURI() != "/hook?code=SECRET" || q.Header.Get("Content-Type") != "application/json" {
		r.t.Errorf("question is %s %s %s", q.Method, q.URL.RequestURI(), q.Header.Get("Content-Type"))
	}
	id, timestamp := q.Header.Get("webhook-id"), q.Header.Get("webhook-timestamp")
	mac := hmac.New(sha256.New, key)
	io.WriteString(mac, id+"."+timestamp+"."+string(body))
	if got := q.Header.Get("webhook-signature"); got != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		r.t.Errorf("signature %q", got)
	}
	if timestamp != strconv.FormatInt(now.Unix(), 10) {
		r.t.Errorf("timestamp %q", timestamp)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] || !regexp.MustCompile(`^[0-9a-f-]{36}$`).MatchString(id) {
		r.t.Errorf("id %q, seen before or none", id)
	}
	r.ids[id] = true
	r.bodies = append(r.bodies, body)
	if r.location != "" {
		w.Header().Set("Location", r.location)
	}
	w.Header()["Content-Type"] = []string{r.contentType}
	w.WriteHeader(r.status)
	io.WriteString(w, r.body)
}

func (r *receiver) hook(change func(*Config)) *Hook {
	r.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(r.Certificate())
	c := Config{
		URL: r.URL + "/hook?code=SECRET", Roots: roots, Now: func() time.Time { return now },
		Key: func() ([]byte, error) { return key, nil },
	}
	if change != nil {
		change(&c)
	}
	h, err := New(c)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

var request = Request{
	Profile: "corp", Protocol: "scep", Transaction: "4F2C", Identity: "printer-7", Subject: "CN=printer-7", SID: "S-1-5-21-1-2-3-4",
	SANs: []string{"DNS:printer-7.example.com", "IP:192.0.2.7"}, CSR: sha256.Sum256([]byte("request")),
	Source: netip.MustParseAddr("::ffff:192.0.2.7"), Renewal: true,
}

// TestStandardWebhooksExample is the example that the reference libraries of Standard Webhooks share.
func TestStandardWebhooksExample(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	sign(h, secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	want := http.Header{}
	want.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	want.Set("webhook-timestamp", "1614265330")
	want.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
}

func TestQuestion(t *testing.T) {
	r := newReceiver(t, `{"allow": true}`)
	h := r.hook(nil)
	for _, q := range []Request{request, {}} {
		if err := h.Check(context.Background(), q); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{
		`{"profile":"corp","protocol":"scep","transaction":"4F2C","identity":"printer-7","subject":"CN=printer-7","sans":["DNS:printer-7.example.com","IP:192.0.2.7"],"sid":"S-1-5-21-1-2-3-4",` +
			`"csr_sha256":"1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047","source":"192.0.2.7","renewal":true}`,
		`{"profile":"","protocol":"","transaction":"","identity":"","subject":"","sans":[],"sid":"",` +
			`"csr_sha256":"` + strings.Repeat("0", 64) + `","source":"","renewal":false}`,
	} {
		if diff := cmp.Diff(want, string(r.bodies[i])); diff != "" {
			t.Errorf("question %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestAnswers(t *testing.T) {
	const unavailable = "unavailable"
	for body, want := range map[string]string{ // to "yes", the reason of a no, or unavailable
		`{"allow":true}`: "yes",
		" {\n\"reason\":\"fine\",\"allow\":true}\n": "yes",
		`{"allow":false}`: "",
		`{"allow":false,"reason":"not enrolled – ask IT"}`:                  "not enrolled – ask IT",
		`{"reason":"` + strings.Repeat("r", maxReason) + `","allow":false}`: strings.Repeat("r", maxReason),

		``: unavailable, `null`: unavailable, `true`: unavailable, `"allow"`: unavailable, `[{"allow":true}]`: unavailable, `{}`: unavailable,
		`{"Allow":true}`: unavailable, `{"allow":"true"}`: unavailable, `{"allow":1}`: unavailable, `{"allow":null}`: unavailable,
		`{"allow":{}}`: unavailable, `{"allow":[true]}`: unavailable, `{"allow":{"allow":true}}`: unavailable,
		`{"allow":true,"allow":true}`: unavailable, `{"allow":false,"allow":true}`: unavailable, `{"allow":null,"allow":true}`: unavailable,
		`{"allow":true,"reason":null}`: unavailable, `{"allow":true,"reason":"a","reason":"b"}`: unavailable, `{"allow":true,"reason":7}`: unavailable,
		`{"allow":true,"more":1}`: unavailable, `{"reason":"only"}`: unavailable,
		`{"allow":true}{}`: unavailable, `{"allow":true}x`: unavailable, `{"allow":true`: unavailable, `{"allow":true,}`: unavailable,
		`{"allow":false,"reason":"two\nlines"}`:                               unavailable,
		`{"allow":false,"reason":"\u202e"}`:                                   unavailable,
		`{"allow":false,"reason":"` + strings.Repeat("r", maxReason+1) + `"}`: unavailable,
		"{\"allow\":true,\"reason\":\"\xff\"}":                                unavailable,
		`{"allow":true}` + strings.Repeat(" ", maxAnswer):                     unavailable,
		`<html>{"allow":true}</html>`:                                         unavailable,
	} {
		err := newReceiver(t, body).hook(nil).Check(context.Background(), request)
		got := "yes"
		var denied *Denied
		switch {
		case errors.As(err, &denied) && errors.Is(err, ErrDenied) && !errors.Is(err, ErrUnavailable):
			got = denied.Reason
		case err != nil:
			got = unavailable
			checkUnavailable(t, body, err)
		}
		if got != want {
			t.Errorf("%.80s: %q, not %q", body, got, want)
		}
	}
}

// checkUnavailable also sees that nothing secret is told: neither the URL's query, nor the key, nor
// what the other side sent.
func checkUnavailable(t *testing.T, name string, err error) {
	t.Helper()
	var u *Unavailable
	if !errors.As(err, &u) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) || u.What == "" || u.Mend == "" {
		t.Errorf("%s: %#v is no unavailability with a mend", name, err)
	}
	if err != nil && (strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "v1,")) {
		t.Errorf("%s: a secret in %v", name, err)
	}
}

func TestFailsClosed(t *testing.T) {
	for name, test := range map[string]struct {
		receiver func(*receiver)
		config   func(*Config)
		asked    int
		want     string
	}{
		"no content":         {func(r *receiver) { r.status, r.body = 204, "" }, nil, 1, "status 204"},
		"created":            {func(r *receiver) { r.status = 201 }, nil, 1, "status 201"},
		"a status of no":     {func(r *receiver) { r.status = 403; r.body = `{"allow":false}` }, nil, 1, "status 403"},
		"broken":             {func(r *receiver) { r.status = 500 }, nil, 1, "status 500"},
		"redirect":           {func(r *receiver) { r.status, r.location = 307, "/hook?code=SECRET" }, nil, 1, "status 307"},
		"redirect of a GET":  {func(r *receiver) { r.status, r.location = 302, "https://127.0.0.1:1/SECRET" }, nil, 1, "status 302"},
		"text":               {func(r *receiver) { r.contentType = "text/plain" }, nil, 1, "application/json"},
		"nameless":           {func(r *receiver) { r.contentType = "" }, nil, 1, "application/json"},
		"echo":               {func(r *receiver) { r.body = `{"SECRET":true}` }, nil, 1, "not understood"},
		"down":               {func(r *receiver) { r.Close() }, nil, 0, "no answer"},
		"unknown root":       {nil, func(c *Config) { c.Roots = x509.NewCertPool() }, 0, "no answer"},
		"no key yet":         {nil, func(c *Config) { c.Key = func() ([]byte, error) { return nil, errors.New("not entered") } }, 0, "not entered"},
		"empty key":          {nil, func(c *Config) { c.Key = func() ([]byte, error) { return nil, nil } }, 0, "length"},
		"short key":          {nil, func(c *Config) { c.Key = func() ([]byte, error) { return key[:31], nil } }, 0, "length"},
		"long key":           {nil, func(c *Config) { c.Key = func() ([]byte, error) { return bytes.Repeat(key, 3), nil } }, 0, "length"},
		"patience of a hook": {nil, func(c *Config) { c.Timeout = time.Nanosecond }, 0, "deadline"},
	} {
		r := newReceiver(t, `{"allow":true}`)
		h := r.hook(test.config)
		if test.receiver != nil {
			test.receiver(r)
		}
		err := h.Check(context.Background(), request)
		checkUnavailable(t, name, err)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v does not say %q", name, err, test.want)
		}
		r.mu.Lock()
		if len(r.bodies) != test.asked {
			t.Errorf("%s: asked %d times, not %d", name, len(r.bodies), test.asked)
		}
		r.mu.Unlock()
	}
}

// TestSilence: neither a receiver that never answers nor one that never ends holds a caller.
func TestSilence(t *testing.T) {
	asked := make(chan struct{}, 2)
	for name, first := range map[string]string{"says nothing": "", "says half": `{"allow":true`} {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if first != "" {
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, first)
				_ = http.NewResponseController(w).Flush()
			}
			asked <- struct{}{}
			<-r.Context().Done()
		}))
		t.Cleanup(s.Close)
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		config := Config{URL: s.URL, Roots: roots, Key: func() ([]byte, error) { return key, nil }}
		h, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error)
		go func() { result <- h.Check(ctx, request) }()
		<-asked
		cancel()
		err = <-result
		checkUnavailable(t, name, err)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}

		config.Timeout = 20 * time.Millisecond
		if h, err = New(config); err != nil {
			t.Fatal(err)
		}
		err = h.Check(context.Background(), request)
		checkUnavailable(t, name, err)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		for len(asked) > 0 {
			<-asked
		}
	}
}

func TestManyAtOnceHaveTheirOwnID(t *testing.T) {
	r := newReceiver(t, `{"allow":true}`)
	h := r.hook(nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := h.Check(context.Background(), request); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(r.ids) != 20 {
		t.Errorf("20 questions had %d ids", len(r.ids))
	}
}

func TestConfigurationRefused(t *testing.T) {
	have := func() ([]byte, error) { return key, nil }
	for name, c := range map[string]Config{
		"nothing":  {Key: have},
		"http":     {URL: "http://hook.example/?SECRET", Key: have},
		"user":     {URL: "https://u:SECRET@hook.example/", Key: have},
		"fragment": {URL: "https://hook.example/#SECRET", Key: have},
		"no host":  {URL: "https:///SECRET", Key: have},
		"opaque":   {URL: "https:SECRET", Key: have},
		"broken":   {URL: "https://hook.example/%zzSECRET", Key: have},
		"no key":   {URL: "https://hook.example/"},
		"negative": {URL: "https://hook.example/", Key: have, Timeout: -1},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "SECRET") || !strings.Contains(err.Error(), ";") {
			t.Errorf("%s: %v is no refusal with a mend", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"allow":true}`, `{"allow":false,"reason":"no"}`, `{"Allow":true}`, `{"allow":false,"allow":true}`, `{"allow":null}`, `{"reason":"\u0000"}`, `{"allow":{"allow":true}}`, `[true]`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		allow, reason, err := decode(b)
		if err != nil {
			if allow || reason != "" {
				t.Errorf("%q says %v, %q beside an error", b, allow, reason)
			}
			return
		}
		// Another reader of JSON has to agree on every member.
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%q is read, though %v", b, err)
		}
		want := map[string]any{"allow": allow}
		if _, ok := m["reason"]; ok {
			want["reason"] = reason
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Errorf("%q:\n%s", b, diff)
		}
	})
}
