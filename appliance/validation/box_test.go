package validation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/needtest"
	"signet.internal/appliance/pki"
)

// box is a server over authority devices in two generations, one without OCSP, and a store that a test
// writes by hand.
type box struct {
	t         testing.TB
	url       string
	dir       string // for files of clients
	log       *bytes.Buffer
	server    *Server
	signer    *signer // of both responders
	records   *records
	first     Generation
	second    Generation
	good      *x509.Certificate // three of the first generation
	revoked   *x509.Certificate
	unknown   *x509.Certificate // the records have nothing of it
	goodNewer *x509.Certificate // of the second generation

	mu          sync.Mutex
	ahead       time.Duration // of the box's clock
	authorities []Authority
}

func (b *box) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.ahead)
}

// records are the engine's part, by serial.
type records struct {
	now func() time.Time

	mu        sync.Mutex
	statuses  map[[sha256.Size]byte]map[string]enroll.CertStatus
	number    uint64 // of the current lists; a higher one has them signed anew
	lists     map[*pki.Issuer]enroll.CRL
	err       error // every answer, if set
	condition *enroll.Condition
}

func (r *records) CertificateStatus(issuer [sha256.Size]byte, serial string) (enroll.CertStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if st, ok := r.statuses[issuer][serial]; ok || r.err != nil {
		return st, r.err
	}
	return enroll.CertStatus{State: enroll.Unknown}, nil
}

func (r *records) IssuerCRL(_ context.Context, issuer *pki.Issuer) (enroll.CRL, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return enroll.CRL{}, r.err
	}
	if kept := r.lists[issuer]; kept.Number == r.number {
		return kept, nil
	}
	now := r.now().UTC().Truncate(time.Second)
	list := pki.CRL{Number: r.number, ThisUpdate: now, NextUpdate: now.Add(7 * 24 * time.Hour)}
	for serial, st := range r.statuses[issuer.ID()] {
		if st.State == enroll.Revoked {
			list.Revoked = append(list.Revoked, pki.RevokedSerial{Serial: serial, At: st.At, Reason: st.Reason})
		}
	}
	der, err := issuer.SignCRL(list)
	r.lists[issuer] = enroll.CRL{DER: der, Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate}
	return r.lists[issuer], err
}

func (r *records) Condition() *enroll.Condition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.condition
}

// set records what is known of a certificate of a generation.
func (r *records) set(g Generation, cert *x509.Certificate, st enroll.CertStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := g.Issuer.ID()
	if r.statuses[id] == nil {
		r.statuses[id] = map[string]enroll.CertStatus{}
	}
	r.statuses[id][hex.EncodeToString(cert.SerialNumber.Bytes())] = st
}

func (r *records) fail(err error, condition *enroll.Condition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.condition = err, condition
}

// signer counts signatures, and fails with err if that is set.
type signer struct {
	crypto.Signer

	mu   sync.Mutex
	n    int
	err  error
	hold chan struct{} // every signature waits for it to be closed; nil: none does
}

func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.mu.Lock()
	s.n++
	err, hold := s.err, s.hold
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if err != nil {
		return nil, err
	}
	return s.Signer.Sign(random, digest, opts)
}

func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func (s *signer) set(err error, hold chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.hold = err, hold
}

var errHolderBusy = errors.New("key holder is busy")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

// newBox starts a server; change may alter its configuration first.
func newBox(t testing.TB, change func(*Config)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), log: &bytes.Buffer{}, signer: &signer{Signer: newKey(t)}}
	b.records = &records{now: b.now, statuses: map[[sha256.Size]byte]map[string]enroll.CertStatus{}, lists: map[*pki.Issuer]enroll.CRL{}, number: 1}
	b.first, b.second = b.generation(1), b.generation(2)
	b.good, b.revoked, b.unknown = b.issue(b.first), b.issue(b.first), b.issue(b.first)
	b.goodNewer = b.issue(b.second)
	b.records.set(b.first, b.good, enroll.CertStatus{State: enroll.Good})
	b.records.set(b.second, b.goodNewer, enroll.CertStatus{State: enroll.Good})
	b.records.set(b.first, b.revoked, enroll.CertStatus{State: enroll.Revoked, At: b.now().Add(-time.Hour), Reason: 1})
	silent := b.generation(1)
	silent.Responder = nil
	b.authorities = []Authority{{Name: "devices", Generations: []Generation{b.first, b.second}}, {Name: "silent", Generations: []Generation{silent}}}
	c := Config{
		Config: exchange.Config{
			Log: slog.New(slog.NewTextHandler(&locked{w: b.log}, nil)), Now: b.now, IsBusy: func(err error) bool { return errors.Is(err, errHolderBusy) },
		},
		Engine: b.records,
		Authorities: func() []Authority {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.authorities
		},
	}
	if change != nil {
		change(&c)
	}
	var err error
	b.server, err = New(c)
	must(t, err)
	listener := httptest.NewServer(b.server.Handler())
	t.Cleanup(listener.Close)
	b.url = listener.URL
	b.pemFile("ca.pem", b.first.Issuer.Certificate())
	return b
}

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// generation makes an authority key with its responder.
func (b *box) generation(number int) Generation {
	b.t.Helper()
	key := newKey(b.t)
	subject, err := pki.ParseDN("CN=Devices,O=Signet")
	must(b.t, err)
	der, err := pki.NewRoot(subject, key, b.now().Add(-time.Hour), 3650*24*time.Hour, nil)
	must(b.t, err)
	issuer, err := pki.NewIssuer(parse(b.t, der), key)
	must(b.t, err)
	return b.withResponder(Generation{Number: number, Issuer: issuer}, 30*24*time.Hour)
}

// withResponder gives a generation a new responder certificate.
func (b *box) withResponder(g Generation, validity time.Duration) Generation {
	b.t.Helper()
	der, err := g.Issuer.IssueResponder(b.signer.Public(), b.now(), validity)
	must(b.t, err)
	g.Responder, err = pki.NewResponder(g.Issuer.Certificate(), parse(b.t, der), b.signer)
	must(b.t, err)
	g.Own = []*x509.Certificate{parse(b.t, der)}
	return g
}

// issue makes a certificate of the generation that the records do not have.
func (b *box) issue(g Generation) *x509.Certificate {
	b.t.Helper()
	der, err := g.Issuer.IssueServer(newKey(b.t).Public(), []string{"printer.example.com"}, nil, b.now(), 90*24*time.Hour)
	must(b.t, err)
	return parse(b.t, der)
}

func (b *box) pemFile(name string, cert *x509.Certificate) string {
	b.t.Helper()
	file := filepath.Join(b.dir, name)
	must(b.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600))
	return file
}

// request is the DER of an OCSP request for a certificate of the first generation.
func (b *box) request(cert *x509.Certificate) []byte {
	b.t.Helper()
	der, err := ocsp.CreateRequest(cert, b.first.Issuer.Certificate(), nil)
	must(b.t, err)
	return der
}

// withNonce puts a nonce in a request that has no extensions.
func withNonce(t testing.TB, request, nonce []byte) []byte {
	t.Helper()
	if request[1] >= 0x80 {
		t.Fatal("the request is too long for this helper")
	}
	tbs := request[4:] // OCSPRequest and TBSRequest have two octets of header each
	oid := []byte{0x06, 0x09, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02}
	extension := element(0x30, append(oid, element(0x04, element(0x04, nonce))...))
	return element(0x30, element(0x30, append(bytes.Clone(tbs), element(0xa2, element(0x30, extension))...)))
}

// element is an element with the shortest length octets.
func element(tag byte, content []byte) []byte {
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

// post sends an OCSP request to authority devices.
func (b *box) post(der []byte) (*http.Response, []byte) {
	b.t.Helper()
	r, err := http.Post(b.url+"/ocsp/devices", "application/ocsp-request", bytes.NewReader(der))
	must(b.t, err)
	return read(b.t, r)
}

func read(t testing.TB, r *http.Response) (*http.Response, []byte) {
	t.Helper()
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	must(t, err)
	return r, body
}

// do sends a request with headers given as name, value, …
func (b *box) do(method, path string, headers ...string) (*http.Response, []byte) {
	b.t.Helper()
	r, err := http.NewRequest(method, b.url+path, nil)
	must(b.t, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	must(b.t, err)
	return read(b.t, response)
}

// check reads a response for a certificate of the first generation and holds it against want.
func (b *box) check(der []byte, cert *x509.Certificate, want int) *ocsp.Response {
	b.t.Helper()
	r, err := ocsp.ParseResponseForCert(der, cert, b.first.Issuer.Certificate())
	if err != nil {
		b.t.Fatalf("%v: %x", err, der)
	}
	if r.Status != want {
		b.t.Errorf("status %d, want %d", r.Status, want)
	}
	return r
}

// checkError holds an answer against an OCSP error: these octets and no more.
func (b *box) checkError(r *http.Response, body []byte, want pki.OCSPError) {
	b.t.Helper()
	if r.StatusCode != http.StatusOK || !bytes.Equal(body, want.Response()) || r.Header.Get("Content-Type") != "application/ocsp-response" {
		b.t.Errorf("status %d, %s, %q; want OCSP error %d", r.StatusCode, r.Header.Get("Content-Type"), body, want)
	}
	if got := r.Header.Get("Cache-Control"); got != "no-store" {
		b.t.Errorf("an error may be cached: %q", got)
	}
}

// tool runs a client these tests hold the package against.
func tool(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	packages := map[string]string{"openssl": "openssl", "curl": "curl", "ocsptool": "gnutls-bin", "pki": "strongswan-pki"}
	out, err := exec.Command(needtest.Program(t, name, packages[name]), args...).CombinedOutput()
	return string(out), err
}

// wantOutput runs a client that has to succeed and to say all of want.
func wantOutput(t testing.TB, name string, args []string, want ...string) {
	t.Helper()
	out, err := tool(t, name, args...)
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		return
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%s %s does not say %q:\n%s", name, strings.Join(args, " "), w, out)
		}
	}
}
