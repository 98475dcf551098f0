package webui

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
)

// TestCertificatesPage: the list by state and by what is searched for, page by page.
func TestCertificatesPage(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimUntil(operator, start.Add(48*time.Hour)))
	box.get("/certificates", op).says(t, 200, "No certificate yet.")
	serials := map[string]string{}
	for i := range 60 {
		name := fmt.Sprintf("cam-%02d", i)
		serials[name] = box.request(name).Serial
	}
	evil := box.request(`<img src=x onerror=alert(1)>`)
	first := box.get("/certificates", op)
	first.says(t, 200, "&lt;img src=x", `href="/certificates/`+serials["cam-59"]+`"`, "cam-11", `rel="next"`)
	first.saysNot(t, "<img src=x", "cam-10<")
	_, address, _ := strings.Cut(string(first.body), `<a class="button quiet" href="`)
	address, _, _ = strings.Cut(address, `"`)
	second := box.get(strings.ReplaceAll(address, "&amp;", "&"), op)
	second.says(t, 200, "cam-10<", "cam-00", "First page")
	second.saysNot(t, "cam-11<", `rel="next"`)

	box.get("/certificates?q=CAM-07", op).says(t, 200, serials["cam-07"])
	box.get("/certificates?q="+strings.ToUpper(evil.Serial[:8]), op).says(t, 200, "&lt;img")
	box.get("/certificates?q=nobody", op).says(t, 200, "No certificate matches")
	box.get("/certificates?state=tired", op).says(t, 422, "There is no such list")
	box.get("/certificates?state=due", op).says(t, 200, "Nothing is overdue")

	box.clock.pass(23 * time.Hour)
	due := box.get("/certificates?state=due&q=cam-0", op)
	due.says(t, 200, "cam-00", "These devices should have renewed")
	due.saysNot(t, "cam-10<")
	var list CertificateList
	box.get("/api/v1/certificates?state=due&limit=3", op).decode(t, &list)
	if len(list.Certificates) != 3 || list.Certificates[0].Identity != "cam-00" || list.Next == "" {
		t.Errorf("due are %+v", list)
	}
	box.get("/certificates/"+serials["cam-00"], op).says(t, 200, "due, not renewed")
}

// TestCertificatePage: what a certificate says, files of it, and what is done to it.
func TestCertificatePage(t *testing.T) {
	box := newBox(t)
	op := bearer(box.claimAs(operator, operator))
	serial := box.request("lamp").Serial
	path := "/certificates/" + serial
	page := box.get(path, op)
	page.says(t, 200, "lamp", "Common name", "clientAuth", "digitalSignature", "ECDSA P-256", "CN=Demo Devices CA", "Issuance begun", "?do=revoke", "?do=hold", ">active<")
	page.saysNot(t, "<dialog", "?do=release")
	if got := box.get("/certificates/"+strings.ToUpper(serial)+"/certificate.pem", op); got.StatusCode != 200 || !strings.Contains(got.Header.Get("Content-Disposition"), serial+".pem") {
		t.Errorf("PEM: status %d, %v", got.StatusCode, got.Header)
	} else if block, rest := pem.Decode(got.body); block == nil || len(rest) != 0 || !bytes.Equal(block.Bytes, box.get(path+"/certificate.der", op).body) {
		t.Error("PEM and DER are not the same certificate")
	} else if cert, err := x509.ParseCertificate(block.Bytes); err != nil || cert.Subject.CommonName != "lamp" {
		t.Errorf("certificate of %v: %v", cert, err)
	}
	box.get("/certificates/2a", op).says(t, 404, "issued no such certificate")

	box.get(path+"?do=revoke", op).says(t, 200, "<dialog open", "This cannot be taken back.", `value="keyCompromise"`)
	box.submit(path+"/revoke", url.Values{}, op).says(t, 422, "<dialog open", "No reason is chosen.")
	box.submit(path+"/revoke", url.Values{"reason": {"certificateHold"}}, op).says(t, 422, "No reason is chosen.")
	box.submit(path+"/release", url.Values{}, op).says(t, 409, "This certificate is not on hold", `id="release-problem"`)
	// stands opens a dialog that is not for the certificate as it is: it says so and has no form.
	stands := func(do string, texts ...string) {
		t.Helper()
		dialog := box.get(path+"?do="+do, op)
		dialog.says(t, 200, append(texts, "<dialog open")...)
		dialog.saysNot(t, "<form method=\"post\" action=\"/certificates", "Revoke for good")
	}
	stands("release", "there is nothing to release")
	ordered := func(order, notice string, values url.Values) {
		t.Helper()
		if got := box.submit(path+"/"+order, values, op); got.StatusCode != http.StatusSeeOther || got.Header.Get("Location") != path+"?done="+notice {
			t.Fatalf("%s: status %d, %v", order, got.StatusCode, got.Header)
		}
	}
	ordered("hold", "held", nil)
	held := box.get(path, op)
	held.says(t, 200, ">on hold<", "?do=release", "?do=revoke", "Certificate revoked")
	held.saysNot(t, "?do=hold\"")
	stands("hold", "is on hold already", "?do=release", "?do=revoke")
	const onHold = "/certificates?state=hold"
	box.get(onHold, op).says(t, 200, ">lamp<", ">on hold<")
	ordered("release", "released", nil)
	box.get(onHold, op).saysNot(t, ">lamp<")
	box.get("/api/v1/certificates?state=held", op).says(t, 422, "hold, expired or all")
	ordered("revoke", "revoked", url.Values{"reason": {"cessationOfOperation"}})
	revoked := box.get(path+"?done=revoked", op)
	revoked.says(t, 200, ">revoked<", "Reason: cessationOfOperation", "Certificate released", "Revoked. The next revocation list has it")
	revoked.saysNot(t, "?do=revoke", "?do=hold", "?do=release")
	for _, do := range []string{"revoke", "hold", "release"} {
		stands(do, "is revoked already", "Reason: cessationOfOperation. Nothing takes that back", "nothing is left to do")
	}
	late := box.submit(path+"/revoke", url.Values{"reason": {"superseded"}}, op)
	late.says(t, 409, "<dialog open", `id="revoke-problem"`, "is revoked already")
	late.saysNot(t, "Revoke for good")
	if last := box.records()[0]; last.Action != audit.CertificateRevoked || last.Actor != "alice" || last.Reason != "cessationOfOperation" {
		t.Errorf("newest record %+v", last)
	}
}

// TestCertificateForAuditors: they see it and have no orders.
func TestCertificateForAuditors(t *testing.T) {
	box := newBox(t)
	path := "/certificates/" + box.request("lamp").Serial
	who := bearer(box.claimAs(auditor, auditor))
	page := box.get(path+"?do=revoke", who)
	page.says(t, 200, "lamp")
	page.saysNot(t, "<dialog", "?do=")
	box.submit(path+"/revoke", url.Values{"reason": {"superseded"}}, who).says(t, 403)
}

// TestCertificateChain: the authority of this box that signed a certificate is found, and no other.
func TestCertificateChain(t *testing.T) {
	box := newBox(t)
	ca, key := newCA(t, "Demo Devices CA", time.Hour) // of the same name
	leaf := newRA(t, ca, key, time.Hour)
	if name, above := box.console.chainAbove(leaf); name != "" || above != nil {
		t.Errorf("another's certificate is taken for one of %q", name)
	}
	box.fake.authorities[1].Generations[0].Certificate = ca
	box.fake.authorities[1].Generations[0].Chain = []*x509.Certificate{box.fake.authorities[0].Generations[0].Certificate}
	if name, above := box.console.chainAbove(leaf); name != "modern" || len(above) != 2 || above[0] != ca {
		t.Errorf("chain of %q: %v", name, above)
	}
}
