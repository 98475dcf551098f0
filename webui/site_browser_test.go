package webui

import (
	"os"
	"path/filepath"
	"testing"

	"signet.internal/appliance/audit"
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
