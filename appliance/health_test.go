package appliance_test

import (
	"archive/zip"
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
	"signet.internal/webui"
)

// TestHealthOfTheService: a running box says of itself what is so: it counts an enrollment, times its TPM and
// lists its listeners; a browser that listens hears of the enrollment, and does not keep the box from
// stopping.
func TestHealthOfTheService(t *testing.T) {
	needtest.Program(t, "pki", "strongswan-pki")
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	get := func(path string) string {
		t.Helper()
		return string(s.getAs(t, path, token))
	}

	req, err := http.NewRequest(http.MethodGet, s.ready.Console+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Authorization", "Bearer "+token)
	stream, err := (&http.Client{Transport: s.client.Transport}).Do(req) // no timeout: it lasts
	if err != nil || stream.StatusCode != http.StatusOK {
		t.Fatalf("events: %v %v", err, stream)
	}
	defer stream.Body.Close()
	events := make(chan string, 100)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(stream.Body); lines.Scan(); {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				events <- data
			}
		}
	}()

	dir := t.TempDir()
	if text, err := enrollStrongSwan(t, dir, s.ready.SCEPPlain+"/scep/corp", "health.example.com", "corp-demo-challenge"); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for data := range events {
		if slices.Contains(strings.Fields(data), "certificates") {
			break
		}
	}
	resp, err := s.client.Get(s.ready.PKI + "/pki/devices.crl")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	text := get("/metrics")
	for _, want := range []string{
		`signet_enrollments_total{outcome="success",profile="corp",protocol="scep"} 1`,
		`signet_key_request_seconds_count{operation="sign",protection="resident"} `,
		`signet_key_requests_waiting{protection="resident"} `,
		`signet_published_requests_total{authority="devices",document="crl",status="200"} 1`,
		`signet_certificate_expiry_timestamp_seconds{authority="devices",certificate="ra",generation=""} `,
		`signet_certificate_expiry_timestamp_seconds{authority="",certificate="tls",generation=""} `,
		`signet_storage_bytes{kind="reserve"} `, `signet_clock_trusted 1`, `signet_issuing 1`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	var h webui.Health
	if s.api(t, "GET", "/api/v1/health", token, nil, &h); h.Details == nil || h.Details.Keys.Done == 0 || h.Details.Storage == nil || h.Details.Storage.Total == 0 || !h.Details.Clock.Trusted {
		t.Fatalf("%+v", h)
	}
	var names []string
	for _, l := range h.Details.Listeners {
		names = append(names, l.Name)
		if l.Address == "" || (l.TLS == "") != (l.Name == "plain") {
			t.Errorf("%+v", l)
		}
	}
	if !slices.Equal(names, []string{"est", "scep", "console", "plain", "legacy", "legacy_scep"}) {
		t.Errorf("listeners %v", names)
	}
	if page := get("/"); !strings.Contains(page, "1 issued") || !strings.Contains(page, "health.example.com") {
		t.Error("the overview does not have the enrollment")
	}
	bundle := []byte(get("/api/v1/support-bundle"))
	archive, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(body), token) || strings.Contains(string(body), "corp-demo-challenge") || strings.Contains(string(body), "$argon2id$") {
			t.Errorf("%s has a secret", f.Name)
		}
		if strings.HasSuffix(f.Name, "/log.txt") && !strings.Contains(string(body), "msg=ready") {
			t.Error("the log in the bundle does not begin with the start")
		}
	}

	if err := s.stop(); err != nil { // servers that wait for a stream in vain say so after a minute
		t.Errorf("stopping: %v", err)
	}
	last := ""
	for data := range events {
		last = data
	}
	if last != "stopping" {
		t.Errorf("the stream ends with %q", last)
	}
}

// getAs fetches a page of the console.
func (s *service) getAs(t *testing.T, path, token string) []byte {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, s.ready.Console+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", path, resp.StatusCode, err)
	}
	return body
}
