package appliance_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/tpm/tpmtest"
)

// somebodyWaits says whether a request in this process waits for its turn.
func somebodyWaits() bool {
	var all bytes.Buffer
	return pprof.Lookup("goroutine").WriteTo(&all, 2) == nil && strings.Contains(all.String(), "exchange.(*Slots).Enter(")
}

// TestBurstWaitsItsTurn: while as many devices are being answered as may be, one more waits for its turn and is not sent away. A webhook
// that gives no verdict until it is told to keeps the others where they are.
func TestBurstWaitsItsTurn(t *testing.T) {
	const all = 16 // requests worked on at a time
	asked, answer := make(chan struct{}, 2*all), make(chan struct{})
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-answer:
		case <-r.Context().Done():
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]bool{"allow": true})
	}))
	defer hook.Close()
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	hooked := cheap(demo(t, "profiles/corp.yaml", "default: true", "default: false", "name: corp", "name: hooked"), "corp-demo-password") +
		"\ncompliance: {url: \"" + hook.URL + "/\", roots: trust/compliance.pem, timeout: 30s}\n"
	s := startSite(t, variant(t, map[string]string{
		"profiles/corp.yaml":   cheap(demo(t, "profiles/corp.yaml"), "corp-demo-password"),
		"profiles/hooked.yaml": hooked,
		"trust/compliance.pem": string(pemOf("CERTIFICATE", hook.Certificate().Raw)),
	}), tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	secret := "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	if code := s.api(t, "PUT", "/api/v1/profiles/hooked/secrets/compliance", token, map[string]string{"value": secret}, nil); code != http.StatusOK {
		t.Fatalf("the webhook's key: HTTP %d", code)
	}
	enroll := func(cn string) (int, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return 0, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
		if err != nil {
			return 0, err
		}
		r, err := http.NewRequest("POST", s.ready.EST+"/.well-known/est/hooked/simpleenroll", bytes.NewReader(der))
		if err != nil {
			return 0, err
		}
		r.Header.Set("Content-Type", "application/pkcs10")
		r.SetBasicAuth("device", "corp-demo-password")
		resp, err := s.client.Do(r)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	statuses := make(chan string, all+1)
	start := func(cn string) {
		go func() {
			status, err := enroll(cn)
			statuses <- fmt.Sprint(status, err)
		}()
	}
	for i := range all { // one after another, because the first password is verified slowly
		start(fmt.Sprintf("device%d.example.com", i))
		select {
		case <-asked:
		case status := <-statuses:
			t.Fatalf("request %d was answered %s while the webhook says nothing", i, status)
		}
	}
	start("late.example.com")
	for deadline := time.Now().Add(2 * time.Minute); !somebodyWaits(); time.Sleep(5 * time.Millisecond) {
		select {
		case status := <-statuses:
			t.Fatalf("one more was answered %s at once", status)
		case <-asked:
			t.Fatal("one more was worked on at the same time")
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("one more neither waits for its turn nor is answered")
		}
	}
	release()
	for range all + 1 {
		if status := <-statuses; status != "200 <nil>" {
			t.Errorf("answered %s", status)
		}
	}
}
