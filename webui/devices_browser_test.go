package webui

import (
	"strings"
	"testing"
	"time"

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

	tb.See("scep", "/scep", `#scep-profiles`)
	tb.Press(`a[href$="#intune-intune"]`, "#intune-intune")
	tb.Look("scep-intune")
	tb.Reload("#intune-intune")
	tb.Press(`.tabs a[href="/scep?tab=activity"]`, "#enrollments")
	tb.Back("#intune-intune")
	tb.See("scep-activity", "/scep?tab=activity", "#enrollments")
	box.append(audit.Record{Action: audit.SCEPPKCSReq, Protocol: "scep", Identity: "just-now", Outcome: audit.OutcomeSuccess})
	tb.Shows("#enrollments tbody tr:nth-child(4)") // by itself
	tb.Reads("#enrollments tbody tr:first-child", "just-now")
	tb.Press(`.chips a[href$="show=renewal"]`, `.chips a[aria-current][href$="show=renewal"]`)
	if got := tb.Text("#enrollments"); !strings.Contains(got, "printer-3f-west") || strings.Contains(got, "laptop-anna") {
		t.Errorf("renewals are %q", got)
	}
	tb.See("scep-reload", "/scep?tab=intune&do=reload&profile=broken", "dialog:modal")
	tb.Press("dialog button", "dialog:modal #reload-problem")
	tb.Look("scep-reload-refused")
	tb.Reads("#reload-problem", "trust/x.pem: no certificate in it.")
	tb.Press("dialog a.quiet", "main:not(:has(dialog))")
	tb.Open("/scep?tab=intune&do=reload&profile=intune", "dialog:modal")
	tb.Press("dialog button", "main:not(:has(dialog)) p.done")

	tb.See("est", "/est", "#est-profiles")
	tb.See("est-trust", "/est?tab=trust", "#est-trust")
	tb.Open("/est?tab=trust&do=reload&profile=broken", "dialog:modal")
	tb.Press("dialog button", "dialog:modal #reload-problem")
	tb.Look("est-reload-refused")

	tb.See("connect", "/connect", "#connect-profiles")
	tb.See("connect-profile", "/connect/corp", "#addresses")
	// The others are of the same parts: commands, fields, a download, or why there is nothing.
	tb.See("connect-curl", "/connect/corp?for=curl&cn=plc-7.example.com", ".guide-step")
	tb.See("connect-intune", "/connect/intune?for=intune", ".guide-step")
	tb.See("connect-ios", "/connect/corp?for=ios&cn=rtr-1.example.com", ".guide-step")
	tb.See("connect-apple", "/connect/corp?for=apple&cn=ipad-3.example.com", ".guide-step")
	tb.See("connect-chromeos", "/connect/intune?for=chromeos", ".guide-step")
	tb.See("connect-bad-name", "/connect/iot?for=apple&cn=a%20b", "#device-problem")
	tb.Open("/connect/iot?for=certmonger&cn=cam-1", `form[action$="/challenge"]`)
	tb.Press(`form[action$="/challenge"] button`, ".made")
	tb.Look("connect-minted")
	if got := tb.Text(".made .secret"); got != "SECRET-OF-cam-1" {
		t.Errorf("the page shows %q", got)
	}

	gated := newBox(t)
	gated.claimAs(operator, operator)
	tg := newTab(t, gated)
	tg.enter("alice")
	tg.See("scep-gated", "/scep", ".gated")
}
