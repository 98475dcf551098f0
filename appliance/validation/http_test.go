package validation

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

// TestCRLByClients fetches the list with curl and has openssl verify it, and certificates by it.
func TestCRLByClients(t *testing.T) {
	b := newBox(t, nil)
	ca, list, listPEM := b.pemFile("ca.pem", b.first.Issuer.Certificate()), b.dir+"/devices.crl", b.dir+"/devices.pem"
	wantOutput(t, "curl", []string{"-sS", "-w", "%{http_code} %{content_type}", "-o", list, b.url + "/pki/devices.crl"}, "200 application/pkix-crl")
	serial := strings.ToUpper(b.revoked.SerialNumber.Text(16))
	wantOutput(t, "openssl", []string{"crl", "-inform", "DER", "-in", list, "-noout", "-text", "-CAfile", ca}, "verify OK", "X509v3 CRL Number", serial, "Key Compromise")
	wantOutput(t, "openssl", []string{"crl", "-inform", "DER", "-in", list, "-out", listPEM})
	wantOutput(t, "openssl", []string{"verify", "-crl_check", "-CAfile", ca, "-CRLfile", listPEM, b.pemFile("good.pem", b.good)}, ": OK")
	if out, err := tool(t, "openssl", "verify", "-crl_check", "-CAfile", ca, "-CRLfile", listPEM, b.pemFile("revoked.pem", b.revoked)); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl verify of a revoked certificate: %v\n%s", err, out)
	}

	wantOutput(t, "curl", []string{"-sS", "-w", "%{http_code} %{content_type}", "-o", b.dir + "/ca.der", b.url + "/pki/devices.cer"}, "200 application/pkix-cert")
	der, err := os.ReadFile(b.dir + "/ca.der")
	must(t, err)
	if !bytes.Equal(der, b.first.Issuer.Certificate().Raw) {
		t.Error("another certificate came")
	}
}

// TestRoutes: what is there, by which method, and nothing else.
func TestRoutes(t *testing.T) {
	b := newBox(t, nil)
	crls := map[string]*x509.Certificate{
		"/pki/devices.crl":   b.first.Issuer.Certificate(),
		"/pki/devices.2.crl": b.second.Issuer.Certificate(),
		"/pki/silent.crl":    b.authorities[1].Generations[0].Issuer.Certificate(),
	}
	for path, issuer := range crls {
		r, body := b.do("GET", path)
		list, err := x509.ParseRevocationList(body)
		if r.StatusCode != http.StatusOK || err != nil {
			t.Fatalf("%s: %d, %v", path, r.StatusCode, err)
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, body := b.do("GET", strings.TrimSuffix(path, "crl")+"cer"); !bytes.Equal(body, issuer.Raw) {
			t.Errorf("%s: another certificate", path)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			if r, _ := b.do(method, path); r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d", method, path, r.StatusCode)
			}
		}
	}
	for _, path := range []string{
		"/", "/pki", "/pki/", "/pki/devices", "/pki/.crl", "/pki/devices.1.crl", "/pki/devices.3.crl", "/pki/devices.02.crl", "/pki/other.crl", "/pki/DEVICES.crl",
		"/pki/devices.crl/", "/pki//devices.crl", "/pki/devices%2ecrl", "/pki/../pki/devices.crl", "/pki/devices.pem", "/crl/devices.crl",
		"/ocsp", "/ocsp/", "/ocsp/other", "/ocsp/devices.2", "/ocsp/silent", "/ocsp//devices", "/ocsp/devices%2Fx",
	} {
		if r, body := b.do("GET", path); r.StatusCode != http.StatusNotFound || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") || len(body) == 0 {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
}

// TestCRLCaching holds headers, revalidation, HEAD and ranges.
func TestCRLCaching(t *testing.T) {
	b := newBox(t, nil)
	r, body := b.do("GET", "/pki/devices.crl")
	list, err := x509.ParseRevocationList(body)
	must(t, err)
	tag, modified := r.Header.Get("ETag"), r.Header.Get("Last-Modified")
	if modified != list.ThisUpdate.Format(http.TimeFormat) || r.Header.Get("Expires") != list.NextUpdate.Format(http.TimeFormat) ||
		r.Header.Get("Cache-Control") != "max-age=600, public, no-transform, must-revalidate" || r.Header.Get("Accept-Ranges") != "" {
		t.Errorf("headers %v", r.Header)
	}
	for _, test := range []struct {
		method, name, value string
		status, length      int
	}{
		{"GET", "If-None-Match", tag, 304, 0},
		{"HEAD", "If-None-Match", tag, 304, 0},
		{"GET", "If-None-Match", `"other", W/` + tag, 304, 0},
		{"GET", "If-None-Match", "*", 304, 0},
		{"GET", "If-None-Match", `"other"`, 200, len(body)},
		{"GET", "If-None-Match", strings.Trim(tag, `"`), 200, len(body)},
		{"GET", "If-Modified-Since", modified, 304, 0},
		{"GET", "If-Modified-Since", list.ThisUpdate.Add(-time.Second).Format(http.TimeFormat), 200, len(body)},
		{"GET", "If-Modified-Since", "yesterday", 200, len(body)},
		{"GET", "Range", "bytes=0-9", 200, len(body)},
		{"HEAD", "Accept", "*/*", 200, 0},
	} {
		r, got := b.do(test.method, "/pki/devices.crl", test.name, test.value)
		if r.StatusCode != test.status || len(got) != test.length || r.Header.Get("ETag") != tag {
			t.Errorf("%s with %s: %s: %d, %d octets, %v", test.method, test.name, test.value, r.StatusCode, len(got), r.Header)
		}
		if test.status == 200 && r.Header.Get("Content-Length") != strconv.Itoa(len(body)) {
			t.Errorf("%s with %s: Content-Length %s", test.method, test.name, r.Header.Get("Content-Length"))
		}
	}
	// A date does not win over a tag that says otherwise.
	if r, _ := b.do("GET", "/pki/devices.crl", "If-None-Match", `"other"`, "If-Modified-Since", modified); r.StatusCode != 200 {
		t.Errorf("tag and date: %d", r.StatusCode)
	}
	b.records.mu.Lock()
	b.records.number++
	b.records.mu.Unlock()
	if r, _ := b.do("GET", "/pki/devices.crl", "If-None-Match", tag); r.StatusCode != 200 || r.Header.Get("ETag") == tag {
		t.Errorf("another list is taken for the same: %d", r.StatusCode)
	}
}

// TestCRLLater: where the box cannot sign, it says when to come back; where something is wrong, only
// the log says what.
func TestCRLLater(t *testing.T) {
	b := newBox(t, nil)
	for _, test := range []struct {
		err    error
		status int
	}{
		{enroll.ErrClock, 503}, {enroll.ErrBusy, 503}, {enroll.ErrUnavailable, 503}, {enroll.ErrClosed, 503}, {os.ErrPermission, 500},
	} {
		b.records.fail(fmt.Errorf("sector 4711: %w", test.err), nil)
		r, body := b.do("GET", "/pki/devices.crl")
		if r.StatusCode != test.status || strings.Contains(string(body), "4711") || strings.Contains(string(body), test.err.Error()) {
			t.Errorf("%v: %d %s", test.err, r.StatusCode, body)
		}
		after, err := strconv.Atoi(r.Header.Get("Retry-After"))
		if test.status == 503 && (err != nil || after < 1) || test.status == 500 && r.Header.Get("Retry-After") != "" {
			t.Errorf("%v: Retry-After %q", test.err, r.Header.Get("Retry-After"))
		}
		if r.Header.Get("ETag") != "" || strings.Contains(r.Header.Get("Cache-Control"), "max-age") {
			t.Errorf("%v: a cache would keep it: %v", test.err, r.Header)
		}
		if !strings.Contains(b.log.String(), "4711") {
			t.Errorf("%v is not in the log", test.err)
		}
		b.log.Reset()
	}
	// The certificate needs no signature.
	if r, _ := b.do("GET", "/pki/devices.cer"); r.StatusCode != 200 {
		t.Errorf("the certificate: %d", r.StatusCode)
	}
}

// TestNothingIsChunked reads the raw octets of every kind of answer: a small header with a length, no
// chunks, and a body of that length.
func TestNothingIsChunked(t *testing.T) {
	b := newBox(t, nil)
	good := b.request(b.good)
	get := "/ocsp/devices/" + base64.StdEncoding.EncodeToString(good)
	tag := mustTag(b, "/pki/devices.crl")
	post := func(body []byte) string {
		return fmt.Sprintf("POST /ocsp/devices HTTP/%%s\r\nHost: box\r\nContent-Type: application/ocsp-request\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), strings.ReplaceAll(string(body), "%", "%%"))
	}
	read := func(method, path, headers string) string {
		return method + " " + path + " HTTP/%s\r\nHost: box\r\n" + headers + "Connection: close\r\n\r\n"
	}
	for name, request := range map[string]string{
		"CRL":             read("GET", "/pki/devices.crl", ""),
		"CRL HEAD":        read("HEAD", "/pki/devices.crl", ""),
		"CRL unchanged":   read("GET", "/pki/devices.crl", "If-None-Match: "+tag+"\r\n"),
		"certificate":     read("GET", "/pki/devices.cer", ""),
		"not found":       read("GET", "/pki/none", ""),
		"wrong method":    read("DELETE", "/pki/devices.crl", ""),
		"OCSP GET":        read("GET", get, ""),
		"OCSP by proxy":   read("GET", "http://box"+get, ""),
		"OCSP wrong":      read("GET", "/ocsp/devices/x", ""),
		"OCSP POST":       post(good),
		"OCSP with nonce": post(withNonce(t, good, []byte("nonce"))),
		"OCSP wrong POST": post([]byte("x")),
	} {
		for _, version := range []string{"1.0", "1.1"} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
			must(t, err)
			must(t, conn.SetDeadline(time.Now().Add(2*time.Minute)))
			_, err = fmt.Fprintf(conn, request, version)
			must(t, err)
			raw, err := io.ReadAll(conn)
			must(t, err)
			must(t, conn.Close())
			header, body, ok := strings.Cut(string(raw), "\r\n\r\n")
			if !ok || strings.Contains(strings.ToLower(header), "transfer-encoding") {
				t.Errorf("%s by HTTP/%s:\n%s", name, version, header)
			}
			r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
			must(t, err)
			switch {
			case r.StatusCode == http.StatusNotModified || name == "CRL HEAD":
				if body != "" {
					t.Errorf("%s by HTTP/%s: a body of %d octets", name, version, len(body))
				}
			case r.Header.Get("Content-Length") != strconv.Itoa(len(body)) || body == "":
				t.Errorf("%s by HTTP/%s: Content-Length %q, body of %d octets", name, version, r.Header.Get("Content-Length"), len(body))
			}
			if len(header) > 600 {
				t.Errorf("%s by HTTP/%s: a header of %d octets", name, version, len(header))
			}
		}
	}
}

func mustTag(b *box, path string) string {
	b.t.Helper()
	r, _ := b.do("GET", path)
	return r.Header.Get("ETag")
}

// TestLogLine: one line a request, with what was asked and no more.
func TestLogLine(t *testing.T) {
	b := newBox(t, nil)
	b.post(b.request(b.good))
	b.do("GET", "/pki/devices.2.crl")
	lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines for 2 requests:\n%s", len(lines), b.log)
	}
	for i, wants := range [][]string{
		{"what=ocsp", "authority=devices", "serial=" + b.good.SerialNumber.Text(16), "source=127.0.0.1", "outcome=answered", "request="},
		{"what=crl", "authority=devices.2", "status=200"},
	} {
		for _, want := range wants {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%q is not in %s", want, lines[i])
			}
		}
	}
}

// TestConfig: a server without its parts is none.
func TestConfig(t *testing.T) {
	whole := Config{Config: exchange.Config{Log: slog.New(slog.DiscardHandler)}, Engine: &records{}, Authorities: func() []Authority { return nil }}
	if _, err := New(whole); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"engine":      func(c *Config) { c.Engine = nil },
		"authorities": func(c *Config) { c.Authorities = nil },
		"log":         func(c *Config) { c.Log = nil },
		"limit":       func(c *Config) { c.LivePerSecond = -1 },
	} {
		c := whole
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("a wrong %s is taken", name)
		}
	}
}
