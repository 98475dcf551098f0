package webui

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// TestPendingPages: who sees what waits and why, and who may decide by the forms there.
func TestPendingPages(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	box.get("/pending", op).says(t, 200, "Nothing waits.")
	first, second, third := box.request("<b>door</b>.wait"), box.request("gate.wait"), box.request("hall.wait")
	box.get("/pending", op).says(t, 200, "&lt;b&gt;door&lt;/b&gt;.wait", "CN=gate.wait", "10.20.0.77", `href="/pending/`+first.ID+`"`, "first certificate")
	box.get("/pending").saysNot(t, "gate.wait")

	page := box.get("/pending/"+first.ID, op)
	page.says(t, 200, "&lt;b&gt;door&lt;/b&gt;.wait</bdi> ends in <code>.wait</code>", "one-time challenge", "ECDSA P-256", "clientAuth", "digitalSignature",
		`action="/pending/`+first.ID+`/approve"`, "then it counts as denied")
	page.saysNot(t, "<b>door", "<dialog", "already")
	box.get("/pending/"+second.ID+"?do=deny", op).says(t, 200, "<dialog open", `action="/pending/`+second.ID+`/deny"`)

	if got := box.submit("/pending/"+first.ID+"/approve", url.Values{}, op); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != "/pending?about="+first.ID+"&done=approved" {
		t.Errorf("approving: status %d, %v: %s", got.StatusCode, got.Header, got.body)
	} else {
		box.get(got.Header.Get("Location"), op).says(t, 200, `role="status">Approved. The certificate is issued, and the device gets it when it asks again. <a href="/certificates/`+box.serialOf("<b>door</b>.wait")+`">Certificate of &lt;b&gt;door&lt;/b&gt;.wait</a>`)
	}
	for about, want := range map[string]string{second.ID: `Approved. <a href="/pending/` + second.ID + `">Request of gate.wait</a>`, "": "Approved.</p>", "../x": "Approved.</p>", "0123456789abcdef": "Approved.</p>"} {
		box.get("/pending?done=approved&about="+url.QueryEscape(about), op).says(t, 200, want)
	}
	box.get("/pending?about="+first.ID, op).saysNot(t, "door")
	box.submit("/pending/"+first.ID+"/approve", url.Values{}, op).says(t, 409, "decided on before", `<span class="badge good">approved</span>`)
	box.submit("/pending/"+second.ID+"/deny", url.Values{"reason": {" "}}, op).says(t, 422, "reason is empty", "<dialog open", `aria-invalid="true"`)
	if got := box.submit("/pending/"+second.ID+"/deny", url.Values{"reason": {"not <i>ours"}}, op); got.StatusCode != http.StatusSeeOther {
		t.Errorf("denying: status %d: %s", got.StatusCode, got.body)
	} else {
		box.get(got.Header.Get("Location"), op).says(t, 200, `when it asks again. <a href="/pending/`+second.ID+`">Request of gate.wait</a>`)
	}
	box.submit("/pending/"+third.ID+"/approve", url.Values{}, op, header("Sec-Fetch-Site", "cross-site")).says(t, 403)
	box.get("/pending", op).says(t, 200, "hall.wait")
	box.get("/pending/"+second.ID, op).says(t, 200, "denied", "alice", "not &lt;i&gt;ours")
	box.get("/pending/0123456789abcdef", op).says(t, 404, "No such request waits")

	found := map[audit.Action]string{}
	for _, r := range box.records() {
		if r.Actor == "alice" {
			found[r.Action] = r.Identity + " " + r.Reason
		}
	}
	if !strings.HasPrefix(found[audit.RequestApproved], "<b>door</b>.wait") || !strings.Contains(found[audit.RequestDenied], "ours") {
		t.Errorf("decisions in the log: %v", found)
	}
}

// TestPendingNameTaken: who decides is told that the name has a certificate already, and what became of
// a request leads to its certificate.
func TestPendingNameTaken(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	first := box.request("gate.wait")
	box.submit("/pending/"+first.ID+"/approve", url.Values{}, op)
	serial := box.serialOf("gate.wait")
	box.get("/pending/"+first.ID, op).says(t, 200, `href="/certificates/`+serial+`"`)
	box.get("/certificates/"+serial, op).says(t, 200, "after <a href=\"/pending/"+first.ID+`">approval`, "Request held", "Request approved", "Issuance begun", "SCEP enrollment")
	again := box.request("GATE.wait")
	box.get("/pending/"+again.ID, op).says(t, 200, "has an active certificate already", `href="/certificates/`+serial+`"`)
	other := box.request("gate.wait.wait")
	box.get("/pending/"+other.ID, op).saysNot(t, "has an active certificate already")
}

// TestPendingOfProfileOff: who approves at a profile that is off is told so, on the page and by the API.
func TestPendingOfProfileOff(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	held := box.request("gate.wait")
	box.off.Store(true)
	box.get("/pending/"+held.ID, op).says(t, 200, "cannot be approved as it is: the profile is switched off")
	box.submit("/pending/"+held.ID+"/approve", url.Values{}, op).says(t, 409, "The profile is switched off.", `id="approve-problem"`)
	box.post("/api/v1/pending/"+held.ID+"/approve", nil, op).checkProblem(t, 409, "profile-off")
}

// TestReasonInCharacters: a reason in any script may be as long as the page says.
func TestReasonInCharacters(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	reason := strings.Repeat("ж", maxReason)
	for _, path := range []string{"/pending/" + box.request("gate.wait").ID + "/deny", "/profiles/corp/off"} {
		box.submit(path, url.Values{"reason": {reason + "ж"}}, admin).says(t, 422, "longer than 200 characters")
		if got := box.submit(path, url.Values{"reason": {reason}}, admin); got.StatusCode != http.StatusSeeOther {
			t.Errorf("%s: status %d: %.300s", path, got.StatusCode, got.body)
		}
	}
}

// TestPendingForAuditors: they see what waits, and no form.
func TestPendingForAuditors(t *testing.T) {
	box := newBox(t)
	held := box.request("gate.wait")
	who := bearer(box.claimAs(auditor, auditor))
	page := box.get("/pending/"+held.ID+"?do=deny", who)
	page.says(t, 200, "gate.wait", "An operator or administrator decides")
	page.saysNot(t, "/pending/"+held.ID+"/", "<dialog")
	box.submit("/pending/"+held.ID+"/approve", url.Values{}, who).says(t, 403)
	box.post("/api/v1/pending/"+held.ID+"/approve", nil, who).checkProblem(t, 403, "role")
}

// serialOf is the serial of the newest certificate issued to an identity.
func (b *testBox) serialOf(identity string) string {
	b.t.Helper()
	for _, r := range b.records() {
		if r.Identity == identity && r.Action == audit.SCEPPKCSReq && r.Outcome == audit.OutcomeSuccess {
			return r.Serial
		}
	}
	b.t.Fatalf("%s has no certificate", identity)
	return ""
}

// TestPageSizes: no page of lists is larger than 100 KB, however full.
func TestPageSizes(t *testing.T) {
	box := newBox(t)
	long := strings.Repeat("W", 250)
	for range 60 {
		rec := audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.SCEPRefused, Outcome: audit.OutcomeRefused, Identity: long, Reason: long + long, Serial: "0a0b", Profile: "corp"}
		if err := box.store.Append(rec); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		box.clock.pass(time.Minute)
		box.request(fmt.Sprintf("device-%03d.%s", i, strings.Repeat("w", 40)))
	}
	op := bearer(box.claimUntil(operator, start.Add(48*time.Hour)))
	for _, path := range []string{"/audit", "/certificates", "/audit/3?do=verify"} {
		if got := box.get(path, op); got.StatusCode != 200 || len(got.body) > 100_000 {
			t.Errorf("%s: status %d, %d bytes", path, got.StatusCode, len(got.body))
		}
	}
}
