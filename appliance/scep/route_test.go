package scep

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
)

func TestLocate(t *testing.T) {
	corp := &profile{Profile: Profile{Name: "corp", Default: true}}
	modern := &profile{Profile: Profile{Name: "modern"}}
	withDefault := &Server{profiles: map[string]*profile{"corp": corp, "modern": modern}, fallback: corp}
	without := &Server{profiles: map[string]*profile{"modern": modern}}

	for _, c := range []struct {
		path string
		want *profile
	}{
		{"/scep", corp},
		{"/scep/", corp},
		{"//scep//", corp},
		{"/scep/corp", corp},
		{"/scep/modern", modern},
		{"/scep/modern/", modern},
		{"/scep/modern/pkiclient.exe", modern},
		{"/scep/modern//cgi-bin/pkiclient.exe", modern},
		{"/scep/modern/certsrv/mscep/mscep.dll/pkiclient.exe", modern},
		{"/scep/pkiclient.exe", corp},
		{"/scep/PKICLIENT.EXE", corp},
		{"/scep//pkiclient.exe", corp},
		{"/scep/cgi-bin/pkiclient.exe", corp},
		{"/scep/mscep.dll", corp},
		{"/scep/CertSrv/mscep/mscep.dll", corp},
		{"/scep/certsrv/mscep/mscep.dll/pkiclient.exe", corp},
		{"/pkiclient.exe", corp},
		{"/cgi-bin/pkiclient.exe", corp},
		{"/CGI-BIN/PkiClient.exe/", corp},
		{"/certsrv/mscep/mscep.dll", corp},
		{"/CertSrv/mscep/MSCEP.dll/pkiclient.exe", corp},
		{"/mscep.dll", corp},

		{"/", nil},
		{"", nil},
		{"/scep/unknown", nil},
		{"/scep/unknown/pkiclient.exe", nil},
		{"/scep/../scep/corp", nil},
		{"/scepx", nil},
		{"/SCEP/corp", nil},
		{"/corp", nil},
		{"/cgi-bin", nil},
		{"/cgi-bin/other.exe", nil},
		{"/certsrv", nil},
		{"/certsrv/mscep_admin", nil},
		{"/certsrv/mscep", nil},
	} {
		got, reason := withDefault.locate(c.path, secure)
		if got != c.want {
			t.Errorf("locate(%q) = %v, want %v", c.path, got, c.want)
		}
		if (got == nil) != (reason != "") {
			t.Errorf("locate(%q): profile %v with reason %q", c.path, got, reason)
		}
	}

	for path, want := range map[string]*profile{
		"/scep": nil, "/scep/pkiclient.exe": nil, "/pkiclient.exe": nil, "/scep/modern/pkiclient.exe": modern,
	} {
		got, reason := without.locate(path, secure)
		if got != want {
			t.Errorf("without a default profile, locate(%q) = %v, want %v", path, got, want)
		}
		if want == nil && !strings.Contains(reason, "no default") {
			t.Errorf("without a default profile, locate(%q) says %q", path, reason)
		}
	}
}

// A name another server had selects a profile of that name where there is one.
func TestLocatePrefersProfile(t *testing.T) {
	named := &profile{Profile: Profile{Name: "certsrv"}}
	s := &Server{profiles: map[string]*profile{"certsrv": named}}
	if got, _ := s.locate("/scep/certsrv/mscep/mscep.dll", secure); got != named {
		t.Errorf("locate = %v, want the profile named certsrv", got)
	}
}

// message has both characters the alphabets differ in and a length that needs padding.
var message = []byte("\xfb\xef\xbe\xff\xff\xff PKIMessage that is long enough to be broken into more than one line by a client \xfb\xef\xbe!")

func TestMessageVariants(t *testing.T) {
	std := base64.StdEncoding.EncodeToString(message)
	safe := base64.URLEncoding.EncodeToString(message)
	if !strings.ContainsAny(std, "+") || !strings.Contains(std, "/") || !strings.HasSuffix(std, "=") {
		t.Fatalf("the sample %q does not exercise the alphabet", std)
	}
	lines := func(s, end string, n int) string {
		var b strings.Builder
		for len(s) > n {
			b.WriteString(s[:n] + end)
			s = s[n:]
		}
		return b.String() + s + end
	}
	escape := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D", "\r", "%0d", "\n", "%0A").Replace
	lower := strings.NewReplacer("%2B", "%2b", "%2F", "%2f", "%3D", "%3d", "%0A", "%0a").Replace

	for name, raw := range map[string]string{
		"RFC 8894: all escaped":                    "operation=PKIOperation&message=" + escape(std),
		"strongSwan: lines, / and = raw":           "operation=PKIOperation&message=" + strings.ReplaceAll(lines(std, "%0A", 64), "+", "%2B"),
		"Cisco: lines of 76, all escaped":          "operation=PKIOperation&message=" + escape(lines(std, "\n", 76)),
		"lines ended by CR LF, lower-case escapes": "operation=PKIOperation&message=" + lower(escape(lines(std, "\r\n", 64))),
		"macOS: + and / raw, = escaped":            "operation=PKIOperation&message=" + strings.ReplaceAll(std, "=", "%3D"),
		"nothing escaped":                          "operation=PKIOperation&message=" + std,
		"+ made a space by a form decoder":         "operation=PKIOperation&message=" + url.PathEscape(strings.ReplaceAll(std, "+", " ")),
		"no padding":                               "operation=PKIOperation&message=" + strings.TrimRight(std, "="),
		"URL-safe alphabet":                        "operation=PKIOperation&message=" + safe,
		"URL-safe alphabet without padding":        "operation=PKIOperation&message=" + strings.TrimRight(safe, "="),
		"message first":                            "message=" + escape(std) + "&operation=PKIOperation",
		"with parameters of others":                "x=1&operation=PKIOperation&y&message=" + escape(std) + "&z=",
	} {
		operation, value := query(raw)
		if operation != "PKIOperation" {
			t.Errorf("%s: operation %q", name, operation)
		}
		got, err := decodeMessage(value)
		if err != nil || string(got) != string(message) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}

	for name, raw := range map[string]string{
		"broken escape":           "MII%2",
		"escaped twice":           strings.ReplaceAll(std, "+", "%252B"),
		"foreign character":       "MIIB*AAA",
		"padding inside":          "MI==IB",
		"one character too many":  "MIIBA",
		"characters beyond ASCII": "MIIé",
		"hidden zero byte":        "MIIB%00",
	} {
		if b, err := decodeMessage(raw); err == nil {
			t.Errorf("%s: decoded to %x", name, b)
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add("operation=PKIOperation&message=" + base64.StdEncoding.EncodeToString(message))
	f.Add("message=MII%0A%2B+/-_==&operation=")
	f.Add("&&=&message&operation=%")
	f.Fuzz(func(t *testing.T, raw string) {
		_, value := query(raw)
		b, err := decodeMessage(value)
		if err != nil {
			return
		}
		if len(b) > len(raw) {
			t.Fatalf("%d bytes out of a query of %d", len(b), len(raw))
		}
		again, err := decodeMessage(base64.URLEncoding.EncodeToString(b))
		if err != nil || string(again) != string(b) {
			t.Fatalf("%x decodes to %x, %v after encoding it again", b, again, err)
		}
	})
}
