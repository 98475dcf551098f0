package est

import (
	"crypto/tls"
	"encoding/asn1"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
)

// bound is a request of the device for one connection, and the client that sends it by that connection. change may alter what is put
// into challengePassword.
func (d *device) bound(url, path string, max uint16, change func(binding string) string) answer {
	d.s.t.Helper()
	d.url, d.max = url, max
	client := d.client()
	// The connection has to be there before the request is made.
	first, err := http.NewRequest("GET", url+"/.well-known/est/cacerts", nil)
	if err != nil {
		d.s.t.Fatal(err)
	}
	resp, err := client.Do(first)
	if err != nil {
		d.s.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body) // else the connection is not used again
	resp.Body.Close()
	if resp.TLS.Version != max {
		d.s.t.Fatalf("TLS %x", resp.TLS.Version)
	}
	binding := resp.TLS.TLSUnique
	if max == tls.VersionTLS13 {
		if binding, err = resp.TLS.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err != nil {
			d.s.t.Fatal(err)
		}
	}
	text := change(base64.StdEncoding.EncodeToString(binding))
	var attributes [][]byte
	if text != "" {
		attributes = append(attributes, attribute(oidChallengePassword, must(asn1.Marshal(text))))
	}
	body := base64.StdEncoding.EncodeToString(d.csr(attributes...))
	r, err := http.NewRequest("POST", url+"/.well-known/est/"+path, strings.NewReader(body))
	if err != nil {
		d.s.t.Fatal(err)
	}
	r.SetBasicAuth(d.user, d.pass)
	r.Header.Set("Content-Type", "application/pkcs10")
	return do(d.s.t, client, r)
}

// Which requests belong to the connection they come by.
func TestChannelBinding(t *testing.T) {
	s := newService(t, nil)
	same := func(b string) string { return b }
	for _, c := range []struct {
		name    string
		profile string
		change  func(string) string
		refused string // "": enrolled
	}{
		{"bound", "bound", same, ""},
		{"bound", "loose", same, ""},
		{"bound", "corp", same, ""},
		{"with a line break", "bound", func(b string) string { return b + "\n" }, ""},
		{"unbound", "bound", func(string) string { return "" }, "wants the request bound"},
		{"unbound", "loose", func(string) string { return "" }, ""},
		{"unbound", "corp", func(string) string { return "" }, ""},
		{"another secret", "bound", func(string) string { return "secret" }, "not the channel binding"},
		{"another secret", "loose", func(string) string { return "secret" }, "not the channel binding"},
		{"another secret", "corp", func(string) string { return "secret" }, ""},
		{"part of it", "bound", func(b string) string { return b[:len(b)-4] }, "not the channel binding"},
		{"one bit", "bound", func(b string) string { return string(b[0]^1) + b[1:] }, "not the channel binding"},
	} {
		for name, listener := range map[string]struct {
			url string
			max uint16
		}{
			"TLS 1.2":        {s.legacy, tls.VersionTLS12},
			"TLS 1.3":        {s.url, tls.VersionTLS13},
			"TLS 1.3 legacy": {s.legacy, tls.VersionTLS13},
		} {
			t.Run(c.name+" "+c.profile+" "+name, func(t *testing.T) {
				s := s.in(t)
				d := s.device("dev")
				a := d.bound(listener.url, c.profile+"/simpleenroll", listener.max, c.change)
				if c.refused != "" {
					s.refused(a, 400, c.refused)
				} else {
					d.enrolled(c.profile, a)
				}
			})
		}
	}
}

// A request made for one connection is none for another, and where a connection has no binding there is nothing to compare with.
func TestChannelBindingOfOthers(t *testing.T) {
	s := newService(t, nil)
	var recorded string
	a := s.device("dev").bound(s.url, "bound/simpleenroll", tls.VersionTLS13, func(b string) string { recorded = b; return b })
	s.certificate(a)
	s.refused(s.device("dev").bound(s.url, "bound/simpleenroll", tls.VersionTLS13, func(string) string { return recorded }), 400, "not the channel binding")

	for name, connection := range map[string]*tls.ConnectionState{
		"none":            nil,
		"TLS 1.1":         {Version: tls.VersionTLS11, TLSUnique: []byte("unique")},
		"TLS 1.2 resumed": {Version: tls.VersionTLS12},
	} {
		for _, mode := range []string{"optional", "required"} {
			if err := checkBinding(mode, connection, ""); (err == nil) != (mode == "optional") {
				t.Errorf("%s, %s, unbound: %v", name, mode, err)
			}
			for _, challenge := range []string{"eA==", " "} {
				if err := checkBinding(mode, connection, challenge); err == nil {
					t.Errorf("%s, %s, %q: bound to nothing", name, mode, challenge)
				}
			}
		}
	}
}
