package webui

import (
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/handover"
	"signet.internal/webui/browsertest"
)

// troubled is a site with something to mend.
func troubled(c *Config) {
	c.Site = func() Site {
		s := demoSite()
		s.Conditions = []handover.Condition{
			{What: "Profile corp was switched off by <b>mallory</b>.", Mend: "Switch it on again when the reason is gone."},
			{What: "The certificate of authority devices ends on 2026-12-01.", Mend: "Prepare its next generation."},
			{What: "The box’s TLS certificate was uploaded and ends on 2026-12-02.", Mend: "Upload a new one."},
			{What: "Something that no page is about.", Mend: "Think."},
		}
		return s
	}
}

// TestDashboard: people signed in see what needs them, and where they deal with it.
func TestDashboard(t *testing.T) {
	box := newBox(t, troubled)
	who := bearer(box.claimAs(administrator, auditor))
	empty := box.get("/", who)
	empty.says(t, 200, "No device has enrolled yet", `href="/setup"`)
	box.enroll(40)
	box.request("gate.wait")
	page := box.get("/", who)
	page.says(t, 200, "switched off by &lt;b&gt;mallory", `href="/profiles/corp">Profile corp`, `href="/authorities/devices">Authority devices`, `href="/tls">`,
		"Something that no page is about", "One request waits for your decision", `href="/pending">Decide`,
		"In the last 7 days: 402 issued, 31 refused, 3 failed.", "2026-11-21: 52 issued, 3 refused, 1 failed", "<td>118</td>",
		"Keys are not protected against a changed disk", "6.0 GiB", "212 ms", "real-time clock", "printer-3f-west", `href="/audit/`, `href="/connect/corp"`)
	protected := newBox(t, func(c *Config) { c.Boot.SecureBoot = "on" })
	protected.get("/", bearer(protected.claimAs(administrator, auditor))).saysNot(t, "not protected against")
	page.saysNot(t, "No device has enrolled yet", "<b>mallory", "Sign in</h2>", "nearly full", "not believed", "<script>")
	if len(page.body) > 100<<10 {
		t.Errorf("the page has %d bytes", len(page.body))
	}
	if got := strings.Count(string(page.body), `<li><a href="/audit/`); got != newestShown {
		t.Errorf("%d of the newest are shown", got)
	}
}

// TestDashboardAttention: what is worst comes first, and the machine's own troubles are among it.
func TestDashboardAttention(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.Boot.Conditions = []handover.Condition{{What: "A thing of the boot.", Mend: "Mend it."}}
		c.Machine = func() Machine {
			m := demoMachine()
			m.Storage.Free = 200 << 20
			m.Watchdog = Watchdog{Answered: start.Add(-time.Hour), Missed: 3}
			m.Keys.Waiting = 20
			return m
		}
		c.History = func() (History, error) { return History{}, nil }
	})
	who := bearer(box.claimAs(administrator, auditor))
	box.request("gate.wait")
	page := box.get("/", who)
	page.says(t, 200, "200 MiB", ">nearly full<", "The key holder does not answer", ">busy<", "is being counted")
	at := -1
	for _, text := range []string{"The key holder does not answer", "A thing of the boot", "One request waits"} {
		next := strings.Index(string(page.body), text)
		if next < at {
			t.Errorf("%q comes too early", text)
		}
		at = next
	}
	calm := newBox(t, allIssue)
	calm.get("/", bearer(calm.claimAs(administrator, auditor))).says(t, 200, "Nothing. The box does its work by itself.", "Ready to enroll devices")
}

// TestLiveInBrowser: the page follows what happens without being loaded again, says so, and leaves alone what
// somebody has under their hands.
func TestLiveInBrowser(t *testing.T) {
	box := quickFeed(newBox(t, troubled))
	box.enroll(12)
	box.mustClaim()
	tb := newTab(t, box)
	tb.enter("alice")
	run := func(script string) {
		t.Helper()
		browsertest.Eval[bool](tb.Tab, "(()=>{"+script+";return true})()")
	}
	tb.See("overview", "/", "#attention")
	eventually(t, "the browser listens", func() bool { return streamsOf(box) == 1 })
	run(`window.loadedOnce = true; document.querySelector("#chart-numbers").open = true`)
	box.request("gate-live.example.com.wait")
	tb.Until("the request is on the page", `document.querySelector("#attention").textContent.includes("One request waits")`)
	tb.Until("and in the navigation", `document.querySelector('nav a[href="/pending"]').textContent.includes("1")`)
	tb.Until("and said", `[...document.querySelectorAll("[role=status]")].some(e => e.textContent.includes("Changed: Needs attention"))`)
	tb.Until("what was open stays open", `window.loadedOnce && document.querySelector("#chart-numbers").open`)

	run(`document.querySelector("#attention a").focus()`)
	box.request("second.wait")
	tb.Until("the navigation goes on", `document.querySelector('nav a[href="/pending"]').textContent.includes("2")`)
	tb.Until("the focus stays where it was", `document.activeElement.closest("#attention") && document.querySelector("#attention").textContent.includes("One request waits")`)
	run(`document.activeElement.blur()`)
	tb.Until("what waited comes then", `document.querySelector("#attention").textContent.includes("2 requests wait")`)

	run(`const field = document.createElement("input"); field.id = "typed"; document.querySelector("#attention").append(field); field.value = "half a reason"`)
	box.request("third.wait")
	tb.Until("the navigation goes on", `document.querySelector('nav a[href="/pending"]').textContent.includes("3")`)
	tb.Until("what was typed stays", `document.querySelector("#typed").value === "half a reason"`)
	run(`document.querySelector("#typed").value = ""; document.querySelector("#typed").dispatchEvent(new Event("focusout", {bubbles: true}))`)
	tb.Until("and then goes", `!document.querySelector("#typed") && document.querySelector("#attention").textContent.includes("3 requests wait")`)

	box.fake.rollback = &Rollback{Expected: 4, Found: 9, Since: start}
	tb.See("box-acknowledge", "/box?do=acknowledge", "dialog[open]")
	box.fake.rollback = nil
	tb.See("box", "/box", "#tpm")
	eventually(t, "the browser listens", func() bool { return streamsOf(box) == 1 })
	box.console.sessions.mu.Lock()
	clear(box.console.sessions.byID)
	box.console.sessions.mu.Unlock()
	box.request("fourth.wait")
	tb.Until("somebody signed out is told so", `(document.querySelector(".not-live:not([hidden])")?.textContent ?? "").includes("You are signed out")`)
	eventually(t, "the stream ended", func() bool { return streamsOf(box) == 0 })
}

// TestConditionLeads: every condition of the box leads to the page where it is looked into.
func TestConditionLeads(t *testing.T) {
	s := Status{Authorities: []AuthorityStatus{{Name: "modern"}}, Profiles: []ProfileStatus{{Name: "corp"}}}
	for what, want := range map[string]string{
		"Profile corp was switched off by ada: stolen.":                                                             "/profiles/corp",
		"The RA certificate of authority modern ends on 2026-11-26.":                                                "/authorities/modern",
		"It is 2026-11-20 03:35:46 UTC by the box's clock: the certificates of authority modern are not valid yet.": "/box#clock",
		"The clock is not trusted, so nothing is issued: it shows 2026-11-20, before the newest audit record.":      "/box#clock",
		"The ECDSA certificate of the box's listeners ends on 2026-12-02.":                                          "/tls",
		"The root of the box's TLS certificates ended on 2026-12-02.":                                               "/tls",
		"The audit log is not sent to tls://siem.example.com:6514 since 2026-11-21 16:05:45 UTC.":                   "/box#storage",
	} {
		if path, label := leadsTo(handover.Condition{What: what}, s); path != want || label == "" {
			t.Errorf("%q leads to %q (%q), want %q", what, path, label, want)
		}
	}
}
