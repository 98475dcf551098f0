package webui

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"signet.internal/appliance/audit"
)

// TestDevicesInBrowser: SCEP, EST and connecting a device, as a person sees them.
func TestDevicesInBrowser(t *testing.T) {
	box := newBox(t, func(c *Config) {
		scep := c.SCEP
		c.SCEP = func() []SCEPProfile {
			all := scep()
			broken := all[1]
			broken.Name = "broken"
			ca, key := newCA(t, "Short", time.Hour)
			broken.RA = newRA(t, ca, key, 5*24*time.Hour)
			return append(all, broken)
		}
	})
	box.claimAs(administrator, administrator)
	for i, identity := range []string{"laptop-anna.example.com", "printer-3f-west", "switch-core-2"} {
		box.append(audit.Record{Action: []audit.Action{audit.SCEPPKCSReq, audit.SCEPRenewalReq, audit.SCEPPKCSReqIntune}[i], Protocol: "scep", Identity: identity, Serial: "2a0b4c", Outcome: audit.OutcomeSuccess})
		box.append(audit.Record{Action: []audit.Action{audit.ESTSimpleEnroll, audit.ESTSimpleReenroll, audit.ESTServerKeyGen}[i], Protocol: "est", Identity: identity, Serial: "2a0b4d", Outcome: audit.OutcomeSuccess})
	}
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "laptop-ben.example.com", Outcome: audit.OutcomeRefused, Reason: "signed challenge refused: replay"})
	tb := newTab(t, box)
	tb.enter("alice")

	tb.open("scep", "/scep", `#scep-profiles`)
	tb.step("scep-intune", chromedp.Click(chromedp.CSS(`a[href$="#intune-intune"]`)), chromedp.WaitVisible(chromedp.CSS("#intune-intune")))
	tb.do("reload", chromedp.Reload(), chromedp.WaitVisible(chromedp.CSS("#intune-intune")))
	tb.do("another tab", chromedp.Click(chromedp.CSS(`.tabs a[href="/scep?tab=activity"]`)), chromedp.WaitVisible(chromedp.CSS("#enrollments")))
	tb.do("back", chromedp.NavigateBack(), chromedp.WaitVisible(chromedp.CSS("#intune-intune")))
	tb.open("scep-activity", "/scep?tab=activity", "#enrollments")
	box.append(audit.Record{Action: audit.SCEPPKCSReq, Protocol: "scep", Identity: "just-now", Outcome: audit.OutcomeSuccess})
	tb.do("a device enrolls", chromedp.WaitVisible(chromedp.CSS("#enrollments tbody tr:nth-child(4)")))
	if got := tb.text("#enrollments tbody tr:first-child"); !strings.Contains(got, "just-now") {
		t.Errorf("the newest is %q", got)
	}
	tb.do("chip", chromedp.Click(chromedp.CSS(`.chips a[href$="show=renewal"]`)), chromedp.WaitVisible(chromedp.CSS(`.chips a[aria-current][href$="show=renewal"]`)))
	if got := tb.text("#enrollments"); !strings.Contains(got, "printer-3f-west") || strings.Contains(got, "laptop-anna") {
		t.Errorf("renewals are %q", got)
	}
	tb.open("scep-reload", "/scep?tab=intune&do=reload&profile=broken", "dialog:modal")
	tb.step("scep-reload-refused", chromedp.Click(chromedp.CSS("dialog button")), chromedp.WaitVisible(chromedp.CSS("dialog:modal #reload-problem")))
	if got := tb.text("#reload-problem"); !strings.Contains(got, "no certificate in it") {
		t.Errorf("the dialog says %q", got)
	}
	tb.do("cancel", chromedp.Click(chromedp.CSS("dialog a.quiet")), chromedp.WaitNotPresent(chromedp.CSS("dialog")))
	tb.do("reload", chromedp.Navigate(box.URL+"/scep?tab=intune&do=reload&profile=intune"), chromedp.WaitVisible(chromedp.CSS("dialog:modal")),
		chromedp.Click(chromedp.CSS("dialog button")), chromedp.WaitVisible(chromedp.CSS("p.done")), chromedp.WaitNotPresent(chromedp.CSS("dialog")))

	tb.open("est", "/est", "#est-profiles")
	tb.open("est-trust", "/est?tab=trust", "#est-trust")
	tb.step("est-reload-refused", chromedp.Navigate(box.URL+"/est?tab=trust&do=reload&profile=broken"), chromedp.WaitVisible(chromedp.CSS("dialog:modal")), chromedp.Click(chromedp.CSS("dialog button")), chromedp.WaitVisible(chromedp.CSS("dialog:modal #reload-problem")))

	tb.open("connect", "/connect", "#connect-profiles")
	tb.open("connect-profile", "/connect/corp", "#addresses")
	// The others are of the same parts: commands, fields, a download, or why there is nothing.
	tb.open("connect-curl", "/connect/corp?for=curl&cn=plc-7.example.com", ".guide-step")
	tb.open("connect-intune", "/connect/intune?for=intune", ".guide-step")
	tb.open("connect-bad-name", "/connect/iot?for=apple&cn=a%20b", "#device-problem")
	tb.step("connect-minted", chromedp.Navigate(box.URL+"/connect/iot?for=certmonger&cn=cam-1"), chromedp.Click(chromedp.CSS(`form[action$="/challenge"] button`)),
		chromedp.WaitVisible(chromedp.CSS(".made")))
	if got := tb.text(".made .secret"); got != "SECRET-OF-cam-1" {
		t.Errorf("the page shows %q", got)
	}

	gated := newBox(t)
	gated.claimAs(operator, operator)
	tg := newTab(t, gated)
	tg.enter("alice")
	tg.open("scep-gated", "/scep", ".gated")
}
