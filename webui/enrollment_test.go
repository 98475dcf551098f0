package webui

import (
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"signet.internal/appliance/enroll"
)

// newEngine is a real engine on the box's store and clock.
func newEngine(t *testing.T, box *testBox) *enroll.Engine {
	t.Helper()
	e, err := enroll.New(enroll.Config{Store: box.store, Now: box.clock.Now, TimeSource: "host", Log: slog.New(slog.NewTextHandler(box.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// demoSCEP is what the demo's SCEP side looks like: one profile of each kind.
func demoSCEP(site Site) []SCEPProfile {
	ca, ra := site.Authorities[0].CA, site.Authorities[0].RA
	return []SCEPProfile{
		{Name: "corp", Authority: "devices", Static: true, RA: ra},
		{Name: "intune", Authority: "devices", Static: true, RA: ra, Signed: &SignedChallenges{
			File: "trust/connector.pem", Certificates: []*x509.Certificate{ca, ra}, Audience: "signet-demo", Validity: time.Hour, Skew: time.Minute,
			PerDevice24h: 3, Live: 2, Counters: map[string]int{"success": 2, "replay": 1}}},
		{Name: "iot", Authority: "devices", RA: ra, MTLSFile: "trust/bootstrap.pem"},
	}
}

// TestSCEPAdmin holds the three routes to the shapes and codes monitoring of such servers expects.
func TestSCEPAdmin(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	var profiles SCEPProfiles
	box.get("/api/v1/admin/scep/profiles", admin).decode(t, &profiles)
	if profiles.ProfileCount != 3 || len(profiles.Profiles) != 3 || !profiles.GeneratedAt.Equal(start) {
		t.Fatalf("%+v", profiles)
	}
	corp, intune, iot := profiles.Profiles[0], profiles.Profiles[1], profiles.Profiles[2]
	if !corp.ChallengePasswordSet || corp.PathID != "corp" || corp.IssuerID != "devices" || corp.RADaysToExpiry != 365 || corp.RAExpired || corp.Intune != nil || corp.MTLSEnabled {
		t.Errorf("corp: %+v", corp)
	}
	if iot.ChallengePasswordSet || !iot.MTLSEnabled || iot.MTLSFile != "trust/bootstrap.pem" {
		t.Errorf("iot: %+v", iot)
	}
	section := intune.Intune
	if section == nil || len(section.TrustAnchors) != 2 || section.TrustAnchors[1].DaysToExpiry != 365 || section.ValidityNS != int64(time.Hour) ||
		section.SkewNS != int64(time.Minute) || section.RateLimitDisabled || section.ReplayCacheSize != 2 || section.Counters["replay"] != 1 {
		t.Errorf("intune: %+v", section)
	}
	var stats IntuneStats
	box.get("/api/v1/admin/scep/intune/stats", admin).decode(t, &stats)
	if stats.ProfileCount != 3 || stats.Profiles[0].Enabled || !stats.Profiles[1].Enabled || stats.Profiles[1].Counters["success"] != 2 {
		t.Errorf("stats: %+v", stats)
	}
	box.clock.pass(366 * 24 * time.Hour)
	box.get("/api/v1/admin/scep/profiles", bearer("sgt_x")).checkProblem(t, 401, "bad-credential")

	for _, c := range []struct {
		profile string
		status  int
		kind    string
	}{{"nobody", 404, "no-profile"}, {"corp", 409, "no-signed"}, {"broken", 500, "trust"}} {
		box := newBox(t)
		admin := bearer(box.claimAs(administrator, administrator))
		box.post("/api/v1/admin/scep/intune/reload-trust", ReloadRequest{PathID: c.profile}, admin).checkProblem(t, c.status, c.kind)
	}
	box = newBox(t)
	var reloaded ReloadResponse
	box.post("/api/v1/admin/scep/intune/reload-trust", ReloadRequest{PathID: "intune"}, bearer(box.claimAs(administrator, administrator))).decode(t, &reloaded)
	if !reloaded.Reloaded || reloaded.PathID != "intune" || !reloaded.ReloadedAt.Equal(start) {
		t.Errorf("%+v", reloaded)
	}
	for role, status := range map[role]int{auditor: 403, operator: 403} {
		box := newBox(t)
		token := bearer(box.claimAs(role, role))
		box.get("/api/v1/admin/scep/profiles", token).checkProblem(t, status, "role")
		box.get("/api/v1/admin/scep/intune/stats", token).checkProblem(t, status, "role")
		box.post("/api/v1/admin/scep/intune/reload-trust", ReloadRequest{}, token).checkProblem(t, status, "role")
	}
	box.get("/api/v1/admin/scep/profiles").checkProblem(t, 401, "unauthenticated")
}

func TestMintChallenge(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	var out ChallengeResponse
	box.post("/api/v1/challenges", ChallengeRequest{Profile: "iot", CN: "cam-1", SANs: []string{"dns:cam-1"}, TTL: "30m"}, op).decode(t, &out)
	if out.Challenge != "SECRET-OF-cam-1" || !out.Expires.Equal(start.Add(30*time.Minute)) || out.Profile != "iot" || out.CN != "cam-1" {
		t.Errorf("%+v", out)
	}
	for _, c := range []struct {
		in     ChallengeRequest
		status int
		kind   string
	}{
		{ChallengeRequest{Profile: "iot"}, 422, "input"},
		{ChallengeRequest{Profile: "iot", CN: "x", TTL: "soon"}, 422, "input"},
		{ChallengeRequest{Profile: "iot", CN: "x", TTL: "-1h"}, 422, "input"},
		{ChallengeRequest{Profile: "iot", CN: "x", SANs: make([]string, 65)}, 422, "input"},
		{ChallengeRequest{Profile: "corp", CN: "x"}, 409, "no-one-time"},
		{ChallengeRequest{Profile: "nobody", CN: "x"}, 404, "no-profile"},
	} {
		box.post("/api/v1/challenges", c.in, op).checkProblem(t, c.status, c.kind)
	}
}

func TestSerials(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	for serial, status := range map[string]int{"2A:FF": 404, "02aff": 404, "xyz": 422, "00": 422, "2a.": 422} {
		kind := "input"
		if status == 404 {
			kind = "no-certificate"
		}
		box.get("/api/v1/certificates/"+serial, op).checkProblem(t, status, kind)
		box.post("/api/v1/certificates/"+serial+"/revoke", RevokeRequest{Reason: "keyCompromise"}, op).checkProblem(t, status, kind)
	}
}
