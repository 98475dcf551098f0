package est

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/argon2"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/logtest"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const (
	user   = "device"
	secret = "corp-demo-password"
)

// What every service of these tests has in common, made once because it takes long.
var (
	secretHash = sync.OnceValue(func() string { return hashOf(secret) })
	rsaKeys    = sync.OnceValue(func() (keys [4]*rsa.PrivateKey) {
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

// hashOf is an argon2id hash as cheap as the box accepts.
func hashOf(secret string) string {
	salt := []byte("saltsaltsaltsalt")
	enc := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=19456,t=2,p=1$%s$%s", argon2.Version, enc(salt), enc(argon2.IDKey([]byte(secret), salt, 2, 19456, 1, 32)))
}

// service is the real thing but for the TPM: keys in software, Pebble in a temporary directory, TLS on loopback.
type service struct {
	t         testing.TB
	url       string // https://127.0.0.1:port of the listener with TLS 1.3
	legacy    string // of the one with TLS 1.2 too
	server    *Server
	engine    *enroll.Engine
	store     *store.Store
	log       *logtest.Buffer
	issuer    map[string]*pki.Issuer // by profile
	bootstrap authority              // of the profiles' bundle
	tls       authority              // of the listeners' certificates
	dir       string                 // holds tls.crt, what clients trust
	writes    *writes                // of the listeners
}

// newService starts a service with these profiles; all but tls13 on the legacy listener too. adjust may change the configuration.
//
//	corp      default; RSA CA; passwords, issued certificates; has csrattrs
//	modern    ECDSA CA; the same, and serverkeygen of elliptic curve keys
//	manual    what ends in .approve.test waits for a person; passwords and issued certificates
//	boot      client certificates of the bootstrap authority, no passwords
//	bound     channel binding required
//	loose     channel binding optional
//	keys      serverkeygen of RSA keys, signed by an RSA key
//	tls13     not on the legacy listener
//	waiting   its authority has no certificate yet
func newService(t testing.TB, adjust func(*Config)) *service {
	t.Helper()
	s := &service{t: t, log: &logtest.Buffer{}, issuer: map[string]*pki.Issuer{}, dir: t.TempDir(), writes: &writes{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	st, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s.store = st
	s.bootstrap = newAuthority(t, "CN=Bootstrap")
	s.tls = newAuthority(t, "CN=TLS")
	writePEM(t, filepath.Join(s.dir, "tls.crt"), "CERTIFICATE", s.tls.cert.Raw)

	passwords, err := challenge.NewGate(1).NewPasswords([]challenge.User{{Name: user, Hash: secretHash()}})
	if err != nil {
		t.Fatal(err)
	}
	bundle := x509.NewCertPool()
	bundle.AddCert(s.bootstrap.cert)
	ecCA := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	config := Config{Config: exchange.Config{Log: log}, Slots: exchange.NewSlots(32, 0)}
	var profiles []enroll.Profile
	for _, p := range []Profile{
		{Name: "corp", Default: true, CSRAttrs: csrAttrs(t), LegacyTLS: true, Basic: true},
		{Name: "modern", LegacyTLS: true, Basic: true, ServerKeyGen: "ecdsa-p256"},
		{Name: "manual", LegacyTLS: true, Basic: true, ServerKeyGen: "ecdsa-p256", RetryAfter: time.Second},
		{Name: "boot", LegacyTLS: true},
		{Name: "bound", LegacyTLS: true, Basic: true, ChannelBinding: "required"},
		{Name: "loose", LegacyTLS: true, Basic: true, ChannelBinding: "optional"},
		{Name: "keys", LegacyTLS: true, Basic: true, ServerKeyGen: "rsa-2048"},
		{Name: "tls13", Basic: true},
		{Name: "waiting", LegacyTLS: true, Basic: true},
	} {
		key := crypto.Signer(rsaKeys()[0])
		if p.Name == "modern" {
			key = ecCA
		}
		issuer := newIssuer(t, "CN="+p.Name+" CA,O=Test", key)
		s.issuer[p.Name] = issuer
		ra := parse(t, must(issuer.IssueRA(rsaKeys()[1].Public(), time.Now(), 365*24*time.Hour)))
		p.CACerts = func() [][]byte { return [][]byte{issuer.Certificate().Raw} }
		if p.Name == "keys" || p.Name == "modern" {
			p.KeySigner = func() (*x509.Certificate, crypto.Signer) { return ra, rsaKeys()[1] }
		}
		e := enroll.Profile{
			Name: p.Name, Policy: policy(t), Issuers: enroll.Always(issuer), Challenges: challenge.NewSet(challenge.Config{}),
			EST:     enroll.EST{On: true, Basic: passwords, Issued: true},
			Renewal: enroll.Renewal{Proof: enroll.ProofCertificate, Window: 91 * 24 * time.Hour}, // at any time of a certificate's life
		}
		switch p.Name {
		case "manual":
			e.Approval.ManualIf = []string{".approve.test"}
		case "boot":
			e.EST.Basic, e.EST.Bundle = nil, func() *x509.CertPool { return bundle }
		case "waiting":
			e.Issuers = func() enroll.Issuers { return enroll.Issuers{} }
			p.CACerts = func() [][]byte { return nil }
		}
		config.Profiles = append(config.Profiles, p)
		profiles = append(profiles, e)
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
	s.url = s.listen(s.server.Handler(false), tls.VersionTLS13)
	s.legacy = s.listen(s.server.Handler(true), tls.VersionTLS12)
	return s
}

// in is the service for a subtest.
func (s *service) in(t testing.TB) *service {
	sub := *s
	sub.t = t
	return &sub
}

// listen serves a handler as the box does: client certificates are asked for and not verified.
func (s *service) listen(h http.Handler, version uint16) string {
	s.t.Helper()
	web := httptest.NewUnstartedServer(h)
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	var certificates []tls.Certificate
	for _, key := range []crypto.Signer{ec, rsaKeys()[2]} {
		certificates = append(certificates, tls.Certificate{Certificate: [][]byte{s.tls.issue(s.t, template, key.Public()).Raw}, PrivateKey: key})
	}
	web.TLS = &tls.Config{MinVersion: version, Certificates: certificates, ClientAuth: tls.RequestClientCert, DynamicRecordSizingDisabled: true}
	web.Listener = writeListener{web.Listener, s.writes}
	web.StartTLS()
	s.t.Cleanup(web.Close)
	return web.URL
}

// writes are the sizes of what was written to connections, in order.
type writes struct {
	mu    sync.Mutex
	sizes []int
}

// drain returns the writes of more than an alert since the last time.
func (w *writes) drain() (sizes []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.sizes {
		if n > 64 {
			sizes = append(sizes, n)
		}
	}
	w.sizes = nil
	return sizes
}

type writeListener struct {
	net.Listener
	writes *writes
}

func (l writeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return writeConn{c, l.writes}, err
}

type writeConn struct {
	net.Conn
	writes *writes
}

func (c writeConn) Write(b []byte) (int, error) {
	c.writes.mu.Lock()
	c.writes.sizes = append(c.writes.sizes, len(b))
	c.writes.mu.Unlock()
	return c.Conn.Write(b)
}

// csrAttrs is an answer to csrattrs as RFC 9908 §3 has it: an attribute with a value and an OID.
func csrAttrs(t testing.TB) []byte {
	t.Helper()
	return must(asn1.Marshal([]asn1.RawValue{
		{FullBytes: attribute(asn1.ObjectIdentifier{2, 5, 4, 10}, must(asn1.Marshal("Test")))},
		{FullBytes: must(asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}))},
	}))
}

func policy(t testing.TB) *pki.Profile {
	t.Helper()
	p, err := pki.NewProfile(pki.ProfileConfig{
		Keys:     pki.KeyConfig{RSA: &pki.RSAConfig{MinBits: 2048}, ECDSA: []string{"p256"}},
		Subject:  pki.SubjectConfig{Allow: []string{"CN", "O", "OU", "C", "L", "ST", "serialNumber"}},
		SAN:      pki.SANConfig{DNS: []string{"*"}, IP: []string{"0.0.0.0/0"}},
		Usage:    pki.UsageConfig{Key: []string{"digitalSignature", "keyEncipherment", "keyAgreement"}, Extended: []string{"clientAuth"}},
		Validity: 90 * 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// authority is a CA that is none of the box's profiles.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, dn string) authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return authority{newIssuer(t, dn, key).Certificate(), key}
}

func (a authority) issue(t testing.TB, template x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	return parse(t, must(x509.CreateCertificate(rand.Reader, &template, a.cert, public, a.key)))
}

// device issues a certificate for clientAuth.
func (a authority) device(t testing.TB, cn string, key crypto.Signer, usage x509.KeyUsage) tls.Certificate {
	t.Helper()
	c := a.issue(t, x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: usage, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, SubjectKeyId: []byte("key of " + cn),
	}, key.Public())
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
}

func newIssuer(t testing.TB, dn string, key crypto.Signer) *pki.Issuer {
	t.Helper()
	subject, err := pki.ParseDN(dn)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewRoot(subject, key, time.Now(), 10*365*24*time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.NewIssuer(parse(t, der), key)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

// device is a client of these tests: what it sends is as a test wants it.
type device struct {
	s    *service
	url  string          // of a listener
	cert tls.Certificate // shown in TLS; none where empty
	max  uint16          // version of TLS, at most; 0: any
	key  crypto.Signer   // in its requests
	cn   string
	user string // "": no credentials
	pass string
}

func (s *service) device(cn string) *device {
	return &device{s: s, url: s.url, cn: cn, key: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), user: user, pass: secret}
}

// csr is a request of the device in DER.
func (d *device) csr(extra ...[]byte) []byte {
	d.s.t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.cn}, DNSNames: []string{"dev.example.com"}}
	if len(extra) > 0 {
		return csrWith(d.s.t, template, d.key, extra...)
	}
	return must(x509.CreateCertificateRequest(rand.Reader, template, d.key))
}

// client is an HTTP client of the device without redirects and without HTTP/2.
func (d *device) client() *http.Client {
	config := &tls.Config{MaxVersion: d.max, RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(d.s.tls.cert)
	if d.cert.Certificate != nil {
		config.Certificates = []tls.Certificate{d.cert}
	}
	transport := &http.Transport{TLSClientConfig: config}
	d.s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request with a body to an operation of a profile ("corp/simpleenroll").
func (d *device) do(method, path string, body []byte, header ...string) answer {
	d.s.t.Helper()
	r, err := http.NewRequest(method, d.url+"/.well-known/est/"+path, bytes.NewReader(body))
	if err != nil {
		d.s.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/pkcs10")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i+1] == "" {
			r.Header.Del(header[i])
		}
	}
	if d.user != "" {
		r.SetBasicAuth(d.user, d.pass)
	}
	return do(d.s.t, d.client(), r)
}

func do(t testing.TB, client *http.Client, r *http.Request) answer {
	t.Helper()
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// post sends the device's request in base64.
func (d *device) post(path string) answer {
	d.s.t.Helper()
	return d.do(http.MethodPost, path, []byte(base64.StdEncoding.EncodeToString(d.csr())))
}

// enrolled checks that an answer is exactly one certificate of the profile for the device's key, and returns it.
func (d *device) enrolled(profile string, a answer) *x509.Certificate {
	d.s.t.Helper()
	c := d.s.certificate(a)
	if err := c.CheckSignatureFrom(d.s.issuer[profile].Certificate()); err != nil {
		d.s.t.Error(err)
	}
	if !d.key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(c.PublicKey) || c.Subject.CommonName != d.cn {
		d.s.t.Errorf("the certificate is for %v or another key", c.Subject)
	}
	return c
}

// certificate reads the answer to simpleenroll.
func (s *service) certificate(a answer) *x509.Certificate {
	s.t.Helper()
	if a.status != 200 || a.header.Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || a.header.Get("Content-Transfer-Encoding") != "base64" {
		s.t.Fatalf("%d %v %s\nlog:\n%s", a.status, a.header, a.body, s.log)
	}
	certs := certsOnly(s.t, decoded(s.t, a.body))
	if len(certs) != 1 {
		s.t.Fatalf("%d certificates", len(certs))
	}
	return certs[0]
}

// certsOnly reads a certs-only message with a parser that is not ours.
func certsOnly(t testing.TB, der []byte) []*x509.Certificate {
	t.Helper()
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return p7.Certificates
}

// decoded reads base64 in any lines.
func decoded(t testing.TB, text []byte) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// with is the device with the certificate it got.
func (d *device) with(c *x509.Certificate) *device {
	other := *d
	other.cert = tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: d.key}
	other.user = ""
	return &other
}

// refused checks a refusal: status, plain text that says what, and Content-Length.
func (s *service) refused(a answer, status int, says string) {
	s.t.Helper()
	if a.status != status || !strings.Contains(string(a.body), says) {
		s.t.Errorf("%d %q; want %d and %q", a.status, a.body, status, says)
		return
	}
	if a.header.Get("Content-Type") != "text/plain" || !bytes.HasSuffix(a.body, []byte("\n")) || bytes.Count(a.body, []byte("\n")) != 1 {
		s.t.Errorf("%v %q: want one line of plain text", a.header, a.body)
	}
}

// records are the audit records of an outcome.
func (s *service) records(outcome audit.Outcome) (found []audit.Record) {
	s.t.Helper()
	all, err := s.store.Records(0, 1000)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range all {
		if r.Outcome == outcome {
			found = append(found, r)
		}
	}
	return found
}

// checkLog fails where a password got into the log.
func (s *service) checkLog() {
	s.t.Helper()
	for _, word := range []string{secret, "wrong-password", base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))} {
		if strings.Contains(s.log.String(), word) {
			s.t.Errorf("the log holds the password %q:\n%s", word, s.log)
		}
	}
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
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
