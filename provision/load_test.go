package provision

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/challenge/phc"
)

const testHash = "$argon2id$v=19$m=65536,t=3,p=1$Zq6FVRCIczoWwwe626BLIA$YtCMCv/Wq1+tyeyIr1An6riI9uL58n7YveG0GBy3jls"

const testIntune = "intune: {tenant: example.onmicrosoft.com, client_id: 01234567-89ab-cdef-0123-456789abcdef, roots: trust/ca.pem}"

const goodSite = `# a comment
name: plant-7
version: 1.2.3
epoch: 4
public_host: pki.example.com
secure_boot: none
network: {dhcp: true}
listeners:
  scep: {on: true}
  plain: {on: true}
authorities:
  - {name: devices, mode: root, subject: "CN=Devices,O=Plant 7", key: {algorithm: rsa-2048}}
  - name: modern
    mode: root
    subject: "CN=Modern"
    key: {algorithm: ecdsa-p384, protection: sealed}
ra: {algorithm: rsa-3072, validity: 1d12h}
`

const goodProfile = `name: corp
default: true
authority: devices
keys: {rsa: {min_bits: 2048}, ecdsa: [p256]}
subject: {allow: [CN, O]}
san: {dns: ["*.example.com"], ip: ["10.0.0.0/8"]}
usage: {key: [digitalSignature], extended: [clientAuth]}
validity: 90d
scep:
  plain_http: true
  reply: {chain: true, getcacert: ra+ca}
  challenges:
    static: {hash: "` + testHash + `"}
`

// files is a site by path.
type files map[string]string

func good() files { return files{"site.yaml": goodSite, "profiles/corp.yaml": goodProfile} }

func (f files) fs() fs.FS {
	m := fstest.MapFS{}
	for name, content := range f {
		m[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return m
}

func TestLoad(t *testing.T) {
	f := good()
	f["trust/ca.pem"] = "Our CA\n" + certificatePEM(t, time.Now().Add(time.Hour))
	f["README.md"], f["secrets/policy.key"] = "not ours", "not read"
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	if site.Profiles[0].Policy == nil || len(site.Authorities[0].Subject) == 0 {
		t.Error("profile or subject was not compiled")
	}
	site.Profiles[0].Policy, site.Authorities[0].Subject, site.Authorities[1].Subject = nil, nil, nil
	want := &Site{
		Name: "plant-7", Version: "1.2.3", Epoch: 4, PublicHost: "pki.example.com", SecureBoot: "none",
		Network:   Network{DHCP: true},
		Listeners: Listeners{EST: true, SCEP: true, Console: true, Plain: true},
		Authorities: []Authority{
			{Name: "devices", Mode: "root", SubjectText: "CN=Devices,O=Plant 7", Algorithm: "rsa-2048", Protection: "resident",
				Validity: 3650 * 24 * time.Hour, CRLValidity: 7 * 24 * time.Hour, OCSP: true},
			{Name: "modern", Mode: "root", SubjectText: "CN=Modern", Algorithm: "ecdsa-p384", Protection: "sealed",
				Validity: 3650 * 24 * time.Hour, CRLValidity: 7 * 24 * time.Hour, OCSP: true},
		},
		RA: RA{Algorithm: "rsa-3072", Protection: "sealed", Validity: 36 * time.Hour, Overlap: 30 * 24 * time.Hour},
		Profiles: []Profile{{Name: "corp", Default: true, Authority: "devices",
			Renewal: Renewal{Window: 30 * 24 * time.Hour}, Limits: Limits{PerSource: 100, PerProfile: 500},
			SCEP: SCEP{On: true, PlainHTTP: true, Chain: true, GetCACert: "ra+ca", Challenges: Challenges{StaticHash: testHash}}}},
		Files: []string{"profiles/corp.yaml", "site.yaml", "trust/ca.pem"},
	}
	ignoreConfig := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".config" || p.Last().String() == ".Policy" }, cmp.Ignore())
	if diff := cmp.Diff(want, site, ignoreConfig, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	wantKeys := []KeySpec{
		{"authority/devices", "rsa-2048", "resident"}, {"authority/modern", "ecdsa-p384", "sealed"},
		{"audit", "ecdsa-p256", "resident"}, {"attestation", "ecdsa-p256", "resident"}, {"tls-ca", "ecdsa-p256", "resident"},
		{"ra", "rsa-3072", "sealed"}, {"tls", "ecdsa-p256", "sealed"}, {"tls-rsa", "rsa-2048", "sealed"}, {"ocsp", "ecdsa-p256", "sealed"},
	}
	if diff := cmp.Diff(wantKeys, site.Keys()); diff != "" {
		t.Error(diff)
	}
}

func TestStaticNetwork(t *testing.T) {
	f := good()
	f["site.yaml"] = strings.Replace(goodSite, "{dhcp: true}", "{address: 192.0.2.10/24, gateway: 192.0.2.1, dns: [192.0.2.53, '2001:db8::53']}", 1)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	n := site.Network
	if n.DHCP || n.Address.String() != "192.0.2.10/24" || n.Gateway.String() != "192.0.2.1" || fmt.Sprint(n.DNS) != "[192.0.2.53 2001:db8::53]" {
		t.Errorf("network %+v", n)
	}
}

// TestProblems changes one thing of a sound site at a time. Each change has to give exactly the
// problems listed, at their lines.
func TestProblems(t *testing.T) {
	site := func(old, new string) files {
		f := good()
		if !strings.Contains(goodSite, old) {
			t.Fatalf("the site has no %q", old)
		}
		f["site.yaml"] = strings.Replace(goodSite, old, new, 1)
		return f
	}
	profile := func(old, new string) files {
		f := good()
		if !strings.Contains(goodProfile, old) {
			t.Fatalf("the profile has no %q", old)
		}
		f["profiles/corp.yaml"] = strings.Replace(goodProfile, old, new, 1)
		return f
	}
	with := func(name, content string) files {
		f := good()
		f[name] = content
		return f
	}
	without := func(name string) files {
		f := good()
		delete(f, name)
		return f
	}
	valid, expired := certificatePEM(t, time.Now().Add(time.Hour)), certificatePEM(t, time.Now().Add(-time.Hour))
	signed := func(changed string) files {
		all := "certificates: trust/ca.pem, issuer: i, audience: a, validity: 60m"
		for _, field := range strings.Split(changed, ", ") {
			name, _, _ := strings.Cut(field, ":")
			at := strings.Index(all, name+":")
			if at < 0 {
				all += ", " + field
				continue
			}
			end := strings.Index(all[at:]+",", ",")
			all = all[:at] + field + all[at+end:]
		}
		f := profile("static:", "signed: {"+all+"}\n    static:")
		f["trust/ca.pem"], f["trust/p224.pem"] = valid, certificateOn(t, elliptic.P224(), time.Now().Add(time.Hour))
		return f
	}
	mtls := func(fields string) files {
		f := profile("  reply:", "  mtls: {"+fields+"}\n  reply:")
		f["trust/ca.pem"] = valid
		return f
	}
	// est is the profile with this at its end, line 14, one-time challenges at line 13.
	est := func(text string) files {
		f := profile("    static:", "    one_time: {ttl: 24h}\n    static:")
		f["profiles/corp.yaml"] += text
		f["trust/ca.pem"] = valid
		return f
	}
	// sites is f with something else in site.yaml too.
	sites := func(f files, old, new string) files {
		f["site.yaml"] = site(old, new)["site.yaml"]
		return f
	}
	// addressed is f on a box with a fixed address and no DNS server.
	addressed := func(f files) files { return sites(f, "dhcp: true", "address: 192.0.2.10/24, gateway: 192.0.2.1") }
	second := strings.Count(valid, "\n") + 1 // line of what follows valid in a file
	scepPart := goodProfile[strings.Index(goodProfile, "scep:"):]
	tests := []struct {
		name string
		site files
		want string // a line "place: part of what — part of mend" for each problem
	}{
		{"no site", without("site.yaml"), "site.yaml: there is no site.yaml — signet init"},
		{"empty site", with("site.yaml", ""), "site.yaml: empty — signet init"},
		{"only comments", with("site.yaml", "# nothing\n"), "site.yaml: empty — signet init"},
		{"a list", with("site.yaml", "- a\n"), "site.yaml:1: the document is not a set of fields — name, version"},
		{"not YAML", site("name: plant-7", "name: [plant-7"), "site.yaml:3: not YAML — correct the YAML"},
		{"not YAML, and a profile for listeners it turns on", func() files {
			f := est("est: {legacy_tls: true, auth: {certificate: [issued]}}\n")
			f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], "  reply:", "  legacy_tls: true\n  reply:", 1)
			f["site.yaml"] = "listeners: {legacy: {on: true}, legacy_scep: {on: true}\n"
			return f
		}(), "site.yaml:1: not YAML — correct the YAML"},
		{"larger than a site", with("site.yaml", goodSite+strings.Repeat("#", maxYAML)), "site.yaml: larger than 256 KiB — smaller"},

		{"unknown field", site("version: 1.2.3", "version: 1.2.3\ncolour: red"), "site.yaml:4: unknown field colour — remove it; known here are name"},
		{"slip of a field", site("public_host", "publichost"), "site.yaml:1: field public_host is missing — write\nsite.yaml:5: unknown field publichost — did you mean public_host?"},
		{"unknown inner field", site("algorithm: rsa-2048}", "algorithm: rsa-2048, bits: 7}"), "site.yaml:12: unknown field authorities[0].key.bits — remove it"},
		{"later issue's field", site("ra:", "time: {ntp: []}\nra:"), "site.yaml:17: unknown field time — remove it"},
		{"twice", site("epoch: 4", "epoch: 4\nepoch: 5"), "site.yaml:5: field epoch is there twice — keep one"},
		{"no value", site("epoch: 4", "epoch:"), "site.yaml:4: field epoch has no value — write a value"},
		{"anchor", site("name: plant-7", "name: &n plant-7"), "site.yaml:2: YAML anchors — quotes"},
		{"alias and anchor", site("name: plant-7\nversion: 1.2.3", "name: &n plant-7\nversion: *n"), "site.yaml:2: YAML anchors — quotes\nsite.yaml:3: YAML aliases — quotes"},
		{"tag", site("name: plant-7", "name: !!str plant-7"), "site.yaml:2: YAML tags — quotes"},
		{"merge", site("{dhcp: true}", "\n  <<: {dhcp: true}"), "site.yaml:8: YAML merge keys — quotes"},
		{"two documents", site("ra:", "---\nra:"), "site.yaml:17: more than one YAML document — remove"},

		{"name", site("plant-7", "Plant 7"), "site.yaml:2: \"Plant 7\" cannot be a name — lower-case letters"},
		{"version as number", site("1.2.3", "1.2"), "site.yaml:3: version: YAML reads 1.2 as — in quotes"},
		{"version", site("1.2.3", "v1.2.3"), "site.yaml:3: not a version — MAJOR.MINOR.PATCH"},
		{"epoch as text", site("epoch: 4", "epoch: four"), "site.yaml:4: not a whole number — from 1"},
		{"epoch zero", site("epoch: 4", "epoch: 0"), "site.yaml:4: 0 is outside — from 1"},
		{"epoch negative", site("epoch: 4", "epoch: -1"), "site.yaml:4: -1 is outside — from 1"},
		{"epoch huge", site("epoch: 4", "epoch: 99999999999999999999"), "site.yaml:4: epoch — write a number from 1"},
		{"public_host with port", site("pki.example.com", "pki.example.com:443"), "site.yaml:5: is neither — without scheme or port"},
		{"public_host with a zone", site("pki.example.com", "'fe80::1%eth0'"), "site.yaml:5: no device reaches — DNS name"},
		{"public_host that is nobody's", site("pki.example.com", "0.0.0.0"), "site.yaml:5: no device reaches — DNS name"},
		{"no public_host", site("public_host: pki.example.com\n", ""), "site.yaml:1: field public_host is missing — address devices reach"},
		{"secure_boot", site("secure_boot: none", "secure_boot: own-keys"), "site.yaml:6: \"own-keys\" cannot be — write none"},
		{"network as text", site("{dhcp: true}", "dhcp"), "site.yaml:7: network is not a set of fields — dhcp, address"},
		{"dhcp as text", site("dhcp: true", "dhcp: \"yes\""), "site.yaml:7: not true or false — true or false\nsite.yaml:7: network.address is missing — 192.0.2.10/24\nsite.yaml:7: network.gateway is missing — router"},
		{"dhcp and address", site("dhcp: true", "dhcp: true, address: 192.0.2.10/24"), "site.yaml:7: means nothing while dhcp — remove"},
		{"neither dhcp nor address", site("dhcp: true", "dhcp: false"), "site.yaml:7: address is missing — 192.0.2.10/24\nsite.yaml:7: gateway is missing — router"},
		{"address without length", site("dhcp: true", "address: 192.0.2.10, gateway: 192.0.2.1"), "site.yaml:7: not an address with a length — network's length"},
		{"address of the network", site("dhcp: true", "address: 192.0.2.0/24, gateway: 192.0.2.1"), "site.yaml:7: not a host's address — own address"},
		{"gateway elsewhere", site("dhcp: true", "address: 192.0.2.10/24, gateway: 198.51.100.1"), "site.yaml:7: not another address in 192.0.2.0/24 — router"},
		{"dns", site("dhcp: true", "address: 192.0.2.10/24, gateway: 192.0.2.1, dns: [192.0.2.53, ns]"), "site.yaml:7: network.dns[1]: \"ns\" is not a host's address — 192.0.2.1"},

		{"slip of a listener", site("  scep: {on: true}", "  legacy_sep: {on: true}"), "site.yaml:9: unknown field listeners.legacy_sep — did you mean legacy_scep?"},
		{"listener without on", site("scep: {on: true}", "scep: {}"), "site.yaml:9: listeners.scep.on is missing — on: true"},
		{"nothing to enroll at", site("  scep: {on: true}\n  plain: {on: true}", "  {est: {on: false}, scep: {on: false}, plain: {on: false}}"),
			"site.yaml:8: no listener is on — scep: {on: true}\nprofiles/corp.yaml:10: listener plain is off — turn on"},
		{"no console", site("scep: {on: true}", "console: {on: false}"), "site.yaml:9: nobody can claim — on: true"},
		{"plain off", site("plain: {on: true}", "plain: {on: false}"), "profiles/corp.yaml:10: listener plain is off — turn on"},

		{"no authority", with("site.yaml", goodSite[:strings.Index(goodSite, "authorities:")]+"authorities: []\n"+goodSite[strings.Index(goodSite, "ra:"):]),
			"site.yaml:11: list is empty — at least one"},
		{"authorities as a mapping", with("site.yaml", goodSite[:strings.Index(goodSite, "authorities:")]+"authorities: {name: a}\n"+goodSite[strings.Index(goodSite, "ra:"):]),
			"site.yaml:11: not a list — begins with -"},
		{"authority twice", site("name: modern", "name: devices"), "site.yaml:13: authority devices is there twice — name of its own"},
		{"subject", site("CN=Modern", "Modern"), "site.yaml:15: is not an attribute — CN=Plant 7"},
		{"same subject", site("CN=Modern", "CN=Devices, O=Plant 7"), "site.yaml:15: authorities devices and modern have the same — subject of its own"},
		{"same subject to devices", site("CN=Modern", "CN=DEVICES, O=plant  7"), "site.yaml:15: authorities devices and modern have the same — subject of its own"},
		{"endless authorities", site("authorities:\n", "authorities:\n"+strings.Repeat("  - {name: x, mode: root, subject: \"CN=X\", key: {algorithm: rsa-2048}}\n", 15)), "site.yaml:11: 17 authorities — at most 16"},
		{"mode", site("mode: root\n", "mode: subordinated\n"), "site.yaml:14: \"subordinated\" cannot be — did you mean subordinate?"},
		{"validity of a subordinate", site("mode: root\n", "mode: subordinate\n    validity: 10d\n"), "site.yaml:15: validity: means nothing for mode subordinate — whoever signs"},
		{"validity of a root", site("mode: root\n", "mode: root\n    validity: 1d\n"), "site.yaml:15: 1d is not a usable validity — 30d to 36500d"},
		{"path length", site("mode: root\n", "mode: root\n    path_len: 6\n"), "site.yaml:15: path_len: 6 is outside 0 to 5 — a number from 0 to 5"},
		{"no path length", site("mode: root\n", "mode: root\n    path_len: none\n"), "site.yaml:15: path_len: not a whole number — a number from 0 to 5"},
		{"CRL validity", site("mode: root\n", "mode: root\n    crl_validity: 91d\n"), "site.yaml:15: 91d is not a usable validity — 1h to 90d"},
		{"OCSP without plain", func() files {
			f := site("    mode: root\n", "    mode: root\n    ocsp: true\n")
			f["site.yaml"] = strings.Replace(f["site.yaml"], "plain: {on: true}", "plain: {on: false}", 1)
			f["profiles/corp.yaml"] = strings.Replace(goodProfile, "plain_http: true", "plain_http: false", 1)
			return f
		}(), "site.yaml:15: ocsp: listener plain, which serves it, is off — ocsp: false"},
		{"RA overlap", site("validity: 1d12h", "validity: 1d12h, overlap: 366d"), "site.yaml:17: 366d is not a usable time — 30d"},

		{"proxies by a list alone", site("ra:", "trusted_proxies: {networks: [192.0.2.0/28]}\nra:"), "site.yaml:17: trusted_proxies.enabled is missing — enabled: true"},
		{"proxies by a switch alone", site("ra:", "trusted_proxies: {enabled: true}\nra:"), "site.yaml:17: trusted_proxies.networks is missing — 192.0.2.0/28"},
		{"proxies switched off", site("ra:", "trusted_proxies: {enabled: false, networks: [192.0.2.0/28]}\nra:"), "site.yaml:17: networks: means nothing while — enabled: true"},
		{"no proxy", site("ra:", "trusted_proxies: {enabled: true, networks: []}\nra:"), "site.yaml:17: networks: no network in it — remove trusted_proxies"},
		{"proxy networks", site("ra:", "trusted_proxies: {enabled: true, networks: [192.0.2.1, 192.0.2.1/28, 0.0.0.0/0]}\nra:"),
			"site.yaml:17: networks[0]: \"192.0.2.1\" is not a network — 192.0.2.7/32\nsite.yaml:17: networks[1]: 192.0.2.1/28 has address bits — 192.0.2.0/28, or /32\nsite.yaml:17: networks[2]: 0.0.0.0/0 is everybody — your proxies"},
		{"proxies all over", site("ra:", "trusted_proxies: {enabled: true, networks: [0.0.0.0/1, 128.0.0.0/1, 10.0.0.0/8, \"fc00::/7\", \"2000::/3\"]}\nra:"),
			"site.yaml:17: networks[0]: 0.0.0.0/1 is everybody — your proxies\nsite.yaml:17: networks[1]: 128.0.0.0/1 is everybody — your proxies\nsite.yaml:17: networks[4]: 2000::/3 is everybody — your proxies"},
		{"proxies without listener", sites(with("trust/ca.pem", valid), "  scep: {on: true}", "  est: {on: false}\n  scep: {on: true}\ntrusted_proxies: {enabled: true, networks: [192.0.2.0/28], bundle: trust/ca.pem}\nlisteners2:"),
			"site.yaml:11: trusted_proxies.bundle: means nothing while no listener asks — est or legacy\nsite.yaml:12: unknown field listeners2 — did you mean listeners?"},
		{"algorithm", site("ecdsa-p384", "ecdsa-p386"), "site.yaml:16: \"ecdsa-p386\" cannot be — did you mean ecdsa-p384?"},
		{"protection", site("sealed", "none"), "site.yaml:16: \"none\" cannot be — resident or sealed"},
		{"no algorithm", site("{algorithm: rsa-2048}", "{}"), "site.yaml:12: authorities[0].key.algorithm is missing — rsa-2048"},
		{"ECDSA RA", site("rsa-3072", "ecdsa-p256"), "site.yaml:17: \"ecdsa-p256\" cannot be — rsa-2048"},
		{"RA validity", site("1d12h", "1h"), "site.yaml:17: not a usable validity — 1d to 3650d"},
		{"duration without unit", site("1d12h", "90"), "site.yaml:17: ra.validity: 90 has no unit — 90d"},
		{"duration", site("1d12h", "1year"), "site.yaml:17: \"1year\" is not a duration — 90d"},

		{"no profile", without("profiles/corp.yaml"), "profiles: there is no profile — signet init"},
		{"stray file", with("profiles/corp.yaml~", ""), "profiles/corp.yaml~: only files named *.yaml — remove it"},
		{"empty profile", with("profiles/x.yaml", "\n"), "profiles/x.yaml: empty — signet init"},
		{"two defaults", with("profiles/zz.yaml", strings.Replace(goodProfile, "name: corp", "name: zz", 1)), "profiles/zz.yaml:2: both corp and zz are the default — one of them"},
		{"no default", profile("default: true", "default: false"), "profiles: no profile is the default — default: true"},
		{"same name twice", with("profiles/zz.yaml", strings.Replace(goodProfile, "default: true", "default: false", 1)), "profiles/zz.yaml:1: profile corp is there twice — name of its own"},
		{"reserved name", profile("name: corp", "name: certsrv"), "profiles/corp.yaml:1: old SCEP clients — another name"},
		{"name of an operation", profile("name: corp", "name: simpleenroll"), "profiles/corp.yaml:1: simpleenroll is an operation of EST — another name"},
		{"name of a path", profile("name: corp", "name: pki"), "profiles/corp.yaml:1: /pki is where the box publishes — another name"},
		{"dangling authority", profile("authority: devices", "authority: device"), "profiles/corp.yaml:3: no authority \"device\" — did you mean devices?"},
		{"missing fields", profile("validity: 90d\n", ""), "profiles/corp.yaml:1: field validity is missing — 90d"},
		{"key size", profile("2048", "1024"), "profiles/corp.yaml:4: 1024 is outside 2048 to 4096 — 2048"},
		{"curve", profile("[p256]", "[p256, secp256k1]"), "profiles/corp.yaml:4: keys.ecdsa[1]: curve — p256 or p384"},
		{"subject attribute", profile("[CN, O]", "[CN, Nick]"), "profiles/corp.yaml:5: subject.allow[1] — short name"},
		{"pattern", profile("*.example.com", "*example.com"), "profiles/corp.yaml:6: san.dns[0]: \"*example.com\" also matches — \"*.example.com\""},
		{"unquoted pattern", profile("\"*.example.com\"", "*.example.com"), "profiles/corp.yaml:6: YAML aliases — in quotes"},
		{"network", profile("10.0.0.0/8", "10.0.0.1/8"), "profiles/corp.yaml:6: san.ip[0] — 10.0.0.0/8"},
		{"usage", profile("[digitalSignature]", "[certSign]"), "profiles/corp.yaml:7: usage.key[0] — digitalSignature"},
		{"any usage", profile("[clientAuth]", "[2.5.29.37.0]"), "profiles/corp.yaml:7: usage.extended[0] — purposes"},
		{"list of numbers", profile("[clientAuth]", "[1]"), "profiles/corp.yaml:7: usage.extended[0]: YAML reads 1 as — in quotes"},
		{"validity", profile("validity: 90d", "validity: 5s"), "profiles/corp.yaml:8: validity — 10m to 7300d"},
		{"two at once", profile("keys: {rsa: {min_bits: 2048}, ecdsa: [p256]}\nsubject: {allow: [CN, O]}", "keys: {}\nsubject: {allow: [Nick]}"),
			"profiles/corp.yaml:4: keys: no kind of key — rsa\nprofiles/corp.yaml:5: subject.allow[0] — short name"},
		{"no scep", profile(scepPart, ""), "profiles/corp.yaml:1: profile corp has no challenge — signet hash"},
		{"no challenges", profile(scepPart, "scep:\n  plain_http: true\n"), "profiles/corp.yaml:9: profile corp has no challenge — signet hash"},
		{"no static", profile(scepPart, "scep:\n  challenges: {}\n"), "profiles/corp.yaml:10: profile corp has no challenge — signet hash"},
		{"no hash", profile("hash: \""+testHash+"\"", ""), "profiles/corp.yaml:13: static.hash is missing — signet hash"},
		{"hash without value", profile("\""+testHash+"\"", ""), "profiles/corp.yaml:13: hash has no value — write a value"},
		{"challenge in clear", profile(testHash, "sesame"), "profiles/corp.yaml:13: not an argon2id hash — signet hash"},
		{"weak hash", profile("m=65536", "m=1024"), "profiles/corp.yaml:13: m=1024 is outside — signet hash"},
		{"costly hash", profile("m=65536", "m=4000000"), "profiles/corp.yaml:13: m=4000000 is outside — signet hash"},
		{"getcacert", profile("ra+ca}", "all}"), "profiles/corp.yaml:11: \"all\" cannot be — ra+chain or ra+ca or ra"},
		{"unknown challenge", profile("static:", "dynamic: {}\n    static:"), "profiles/corp.yaml:13: unknown field scep.challenges.dynamic — static"},
		{"empty intune", profile("static:", "intune: {}\n    static:"),
			"profiles/corp.yaml:13: intune.tenant is missing — GUID\nprofiles/corp.yaml:13: intune.client_id is missing — application\nprofiles/corp.yaml:13: intune.roots is missing — the box has none"},
		{"intune", profile("static:", "intune: {tenant: example, client_id: me, roots: trust/x.pem, algorithm: ES256}\n    static:"),
			"profiles/corp.yaml:13: tenant: \"example\" is neither — onmicrosoft.com\nprofiles/corp.yaml:13: client_id: \"me\" is not a GUID — Entra\nprofiles/corp.yaml:13: trust/x.pem: file does not exist — Microsoft's servers\nprofiles/corp.yaml:13: \"ES256\" cannot be — did you mean RS256?"},
		{"intune and manual", func() files {
			f := profile("static:", testIntune+"\n    static:")
			f["trust/ca.pem"] = valid
			f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], "validity:", "approval: {default: auto, manual_if: {cn_suffix: [.x]}}\nvalidity:", 1)
			return f
		}(), "profiles/corp.yaml:8: Intune takes no certificate that comes later — default: auto"},
		{"intune without DNS", func() files {
			f := addressed(profile("static:", testIntune+"\n    static:"))
			f["trust/ca.pem"] = valid
			return f
		}(), "profiles/corp.yaml:13: tenant: the box has no DNS server — dns in network"},
		{"slip of a challenge", profile("static:", "one_tme: {ttl: 1h}\n    static:"), "profiles/corp.yaml:13: unknown field scep.challenges.one_tme — did you mean one_time?"},
		{"one_time without ttl", profile("static:", "one_time: {}\n    static:"), "profiles/corp.yaml:13: one_time.ttl is missing — 24h"},
		{"ttl", profile("static:", "one_time: {ttl: 30s}\n    static:"), "profiles/corp.yaml:13: 30s is not a usable time — 1m to 90d"},
		{"empty signed", profile("static:", "signed: {}\n    static:"),
			"profiles/corp.yaml:13: signed.certificates is missing — trust/connector.pem\nprofiles/corp.yaml:13: signed.issuer is missing — iss\nprofiles/corp.yaml:13: signed.audience is missing — another box"},
		{"signed by nobody", signed("certificates: trust/x.pem"), "profiles/corp.yaml:13: trust/x.pem: file does not exist — put the certificates"},
		{"signers elsewhere", signed("certificates: ../x.pem"), "profiles/corp.yaml:13: \"../x.pem\" is not a file in trust/ — trust/NAME.pem"},
		{"empty audience", signed("certificates: trust/ca.pem, audience: ''"), "profiles/corp.yaml:13: signed.audience: empty — challenges carry"},
		{"skew", signed("certificates: trust/ca.pem, skew: 1h"), "profiles/corp.yaml:13: 1h is more than 15m, or not less than validity — few seconds"},
		{"signed validity", signed("certificates: trust/ca.pem, validity: 90d"), "profiles/corp.yaml:13: 90d is not a usable validity — 1m to 30d"},
		{"per device", signed("certificates: trust/ca.pem, per_device_24h: -1"), "profiles/corp.yaml:13: per_device_24h: -1 is outside — from 0"},
		{"signer with a small curve", signed("certificates: trust/p224.pem"), "profiles/corp.yaml:13: trust/p224.pem: an ECDSA key on P-224 — ES256"},

		{"approval without default", profile("validity:", "approval: {}\nvalidity:"), "profiles/corp.yaml:8: approval.default is missing — auto"},
		{"approval", profile("validity:", "approval: {default: sometimes}\nvalidity:"), "profiles/corp.yaml:8: \"sometimes\" cannot be — auto"},
		{"manual_if with manual", profile("validity:", "approval: {default: manual, manual_if: {cn_suffix: [.x]}}\nvalidity:"), "profiles/corp.yaml:8: means nothing while — default: auto"},
		{"no suffix", profile("validity:", "approval: {default: auto, manual_if: {cn_suffix: []}}\nvalidity:"), "profiles/corp.yaml:8: no suffix — remove manual_if"},
		{"empty suffix", profile("validity:", "approval: {default: auto, manual_if: {cn_suffix: [.x, '']}}\nvalidity:"), "profiles/corp.yaml:8: cn_suffix[1]: empty — default: manual"},
		{"renewal proof", profile("validity:", "renewal: {proof: none}\nvalidity:"), "profiles/corp.yaml:8: \"none\" cannot be — certificate"},
		{"renewal window", profile("validity:", "renewal: {window: 91d}\nvalidity:"), "profiles/corp.yaml:8: 91d is not between — at most its validity"},
		{"no renewal window", profile("validity:", "renewal: {window: 0s}\nvalidity:"), "profiles/corp.yaml:8: 0s is not between — at most its validity"},
		{"renewal grace", profile("validity:", "renewal: {grace: 91d}\nvalidity:"), "profiles/corp.yaml:8: 91d is longer than — at most its validity"},
		{"renewal from nobody", profile("validity:", "renewal: {from: trust/x.pem}\nvalidity:"), "profiles/corp.yaml:8: trust/x.pem: file does not exist — whose devices can renew"},
		{"active certificates", profile("validity:", "limits: {max_active: 101}\nvalidity:"), "profiles/corp.yaml:8: 101 is outside 0 to 100 — from 0"},
		{"unique", profile("ecdsa: [p256]", "ecdsa: [p256], unique: 1"), "profiles/corp.yaml:4: keys.unique: not true or false — true or false"},
		{"match by nothing", profile("[CN, O]}", "[CN, O], match: {}}"), "profiles/corp.yaml:5: match: no attribute in it — remove match"},
		{"match as a list", profile("[CN, O]}", "[CN, O], match: [CN]}"), "profiles/corp.yaml:5: match is not a set of fields — NAME: value"},
		{"empty template", profile("[CN, O]}", "[CN, O], template: ' '}"), "profiles/corp.yaml:5: template: empty — CN={CN}"},
		{"pattern that is no expression", profile("\"*.example.com\"", "\"regex:host[\""), "profiles/corp.yaml:6: san.dns[0]: — regular expression"},
		{"match that is no expression", profile("subject: {allow: [CN, O]}", "subject:\n  allow: [CN, O]\n  match:\n    O: [a]\n    CN:\n      - a*\n      - \"regex:(\""), "profiles/corp.yaml:11: subject.match.CN[1]: — regex:"},
		{"match of an attribute that is not allowed", profile("subject: {allow: [CN, O]}", "subject:\n  allow: [CN, O]\n  match:\n    CN: [a]\n    OU: [a]"), "profiles/corp.yaml:9: subject.match.OU — "},
		{"template of nothing", profile("[CN, O]}", "[CN, O], template: \"CN={XX}\"}"), "profiles/corp.yaml:5: subject.template — {CN}"},
		{"compliance", profile("validity:", "compliance: {url: \"http://hook.example.com\", timeout: 1h}\nvalidity:"),
			"profiles/corp.yaml:8: compliance.roots is missing — the box has none\nprofiles/corp.yaml:8: not the address of an HTTPS webhook — https://HOST/PATH\nprofiles/corp.yaml:8: 1h is not a usable time — 1s to 30s"},
		{"compliance with a password", func() files {
			f := profile("validity:", "compliance: {url: \"https://me:sesame@hook.example.com/\", roots: trust/ca.pem}\nvalidity:")
			f["trust/ca.pem"] = valid
			return f
		}(), "profiles/corp.yaml:8: compliance.url: not the address — without user"},
		{"compliance without DNS", func() files {
			f := addressed(profile("validity:", "compliance: {url: \"https://hook.example.com/\", roots: trust/ca.pem}\nvalidity:"))
			f["trust/ca.pem"] = valid
			return f
		}(), "profiles/corp.yaml:8: url: the box has no DNS server — dns in network"},

		{"est without auth", est("est: {}\n"), "profiles/corp.yaml:15: est.auth is missing — certificate: [issued]"},
		{"est for nobody", est("est: {auth: {challenge: false, certificate: []}}\n"), "profiles/corp.yaml:15: est.auth: nothing is on — certificate: [issued]"},
		{"est without listener", sites(est("est: {auth: {certificate: [issued]}}\n"), "  scep:", "  est: {on: false}\n  scep:"), "profiles/corp.yaml:15: est: no listener serves it — turn on listener est"},
		{"est on a legacy listener that is off", est("est: {legacy_tls: true, auth: {certificate: [issued]}}\n"), "profiles/corp.yaml:15: legacy_tls: listener legacy is off — legacy_tls: false"},
		{"scep on a legacy listener that is off", profile("  reply:", "  legacy_tls: true\n  reply:"), "profiles/corp.yaml:11: legacy_tls: listener legacy_scep is off — legacy_tls: false"},
		{"est certificate", est("est: {auth: {certificate: [isued, issued, issued]}}\n"), "profiles/corp.yaml:15: certificate[0]: \"isued\" cannot be — issued\nprofiles/corp.yaml:15: certificate[2]: issued is there twice — once"},
		{"est bundles", est("est: {auth: {certificate: [{bundle: trust/ca.pem}, {bundle: trust/x.pem}]}}\n"), "profiles/corp.yaml:15: a second bundle — in one file"},
		{"est bundle of nobody", est("est: {auth: {certificate: [{bundle: trust/x.pem}]}}\n"), "profiles/corp.yaml:15: trust/x.pem: file does not exist — first certificates"},
		{"est challenge without minting", func() files {
			f := good()
			f["profiles/corp.yaml"] += "est: {auth: {challenge: true}}\n"
			return f
		}(), "profiles/corp.yaml:14: challenge: the profile has no one-time challenges — one_time"},
		{"a user with a password in clear", est("est:\n  auth:\n    basic:\n      - {user: a, hash: sesame}\n"), "profiles/corp.yaml:18: hash: not an argon2id hash — signet hash"},
		{"users", est("est:\n  auth:\n    basic:\n      - {user: a, hash: \"" + testHash + "\"}\n      - {user: a, hash: \"" + testHash + "\", for: []}\n      - {user: \"a:b\"}\n      - {hash: \"" + testHash + "\", for: [x, \"\"]}\n"),
			"profiles/corp.yaml:19: user a is there twice — name of its own\nprofiles/corp.yaml:19: for: no name in it — remove for\nprofiles/corp.yaml:20: basic[2].hash is missing — signet hash\nprofiles/corp.yaml:20: \"a:b\" cannot be a user — without colon\n" +
				"profiles/corp.yaml:21: basic[3].user is missing — user: NAME\nprofiles/corp.yaml:21: for[1]: empty — common name"},
		{"many users", est("est: {auth: {basic: [" + strings.Repeat("{user: a}, ", 65) + "]}}\n"), "profiles/corp.yaml:15: basic: 65 users — challenge: true"},
		{"a user for many", est("est:\n  auth:\n    basic:\n      - {user: a, hash: \"" + testHash + "\", for: [" + strings.Repeat("a,", 257) + "]}\n"), "profiles/corp.yaml:18: for: 257 names — several users"},
		{"renewal nobody can prove", func() files {
			f := est("est: {auth: {certificate: [issued]}}\n")
			f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], "validity:", "renewal: {proof: certificate+challenge}\nvalidity:", 1)
			return f
		}(), "profiles/corp.yaml:16: est.auth: a renewal needs a password besides — proof: certificate"},
		{"channel_binding", est("est: {auth: {challenge: true}, channel_binding: needed}\n"), "profiles/corp.yaml:15: \"needed\" cannot be — off or optional or required"},
		{"server_key the profile refuses", est("est: {auth: {challenge: true}, server_key: ecdsa-p384}\n"), "profiles/corp.yaml:15: server_key: ecdsa-p384 is not among the keys — allow this one"},
		{"server_key held", func() files {
			f := est("est: {auth: {challenge: true}, server_key: ecdsa-p256}\n")
			f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], "validity:", "approval: {default: manual}\nvalidity:", 1)
			return f
		}(), "profiles/corp.yaml:8: approval: a key made for a device is not kept — server_key"},
		{"retry_after", est("est: {auth: {challenge: true}, retry_after: 0s}\n"), "profiles/corp.yaml:15: 0s is not a usable time — 1s to 1d"},
		{"retry_after in fractions", est("est: {auth: {challenge: true}, retry_after: 1.5s}\n"), "profiles/corp.yaml:15: \"1.5s\" is not a duration — seconds"},
		{"limits", profile("validity:", "limits: {per_source: -1, per_profile: many}\nvalidity:"), "profiles/corp.yaml:8: -1 is outside — from 0\nprofiles/corp.yaml:8: not a whole number — from 0"},
		{"legacy", profile("  reply:", "  legacy: {md5: 1, rc4: true}\n  reply:"), "profiles/corp.yaml:11: unknown field scep.legacy.rc4 — md5\nprofiles/corp.yaml:11: legacy.md5: not true or false — true or false"},
		{"must_staple without OCSP", sites(profile("validity:", "must_staple: true\nvalidity:"), "key: {algorithm: rsa-2048}", "ocsp: false, key: {algorithm: rsa-2048}"),
			"profiles/corp.yaml:8: must_staple: authority devices has no OCSP — must_staple: false"},
		{"mtls without listener", sites(profile("  reply:", "  mtls: {mode: optional, bundle: trust/x.pem}\n  reply:"), "  scep:", "  est: {on: false}\n  scep:"),
			"profiles/corp.yaml:11: trust/x.pem: file does not exist — CA certificates\nprofiles/corp.yaml:11: listener est, which asks for client certificates, is off — turn on"},
		{"mtls without bundle", mtls("mode: optional"), "profiles/corp.yaml:11: mtls.bundle is missing — trust/devices.pem"},
		{"mtls off with bundle", mtls("mode: \"off\", bundle: trust/x.pem"), "profiles/corp.yaml:11: means nothing while mode is off — optional"},
		{"mtls without mode", mtls("bundle: trust/x.pem"), "profiles/corp.yaml:11: mtls.mode is missing — optional"},
		{"mtls required and plain HTTP", mtls("mode: required, bundle: trust/ca.pem"), "profiles/corp.yaml:10: without a client certificate — plain_http: false"},
		{"sha1 and a resident RA", func() files {
			f := site("{algorithm: rsa-3072,", "{algorithm: rsa-3072, protection: resident,")
			f["profiles/corp.yaml"] = strings.Replace(goodProfile, "  reply:", "  legacy: {sha1: true}\n  reply:", 1)
			return f
		}(), "profiles/corp.yaml:11: resident RA key does not sign SHA-1 — sealed"},
		{"raw_csr without TLS", func() files {
			f := site("scep: {on: true}", "scep: {on: false}")
			f["profiles/corp.yaml"] = strings.Replace(goodProfile, "  plain_http: true", "  plain_http: true\n  raw_csr: true", 1)
			return f
		}(), "profiles/corp.yaml:11: over TLS only — raw_csr: false"},

		{"expired bundle", with("trust/ca.pem", "# old\n"+expired), "trust/ca.pem:2: expired on — replace"},
		{"one of two expired", with("trust/ca.pem", valid+expired), fmt.Sprintf("trust/ca.pem:%d: expired on — replace", second)},
		{"private key", with("trust/ca.pem", valid+pemBlock("EC PRIVATE KEY", []byte("x"))), fmt.Sprintf("trust/ca.pem:%d: a private key — remove it", second)},
		{"empty bundle", with("trust/ca.pem", "nothing\n"), "trust/ca.pem: no certificate — put the PEM"},
		{"something else", with("trust/ca.pem", pemBlock("X509 CRL", []byte("x"))), "trust/ca.pem:1: a X509 CRL — remove\ntrust/ca.pem: no certificate — put the PEM"},
		{"broken certificate", with("trust/ca.pem", pemBlock("CERTIFICATE", []byte("x"))), "trust/ca.pem:1: cannot be read — replace"},
		{"broken PEM", with("trust/ca.pem", "-----BEGIN CERTIFICATE-----\n!!\n"), "trust/ca.pem: block that cannot be read — restore"},
		{"stray file in trust", with("trust/notes.txt", ""), "trust/notes.txt: only files named *.pem — remove it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			site, err := Load(tt.site.fs())
			if site != nil {
				t.Error("a site with problems is returned")
			}
			checkProblems(t, err, tt.want)
		})
	}
}

// checkProblems holds an error against lines "place: part of what — part of mend", in any order.
func checkProblems(t *testing.T, err error, want string) {
	t.Helper()
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error %v", err)
	}
	wanted := strings.Split(want, "\n")
	if len(wanted) != len(problems) {
		t.Errorf("%d problems, want %d:\n%v", len(problems), len(wanted), problems)
	}
	for _, w := range wanted {
		place, rest, _ := strings.Cut(w, ": ")
		what, mend, _ := strings.Cut(rest, " — ")
		found := false
		for _, p := range problems {
			at := p.File
			if p.Line > 0 {
				at = fmt.Sprintf("%s:%d", p.File, p.Line)
			}
			found = found || at == place && strings.Contains(p.What, what) && strings.Contains(p.Mend, mend)
		}
		if !found {
			t.Errorf("no problem %q in\n%v", w, problems)
		}
	}
}

// TestProblemsAllAtOnce checks that one pass finds the problems of every file, in order.
func TestProblemsAllAtOnce(t *testing.T) {
	f := files{
		"site.yaml":          strings.NewReplacer("epoch: 4", "epoch: none", "rsa-3072", "rsa-1024").Replace(goodSite),
		"profiles/corp.yaml": strings.NewReplacer("authority: devices", "authority: nobody", "90d", "soon").Replace(goodProfile),
		"trust/x.pem":        "",
	}
	_, err := Load(f.fs())
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("error %v", err)
	}
	var places []string
	for _, p := range problems {
		places = append(places, fmt.Sprintf("%s:%d", p.File, p.Line))
	}
	want := []string{"site.yaml:4", "site.yaml:17", "profiles/corp.yaml:3", "profiles/corp.yaml:8", "trust/x.pem:0"}
	if diff := cmp.Diff(want, places); diff != "" {
		t.Errorf("%s\n%v", diff, err)
	}
	if first := problems[0].String(); !strings.HasPrefix(first, "site.yaml:4: epoch: not a whole number — write") {
		t.Errorf("a problem reads %q", first)
	}
}

// TestLoadBakedIgnoresTheClock: on a box an expired bundle must not stop everything else.
func TestLoadBakedIgnoresTheClock(t *testing.T) {
	f := good()
	f["trust/ca.pem"] = certificatePEM(t, time.Now().Add(-time.Hour))
	f["profiles/corp.yaml"] += "est: {auth: {certificate: [{bundle: trust/ca.pem}]}}\n"
	if _, err := Load(f.fs()); err == nil {
		t.Fatal("Load takes an expired bundle")
	}
	site, err := LoadBaked(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	// Whoever uses the bundle sees that it is over.
	if bundle := site.Profiles[0].EST.Bundle; len(bundle) != 1 || !time.Now().After(bundle[0].NotAfter) {
		t.Errorf("a bundle of %d certificates", len(bundle))
	}
}

func TestDurations(t *testing.T) {
	tests := map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "12h": 12 * time.Hour, "1d12h": 36 * time.Hour, "1d2h3m4s": 26*time.Hour + 3*time.Minute + 4*time.Second, "0s": 0,
	}
	for text, want := range tests {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%q is %s (%v), want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "90", "d", "1.5h", "-1d", "1y", "1h1d", "1d1d", "1d 1h", "999999999d", "99999999999999999999d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

func TestHashSecret(t *testing.T) {
	a, errA := HashSecret([]byte("sesame"))
	b, errB := HashSecret([]byte("sesame"))
	if errA != nil || errB != nil || a == b {
		t.Fatalf("two hashes of one secret: %q %q, %v %v", a, b, errA, errB)
	}
	hash, err := phc.Parse(a)
	if err != nil || !hash.Matches([]byte("sesame")) || hash.Matches([]byte("sesam")) {
		t.Errorf("%q does not verify: %v", a, err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(goodSite, goodProfile)
	f.Add(strings.Replace(goodSite, "authorities:", "trusted_proxies: {enabled: true, networks: [192.0.2.0/28]}\nauthorities:", 1),
		goodProfile+"est: {auth: {basic: [{user: a, hash: x, for: [b]}], certificate: [issued, {bundle: trust/x.pem}], challenge: true}, channel_binding: off}\n")
	f.Add("name: [*a, &b c]\n---\n", "<<: {}\n? a\n: b\n")
	f.Fuzz(func(t *testing.T, site, profile string) {
		loaded, err := Load(files{"site.yaml": site, "profiles/corp.yaml": profile}.fs())
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Errorf("error %v is not Problems", err)
		}
		if (err == nil) != (loaded != nil) {
			t.Error("neither or both of site and error")
		}
		for _, p := range problems {
			if p.File == "" || p.What == "" || p.Mend == "" {
				t.Errorf("problem %+v says too little", p)
			}
		}
	})
}

func certificatePEM(t testing.TB, notAfter time.Time) string {
	t.Helper()
	return certificateOn(t, elliptic.P256(), notAfter)
}

func certificateOn(t testing.TB, curve elliptic.Curve, notAfter time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Trusted"}, NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pemBlock("CERTIFICATE", der)
}

func pemBlock(kind string, der []byte) string {
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return ""
	}
	return b.String()
}
