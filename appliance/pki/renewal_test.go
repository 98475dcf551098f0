package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/needtest"
)

// issued is the certificate a request gets.
func issued(t testing.TB, issuer *Issuer, r *Request) *x509.Certificate {
	t.Helper()
	prepared, err := issuer.Prepare(newProfile(t, permissive()), r, now)
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der)
}

func TestRenewalIdentity(t *testing.T) {
	issuer, profile := newAuthority(t, newKey(t, "ecdsa-p256")), newProfile(t, permissive())
	key := newKey(t, "ecdsa-p256")
	subject := pkix.Name{CommonName: "device", Organization: []string{"Signet"}}
	template := x509.CertificateRequest{Subject: subject, DNSNames: []string{"a.example.com", "b.example.com"}, IPAddresses: []net.IP{{10, 0, 0, 1}}}
	old := issued(t, issuer, goRequest(t, key, template))
	nameless := issued(t, issuer, goRequest(t, key, x509.CertificateRequest{Subject: subject}))

	for _, c := range []struct {
		name string
		old  *x509.Certificate
		ask  x509.CertificateRequest
		want error
	}{
		{"the same", old, template, nil},
		{"names in another order, one twice", old, x509.CertificateRequest{Subject: subject,
			DNSNames: []string{"b.example.com", "a.example.com", "b.example.com"}, IPAddresses: template.IPAddresses}, nil},
		{"no names: inherited", old, x509.CertificateRequest{Subject: subject}, nil},
		{"no names, and none before", nameless, x509.CertificateRequest{Subject: subject}, nil},
		{"another subject", old, x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}, DNSNames: template.DNSNames, IPAddresses: template.IPAddresses}, ErrIdentity},
		{"another subject, inheriting", old, x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}, ErrIdentity},
		{"one name more", old, x509.CertificateRequest{Subject: subject,
			DNSNames: []string{"a.example.com", "b.example.com", "c.example.com"}, IPAddresses: template.IPAddresses}, ErrIdentity},
		{"one name less", old, x509.CertificateRequest{Subject: subject, DNSNames: template.DNSNames}, ErrIdentity},
		{"the name as another kind", old, x509.CertificateRequest{Subject: subject, DNSNames: template.DNSNames,
			IPAddresses: template.IPAddresses, EmailAddresses: []string{"a@example.com"}}, ErrIdentity},
		{"a first name", nameless, template, ErrIdentity},
	} {
		r, err := goRequest(t, newKey(t, "ecdsa-p256"), c.ask).Inherit(c.old)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		prepared, err := issuer.Prepare(profile, r, now)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := prepared.CheckIdentity(c.old); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
			continue
		}
		if c.want != nil {
			continue
		}
		der, err := issuer.Issue(prepared)
		if err != nil {
			t.Fatal(err)
		}
		if next := parse(t, der); !prepared.NotAfter().Equal(next.NotAfter) {
			t.Errorf("%s: says it ends %s, ends %s", c.name, prepared.NotAfter(), next.NotAfter)
		}
	}

	// What is inherited has to be allowed still.
	r, err := goRequest(t, key, x509.CertificateRequest{Subject: subject}).Inherit(old)
	if err != nil {
		t.Fatal(err)
	}
	strict := permissive()
	strict.SAN.DNS = []string{"*.other.example"}
	var refused *PolicyError
	if _, err := issuer.Prepare(newProfile(t, strict), r, now); !errors.As(err, &refused) {
		t.Errorf("an inherited name the profile does not allow: %v", err)
	}
}

// checkKept keeps a request and holds what comes back against it.
func checkKept(t testing.TB, r *Request) {
	t.Helper()
	der, err := r.Keep()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := ParseKept(der)
	if err != nil {
		t.Fatalf("reading back %x: %v", der, err)
	}
	same := func(what string, a, b any) {
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("%s (-asked +kept):\n%s", what, diff)
		}
	}
	same("subject", r.RawSubject, kept.RawSubject)
	same("key", r.RawSPKI, kept.RawSPKI)
	same("names", r.SAN, kept.SAN)
	same("names as DER", r.RawSAN, kept.RawSAN)
	same("SID", r.SID, kept.SID)
	same("subject of a renewed certificate", r.issued, kept.issued)
	if public, ok := r.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(kept.PublicKey) {
		t.Error("another key was kept")
	}
	if kept.Challenge != "" {
		t.Error("the challenge was kept")
	}
}

func TestKept(t *testing.T) {
	for name, der := range recorded(t) {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRequest(der)
			if err != nil {
				t.Fatal(err)
			}
			checkKept(t, r)
			if kept, err := r.Keep(); err != nil || r.Challenge == "" || bytes.Contains(kept, []byte(r.Challenge)) {
				t.Errorf("a challenge of %d bytes was kept: %v", len(r.Challenge), err)
			}
		})
	}
	t.Run("many extensions", func(t *testing.T) {
		big := pkix.Extension{Id: []int{1, 2, 3, 4}, Value: bytes.Repeat([]byte{1}, 200<<10)}
		r := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}, ExtraExtensions: []pkix.Extension{big}})
		checkKept(t, r)
		if kept, err := r.Keep(); err != nil || len(kept) > 1000 {
			t.Errorf("%d bytes are kept: %v", len(kept), err)
		}
	})
	t.Run("inherited names", func(t *testing.T) {
		issuer, key := newAuthority(t, newKey(t, "ecdsa-p256")), newKey(t, "ecdsa-p256")
		old := issued(t, issuer, goRequest(t, key, x509.CertificateRequest{DNSNames: []string{"a.example.com"}}))
		r, err := goRequest(t, key, x509.CertificateRequest{}).Inherit(old)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.SAN) != 1 {
			t.Errorf("inherited %v", r.SAN)
		}
		checkKept(t, r)
	})
	for _, der := range [][]byte{nil, {0x30, 0}, bytes.Repeat([]byte{0x30}, maxRequest+1)} {
		if _, err := ParseKept(der); !errors.Is(err, ErrRequest) {
			t.Errorf("%d bytes of garbage: %v", len(der), err)
		}
	}
}

func TestEndsWith(t *testing.T) {
	r := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "Pump.Approve.test", Organization: []string{"x.other.test"}}, DNSNames: []string{"plc.line.test."},
	})
	for suffix, want := range map[string]bool{
		".approve.test": true, ".APPROVE.TEST": true, "test": true, ".line.test": true, ".other.test": false, "approve": false,
	} {
		if got := r.EndsWith(suffix); got != want {
			t.Errorf("%s: %v", suffix, got)
		}
	}
}

// Whoever may not have a name without approval does not get one that directories take for the same.
func TestEndsWithWhatIsNotCompared(t *testing.T) {
	for _, cn := range []string{`pump.approve.test\ `, `pump.approve.test..`, `pump.approve.test.\ `} {
		r := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{RawSubject: mustDN(t, "CN="+cn)})
		if !r.EndsWith(".approve.test") {
			t.Errorf("%q does not end with the suffix", cn)
		}
	}
}

// A revocation list is read and believed by crypto/x509 and openssl.
func TestCRL(t *testing.T) {
	for _, algorithm := range []string{"rsa-2048", "ecdsa-p256", "ecdsa-p384"} {
		t.Run(algorithm, func(t *testing.T) {
			issuer := newAuthority(t, newKey(t, algorithm))
			crl := CRL{Number: 7, ThisUpdate: now, NextUpdate: now.Add(7 * 24 * time.Hour)}
			device := issued(t, issuer, goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{DNSNames: []string{"a.example.com"}}))
			serial := strings.ToLower(device.SerialNumber.Text(16))
			for _, reason := range Reasons() {
				crl.Revoked = append(crl.Revoked, RevokedSerial{Serial: "10" + strings.Repeat("ab", reason), At: now.Add(-time.Hour), Reason: reason})
			}
			crl.Revoked = append(crl.Revoked, RevokedSerial{Serial: serial, At: now, Reason: 1})
			der, err := issuer.SignCRL(crl)
			if err != nil {
				t.Fatal(err)
			}
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := list.CheckSignatureFrom(issuer.Certificate()); err != nil {
				t.Error(err)
			}
			if list.Number.Int64() != 7 || !list.ThisUpdate.Equal(now) || !list.NextUpdate.Equal(crl.NextUpdate) ||
				!bytes.Equal(list.AuthorityKeyId, issuer.Certificate().SubjectKeyId) || !bytes.Equal(list.RawIssuer, issuer.Certificate().RawSubject) {
				t.Errorf("list %d from %s to %s of %x", list.Number, list.ThisUpdate, list.NextUpdate, list.AuthorityKeyId)
			}
			reasons := map[string]int{}
			for _, entry := range list.RevokedCertificateEntries {
				reasons[entry.SerialNumber.Text(16)] = entry.ReasonCode
				if entry.ReasonCode == 0 && len(entry.Extensions) != 0 {
					t.Error("unspecified is written out")
				}
			}
			for _, r := range crl.Revoked {
				if got, ok := reasons[r.Serial]; !ok || got != r.Reason {
					t.Errorf("serial %s is listed %v with reason %d, want %d", r.Serial, ok, got, r.Reason)
				}
			}

			dir := t.TempDir()
			ca, leaf, crlFile := filepath.Join(dir, "ca"), filepath.Join(dir, "leaf"), filepath.Join(dir, "crl")
			writePEM(t, ca, issuer.Certificate().Raw)
			writePEM(t, leaf, device.Raw)
			openssl(t, "crl", "-inform", "DER", "-in", writeFile(t, crlFile+".der", der), "-out", crlFile)
			out, err := exec.Command(needtest.Program(t, "openssl", "openssl"), "verify", "-crl_check", "-CAfile", ca, "-CRLfile", crlFile,
				"-attime", "1782910800", leaf).CombinedOutput() // an hour after now
			if err == nil || !strings.Contains(string(out), "certificate revoked") {
				t.Errorf("openssl verify: %v\n%s", err, out)
			}
		})
	}
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	if _, err := issuer.SignCRL(CRL{Number: 1, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Revoked: []RevokedSerial{{Serial: "xyz"}}}); err == nil {
		t.Error("a serial that is none")
	}
	bad, err := NewIssuer(issuer.Certificate(), badSigner{issuer.signer, []byte("nonsense"), nil})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.SignCRL(CRL{Number: 1, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}); err == nil {
		t.Error("a wrong signature was handed out")
	}
}

func writeFile(t *testing.T, file string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
