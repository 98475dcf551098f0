package webui

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"signet.internal/appliance/challenge/phc"
)

// TestProfilePages: an administrator switches a profile and replaces what of it can be replaced, by dialogs
// that say what it means; what was replaced is marked as not baked until the baked one is back.
func TestProfilePages(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	list := box.get("/profiles", admin)
	list.says(t, 200, `href="/profiles/corp"`, ">default<", "SCEP, EST", `href="/authorities/modern"`)
	list.saysNot(t, "not baked", ">off<")
	page := box.get("/profiles/corp", admin)
	page.says(t, 200, `href="/connect/corp"`, "RSA of at least 2048 bits", "not safe any more", "https://localhost/.well-known/est/corp", "CN=Demo Devices CA", "trust/bootstrap.pem",
		"*.example.com", "as baked", "missing", `href="/profiles/corp?do=password&amp;of=device"`, `href="/profiles/corp/intune.pem"`)
	page.saysNot(t, "not baked", "<dialog", "-baked")
	box.get("/profiles/modern", admin).says(t, 200, "Nothing: this profile has no bundle")
	box.get("/profiles/nothing", admin).says(t, 404, "no such profile")
	order := func(got reply, ordered, says string) reply {
		t.Helper()
		return box.ordered(got, "/profiles/corp", ordered, says, admin)
	}

	box.get("/profiles/corp?do=off", admin).says(t, 200, "<dialog open", `action="/profiles/corp/off"`, "Certificates issued before stay good")
	box.submit("/profiles/corp/off", url.Values{"reason": {" "}}, admin).says(t, 422, "<dialog open", "reason is empty", `aria-invalid="true"`)
	order(box.submit("/profiles/corp/off", url.Values{"reason": {"a <b>leak"}}, admin), "switch off=true a <b>leak at corp", "Switched off.").
		says(t, 200, `action="/profiles/corp/on"`, "a &lt;b&gt;leak", ">off<")
	order(box.submit("/profiles/corp/on", nil, admin), "switch off=false  at corp", "Switched on.").saysNot(t, "a leak", ">off<")

	certificates := pemOf(box.fake.authorities[1].Generations[0].Certificate)
	bundle := url.Values{"of": {BundleEST}}
	box.get("/profiles/corp?do=bundle&of=est", admin).says(t, 200, "<dialog open", "first certificate over EST", `enctype="multipart/form-data"`)
	box.get("/profiles/corp?do=bundle&of=nothing", admin).saysNot(t, "<dialog")
	box.upload("/profiles/corp/bundle", bundle, map[string][]byte{"x.pem": []byte("nonsense")}, admin).says(t, 422, "<dialog open", "holds no certificate", `value="est"`)
	box.upload("/profiles/corp/bundle", url.Values{"of": {"nothing"}}, map[string][]byte{"x.pem": certificates}, admin).says(t, 409, "no trust bundle of that name")
	replaced := order(box.upload("/profiles/corp/bundle", bundle, map[string][]byte{"x.pem": certificates}, admin), fmt.Sprintf("bundle est of %d bytes at corp", len(certificates)), "The new certificates are in use.")
	replaced.says(t, 200, "not baked", "replaced by alice", "2026-11-21", `href="/profiles/corp?do=bundle-baked&amp;of=est"`)
	box.get("/profiles", admin).says(t, 200, "not baked")
	box.get("/profiles/corp?do=bundle-baked&of=est", admin).says(t, 200, "<dialog open", "trust/bootstrap.pem")
	order(box.submit("/profiles/corp/bundle/baked", bundle, admin), "bundle est of 0 bytes at corp", "What was baked is in use again.").saysNot(t, "not baked")

	box.get("/profiles/corp?do=secret&of=compliance", admin).says(t, 200, "<dialog open", `type="password"`)
	box.submit("/profiles/corp/secret", url.Values{"of": {"compliance"}}, admin).says(t, 422, "<dialog open", "value is empty")
	box.submit("/profiles/corp/secret", url.Values{"of": {"other"}, "value": {"hunter2"}}, admin).saysNot(t, "hunter2")
	order(box.submit("/profiles/corp/secret", url.Values{"of": {"compliance"}, "value": {"hunter2"}}, admin), "secret compliance of 7 bytes at corp", "Kept, sealed by the TPM.").
		says(t, 200, ">entered<")
	if got := box.get("/profiles/corp/intune.pem", admin); got.StatusCode != 200 || !strings.HasPrefix(string(got.body), "-----BEGIN CERTIFICATE") {
		t.Errorf("certificate for Entra: status %d %s", got.StatusCode, got.body)
	}
}

// TestReplaceSecrets: the challenge and a password are replaced by one the box makes, which is shown once, or
// by a hash; neither is ever shown again, and what is stored is the hash of what was shown.
func TestReplaceSecrets(t *testing.T) {
	secret := regexp.MustCompile(`<pre tabindex="0"><code>([a-z2-7]{20,})</code>`)
	for _, c := range []struct{ do, of, title, order string }{
		{"challenge", "", "The new challenge", "challenge "},
		{"password", "device", "The new password of device", "password of device "},
	} {
		t.Run(c.do, func(t *testing.T) {
			box := newBox(t)
			admin := bearer(box.claimAs(administrator, administrator))
			path := "/profiles/corp/" + c.do
			box.get("/profiles/corp?do="+c.do+"&of="+c.of, admin).says(t, 200, "<dialog open", "Devices that send the present one are refused", `action="`+path+`"`)
			made := box.submit(path, url.Values{"of": {c.of}, "generate": {"yes"}}, admin)
			made.says(t, 200, c.title, "Copy it now", "not baked")
			found := secret.FindSubmatch(made.body)
			if found == nil {
				t.Fatalf("no secret on the page: %s", made.body)
			}
			ordered := strings.TrimSuffix(strings.TrimPrefix(box.fake.last(), "alice: "+c.order), " at corp")
			if hash, err := phc.Parse(ordered); err != nil || !hash.Matches(found[1]) {
				t.Errorf("the box was ordered %q, which is not the hash of what was shown: %v", box.fake.last(), err)
			}
			box.get("/profiles/corp", admin).saysNot(t, string(found[1]))
			if strings.Contains(box.log.String(), string(found[1])) {
				t.Error("the secret is in the log")
			}

			box.submit(path, url.Values{"of": {c.of}, "hash": {"plain-secret"}}, admin).says(t, 422, "<dialog open", `aria-invalid="true"`)
			box.submit(path, url.Values{"of": {c.of}, "hash": {"plain-secret"}}, admin).saysNot(t, "plain-secret")
			box.submit(path, url.Values{"of": {c.of}}, admin).says(t, 422, "Neither a hash nor generate")
			box.ordered(box.submit(path, url.Values{"of": {c.of}, "hash": {nobodysHash}}, admin), "/profiles/corp", c.order+nobodysHash+" at corp", "Replaced.", admin)
			box.get("/profiles/corp?do="+c.do+"-baked&of="+c.of, admin).says(t, 200, "<dialog open", `action="`+path+`/baked"`)
			box.ordered(box.submit(path+"/baked", url.Values{"of": {c.of}}, admin), "/profiles/corp", c.order+" at corp", "What was baked", admin).saysNot(t, "not baked")
			if c.do == "password" {
				box.submit(path, url.Values{"of": {"nobody"}, "generate": {"yes"}}, admin).says(t, 409, "no EST user of that name")
			}
			if got := box.submit("/profiles/modern/"+c.do, url.Values{"of": {c.of}, "generate": {"yes"}}, admin); got.StatusCode != http.StatusConflict {
				t.Errorf("a profile without: status %d", got.StatusCode)
			}
		})
	}
}
