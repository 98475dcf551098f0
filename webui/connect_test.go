package webui

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"rsc.io/qr"
)

func TestConnectList(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(auditor, auditor))
	box.get("/connect", who).says(t, 200, `href="/connect/corp"`, `href="/connect/iot"`, "A challenge of its own", "User name and password, over EST", "A challenge of Intune")
	box.get("/connect/nobody", who).says(t, 404, "no such profile")
	waiting := newBox(t, func(c *Config) {
		c.Site = func() Site {
			return Site{Name: "x", Profiles: []Profile{{Name: "late", Authority: "plant", SCEP: []string{"https://localhost/scep/late"}}}}
		}
	})
	who = bearer(waiting.claimAs(operator, operator))
	waiting.get("/connect", who).says(t, 200, "Its authority has no certificate yet")
	waiting.get("/connect/late?for=apple", who).says(t, 200, "Not ready yet")
	waiting.submit("/connect/late/mobileconfig", url.Values{"cn": {"x"}}, who).says(t, 409)
}

// TestConnectGuides: each kind of device is told what it needs, or why the profile does not serve it.
func TestConnectGuides(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(auditor, auditor))
	ca := box.fake.authorities[0].Generations[0].Certificate
	for _, c := range []struct {
		path  string
		texts []string
	}{
		{"corp?for=strongswan&cn=plc-7.example.com", []string{"NAME=plc-7.example.com", "URL=http://localhost/scep/corp\n", colons(sha256Of(ca)), "pki --scep --url", "Renew by SCEP",
			"pki --est --url https://localhost --cacert", "--userpass &#39;device:PASSWORD&#39;", "CHALLENGE=&#39;corp-demo-challenge&#39;"}},
		{"iot?for=strongswan", []string{"Replace CHALLENGE by the device", "--label iot", "--cert factory.crt", "Replace factory.crt and factory.key by the files"}},
		{"corp?for=certmonger", []string{"getcert add-scep-ca -c signet-corp -u http://localhost/scep/corp\n", "getcert request"}},
		{"corp?for=curl", []string{"EST=https://localhost/.well-known/est/corp\n", "-----BEGIN CERTIFICATE-----", "/simplereenroll", "/cacerts"}},
		{"intune?for=curl", []string{"not served over EST"}},
		{"corp?for=ios", []string{"enrollment url http://localhost/scep/corp/pkiclient.exe", fmt.Sprintf("fingerprint %X\n", sha1Of(ca)), "crypto pki trustpoint SIGNET-CORP"}},
		{"modern?for=ios", []string{"plain_http: true"}},
		{"iot?for=apple", []string{"An operator downloads it here", "/api/v1/jamf/iot", "SCEPChallenge"}},
		{"intune?for=intune", []string{"https://localhost:8443/scep/intune", "SCEP server URL for Windows 10", "https://localhost:7444/scep/intune", "Client Authentication (1.3.6.1.5.5.7.3.2)", "90 days"}},
		{"corp?for=intune", []string{"These do: intune."}},
		{"corp?for=chromeos", []string{"SCEP server URL", "https://localhost:8443/scep/corp", "Static"}},
		{"iot?for=chromeos", []string{"none that devices share"}},
		{"corp", []string{"Step", "SHA-1", fmt.Sprintf("%x", md5Of(ca))[:4], `class="qr"`, "QR code of " + box.URL + "/connect/corp", "/api/v1/ca-bundle"}[1:]},
	} {
		page := box.get("/connect/"+c.path, who)
		text := strings.ReplaceAll(string(page.body), "&#43;", "+")
		if page.StatusCode != 200 {
			t.Fatalf("%s: status %d: %s", c.path, page.StatusCode, page.body)
		}
		for _, want := range c.texts {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q", c.path, want)
			}
		}
		if len(page.body) > 100<<10 {
			t.Errorf("%s has %d bytes", c.path, len(page.body))
		}
	}
}

// TestConnectNames: a name goes into commands as it is, so that only names without a meaning to a shell, a
// subject or XML are taken.
func TestConnectNames(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(operator, operator))
	for _, bad := range []string{"a b", "$(reboot)", "`id`", "a;b", "'", `"`, "a,O=b", "<b>", "-n", ".", "a\nb", "\u202ename", strings.Repeat("x", 65)} {
		page := box.get("/connect/corp?for=curl&cn="+url.QueryEscape(bad), who)
		page.says(t, 422, `aria-invalid="true"`, "NAME="+exampleName+"\n")
		box.submit("/connect/iot/challenge", url.Values{"cn": {bad}}, who).says(t, 422, `id="mint-problem"`)
		if got := box.submit("/connect/iot/mobileconfig", url.Values{"cn": {bad}}, who); got.StatusCode != 422 || got.Header.Get("Content-Disposition") != "" {
			t.Errorf("a file for %q: status %d", bad, got.StatusCode)
		}
		if got := box.get("/connect/corp/mobileconfig?cn="+url.QueryEscape(bad), who); got.StatusCode != 422 {
			t.Errorf("a file for %q: status %d", bad, got.StatusCode)
		}
	}
	for _, good := range []string{"a", "plc-7.example.com", "AA_bb-9", strings.Repeat("x", 64)} {
		box.get("/connect/corp?for=curl&cn="+good, who).says(t, 200, "NAME="+good+"\n")
	}
}

// TestConnectMint: an operator's challenge is on the page that answers, in the guide too, and nowhere after.
func TestConnectMint(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(operator, operator))
	box.get("/connect/iot", who).says(t, 200, "Make a challenge")
	box.get("/connect/corp", who).saysNot(t, "Make a challenge")
	made := box.submit("/connect/iot/challenge", url.Values{"cn": {"cam-1"}, "for": {"certmonger"}}, who)
	made.says(t, 200, "Challenge for cam-1", "SECRET-OF-cam-1</code>", "CHALLENGE=&#39;SECRET-OF-cam-1&#39;", "Paste it as it is")
	if made.Header.Get("Cache-Control") != "no-store" {
		t.Error("the page with the challenge may be cached")
	}
	made.says(t, 200, `<button name="for" value="curl"`, `name="secret" value="SECRET-OF-cam-1"`) // another guide has it too
	if strings.Contains(box.log.String(), "SECRET-OF") {
		t.Error("the challenge is in the log")
	}
	box.get("/connect/iot?for=certmonger&cn=cam-1", who).saysNot(t, "SECRET-OF")
	box.submit("/connect/corp/challenge", url.Values{"cn": {"cam-1"}}, who).says(t, 409)

	reader := newBox(t)
	who = bearer(reader.claimAs(auditor, auditor))
	reader.get("/connect/iot", who).saysNot(t, "Make a challenge")
	reader.get("/connect/iot", who).says(t, 200, "Ask an operator")
	reader.submit("/connect/iot/challenge", url.Values{"cn": {"cam-1"}}, who).says(t, 403)
	reader.submit("/connect/iot/mobileconfig", url.Values{"cn": {"cam-1"}}, who).says(t, 403)
}

// TestConnectCarried: a secret that another page made is in the commands, and is handed on in bodies of forms alone;
// what is none is refused.
func TestConnectCarried(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(operator, operator))
	carried := func(profile, guide, kind, secret, user, cn string) reply {
		return box.submit("/connect/"+profile, url.Values{"for": {guide}, "kind": {kind}, "secret": {secret}, "user": {user}, "cn": {cn}}, who)
	}
	page := carried("corp", "certmonger", "challenge", "abc234", "", "")
	page.says(t, 200, "CHALLENGE=&#39;abc234&#39;", "Replace device-1.example.com by", `<form method="post" action="/connect/corp" class="oneline">`)
	carried("corp", "curl", "password", "abc234", "device", "plc-1").says(t, 200, "-u &#39;device:abc234&#39;", "NAME=plc-1\n", "Password of device", "Paste it as it is", `name="cn" value="plc-1"`)
	carried("iot", "strongswan", "one-time", "abc234", "", "cam-1").says(t, 200, "CHALLENGE=&#39;abc234&#39;", "NAME=cam-1\n", "which its challenge was made for")
	carried("corp", "certmonger", "password", "abc234", "device", "plc-1").says(t, 200, "CHALLENGE=&#39;corp-demo-challenge&#39;")
	carried("corp", "curl", "challenge", "abc234", "", "a b").says(t, 422, `id="device-problem"`, `name="secret" value="abc234"`)
	file := box.submit("/connect/corp/mobileconfig", url.Values{"kind": {"challenge"}, "secret": {"abc234"}, "cn": {"ipad-3"}}, who)
	file.says(t, 200, "<key>Challenge</key>\n<string>abc234</string>")
	for _, text := range []string{string(page.body), box.log.String()} {
		if strings.Contains(text, "=abc234&") || strings.Contains(text, "secret=") {
			t.Error("the secret is in an address or in the log")
		}
	}
	if strings.Contains(box.log.String(), "abc234") {
		t.Error("the secret is in the log")
	}
	for _, r := range []reply{
		carried("corp", "curl", "challenge", "a'b", "", ""), carried("corp", "ios", "challenge", "a\nreload", "", ""), carried("corp", "curl", "coffee", "abc234", "", ""),
		carried("corp", "curl", "password", "abc234", "nobody", ""), carried("iot", "curl", "one-time", "abc234", "", ""),
		box.submit("/connect/corp/mobileconfig", url.Values{"kind": {"challenge"}, "secret": {"<b>"}, "cn": {"ipad-3"}}, who),
	} {
		r.says(t, 422, "no secret that the box makes")
	}
	carried("nobody", "curl", "challenge", "abc234", "", "").says(t, 404)
}

// TestConnectWaiting: commands for devices that may have to wait for a person say so, and where that is decided.
func TestConnectWaiting(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(auditor, auditor))
	at := box.URL + "/pending"
	site := box.console.cfg.Site
	for _, holds := range []bool{false, true} {
		box.console.cfg.Site = func() Site {
			s := site()
			for i := range s.Profiles {
				s.Profiles[i].Holds = holds
			}
			return s
		}
		for kind, text := range map[string]string{"strongswan": "pki --scep --interval 10 ", "certmonger": "CA_WORKING", "curl": "&#34;$CODE&#34; = 202", "ios": " enrollment retry count 100"} {
			page := string(box.get("/connect/corp?cn=x&for="+kind, who).body)
			if strings.Contains(page, text) != holds || strings.Contains(page, at) != (holds && kind != "ios") {
				t.Errorf("%s, held: %v: %s", kind, holds, page)
			}
		}
	}
}

// TestMobileconfig reads the file as Apple's devices do: a property list with the CA certificate and a SCEP
// payload that has a challenge only where one was made for it.
func TestMobileconfig(t *testing.T) {
	minted := 0
	box := newBox(t, func(c *Config) {
		c.Mint = func(m Mint) (string, time.Time, error) { minted++; return "S<&>" + m.CN, start.Add(time.Hour), nil }
		site := c.Site()
		site.Name = `R&D <plant>`
		c.Site = func() Site { return site }
	})
	who := bearer(box.claimAs(operator, operator))
	ca := box.fake.authorities[0].Generations[0].Certificate
	read := func(r reply) (map[string]any, map[string]any) {
		t.Helper()
		if r.StatusCode != 200 || r.Header.Get("Content-Type") != mediaMobileconfig || !strings.HasPrefix(r.Header.Get("Content-Disposition"), "attachment; filename=") {
			t.Fatalf("status %d, %v: %s", r.StatusCode, r.Header, r.body)
		}
		whole, err := readPlist(r.body)
		if err != nil {
			t.Fatalf("%v in\n%s", err, r.body)
		}
		payloads := whole["PayloadContent"].([]any)
		first, last := payloads[0].(map[string]any), payloads[len(payloads)-1].(map[string]any)
		if first["PayloadType"] != "com.apple.security.root" || !bytes.Equal(first["PayloadContent"].([]byte), ca.Raw) {
			t.Errorf("the first payload is %v, want the CA certificate", first["PayloadType"])
		}
		if last["PayloadType"] != "com.apple.security.scep" {
			t.Errorf("the last payload is %v", last["PayloadType"])
		}
		return whole, last["PayloadContent"].(map[string]any)
	}
	whole, scep := read(box.get("/connect/corp/mobileconfig?cn=ipad-3", who))
	if whole["PayloadDisplayName"] != `Signet R&D <plant>, corp` || whole["PayloadType"] != "Configuration" || whole["PayloadVersion"] != "1" {
		t.Errorf("%v", whole)
	}
	if _, there := scep["Challenge"]; there || scep["URL"] != "http://localhost/scep/corp" || scep["Keysize"] != "2048" ||
		fmt.Sprint(scep["Subject"]) != "[[[CN ipad-3]]]" || fmt.Sprint(scep["SubjectAltName"]) != "map[dNSName:ipad-3]" || !bytes.Equal(scep["CAFingerprint"].([]byte), sha1Of(ca)) {
		t.Errorf("%v", scep)
	}
	again, _ := read(box.get("/connect/corp/mobileconfig?cn=ipad-3", who))
	other, _ := read(box.get("/connect/corp/mobileconfig?cn=ipad-4", who))
	if whole["PayloadUUID"] != again["PayloadUUID"] || whole["PayloadUUID"] == other["PayloadUUID"] {
		t.Error("a file for the same device has to replace the one before, and no other's")
	}
	if minted != 0 {
		t.Errorf("%d challenges made by GET", minted)
	}
	if _, scep = read(box.submit("/connect/iot/mobileconfig", url.Values{"cn": {"ipad-3"}}, who)); scep["Challenge"] != "S<&>ipad-3" || minted != 1 {
		t.Errorf("%v, %d challenges made", scep, minted)
	}
	// Where no device of Apple's can enroll no challenge is used up.
	if got := box.submit("/connect/modern/mobileconfig", url.Values{"cn": {"ipad-3"}}, who); got.StatusCode != 409 || minted != 1 {
		t.Errorf("status %d, %d challenges made", got.StatusCode, minted)
	}
}

// readPlist reads an XML property list: dictionaries, arrays, data, and everything else as text.
func readPlist(text []byte) (map[string]any, error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "dict" {
			value, err := plistValue(d, start)
			if err != nil {
				return nil, err
			}
			for { // to the end: nothing may be left open
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					return value.(map[string]any), nil
				} else if err != nil {
					return nil, err
				}
			}
		}
	}
}

func plistValue(d *xml.Decoder, start xml.StartElement) (any, error) {
	var text strings.Builder
	var values []any
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.CharData:
			text.Write(token)
		case xml.StartElement:
			value, err := plistValue(d, token)
			if err != nil {
				return nil, err
			}
			values = append(values, value)
		case xml.EndElement:
			switch start.Name.Local {
			case "array":
				return values, nil
			case "data":
				return base64.StdEncoding.DecodeString(text.String())
			case "dict":
				dict := map[string]any{}
				for i := 0; i+1 < len(values); i += 2 {
					dict[values[i].(string)] = values[i+1]
				}
				return dict, nil
			}
			return text.String(), nil
		}
	}
}

// TestCode: the picture is the QR code of the text, module by module, with its quiet zone.
func TestCode(t *testing.T) {
	const text = "https://box.example.com:9443/connect/corp?cn=plc-7.example.com"
	got, err := newCode(text)
	if err != nil {
		t.Fatal(err)
	}
	want, err := qr.Encode(text, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	if got.Side != want.Size+8 || got.Text != text {
		t.Fatalf("%d modules for %d of the code", got.Side, want.Size)
	}
	dark := map[[2]int]bool{}
	for _, run := range strings.Split(strings.TrimSuffix(got.Path, "z"), "z") {
		var x, y, n, back int
		if _, err := fmt.Sscanf(run, "M%d %dh%dv1h-%d", &x, &y, &n, &back); err != nil || n != back || n < 1 {
			t.Fatalf("%q: %v", run, err)
		}
		for i := range n {
			dark[[2]int{x + i, y}] = true
		}
	}
	for y := range got.Side {
		for x := range got.Side {
			inside := x >= 4 && y >= 4 && x < got.Side-4 && y < got.Side-4
			if dark[[2]int{x, y}] != (inside && want.Black(x-4, y-4)) {
				t.Fatalf("module %d,%d is wrong", x, y)
			}
		}
	}
}
