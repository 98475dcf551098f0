package authority_test

// The keys are those of a software TPM and, where made by the RA or sealed, software keys of the real
// holder. A green run does not prove how long a chip takes to make a resident key.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/authority"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

const (
	day   = 24 * time.Hour
	admin = "admin"
)

// epoch is now, so that crypto/x509 and TLS clients of the tests agree with the box's clock.
var epoch = time.Now().UTC().Truncate(time.Second)

// testSite has a root "devices" and a subordinate "branch", both with keys outside the TPM, which is fast.
func testSite(t testing.TB) *provision.Site {
	t.Helper()
	dn := func(text string) []byte {
		der, err := pki.ParseDN(text)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	return &provision.Site{
		Name: "works", PublicHost: "pki.example.com",
		Authorities: []provision.Authority{
			{Name: "devices", Mode: provision.ModeRoot, Subject: dn("CN=Devices CA,O=Works"), Algorithm: "ecdsa-p256", Protection: keys.Sealed, Validity: 3650 * day, OCSP: true},
			{Name: "branch", Mode: provision.ModeSubordinate, Subject: dn("CN=Branch CA,O=Works"), Algorithm: "ecdsa-p256", Protection: keys.Sealed, OCSP: true},
		},
		RA: provision.RA{Algorithm: "rsa-2048", Protection: keys.Sealed, Validity: 365 * day, Overlap: 30 * day},
	}
}

// box is a key holder, a store and a clock that outlive the Set they serve.
type box struct {
	t         testing.TB
	site      *provision.Site
	holder    *holder
	fs        vfs.FS
	store     *store.Store
	now       time.Time
	addresses []net.IP
	older     bool
	*authority.Set
}

// newHost opens the keys of a blank software TPM.
func newHost(t testing.TB, specs []keys.Spec) *keys.Host {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	host, err := keys.OpenHost(tpmtest.Start(t), file, "works", specs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(host.Close(), file.Close()); err != nil {
			t.Error(err)
		}
	})
	return host
}

func specs(protection string) []keys.Spec {
	return []keys.Spec{
		{Name: "authority/devices", Algorithm: "ecdsa-p256", Protection: protection},
		{Name: "authority/branch", Algorithm: "ecdsa-p256", Protection: protection},
		{Name: "audit", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "attestation", Algorithm: "ecdsa-p256", Protection: keys.Resident},
		{Name: "tls-ca", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "ra", Algorithm: "rsa-2048", Protection: keys.Sealed},
		{Name: "tls", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
		{Name: "tls-rsa", Algorithm: "rsa-2048", Protection: keys.Sealed},
		{Name: "ocsp", Algorithm: "ecdsa-p256", Protection: keys.Sealed},
	}
}

// newBox provisions a box.
func newBox(t testing.TB) *box {
	t.Helper()
	b := &box{t: t, site: testSite(t), now: epoch, fs: vfs.NewCrashableMem(), addresses: []net.IP{net.IPv4(192, 0, 2, 1)}}
	b.holder = &holder{Client: newHost(t, specs(keys.Sealed)).Client, made: map[string]bool{}}
	if err := b.open(true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	return b
}

// open opens store and Set as the service does when it starts.
func (b *box) open(provisioning bool) error {
	st, err := store.Open(store.Options{Dir: "state", FS: b.fs, MustExist: !provisioning})
	if err != nil {
		return err
	}
	b.store, b.Set = st, nil
	set, err := authority.Open(b.config(), provisioning)
	if err != nil {
		return errors.Join(err, st.Close())
	}
	b.Set = set
	return nil
}

func (b *box) config() authority.Config {
	return authority.Config{
		Site: b.site, Store: b.store, Keys: b.holder, TimeSource: "ntp",
		Now:       func() time.Time { return b.now },
		Addresses: func() []net.IP { return slices.Clone(b.addresses) },
		Older:     func() bool { return b.older },
		Locations: func(name string, generation int) pki.Locations {
			return pki.Locations{CRL: fmt.Sprintf("http://pki.example.com/pki/%s.%d.crl", name, generation)}
		},
		Log: slog.New(slog.NewTextHandler(b.t.Output(), nil)),
	}
}

func (b *box) close() {
	if b.store != nil {
		b.store.Close() // after an injected fault it returns just that
		b.store = nil
	}
}

func (b *box) reopen() {
	b.t.Helper()
	b.close()
	must(b.t, b.open(false))
}

// lastActions are the newest n actions of the audit log, newest first.
func (b *box) lastActions(n int) []audit.Action {
	b.t.Helper()
	records, err := b.store.Records(math.MaxUint64, n)
	must(b.t, err)
	var all []audit.Action
	for _, r := range records {
		all = append(all, r.Action)
	}
	return all
}

// summary is where the machine stands, without what is random.
func (b *box) summary() string {
	var out strings.Builder
	for _, a := range b.site.Authorities {
		s := b.Snapshot(a.Name)
		fmt.Fprintf(&out, "%s:", a.Name)
		show := func(what string, g *authority.Generation) {
			if g != nil {
				fmt.Fprintf(&out, " %s %d/%d links %t responder %t", what, g.Number, len(g.Chain), g.NewWithOld != nil && g.OldWithNew != nil, g.Responder != nil)
			}
		}
		show("active", s.Active)
		show("next", s.Next)
		for _, g := range s.Earlier {
			show("earlier", g)
		}
		if s.Waiting != 0 {
			fmt.Fprintf(&out, " waiting %d", s.Waiting)
		}
		for _, r := range s.RAs {
			fmt.Fprintf(&out, " ra %d", r.Number)
			if !r.Replaced.IsZero() {
				out.WriteString(" replaced")
			}
		}
		out.WriteString("\n")
	}
	ecdsaLeaf, _ := b.Certificate(nil)
	fmt.Fprintf(&out, "tls by %s at %v\n", ecdsaLeaf.Leaf.Issuer.CommonName, ecdsaLeaf.Leaf.IPAddresses)
	return out.String()
}

// check verifies everything a Set promises whatever has happened.
func (b *box) check() {
	b.t.Helper()
	named := map[string]bool{}
	for _, a := range b.site.Authorities {
		s := b.Snapshot(a.Name)
		if s.Active == nil {
			if len(s.RAs) != 0 || s.Next != nil || s.Waiting == 0 {
				b.t.Errorf("%s has RAs or a next generation and no active one: %+v", a.Name, s)
			}
			continue
		}
		all := append([]*authority.Generation{s.Active}, s.Earlier...)
		if s.Next != nil {
			all = append(all, s.Next)
		}
		for _, g := range all {
			named[g.Key.Info().Name] = true
			ca := g.Issuer.Certificate()
			b.signs(g.Key, ca)
			if g.Responder != nil {
				b.signs(g.Responder.Key, g.Responder.Certificate)
				b.from(g.Responder.Certificate, ca)
			}
		}
		if s.Active.Responder == nil {
			b.t.Errorf("%s: the active generation has no responder", a.Name)
		}
		for i, r := range s.RAs {
			named[r.Key.Info().Name] = true
			b.signs(r.Key, r.Certificate)
			if r.Replaced.IsZero() != (i == 0) {
				b.t.Errorf("%s: RA %d of %d is replaced at %v", a.Name, i, len(s.RAs), r.Replaced)
			}
		}
		b.from(s.RAs[0].Certificate, s.Active.Issuer.Certificate())
		for _, own := range s.Active.Own {
			b.from(own, s.Active.Issuer.Certificate())
		}
		if g := s.Next; g != nil && g.NewWithOld != nil {
			b.from(g.NewWithOld, s.Active.Issuer.Certificate())
			b.from(g.OldWithNew, g.Issuer.Certificate())
			b.signs(g.Key, g.NewWithOld)
			b.signs(s.Active.Key, g.OldWithNew)
		}
	}
	for _, served := range []func(*tls.ClientHelloInfo) (*tls.Certificate, error){
		b.Certificate,
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return b.LegacyCertificate(&tls.ClientHelloInfo{})
		},
	} {
		c, err := served(nil)
		must(b.t, err)
		b.signs(c.PrivateKey.(crypto.Signer), c.Leaf)
	}
	// Of the keys made at run time those in use are there, and at most the one that an attempt cut short.
	spare := 0
	for name := range b.holder.made {
		if !named[name] {
			spare++
		}
	}
	if spare > 1 {
		b.t.Errorf("of the keys %v only %v are in use", slices.Collect(maps.Keys(b.holder.made)), slices.Collect(maps.Keys(named)))
	}
}

// signs checks that key is cert's and works.
func (b *box) signs(key crypto.Signer, cert *x509.Certificate) {
	b.t.Helper()
	if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(cert.PublicKey) {
		b.t.Errorf("%s: the key is another", cert.Subject)
	}
	if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
		b.t.Errorf("%s: %v", cert.Subject, err)
	}
}

func (b *box) from(cert, issuer *x509.Certificate) {
	b.t.Helper()
	if err := cert.CheckSignatureFrom(issuer); err != nil {
		b.t.Errorf("%s is not of %s: %v", cert.Subject, issuer.Subject, err)
	}
}

// holder shows of the keys made at run time those in made, so that a test can go back to an earlier
// state, and fails the n-th operation on them, before or after it is done, and all later ones.
type holder struct {
	*keys.Client
	mu     sync.Mutex
	made   map[string]bool
	ops    int
	failAt int // 0: never
	late   bool
}

var errCut = errors.New("power was cut")

// op counts an operation that changes keys.
func (h *holder) op(do func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops++
	cut := h.failAt != 0 && h.ops >= h.failAt
	if cut && !(h.late && h.ops == h.failAt) {
		return errCut
	}
	if err := do(); err != nil || !cut {
		return err
	}
	return errCut
}

// madeLater says whether a key is not one of those the box was provisioned with.
func madeLater(name string) bool { return strings.Contains(name, ".") }

func (h *holder) visible(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !madeLater(name) || h.made[name]
}

func (h *holder) Key(name string) (*keys.Key, error) {
	if !h.visible(name) {
		return nil, keys.ErrNoKey
	}
	return h.Client.Key(name)
}

func (h *holder) List() ([]keys.Info, error) {
	infos, err := h.Client.List()
	return slices.DeleteFunc(infos, func(i keys.Info) bool { return !h.visible(i.Name) }), err
}

func (h *holder) Create(s keys.Spec) (key *keys.Key, err error) {
	err = h.op(func() error {
		if key, err = h.Client.Create(s); err == nil {
			h.made[s.Name] = true
		}
		return err
	})
	return key, err
}

func (h *holder) Delete(name string) error {
	return h.op(func() error {
		if !h.made[name] {
			return keys.ErrNoKey
		}
		delete(h.made, name)
		return nil
	})
}

// offline is the authority above the box's: a root and one below it.
type offline struct {
	t    testing.TB
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOffline(t testing.TB) *offline { return newOfflineFor(t) }

// newOfflineFor is a root that lets those below it certify names in these DNS domains only; none: any.
func newOfflineFor(t testing.TB, domains ...string) *offline {
	t.Helper()
	o := &offline{t: t}
	o.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Works offline root"},
		NotBefore: epoch.Add(-day), NotAfter: epoch.Add(20 * 365 * day),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: domains,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, o.key.Public(), o.key)
	must(t, err)
	o.root, err = x509.ParseCertificate(der)
	must(t, err)
	return o
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// sign answers a request for an authority with the chain, PEM, leaf last to show that order does not count.
func (o *offline) sign(request []byte, at time.Time, validity time.Duration) []byte {
	o.t.Helper()
	return o.signAs(request, &x509.Certificate{
		NotBefore: at.Add(-time.Hour), NotAfter: at.Add(validity),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
}

func (o *offline) signAs(request []byte, template *x509.Certificate) []byte {
	o.t.Helper()
	block, _ := pem.Decode(request)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	must(o.t, err)
	must(o.t, csr.CheckSignature())
	template.SerialNumber, template.RawSubject = big.NewInt(time.Now().UnixNano()), csr.RawSubject
	der, err := x509.CreateCertificate(rand.Reader, template, o.root, csr.PublicKey, o.key)
	must(o.t, err)
	return append(toPEM(o.root.Raw), toPEM(der)...)
}

func toPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
