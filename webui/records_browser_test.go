package webui

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
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
	click := func(selector string) chromedp.Action[chromedp.Void] { return chromedp.Click(chromedp.CSS(selector)) }
	visible := func(selector string) chromedp.Action[chromedp.Void] {
		return chromedp.WaitVisible(chromedp.CSS(selector))
	}

	tb.open("approvals", "/pending", ".rows")
	tb.step("request", click(".rows a.name"), visible(".decision"))
	tb.step("request-deny", click(`a[href$="do=deny"]`), visible("dialog[open] #reason"))
	// A browser refuses an empty reason itself; one of spaces comes back.
	tb.step("request-deny-wrong", chromedp.SendKeys(chromedp.CSS("#reason"), "  "), click("dialog button.danger"), visible("#deny-problem"))
	if got := tb.text("#deny-problem"); !strings.Contains(got, "reason is empty") {
		t.Errorf("no reason says %q", got)
	}
	tb.step("request-approved", click("dialog a.quiet"), visible(".decision button"), click(".decision form button"), visible(".done"))
	serial := box.serialOf("door-2.wait")
	box.request("DOOR-2.wait")
	tb.step("request-name-taken", chromedp.Navigate(box.URL+"/pending"), click(".rows a.name"), visible(".notice"))

	tb.open("certificates", "/certificates", ".rows")
	tb.step("certificate", click(`a[href="/certificates/`+serial+`"]`), visible("#state"))
	tb.open("certificate-hold", "/certificates/"+lamp+"?do=hold", "dialog[open]")
	tb.step("certificate-held", click("dialog form button"), visible(".done"))
	tb.step("certificate-release", click(`a[href$="do=release"]`), visible("dialog[open]"))
	tb.do("released", click("dialog form button"), visible(".done"))
	tb.open("certificate-revoke", "/certificates/"+lamp+"?do=revoke", "dialog[open] .options")
	if err := box.engine.Revoke(t.Context(), lamp, "superseded", "bob"); err != nil {
		t.Fatal(err)
	}
	tb.step("certificate-revoke-refused", click(`input[value="keyCompromise"]`), click("dialog button.danger"), visible("#revoke-problem"))
	if got := tb.text("#revoke-problem"); !strings.Contains(got, "revoked") {
		t.Errorf("revoking twice says %q", got)
	}
	box.clock.pass(20 * time.Minute)
	tb.open("certificates-none", "/certificates?state=due", ".empty")

	tb.open("audit", "/audit", ".records")
	tb.step("audit-search", chromedp.SendKeys(chromedp.CSS("#q"), "plc-line"), chromedp.Submit(chromedp.CSS("#q")), visible(".records"))
	if got := tb.text(".records tbody"); !strings.Contains(got, "plc-line-07") || strings.Contains(got, "printer") {
		t.Errorf("a search finds %q", got)
	}
	tb.open("audit-filters", "/audit?action=revocation&since=2026-11-20T00%3A00&profile=iot", ".records")
	tb.open("audit-none", "/audit?q=nobody", ".empty")
	tb.step("record", chromedp.Navigate(box.URL+"/audit?q="+lamp), click(".records tbody tr:last-child .time a"), visible("#proof"))
	tb.step("record-verified", click(`a[href$="?do=verify#proof"]`), visible(".verdict.good"))
}
