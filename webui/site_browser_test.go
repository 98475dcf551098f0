package webui

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"signet.internal/appliance/audit"
)

// TestBrowserSite walks the pages of authorities, profiles, TLS certificates and the set-up.
func TestBrowserSite(t *testing.T) {
	box := newBox(t, withIOT)
	box.claimAs(administrator, administrator)
	tb := newTab(t, box)
	tb.enter("alice")

	tb.open("setup", "/setup", "#arrivals")
	tb.open("authorities", "/authorities", "#authority-list")
	tb.step("authorities-rotate", chromedp.Click(chromedp.CSS(`a[href="/authorities?do=rotate"]`)), chromedp.WaitVisible(chromedp.CSS("dialog[open]")))
	tb.open("authority-waits", "/authorities/plant", ".walk")
	file := filepath.Join(t.TempDir(), "plant.pem")
	if err := os.WriteFile(file, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	tb.step("authority-wrong-file", chromedp.SetUploadFiles(chromedp.CSS("#chain-files"), []string{file}), chromedp.Submit(chromedp.CSS("#chain-files")), chromedp.WaitVisible(chromedp.CSS("#chain-problem")))
	if got := tb.text("#chain-problem"); !strings.Contains(got, "holds no certificate") {
		t.Errorf("a wrong file says %q", got)
	}
	if err := os.WriteFile(file, pemOf(box.fake.authorities[0].Generations[0].Certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	tb.step("authority-installed", chromedp.SetUploadFiles(chromedp.CSS("#chain-files"), []string{file}), chromedp.Submit(chromedp.CSS("#chain-files")), chromedp.WaitVisible(chromedp.CSS(".done")))
	tb.step("authority-prepared", chromedp.Navigate(box.URL+"/authorities/devices"), chromedp.Click(chromedp.CSS(`form[action$="/next"] button`)), chromedp.WaitVisible(chromedp.CSS(".done")))
	tb.step("authority-activate", chromedp.Click(chromedp.CSS(`a[href$="do=activate"]`)), chromedp.WaitVisible(chromedp.CSS("dialog[open] .danger")))
	tb.step("authority-activated", chromedp.Click(chromedp.CSS("dialog .danger")), chromedp.WaitVisible(chromedp.CSS(".done")))
	if box.fake.last() != "alice: activate devices" {
		t.Errorf("ordered %q", box.fake.last())
	}

	tb.open("profile", "/profiles/corp", "#rules")
	tb.step("profile-off", chromedp.Click(chromedp.CSS(`a[href$="do=off"]`)), chromedp.WaitVisible(chromedp.CSS("#reason")))
	tb.step("profile-is-off", chromedp.SendKeys(chromedp.CSS("#reason"), "a stolen laptop"), chromedp.Submit(chromedp.CSS("#reason")), chromedp.WaitVisible(chromedp.CSS(".card.off")))
	tb.step("profile-challenge", chromedp.Click(chromedp.CSS(`a[href$="do=challenge"]`)), chromedp.WaitVisible(chromedp.CSS("dialog[open]")))
	tb.step("profile-hash-wrong", chromedp.Click(chromedp.CSS("dialog summary")), chromedp.SendKeys(chromedp.CSS("#hash"), "plain"), chromedp.Submit(chromedp.CSS("#hash")), chromedp.WaitVisible(chromedp.CSS("#challenge-problem")))
	tb.step("profile-challenge-made", chromedp.Click(chromedp.CSS(`dialog input[name=generate] ~ .choices .danger`)), chromedp.WaitVisible(chromedp.CSS(".new-secret")))
	tb.open("profile-bundle", "/profiles/corp?do=bundle&of=est", "dialog[open]")
	tb.step("profile-bundle-wrong", chromedp.SendKeys(chromedp.CSS("#bundle-pem"), "nonsense"), chromedp.Submit(chromedp.CSS("#bundle-pem")), chromedp.WaitVisible(chromedp.CSS("#bundle-problem")))
	tb.open("profile-back", "/profiles/corp?do=challenge-baked", "dialog[open]")
	tb.open("profile-secret", "/profiles/corp?do=secret&of=compliance", "dialog[open]")
	tb.open("profiles", "/profiles", "#profile-list")
	tb.open("tls", "/tls", "#tls-certificates")
	if err := box.fake.InstallTLS([]byte("BEGIN BEGIN"), "alice"); err != nil {
		t.Fatal(err)
	}
	tb.open("tls-own", "/tls?do=own", "dialog[open]")

	refused := audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.SCEPRefused, Actor: audit.ActorDevice, Source: "10.0.0.7", Profile: "iot",
		Protocol: "scep", Identity: "printer-3f-west", Outcome: audit.OutcomeRefused, Reason: "the challenge is wrong"}
	if err := box.store.Append(refused); err != nil {
		t.Fatal(err)
	}
	box.request("gate.wait")
	tb.step("setup-made", chromedp.Navigate(box.URL+"/setup?profile=iot"), chromedp.Click(chromedp.CSS(`input[value=challenge] ~ button`)), chromedp.WaitVisible(chromedp.CSS(".walk .copyable")))
	made := tb.text(".walk .copyable code")
	box.request("cam-1.example.com")
	tb.step("setup-arrived", chromedp.WaitVisible(chromedp.CSS("#arrivals.is-done"))) // by itself
	if got := tb.text(".walk .copyable code"); got != made || made == "" {
		t.Errorf("after the device came the secret on the page is %q, before it was %q", got, made)
	}
}
