package authority_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/pki"
)

// What the root above a subordinate does not allow is not issued, in this process and after a restart.
func TestNameConstraintsOfTheChain(t *testing.T) {
	b := newBox(t)
	request, err := b.CSR("branch")
	must(t, err)
	must(t, b.InstallChain("branch", newOfflineFor(t, "plant.example.com").sign(request.PEM, b.now, 1000*day), admin))
	profile, err := pki.NewProfile(pki.ProfileConfig{
		Keys: pki.KeyConfig{ECDSA: []string{"p256"}}, SAN: pki.SANConfig{DNS: []string{"*"}}, Subject: pki.SubjectConfig{Allow: []string{"CN"}},
		Usage: pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}}, Validity: day,
	})
	must(t, err)
	for range 2 {
		for name, allowed := range map[string]bool{"a.plant.example.com": true, "bank.com": false} {
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "pump"}, DNSNames: []string{name}}, newKey(t))
			must(t, err)
			csr, err := pki.ParseRequest(der)
			must(t, err)
			refused := new(pki.PolicyError)
			if _, err := b.Snapshot("branch").Active.Issuer.Prepare(profile, csr, b.now); (err == nil) != allowed || err != nil && !errors.As(err, &refused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		b.reopen()
	}
}

// A key so large that checking one signature would hold up every order is refused unread.
func TestChainOfHugeKeys(t *testing.T) {
	b := newBox(t)
	request, err := b.CSR("branch")
	must(t, err)
	modulus := new(big.Int).Lsh(big.NewInt(1), 8*20000)
	modulus.Sub(modulus, big.NewInt(1))
	above := newOffline(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: above.root.Subject, NotBefore: epoch, NotAfter: epoch.Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	huge, err := x509.CreateCertificate(rand.Reader, template, above.root, &rsa.PublicKey{N: modulus, E: 1<<31 - 1}, above.key)
	must(t, err)
	own := above.sign(request.PEM, b.now, 1000*day)[len(toPEM(above.root.Raw)):]
	chain := append(slices.Clone(own), toPEM(huge)...)
	for what, err := range map[string]error{"chain": b.InstallChain("branch", chain, admin), "TLS chain": b.InstallTLS(chain, admin)} {
		wantIs(t, what, err, pki.ErrChain)
		if err != nil && !strings.Contains(err.Error(), "RSA key of 160000 bits") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
