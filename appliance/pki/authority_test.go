package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/needtest"
)

func pemFile(t testing.TB, dir, name, kind string, ders ...[]byte) string {
	t.Helper()
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestSubordinateByOpenSSL takes the whole way of a subordinate authority: openssl reads its request and
// signs it as an offline root, the chain passes, and openssl verifies a device's certificate up to that
// root.
func TestSubordinateByOpenSSL(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	subject, err := ParseDN("CN=Factory 7 CA,O=Müller AG,C=CH")
	if err != nil {
		t.Fatal(err)
	}
	none := 0
	for algorithm, pathLen := range map[string]*int{"rsa-2048": nil, "ecdsa-p384": &none} {
		dir := t.TempDir()
		file := func(name string) string { return filepath.Join(dir, name) }
		openssl(t, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file("root.key"), "-out", file("root.pem"), "-days", "4000",
			"-subj", "/CN=Offline root", "-addext", "basicConstraints=critical,CA:TRUE,pathlen:1", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
		key := newKey(t, algorithm)
		csr, err := NewAuthorityCSR(subject, key, pathLen)
		if err != nil {
			t.Fatal(err)
		}
		request := pemFile(t, dir, "ca.csr", "CERTIFICATE REQUEST", csr)
		text := openssl(t, "req", "-verify", "-noout", "-text", "-in", request)
		for _, want := range []string{"Certificate request self-signature verify OK", "CA:TRUE", "Certificate Sign, CRL Sign", "X509v3 Subject Key Identifier"} {
			if !strings.Contains(text, want) {
				t.Errorf("the request does not say %q:\n%s", want, text)
			}
		}
		if strings.Contains(text, "CA:TRUE, pathlen:0") != (pathLen != nil) || strings.Contains(text, "pathlen") != (pathLen != nil) {
			t.Errorf("path_len asked for:\n%s", text)
		}
		openssl(t, "x509", "-req", "-in", request, "-CA", file("root.pem"), "-CAkey", file("root.key"), "-days", "3000", "-sha256",
			"-copy_extensions", "copyall", "-outform", "DER", "-out", file("ca.der"))
		der, err := os.ReadFile(file("ca.der"))
		if err != nil {
			t.Fatal(err)
		}
		pemRoot, err := os.ReadFile(file("root.pem"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(pemRoot)
		ours, root := parse(t, der), parse(t, block.Bytes)
		clock := ours.NotBefore.Add(time.Minute)
		chain, err := OrderChain([]*x509.Certificate{root, ours}, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckChain(chain, key.Public(), subject, clock); err != nil {
			t.Fatal(err)
		}
		if err := CheckRoom(chain, 0); err != nil {
			t.Error(err)
		}
		if err := CheckRoom(chain, 1); !errors.Is(err, ErrChain) { // the root allows one, which is ours
			t.Errorf("room for one more: %v", err)
		}
		issuer, err := NewIssuer(ours, key)
		if err != nil {
			t.Fatal(err)
		}
		responder, err := issuer.IssueResponder(newKey(t, "ecdsa-p256").Public(), clock, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		out := openssl(t, "verify", "-x509_strict", "-attime", strconv.FormatInt(clock.Unix(), 10), "-CAfile", file("root.pem"),
			"-untrusted", pemFile(t, dir, "ca.pem", "CERTIFICATE", der), pemFile(t, dir, "responder.pem", "CERTIFICATE", responder))
		if !strings.HasSuffix(strings.TrimSpace(out), ": OK") {
			t.Errorf("openssl verify: %s", out)
		}
	}
}

// hierarchy is ours, an intermediate and a root, made from templates a test changes first.
type hierarchy struct {
	subject []byte
	keys    [3]crypto.Signer // ours, intermediate, root
	certs   [3]*x509.Certificate
}

func newHierarchy(t *testing.T, change func(templates *[3]*x509.Certificate, keys *[3]crypto.Signer)) hierarchy {
	t.Helper()
	var h hierarchy
	var templates [3]*x509.Certificate
	for i, name := range []string{"O=Signet,CN=Factory CA", "O=Signet,CN=Policy CA", "O=Signet,CN=Root"} {
		subject, err := ParseDN(name)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			h.subject = subject
		}
		h.keys[i] = newKey(t, "ecdsa-p256")
		templates[i] = &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), RawSubject: subject,
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Duration(i+1) * 1000 * time.Hour),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			SubjectKeyId: []byte{1, 2, 3, byte(i)},
		}
	}
	if change != nil {
		change(&templates, &h.keys)
	}
	for i := 2; i >= 0; i-- {
		parent, signer := templates[i], h.keys[i]
		if i < 2 {
			parent, signer = h.certs[i+1], h.keys[i+1]
		}
		der, err := x509.CreateCertificate(rand.Reader, templates[i], parent, h.keys[i].Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		h.certs[i] = parse(t, der)
	}
	return h
}

// nameConstraints is the extension with one directoryName subtree, permitted (tag 0) or excluded (1).
func nameConstraints(t *testing.T, tag uint8, name string) pkix.Extension {
	t.Helper()
	base, err := ParseDN(name)
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(class, tag int, content []byte) []byte {
		der, err := asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: content})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	subtree := wrap(asn1.ClassUniversal, asn1.TagSequence, wrap(asn1.ClassContextSpecific, 4, base))
	return pkix.Extension{Id: oidNameConstraints, Critical: true,
		Value: wrap(asn1.ClassUniversal, asn1.TagSequence, wrap(asn1.ClassContextSpecific, int(tag), subtree))}
}

// TestCheckChain changes one thing of a good chain at a time; each refusal names the certificate and what
// mends it.
func TestCheckChain(t *testing.T) {
	type templates = [3]*x509.Certificate
	type signers = [3]crypto.Signer
	extension := func(i int, tag uint8, name string) func(*templates, *signers) {
		return func(c *templates, _ *signers) { c[i].ExtraExtensions = []pkix.Extension{nameConstraints(t, tag, name)} }
	}
	for name, test := range map[string]struct {
		change func(*templates, *signers)
		broken func(*hierarchy)
		at     time.Duration // from now
		want   []string      // nil: it is good
	}{
		"good":               {},
		"path length fits":   {change: func(c *templates, _ *signers) { c[2].MaxPathLen, c[1].MaxPathLen = 2, 1 }},
		"permitted":          {change: extension(2, 0, "O=Signet,CN=Policy CA"), want: []string{`"O=Signet,CN=Root"`, `"O=Signet,CN=Factory CA"`, "name constraints", "give the authority a name"}},
		"permitted above":    {change: extension(1, 0, "O=SIGNET")},
		"excluded":           {change: extension(1, 1, "O=Signet,CN=factory  ca"), want: []string{`"O=Signet,CN=Policy CA"`, "name constraints"}},
		"excluded of RA":     {change: extension(0, 1, "O=Signet,CN=Factory CA RA"), want: []string{`"O=Signet,CN=Factory CA RA"`, "name constraints"}},
		"excluded of OCSP":   {change: extension(0, 1, "O=Signet,CN=Factory CA,CN=OCSP"), want: []string{"CN=OCSP", "name constraints"}},
		"path length":        {change: func(c *templates, _ *signers) { c[2].MaxPathLenZero = true }, want: []string{`"O=Signet,CN=Root"`, "pathLenConstraint", "would be 2"}},
		"path length of us":  {change: func(c *templates, _ *signers) { c[0].MaxPathLenZero = true }},
		"not a CA":           {change: func(c *templates, _ *signers) { c[0].IsCA = false }, want: []string{`"O=Signet,CN=Factory CA"`, "basicConstraints", "have it signed as a CA"}},
		"intermediate no CA": {change: func(c *templates, _ *signers) { c[1].IsCA = false }, want: []string{`"O=Signet,CN=Policy CA"`, "basicConstraints"}},
		"no keyCertSign":     {change: func(c *templates, _ *signers) { c[1].KeyUsage = x509.KeyUsageCRLSign }, want: []string{`"O=Signet,CN=Policy CA"`, "keyCertSign"}},
		"no cRLSign":         {change: func(c *templates, _ *signers) { c[0].KeyUsage = x509.KeyUsageCertSign }, want: []string{"cRLSign", "have the request signed with keyUsage"}},
		"usage of its own": {change: func(c *templates, _ *signers) {
			c[0].UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 20, 2, 2}}
		}, want: []string{"without extKeyUsage"}},
		"limited usage": {change: func(c *templates, _ *signers) { c[0].ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, want: []string{"without extKeyUsage"}},
		"critical extension": {change: func(c *templates, _ *signers) {
			c[1].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, want: []string{"critical extension 1.2.3"}},
		"other key":   {broken: func(h *hierarchy) { h.keys[0] = newKey(t, "ecdsa-p256") }, want: []string{"another key", "newest request"}},
		"other name":  {broken: func(h *hierarchy) { h.subject = h.certs[1].RawSubject }, want: []string{`"O=Signet,CN=Policy CA"`, "without changing the name"}},
		"weak key":    {change: func(_ *templates, k *signers) { k[2] = smallKey(t) }, want: []string{`"O=Signet,CN=Root"`, "1024 bits"}},
		"weak curve":  {change: func(_ *templates, k *signers) { k[1] = curveKey(t, elliptic.P224()) }, want: []string{"P-224"}},
		"early":       {at: -2 * time.Hour, want: []string{"2026-07-01T10:00:00Z", "2026-07-01T11:00:00Z", "set the clock"}},
		"late":        {at: 1001 * time.Hour, want: []string{`"O=Signet,CN=Factory CA"`, "has ended", "renew it"}},
		"outlives":    {change: func(c *templates, _ *signers) { c[0].NotAfter = now.Add(2500 * time.Hour) }, want: []string{`"O=Signet,CN=Policy CA"`, "shorter time"}},
		"no root":     {broken: func(h *hierarchy) { h.certs[2] = nil }, want: []string{`"O=Signet,CN=Policy CA"`, "not a root", `"O=Signet,CN=Root"`, "up to the root"}},
		"order":       {broken: func(h *hierarchy) { h.certs[1], h.certs[2] = h.certs[2], h.certs[1] }, want: []string{`"O=Signet,CN=Factory CA"`, "put the certificate that signed it next"}},
		"other root":  {broken: func(h *hierarchy) { h.certs[2] = newHierarchy(t, nil).certs[2] }, want: []string{`"O=Signet,CN=Policy CA"`, "signature that is not by"}},
		"empty":       {broken: func(h *hierarchy) { h.certs = templates{} }, want: []string{"0 certificates"}},
		"no key id":   {broken: func(h *hierarchy) { h.certs[0].SubjectKeyId = nil }, want: []string{"subjectKeyIdentifier"}},
		"SHA-1":       {broken: func(h *hierarchy) { h.certs[1].SignatureAlgorithm = x509.ECDSAWithSHA1 }, want: []string{`"O=Signet,CN=Policy CA"`, "ECDSA-SHA1", "SHA-256"}},
		"MD5 of root": {broken: func(h *hierarchy) { h.certs[2].SignatureAlgorithm = x509.MD5WithRSA }, want: []string{`"O=Signet,CN=Root"`, "MD5-RSA"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHierarchy(t, test.change)
			if test.broken != nil {
				test.broken(&h)
			}
			chain := slices.DeleteFunc(slices.Clone(h.certs[:]), func(c *x509.Certificate) bool { return c == nil })
			err := CheckChain(chain, h.keys[0].Public(), h.subject, now.Add(test.at))
			if test.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrChain) {
				t.Fatalf("accepted, %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %q", want, err)
				}
			}
		})
	}
}

func smallKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestChainSHA1ByOpenSSL: openssl still signs with SHA-1 where it is told to, and it is refused.
func TestChainSHA1ByOpenSSL(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	subject, err := ParseDN("CN=Factory CA")
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t, "ecdsa-p256")
	csr, err := NewAuthorityCSR(subject, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root.der")
	openssl(t, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", filepath.Join(dir, "root.key"), "-outform", "DER", "-out", root, "-subj", "/CN=Old root", "-days", "400")
	openssl(t, "x509", "-req", "-in", pemFile(t, dir, "ca.csr", "CERTIFICATE REQUEST", csr), "-CA", root, "-CAkey", filepath.Join(dir, "root.key"),
		"-sha1", "-days", "300", "-copy_extensions", "copyall", "-outform", "DER", "-out", filepath.Join(dir, "ca.der"))
	var chain []*x509.Certificate
	for _, name := range []string{"ca.der", "root.der"} {
		der, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, parse(t, der))
	}
	err = CheckChain(chain, key.Public(), subject, chain[0].NotBefore.Add(time.Minute))
	if !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "SHA1-RSA") {
		t.Errorf("a SHA-1 signature: %v", err)
	}
}

// TestOrderChain pastes the certificates in every order, with copies, too few and too many.
func TestOrderChain(t *testing.T) {
	h := newHierarchy(t, nil)
	other := newHierarchy(t, nil)
	a, b, c := h.certs[0], h.certs[1], h.certs[2]
	for _, pasted := range [][]*x509.Certificate{{a, b, c}, {a, c, b}, {b, a, c}, {b, c, a}, {c, a, b}, {c, b, a}, {c, b, a, b, a}} {
		chain, err := OrderChain(pasted, h.keys[0].Public())
		if err != nil || !slices.Equal(chain, h.certs[:]) && !(len(chain) == 3 && chain[0].Equal(a) && chain[1].Equal(b) && chain[2].Equal(c)) {
			t.Errorf("%v, %v", chain, err)
		}
	}
	renewed, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(77), RawSubject: a.RawSubject, NotBefore: now, NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
	}, b, a.PublicKey, h.keys[1])
	if err != nil {
		t.Fatal(err)
	}
	stranger := issueDevice(t, newAuthority(t, newKey(t, "ecdsa-p256")), "stranger")
	for _, test := range []struct {
		pasted []*x509.Certificate
		want   string
	}{
		{nil, "own key"},
		{[]*x509.Certificate{b, c}, "own key"},
		{[]*x509.Certificate{a, c}, `"O=Signet,CN=Policy CA"`},
		{[]*x509.Certificate{a, b}, `"O=Signet,CN=Root"`},
		{[]*x509.Certificate{a, b, c, stranger}, `"CN=stranger" does not belong`},
		{[]*x509.Certificate{a, b, c, parse(t, renewed)}, "there 2 times"},
		{[]*x509.Certificate{a, b, c, other.certs[1]}, "there 2 times"},
		{[]*x509.Certificate{a, b, c, other.certs[0], other.certs[1], other.certs[2], stranger, parse(t, renewed), newHierarchy(t, nil).certs[0]}, "9 certificates"},
	} {
		if _, err := OrderChain(test.pasted, h.keys[0].Public()); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d certificates: %v, want %s", len(test.pasted), err, test.want)
		}
	}
}

// TestLinks rolls a root over: who trusts the old one verifies a certificate of the new through
// NewWithOld, and the reverse through OldWithNew, as openssl sees it.
func TestLinks(t *testing.T) {
	needtest.Program(t, "openssl", "openssl")
	dir := t.TempDir()
	subject, err := ParseDN("CN=Test CA,O=Signet")
	if err != nil {
		t.Fatal(err)
	}
	next := newKey(t, "rsa-2048")
	none := 0 // authorities below it; a link is the same authority (RFC 5280 §4.2.1.9) and does not count
	der, err := NewRoot(subject, next, now.Add(-time.Minute), 7300*24*time.Hour, &none)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := NewIssuer(parse(t, der), next)
	if err != nil {
		t.Fatal(err)
	}
	if text := openssl(t, "x509", "-noout", "-text", "-in", pemFile(t, dir, "new.pem", "CERTIFICATE", der)); !strings.Contains(text, "CA:TRUE, pathlen:0") {
		t.Errorf("the root is not limited:\n%s", text)
	}
	older := newAuthority(t, newKey(t, "ecdsa-p384"))
	issuers := map[string]*Issuer{"old": older, "new": newer}
	for trusted, other := range map[string]string{"old": "new", "new": "old"} {
		link, err := issuers[trusted].IssueLink(issuers[other].Certificate(), now)
		if err != nil {
			t.Fatal(err)
		}
		cert := parse(t, link)
		linked := issuers[other].Certificate()
		if !cert.NotAfter.Equal(older.Certificate().NotAfter) || !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(linked.PublicKey) ||
			string(cert.RawSubject) != string(linked.RawSubject) || string(cert.SubjectKeyId) != string(linked.SubjectKeyId) ||
			string(cert.AuthorityKeyId) != string(issuers[trusted].Certificate().SubjectKeyId) {
			t.Errorf("%s signed by %s: subject %s, to %s, key %x by %x", other, trusted, cert.Subject, cert.NotAfter, cert.SubjectKeyId, cert.AuthorityKeyId)
		}
		out := openssl(t, "verify", "-x509_strict", "-attime", strconv.FormatInt(now.Unix(), 10),
			"-CAfile", pemFile(t, dir, trusted+".pem", "CERTIFICATE", issuers[trusted].Certificate().Raw),
			"-untrusted", pemFile(t, dir, "link.pem", "CERTIFICATE", link),
			pemFile(t, dir, "leaf.pem", "CERTIFICATE", issueDevice(t, issuers[other], "printer").Raw))
		if !strings.HasSuffix(strings.TrimSpace(out), ": OK") {
			t.Errorf("openssl verify from %s: %s", trusted, out)
		}
	}
	if _, err := newer.IssueLink(older.Certificate(), older.Certificate().NotAfter); !errors.Is(err, ErrIssuerExpired) {
		t.Errorf("a link to an authority that has ended: %v", err)
	}
	if _, err := newer.IssueLink(issueDevice(t, older, "printer"), now); err == nil {
		t.Error("a device's certificate is linked")
	}
}

// TestCheckRoom: every certificate of a chain has to allow what is to come below the first.
func TestCheckRoom(t *testing.T) {
	for name, tt := range map[string]struct {
		lengths [3]int // of ours, the one above it and the root; -1: none said
		room    int
		refused string // whose certificate; "": none
	}{
		"nobody limits":      {[3]int{-1, -1, -1}, 5, ""},
		"just enough":        {[3]int{1, 2, 3}, 1, ""},
		"ours allows none":   {[3]int{0, -1, -1}, 1, `"O=Signet,CN=Factory CA" allows 0 authorities below it (pathLenConstraint), and path_len in the site asks for 1`},
		"above allows one":   {[3]int{-1, 1, -1}, 1, `"O=Signet,CN=Policy CA" allows 1 authorities below it (pathLenConstraint) and there would be 2`},
		"root allows three":  {[3]int{2, -1, 3}, 2, `"O=Signet,CN=Root" allows 3`},
		"nothing asked for":  {[3]int{0, 1, 2}, 0, ""},
		"more than asked by": {[3]int{4, 5, -1}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHierarchy(t, func(templates *[3]*x509.Certificate, _ *[3]crypto.Signer) {
				for i, n := range tt.lengths {
					templates[i].MaxPathLen, templates[i].MaxPathLenZero = n, n == 0
				}
			})
			err := CheckRoom(h.certs[:], tt.room)
			if (err == nil) != (tt.refused == "") || err != nil && (!errors.Is(err, ErrChain) || !strings.Contains(err.Error(), tt.refused)) {
				t.Errorf("%v, want %q", err, tt.refused)
			}
		})
	}
}

func curveKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
