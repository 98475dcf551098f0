package webui

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// twoRequests is a box that asks for certificates over keys of two kinds, as the real one does.
type twoRequests struct {
	*fakeBox
	pem []byte
}

func (b *twoRequests) TLSRequest() ([]byte, error) { return b.pem, nil }

// TestTLSPage: each request is a file of its own, a chain is uploaded, and the box's own certificates come
// back by a dialog.
func TestTLSPage(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	var requests bytes.Buffer
	for _, key := range []any{newAuditKey(t), small} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"pki.example.com"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		pem.Encode(&requests, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	}
	box := newBox(t, func(c *Config) { c.Box = &twoRequests{c.Box.(*fakeBox), requests.Bytes()} })
	admin := bearer(box.claimAs(administrator, administrator))
	page := box.get("/tls", admin)
	page.says(t, 200, "made by the box", "CN=Demo Modern CA", `href="/tls/ecdsa.csr.pem"`, `action="/tls/chain"`)
	page.saysNot(t, "uploaded, not baked", "<dialog", "do=own")
	for path, isECDSA := range map[string]bool{"/tls/ecdsa.csr.pem": true, "/tls/rsa.csr.pem": false} {
		got := box.get(path, admin)
		block, rest := pem.Decode(got.body)
		if block == nil || len(rest) > 0 {
			t.Fatalf("%s: not one PEM block: %s", path, got.body)
		}
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := request.PublicKey.(*ecdsa.PublicKey); ok != isECDSA {
			t.Errorf("%s is over a %T", path, request.PublicKey)
		}
	}
	leaf, above := pemOf(box.fake.authorities[0].Generations[0].Certificate), pemOf(box.fake.authorities[1].Generations[0].Certificate)
	box.upload("/tls/chain", nil, map[string][]byte{"leaf.pem": leaf}, admin).says(t, 422, "The chain ends below its root.", `id="chain-problem"`)
	got := box.upload("/tls/chain", nil, map[string][]byte{"leaf.pem": leaf, "root.pem": above}, admin)
	box.ordered(got, "/tls", "install tls", "New connections see the uploaded certificate.", admin).says(t, 200, "uploaded, not baked", `href="/tls?do=own"`)
	box.get("/tls?do=own", admin).says(t, 200, "<dialog open", `action="/tls/own"`)
	box.ordered(box.submit("/tls/own", nil, admin), "/tls", "drop tls", "own certificate again", admin).saysNot(t, "uploaded, not baked")
}
