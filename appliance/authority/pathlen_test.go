package authority_test

import (
	"crypto/x509"
	"strings"
	"testing"

	"signet.internal/appliance/pki"
	"signet.internal/provision"
)

// limits opens a box whose authorities have these path_len.
func limits(t *testing.T, devices, branch int) *box {
	b := newBox(t)
	b.close()
	site := *b.site
	site.Authorities = append([]provision.Authority(nil), site.Authorities...)
	site.Authorities[0].PathLen, site.Authorities[1].PathLen = &devices, &branch
	b.site = &site
	must(t, b.open(false))
	return b
}

// TestPathLenOfRoot: path_len is in the certificate a root makes from then on, and in no other.
func TestPathLenOfRoot(t *testing.T) {
	b := limits(t, 0, 0)
	if c := b.Snapshot("devices").Active.Issuer.Certificate(); c.MaxPathLen != -1 {
		t.Fatalf("the certificate made before it was written: %d", c.MaxPathLen)
	}
	must(t, b.PrepareNext("devices", admin))
	next := b.Snapshot("devices").Next
	if c := next.Issuer.Certificate(); c.MaxPathLen != 0 || !c.MaxPathLenZero || next.NewWithOld.MaxPathLen != 0 || next.OldWithNew.MaxPathLen != -1 {
		t.Errorf("path lengths %d, %d by the old, %d the old", c.MaxPathLen, next.NewWithOld.MaxPathLen, next.OldWithNew.MaxPathLen)
	}
	must(t, b.ActivateNext("devices", admin))
	b.reopen()
	b.check()
}

// TestPathLenOfSubordinate: the request asks for path_len, and a chain that allows less changes nothing.
func TestPathLenOfSubordinate(t *testing.T) {
	b := limits(t, 0, 1)
	request, err := b.CSR("branch")
	must(t, err)
	csr, err := x509.ParseCertificateRequest(request.DER)
	must(t, err)
	asked := false
	for _, e := range csr.Extensions {
		asked = asked || e.Id.String() == "2.5.29.19" && string(e.Value) == "\x30\x06\x01\x01\xff\x02\x01\x01"
	}
	if !asked {
		t.Errorf("the request does not ask for a pathLenConstraint of 1: %v", csr.Extensions)
	}
	before := b.summary()
	err = b.InstallChain("branch", newOffline(t).sign(request.PEM, b.now, 1000*day), admin) // allows none below it
	if wantIs(t, "a chain with less room", err, pki.ErrChain); !strings.Contains(err.Error(), "path_len in the site asks for 1") {
		t.Errorf("it says %v", err)
	}
	if b.summary() != before {
		t.Error("a refused chain changed something")
	}
	chain := newOffline(t).signAs(request.PEM, &x509.Certificate{
		NotBefore: b.now, NotAfter: b.now.Add(1000 * day), BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	must(t, b.InstallChain("branch", chain, admin))
	if b.Snapshot("branch").Active == nil {
		t.Error("the chain with room is not active")
	}
}
