package webui

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/webui/browsertest"
)

// TestBrowserSite walks the pages of authorities, profiles, TLS certificates and the set-up.
func TestBrowserSite(t *testing.T) {
	box := newBox(t, withIOT)
	box.claimAs(administrator, administrator)
	tb := newTab(t, box)
	tb.enter("alice")

	tb.See("setup", "/setup", "#arrivals")
	tb.See("authorities", "/authorities", "#authority-list")
	tb.Press(`a[href="/authorities?do=rotate"]`, "dialog[open]")
	tb.Look("authorities-rotate")
	tb.See("authority-waits", "/authorities/plant", ".walk")
	file := filepath.Join(t.TempDir(), "plant.pem")
	if err := os.WriteFile(file, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	upload := func(then string) {
		tb.Upload("#chain-files", file)
		tb.Press(`form[action$="/chain"] button`, then)
	}
	upload("#chain-problem")
	tb.Look("authority-wrong-file")
	tb.Reads("#chain-problem", "holds no certificate")
	if err := os.WriteFile(file, pemOf(box.fake.authorities[0].Generations[0].Certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	upload(".done")
	tb.Look("authority-installed")
	tb.Open("/authorities/devices", "#rollover")
	tb.Press(`form[action$="/next"] button`, ".done")
	tb.Look("authority-prepared")
	tb.Press(`a[href$="do=activate"]`, "dialog[open] .danger")
	tb.Look("authority-activate")
	tb.Press("dialog .danger", ".done")
	tb.Look("authority-activated")
	if box.fake.last() != "alice: activate devices" {
		t.Errorf("ordered %q", box.fake.last())
	}

	tb.See("profile", "/profiles/corp", "#rules")
	tb.Press(`a[href$="do=off"]`, "#reason")
	tb.Look("profile-off")
	tb.Write("#reason", "a stolen laptop")
	tb.Press("dialog .danger", ".card.off")
	tb.Look("profile-is-off")
	tb.Press(`a[href$="do=challenge"]`, "dialog[open]")
	tb.Look("profile-challenge")
	tb.Click("dialog summary")
	tb.Write("#hash", "plain")
	tb.Enter("#hash", "#challenge-problem")
	tb.Look("profile-hash-wrong")
	tb.Press(`dialog input[name=generate] ~ .choices .danger`, ".new-secret")
	tb.Look("profile-challenge-made")
	tb.See("profile-bundle", "/profiles/corp?do=bundle&of=est", "dialog[open]")
	tb.Write("#bundle-pem", "nonsense")
	tb.Press("dialog .danger", "#bundle-problem")
	tb.Look("profile-bundle-wrong")
	tb.See("profile-back", "/profiles/corp?do=challenge-baked", "dialog[open]")
	tb.See("profile-secret", "/profiles/corp?do=secret&of=compliance", "dialog[open]")
	tb.See("profiles", "/profiles", "#profile-list")
	tb.See("tls", "/tls", "#tls-certificates")
	if err := box.fake.InstallTLS([]byte("BEGIN BEGIN"), "alice"); err != nil {
		t.Fatal(err)
	}
	tb.See("tls-own", "/tls?do=own", "dialog[open]")

	refused := audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.SCEPRefused, Actor: audit.ActorDevice, Source: "10.0.0.7", Profile: "iot",
		Protocol: "scep", Identity: "printer-3f-west", Outcome: audit.OutcomeRefused, Reason: "the challenge is wrong"}
	if err := box.store.Append(refused); err != nil {
		t.Fatal(err)
	}
	box.request("gate.wait")
	tb.Open("/setup?profile=iot", ".walk")
	tb.Press(`input[value=challenge] ~ button`, ".walk .copyable")
	tb.Look("setup-made")
	made := tb.Text(".walk .copyable code")
	box.request("cam-1.example.com")
	tb.Shows("#arrivals.is-done") // by itself
	tb.Look("setup-arrived")
	if got := tb.Text(".walk .copyable code"); got != made || made == "" {
		t.Errorf("after the device came the secret on the page is %q, before it was %q", got, made)
	}
}

// TestBrowserTroubles: what a box with more than one trouble says of itself, and a new one of what is to be done.
func TestBrowserTroubles(t *testing.T) {
	box := newBox(t, allIssue, func(c *Config) {
		c.Boot.TPM.LockoutCounter = 3
		c.Machine = func() Machine {
			m := demoMachine()
			m.Storage.Free, m.Keys.Waiting, m.Keys.Refused = 90<<20, 20, 4
			m.Stream = &Stream{Address: "siem.example.com:6514", Since: start.Add(-3 * time.Hour), Lag: 1284}
			m.Watchdog = Watchdog{Armed: true, Answered: start.Add(-48 * time.Hour), Missed: 30}
			return m
		}
		c.Site = func() Site {
			s := demoSite()
			s.Stopped = true
			s.Conditions = []handover.Condition{
				{What: "The state disk is nearly full, so nothing is issued: 90 MiB are left, 128 are needed. Certificates can still be revoked.", Mend: "Give the disk more room, or shorten audit.retention of the site and bake it again; what was removed frees space within a day."},
				{What: "The audit log is not sent to tls://siem.example.com:6514 since 2026-11-21 16:05:45 UTC: dial tcp 192.0.2.40:6514: connect: connection refused. 1284 records wait on the disk, and none of them is removed until then.", Mend: "Look after the receiver and the way to it."},
				{What: "The RA certificate of authority modern ends on 2026-11-26.", Mend: "It is renewed by itself: if this stays for a day, look at the log for why it is not, and rotate the RA key."},
			}
			if stops := c.Enroll.Condition(); stops != nil {
				s.Conditions = append(s.Conditions, handover.Condition(*stops))
			}
			return s
		}
	})
	box.claimAs(administrator, administrator)
	tb := newTab(t, box)
	tb.See("troubles-outside", "/", "#user")
	tb.enter("alice")
	tb.See("overview-new", "/", "#start")
	tb.See("scep-activity-none", "/scep?tab=activity", ".empty")

	box.clock.pass(freshFor)
	tb.See("stale", "/profiles/corp?do=bundle&of=est", "dialog[open] .notice")
	tb.Write("#bundle-pem", string(pemOf(box.fake.authorities[0].Generations[0].Certificate)))
	tb.Press("dialog button.danger", "#bundle-problem")
	tb.Look("stale-refused")
	tb.Reads("#bundle-problem", "You signed in too long ago")
	if got := browsertest.Eval[string](tb.Tab, `document.querySelector("#bundle-pem").value`); !strings.HasPrefix(got, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("the form has lost what was written: %q", got)
	}

	box.fake.rollback = &Rollback{Expected: 4, Found: 9, Since: start, Until: start.Add(-26 * time.Hour), Records: 1284}
	box.request("lamp-1")
	box.clock.pass(-40 * time.Hour)
	tb.See("troubles", "/", "#attention")
	tb.Reads("#attention", "The clock is not trusted", "nearly full", "siem.example.com", "The key holder does not answer")
	tb.See("troubles-box", "/box", "#rollback")
	tb.Reads("#clock", "not believed")
	tb.Reads("main", "siem.example.com:6514 not connected", "1284 records are not there yet")
	tb.See("troubles-acknowledge", "/box?do=acknowledge", "dialog[open]")
}
