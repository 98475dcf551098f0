package scep

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/logtest"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const secret = "corp-demo-challenge"

// What every service of these tests has in common, made once because it takes long.
var (
	secretHash = sync.OnceValue(func() string { return phc.Make([]byte(secret)) })
	boxKeys    = sync.OnceValue(func() (keys [2]*rsa.PrivateKey) {
		for i := range keys {
			keys[i] = must(rsa.GenerateKey(rand.Reader, 2048))
		}
		return keys
	})
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// service is the real thing but for the TPM: keys in software, Pebble in a temporary directory, HTTP on loopback.
type service struct {
	t      testing.TB
	url    string // http://127.0.0.1:port of the plain listener
	server *Server
	engine *enroll.Engine
	store  *store.Store
	log    *logtest.Buffer
	ca, ra map[string]*x509.Certificate // by profile
	issuer map[string]*pki.Issuer
	issues map[string]*atomic.Pointer[enroll.Issuers]
	raKey  *rsa.PrivateKey
	secure *httptest.Server // see postSecure
	off    atomic.Value     // name of the profile that is switched off

	mu    sync.Mutex
	posts []exchanged // PKIOperations seen, oldest first
}

// exchanged is a PKIOperation as it went over the wire.
type exchanged struct {
	method, uri   string
	body          []byte
	status        int
	reply         []byte
	header        http.Header
	requestHeader http.Header
}

// newService starts a service with the profiles corp (RSA CA, default, renews) and modern (ECDSA CA), legacy with all four switches,
// iot which renews, raw which takes bare requests, both of which hold requests for *.approve.test, and tlsonly; all but that on plain HTTP. adjust may change the configuration.
func newService(t testing.TB, adjust func(*Config)) *service {
	t.Helper()
	s := &service{t: t, log: &logtest.Buffer{}, ca: map[string]*x509.Certificate{}, ra: map[string]*x509.Certificate{}, issuer: map[string]*pki.Issuer{}, issues: map[string]*atomic.Pointer[enroll.Issuers]{}}
	now := time.Now()
	log := slog.New(slog.NewTextHandler(s.log, nil))

	st, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s.store = st
	static, err := challenge.NewGate(1).NewStatic(secretHash())
	if err != nil {
		t.Fatal(err)
	}
	challenges := challenge.NewSet(challenge.Config{Static: static})
	policy, err := pki.NewProfile(pki.ProfileConfig{
		Keys:     pki.KeyConfig{RSA: &pki.RSAConfig{MinBits: 2048}, ECDSA: []string{"p256"}},
		Subject:  pki.SubjectConfig{Allow: []string{"CN", "O", "OU", "C", "L", "ST", "serialNumber"}},
		SAN:      pki.SANConfig{DNS: []string{"*"}, IP: []string{"0.0.0.0/0"}},
		Usage:    pki.UsageConfig{Key: []string{"digitalSignature", "keyEncipherment"}, Extended: []string{"clientAuth"}},
		Validity: 90 * 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}

	s.raKey = boxKeys()[0]
	rsaCA := crypto.Signer(boxKeys()[1])
	ecCA, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Config: exchange.Config{Log: log}, Slots: exchange.NewSlots(32, 0)}
	var profiles []enroll.Profile
	for _, p := range []Profile{
		{Name: "corp", Default: true, PlainHTTP: true, Renewal: true, GetCACert: "ra+chain"},
		{Name: "modern", PlainHTTP: true, Chain: true, GetCACert: "ra+ca"},
		{Name: "tlsonly", GetCACert: "ra"},
		{Name: "legacy", PlainHTTP: true, GetCACert: "ra+chain", Legacy: Legacy{SHA1: true, DES3: true, DESDecrypt: true, MD5: true}},
		{Name: "iot", PlainHTTP: true, GetCACert: "ra+chain", Renewal: true},
		{Name: "raw", PlainHTTP: true, GetCACert: "ra+chain", RawCSR: true},
	} {
		key := rsaCA
		if p.Name == "modern" {
			key = ecCA
		}
		issuer := newIssuer(t, "CN="+p.Name+" CA,O=Test", key, now)
		der, err := issuer.IssueRA(s.raKey.Public(), now, 365*24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		var renewal enroll.Renewal
		var approval enroll.Approval
		if p.Renewal { // at any time of a certificate's life
			renewal = enroll.Renewal{Proof: enroll.ProofCertificate, Window: 91 * 24 * time.Hour}
		}
		if p.Name == "iot" || p.Name == "raw" {
			approval.ManualIf = []string{".approve.test"}
		}
		ca, ra := issuer.Certificate(), parse(t, der)
		p.Authority = always(Authority{CA: ca, RAs: []RA{{ra, s.raKey, s.raKey}}})
		p.Off = func() bool { return s.off.Load() == p.Name }
		s.ca[p.Name], s.ra[p.Name], s.issuer[p.Name] = ca, ra, issuer
		config.Profiles = append(config.Profiles, p)
		issues := &atomic.Pointer[enroll.Issuers]{}
		issues.Store(&enroll.Issuers{Active: issuer})
		s.issues[p.Name] = issues
		profiles = append(profiles, enroll.Profile{
			Name: p.Name, Policy: policy, Issuers: func() enroll.Issuers { return *issues.Load() },
			Off:        p.Off,
			Challenges: challenges, RawCSR: p.RawCSR, Renewal: renewal, Approval: approval,
		})
	}
	engine, err := enroll.New(enroll.Config{Store: st, Profiles: profiles, Now: time.Now, TimeSource: "test", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	s.engine, config.Engine = engine, engine
	if adjust != nil {
		adjust(&config)
	}
	if s.server, err = New(config); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.record(s.server.Handler(true)))
	t.Cleanup(web.Close)
	s.url = web.URL
	return s
}

// always is the Authority that never changes.
func always(a Authority) func() *Authority { return func() *Authority { return &a } }

// record keeps what passes, so that a test can send it again.
func (s *service) record(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.RawQuery, "operation=PKIOperation") {
			h.ServeHTTP(w, r)
			return
		}
		body := &bytes.Buffer{}
		r.Body = io.NopCloser(io.TeeReader(r.Body, body))
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		s.mu.Lock()
		s.posts = append(s.posts, exchanged{r.Method, r.URL.RequestURI(), body.Bytes(), rec.Code, rec.Body.Bytes(), rec.Header(), r.Header})
		s.mu.Unlock()
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	})
}

// last is the newest PKIOperation.
func (s *service) last() exchanged {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.posts) == 0 {
		s.t.Fatal("no PKIOperation arrived")
	}
	return s.posts[len(s.posts)-1]
}

// records are the audit records, oldest first.
func (s *service) records() []audit.Record {
	s.t.Helper()
	recs, err := s.store.Records(0, 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	for i, j := 0, len(recs)-1; i < j; i, j = i+1, j-1 {
		recs[i], recs[j] = recs[j], recs[i]
	}
	return recs
}

// checkReplayed sends a recorded PKIOperation again: it must be answered with the same certificate, and nothing new may be issued.
func (s *service) checkReplayed(e exchanged, profile string, want *x509.Certificate) {
	s.t.Helper()
	issued := s.outcomes("success")
	before := s.openReply(e)
	r, err := http.NewRequest(e.method, s.url+e.uri, bytes.NewReader(e.body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	again := s.openReply(s.last())
	if again.status != "0" || again.transaction != before.transaction || !bytes.Equal(again.recipient, before.recipient) {
		s.t.Errorf("sent again: pkiStatus %s, transaction %q", again.status, again.transaction)
	}
	if bytes.Equal(again.sender, before.sender) {
		s.t.Error("two replies with the same senderNonce")
	}
	if got := s.outcomes("success"); got != issued {
		s.t.Errorf("%d certificates issued after the same request came again, %d before", got, issued)
	}
	if n := strings.Count(s.log.String(), "outcome=replayed"); n != 1 {
		s.t.Errorf("%d replays in the log:\n%s", n, s.log)
	}
	if !strings.Contains(s.log.String(), "serial="+hex.EncodeToString(want.SerialNumber.Bytes())) {
		s.t.Errorf("serial %x is not in the log", want.SerialNumber)
	}
}

// outcomes counts audit records of an outcome.
func (s *service) outcomes(outcome audit.Outcome) (n int) {
	for _, r := range s.records() {
		if r.Outcome == outcome {
			n++
		}
	}
	return n
}

// checkRecord wants exactly one audit record of an outcome, and returns it.
func (s *service) checkRecord(outcome audit.Outcome, profile string) audit.Record {
	s.t.Helper()
	var found []audit.Record
	for _, r := range s.records() {
		if r.Outcome == outcome && r.Profile == profile {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		s.t.Fatalf("%d audit records with outcome %s of profile %s", len(found), outcome, profile)
	}
	return found[0]
}

// checkLog fails where a challenge got into the log.
func (s *service) checkLog() {
	s.t.Helper()
	for _, word := range []string{secret, "wrong-challenge"} {
		if strings.Contains(s.log.String(), word) {
			s.t.Errorf("the log holds the challenge %q:\n%s", word, s.log)
		}
	}
}

// newIssuer makes a root CA.
func newIssuer(t testing.TB, dn string, key crypto.Signer, now time.Time) *pki.Issuer {
	t.Helper()
	subject, err := pki.ParseDN(dn)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewRoot(subject, key, now, 10*365*24*time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.NewIssuer(parse(t, der), key)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// writePEM writes certificates or a key for a client to read, and returns the file's name.
func writePEM(t testing.TB, name, kind string, blocks ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	for _, der := range blocks {
		pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	}
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
