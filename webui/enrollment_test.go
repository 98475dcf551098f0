package webui

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// newEngine is a real engine on the box's store and clock. Its profile iot takes one-time challenges
// and holds devices whose name ends in .wait; box.off switches it off.
func newEngine(t *testing.T, box *testBox) *enroll.Engine {
	t.Helper()
	var err error
	if box.oneTime, err = challenge.NewOneTime(challenge.OneTimeConfig{Store: box.store, Profile: "iot", TTL: 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	policy, err := pki.NewProfile(pki.ProfileConfig{
		Keys: pki.KeyConfig{ECDSA: []string{"p256"}}, Subject: pki.SubjectConfig{Allow: []string{"CN"}}, SAN: pki.SANConfig{DNS: []string{"*"}},
		Usage: pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}}, Validity: 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	ca, key := newCA(t, "Demo Devices CA", 365*24*time.Hour)
	issuer, err := pki.NewIssuer(ca, key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := enroll.New(enroll.Config{
		Store: box.store, Now: box.clock.Now, TimeSource: "host", Log: slog.New(slog.NewTextHandler(box.log, nil)),
		Profiles: []enroll.Profile{{Name: "iot", Policy: policy, Issuers: enroll.Always(issuer), Challenges: challenge.NewSet(challenge.Config{OneTime: box.oneTime}),
			Approval: enroll.Approval{ManualIf: []string{".wait"}}, Off: box.off.Load}},
	})
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

// request has a device ask for a certificate for cn; again with the same key is a poll.
func (b *testBox) request(cn string) *enroll.Result {
	b.t.Helper()
	b.clock.pass(time.Second)
	secret, _, err := b.oneTime.Mint(cn, nil, 0, b.clock.Now(), func(g store.Guard) error {
		return b.store.Mint(g, audit.Record{Time: b.clock.Now(), TimeSource: "host", Action: audit.ChallengeMinted, Outcome: audit.OutcomeSuccess})
	})
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		b.t.Fatal(err)
	}
	csr, err := pki.ParseRequest(der)
	if err != nil {
		b.t.Fatal(err)
	}
	nonce := sha256.Sum256([]byte(cn))
	result, err := b.engine.Enroll(context.Background(), enroll.Request{
		Profile: "iot", Protocol: enroll.ProtocolSCEP, TransactionID: "of " + cn, CSR: csr, SenderNonce: nonce[:16], Source: addr("10.20.0.77"),
		Proof: enroll.Proof{Challenge: secret, SignerSPKI: csr.RawSPKI, SelfSigned: true},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

// TestCertificate: what became of a serial.
func TestCertificate(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	issued := box.request("lamp")
	var shown IssuedCertificate
	box.get("/api/v1/certificates/"+strings.ToUpper(issued.Serial), op).decode(t, &shown)
	if shown.State != "issued" || shown.Details == nil || shown.Details.Subject != "CN=lamp" || !strings.HasPrefix(shown.PEM, "-----BEGIN CERTIFICATE") {
		t.Errorf("%+v", shown)
	}
	box.post("/api/v1/certificates/"+issued.Serial+"/revoke", RevokeRequest{Reason: "tired"}, op).checkProblem(t, 422, "reason")
	var done Decision
	box.post("/api/v1/certificates/"+issued.Serial+"/revoke", RevokeRequest{Reason: "keyCompromise"}, op).decode(t, &done)
	if done != (Decision{Serial: issued.Serial, Outcome: "revoked"}) {
		t.Errorf("%+v", done)
	}
	box.get("/api/v1/certificates/"+issued.Serial, op).decode(t, &shown)
	if shown.State != "revoked" || shown.Reason != "keyCompromise" || shown.Revoked != box.clock.Now().Format(time.RFC3339) {
		t.Errorf("%+v", shown)
	}
	box.post("/api/v1/certificates/"+issued.Serial+"/revoke", RevokeRequest{Reason: "keyCompromise"}, op).checkProblem(t, 409, "revoked")
}

// demoSCEP is what the demo's SCEP side looks like: one profile of each kind.
func demoSCEP(a AuthorityInfo) []SCEPProfile {
	ca, ra := a.Generations[0].Certificate, a.RAs[0].Certificate
	return []SCEPProfile{
		{Name: "corp", Authority: "devices", Static: true, RA: ra},
		{Name: "intune", Authority: "devices", Static: true, RA: ra, Signed: &SignedChallenges{
			File: "trust/connector.pem", Certificates: []*x509.Certificate{ca, ra}, Audience: "signet-demo", Validity: time.Hour, Skew: time.Minute,
			PerDevice24h: 3, Counters: map[string]int{"success": 2, "replay": 1}}},
		{Name: "iot", Authority: "devices", OneTime: true, RA: ra, MTLSFile: "trust/bootstrap.pem"},
	}
}

// TestAdminCodes: the routes that monitoring knows, each with every code it is to answer with.
func TestAdminCodes(t *testing.T) {
	const scep, stats, reload = "/api/v1/admin/scep/profiles", "/api/v1/admin/scep/intune/stats", "/api/v1/admin/scep/intune/reload-trust"
	const est, reloadEST = "/api/v1/admin/est/profiles", "/api/v1/admin/est/reload-trust"
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	auditors := newBox(t)
	nobody, stranger, lower := func(*http.Request) {}, bearer("sgt_unknown"), bearer(auditors.claimAs(auditor, auditor))
	for _, c := range []struct {
		path    string
		profile string // of an order; "-" for a GET
		who     func(*http.Request)
		status  int
	}{
		{scep, "-", admin, 200}, {scep, "-", nobody, 401}, {scep, "-", stranger, 401},
		{stats, "-", admin, 200}, {stats, "-", nobody, 401}, {stats, "-", stranger, 401},
		{reload, "intune", admin, 200}, {reload, "intune", nobody, 401}, {reload, "intune", stranger, 401},
		{reload, "nobody", admin, 404}, {reload, "corp", admin, 409}, {reload, "", admin, 409}, {reload, "broken", admin, 500},
		{est, "-", admin, 200}, {est, "-", nobody, 401}, {est, "-", stranger, 401},
		{reloadEST, "iot", admin, 200}, {reloadEST, "iot", nobody, 401}, {reloadEST, "iot", stranger, 401},
		{reloadEST, "nobody", admin, 404}, {reloadEST, "corp", admin, 409}, {reloadEST, "broken", admin, 500},
	} {
		ask := func(box *testBox, who func(*http.Request)) reply {
			if c.profile == "-" {
				return box.get(c.path, who)
			}
			return box.post(c.path, ReloadRequest{PathID: c.profile}, who)
		}
		if got := ask(box, c.who); got.StatusCode != c.status {
			t.Errorf("%s of %q: status %d, want %d: %s", c.path, c.profile, got.StatusCode, c.status, got.body)
		}
		if got := ask(auditors, lower); got.StatusCode != 403 { // before anything is looked up
			t.Errorf("%s of %q by an auditor: status %d: %s", c.path, c.profile, got.StatusCode, got.body)
		}
	}
}

// TestAdminShapes: monitoring reads these answers by the names of their members, so they are written out here.
func TestAdminShapes(t *testing.T) {
	ended, key := newCA(t, "Old", 0)
	ra := newRA(t, ended, key, 36*time.Hour)
	box := newBox(t, func(c *Config) {
		c.SCEP = func() []SCEPProfile {
			return []SCEPProfile{
				{Name: "corp", Authority: "devices", Static: true, RA: ended},
				{Name: "intune", Authority: "modern", RA: ra, MTLSFile: "trust/b.pem", Signed: &SignedChallenges{
					File: "trust/c.pem", Certificates: []*x509.Certificate{ended}, Audience: "box", Validity: time.Hour, Skew: time.Minute, Counters: map[string]int{"success": 2, "replay": 1}}},
			}
		}
		c.EST = func() []ESTProfile {
			return []ESTProfile{{Name: "iot", Authority: "devices", LegacyTLS: true, Users: []string{"device"}, OneTime: true, Issued: true, ChannelBinding: "required", ServerKey: "rsa-2048",
				Trust: &ESTTrust{File: "trust/b.pem", Certificates: []*x509.Certificate{ra}}, Counters: map[string]int{"csr_invalid": 3}}}
		}
	})
	admin := bearer(box.claimAs(administrator, administrator))
	const (
		now    = `"2026-11-21T19:05:45Z"`
		began  = `"not_before":"2026-11-21T18:55:45Z","not_after":`
		anchor = `"trust_anchors":[{"subject":"O=Signet Demo,CN=Old",` + began + now + `,"days_to_expiry":0,"expired":true}]`
		signed = `"trust_anchor_path":"trust/c.pem",` + anchor + `,"audience":"box","challenge_validity_ns":3600000000000,"clock_skew_tolerance_ns":60000000000,` +
			`"rate_limit_disabled":true,"replay_cache_size":2,"counters":{"replay":1,"success":2}`
		end = `"profile_count":2,"generated_at":` + now + `}`
	)
	for path, want := range map[string]string{
		"admin/scep/profiles": `{"profiles":[` +
			`{"path_id":"corp","issuer_id":"devices","challenge_password_set":true,"ra_cert_subject":"O=Signet Demo,CN=Old","ra_cert_not_before":"2026-11-21T18:55:45Z",` +
			`"ra_cert_not_after":` + now + `,"ra_cert_days_to_expiry":0,"ra_cert_expired":true,"mtls_enabled":false,"mtls_trust_bundle_path":"","generated_at":` + now + `},` +
			`{"path_id":"intune","issuer_id":"modern","challenge_password_set":false,"ra_cert_subject":"CN=Old RA","ra_cert_not_before":"2026-11-21T18:55:45Z",` +
			`"ra_cert_not_after":"2026-11-23T07:05:45Z","ra_cert_days_to_expiry":1,"ra_cert_expired":false,"mtls_enabled":true,"mtls_trust_bundle_path":"trust/b.pem","generated_at":` + now +
			`,"intune":{` + signed + `}}],` + end,
		"admin/scep/intune/stats": `{"profiles":[` +
			`{"path_id":"corp","issuer_id":"devices","enabled":false,"rate_limit_disabled":false,"replay_cache_size":0,"counters":{},"generated_at":` + now + `},` +
			`{"path_id":"intune","issuer_id":"modern","enabled":true,` + signed + `,"generated_at":` + now + `}],` + end,
		"admin/est/profiles": `{"profiles":[{"path_id":"iot","issuer_id":"devices","basic_auth_configured":true,"one_time_challenge":true,"issued_certificate":true,` +
			`"mtls_enabled":true,"mtls_trust_bundle_path":"trust/b.pem","trust_anchors":[{"subject":"CN=Old RA",` + began + `"2026-11-23T07:05:45Z","days_to_expiry":1,"expired":false}],` +
			`"channel_binding":"required","server_keygen":"rsa-2048","legacy_tls":true,"generated_at":` + now + `,"counters":{"csr_invalid":3}}],"profile_count":1,"generated_at":` + now + `}`,
	} {
		if got := strings.TrimSpace(string(box.get("/api/v1/"+path, admin).body)); got != want {
			t.Errorf("%s\n got %s\nwant %s", path, got, want)
		}
	}
	for path, name := range map[string]string{"scep/intune": "intune", "est": "iot"} {
		got := box.post("/api/v1/admin/"+path+"/reload-trust", map[string]string{"path_id": name}, admin)
		if want := `{"reloaded":true,"path_id":"` + name + `","reloaded_at":` + now + `}`; strings.TrimSpace(string(got.body)) != want {
			t.Errorf("reloading trust of %s: %s", path, got.body)
		}
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

// TestMSCEPAdmin: scripts made for NDES get a challenge by HTTP Basic, with a token as the password.
func TestMSCEPAdmin(t *testing.T) {
	box := newBox(t)
	token := box.claimAs(operator, operator)
	basic := func(user, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(user, password) }
	}
	// What such scripts search the page for.
	challenge := regexp.MustCompile(`(?i)The enrollment challenge password is: <B> (\S*)`)
	for _, user := range []string{"alice", `PLANT\alice`} {
		got := box.get("/certsrv/mscep_admin/?profile=iot&cn=cam-1", basic(user, token))
		if m := challenge.FindSubmatch(got.body); got.StatusCode != 200 || m == nil || string(m[1]) != "SECRET-OF-cam-1" {
			t.Errorf("%s: status %d, found %q", user, got.StatusCode, m)
		}
	}
	box.get("/certsrv/mscep_admin?cn=%3Ci%3E", basic("alice", token)).says(t, 200, "SECRET-OF-&lt;i&gt;", "at profile iot")
	form := box.get("/certsrv/mscep_admin/", basic("alice", token))
	form.says(t, 200, "<option selected>iot</option>")
	form.saysNot(t, "SECRET-OF", "<option>corp")
	box.get("/certsrv/mscep_admin/?profile=corp&cn=x", basic("alice", token)).says(t, 409)
	box.get("/certsrv/mscep_admin/?profile=iot&cn=x", basic("alice", token), header("Sec-Fetch-Site", "cross-site")).says(t, 403)
	for _, wrong := range []func(*http.Request){basic("bob", token), basic("alice", "sgt_wrong"), basic("alice", "")} {
		got := box.get("/certsrv/mscep_admin/?profile=iot&cn=x", wrong)
		got.saysNot(t, "SECRET-OF")
		if got.StatusCode != 401 || len(got.Header.Values("WWW-Authenticate")) != 2 {
			t.Errorf("status %d, asked for %q", got.StatusCode, got.Header.Values("WWW-Authenticate"))
		}
	}
	if got := box.get("/certsrv/mscep_admin/"); got.StatusCode != 401 || !strings.HasPrefix(got.Header.Values("WWW-Authenticate")[1], "Basic ") {
		t.Errorf("status %d, asked for %q", got.StatusCode, got.Header.Values("WWW-Authenticate"))
	}
	box.get("/api/v1/status", basic("alice", token)).checkProblem(t, 401, "bad-credential")
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
