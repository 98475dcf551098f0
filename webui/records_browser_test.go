package webui

import (
	"strings"
	"testing"
	"time"
)

// TestBrowserRecords walks the audit explorer, the certificates and the approvals, with each dialog and
// what it says to something wrong.
func TestBrowserRecords(t *testing.T) {
	box := newBox(t)
	box.enroll(60)
	for _, name := range []string{"laptop-anna.example.com", "cam-north-1", "door-2.wait"} {
		box.request(name)
	}
	lamp := box.request("lamp-4").Serial
	box.claimAs(operator, operator)
	tb := newTab(t, box)
	tb.enter("alice")
	tb.See("approvals", "/pending", ".rows")
	tb.Press(".rows a.name", ".decision")
	tb.Look("request")
	tb.Press(`a[href$="do=deny"]`, "dialog[open] #reason")
	tb.Look("request-deny")
	// A browser refuses an empty reason itself; one of spaces comes back.
	tb.Write("#reason", "  ")
	tb.Press("dialog button.danger", "#deny-problem")
	tb.Look("request-deny-wrong")
	tb.Reads("#deny-problem", "reason is empty")
	tb.Press("dialog a.quiet", ".decision button")
	tb.Press(".decision form button", ".done")
	tb.Look("request-approved")
	serial := box.serialOf("door-2.wait")
	box.request("DOOR-2.wait")
	tb.Open("/pending", ".rows")
	tb.Press(".rows a.name", ".notice")
	tb.Look("request-name-taken")

	tb.See("certificates", "/certificates", ".rows")
	tb.Press(`a[href="/certificates/`+serial+`"]`, "#state")
	tb.Look("certificate")
	tb.See("certificate-hold", "/certificates/"+lamp+"?do=hold", "dialog[open]")
	tb.Press("dialog form button", ".done")
	tb.Look("certificate-held")
	tb.Press(`a[href$="do=release"]`, "dialog[open]")
	tb.Look("certificate-release")
	tb.Press("dialog form button", ".done")
	tb.See("certificate-revoke", "/certificates/"+lamp+"?do=revoke", "dialog[open] .options")
	if err := box.engine.Revoke(t.Context(), lamp, "superseded", "bob"); err != nil {
		t.Fatal(err)
	}
	tb.Click(`input[value="keyCompromise"]`)
	tb.Press("dialog button.danger", "#revoke-problem")
	tb.Look("certificate-revoke-refused")
	tb.Reads("#revoke-problem", "revoked")
	box.clock.pass(20 * time.Minute)
	tb.See("certificates-none", "/certificates?state=due", ".empty")

	tb.See("audit", "/audit", ".records")
	tb.Write("#q", "plc-line")
	tb.Enter("#q", ".records")
	tb.Look("audit-search")
	if got := tb.Text(".records tbody"); !strings.Contains(got, "plc-line-07") || strings.Contains(got, "printer") {
		t.Errorf("a search finds %q", got)
	}
	tb.See("audit-filters", "/audit?action=revocation&since=2026-11-20T00%3A00&profile=iot", ".records")
	tb.See("audit-none", "/audit?q=nobody", ".empty")
	tb.Open("/audit?q="+lamp, ".records")
	tb.Press(".records tbody tr:last-child .time a", "#proof")
	tb.Look("record")
	tb.Press(`a[href$="?do=verify#proof"]`, ".verdict.good")
	tb.Look("record-verified")
}
