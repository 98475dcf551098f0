package appliance_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"strings"
	"testing"

	"signet.internal/webui/browsertest"
)

// visitor is a person at a tab of headless Chromium, who looks at the console of a running service. The
// browser believes this box's key and no other.
type visitor struct {
	*browsertest.Tab
	s *service
}

// visit opens a browser for the console, by name: addresses have no passkeys.
func visit(t *testing.T, s *service) *visitor {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.ready.Console, "https://"), &tls.Config{InsecureSkipVerify: true}) // the key is held against the ready file
	if err != nil {
		t.Fatal(err)
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	conn.Close()
	if sum := sha256.Sum256(leaf.Raw); hex.EncodeToString(sum[:]) != s.ready.TLSSHA256 {
		t.Fatal("the console shows another certificate than the ready file says")
	}
	return &visitor{s: s, Tab: browsertest.Start(t, browsertest.Options{
		Origin: strings.Replace(s.ready.Console, "127.0.0.1", "localhost", 1), Leaf: leaf, Pictures: "service-"})}
}
