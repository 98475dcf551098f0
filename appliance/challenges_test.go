package appliance

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/webui"
)

// TestTrustInTheLog: who is believed from now on can be told from the record, however many they are.
func TestTrustInTheLog(t *testing.T) {
	var all []*x509.Certificate
	for i := range 32 {
		all = append(all, &x509.Certificate{Raw: []byte{byte(i)}})
	}
	text := trustedNow(all, "trust/"+strings.Repeat("n", 60)+".pem")
	if len(text) > audit.MaxReason {
		t.Errorf("the record would cut it: %d bytes", len(text))
	}
	for _, want := range []string{"32 certificates", " 6e340b9cff", " 4bf5122f34"} { // sha256sum of the bytes 0 and 1
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %s", text, want)
		}
	}
}

// TestMintInTheLog: what a challenge is good for stands in its record.
func TestMintInTheLog(t *testing.T) {
	until := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	for want, m := range map[string]webui.Mint{
		"good until 2026-05-04T12:00:00Z":                                      {CN: "p"},
		"good until 2026-05-04T12:00:00Z, for 2 names: dns:p.test, upn:p@test": {CN: "p", SANs: []string{"dns:p.test", "upn:p@test"}},
	} {
		if got := mintedFor(m, until); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
