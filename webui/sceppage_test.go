package webui

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
)

func TestSCEPPageProfiles(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	page := box.get("/scep", admin)
	page.says(t, 200, "SCEP Administration", "RA 365 days left", "mTLS enabled", "mTLS off", "Intune enabled", "Intune off", "challenge set", "no shared challenge",
		`href="/scep?tab=intune#intune-intune">View Intune details`, `href="/scep?tab=profiles" aria-current="page"`)
	if n := strings.Count(string(page.body), "View Intune details"); n != 1 {
		t.Errorf("%d profiles lead to Intune's tab, want the one that takes its challenges", n)
	}
	// modern is of the site and has nothing to show yet.
	page.says(t, 200, "Its authority has no certificate yet")
	box.get("/scep?tab=%3Cscript%3E", admin).says(t, 200, `href="/scep?tab=profiles" aria-current="page"`)

	empty := newBox(t, func(c *Config) {
		c.SCEP = func() []SCEPProfile { return nil }
		c.Site = func() Site { return Site{Name: "empty"} }
	})
	who := bearer(empty.claimAs(administrator, administrator))
	empty.get("/scep", who).says(t, 200, "No profile of this site takes SCEP.")
	empty.get("/scep?tab=intune", who).says(t, 200, "No profile takes challenges of Intune")
	empty.get("/scep?tab=activity", who).says(t, 200, "Nothing yet.")
}

// TestSCEPCountdown: how long an RA certificate lasts has four tones, at the bounds that people who run such
// servers know.
func TestSCEPCountdown(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		left time.Duration
		want expiry
	}{
		{30 * day, expiry{"good", "30 days left"}},
		{30*day - time.Second, expiry{"warn", "29 days left"}},
		{7 * day, expiry{"warn", "7 days left"}},
		{7*day - time.Second, expiry{"bad", "6 days left"}},
		{0, expiry{"bad", "EXPIRED"}},
		{-400 * day, expiry{"bad", "EXPIRED"}},
	} {
		if got := countdown(start.Add(c.left), start); got != c.want {
			t.Errorf("%v left: %+v, want %+v", c.left, got, c.want)
		}
	}
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	box.clock.pass(365 * day)
	// The token's own time is over too: a session shows the page.
	cookie := header("Cookie", sessionCookie+"="+box.console.sessions.begin(session{user: "alice", how: howPassword}))
	box.get("/scep", cookie).says(t, 200, `<span class="badge bad">RA EXPIRED</span>`)
	box.get("/scep", admin).says(t, 303)
}

func TestIntuneTab(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	for _, path := range []string{"/scep?tab=intune", "/scep/intune", "/scep/intune?tab=intune"} {
		page := box.get(path, admin)
		page.says(t, 200, `href="/scep?tab=intune" aria-current="page"`, `id="intune-intune"`, "CN=Demo Devices CA RA", "trust/connector.pem", "signet-demo",
			"60 minutes, clocks may differ by 60 seconds", "3 certificates in 24 hours", "No challenge of Intune")
		for _, label := range challenge.Labels() {
			page.says(t, 200, fmt.Sprintf("<code>%s</code>", label))
		}
		page.says(t, 200, `<li class="good"><span class="number">2</span>`, `<li class="warn"><span class="number">1</span> <span class="words">Used before`)
		page.saysNot(t, `id="intune-corp"`, "<dialog")
	}
	box.get("/scep/intune?tab=activity", admin).says(t, 200, `href="/scep?tab=activity" aria-current="page"`)

	// Failures: those of Intune's challenges and no others.
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "replayed", Outcome: audit.OutcomeRefused, Reason: "signed challenge refused: replay"})
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "rooted", Outcome: audit.OutcomeRefused, Reason: "signed challenge: device was not found compliant: rooted"})
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "elsewhere", Outcome: audit.OutcomeRefused, Reason: "intune challenge: device was not found compliant: rooted"})
	box.append(audit.Record{Action: audit.SCEPPKCSReqIntune, Protocol: "scep", Identity: "failed", Outcome: audit.OutcomeFailed, Reason: "the signer"})
	box.append(audit.Record{Action: audit.SCEPPKCSReqIntune, Protocol: "scep", Identity: "enrolled", Outcome: audit.OutcomeSuccess})
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "guessed", Outcome: audit.OutcomeRefused, Reason: "wrong or missing challenge"})
	page := box.get("/scep?tab=intune", admin)
	page.says(t, 200, "replayed", "rooted", "elsewhere", "failed")
	page.saysNot(t, "enrolled", "guessed")
}

// TestIntuneOfMicrosoft: a profile that asks Microsoft's service is Intune's too, and one that also takes signed challenges is
// there once.
func TestIntuneOfMicrosoft(t *testing.T) {
	box := newBox(t, func(c *Config) {
		all := c.SCEP()
		asks, both := all[0], all[1]
		asks.Name, asks.AsksIntune = "asks", true
		both.Name, both.AsksIntune = "both", true
		c.SCEP = func() []SCEPProfile { return append(all, asks, both) }
	})
	admin := bearer(box.claimAs(administrator, administrator))
	page := box.get("/scep", admin)
	tab := box.get("/scep?tab=intune", admin)
	for name, asks := range map[string]bool{"intune": false, "asks": true, "both": true} {
		page.says(t, 200, fmt.Sprintf(`href="/scep?tab=intune#intune-%s">View Intune details`, name))
		if n := strings.Count(string(tab.body), fmt.Sprintf(`id="intune-%s"`, name)); n != 1 {
			t.Errorf("%s is on Intune's tab %d times", name, n)
		}
		if got := strings.Contains(string(tab.body), fmt.Sprintf(`Its credential is at <a href="/profiles/%s">`, name)); got != asks {
			t.Errorf("%s asks Microsoft's service: %v on the page, want %v", name, got, asks)
		}
	}
	if n := strings.Count(string(page.body), "View Intune details"); n != 3 {
		t.Errorf("%d profiles lead to Intune's tab, want 3", n)
	}
}

// TestStatusWords: no outcome of a challenge is without words.
func TestStatusWords(t *testing.T) {
	for _, label := range challenge.Labels() {
		if statusWords[label] == "" {
			t.Errorf("%s has no words", label)
		}
	}
	if len(statusWords) != len(challenge.Labels()) {
		t.Errorf("words for %d outcomes, there are %d", len(statusWords), len(challenge.Labels()))
	}
}

// TestReloadDialog: it is open by its address, stays open with the reason where it is refused, and is gone
// when the order took effect.
func TestReloadDialog(t *testing.T) {
	box := newBox(t, func(c *Config) {
		scep := c.SCEP
		c.SCEP = func() []SCEPProfile {
			all := scep()
			broken := all[1]
			broken.Name = "broken"
			return append(all, broken)
		}
	})
	admin := bearer(box.claimAs(administrator, administrator))
	box.get("/scep?tab=intune&do=reload&profile=intune", admin).says(t, 200, "<dialog open", "Read the trust anchors of intune again?", `data-close="/scep?tab=intune#intune-intune"`)
	for _, none := range []string{"corp", "nobody", "", "%22%3E"} {
		box.get("/scep?tab=intune&do=reload&profile="+none, admin).saysNot(t, "<dialog")
	}
	refused := box.submit("/scep/reload-trust", url.Values{"profile": {"broken"}}, admin)
	refused.says(t, 500, "<dialog open", "Read the trust anchors of broken again?", "no certificate in it", "Mend the file and reload again.", "Try again")
	done := box.submit("/scep/reload-trust", url.Values{"profile": {"intune"}}, admin)
	if done.says(t, 303); done.Header.Get("Location") != "/scep?tab=intune&done=trust-reloaded#intune-intune" {
		t.Errorf("leads to %s", done.Header.Get("Location"))
	}
	box.submit("/scep/reload-trust", url.Values{"profile": {"nobody"}}, admin).says(t, 404)
	box.get("/scep?tab=intune&done=trust-reloaded", admin).says(t, 200, "in use unless an administrator")

	// What is read again is not in use while an administrator's certificates are, and nothing says that it is.
	const unused = "which is not in use: an administrator put others in its place"
	dialog := box.get("/scep?tab=intune&do=reload&profile=intune", admin)
	dialog.says(t, 200, "believes challenges signed by its certificates from then on")
	dialog.saysNot(t, unused)
	box.fake.settings["intune"].Bundles = []BundleSetting{{Bundle: BundleSigned, File: "trust/connector.pem", Replaced: &Change{By: "alice", At: start}}}
	dialog = box.get("/scep?tab=intune&do=reload&profile=intune", admin)
	dialog.says(t, 200, unused, "Its certificates are in use once those of an administrator are taken back.")
	dialog.saysNot(t, "from then on")
}

// TestSCEPActivity: every chip lists its actions of the four and no others, page by page.
func TestSCEPActivity(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	actions := []audit.Action{audit.SCEPPKCSReq, audit.SCEPRenewalReq, audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune, audit.ESTSimpleEnroll, audit.SCEPRefused}
	for i := range 60 {
		box.append(audit.Record{Action: actions[i%len(actions)], Protocol: "scep", Identity: fmt.Sprintf("device-%02d", i), Outcome: audit.OutcomeSuccess})
	}
	identity := regexp.MustCompile(`device-(\d\d)<`)
	older := regexp.MustCompile(`href="(/scep\?[^"]*before=\d+)" rel="next"`)
	for show, want := range map[string][]audit.Action{
		"": actions[:4], "all": actions[:4], "initial": {actions[0], actions[2]}, "renewal": {actions[1], actions[3]},
		"intune": {actions[2], actions[3]}, "static": {actions[0], actions[1]},
	} {
		var got, listed []string
		pages := 0
		for path := "/scep?tab=activity&show=" + show; path != "" && pages < 9; pages++ {
			page := box.get(path, admin)
			page.says(t, 200, `aria-current="page"`)
			for _, m := range identity.FindAllStringSubmatch(string(page.body), -1) {
				got = append(got, m[1])
			}
			path = ""
			if m := older.FindStringSubmatch(string(page.body)); m != nil {
				path = strings.ReplaceAll(m[1], "&amp;", "&")
			}
		}
		for i := 59; i >= 0; i-- {
			for _, a := range want {
				if actions[i%len(actions)] == a {
					listed = append(listed, fmt.Sprintf("%02d", i))
				}
			}
		}
		if strings.Join(got, " ") != strings.Join(listed, " ") {
			t.Errorf("show=%s lists %v, want %v", show, got, listed)
		}
		if pages < 2 {
			t.Errorf("show=%s has %d page, too few to prove anything", show, pages)
		}
	}
	box.get("/scep?tab=activity&before=x", admin).says(t, 422)
}

// TestSCEPGate: who is no administrator sees the banner, whatever the address, and nothing is looked up.
func TestSCEPGate(t *testing.T) {
	for _, as := range []role{auditor, operator} {
		box := newBox(t, func(c *Config) {
			c.SCEP = func() []SCEPProfile { t.Errorf("SCEP was looked up for an %s", as); return nil }
			c.ReloadTrust = func(string, string) (string, error) { t.Errorf("trust was reloaded for an %s", as); return "", nil }
		})
		who := bearer(box.claimAs(as, as))
		box.append(audit.Record{Action: audit.SCEPPKCSReq, Protocol: "scep", Identity: "laptop-anna", Outcome: audit.OutcomeSuccess})
		for _, path := range []string{"/scep", "/scep?tab=intune", "/scep/intune", "/scep?tab=activity", "/scep?tab=intune&do=reload&profile=intune"} {
			page := box.get(path, who)
			page.says(t, 200, "For administrators", as.String())
			page.saysNot(t, "laptop-anna", "<dialog", "View Intune", `class="tabs"`)
		}
		box.submit("/scep/reload-trust", url.Values{"profile": {"intune"}}, who).says(t, 403)
	}
}

// TestSCEPPageOfStrangeNames: what certificates say is text on the page.
func TestSCEPPageOfStrangeNames(t *testing.T) {
	strange, _ := newCA(t, "<script>alert(1)</script>\u202e", 365*24*time.Hour)
	box := newBox(t, func(c *Config) {
		c.SCEP = func() []SCEPProfile {
			return []SCEPProfile{{Name: "corp", Authority: "devices", RA: strange, Signed: &SignedChallenges{Certificates: []*x509.Certificate{strange}, Audience: "<b>", Counters: map[string]int{}}}}
		}
	})
	admin := bearer(box.claimAs(administrator, administrator))
	for _, tab := range []string{"profiles", "intune"} {
		page := box.get("/scep?tab="+tab, admin)
		page.says(t, 200, `CN=\&lt;script\&gt;`)
		page.saysNot(t, "<script>alert", "\u202e", "<b>")
	}
}
