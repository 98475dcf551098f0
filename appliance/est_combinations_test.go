package appliance_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// listed is what a profile of estSite says about EST, read from its file by a person.
type listed struct {
	password string // of user device; "": no Basic
	ticket   bool   // a one-time challenge
	issued   bool   // its own certificates
	factory  bool   // those of the bootstrap authority
	keys     bool   // serverkeygen
	legacy   bool   // the legacy listener
}

var everyProfile = map[string]listed{
	"corp":   {password: "corp-demo-password", issued: true, legacy: true},
	"modern": {password: "modern-demo-password", issued: true, legacy: true},
	"legacy": {password: "legacy-demo-password", issued: true, legacy: true},
	"manual": {password: "corp-demo-password", issued: true, legacy: true},
	"iot":    {issued: true, factory: true, legacy: true},
	"keys":   {password: "corp-demo-password", issued: true, keys: true, legacy: true},
	"ticket": {ticket: true, legacy: true},
	"strict": {password: "modern-demo-password", issued: true},
	"intune": {}, // not on for EST
}

// credential is one way to try to be let in.
type credential struct {
	name     string
	password func(profile string) string     // nil: no Basic
	client   map[string]*tls.Certificate     // by profile, "" for all
	lets     func(p listed, first bool) bool // whether it should; first: simpleenroll or serverkeygen
}

// combinations asks for a certificate in every way there is: each route, on each listener, with each
// credential. What a profile does not list gets nothing anywhere.
func (s *service) combinations(t *testing.T, token string) {
	c := newCombinations(t, s, token)
	listeners := map[string]string{
		"est": s.ready.EST, "legacy": s.ready.Legacy, "scep": s.ready.SCEP, "legacy_scep": s.ready.LegacySCEP, "console": s.ready.Console, "plain": s.ready.PKI,
	}
	tried, issued := 0, 0
	for listener, address := range listeners {
		if address == "" {
			t.Fatalf("listener %s is off", listener)
		}
		for _, label := range append(profilesOf(everyProfile), "", "nobody") {
			name := label
			if label == "" {
				name = "corp" // the default
			}
			p, isServed := everyProfile[name]
			isServed = isServed && p != (listed{}) && (listener == "est" || listener == "legacy" && p.legacy)
			for _, operation := range []string{"cacerts", "csrattrs"} {
				code, _ := c.ask(t, "GET", address, label, operation, nil, "", nil)
				if got := code == 200 || code == 204; got != isServed {
					t.Errorf("%s of %q on %s: HTTP %d", operation, label, listener, code)
				}
			}
			for _, operation := range []string{"simpleenroll", "simplereenroll", "serverkeygen"} {
				for _, with := range c.credentials {
					first := operation != "simplereenroll"
					want := isServed && (operation != "serverkeygen" || p.keys) && with.lets(p, first)
					password := ""
					if with.password != nil {
						password = with.password(name)
					}
					client := with.client[name]
					if client == nil {
						client = with.client[""]
					}
					code, body := c.ask(t, "POST", address, label, operation, c.requestOf(t, name).der, password, client)
					tried++
					if holds := certificateIn(body) != nil; holds != want || holds != (code == 200) {
						t.Errorf("%s of %q on %s with %s: HTTP %d, a certificate: %v, want %v\n%.300s", operation, label, listener, with.name, code, holds, want, body)
					} else if holds {
						issued++
						delete(c.tickets, name) // it may be used up
					}
				}
			}
		}
	}
	t.Logf("%d requests, %d of them answered with a certificate", tried, issued)
}

func profilesOf(all map[string]listed) (names []string) {
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// certificateIn is the certificate in an answer, however it is wrapped; nil if there is none.
func certificateIn(body []byte) *x509.Certificate {
	for part := range bytes.SplitSeq(body, []byte("\r\n\r\n")) { // serverkeygen's answer has several
		text, _, _ := strings.Cut(string(part), "\r\n--")
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			continue
		}
		var outer struct {
			Type   asn1.ObjectIdentifier
			Signed struct {
				Version          int
				Digests, Content asn1.RawValue
				Certificates     asn1.RawValue `asn1:"optional,tag:0"`
				Rest             asn1.RawValue `asn1:"optional"`
			} `asn1:"explicit,tag:0"`
		}
		if _, err := asn1.Unmarshal(der, &outer); err != nil {
			continue
		}
		if certificates, err := x509.ParseCertificates(outer.Signed.Certificates.Bytes); err == nil && len(certificates) > 0 {
			return certificates[0]
		}
	}
	return nil
}

// combinations keeps what is needed to ask.
type combinations struct {
	roots       *x509.CertPool
	requests    map[string]*request // by whose they are
	tickets     map[string]string   // one-time challenges not used yet, by profile
	credentials []credential
	kept        map[kept]*http.Client
	sources     int
}

// kept is what connections are kept for.
type kept struct {
	address string
	client  *tls.Certificate
}

type request struct {
	key *ecdsa.PrivateKey
	der []byte
}

func newCombinations(t *testing.T, s *service, token string) *combinations {
	c := &combinations{roots: s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs, requests: map[string]*request{}, tickets: map[string]string{}, kept: map[kept]*http.Client{}}
	factory := demoKey(t, "bootstrap-ca")
	bootstrap, foreign := madeBy(t, "from the factory", &factory), madeBy(t, "of somebody else", nil)

	// Each profile that renews gets two certificates of its own, and one of them is revoked.
	own, revoked, another := map[string]*tls.Certificate{}, map[string]*tls.Certificate{}, map[string]*tls.Certificate{}
	for name, p := range everyProfile {
		if !p.issued {
			continue
		}
		client := bootstrap
		if p.password != "" {
			client = nil
		}
		own[name] = c.first(t, s, name, name, p.password, client)
		revoked[name] = c.first(t, s, name, name, p.password, client)
		serial := fmt.Sprintf("%x", revoked[name].Leaf.SerialNumber.Bytes())
		if code := s.api(t, "POST", "/api/v1/certificates/"+serial+"/revoke", token, map[string]string{"reason": "keyCompromise"}, nil); code != 200 {
			t.Fatalf("revoking: HTTP %d", code)
		}
	}
	// For each profile, one that its own authority issued for the same name, under another profile.
	for name := range everyProfile {
		under := "corp"
		switch name {
		case "corp":
			under = "legacy"
		case "modern":
			under = "strict"
		case "strict":
			under = "modern"
		}
		another[name] = c.first(t, s, under, name, everyProfile[under].password, nil)
	}
	for _, stale := range []map[string]*tls.Certificate{own, revoked} { // profiles without one show another's
		for name := range everyProfile {
			if stale[name] == nil {
				stale[name] = stale["corp"]
			}
		}
	}
	never := func(listed, bool) bool { return false }
	good := func(profile string) string { return everyProfile[profile].password }
	wrong := func(string) string { return "not-the-password" }
	ticket := func(profile string) string {
		if c.tickets[profile] == "" {
			c.tickets[profile] = s.mint(t, token, "ticket", profile+".example.com")
		}
		return c.tickets[profile]
	}
	all := func(cert *tls.Certificate) map[string]*tls.Certificate { return map[string]*tls.Certificate{"": cert} }
	c.credentials = []credential{
		{"nothing", nil, nil, never},
		{"a wrong password", wrong, nil, never},
		{"a password of another profile", func(profile string) string {
			if everyProfile[profile].password == "legacy-demo-password" {
				return "corp-demo-password"
			}
			return "legacy-demo-password"
		}, nil, never},
		{"its password", good, nil, func(p listed, first bool) bool { return p.password != "" && first }},
		{"a one-time challenge", ticket, nil, func(p listed, first bool) bool { return p.ticket && first }},
		{"a certificate of the factory", nil, all(bootstrap), func(p listed, first bool) bool { return p.factory && first }},
		{"its certificate", nil, own, func(p listed, _ bool) bool { return p.issued }},
		{"a certificate issued under another profile", nil, another, never},
		{"a certificate of somebody else", nil, all(foreign), never},
		{"its certificate, revoked", nil, revoked, never},
		{"its certificate and a wrong password", wrong, own, func(p listed, first bool) bool {
			// Where passwords are taken, one that is wrong is not passed over on a first request; a renewal has its certificate.
			return p.issued && (p.password == "" || !first)
		}},
		{"its revoked certificate and its password", good, revoked, func(p listed, first bool) bool { return p.password != "" && first }},
		{"a certificate of somebody else and a one-time challenge", ticket, all(foreign), func(p listed, first bool) bool { return p.ticket && first }},
	}
	return c
}

// madeBy makes a client certificate, its own issuer where there is none.
func madeBy(t *testing.T, cn string, issuer *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	parent, signer := template, crypto.PrivateKey(key)
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// requestOf is the request for a profile's name, made once: what one credential was given, another must
// not be given again.
func (c *combinations) requestOf(t *testing.T, profile string) *request {
	t.Helper()
	if c.requests[profile] == nil {
		c.requests[profile] = newRequest(t, profile+".example.com")
	}
	return c.requests[profile]
}

func newRequest(t *testing.T, cn string) *request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &request{key, der}
}

// first is a first certificate of a profile, for the name of the one it is used at, with a key of its own.
func (c *combinations) first(t *testing.T, s *service, profile, used, password string, client *tls.Certificate) *tls.Certificate {
	t.Helper()
	r := newRequest(t, used+".example.com")
	code, body := c.ask(t, "POST", s.ready.EST, profile, "simpleenroll", r.der, password, client)
	cert := certificateIn(body)
	if cert == nil {
		t.Fatalf("a first certificate of %s: HTTP %d %s", profile, code, body)
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: r.key, Leaf: cert}
}

// ask sends one request. Those with a password come from an address of their own each, so that the limit
// of failures, which is another test's, is nobody's.
func (c *combinations) ask(t *testing.T, method, address, label, operation string, csr []byte, password string, client *tls.Certificate) (int, []byte) {
	t.Helper()
	path := address + "/.well-known/est/"
	if label != "" {
		path += label + "/"
	}
	req, err := http.NewRequest(method, path+operation, strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		t.Fatal(err)
	}
	if method == "POST" {
		req.Header.Set("Content-Type", "application/pkcs10")
	}
	through := c.kept[kept{address, client}]
	if password != "" || through == nil {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}}
		if client != nil { // whoever the listener hints at
			transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
		}
		through = &http.Client{Transport: transport, Timeout: time.Minute}
		if password != "" {
			c.sources++
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(c.sources>>8), byte(c.sources))}}
			transport.DialContext, transport.DisableKeepAlives = dialer.DialContext, true
			req.SetBasicAuth("device", password)
		} else {
			c.kept[kept{address, client}] = through
			t.Cleanup(transport.CloseIdleConnections)
		}
	}
	resp, err := through.Do(req)
	if err != nil {
		t.Fatalf("%s of %q at %s: %v", operation, label, address, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}
