package webui

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/logtest"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const claimCode = "K7QM-2XPD"

// start is when the tests' clock begins.
var start = time.Date(2026, 11, 21, 19, 5, 45, 0, time.UTC)

// fakeClock is moved by hand.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// testBox is a console over a real store on a TLS server.
type testBox struct {
	*httptest.Server
	t       *testing.T
	console *console
	store   *store.Store
	clock   *fakeClock
	log     *logtest.Buffer
	engine  *enroll.Engine
	oneTime *challenge.OneTime
	fake    *fakeBox
	off     atomic.Bool // profile iot
	claims  int         // calls of OnClaimed
}

func newBox(t *testing.T, change ...func(*Config)) *testBox {
	t.Helper()
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	box := &testBox{t: t, store: st, clock: &fakeClock{now: start}, log: &logtest.Buffer{}}
	box.engine = newEngine(t, box)
	site, authorities := demoSite(), demoAuthorities(t)
	cfg := Config{
		Store:      st,
		Boot:       demoBoot(),
		Site:       func() Site { return site },
		ClaimCode:  claimCode,
		CABundle:   func() []byte { return pemOf(authorities[0].Generations[0].Certificate) },
		Now:        box.clock.Now,
		TimeSource: "rtc",
		Log:        slog.New(slog.NewTextHandler(box.log, nil)),
		OnClaimed:  func() { box.claims++ },
		Source: func(r *http.Request) netip.Addr {
			if from := r.Header.Get("X-Test-Source"); from != "" {
				return netip.MustParseAddr(from)
			}
			return netip.MustParseAddrPort(r.RemoteAddr).Addr()
		},
	}
	cfg.Enroll = box.engine
	if cfg.Audit, err = store.NewLogSigner(st, "plant-7", newAuditKey(t), box.clock.Now); err != nil {
		t.Fatal(err)
	}
	box.fake = newFakeBox(authorities, box.clock.Now)
	cfg.Box = box.fake
	cfg.SCEP = func() []SCEPProfile { return demoSCEP(authorities[0]) }
	cfg.EST = func() []ESTProfile { return demoEST(authorities[0]) }
	cfg.Metrics = promhttp.HandlerFor(prometheus.NewRegistry(), promhttp.HandlerOpts{})
	cfg.Machine, cfg.History = demoMachine, demoHistory
	cfg.Mint = func(m Mint) (string, time.Time, error) {
		switch m.Profile {
		case "iot":
			return "SECRET-OF-" + m.CN, box.clock.Now().Add(m.TTL), nil
		case "corp":
			return "", time.Time{}, ErrNoOneTime
		}
		return "", time.Time{}, ErrNoProfile
	}
	cfg.ReloadTrust = func(profile, actor string) (string, error) {
		switch profile {
		case "intune":
			return profile, nil
		case "broken":
			return "", &TrustError{errors.New("trust/x.pem: no certificate in it")}
		case "corp", "":
			return "", ErrNoSigned
		}
		return "", ErrNoProfile
	}
	cfg.ReloadESTTrust = func(profile, actor string) (string, error) {
		switch profile {
		case "iot":
			return profile, nil
		case "broken":
			return "", &TrustError{errors.New("trust/bootstrap.pem: no certificate in it")}
		case "corp", "":
			return "", ErrNoESTTrust
		}
		return "", ErrNoProfile
	}
	for _, f := range change {
		f(&cfg)
	}
	if box.console, err = newConsole(cfg); err != nil {
		t.Fatal(err)
	}
	box.Server = httptest.NewTLSServer(box.console.handler())
	t.Cleanup(box.Close)
	return box
}

func demoBoot() handover.Boot {
	return handover.Boot{
		Kind: handover.KindBox, Version: "0.1.0", Epoch: 1, ClaimCode: claimCode, TimeSource: "rtc",
		TimeFloor:  start.Add(-36 * time.Hour),
		SecureBoot: "off: keys are not protected against a changed disk",
		PCR11:      "7d1a0c5e9b3f44d28e6a5b8a4f0e1d2c3b4a59687f6e5d4c3b2a190817f6e5d4",
		TPM: handover.TPM{Manufacturer: "IBM", Firmware: "20191023.00163636", LockoutCounter: 0,
			SRKName: "000b5f0a3c6e1b7d8a9250f4c3e2d1b0a9f8e7d6c5b4a3928170f6e5d4c3b2a19088"},
	}
}

func newAuditKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// demoAuthorities are two roots, and a subordinate that waits for its chain.
func demoAuthorities(t *testing.T) []AuthorityInfo {
	t.Helper()
	root := func(name, subject string) AuthorityInfo {
		ca, key := newCA(t, subject, 10*365*24*time.Hour)
		ra := newRA(t, ca, key, 365*24*time.Hour)
		return AuthorityInfo{Name: name, Mode: "root", Protection: "resident", RAs: []RAInfo{{Certificate: ra}},
			Generations: []GenerationInfo{{Number: 1, State: GenerationActive, Certificate: ca, Responder: ra,
				Published: pki.Locations{CRL: "http://pki.example/pki/" + name + ".crl", CAIssuers: "http://pki.example/pki/" + name + ".cer", OCSP: "http://pki.example/ocsp/" + name},
				CRL:       store.CRL{Number: 7, ThisUpdate: start.Add(-time.Hour), NextUpdate: start.Add(167 * time.Hour)}}}}
	}
	return []AuthorityInfo{root("devices", "Demo Devices CA"), root("modern", "Demo Modern CA"),
		{Name: "plant", Mode: "subordinate", Protection: "resident", Generations: []GenerationInfo{{Number: 1, State: GenerationWaiting}}}}
}

func demoSite() Site {
	return Site{
		Name: "demo", Version: "0.1.0", PublicHost: "localhost", Demo: true,
		Profiles: []Profile{
			{Name: "corp", Default: true, Authority: "devices", SCEP: []string{"https://localhost:8443/scep/corp", "http://localhost/scep/corp"},
				EST: []string{"https://localhost/.well-known/est/corp"}, Keys: DeviceKeys{RSABits: 2048, Curves: []string{"p256", "p384"}}, DNSNames: true,
				Usages: []string{"clientAuth", "serverAuth"}, Validity: 90 * 24 * time.Hour, RenewsWithin: 30 * 24 * time.Hour},
			{Name: "modern", Authority: "modern", SCEP: []string{"https://localhost:8443/scep/modern"}},
			{Name: "intune", Authority: "devices", SCEP: []string{"https://localhost:8443/scep/intune", "https://localhost:7444/scep/intune", "http://localhost/scep/intune"},
				Keys: DeviceKeys{RSABits: 2048}, Usages: []string{"clientAuth"}, Validity: 90 * 24 * time.Hour},
			{Name: "iot", Authority: "devices", SCEP: []string{"https://localhost:8443/scep/iot", "http://localhost/scep/iot", "https://localhost/scep-mtls/iot"},
				EST: []string{"https://localhost/.well-known/est/iot"}, Keys: DeviceKeys{RSABits: 2048}, DNSNames: true, Validity: 90 * 24 * time.Hour},
		},
	}
}

func newCA(t *testing.T, name string, life time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(start.UnixNano()), NotBefore: start.Add(-10 * time.Minute), NotAfter: start.Add(life),
		Subject: pkix.Name{CommonName: name, Organization: []string{"Signet Demo"}}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return newCertificate(t, template, template, key, key), key
}

func newRA(t *testing.T, ca *x509.Certificate, caKey *ecdsa.PrivateKey, life time.Duration) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newCertificate(t, &x509.Certificate{
		SerialNumber: big.NewInt(start.UnixNano() + 1), NotBefore: start.Add(-10 * time.Minute), NotAfter: start.Add(life),
		Subject: pkix.Name{CommonName: ca.Subject.CommonName + " RA"}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, ca, key, caKey)
}

func newCertificate(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func pemOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// reply is a response read to its end.
type reply struct {
	*http.Response
	body []byte
}

// send makes one request; change adds to it. Redirects are not followed.
func (b *testBox) send(method, path string, body io.Reader, change ...func(*http.Request)) reply {
	b.t.Helper()
	req, err := http.NewRequest(method, b.URL+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	client := *b.Client() // which others may be using
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return reply{resp, got}
}

func (b *testBox) get(path string, change ...func(*http.Request)) reply {
	b.t.Helper()
	return b.send(http.MethodGet, path, nil, change...)
}

// post sends v as JSON.
func (b *testBox) post(path string, v any, change ...func(*http.Request)) reply {
	b.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.send(http.MethodPost, path, bytes.NewReader(body), append([]func(*http.Request){header("Content-Type", mediaJSON)}, change...)...)
}

// submit sends a form as a browser does.
func (b *testBox) submit(path string, values url.Values, change ...func(*http.Request)) reply {
	b.t.Helper()
	return b.send(http.MethodPost, path, strings.NewReader(values.Encode()), append([]func(*http.Request){
		header("Content-Type", "application/x-www-form-urlencoded"), header("Sec-Fetch-Site", "same-origin")}, change...)...)
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func bearer(token string) func(*http.Request) { return header("Authorization", "Bearer "+token) }

func (r reply) cookie(t *testing.T) *http.Cookie {
	t.Helper()
	for _, c := range r.Cookies() {
		if c.Name == sessionCookie {
			return c
		}
	}
	t.Fatalf("status %d sets no session cookie", r.StatusCode)
	return nil
}

func withCookie(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) { r.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value}) }
}

func (r reply) decode(t *testing.T, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(r.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("status %d: %v in %s", r.StatusCode, err, r.body)
	}
}

// checkProblem holds r against the refusal it has to be.
func (r reply) checkProblem(t *testing.T, status int, kind string) Problem {
	t.Helper()
	var p Problem
	if got := r.Header.Get("Content-Type"); got != mediaProblem {
		t.Fatalf("status %d with Content-Type %q, want %s: %s", r.StatusCode, got, mediaProblem, r.body)
	}
	r.decode(t, &p)
	if r.StatusCode != status || p.Status != status || p.Type != problemType(kind) {
		t.Fatalf("status %d, problem %+v, want %d %s", r.StatusCode, p, status, kind)
	}
	if p.Mend == "" || p.Title == "" || p.ID == "" {
		t.Errorf("problem without mend, title or request id: %+v", p)
	}
	return p
}

// mustClaim claims the box as alice.
func (b *testBox) mustClaim() ClaimResponse {
	b.t.Helper()
	r := b.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "alice"})
	if r.StatusCode != http.StatusOK {
		b.t.Fatalf("claim: status %d: %s", r.StatusCode, r.body)
	}
	var out ClaimResponse
	r.decode(b.t, &out)
	return out
}

// records returns the whole audit log, newest first.
func (b *testBox) records() []audit.Record {
	b.t.Helper()
	records, err := b.store.Records(0, 1000)
	if err != nil {
		b.t.Fatal(err)
	}
	return records
}

// enroll writes what n enrollments leave in the log, some refused, some with names meant to harm.
func (b *testBox) enroll(n int) {
	b.t.Helper()
	names := []string{"printer-3f-west", "plc-line-07", "<script>alert(1)</script>", "laptop-anna.example.com", "switch-core-2", "cam-north\u202egnp.exe"}
	for i := range n {
		rec := audit.Record{
			Time: b.clock.Now().Add(time.Duration(i-n) * 7 * time.Minute), TimeSource: "rtc", Actor: audit.ActorDevice,
			Source: net.IPv4(10, 20, byte(i), 14).String(), Profile: "corp", Protocol: "scep", Transaction: fmt.Sprintf("tx-%d", i),
			Identity: names[i%len(names)], CSRSHA256: fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i)})),
		}
		begun, done := rec, rec
		serial := fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i), 1}))[:40]
		switch i % 5 {
		case 3:
			done.Action, done.Outcome, done.Reason = audit.SCEPRefused, audit.OutcomeRefused, "the challenge is wrong"
			if err := b.store.Append(done); err != nil {
				b.t.Fatal(err)
			}
			continue
		case 4:
			done.Outcome, done.Reason = audit.OutcomeFailed, "the TPM did not sign in time; nothing was issued"
		default:
			done.Outcome = audit.OutcomeSuccess
		}
		begun.Action, begun.Outcome, begun.Serial = audit.IssuanceBegun, audit.OutcomeBegun, serial
		done.Action, done.Serial = audit.SCEPPKCSReq, serial
		if err := b.store.Append(begun, done); err != nil {
			b.t.Fatal(err)
		}
	}
}
