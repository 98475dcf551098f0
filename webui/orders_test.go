package webui

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestOrderForms: an administrator changes authorities and profiles by the status page's forms, and only
// those that make sense are there.
func TestOrderForms(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	page := box.get("/", admin)
	page.says(t, 200, `action="/authorities/devices/next"`, `href="/authorities/plant/request.pem"`, `action="/authorities/plant/chain"`, `action="/profiles/corp/off"`)
	page.saysNot(t, `action="/authorities/devices/chain"`, `action="/authorities/plant/next"`, "/next/activate", `action="/profiles/corp/on"`)

	if got := box.get("/authorities/plant/request.pem", admin); got.StatusCode != 200 || got.Header.Get("Content-Disposition") != `attachment; filename="plant.csr.pem"` || !strings.HasPrefix(string(got.body), "-----BEGIN") {
		t.Errorf("request: status %d, %v", got.StatusCode, got.Header)
	}
	box.get("/authorities/devices/request.pem", admin).says(t, 409, "This authority is its own root.", "Ask for a subordinate")
	box.submit("/authorities/plant/chain", url.Values{"chain": {"nonsense"}}, admin).says(t, 422, "does not begin with a PEM certificate")

	order := func(path string, values url.Values, section, ordered string) reply {
		t.Helper()
		got := box.submit(path, values, admin)
		if got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != "/#"+section || box.fake.last() != "alice: "+ordered {
			t.Errorf("%s: status %d to %q, ordered %q", path, got.StatusCode, got.Header.Get("Location"), box.fake.last())
		}
		return box.get("/", admin)
	}
	chain := strings.ReplaceAll(string(pemOf(box.fake.authorities[0].Generations[0].Certificate)), "\n", "\r\n") // as browsers send it
	order("/authorities/plant/chain", url.Values{"chain": {chain}}, "authorities", "install plant").saysNot(t, "waits for its certificate")
	order("/authorities/devices/next", nil, "authorities", "prepare devices").says(t, 200, `action="/authorities/devices/next/activate"`, `action="/authorities/devices/next/cancel"`)
	order("/authorities/devices/next/cancel", nil, "authorities", "cancel devices").saysNot(t, "/next/activate")
	order("/authorities/devices/next", nil, "authorities", "prepare devices")
	box.submit("/authorities/devices/next/activate", nil, admin).says(t, 422, "cannot be taken back")
	order("/authorities/devices/next/activate", url.Values{"sure": {"yes"}}, "authorities", "activate devices").says(t, 200, ">generation 2<")
	box.submit("/profiles/corp/off", url.Values{"reason": {" "}}, admin).says(t, 422, "reason is empty")
	order("/profiles/corp/off", url.Values{"reason": {"a leak"}}, "profiles", "switch off=true a leak at corp").says(t, 200, `action="/profiles/corp/on"`)
	order("/profiles/corp/on", nil, "profiles", "switch off=false  at corp").says(t, 200, `action="/profiles/corp/off"`)

	ordered := len(box.fake.orders)
	box.submit("/authorities/devices/next", nil, admin, header("Sec-Fetch-Site", "cross-site")).says(t, 403)
	box = newBox(t)
	who := bearer(box.claimAs(operator, operator))
	box.get("/", who).saysNot(t, "/authorities/", "/profiles/corp")
	box.submit("/authorities/devices/next", nil, who).says(t, 403)
	if len(box.fake.orders) != 0 || ordered != 7 {
		t.Errorf("%d orders before and %d after, want 7 and none", ordered, len(box.fake.orders))
	}
}
