package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/needtest"
)

// rawRequest builds a request around hand-written attributes; crypto/x509 cannot write any but
// extension requests.
func rawRequest(t testing.TB, key crypto.Signer, subject, attributes []byte) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(attributes) })
	})
	info, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(info)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	algorithm, err := signingFor(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := algorithm.assemble(info, signature) // a request has the outer form of a certificate
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func attributeDER(t testing.TB, oid asn1.ObjectIdentifier, values ...[]byte) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			for _, v := range values {
				b.AddBytes(v)
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func stringDER(t testing.TB, tag cbasn1.Tag, value string) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes([]byte(value)) })
	der, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// sanExtension is an Extension: subjectAltName with the dNSName a.b.c.
const sanExtension = "\x30\x10\x06\x03\x55\x1d\x11\x04\x09\x30\x07\x82\x05a.b.c"

func mustDN(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := ParseDN(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestChallengePassword(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	subject := mustDN(t, "CN=dev")
	long := strings.Repeat("long", 2000)
	tests := []struct {
		name string
		tag  cbasn1.Tag
		raw  string
		want string
		bad  bool
	}{
		{"PrintableString", cbasn1.PrintableString, "secret", "secret", false},
		{"PrintableString that is none", cbasn1.PrintableString, "s*e_c@ret!", "s*e_c@ret!", false},
		{"UTF8String", cbasn1.UTF8String, "Zürich", "Zürich", false},
		{"UTF8String that is none", cbasn1.UTF8String, "\xff", "", true},
		{"IA5String", cbasn1.IA5String, "a@b", "a@b", false},
		{"IA5String beyond ASCII", cbasn1.IA5String, "\xfc", "", true},
		{"T61String", cbasn1.T61String, "Z\xfcrich", "Zürich", false},
		{"BMPString", tagBMPString, "\x00Z\x00\xfc\x20\xac", "Zü€", false},
		{"BMPString of odd length", tagBMPString, "\x00Z\x00", "", true},
		{"longer than 255", cbasn1.UTF8String, long, long, false},
		{"longer than anything", cbasn1.UTF8String, strings.Repeat("x", maxChallenge+1), "", true},
		{"empty", cbasn1.UTF8String, "", "", false},
		{"OCTET STRING", cbasn1.OCTET_STRING, "secret", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			attributes := attributeDER(t, oidChallengePassword, stringDER(t, tt.tag, tt.raw))
			request, err := ParseRequest(rawRequest(t, key, subject, attributes))
			if tt.bad {
				if !errors.Is(err, ErrRequest) {
					t.Fatalf("error %v", err)
				}
				if len(tt.raw) > 2 && strings.Contains(err.Error(), tt.raw) {
					t.Error("the error holds the challenge")
				}
				return
			}
			if err != nil || request.Challenge != tt.want {
				t.Errorf("error %v, challenge of %d bytes, want %d", err, len(request.Challenge), len(tt.want))
			}
		})
	}
}

func TestMicrosoftExtensions(t *testing.T) {
	list := stringDER(t, cbasn1.SEQUENCE, sanExtension)
	for _, oid := range []asn1.ObjectIdentifier{oidExtensionRequest, oidMSExtensions} {
		request, err := ParseRequest(rawRequest(t, newKey(t, "ecdsa-p256"), mustDN(t, "CN=dev"), attributeDER(t, oid, list)))
		if err != nil {
			t.Fatalf("%s: %v", oid, err)
		}
		if len(request.SAN) != 1 || request.SAN[0] != (Name{DNS, "a.b.c"}) {
			t.Errorf("%s: names %v", oid, request.SAN)
		}
	}
}

func TestParseRequestRefuses(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	subject := mustDN(t, "CN=dev")
	challenge := attributeDER(t, oidChallengePassword, stringDER(t, cbasn1.UTF8String, "a"))
	extensions := func(content string) []byte { return stringDER(t, cbasn1.SEQUENCE, content) }
	good := rawRequest(t, key, subject, challenge)
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)-1] ^= 1
	join := func(parts ...[]byte) []byte {
		var all []byte
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	tests := []struct {
		name string
		der  []byte
		want error
	}{
		{"empty", nil, ErrRequest},
		{"nonsense", []byte("-----BEGIN CERTIFICATE REQUEST-----"), ErrRequest},
		{"truncated", good[:len(good)-1], ErrRequest},
		{"trailing byte", append(good[:len(good):len(good)], 0), ErrRequest},
		{"too large", make([]byte, maxRequest+1), ErrRequest},
		{"signature changed", flipped, ErrRequestSignature},
		{"challenge twice", rawRequest(t, key, subject, join(challenge, challenge)), ErrRequest},
		{"two challenges in one", rawRequest(t, key, subject, attributeDER(t, oidChallengePassword,
			stringDER(t, cbasn1.UTF8String, "a"), stringDER(t, cbasn1.UTF8String, "b"))), ErrRequest},
		{"extension twice", rawRequest(t, key, subject, attributeDER(t, oidExtensionRequest, extensions(sanExtension+sanExtension))), ErrRequest},
		{"extension in both attributes", rawRequest(t, key, subject, join(
			attributeDER(t, oidExtensionRequest, extensions(sanExtension)), attributeDER(t, oidMSExtensions, extensions(sanExtension)))), ErrRequest},
		{"two lists of extensions", rawRequest(t, key, subject, attributeDER(t, oidExtensionRequest, extensions(""), extensions(sanExtension))), ErrRequest},
		{"address of three bytes", rawRequest(t, key, subject, attributeDER(t, oidExtensionRequest,
			extensions("\x30\x0e\x06\x03\x55\x1d\x11\x04\x07\x30\x05\x87\x03abc"))), ErrRequest},
		{"control character in a name", rawRequest(t, key, subject, attributeDER(t, oidExtensionRequest,
			extensions("\x30\x10\x06\x03\x55\x1d\x11\x04\x09\x30\x07\x82\x05a\x00b.c"))), ErrRequest},
		{"subject that is none", rawRequest(t, key, []byte("\x30\x03abc"), nil), ErrRequest},
	}
	if _, err := ParseRequest(good); err != nil {
		t.Fatalf("the request the others are made from: %v", err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r, err := ParseRequest(tt.der); !errors.Is(err, tt.want) || r != nil {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

// TestRequestDigests has openssl sign with every digest clients use.
func TestRequestDigests(t *testing.T) {
	config := fmt.Sprintf(deviceConfig, "utf8only", "sesame")
	for _, digest := range []string{"-sha1", "-sha256", "-sha384", "-sha512"} {
		if _, err := ParseRequest(opensslRequest(t, config, digest)); err != nil {
			t.Errorf("%s: %v", digest, err)
		}
	}
	if _, err := ParseRequest(opensslRequest(t, config, "-md5")); !errors.Is(err, ErrRequestSignature) || !strings.Contains(err.Error(), "MD5") {
		t.Errorf("-md5: %v", err)
	}
	pss := []string{"-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"}
	if _, err := ParseRequest(opensslRequest(t, config, pss...)); err != nil {
		t.Errorf("RSA-PSS: %v", err)
	}
	for _, other := range [][]string{{"-sigopt", "rsa_mgf1_md:sha512"}, {"-sigopt", "rsa_pss_saltlen:20"}} {
		if _, err := ParseRequest(opensslRequest(t, config, append(slices.Clone(pss), other...)...)); !errors.Is(err, ErrRequestSignature) {
			t.Errorf("RSA-PSS with %s: %v", other[1], err)
		}
	}
	if _, err := ParseRequest(opensslRequest(t, config, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha384")); err != nil {
		t.Errorf("ECDSA: %v", err)
	}
}

// TestStringMasks has openssl encode subject and challenge in the string types it can choose.
func TestStringMasks(t *testing.T) {
	for _, mask := range []string{"default", "pkix", "utf8only", "nombstr", "MASK:0x0800"} {
		request, err := ParseRequest(opensslRequest(t, fmt.Sprintf(deviceConfig, mask, "Pa_ss*Wort 1")))
		if err != nil {
			t.Errorf("%s: %v", mask, err)
			continue
		}
		if request.Challenge != "Pa_ss*Wort 1" || request.Identity() != "printer-7.example.com" {
			t.Errorf("%s: identity %q", mask, request.Identity())
		}
	}
}

// TestCiscoSubject keeps a subject without CN, with its order, as IOS sends it.
func TestCiscoSubject(t *testing.T) {
	subject := mustDN(t, "serialNumber=FTX1+unstructuredName=router.example.com")
	request, err := ParseRequest(rawRequest(t, newKey(t, "rsa-2048"), subject, nil))
	if err != nil {
		t.Fatal(err)
	}
	if request.Identity() != "FTX1" {
		t.Errorf("identity %q", request.Identity())
	}
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	prepared, err := issuer.Prepare(newProfile(t, permissive()), request, now)
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	if string(parse(t, der).RawSubject) != string(subject) {
		t.Error("subject changed")
	}
}

func TestIdentity(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	tests := []struct {
		request x509.CertificateRequest
		want    string
	}{
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev", SerialNumber: "7"}}, "dev"},
		{x509.CertificateRequest{Subject: pkix.Name{SerialNumber: "7"}, DNSNames: []string{"a.b"}}, "7"},
		{x509.CertificateRequest{DNSNames: []string{"a.b"}}, "a.b"},
		{x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"O"}, Country: []string{"CH"}}}, "C=CH,O=O"},
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: "a\x1b[2Jb\n"}}, "a\uFFFD[2Jb\uFFFD"},
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("ü", 300)}}, strings.Repeat("ü", 200)},
	}
	for _, tt := range tests {
		if got := goRequest(t, key, tt.request).Identity(); got != tt.want {
			t.Errorf("identity %q, want %q", got, tt.want)
		}
	}
}

func TestOtherNames(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	twice := mustDN(t, "CN=first,CN=last")
	for _, tt := range []struct {
		request x509.CertificateRequest
		want    string
	}{
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}}, ""},
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.b"}, DNSNames: []string{"a.b"}}, ""},
		{x509.CertificateRequest{DNSNames: []string{"a.b"}}, ""},
		{x509.CertificateRequest{Subject: pkix.Name{CommonName: "dev"}, DNSNames: []string{"admin.b"}}, "1 more name: dns:admin.b"},
		{x509.CertificateRequest{RawSubject: twice, DNSNames: []string{"last", "c.d"}}, "2 more names: CN=first, dns:c.d"},
	} {
		if got := goRequest(t, key, tt.request).OtherNames(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	request := goRequest(t, key, x509.CertificateRequest{
		RawSubject: mustDN(t, "CN=first,O=none,CN=last"), DNSNames: []string{"a.b"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
	})
	want := []Name{{CN, "first"}, {CN, "last"}, {DNS, "a.b"}, {IP, "10.0.0.1"}}
	if diff := cmp.Diff(want, request.Names()); diff != "" {
		t.Error(diff)
	}
	if names := goRequest(t, key, x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"none"}}}).Names(); len(names) != 0 {
		t.Errorf("names %v", names)
	}
}

func TestIsNamed(t *testing.T) {
	request := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{
		RawSubject: mustDN(t, `CN=Box.example.com,CN=10.0.0.1,O=other.example.com,CN=\ spaced.example.com.\ `), DNSNames: []string{"www.example.com"},
		IPAddresses: []net.IP{net.ParseIP("2001:db8::1")}, EmailAddresses: []string{"me@mail.example.com"},
	})
	for host, want := range map[string]bool{
		"box.example.com": true, "spaced.example.com": true, "WWW.example.com": true, "10.0.0.1": true, "::ffff:10.0.0.1": true, "2001:db8:0::1": true,
		"other.example.com": false, "example.com": false, "mail.example.com": false, "10.0.0.2": false,
	} {
		if got := request.IsNamed(host); got != want {
			t.Errorf("%s: %t", host, got)
		}
	}
}

// TestKeyHasOneEncoding: crypto/x509 reads a public key with more behind its fields as the same key.
func TestKeyHasOneEncoding(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseKey(spki); err != nil {
		t.Fatal(err)
	}
	longer := append(slices.Clone(spki), 0x05, 0x00)
	longer[1] += 2
	if _, err := x509.ParsePKIXPublicKey(longer); err != nil {
		t.Skipf("crypto/x509 refuses it too: %v", err)
	}
	if _, err := parseKey(longer); err == nil {
		t.Error("a second encoding of the same key is accepted")
	}
}

func TestKeySizes(t *testing.T) {
	for bits, read := range map[uint]bool{minRSABits - 1: false, minRSABits: true, maxRSABits: true, maxRSABits + 1: false} {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseKey(spki); (err == nil) != read {
			t.Errorf("%d bits: %v", bits, err)
		}
	}
}

// RawUnbound has everything that a device asks for, and not what binds its request to a connection.
func TestUnbound(t *testing.T) {
	key := newKey(t, "ecdsa-p256")
	unbound := func(challenge, san string) string {
		attributes := append(attributeDER(t, oidChallengePassword, stringDER(t, cbasn1.UTF8String, challenge)), attributeDER(t, oidExtensionRequest, stringDER(t, cbasn1.SEQUENCE, san))...)
		request, err := ParseRequest(rawRequest(t, key, mustDN(t, "CN=dev"), attributes))
		if err != nil {
			t.Fatal(err)
		}
		return string(request.RawUnbound)
	}
	if unbound("a", sanExtension) != unbound("b", sanExtension) {
		t.Error("another challengePassword makes another request")
	}
	if unbound("a", sanExtension) == unbound("a", "") {
		t.Error("other names make no other request")
	}
}

// A request is one for an authority where it says so, and where nobody can tell.
func TestAsksForCA(t *testing.T) {
	for value, asks := range map[string]bool{
		"\x30\x00": false, "\x30\x03\x02\x01\x00": false, "\x30\x03\x01\x01\x00": false,
		"\x30\x03\x01\x01\xff": true, "\x30\x03\x01\x01\x01": true, "\x30\x00\x00": true, "": true, "\x04\x00": true,
	} {
		r := Request{Extensions: []pkix.Extension{{Id: oidBasicConstraints, Value: []byte(value)}}}
		if got := r.asksForCA(); got != asks {
			t.Errorf("basicConstraints %x: %t", value, got)
		}
	}
}

// TestStrongSwanRequest reads a request of the client the box is shown with.
func TestStrongSwanRequest(t *testing.T) {
	pki := needtest.Program(t, "pki", "strongswan-pki")
	run := func(args ...string) []byte {
		out, err := exec.Command(pki, args...).Output()
		if err != nil {
			t.Fatalf("pki %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	key := filepath.Join(t.TempDir(), "key.der")
	if err := os.WriteFile(key, run("--gen", "--type", "rsa", "--size", "2048"), 0o600); err != nil {
		t.Fatal(err)
	}
	request, err := ParseRequest(run("--req", "--in", key, "--type", "rsa", "--dn", "C=CH, O=Signet, CN=swan.example.com",
		"--san", "swan.example.com", "--san", "192.0.2.9", "--password", "sesame"))
	if err != nil {
		t.Fatal(err)
	}
	if request.Challenge != "sesame" || FormatDN(request.RawSubject) != "C=CH,O=Signet,CN=swan.example.com" ||
		fmt.Sprint(request.SAN) != "[{dns swan.example.com} {ip 192.0.2.9}]" {
		t.Errorf("subject %s, names %v", FormatDN(request.RawSubject), request.SAN)
	}
}

// recorded returns the requests real clients made, kept in testdata by client and version. All carry
// the challenge "secret".
func recorded(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.pem")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded request: %v", err)
	}
	requests := map[string][]byte{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(content)
		if block == nil {
			t.Fatalf("%s is not PEM", file)
		}
		requests[strings.TrimSuffix(filepath.Base(file), ".pem")] = block.Bytes
	}
	return requests
}

func TestRecordedRequests(t *testing.T) {
	want := map[string]string{
		"openssl-3.0":      "CN=upn.example.com [{upn u@corp.example.com} {email u@example.com} {uri urn:x}]",
		"scepclient-2.1.0": "C=US,O=scep-client,OU=MDM,CN=dev.example.com []",
		"strongswan-5.9.8": "C=CH,O=Signet,CN=swan.example.com [{dns swan.example.com} {ip 192.0.2.9}]",
	}
	issuer, profile := newAuthority(t, newKey(t, "ecdsa-p256")), newProfile(t, permissive())
	got := map[string]string{}
	for client, der := range recorded(t) {
		request, err := ParseRequest(der)
		if err != nil {
			t.Errorf("%s: %v", client, err)
			continue
		}
		got[client] = fmt.Sprintf("%s %v", FormatDN(request.RawSubject), request.SAN)
		if request.Challenge != "secret" {
			t.Errorf("%s: challenge not read", client)
		}
		prepared, err := issuer.Prepare(profile, request, now)
		if err != nil {
			t.Errorf("%s: %v", client, err)
			continue
		}
		if _, err := issuer.Issue(prepared); err != nil {
			t.Errorf("%s: %v", client, err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzParseRequest makes sure that no request panics, and that one which is accepted can be named,
// held against a profile and, if allowed, prepared.
func FuzzParseRequest(f *testing.F) {
	key := newKey(f, "ecdsa-p256")
	f.Add(rawRequest(f, key, mustDN(f, "CN=dev"), attributeDER(f, oidChallengePassword, stringDER(f, cbasn1.UTF8String, "a"))))
	f.Add(rawRequest(f, key, mustDN(f, "C=CH,O=B+OU=C"), attributeDER(f, oidMSExtensions,
		stringDER(f, cbasn1.SEQUENCE, sanExtension))))
	for _, der := range recorded(f) {
		f.Add(der)
	}
	issuer, profile := newAuthority(f, key), newProfile(f, permissive())
	f.Fuzz(func(t *testing.T, der []byte) {
		request, err := ParseRequest(der)
		if err != nil {
			if !errors.Is(err, ErrRequest) && !errors.Is(err, ErrRequestSignature) {
				t.Errorf("error %v is of neither kind", err)
			}
			return
		}
		request.Identity()
		if _, err := issuer.Prepare(profile, request, now); err != nil {
			var refused *PolicyError
			if !errors.As(err, &refused) {
				t.Errorf("error %v is no refusal", err)
			}
		}
	})
}

// FuzzParseInfo fuzzes below the signature, which the fuzzer cannot forge.
func FuzzParseInfo(f *testing.F) {
	key := newKey(f, "ecdsa-p256")
	strict := permissive()
	strict.ADSID, strict.MustStaple = true, true
	strict.Subject.Template = "CN={CN},O=Factory 7+OU={OU}"
	strict.Subject.Match = map[string][]string{"CN": {"regex:[a-z]+", "x*"}}
	issuer := newAuthority(f, key).Publishing(Locations{CRL: "http://box.example.com/pki/a.crl", OCSP: "http://box.example.com/ocsp/a"})
	profiles := []*Profile{newProfile(f, permissive()), newProfile(f, strict)}
	seeds := append(slices.Collect(maps.Values(recorded(f))),
		rawRequest(f, key, mustDN(f, "CN=dev"), attributeDER(f, oidChallengePassword, stringDER(f, cbasn1.UTF8String, "a"))),
		rawRequest(f, key, mustDN(f, "C=CH,O=B+OU=C"), attributeDER(f, oidMSExtensions,
			stringDER(f, cbasn1.SEQUENCE, sanExtension))),
		rawRequest(f, key, mustDN(f, "OU=b,CN=a"), attributeDER(f, oidExtensionRequest, stringDER(f, cbasn1.SEQUENCE, sidExtension))),
	)
	for _, der := range seeds {
		request, err := ParseRequest(der)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(request.RawInfo)
	}
	f.Fuzz(func(t *testing.T, info []byte) {
		var request Request
		if request.parseInfo(info) != nil {
			return
		}
		request.Identity()
		checkKept(t, &request)
		for _, profile := range profiles {
			prepared, err := issuer.Prepare(profile, &request, now)
			var refused *PolicyError
			if err != nil && !errors.As(err, &refused) {
				t.Errorf("error %v is no refusal", err)
			}
			if err == nil {
				if _, err := issuer.Issue(prepared); err != nil {
					t.Errorf("prepared but not issued: %v", err)
				}
			}
		}
	})
}
