package webui

import (
	"crypto/x509"
	"net/url"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// demoEST is what the demo's EST side looks like: one profile of each kind.
func demoEST(a AuthorityInfo) []ESTProfile {
	ca, ra := a.Generations[0].Certificate, a.RAs[0].Certificate
	return []ESTProfile{
		{Name: "corp", Authority: "devices", LegacyTLS: true, Users: []string{"device"}, Issued: true, ServerKey: "ecdsa-p256",
			Counters: map[string]int{"success_simpleenroll": 31, "auth_failed_basic": 4}, Since: Enrolled{Issued: 31, Refused: 4, Failed: 2}},
		{Name: "iot", Authority: "devices", Issued: true, Trust: &ESTTrust{File: "trust/bootstrap.pem", Certificates: []*x509.Certificate{ca, ra}}},
		// Its bundle is there, and its file is not good any more.
		{Name: "broken", Authority: "devices", Trust: &ESTTrust{File: "trust/bootstrap.pem", Certificates: []*x509.Certificate{ra}, Replaced: &Change{By: "alice", At: start}}},
	}
}

// TestESTAdmin holds the two routes to the shapes and codes of their SCEP counterparts.
func TestESTAdmin(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	var out ESTProfiles
	box.get("/api/v1/admin/est/profiles", admin).decode(t, &out)
	if out.ProfileCount != 3 || len(out.Profiles) != 3 || !out.GeneratedAt.Equal(start) {
		t.Fatalf("%+v", out)
	}
	if p := out.Profiles[0]; p.PathID != "corp" || p.IssuerID != "devices" || !p.BasicConfigured || p.MTLSEnabled || p.ServerKeyGen != "ecdsa-p256" || !p.LegacyTLS || len(p.TrustAnchors) != 0 || p.Counters["success_simpleenroll"] != 31 || p.Counters["auth_failed_basic"] != 4 {
		t.Errorf("corp: %+v", p)
	}
	if p := out.Profiles[1]; p.BasicConfigured || !p.MTLSEnabled || p.MTLSFile != "trust/bootstrap.pem" || len(p.TrustAnchors) != 2 || p.TrustAnchors[1].DaysToExpiry != 365 {
		t.Errorf("iot: %+v", p)
	}
	var reloaded ReloadResponse
	box.post("/api/v1/admin/est/reload-trust", ReloadRequest{PathID: "iot"}, admin).decode(t, &reloaded)
	if !reloaded.Reloaded || reloaded.PathID != "iot" {
		t.Errorf("%+v", reloaded)
	}
	box.post("/api/v1/admin/est/reload-trust", ReloadRequest{PathID: "nobody"}, admin).checkProblem(t, 404, "no-profile")
	box.post("/api/v1/admin/est/reload-trust", ReloadRequest{}, admin).checkProblem(t, 409, "no-est-trust")
	box.post("/api/v1/admin/est/reload-trust", ReloadRequest{PathID: "broken"}, admin).checkProblem(t, 500, "trust")
}

// TestESTPage: the tabs, the dialog that stays open on refusal, and what others than administrators see.
func TestESTPage(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	box.get("/est", admin).says(t, 200, "EST Administration", "password", "keys made here", "TLS 1.3 only", "31 issued, 4 refused, <strong>2 failed</strong>", "0 issued, 0 refused</dd>")
	trust := box.get("/est?tab=trust", admin)
	trust.says(t, 200, `id="trust-iot"`, "CN=Demo Devices CA RA", "365 days left", "not baked")
	trust.saysNot(t, `id="trust-corp"`, "<dialog")
	box.get("/est?tab=trust&do=reload&profile=iot", admin).says(t, 200, "<dialog open", "Read the trust bundle of iot again?")
	box.get("/est?tab=trust&do=reload&profile=corp", admin).saysNot(t, "<dialog")
	replaced := box.get("/est?tab=trust&do=reload&profile=broken", admin)
	replaced.says(t, 200, "<dialog open", "Its certificates are in use once those of an administrator are taken back.")
	replaced.saysNot(t, "from then on")
	box.submit("/est/reload-trust", url.Values{"profile": {"broken"}}, admin).says(t, 500, "<dialog open", "no certificate in it", "Try again", `role="alert"`)
	done := box.submit("/est/reload-trust", url.Values{"profile": {"iot"}}, admin)
	if done.says(t, 303); done.Header.Get("Location") != "/est?tab=trust&done=trust-reloaded#trust-iot" {
		t.Errorf("leads to %s", done.Header.Get("Location"))
	}
	box.get("/est?tab=trust&done=trust-reloaded", admin).says(t, 200, "Read again.")

	for _, action := range []audit.Action{audit.ESTSimpleEnroll, audit.ESTSimpleReenroll, audit.ESTServerKeyGen, audit.SCEPPKCSReq} {
		box.append(audit.Record{Action: action, Protocol: "est", Identity: "of-" + string(action), Outcome: audit.OutcomeSuccess})
	}
	all := box.get("/est?tab=activity", admin)
	all.says(t, 200, "of-est_simpleenroll", "of-est_simplereenroll", "of-est_serverkeygen")
	all.saysNot(t, "of-scep_pkcsreq")
	renewed := box.get("/est?tab=activity&show=renewal", admin)
	renewed.says(t, 200, "of-est_simplereenroll")
	renewed.saysNot(t, "of-est_simpleenroll", "of-est_serverkeygen")

	gated := newBox(t, func(c *Config) {
		c.EST = func() []ESTProfile { t.Error("EST was looked up for an operator"); return nil }
	})
	gated.get("/est?tab=trust", bearer(gated.claimAs(operator, operator))).says(t, 200, "For administrators", "operator")
}

// append writes a record of a device to the log.
func (b *testBox) append(r audit.Record) {
	b.t.Helper()
	r.Time, r.TimeSource, r.Actor, r.Source, r.Profile = b.clock.Now(), "rtc", audit.ActorDevice, "192.0.2.9", "corp"
	if err := b.store.Append(r); err != nil {
		b.t.Fatal(err)
	}
	b.clock.pass(time.Second)
}
