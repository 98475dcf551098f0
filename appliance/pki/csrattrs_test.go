package pki

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/needtest"
)

// csrProfiles are profiles that differ in what csrattrs can say.
func csrProfiles(t *testing.T) map[string]*Profile {
	both := permissive()
	both.Subject.Template = "CN={CN},O=Factory 7,serialNumber={serialNumber}"
	onlyRSA := permissive()
	onlyRSA.Keys, onlyRSA.SAN = KeyConfig{RSA: &RSAConfig{MinBits: 3072}}, SANConfig{IP: []string{"10.0.0.0/8"}}
	onlyP384 := permissive()
	onlyP384.Keys, onlyP384.SAN, onlyP384.MustStaple = KeyConfig{ECDSA: []string{"p384"}}, SANConfig{}, true
	return map[string]*Profile{"both": newProfile(t, both), "only RSA": newProfile(t, onlyRSA), "only P-384": newProfile(t, onlyP384)}
}

// TestCSRAttrs reads the answer as RFC 8951 §3.2 defines it, and its attributes by the RFC that defines
// each: what a client that knows templates needs, and what one that does not.
func TestCSRAttrs(t *testing.T) {
	const (
		usages   = "301d0603551d250416301406082b0601050507030206082b06010505070301" // extKeyUsage: clientAuth, serverAuth
		staple   = "301106082b0601050507011804053003020105"
		anyNames = "30050603551d11"             // subjectAltName without a value
		oneIP    = "300b0603551d11040430028700" // subjectAltName with an address to be filled in
		sizes    = "02020c00"                   // 3072
		p256     = "06082a8648ce3d030107"
		p384     = "06052b81040022"
	)
	want := map[string]map[string]string{ // by type: the SET of values, "" for a bare type
		"both": {
			"2.5.4.3": "", "2.5.4.5": "", "2.5.29.17": "",
			oidRSAEncryption.String():    "02020800",
			oidECPublicKey.String():      p384 + p256,
			oidExtensionRequest.String(): "301f" + usages,
			oidRequestTemplate.String(): tlv(0x30, "020100", tlv(0x30, tlv(0x31, "30050603550403"), tlv(0x31, "30050603550405")),
				tlv(0xa1, tlv(0x30, "060b2a864886f70d010910023e", tlv(0x31, tlv(0x30, usages, anyNames))))),
		},
		"only RSA": {
			"2.5.29.17":                  "",
			oidRSAEncryption.String():    sizes,
			oidExtensionRequest.String(): "301f" + usages,
			oidRequestTemplate.String(): tlv(0x30, "020100",
				tlv(0xa0, "300d06092a864886f70d0101010500", tlv(0x03, "00", tlv(0x30, tlv(0x02, "00"+strings.Repeat("ff", 384)), "0203010001"))),
				tlv(0xa1, tlv(0x30, "060b2a864886f70d010910023e", tlv(0x31, tlv(0x30, usages, oneIP))))),
		},
		"only P-384": {
			oidECPublicKey.String():      p384,
			oidExtensionRequest.String(): tlv(0x30, usages, staple),
			oidRequestTemplate.String(): tlv(0x30, "020100", tlv(0xa0, tlv(0x30, "06072a8648ce3d0201", p384)),
				tlv(0xa1, tlv(0x30, "06092a864886f70d01090e", tlv(0x31, tlv(0x30, usages, staple))))),
		},
	}
	for name, p := range csrProfiles(t) {
		if diff := cmp.Diff(want[name], readCSRAttrs(t, p.CSRAttrs())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// tlv is the hex of one DER element.
func tlv(tag byte, contents ...string) string {
	body, err := hex.DecodeString(strings.Join(contents, ""))
	if err != nil {
		panic(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(tag), func(b *cryptobyte.Builder) { b.AddBytes(body) })
	return hex.EncodeToString(b.BytesOrPanic())
}

// readCSRAttrs maps each type to the hex of its values.
func readCSRAttrs(t *testing.T, der []byte) map[string]string {
	t.Helper()
	var all []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &all); err != nil || len(rest) > 0 {
		t.Fatalf("not one SEQUENCE: %v", err)
	}
	found := map[string]string{}
	for _, element := range all {
		var oid asn1.ObjectIdentifier
		values := ""
		if element.Tag == asn1.TagOID {
			if _, err := asn1.Unmarshal(element.FullBytes, &oid); err != nil {
				t.Fatal(err)
			}
		} else {
			var attribute struct {
				Type   asn1.ObjectIdentifier
				Values asn1.RawValue
			}
			if rest, err := asn1.Unmarshal(element.FullBytes, &attribute); err != nil || len(rest) > 0 || attribute.Values.Tag != asn1.TagSet {
				t.Fatalf("not an attribute: %v", err)
			}
			oid, values = attribute.Type, hex.EncodeToString(attribute.Values.Bytes)
		}
		if _, twice := found[oid.String()]; twice {
			t.Errorf("%s twice", oid)
		}
		found[oid.String()] = values
	}
	return found
}

// TestCSRAttrsWalk walks the answer as libest does before it believes it: into every SET and SEQUENCE,
// over anything else by its length.
func TestCSRAttrsWalk(t *testing.T) {
	for name, p := range csrProfiles(t) {
		rest := p.CSRAttrs()
		for len(rest) > 0 {
			input := cryptobyte.String(rest)
			var element, contents cryptobyte.String
			var tag cbasn1.Tag
			if !input.ReadAnyASN1Element(&element, &tag) {
				t.Fatalf("%s: not an element: %x", name, rest)
			}
			whole := element
			if !element.ReadAnyASN1(&contents, &tag) {
				t.Fatalf("%s: no contents: %x", name, whole)
			}
			if tag&0x1f == 16 || tag&0x1f == 17 {
				rest = rest[len(whole)-len(contents):]
			} else {
				rest = rest[len(whole):]
			}
		}
	}
}

// TestCSRAttrsBouncyCastle has the EST client of Bouncy Castle read it.
func TestCSRAttrsBouncyCastle(t *testing.T) {
	const program = `
import java.nio.file.*;
public class Read {
	public static void main(String[] files) throws Exception {
		for (String file : files) {
			var response = new org.bouncycastle.est.CSRAttributesResponse(Files.readAllBytes(Paths.get(file)));
			for (Object type : response.getRequirements()) System.out.println(type);
		}
	}
}`
	jars := []string{"/usr/share/java/bcpkix.jar", "/usr/share/java/bcprov.jar", "/usr/share/java/bcutil.jar"}
	java, err := exec.LookPath("java")
	for _, jar := range jars {
		if err == nil {
			_, err = os.Stat(jar)
		}
	}
	if err != nil {
		needtest.Missing(t, err.Error()+": apt-get install default-jdk-headless libbcpkix-java")
	}
	dir := t.TempDir()
	source := writeFile(t, filepath.Join(dir, "Read.java"), []byte(program))
	for name, p := range csrProfiles(t) {
		out, err := exec.Command(java, "-cp", strings.Join(jars, ":"), source, writeFile(t, filepath.Join(dir, "attributes"), p.CSRAttrs())).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		for oid := range readCSRAttrs(t, p.CSRAttrs()) {
			if !bytes.Contains(out, []byte(oid+"\n")) {
				t.Errorf("%s: %s is not read", name, oid)
			}
		}
	}
}
