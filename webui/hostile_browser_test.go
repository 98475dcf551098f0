package webui

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
	"signet.internal/webui/browsertest"
)

// What everybody outside may try to have the console say: markup for every place of a page, for scripts,
// templates and styles, and characters that turn the writing around, have no shape or are too many for a line.
const (
	markup  = `"'></title></textarea><script>pwned=1;alert(1)</script><img src=x onerror="pwned=1;alert(2)"><svg onload=pwned=1>` + "`${pwned=1}`{{.}}javascript:pwned=1//"
	turned  = "\u202egnp.\u2066exe\u2069\u200b\u00ad\ufe0f\u3164\x00\x1b[31m"
	brief   = `<script>pwned=1</script><img src=x onerror=pwned=1>`   // a common name that no profile refuses for its characters
	ascii   = `"><script>pwned=1</script><img src=x onerror=pwned=1>` // fits an IA5String
	longest = 300
)

// hostile is all of it, as long as texts from outside get, about one thing.
func hostile(about string) string { return about + markup + turned + strings.Repeat("W", longest) }

// watch counts in each page what must not be in it.
const watch = `addEventListener("securitypolicyviolation", e => { (window.violations ||= []).push(e.violatedDirective + " " + e.blockedURI + " " + e.sample); });`

// found says what of it there is, "" for nothing.
const found = `(() => {
	const wrong = [...(window.violations || [])];
	if (window.pwned !== undefined) wrong.push("a script ran");
	const element = document.querySelector("script:not([src]), img:not([src^='/static/']), [onerror], [onload], [onclick], iframe, object, embed, base, meta[http-equiv]");
	if (element) wrong.push("there is " + element.outerHTML.slice(0, 100));
	for (const link of document.querySelectorAll("[href], [action], [formaction], [src]")) {
		const to = new URL(link.getAttribute("href") || link.getAttribute("action") || link.getAttribute("formaction") || link.getAttribute("src"), location);
		if (to.origin !== location.origin) wrong.push("a link leads to " + to.href.slice(0, 100));
	}
	const wide = document.documentElement.scrollWidth;
	if (wide > innerWidth) {
		const widest = [...document.querySelectorAll("main *, header *, footer *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".copyable, .chips, .unseen")).at(-1);
		wrong.push("it is " + wide + " px wide: " + (widest ? widest.outerHTML.slice(0, 200) : ""));
	}
	const shown = document.body.innerText + document.title;
	const at = shown.search(/[\u202a-\u202e\u2066-\u2069\u200b\u00ad\ufe0f\u3164\u0000\u001b]/);
	if (at >= 0) wrong.push("characters that nobody sees: " + JSON.stringify(shown.slice(Math.max(0, at - 60), at + 10)));
	return wrong.join("\n");
})()`

// further are the addresses of dialogs, tabs and details that a page leads to.
const further = `[...document.querySelectorAll("a[href]:not([download])")].map((a) => a.getAttribute("href")).filter((h) => /^\/[^#]*[?](do|tab|for|show|profile|action)=/.test(h))`

// TestBrowserHostile: whatever devices, certificates, machines, services and people call themselves, no page runs
// a script of theirs, leads elsewhere, has markup of theirs, hides characters or is wider than a phone.
func TestBrowserHostile(t *testing.T) {
	box, where := newHostileBox(t)
	tb := newTab(t, box)
	var mu sync.Mutex
	var dialogs []string
	err := chromedp.Listen(tb.Context, func(ev any) {
		if e, ok := ev.(*page.EventJavascriptDialogOpening); ok {
			mu.Lock()
			defer mu.Unlock()
			dialogs = append(dialogs, e.URL+": "+e.Message)
			go chromedp.Call(tb.Context, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{}) // else the browser waits
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(tb.Context, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: watch}); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(tb.Context, chromedp.EmulateViewport(390, 900)); err != nil {
		t.Fatal(err)
	}
	tb.enter("alice")
	check := func(name string) {
		t.Helper()
		if wrong := browsertest.Eval[string](tb.Tab, found); wrong != "" {
			t.Errorf("%s: %s", name, wrong)
		}
	}

	visited := map[string]bool{}
	next := where
	for len(next) > 0 {
		path := next[0]
		next = next[1:]
		if visited[path] {
			continue
		}
		visited[path] = true
		tb.Open(path, "body")
		check(path)
		for _, link := range browsertest.Eval[[]string](tb.Tab, further) {
			if link := withoutNames(link); !visited[link] && len(visited)+len(next) < 150 {
				next = append(next, link)
			}
		}
	}
	if len(visited) < 60 {
		t.Errorf("only %d pages visited", len(visited))
	}
	for path, fields := range hostileForms(box) {
		tb.Open("/account", "body")
		sent, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		tb.Script(fmt.Sprintf(`(() => {
			const form = document.createElement("form");
			[form.method, form.action] = ["post", %q];
			for (const [name, value] of Object.entries(%s)) {
				const input = document.createElement("textarea");
				[input.name, input.value] = [name, value];
				form.append(input);
			}
			document.body.append(form);
			form.submit();
		})()`, path, sent), "footer")
		check("POST " + path)
		if tb.Has("[role=alert]:not([hidden]), #refusal, .made, .secrets, .new-secret, p.done, [role=status] strong") == 0 {
			t.Errorf("POST %s: nobody is told what became of it", path)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, d := range dialogs {
		t.Error("a dialog opened: ", d)
	}
}

// withoutNames leaves of an address what makes it another page: not which of many things it is about.
func withoutNames(address string) string {
	u, err := url.Parse(address)
	if err != nil || strings.HasPrefix(u.Path, "/audit") && u.Query().Has("q") {
		return "/"
	}
	q := u.Query()
	q.Del("before")
	u.RawQuery = q.Encode()
	return u.String()
}

// hostileForms are forms with everything that can be typed into them.
func hostileForms(box *testBox) map[string]map[string]string {
	held, err := box.engine.PendingRequests()
	if err != nil || len(held) == 0 {
		box.t.Fatalf("%v, %d requests wait", err, len(held))
	}
	names := []string{"user", "password", "role", "name", "days", "profile", "cn", "for", "make", "reason", "of", "hash", "value", "pem", "current", "new", "again", "next", "code", "to"}
	all := map[string]map[string]string{}
	for _, path := range []string{"/sign-in", "/users", "/users/alice/role", "/users/alice/password", "/users/alice/remove", "/account/password", "/account/tokens", "/connect/iot/challenge",
		"/connect/iot/mobileconfig", "/setup?profile=iot", "/profiles/corp/off", "/profiles/corp/password", "/profiles/corp/challenge", "/profiles/corp/bundle", "/profiles/corp/secret",
		"/authorities/plant/chain", "/tls/chain", "/scep/reload-trust", "/est/reload-trust", "/pending/" + held[0].ID + "/deny", "/box/acknowledge"} {
		all[path] = map[string]string{}
		for _, n := range names {
			all[path][n] = markup + strings.Repeat("W", 300)
		}
	}
	all["/setup?profile=iot"]["make"] = "one-time"
	all["/setup?profile=iot"]["cn"] = markup + turned[:len(turned)-6] // which the box takes
	all["/account/tokens"]["role"], all["/account/tokens"]["days"], all["/account/tokens"]["name"] = "auditor", "9", ascii
	delete(all["/account/tokens"], "profile")
	return all
}

// newHostileBox is a console all of whose texts from outside are hostile, and the addresses of its pages: each
// page of the route table as it is, and with a hostile query.
func newHostileBox(t *testing.T) (*testBox, []string) {
	t.Helper()
	nasty := hostileCertificate(t)
	box := newBox(t, func(c *Config) {
		scep, est, site := c.SCEP(), c.EST(), c.Site()
		for i := range scep {
			scep[i].RA, scep[i].MTLSFile = nasty, hostile("trust/")
			if s := scep[i].Signed; s != nil {
				s.File, s.Audience, s.Certificates = hostile("trust/"), hostile("audience"), []*x509.Certificate{nasty}
			}
		}
		for i := range est {
			est[i].Users, est[i].Trust = []string{hostile("user")}, &ESTTrust{File: hostile("trust/"), Certificates: []*x509.Certificate{nasty}}
		}
		site.Conditions = []handover.Condition{{What: hostile("A condition. "), Mend: hostile("Mend it. ")}}
		for i := range site.Profiles {
			site.Profiles[i].Usages = []string{hostile("usage")}
		}
		c.SCEP, c.EST, c.Site = func() []SCEPProfile { return scep }, func() []ESTProfile { return est }, func() Site { return site }
		c.Boot.TPM.Manufacturer, c.Boot.TPM.Firmware, c.Boot.SecureBoot = hostile("IBM"), hostile("1"), hostile("off: ")
		c.Boot.Conditions = site.Conditions
		machine := c.Machine
		c.Machine = func() Machine {
			m := machine()
			m.Stream = &Stream{Address: hostile("log.example:")}
			return m
		}
		c.Mint = func(m Mint) (string, time.Time, error) { return "SECRET-OF-" + m.Profile, start.Add(time.Hour), nil }
		fake := c.Box.(*fakeBox)
		fake.hostile(nasty, start)
	})
	if err := box.store.Claim(store.User{Name: "alice", Role: "administrator", Created: start, PasswordHash: nobodysHash}, store.Token{User: "alice", Role: "auditor", Name: markup + turned[:len(turned)-6], Created: start}, audit.Record{Time: start, TimeSource: "rtc", Outcome: audit.OutcomeSuccess, Action: audit.AdminClaimed}); err != nil {
		t.Fatal(err)
	}
	issued, held := box.request(brief), box.request(brief+".wait")
	box.console.sessions.begin(session{user: "alice", how: howPassword, source: "192.0.2.7", agent: hostile("Mozilla")})
	if err := box.store.AddPasskey(store.Passkey{ID: []byte("x"), User: "alice", Name: hostile("key"), Host: "localhost", Created: start}, []byte("handle"), audit.Record{Time: start, TimeSource: "rtc", Outcome: audit.OutcomeSuccess, Action: audit.PasskeyAdded, Actor: "alice", Identity: "alice", Reason: hostile("key")}); err != nil {
		t.Fatal(err)
	}
	if err := box.store.CreateUser(store.User{Name: strings.Repeat("w", maxUser), Role: "operator", Created: start}, audit.Record{Time: start, TimeSource: "rtc", Outcome: audit.OutcomeSuccess, Action: audit.UserCreated, Actor: "alice"}); err != nil {
		t.Fatal(err)
	}
	for _, action := range []audit.Action{audit.SCEPPKCSReq, audit.SCEPPKCSReqIntune, audit.SCEPRefused, audit.ESTSimpleEnroll, audit.ProfileSwitched, "an_action_of_" + audit.Action(markup)} {
		if err := box.store.Append(audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: action, Protocol: "scep", Profile: "corp", Actor: hostile("actor"), Source: hostile("192.0.2.9"), Identity: hostile("device"), Transaction: hostile("tx"),
			Serial: "2a0b4c", CSRSHA256: strings.Repeat("ab", 32), Outcome: audit.OutcomeRefused, Reason: hostile("signed challenge refused: ")}); err != nil {
			t.Fatal(err)
		}
	}
	size, _, err := box.store.LogHead()
	if err != nil {
		t.Fatal(err)
	}

	names := strings.NewReplacer("{$}", "", "{id}", held.ID, "{serial}", issued.Serial, "{index}", fmt.Sprint(size-1), "/authorities/{name}", "/authorities/plant", "{name}", "corp",
		"{profile}", "iot", "{account}", "alice", "{token}", "x", "{passkey}", "x", "{session}", "x")
	token := withCookie(&http.Cookie{Name: sessionCookie, Value: box.console.sessions.begin(session{user: "alice", how: howPassword, agent: markup})})
	query := url.Values{}
	for _, name := range []string{"q", "do", "id", "of", "tab", "show", "profile", "cn", "next", "done", "state", "for", "after", "action", "outcome", "protocol", "since", "until"} {
		query.Set(name, markup+"\u202e")
	}
	var paths []string
	for _, rt := range box.console.routes {
		path := names.Replace(rt.pattern)
		if rt.method != http.MethodGet || !rt.isPage() || strings.HasPrefix(path, "/static/") {
			continue
		}
		if got := box.get(path, token); !strings.HasPrefix(got.Header.Get("Content-Type"), "text/html") {
			if to := got.Header.Get("Content-Disposition"); !strings.HasPrefix(to, "attachment; ") {
				t.Errorf("%s is shown as %s: %q", path, got.Header.Get("Content-Type"), to)
			}
			continue
		}
		paths = append(paths, path, path+"?"+query.Encode())
	}
	for _, one := range []string{"/audit/%d?do=verify", "/audit?q=device&before=%d"} {
		paths = append(paths, fmt.Sprintf(one, size-1))
	}
	paths = append(paths, "/authorities/devices", "/connect/corp?for=strongswan", "/connect/corp?for=curl", "/connect/iot?for=apple&cn=a.b", "/certsrv/mscep_admin/?profile=iot&cn="+url.QueryEscape(markup+"\u202e"),
		"/certificates/"+issued.Serial+"?do=revoke", "/nowhere/"+url.PathEscape(markup), "/users/"+url.PathEscape(markup), "/pending/"+url.PathEscape(markup), "/profiles/"+url.PathEscape(markup))
	slices.Sort(paths)
	return box, slices.Compact(paths)
}

// hostile has everything that this box knows say what it should not.
func (b *fakeBox) hostile(nasty *x509.Certificate, now time.Time) {
	for i := range b.authorities {
		b.authorities[i].Subject, b.authorities[i].Algorithm = hostile("CN="), hostile("rsa")
		for j := range b.authorities[i].Generations {
			if g := &b.authorities[i].Generations[j]; g.Certificate != nil {
				g.Certificate, g.Chain, g.Responder = nasty, []*x509.Certificate{nasty}, nasty
			}
		}
		for j := range b.authorities[i].RAs {
			b.authorities[i].RAs[j].Certificate = nasty
		}
	}
	by := &Change{By: hostile("mallory"), At: now}
	s := b.settings["corp"]
	s.Off = &Switch{Reason: hostile("a reason "), Change: *by}
	s.Bundles = []BundleSetting{{Bundle: BundleEST, File: hostile("trust/"), Certificates: []*x509.Certificate{nasty}, Replaced: by}}
	s.Challenge, s.Passwords = &ChallengeSetting{Replaced: by}, []PasswordSetting{{User: hostile("user"), For: []string{hostile("*")}, Replaced: by}}
	b.tls = []TLSInfo{{Certificate: nasty, Uploaded: true}}
	b.rollback = &Rollback{Expected: 7, Found: 9, Since: now}
}

// hostileCertificate is one that says what it should not wherever a certificate says anything.
func hostileCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(42), NotBefore: start.Add(-time.Hour), NotAfter: start.Add(90 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		Subject:  pkix.Name{CommonName: hostile(""), Organization: []string{hostile("O")}, OrganizationalUnit: []string{turned}, SerialNumber: ascii},
		DNSNames: []string{ascii + strings.Repeat("w", 300)}, EmailAddresses: []string{ascii}, CRLDistributionPoints: []string{"javascript:pwned=1//" + ascii}, OCSPServer: []string{"javascript:pwned=1//" + ascii},
	}
	return newCertificate(t, template, template, key, key)
}
