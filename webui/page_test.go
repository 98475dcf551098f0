package webui

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrN(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
}

func (r reply) says(t *testing.T, status int, texts ...string) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("status %d, want %d: %.300s", r.StatusCode, status, r.body)
	}
	for _, text := range texts {
		if !strings.Contains(string(r.body), text) {
			t.Errorf("page does not say %q", text)
		}
	}
}

func (r reply) saysNot(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(string(r.body), text) {
			t.Errorf("page says %q", text)
		}
	}
}

// TestFirstPage: who sees what.
func TestFirstPage(t *testing.T) {
	box := newBox(t)
	box.enroll(3)
	unclaimed := box.get("/")
	unclaimed.says(t, 200, "Claim this box", "Demo.")
	unclaimed.saysNot(t, "printer-3f-west", "Sign in</h2>", claimCode, "IBM", "7d1a")
	out := box.mustClaim()
	anonymous := box.get("/")
	anonymous.says(t, 200, "Sign in</h2>")
	anonymous.saysNot(t, "Claim this box", "printer-3f-west", "alice", "IBM", "7d1a")
	box.get("/", bearer("sgt_garbage")).saysNot(t, "printer-3f-west")
	signed := box.get("/", bearer(out.Token))
	signed.says(t, 200, "printer-3f-west", "&lt;script&gt;alert(1)&lt;/script&gt;", "waits for its certificate", "Waiting for a certificate")
	signed.saysNot(t, "not baked", `>off<`, "<script>", "Sign in</h2>", "Sign out")
}

// TestStatusPageOfChanges: what administrators changed is there for those signed in, and for nobody else.
func TestStatusPageOfChanges(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(administrator, administrator))
	box.post("/api/v1/profiles/corp/off", OffRequest{Reason: "<i>a leak"}, who)
	box.putJSON("/api/v1/profiles/corp/passwords/device", HashRequest{Hash: nobodysHash}, who)
	for _, order := range []string{"/api/v1/authorities/devices/next", "/api/v1/authorities/devices/next/activate", "/api/v1/authorities/modern/next"} {
		if got := box.post(order, nil, who); got.StatusCode != 200 {
			t.Fatalf("%s: status %d: %s", order, got.StatusCode, got.body)
		}
	}
	certificate := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	box.put("/api/v1/authorities/plant/chain", certificate, who)
	box.get("/", who).says(t, 200, `>off<`, "not baked", "next generation prepared")
	box.get("/").saysNot(t, `>off<`, "a leak", "not baked")
	var s Status
	box.get("/api/v1/status", who).decode(t, &s)
	corp, devices := s.Profiles[0], s.Authorities[0]
	if corp.Off == nil || corp.Off.By != "alice" || !corp.NotBaked || s.Profiles[1].NotBaked || devices.Generation() != 2 || len(devices.Generations) != 2 || devices.Generations[0].Superseded == nil {
		t.Errorf("%+v", s)
	}
}

// TestConditionsOnPage: what needs a person is shown to whoever can claim the box and to those signed in;
// it can name people and profiles, which are no stranger's business.
func TestConditionsOnPage(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.Site = func() Site {
			s := demoSite()
			s.Conditions = []handover.Condition{{What: "Profile corp was switched off by mallory.", Mend: "Switch it on."}}
			return s
		}
	})
	box.get("/").says(t, 200, "switched off by mallory")
	out := box.mustClaim()
	stranger := box.get("/")
	stranger.says(t, 200, "Sign in to see what needs attention.")
	stranger.saysNot(t, "mallory")
	signed := box.get("/", bearer(out.Token))
	signed.says(t, 200, "switched off by mallory", "Switch it on.")
	signed.saysNot(t, "Sign in to see")
}

func TestAuditAPI(t *testing.T) {
	box := newBox(t)
	box.enroll(6)
	out := box.mustClaim()
	want := box.records()
	var got []audit.Record
	before := uint64(0)
	for {
		var page AuditPage
		box.get(fmt.Sprintf("/api/v1/audit?limit=4&before=%d", before), bearer(out.Token)).decode(t, &page)
		got = append(got, page.Records...)
		if before = page.Next; before == 0 {
			break
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d records by pages, %d in the log", len(got), len(want))
	}
	for i := range got {
		if got[i].Index != want[i].Index || got[i].Identity != want[i].Identity {
			t.Errorf("record %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	for _, query := range []string{"limit=0", "limit=501", "limit=-1", "limit=x", "before=-1", "before=1e3"} {
		box.get("/api/v1/audit?"+query, bearer(out.Token)).checkProblem(t, 422, "input")
	}
}

// TestClaimForm: the page's form does what the API does, and shows what it made once.
func TestClaimForm(t *testing.T) {
	box := newBox(t)
	box.submit("/claim", url.Values{"code": {"AAAA"}, "user": {"alice"}}).says(t, 403, "The claim code is wrong.", `value="alice"`, `aria-invalid="true"`)
	box.submit("/claim", url.Values{"code": {claimCode}, "user": {"<i>"}}).says(t, 422, "user name is not acceptable", "&lt;i&gt;")
	box.submit("/claim", url.Values{"code": {claimCode}, "user": {"alice"}, "password": {"tiny"}}).says(t, 422, "fewer than 12 characters")
	done := box.submit("/claim", url.Values{"code": {strings.ToLower(claimCode)}, "user": {"alice"}, "password": {"correct horse battery"}})
	done.says(t, 200, "The box is yours, alice", "sgt_")
	done.saysNot(t, "correct horse battery", "<dt>Password")
	if done.Header.Get("Cache-Control") != "no-store" {
		t.Error("the page with the token may be cached")
	}
	box.get("/", withCookie(done.cookie(t))).says(t, 200, "Sign out", "alice")
	box.submit("/claim", url.Values{"code": {claimCode}, "user": {"bob"}}).says(t, 409, "claimed already", "Sign in</h2>")
}

// TestNotesAreBounded: strangers cannot fill the log, and what was not written is counted.
func TestNotesAreBounded(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	for i := range 2 * notesPerMinute {
		box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "mallory"}, header("X-Test-Source", addrN(i).String())).checkProblem(t, 409, "already-claimed")
	}
	if got := len(box.records()); got != 1+notesPerMinute {
		t.Errorf("%d records, want the claim and %d refusals", got, notesPerMinute)
	}
	box.clock.pass(time.Minute)
	box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "mallory"}).checkProblem(t, 409, "already-claimed")
	if got := box.records()[0].Reason; !strings.Contains(got, fmt.Sprintf("%d more", notesPerMinute)) {
		t.Errorf("reason %q does not count what was left out", got)
	}
	if got := box.get("/api/v1/status", bearer(out.Token)); got.StatusCode != 200 {
		t.Errorf("status %d", got.StatusCode)
	}
}

// TestCrossOrigin: nothing another site makes a browser send changes anything.
func TestCrossOrigin(t *testing.T) {
	box := newBox(t)
	form := url.Values{"code": {claimCode}, "user": {"mallory"}}
	for _, change := range []func(*http.Request){
		header("Sec-Fetch-Site", "cross-site"),
		header("Sec-Fetch-Site", "same-site"),
		func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "https://evil.example") },
		func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "null") },
	} {
		box.submit("/claim", form, change).says(t, 403, "Another web site sent this request.")
		box.submit("/sign-out", nil, change).says(t, 403)
		box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "mallory"}, change).checkProblem(t, 403, "cross-origin")
	}
	box.submit("/claim", form, header("Content-Type", "text/plain")).says(t, 415)
	if box.store.Claimed() {
		t.Error("another site claimed the box")
	}
}

func TestSecurityHeaders(t *testing.T) {
	box := newBox(t)
	for _, path := range []string{"/", "/nowhere", "/api/v1/health", "/api/v1/nowhere", "/openapi.json", "/static/console.css", "/api/v1/status"} {
		got := box.get(path)
		csp := got.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "style-src 'self'", "script-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: policy %q lacks %s", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") || got.Header.Get("X-Content-Type-Options") != "nosniff" || got.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: headers %v", path, got.Header)
		}
		if got.Header.Get("Content-Length") == "" {
			t.Errorf("%s: no Content-Length", path)
		}
	}
	// The policy would stop inline styles and scripts: the pages must not need them, nor anyone else's.
	page := string(box.get("/").body)
	for _, bad := range []string{"<script>", "<style", " style=", " onclick", "http-equiv", "//fonts"} {
		if strings.Contains(page, bad) {
			t.Errorf("page has %q", bad)
		}
	}
	for _, m := range regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(m[1], "/") && !strings.HasPrefix(m[1], "#") {
			t.Errorf("page refers to %s", m[1])
		}
	}
}

func TestUnknownAddresses(t *testing.T) {
	box := newBox(t)
	box.get("/nowhere").says(t, 404, "There is nothing at this address.", "Go to the console")
	box.get("/static/../page.go").saysNot(t, "package webui")
	box.get("/static/%2e%2e%2fpage.go").says(t, 404)
	box.get("/api/v1/nowhere").checkProblem(t, 404, "not-found")
	box.get("/api/").checkProblem(t, 404, "not-found")
	got := box.send("DELETE", "/api/v1/claim", nil)
	got.checkProblem(t, 405, "method")
	if got.Header.Get("Allow") != "POST" {
		t.Errorf("Allow %q", got.Header.Get("Allow"))
	}
	if got := box.send("POST", "/api/v1/status", nil); got.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow %q", got.Header.Get("Allow"))
	}
	if got := box.send("HEAD", "/", nil); got.StatusCode != 200 || len(got.body) != 0 {
		t.Errorf("HEAD /: status %d, %d bytes", got.StatusCode, len(got.body))
	}
	if loc := box.get("//evil.example/x").Header.Get("Location"); strings.HasPrefix(loc, "//") || strings.Contains(loc, "://evil") {
		t.Errorf("open redirect to %s", loc)
	}
}

func TestStaticFiles(t *testing.T) {
	box := newBox(t)
	link := regexp.MustCompile(`href="(/static/console\.css\?v=[0-9a-f]+)"`).FindStringSubmatch(string(box.get("/").body))
	if link == nil {
		t.Fatal("the page has no stylesheet")
	}
	css := box.get(link[1])
	css.says(t, 200, "prefers-color-scheme")
	if got := css.Header.Get("Cache-Control"); !strings.Contains(got, "immutable") {
		t.Errorf("Cache-Control %q", got)
	}
	if got := box.get("/static/console.css").Header.Get("Cache-Control"); got != "no-cache" {
		t.Errorf("Cache-Control without version %q", got)
	}
	if got := box.get(link[1], header("If-None-Match", css.Header.Get("ETag"))); got.StatusCode != http.StatusNotModified {
		t.Errorf("revalidation: status %d", got.StatusCode)
	}
}

func TestExpiryWords(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		left time.Duration
		want expiry
	}{
		{3650 * day, expiry{"good", "10 years left"}},
		{3650*day - time.Second, expiry{"good", "10 years left"}},
		{365 * day, expiry{"good", "365 days left"}},
		{30 * day, expiry{"good", "30 days left"}},
		{30*day - time.Second, expiry{"warn", "29 days left"}},
		{7 * day, expiry{"warn", "7 days left"}},
		{7*day - time.Second, expiry{"bad", "6 days left"}},
		{47 * time.Hour, expiry{"bad", "47 hours left"}},
		{61 * time.Second, expiry{"bad", "1 minute left"}},
		{0, expiry{"bad", "expired 0 minutes ago"}},
		{-3 * day, expiry{"bad", "expired 3 days ago"}},
	} {
		if got := expiryOf(start.Add(c.left), start); got != c.want {
			t.Errorf("%v left: %+v, want %+v", c.left, got, c.want)
		}
	}
}

// TestNameOrder: as openssl prints it, whatever order the name is encoded in.
func TestNameOrder(t *testing.T) {
	for _, want := range []string{"CN=Demo,O=Signet", "O=Signet,CN=Demo"} {
		var name pkix.RDNSequence
		for part := range strings.SplitSeq(want, ",") {
			kind, value, _ := strings.Cut(part, "=")
			oid := map[string]asn1.ObjectIdentifier{"CN": {2, 5, 4, 3}, "O": {2, 5, 4, 10}}[kind]
			name = append(name, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: value}})
		}
		raw, err := asn1.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := nameText(raw); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"printer-3f":            "printer-3f",
		"Müller Łódź 東京":        "Müller Łódź 東京",
		"cam\u202egnp.exe":      `cam\u202egnp.exe`,
		"a\x00b\nc":             `a\x00b\nc`,
		"zero\u200bwidth\ufeff": `zero\u200bwidth\ufeff`,
	} {
		if got := visible(in); got != want {
			t.Errorf("visible(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestUnbroken: a date in a text cannot be broken, and markup in it stays text.
func TestUnbroken(t *testing.T) {
	const want = `&lt;b&gt; ends on <span class="day">2026-12-01</span>.`
	if got := unbroken("<b> ends on 2026-12-01."); string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}
