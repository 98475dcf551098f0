package webui

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/enroll"
)

// put sends certificates.
func (b *testBox) put(path string, body []byte, change ...func(*http.Request)) reply {
	b.t.Helper()
	return b.send(http.MethodPut, path, bytes.NewReader(body), append([]func(*http.Request){header("Content-Type", mediaPEM)}, change...)...)
}

// putJSON sends v as JSON.
func (b *testBox) putJSON(path string, v any, change ...func(*http.Request)) reply {
	b.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.send(http.MethodPut, path, bytes.NewReader(body), append([]func(*http.Request){header("Content-Type", mediaJSON)}, change...)...)
}

func (b *testBox) delete(path string, change ...func(*http.Request)) reply {
	b.t.Helper()
	return b.send(http.MethodDelete, path, nil, change...)
}

// states are an authority's generations in order.
func states(a AuthorityDetails) string {
	var all []string
	for _, g := range a.Generations {
		all = append(all, g.State)
	}
	return strings.Join(all, " ")
}

// TestAuthorityOrders: a root changes over, a subordinate gets its chain; every order reaches the box
// with the name of who gave it.
func TestAuthorityOrders(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	var list AuthorityList
	box.get("/api/v1/authorities", admin).decode(t, &list)
	if len(list.Authorities) != 3 || states(list.Authorities[0]) != "active" || states(list.Authorities[2]) != "waiting" || list.Authorities[2].Generations[0].Certificate != nil ||
		list.Authorities[0].Generations[0].Certificate.Subject != "O=Signet Demo,CN=Demo Devices CA" || list.Authorities[0].Generations[0].Responder == nil || len(list.Authorities[0].RAs) != 1 {
		t.Fatalf("%+v", list)
	}

	order := func(got reply, generations, ordered string) {
		t.Helper()
		var a AuthorityDetails
		got.decode(t, &a)
		if states(a) != generations || box.fake.last() != "alice: "+ordered {
			t.Errorf("%s: generations %q, ordered %q", ordered, states(a), box.fake.last())
		}
	}
	order(box.post("/api/v1/authorities/devices/next", nil, admin), "active next", "prepare devices")
	order(box.delete("/api/v1/authorities/devices/next", admin), "active", "cancel devices")
	order(box.post("/api/v1/authorities/devices/next", nil, admin), "active next", "prepare devices")
	order(box.post("/api/v1/authorities/devices/next/activate", nil, admin), "earlier active", "activate devices")
	var devices AuthorityDetails
	box.get("/api/v1/authorities/devices", admin).decode(t, &devices)
	if devices.Generations[0].Superseded == nil || !devices.Generations[0].Superseded.Equal(start) || devices.Generations[1].Superseded != nil {
		t.Errorf("%+v", devices.Generations)
	}

	var csr AuthorityCSR
	box.get("/api/v1/authorities/plant/request", admin).decode(t, &csr)
	want := AuthorityCSR{1, "-----BEGIN CERTIFICATE REQUEST-----\n", &Certification{[]byte{1}, []byte{2}, []byte{3}, []byte{4}}}
	if d := cmp.Diff(want, csr); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
	chain := pemOf(box.fake.authorities[1].Generations[0].Certificate)
	order(box.put("/api/v1/authorities/plant/chain", chain, admin), "active", "install plant")
	order(box.put("/api/v1/authorities/plant/chain", chain, admin, header("Content-Type", mediaChain)), "active", "install plant")
	var plant AuthorityDetails
	box.get("/api/v1/authorities/plant", admin).decode(t, &plant)
	if n := strings.Count(plant.Generations[0].PEM, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("%d certificates in the active generation's PEM, want itself and its root", n)
	}

	if got := box.post("/api/v1/ra/rotate", nil, admin); got.StatusCode != 200 || box.fake.last() != "alice: rotate ra" {
		t.Errorf("rotating: status %d, ordered %q", got.StatusCode, box.fake.last())
	}
	if got := box.get("/api/v1/tls/request", admin); got.StatusCode != 200 || got.Header.Get("Content-Type") != mediaPEM || !strings.HasPrefix(string(got.body), "-----BEGIN") {
		t.Errorf("TLS request: status %d: %s", got.StatusCode, got.body)
	}
	p := box.put("/api/v1/tls/chain", chain, admin).checkProblem(t, 422, "input")
	if p.Detail != "the chain ends below its root" {
		t.Errorf("%+v", p)
	}
	var done Decision
	box.put("/api/v1/tls/chain", append(chain, chain...), admin).decode(t, &done)
	if done.Outcome != "installed" || box.fake.last() != "alice: install tls" {
		t.Errorf("%+v, ordered %q", done, box.fake.last())
	}
	box.delete("/api/v1/tls/chain", admin).decode(t, &done)
	if done.Outcome != "dropped" || box.fake.last() != "alice: drop tls" {
		t.Errorf("%+v, ordered %q", done, box.fake.last())
	}
}

// TestOrdersRefused: what a box refuses has the status that is its kind, and nothing that is not
// certificates gets to it.
func TestOrdersRefused(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	box.get("/api/v1/authorities/nothing", admin).checkProblem(t, 404, "no-authority")
	box.get("/api/v1/authorities/nothing/request", admin).checkProblem(t, 404, "no-authority")
	box.post("/api/v1/authorities/nothing/next", nil, admin).checkProblem(t, 404, "no-authority")
	p := box.get("/api/v1/authorities/devices/request", admin).checkProblem(t, 409, "conflict")
	if p.Detail != "this authority is its own root" || p.Mend != "ask for a subordinate's request" {
		t.Errorf("%+v", p)
	}
	box.fake.failNext(fmt.Errorf("signing: %w", ErrKeysBusy))
	if got := box.post("/api/v1/ra/rotate", nil, admin); got.checkProblem(t, 503, "busy-keys").Mend == "" || got.Header.Get("Retry-After") == "" {
		t.Errorf("busy: %v", got.Header)
	}
	box.fake.failNext(errors.New("the disk is on fire"))
	got := box.post("/api/v1/ra/rotate", nil, admin)
	got.checkProblem(t, 500, "internal")
	if strings.Contains(string(got.body), "fire") || !strings.Contains(box.log.String(), "the disk is on fire") {
		t.Errorf("an internal error is told outside, or is not in the log: %s", got.body)
	}

	const path = "/api/v1/authorities/plant/chain"
	chain := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	box.put(path, nil, admin).checkProblem(t, 422, "input")
	box.put(path, []byte("not PEM"), admin).checkProblem(t, 422, "input")
	box.put(path, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), admin).checkProblem(t, 422, "input")
	box.put(path, bytes.Repeat(chain, maxBody/len(chain)+1), admin).checkProblem(t, 413, "too-large")
	if p := box.put(path, chain, admin, header("Content-Type", mediaJSON)).checkProblem(t, 415, "media-type"); !strings.Contains(p.Mend, mediaPEM) {
		t.Errorf("the mend names another type: %+v", p)
	}
	if got := box.put(path, chain, admin, header("Sec-Fetch-Site", "cross-site")); got.StatusCode != 403 {
		t.Errorf("from another site: status %d", got.StatusCode)
	}
	if len(box.fake.orders) != 0 {
		t.Errorf("ordered all the same: %q", box.fake.orders)
	}
}

// TestSettings: everything a profile's administrator can replace, there and back.
func TestSettings(t *testing.T) {
	box := newBox(t)
	admin := bearer(box.claimAs(administrator, administrator))
	const corp = "/api/v1/profiles/corp"
	check := func(got reply, notBaked bool, ordered string) ProfileDetails {
		t.Helper()
		var d ProfileDetails
		got.decode(t, &d)
		if d.NotBaked != notBaked || box.fake.last() != "alice: "+ordered {
			t.Errorf("%s: not baked %v, ordered %q", ordered, d.NotBaked, box.fake.last())
		}
		return d
	}
	var list ProfileList
	box.get("/api/v1/profiles", admin).decode(t, &list)
	if len(list.Profiles) != len(demoSite().Profiles) || list.Profiles[0].Name != "corp" || list.Profiles[0].NotBaked || !list.Profiles[0].Intune || list.Profiles[1].Challenge != nil {
		t.Errorf("%+v", list)
	}

	box.post(corp+"/off", OffRequest{" "}, admin).checkProblem(t, 422, "input")
	off := check(box.post(corp+"/off", OffRequest{" a leak "}, admin), false, "switch off=true a leak at corp")
	if off.Off == nil || *off.Off != (SwitchedOff{"a leak", "alice", start}) {
		t.Errorf("%+v", off.Off)
	}
	if on := check(box.post(corp+"/on", nil, admin), false, "switch off=false  at corp"); on.Off != nil {
		t.Errorf("%+v", on.Off)
	}

	certificate := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	d := check(box.put(corp+"/bundles/est", certificate, admin), true, fmt.Sprintf("bundle est of %d bytes at corp", len(certificate)))
	if len(d.Bundles) != 1 || d.Bundles[0].Replaced == nil || d.Bundles[0].Replaced.By != "alice" || d.Bundles[0].File != "trust/bootstrap.pem" || len(d.Bundles[0].Certificates) != 1 {
		t.Errorf("%+v", d.Bundles)
	}
	check(box.delete(corp+"/bundles/est", admin), false, "bundle est of 0 bytes at corp")
	if p := box.put(corp+"/bundles/signed", certificate, admin).checkProblem(t, 409, "conflict"); !strings.HasPrefix(p.Mend, "it has est; ") {
		t.Errorf("%+v", p)
	}

	// A hash that was made elsewhere, and a secret that the box makes.
	hash := phc.Make([]byte("correct horse battery"))
	for path, name := range map[string]string{corp + "/challenge": "challenge", corp + "/passwords/device": "password of device"} {
		var out HashResponse
		box.putJSON(path, HashRequest{Hash: hash}, admin).decode(t, &out)
		if out.Secret != "" || out.Profile != "corp" || box.fake.last() != "alice: "+name+" "+hash+" at corp" {
			t.Errorf("%s: %+v, ordered %q", name, out, box.fake.last())
		}
		box.putJSON(path, HashRequest{Generate: true}, admin).decode(t, &out)
		made, err := phc.Parse(strings.TrimSuffix(strings.TrimPrefix(box.fake.last(), "alice: "+name+" "), " at corp"))
		if err != nil || len(out.Secret) != 26 || !made.Matches([]byte(out.Secret)) {
			t.Errorf("%s: made %q, ordered %q: %v", name, out.Secret, box.fake.last(), err)
		}
		for _, wrong := range []HashRequest{{}, {Hash: hash, Generate: true}, {Hash: "corp-demo-challenge"}, {Hash: "$argon2id$v=19$m=8,t=1,p=1$AAAA$AAAA"}} {
			p := box.putJSON(path, wrong, admin).checkProblem(t, 422, "input")
			if wrong.Hash == "corp-demo-challenge" && strings.Contains(fmt.Sprint(p), wrong.Hash) {
				t.Errorf("%s: a secret sent as hash is told back: %+v", name, p)
			}
		}
		check(box.delete(path, admin), false, name+"  at corp")
	}
	box.putJSON(corp+"/passwords/nobody", HashRequest{Hash: hash}, admin).checkProblem(t, 409, "conflict")
	box.putJSON("/api/v1/profiles/modern/challenge", HashRequest{Hash: hash}, admin).checkProblem(t, 409, "conflict")

	d = check(box.putJSON(corp+"/secrets/compliance", SecretRequest{"s3cret-webhook-key"}, admin), false, "secret compliance of 18 bytes at corp")
	if len(d.Secrets) != 1 || !d.Secrets[0].Set {
		t.Errorf("%+v", d.Secrets)
	}
	box.putJSON(corp+"/secrets/compliance", SecretRequest{}, admin).checkProblem(t, 422, "input")
	box.putJSON(corp+"/secrets/compliance", SecretRequest{strings.Repeat("x", maxSecret+1)}, admin).checkProblem(t, 422, "input")
	box.putJSON(corp+"/secrets/syslog", SecretRequest{"x"}, admin).checkProblem(t, 409, "conflict")
	if strings.Contains(box.log.String(), "s3cret") {
		t.Error("a secret is in the log")
	}

	if got := box.get(corp+"/intune/certificate", admin); got.StatusCode != 200 || !strings.HasPrefix(string(got.body), "-----BEGIN CERTIFICATE") {
		t.Errorf("status %d: %s", got.StatusCode, got.body)
	}
	box.get("/api/v1/profiles/modern/intune/certificate", admin).checkProblem(t, 409, "conflict")
	for _, path := range []string{"", "/intune/certificate"} {
		box.get("/api/v1/profiles/nobody"+path, admin).checkProblem(t, 404, "no-profile")
	}
	box.post("/api/v1/profiles/nobody/on", nil, admin).checkProblem(t, 404, "no-profile")
	box.delete("/api/v1/profiles/nobody/bundles/est", admin).checkProblem(t, 404, "no-profile")
}

// TestCertificates: by the beginning of a serial, of an identity, by state, page by page.
func TestCertificates(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(auditor, auditor))
	serials := map[string]string{}
	names := []string{"Lamp-1", "lamp-2", "door", "abcdef01"}
	for _, name := range names {
		serials[name] = box.request(name).Serial
	}
	if err := box.engine.Revoke(context.Background(), serials["door"], "keyCompromise", "alice"); err != nil {
		t.Fatal(err)
	}
	list := func(query string) CertificateList {
		t.Helper()
		got := box.get("/api/v1/certificates?"+query, who)
		if got.StatusCode != 200 {
			t.Fatalf("%s: status %d: %s", query, got.StatusCode, got.body)
		}
		var out CertificateList
		got.decode(t, &out)
		return out
	}
	for query, want := range map[string]string{
		"":                         "abcdef01 door lamp-2 Lamp-1",
		"limit=2":                  "abcdef01 door",
		"q=LAMP":                   "Lamp-1 lamp-2", // in the order of identities
		"q=lamp-1":                 "Lamp-1",
		"q=abcdef":                 "abcdef01", // no serial begins so
		"q=nobody":                 "",
		"state=revoked":            "door",
		"state=active&q=d":         "",
		"profile=corp":             "",
		"profile=iot&state=active": "abcdef01 lamp-2 Lamp-1",
		"q=" + strings.ToUpper(serials["door"][:8]):                                          "door",
		"q=" + serials["door"][:2] + ":" + serials["door"][2:4] + ":" + serials["door"][4:6]: "door",
	} {
		var got []string
		for _, row := range list(query).Certificates {
			got = append(got, row.Identity)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	first := list("limit=3")
	second := list("limit=3&after=" + first.Next)
	if first.Next == "" || len(second.Certificates) != 1 || second.Certificates[0].Identity != "Lamp-1" {
		t.Errorf("second page: %+v after %q", second, first.Next)
	}
	for q, want := range map[string]int{serials["door"][:6]: 1, "abcdef": 1, "lamp": 2} { // each to its end, which may be a page of its own
		n, after := 0, ""
		for range 4 {
			page := list("limit=1&q=" + q + "&after=" + after)
			n += len(page.Certificates)
			if after = page.Next; after == "" {
				break
			}
		}
		if n != want || after != "" {
			t.Errorf("%s: %d certificates page by page, want %d; next %q", q, n, want, after)
		}
	}
	door := list("q=door").Certificates[0]
	if door.State != "revoked" || door.Reason != "keyCompromise" || door.Revoked == nil || door.Serial != serials["door"] || door.Protocol != enroll.ProtocolSCEP {
		t.Errorf("%+v", door)
	}
	found, _, err := box.engine.Certificates(enroll.Query{Identity: "lamp-2"})
	if err != nil || len(found) != 1 || rowOf(found[0], found[0].NotAfter.Add(-time.Second)).State != "active" || rowOf(found[0], found[0].NotAfter).State != "expired" {
		t.Errorf("%+v, %v", found, err)
	}
	box.get("/api/v1/certificates?state=tired", who).checkProblem(t, 422, "query")
	box.get("/api/v1/certificates?after=nowhere", who).checkProblem(t, 422, "query")
	box.get("/api/v1/certificates?limit=101", who).checkProblem(t, 422, "input")
}

// TestJamf: Jamf Pro's webhook gets the challenge alone, for the member of the device the URL names.
func TestJamf(t *testing.T) {
	box := newBox(t)
	token := box.claimAs(operator, operator)
	basic := func(r *http.Request) { r.SetBasicAuth("alice", token) }
	// As https://developer.jamf.com/jamf-pro/docs/webhooks-1#scepchallenge shows it; shortened.
	const webhook = `{"webhook": {"id": 7, "name": "Signet", "webhookEvent": "SCEPChallenge", "eventTimestamp": 1553550275590},
		"event": {"payloadIdentifier": "CDB0BC64-F3EB-4B1A-AA5E-9A5D994CA593", "payloadTypes": ["com.apple.security.scep"],
		"scepServerUrl": "https://localhost:8443/scep/iot",
		"targetDevice": {"jssID": 12, "deviceName": "Anna’s iPad", "serialNumber": "DLXVX0KXHLF9", "udid": "270aae10800b6e61a2ee2bbc285eb967050b5984"}}}`
	send := func(path, body string, change ...func(*http.Request)) reply {
		return box.send(http.MethodPost, path, strings.NewReader(body), append([]func(*http.Request){header("Content-Type", mediaJSON)}, change...)...)
	}
	for path, want := range map[string]string{
		"/api/v1/jamf/iot":         "SECRET-OF-DLXVX0KXHLF9",
		"/api/v1/jamf/iot?cn=udid": "SECRET-OF-270aae10800b6e61a2ee2bbc285eb967050b5984",
	} {
		got := send(path, webhook, basic)
		if got.StatusCode != 200 || string(got.body) != want || got.Header.Get("Content-Type") != mediaText {
			t.Errorf("%s: status %d, %q, want %q", path, got.StatusCode, got.body, want)
		}
	}
	for _, c := range []struct {
		path, body, kind string
		status           int
	}{
		{"/api/v1/jamf/iot?cn=username", webhook, "input", 422}, // not there
		{"/api/v1/jamf/iot?cn=jssID", webhook, "input", 422},    // not a name
		{"/api/v1/jamf/iot", strings.Replace(webhook, "SCEPChallenge", "ComputerAdded", 1), "input", 422},
		{"/api/v1/jamf/iot", `{"webhook": {"webhookEvent": "SCEPChallenge"}, "event": {}}`, "input", 422},
		{"/api/v1/jamf/iot", "{", "unreadable", 400},
		{"/api/v1/jamf/iot", `{"x":"` + strings.Repeat("x", maxBody) + `"}`, "too-large", 413},
		{"/api/v1/jamf/corp", webhook, "no-one-time", 409},
		{"/api/v1/jamf/nobody", webhook, "no-profile", 404},
	} {
		send(c.path, c.body, basic).checkProblem(t, c.status, c.kind)
	}
	send("/api/v1/jamf/iot", webhook, basic, header("Content-Type", "text/xml")).checkProblem(t, 415, "media-type")
	got := send("/api/v1/jamf/iot", webhook, func(r *http.Request) { r.SetBasicAuth("alice", "wrong") })
	got.checkProblem(t, 401, "bad-credential")
	if asked := got.Header.Values("WWW-Authenticate"); len(asked) != 2 || !strings.HasPrefix(asked[1], "Basic ") {
		t.Errorf("asked for %q", asked)
	}
	box = newBox(t)
	token = box.claimAs(auditor, auditor)
	send("/api/v1/jamf/iot", webhook, basic).checkProblem(t, 403, "role")
}

// TestDetailsKeepNothing: describing an authority without a certificate is no error.
func TestDetailsKeepNothing(t *testing.T) {
	d, err := detailsOf(AuthorityInfo{Name: "a", Generations: []GenerationInfo{{Number: 1, State: GenerationWaiting}}})
	if err != nil || d.Generations[0].Certificate != nil || d.Generations[0].PEM != "" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := detailsOf(AuthorityInfo{RAs: []RAInfo{{Certificate: &x509.Certificate{RawSubject: []byte{1}}}}}); err == nil {
		t.Error("a certificate without a name is described")
	}
}
