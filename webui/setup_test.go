package webui

import (
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// TestSetup: the page leads from a claimed box to the first device, with what is done ticked, and says what
// devices did meanwhile.
func TestSetup(t *testing.T) {
	box := newBox(t, func(c *Config) { // a site that is called demo, with a challenge of its own
		c.Box.(*fakeBox).settings["corp"].Challenge = &ChallengeSetting{}
	})
	admin := bearer(box.claimAs(administrator, administrator))
	page := box.get("/setup", admin)
	page.says(t, 200, `href="/authorities/devices"`, "The device enrolls with", `href="/setup?profile=modern"`, `name="make" value="challenge"`, `href="/connect/corp"`, "Waiting for the first device of corp", `id="arrivals" data-live=`)
	page.saysNot(t, "demo-challenge", "refused", `target="_blank"`)
	if n := strings.Count(string(page.body), "is-done"); n != 2 {
		t.Errorf("%d steps are ticked, want the authority and the profile", n)
	}
	box.get("/setup?profile=nothing", admin).says(t, 404)
	box.get("/setup?profile=modern", admin).says(t, 200, "Nothing is to be made here")

	made := box.submit("/setup?profile=corp", url.Values{"make": {"challenge"}}, admin)
	made.says(t, 200, "Copy it now", `action="/connect/corp" target="_blank"`, `name="for" value="certmonger"`)
	made.saysNot(t, `value="curl"`, `value="chromeos"`) // which want a password, and a challenge in somebody else's console
	secret := regexp.MustCompile(`<code>([a-z2-7]{20,})</code>`).FindSubmatch(made.body)
	if secret == nil || !strings.HasPrefix(box.fake.last(), "alice: challenge $argon2id$") {
		t.Fatalf("ordered %q: %s", box.fake.last(), made.body)
	}
	box.get("/setup?profile=corp", admin).saysNot(t, string(secret[1]))
	box.submit("/setup?profile=corp", url.Values{"make": {"password"}, "user": {"device"}}, admin).says(t, 200, "Password of user device")
	box.submit("/setup?profile=corp", url.Values{"make": {"password"}, "user": {"nobody"}}, admin).says(t, 409, "no EST user of that name")
	box.submit("/setup?profile=corp", url.Values{"make": {"coffee"}}, admin).says(t, 422, "not said what to make")
	box.submit("/setup?profile=modern", url.Values{"make": {"challenge"}}, admin).says(t, 409)

	refused := audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.SCEPRefused, Actor: audit.ActorDevice, Source: "10.0.0.7", Profile: "corp",
		Protocol: "scep", Identity: "cam-\u202e1", Outcome: audit.OutcomeRefused, Reason: "the challenge is wrong"}
	other := refused
	other.Profile, other.Reason = "modern", "of another profile"
	if err := box.store.Append(refused, other); err != nil {
		t.Fatal(err)
	}
	tried := box.get("/setup", admin)
	tried.says(t, 200, `cam-\u202e1`, "10.0.0.7", "the challenge is wrong", "let it try again", "Waiting for the first device")
	tried.saysNot(t, "of another profile")
	box.clock.pass(arrivalsSince + time.Second)
	box.get("/setup", admin).saysNot(t, "the challenge is wrong")

}

// withIOT gives the site the profile that the tests' engine knows, set up like corp.
func withIOT(c *Config) {
	fake := c.Box.(*fakeBox)
	iot := *fake.settings["corp"]
	iot.Profile, iot.Challenge = "iot", &ChallengeSetting{}
	fake.settings["iot"] = &iot
}

// TestSetupArrivals: what devices do shows on the page: one that waits, one that has its certificate, and
// then no secret is replaced any more that it may hold.
func TestSetupArrivals(t *testing.T) {
	box := newBox(t, withIOT)
	admin := bearer(box.claimAs(administrator, administrator))
	box.get("/setup?profile=iot", admin).says(t, 200, "Waiting for the first device of iot", `value="challenge"`)
	held := box.request("gate.wait")
	box.get("/setup?profile=iot", admin).says(t, 200, "waits for you", `href="/pending/`+held.ID+`"`, "Waiting for the first device")
	box.get("/setup", admin).saysNot(t, "waits for you")
	box.request("cam-1.example.com")
	arrived := box.get("/setup?profile=iot", admin)
	arrived.says(t, 200, "cam-1.example.com</bdi> has its certificate", `href="/certificates/`)
	arrived.saysNot(t, "Waiting for the first device", `value="challenge"`)
	box.submit("/setup?profile=iot", url.Values{"make": {"challenge"}}, admin).says(t, 409, "may hold the present secret")
}

// TestSetupByRole: an operator makes one-time challenges and replaces nothing; in the demo the challenge is
// known.
func TestSetupByRole(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.Site = func() Site {
			s := demoSite()
			for i := range s.Profiles {
				if s.Profiles[i].Name == "iot" {
					s.Profiles[i].Authority = "plant"
				}
			}
			return s
		}
		c.SCEP = func() []SCEPProfile { return []SCEPProfile{{Name: "iot", OneTime: true}} }
	})
	who := bearer(box.claimAs(operator, operator))
	page := box.get("/setup", who)
	page.says(t, 200, "corp-demo-challenge")
	page.saysNot(t, `value="challenge"`, `value="password"`)
	box.submit("/setup", url.Values{"make": {"challenge"}}, who).says(t, 403)
	if len(box.fake.orders) != 0 {
		t.Errorf("an operator ordered %v", box.fake.orders)
	}
	box.get("/setup?profile=iot", who).says(t, 200, `href="/authorities/plant"`, "Get its certificate", `value="one-time"`)
	box.submit("/setup?profile=iot", url.Values{"make": {"one-time"}, "cn": {" "}}, who).says(t, 422, "name is empty", `aria-invalid="true"`)
	box.submit("/setup?profile=iot", url.Values{"make": {"one-time"}, "cn": {"cam-<1>"}}, who).says(t, 200, "SECRET-OF-cam-&lt;1&gt;", "Challenge for cam-&lt;1&gt;")
	box = newBox(t)
	reader := bearer(box.claimAs(auditor, auditor))
	box.get("/setup", reader).says(t, 200, "Waiting for the first device")
	box.submit("/setup", url.Values{"make": {"one-time"}}, reader).says(t, 403)
}
