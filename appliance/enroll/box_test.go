package enroll

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/argon2"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

const secret = "corp-demo-challenge"

var (
	start  = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	source = netip.MustParseAddr("192.0.2.1")
)

// box is an engine with all its parts real but the key holder: the signer is a software key whose
// next calls a test can watch, hold or fail.
type box struct {
	t      testing.TB
	fs     *vfs.MemFS
	signer *signer
	issuer *pki.Issuer
	next   *pki.Issuer // of the authority's next generation, where a test made one
	clock  *clock
	store  *store.Store
	engine *Engine

	timeSource string // of the engine's clock; "": host

	oneTime   map[string]*challenge.OneTime // by profile, of the engine's
	connector *device                       // signs challenges of profile signed
}

const validity = 90 * 24 * time.Hour

func newBox(t testing.TB) *box {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	b := &box{t: t, connector: newDevice(t), fs: vfs.NewCrashableMem(), signer: &signer{Signer: key}, clock: &clock{now: start}}
	subject, err := pki.ParseDN("CN=Test CA")
	must(t, err)
	der, err := pki.NewRoot(subject, key, start.Add(-time.Hour), 10*365*24*time.Hour, nil)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	b.issuer, err = pki.NewIssuer(cert, b.signer)
	must(t, err)
	b.open(store.Options{Dir: "state", FS: b.fs})
	return b
}

// open starts the box on what is on the disk.
func (b *box) open(o store.Options) {
	b.t.Helper()
	st, err := store.Open(o)
	must(b.t, err)
	b.store = st
	b.engine, err = New(Config{
		Store: st, Profiles: b.profiles(),
		Now: b.clock.Now, TimeSource: cmp.Or(b.timeSource, "host"), TimeFloor: start.Add(-time.Hour),
		Log:      slog.New(slog.DiscardHandler),
		OwnNames: func() []string { return []string{"box.example.com"} },
		IsBusy:   func(err error) bool { return errors.Is(err, errHolderBusy) },
	})
	must(b.t, err)
}

// profiles are what the tests enroll by.
func (b *box) profiles() []Profile {
	b.t.Helper()
	policy, err := pki.NewProfile(pki.ProfileConfig{
		Keys:     pki.KeyConfig{RSA: &pki.RSAConfig{MinBits: 2048}, ECDSA: []string{"p256"}},
		Subject:  pki.SubjectConfig{Allow: []string{"CN"}},
		SAN:      pki.SANConfig{DNS: []string{"*.example.com"}},
		Usage:    pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}},
		Validity: validity,
	})
	must(b.t, err)
	static, err := challenge.NewGate(1).NewStatic(hashOf(secret))
	must(b.t, err)
	once, err := challenge.NewOneTime(challenge.OneTimeConfig{Store: b.store, Profile: "once", TTL: 24 * time.Hour})
	must(b.t, err)
	onceManual, err := challenge.NewOneTime(challenge.OneTimeConfig{Store: b.store, Profile: "manual", TTL: 24 * time.Hour})
	must(b.t, err)
	b.oneTime = map[string]*challenge.OneTime{"once": once, "manual": onceManual}
	byCertificate := Renewal{Proof: ProofCertificate, Window: validity}
	signed, err := challenge.NewSigned(challenge.SignedConfig{
		Store: b.store, Signers: b.connector.signers(b.t), Issuer: "connector", Audience: "box", Validity: time.Hour, PerDevice: 3,
	})
	must(b.t, err)
	all := []Profile{
		{Name: "corp", Renewal: byCertificate, RawCSR: true},
		{Name: "closed"},
		{Name: "narrow", Renewal: Renewal{Proof: ProofCertificate, Window: 30 * 24 * time.Hour, Grace: 7 * 24 * time.Hour}},
		{Name: "strict", Renewal: Renewal{Proof: ProofCertificateChallenge, Window: validity}},
		{Name: "manual", Renewal: byCertificate, Approval: Approval{Manual: true}, Limits: Limits{PerProfile: 100}},
		{Name: "suffix", Renewal: byCertificate, Approval: Approval{ManualIf: []string{".approve.test"}}},
		{Name: "limited", Renewal: byCertificate, Limits: Limits{PerSource: 2, PerProfile: 3}},
		{Name: "once", Renewal: byCertificate},
		{Name: "signed", Renewal: Renewal{Proof: ProofCertificateChallenge, Window: validity}},
		{Name: "compliant", Renewal: byCertificate, Compliance: func(_ context.Context, r Request) error {
			if r.CSR.Identity() == "rooted-phone" {
				return errors.New("not compliant: rooted")
			}
			return nil
		}},
	}
	for i := range all {
		all[i].Policy, all[i].Issuers = policy, Always(b.issuer)
		config := challenge.Config{Static: static, OneTime: b.oneTime[all[i].Name]}
		if all[i].Name == "closed" || all[i].Name == "once" {
			config.Static = nil
		}
		if all[i].Name == "signed" {
			config = challenge.Config{Signed: signed}
		}
		all[i].Challenges = challenge.NewSet(config)
	}
	return all
}

// mint makes a one-time challenge of a profile for a common name.
func (b *box) mint(profile, cn string) string {
	b.t.Helper()
	secret, _, err := b.oneTime[profile].Mint(cn, nil, 0, b.clock.Now(), func(g store.Guard) error {
		return b.store.Mint(g, audit.Record{Time: b.clock.Now(), TimeSource: "host", Action: audit.ChallengeMinted, Outcome: audit.OutcomeSuccess})
	})
	must(b.t, err)
	return secret
}

// signers trust a device to sign challenges.
func (d *device) signers(t testing.TB) *challenge.Signers {
	t.Helper()
	cert, err := x509.ParseCertificate(d.selfSigned(pkix.Name{CommonName: "connector"}))
	must(t, err)
	signers, err := challenge.NewSigners([]*x509.Certificate{cert})
	must(t, err)
	return signers
}

// token is a challenge that the connector signs for a device.
func (b *box) token(cn string) string {
	b.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: b.connector.key}, nil)
	must(b.t, err)
	now := b.clock.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": "connector", "sub": "device-" + cn, "aud": "box", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"nonce": fmt.Sprintf("%x", nonce()), "device_name": cn,
	})
	must(b.t, err)
	jws, err := signer.Sign(claims)
	must(b.t, err)
	compact, err := jws.CompactSerialize()
	must(b.t, err)
	return compact
}

// close shuts the box down in good order and checks what it leaves.
func (b *box) close() {
	b.t.Helper()
	must(b.t, b.engine.Close())
	b.check()
	must(b.t, b.store.Close())
}

// crash cuts the power: the box goes on with what was synced. The old one must not be used again.
func (b *box) crash() {
	b.t.Helper()
	b.fs = b.fs.CrashClone(vfs.CrashCloneCfg{})
	b.open(store.Options{Dir: "state", FS: b.fs, MustExist: true})
}

// check holds the audit log, the transactions and the certificates against each other.
func (b *box) check() {
	b.t.Helper()
	begun, decided := map[string]int{}, map[string]audit.Outcome{}
	for _, r := range b.log() {
		switch r.Action {
		case audit.IssuanceBegun:
			begun[r.Serial]++
		case audit.SCEPPKCSReq, audit.SCEPRenewalReq, audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune, audit.TransactionLost,
			audit.ESTSimpleEnroll, audit.ESTSimpleReenroll, audit.ESTServerKeyGen:
			if before, ok := decided[r.Serial]; ok {
				b.t.Errorf("serial %s is %s after it was %s", r.Serial, r.Outcome, before)
			}
			decided[r.Serial] = r.Outcome
		}
	}
	for serial, n := range begun {
		x, err := b.store.Transaction(serial)
		must(b.t, err)
		want := map[store.State]audit.Outcome{
			store.Issued: audit.OutcomeSuccess, store.Failed: audit.OutcomeFailed, store.Lost: audit.OutcomeLost,
		}[x.State]
		if n != 1 || want == "" || decided[serial] != want {
			b.t.Errorf("serial %s: %d intents, %s in the store, %q in the log", serial, n, x.State, decided[serial])
		}
		if x.State == store.Issued {
			cert, err := x509.ParseCertificate(x.Certificate)
			must(b.t, err)
			if cert.CheckSignatureFrom(b.issuer.Certificate()) != nil && (b.next == nil || cert.CheckSignatureFrom(b.next.Certificate()) != nil) {
				b.t.Errorf("serial %s is not signed by the authority", serial)
			}
		}
	}
	for serial := range decided {
		if begun[serial] == 0 {
			b.t.Errorf("serial %s was decided and never begun", serial)
		}
	}
}

// log is the audit log, oldest first.
func (b *box) log() []audit.Record {
	b.t.Helper()
	var records []audit.Record
	for before := uint64(0); ; before = records[len(records)-1].Index {
		page, err := b.store.Records(before, store.MaxRecords)
		must(b.t, err)
		records = append(records, page...)
		if len(page) < store.MaxRecords {
			break
		}
	}
	for i, j := 0, len(records)-1; i < j; i, j = i+1, j-1 {
		records[i], records[j] = records[j], records[i]
	}
	return records
}

// actions is the log in short.
func (b *box) actions() []string {
	var short []string
	for _, r := range b.log() {
		short = append(short, string(r.Action)+" "+string(r.Outcome))
	}
	return short
}

func (b *box) enroll(r Request) (*Result, error) {
	return b.engine.Enroll(context.Background(), r)
}

// issue enrolls and checks that the certificate is the request's.
func (b *box) issue(r Request) *Result {
	b.t.Helper()
	res, err := b.enroll(r)
	must(b.t, err)
	cert, err := x509.ParseCertificate(res.Certificate)
	must(b.t, err)
	must(b.t, cert.CheckSignatureFrom(b.issuer.Certificate()))
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, r.CSR.RawSPKI) || !bytes.Equal(cert.RawSubject, r.CSR.RawSubject) {
		b.t.Error("the certificate is for another key or name than the request")
	}
	if got := fmt.Sprintf("%x", cert.SerialNumber.Bytes()); got != res.Serial {
		b.t.Errorf("the certificate has serial %s, the result says %s", got, res.Serial)
	}
	return res
}

// refused enrolls and expects an error.
func (b *box) refused(r Request, want error) {
	b.t.Helper()
	res, err := b.enroll(r)
	if !errors.Is(err, want) || res != nil {
		b.t.Errorf("result %+v, error %v; want %v", res, err, want)
	}
}

// device is a key that enrolls.
type device struct {
	t   testing.TB
	key *ecdsa.PrivateKey
}

func newDevice(t testing.TB) *device {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return &device{t, key}
}

// request is a fresh request of the device under its one transaction id.
func (d *device) request(subject pkix.Name, dns ...string) Request {
	d.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject, DNSNames: dns}, d.key)
	must(d.t, err)
	csr, err := pki.ParseRequest(der)
	must(d.t, err)
	return Request{
		Profile: "corp", Protocol: ProtocolSCEP, TransactionID: "TRANSACTION", CSR: csr, Source: source, SenderNonce: nonce(),
		Proof: Proof{Challenge: secret, SignerSPKI: csr.RawSPKI, SelfSigned: true},
	}
}

// renewal is a request of the device signed by a certificate that has signer's key, without a challenge.
func (d *device) renewal(certificate []byte, signer *device, subject pkix.Name, dns ...string) Request {
	r := d.request(subject, dns...)
	spki, err := x509.MarshalPKIXPublicKey(signer.key.Public())
	must(d.t, err)
	r.Renewal = true
	r.Proof = Proof{SignerSPKI: spki, SignerCertificate: certificate}
	return r
}

// in is the request for another profile.
func in(profile string, r Request) Request {
	r.Profile = profile
	return r
}

func nonce() []byte {
	n := make([]byte, 16)
	rand.Read(n)
	return n
}

var printer = pkix.Name{CommonName: "printer-7"}

// hashOf is an argon2id hash as cheap as the box accepts.
func hashOf(secret string) string {
	salt := []byte("saltsaltsaltsalt")
	enc := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=19456,t=2,p=1$%s$%s", argon2.Version, enc(salt), enc(argon2.IDKey([]byte(secret), salt, 2, 19456, 1, 32)))
}

var errHolderBusy = errors.New("queue is full")

// signer calls a hook before it signs.
type signer struct {
	crypto.Signer
	mu    sync.Mutex
	hook  func() error
	calls int
}

func (s *signer) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	s.mu.Lock()
	hook := s.hook
	s.calls++
	s.mu.Unlock()
	if hook != nil {
		if err := hook(); err != nil {
			return nil, err
		}
	}
	return s.Signer.Sign(r, digest, o)
}

func (s *signer) set(hook func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *signer) signed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// selfSigned is a throw-away certificate of the device.
func (d *device) selfSigned(subject pkix.Name) []byte {
	d.t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(0x1234567890), Subject: subject, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(validity)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, d.key.Public(), d.key)
	must(d.t, err)
	return der
}
