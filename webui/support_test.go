package webui

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"signet.internal/appliance/audit"
)

// unpack returns the files of a support bundle by name.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range r.File {
		from, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(f.Name, "signet-support/")] = string(body)
	}
	return files
}

// TestSupportBundle: it has what its README lists, and neither a secret nor a name.
func TestSupportBundle(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.RecentLog = func() []byte { return []byte("level=INFO msg=\"console request\"\n") }
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "signet_pending_requests 0\n") })
	})
	out := box.mustClaim()
	box.enroll(20)
	token := bearer(out.Token)
	if early := unpack(t, box.get("/api/v1/support-bundle", token).body); strings.Contains(early["settings.json"], "corp-demo-challenge") {
		t.Error("a challenge is in the bundle, published as it may be")
	}
	box.putJSON("/api/v1/profiles/corp/challenge", HashRequest{Hash: nobodysHash}, token)
	box.putJSON("/api/v1/profiles/corp/secrets/compliance", SecretRequest{Value: "whsec_a-secret-value"}, token)
	box.store.Append(audit.Record{Time: start, TimeSource: "rtc", Action: audit.SCEPRefused, Actor: audit.ActorDevice, Profile: "corp", Protocol: "scep",
		Identity: "kiosk-9", Source: "203.0.113.77", Outcome: audit.OutcomeRefused, Reason: "kiosk-9 asked from 203.0.113.77 for too much"})

	got := box.get("/api/v1/support-bundle", token)
	if got.StatusCode != 200 || got.Header.Get("Content-Type") != mediaZIP || !strings.Contains(got.Header.Get("Content-Disposition"), "signet-support-20261121-190545.zip") {
		t.Fatalf("status %d, %v", got.StatusCode, got.Header)
	}
	files := unpack(t, got.body)
	listed := regexp.MustCompile(`(?m)^([a-z]+\.[a-z]+) `).FindAllStringSubmatch(files["README.txt"], -1)
	if len(listed) != len(files)-1 {
		t.Errorf("%d files, %d in the README", len(files), len(listed))
	}
	for _, name := range listed {
		if files[name[1]] == "" {
			t.Errorf("%s is empty or not there", name[1])
		}
	}
	for name, want := range map[string]string{"metrics.txt": "signet_pending_requests", "log.txt": "console request", "certificates.pem": "# devices generation 1, active",
		"status.json": `"pcr11"`, "health.json": `"listeners"`, "settings.json": `"corp"`} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q", name, want)
		}
	}
	secrets := []string{out.Token, out.Password, claimCode, nobodysHash, "whsec_", "$argon2id$", "PRIVATE KEY"}
	names := []string{"printer-3f-west", "laptop-anna", "10.20.0.14", `"tx-3"`, "kiosk-9", "203.0.113.77"}
	for name, body := range files {
		for _, secret := range secrets {
			if strings.Contains(body, secret) {
				t.Errorf("%s has %q", name, secret)
			}
		}
		for _, who := range names {
			if strings.Contains(body, who) {
				t.Errorf("%s names %q", name, who)
			}
		}
	}
	identities := map[string]int{}
	for line := range strings.Lines(files["audit.ndjson"]) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		identities[r.Identity]++
		if r.Actor == "alice" {
			t.Errorf("record %d names a person", r.Index)
		}
	}
	if len(identities) < 6 || len(identities) > 8 {
		t.Errorf("%d pseudonyms for 7 identities and none: %v", len(identities), identities)
	}
	again := unpack(t, box.get("/api/v1/support-bundle", token).body)
	first := regexp.MustCompile(`identity-[0-9a-f]{10}`)
	if a, b := first.FindString(files["audit.ndjson"]), first.FindString(again["audit.ndjson"]); a == "" || a == b {
		t.Errorf("a pseudonym means the same in two bundles: %q, %q", a, b)
	}
	box.console.bundling <- struct{}{}
	box.get("/api/v1/support-bundle", token).checkProblem(t, 503, "busy-bundle")
}

// TestBoxPage says in plain words what booted.
func TestBoxPage(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(administrator, auditor))
	page := box.get("/box", who)
	page.says(t, 200, "The firmware starts whatever is on the disk. Keys are not protected against a changed disk", "In order", "2 waiting, 1284 done", "real-time clock", "believed", "[::]:8443", "without TLS", "TLS 1.2 or later",
		"6.0 GiB free", "Devices that enroll over SCEP", "An administrator can download it here")
	page.saysNot(t, "not believed", `href="/api/v1/support-bundle"`)
	for words, want := range map[string]string{"on": "nothing but images that this site signed", "on, but this site does not rely on it: x": "not relied on",
		"off (setup mode): x": "whatever is on the disk", "unknown to this firmware: x": "Not known"} {
		got := secureBootInWords(Status{Kind: "box", SecureBoot: words})
		if !strings.Contains(got.State+" "+got.Means, want) {
			t.Errorf("%q: %+v", words, got)
		}
	}
	if got := secureBootInWords(Status{Kind: "host", SecureBoot: "on"}); got.State != "Does not apply" {
		t.Errorf("a host: %+v", got)
	}
	if got := tpmInWords(Status{}); got.Tone != "good" {
		t.Errorf("%+v", got)
	}
	var s Status
	if s.TPM.LockoutCounter = 3; tpmInWords(s).Tone != "warn" {
		t.Error("failed authorisations are no warning")
	}
}

// TestRollback: an administrator acknowledges an older disk, on the page and by the API; nobody else can, and
// not where there is none.
func TestRollback(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	box.get("/box?do=acknowledge", admin).saysNot(t, "<dialog", "The disk is not the newest")
	box.post("/api/v1/rollback/acknowledge", nil, admin).checkProblem(t, 409, "conflict")

	box.fake.rollback = &Rollback{Expected: 4, Found: 9, Since: start, Records: 1234, Until: start.AddDate(0, 0, -1)}
	box.get("/box", admin).says(t, 200, "The TPM has counted to 9, the disk to 4.", `href="/box?do=acknowledge"`, "before record 1234")
	box.get("/box?do=acknowledge", admin).says(t, 200, `<dialog open`, "Go on with this disk", "in record 1234 and those after it", "cannot be revoked by their serial", "Revoke it again")
	box.fake.failNext(&ConflictError{"the counter moved within the hour", "try again later"})
	refused := box.submit("/box/acknowledge", nil, admin)
	refused.says(t, 409, `<dialog open`, "The counter moved within the hour.", "Try again later.")
	if box.fake.Rollback() == nil {
		t.Error("a refused order took effect")
	}
	done := box.submit("/box/acknowledge", nil, admin)
	if done.StatusCode != http.StatusSeeOther || done.Header.Get("Location") != "/box?done=rollback-acknowledged" || box.fake.last() != "alice: acknowledge rollback" {
		t.Errorf("status %d to %s, ordered %q", done.StatusCode, done.Header.Get("Location"), box.fake.last())
	}
	box.get("/box?done=rollback-acknowledged", admin).says(t, 200, "Acknowledged. The box goes on with this disk.")

	box.fake.rollback = &Rollback{Expected: 4, Since: start}
	var out Acknowledged
	if box.post("/api/v1/rollback/acknowledge", nil, admin).decode(t, &out); out.By != "alice" || box.fake.Rollback() != nil {
		t.Errorf("%+v", out)
	}
}
