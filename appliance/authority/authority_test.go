package authority_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/authority"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

func wantActions(t testing.TB, b *box, want ...audit.Action) {
	t.Helper()
	slices.Reverse(want)
	if diff := cmp.Diff(want, b.lastActions(len(want))); diff != "" {
		t.Errorf("newest audit records (-want +got):\n%s", diff)
	}
}

// A root's whole life: made, followed by a next generation that overlaps, retired once its certificates ended.
func TestRootRollsOver(t *testing.T) {
	b := newBox(t)
	b.check()
	wantActions(t, b, audit.BoxInitialised)
	first := b.Snapshot("devices")
	if first.Active == nil || first.Next != nil || first.Active.Number != 1 || len(first.RAs) != 1 {
		t.Fatalf("a new box has %+v", first)
	}
	wantIs(t, "activating nothing", b.ActivateNext("devices", admin), authority.ErrNotPrepared)
	wantIs(t, "cancelling nothing", b.CancelNext("devices", admin), authority.ErrNotPrepared)
	wantIs(t, "an authority that is not there", b.PrepareNext("other", admin), authority.ErrUnknown)

	must(t, b.PrepareNext("devices", admin))
	b.check()
	wantActions(t, b, audit.AuthorityPrepared)
	wantIs(t, "preparing twice", b.PrepareNext("devices", admin), authority.ErrPrepared)
	prepared := b.Snapshot("devices")
	if prepared.Next == nil || prepared.Next.Number != 2 || prepared.Next.NewWithOld == nil || prepared.Active != nil && prepared.Active.Number != 1 {
		t.Fatalf("prepared: %s", b.summary())
	}
	if first.Next != nil {
		t.Error("a snapshot changed after it was taken")
	}
	conditions := b.Conditions(b.now)
	if !slices.ContainsFunc(conditions, func(c authority.Condition) bool { return strings.Contains(c.What, "published and not active") }) {
		t.Errorf("nobody is told of the next generation: %v", conditions)
	}

	must(t, b.ActivateNext("devices", admin))
	b.check()
	wantActions(t, b, audit.AuthorityActivated)
	now := b.Snapshot("devices")
	if now.Active.Number != 2 || len(now.Earlier) != 1 || now.Earlier[0].Number != 1 || len(now.RAs) != 2 || now.RAs[0].Key.Info().Name != "ra" {
		t.Fatalf("activated: %s", b.summary())
	}
	before := b.summary()
	b.reopen()
	if diff := cmp.Diff(before, b.summary()); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}

	// A certificate issued under the first generation keeps it; a day after its end it is gone.
	issued(t, b.store, b.now.Add(90*day), b.now.Add(-time.Minute))
	b.now = b.now.Add(89 * day)
	must(t, b.Upkeep(b.now))
	if now := b.Snapshot("devices"); len(now.Earlier) != 1 || len(now.RAs) != 1 {
		t.Errorf("after 89 days: %s", b.summary())
	}
	b.now = b.now.Add(2 * day)
	must(t, b.Upkeep(b.now))
	if now := b.Snapshot("devices"); len(now.Earlier) != 1 {
		t.Errorf("after 91 days, by a clock that may have jumped: %s", b.summary())
	}
	b.now = b.now.Add(3 * day)
	must(t, b.Upkeep(b.now))
	b.check()
	if now := b.Snapshot("devices"); len(now.Earlier) != 0 || now.Active.Number != 2 {
		t.Errorf("after 94 days: %s", b.summary())
	}

	// A number is never used again, and a retired key made at run time is removed.
	must(t, b.PrepareNext("devices", admin))
	must(t, b.CancelNext("devices", admin))
	wantActions(t, b, audit.AuthorityPrepared, audit.AuthorityCancelled)
	if b.holder.made["authority/devices.3"] || !b.holder.made["authority/devices.2"] {
		t.Errorf("keys after cancelling: %v", b.holder.made)
	}
	must(t, b.PrepareNext("devices", admin))
	if n := b.Snapshot("devices").Next.Number; n != 4 {
		t.Errorf("the generation after a cancelled third is %d", n)
	}
	must(t, b.ActivateNext("devices", admin))
	b.now = b.now.Add(day)
	must(t, b.Upkeep(b.now))
	b.now = b.now.Add(3 * day)
	must(t, b.Upkeep(b.now))
	b.check()
	if b.holder.made["authority/devices.2"] {
		t.Error("the key of a retired generation is still there")
	}
}

// issued records a certificate that ends at notAfter.
func issued(t testing.TB, st *store.Store, notAfter, begun time.Time) {
	t.Helper()
	record := audit.Record{Action: audit.IssuanceBegun, Outcome: audit.OutcomeBegun, Time: begun, TimeSource: "ntp"}
	i := store.Intent{Serial: "0a0b", Issuer: make([]byte, sha256.Size), PublicKey: make([]byte, sha256.Size), Begun: begun, NotAfter: notAfter, Profile: "corp", Template: []byte{1}}
	must(t, st.Begin(i, record))
	record.Action, record.Outcome = audit.SCEPPKCSReq, audit.OutcomeSuccess
	must(t, st.Finish(i.Serial, []byte{2}, time.Time{}, record))
}

// A subordinate waits for its chain, refuses what is not one, renews under the same key and rolls over.
func TestSubordinate(t *testing.T) {
	b := newBox(t)
	above := newOffline(t)
	if s := b.Snapshot("branch"); s.Active != nil || s.Waiting != 1 || len(s.RAs) != 0 {
		t.Fatalf("before its chain: %s", b.summary())
	}
	if c := b.Conditions(b.now); len(c) != 1 || !strings.Contains(c[0].What, "branch has no certificate yet") || c[0].Mend == "" {
		t.Errorf("conditions %v", c)
	}
	wantIs(t, "preparing before the first chain", b.PrepareNext("branch", admin), authority.ErrWaiting)
	wantIs(t, "cancelling the first", b.CancelNext("branch", admin), authority.ErrNotPrepared)
	_, err := b.CSR("devices")
	wantIs(t, "request of a root", err, authority.ErrRoot)
	request, err := b.CSR("branch")
	must(t, err)
	if request.Certification != nil || request.Generation != 1 {
		t.Errorf("request %+v", request)
	}
	good := above.sign(request.PEM, b.now, 1000*day)
	other := newOffline(t).sign(request.PEM, b.now, 1000*day)
	otherKey, err := b.TLSCSR()
	must(t, err)
	for name, text := range map[string][]byte{
		"nothing":              nil,
		"text":                 []byte("hello"),
		"the request":          request.PEM,
		"without its root":     good[len(toPEM(above.root.Raw)):],
		"with a stranger":      append(slices.Clone(good), toPEM(newOffline(t).root.Raw)...),
		"root of another key":  append(toPEM(above.root.Raw), other[bytes.LastIndex(other, []byte("-----BEGIN")):]...),
		"another key":          above.sign(otherKey, b.now, 1000*day),
		"ended":                above.sign(request.PEM, b.now.Add(-20*day), 10*day),
		"not an authority":     above.signAs(request.PEM, &x509.Certificate{NotBefore: b.now.Add(-day), NotAfter: b.now.Add(day), KeyUsage: x509.KeyUsageDigitalSignature}),
		"an unreadable one":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{0x30, 1}}),
		"more than any chain":  bytes.Repeat(toPEM(above.root.Raw), 11),
		"more than any upload": bytes.Repeat([]byte("x"), 1<<20),
	} {
		wantIs(t, name, b.InstallChain("branch", text, admin), pki.ErrChain)
	}
	wantIs(t, "chain for a root", b.InstallChain("devices", good, admin), authority.ErrRoot)
	wantActions(t, b, audit.BoxInitialised)

	must(t, b.InstallChain("branch", good, admin))
	b.check()
	wantActions(t, b, audit.AuthorityInstalled, audit.AuthorityActivated)
	installed := b.Snapshot("branch")
	if installed.Active.Number != 1 || len(installed.Active.Chain) != 1 || !installed.Active.Root().Equal(above.root) {
		t.Fatalf("installed: %s", b.summary())
	}
	must(t, b.InstallChain("branch", good, admin)) // once more changes nothing
	if b.Snapshot("branch") != installed {
		t.Error("installing the same chain again changed something")
	}

	// Renewed under the same key: the certificates it made for the RA and the responder follow.
	request, err = b.CSR("branch")
	must(t, err)
	wantIs(t, "another key identifier", b.InstallChain("branch", above.signAs(request.PEM, &x509.Certificate{
		NotBefore: b.now.Add(-time.Hour), NotAfter: b.now.Add(2000 * day), SubjectKeyId: []byte("another"),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}), admin), pki.ErrChain)
	if b.Snapshot("branch") != installed {
		t.Error("a refused chain changed something")
	}
	must(t, b.InstallChain("branch", above.sign(request.PEM, b.now, 2000*day), admin))
	b.check()
	renewed := b.Snapshot("branch")
	if renewed.Active.Number != 1 || renewed.Active.Key.Info().Name != "authority/branch" || len(renewed.Earlier) != 0 ||
		!renewed.Active.Issuer.Certificate().NotAfter.After(installed.Active.Issuer.Certificate().NotAfter) {
		t.Errorf("renewed: %s", b.summary())
	}

	if was, is := installed.Active.Issuer.ID(), renewed.Active.Issuer.ID(); was != is {
		t.Errorf("what it issued names the issuer %x, after renewal it is %x", was, is)
	}

	must(t, b.PrepareNext("branch", admin))
	b.check()
	wantIs(t, "activating what waits", b.ActivateNext("branch", admin), authority.ErrWaiting)
	request, err = b.CSR("branch")
	must(t, err)
	if request.Generation != 2 {
		t.Errorf("the request is for generation %d", request.Generation)
	}
	must(t, b.InstallChain("branch", above.sign(request.PEM, b.now, 3000*day), admin))
	wantActions(t, b, audit.AuthorityPrepared, audit.AuthorityInstalled)
	if s := b.Snapshot("branch"); s.Next == nil || s.Active.Number != 1 || s.Next.NewWithOld != nil {
		t.Errorf("next chain: %s", b.summary())
	}
	must(t, b.ActivateNext("branch", admin))
	b.check()
	b.reopen()
	b.check()
	s := b.Snapshot("branch")
	if s.Active.Number != 2 || len(s.Earlier) != 1 || s.Earlier[0].Issuer.ID() != installed.Active.Issuer.ID() {
		t.Errorf("rolled over: %s", b.summary())
	}
	if points := s.RAs[0].Certificate.CRLDistributionPoints; !slices.Equal(points, []string{"http://pki.example.com/pki/branch.2.crl"}) {
		t.Errorf("what the second generation issues points to %v", points)
	}
	if bundle := string(b.Bundle()); strings.Count(bundle, "BEGIN CERTIFICATE") != 3 || !strings.Contains(bundle, string(toPEM(above.root.Raw))) {
		t.Errorf("bundle:\n%s", bundle)
	}
}

// A resident key's request comes with the TPM's statement, by which an offline root sees where it lives.
func TestResidentKeyIsCertified(t *testing.T) {
	all := []keys.Spec{}
	for _, s := range specs(keys.Sealed) {
		if s.Name == "authority/branch" {
			s.Protection = keys.Resident
		}
		all = append(all, s)
	}
	b := &box{t: t, site: testSite(t), now: epoch, fs: vfs.NewMem()}
	b.site.Authorities[1].Protection = keys.Resident
	b.holder = &holder{Client: newHost(t, all).Client, made: map[string]bool{}}
	must(t, b.open(true))
	t.Cleanup(b.close)
	request, err := b.CSR("branch")
	must(t, err)
	c := request.Certification
	if c == nil {
		t.Fatal("no certification of a resident key")
	}
	public, err := x509.ParsePKIXPublicKey(c.AttestationKey)
	must(t, err)
	if sum := sha256.Sum256(c.Attest); !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], c.Signature) {
		t.Error("the statement's signature is wrong")
	}
	if nonce := sha256.Sum256(request.DER); !bytes.Contains(c.Attest, nonce[:]) {
		t.Error("the statement is not over the request")
	}
}

// The RA key rotates by order and in time; what was sent to the old one is still decrypted for
// the overlap, then its key is removed.
func TestRARotates(t *testing.T) {
	b := newBox(t)
	must(t, b.RotateRA(admin))
	b.check()
	wantActions(t, b, audit.RARenewed)
	ras := b.Snapshot("devices").RAs
	if len(ras) != 2 || ras[0].Key.Info().Name != "ra.2" || ras[1].Key.Info().Name != "ra" {
		t.Fatalf("rotated: %s", b.summary())
	}
	session := []byte("0123456789abcdef01234567")
	for i, r := range ras {
		sent, err := rsa.EncryptPKCS1v15(rand.Reader, r.Certificate.PublicKey.(*rsa.PublicKey), session)
		must(t, err)
		got, err := r.Key.Decrypt(nil, sent, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: len(session)})
		if err != nil || !bytes.Equal(got, session) {
			t.Errorf("RA %d does not decrypt: %v", i, err)
		}
	}
	b.now = b.now.Add(29 * day)
	must(t, b.Upkeep(b.now))
	if n := len(b.Snapshot("devices").RAs); n != 2 {
		t.Errorf("%d RAs within the overlap", n)
	}
	must(t, b.RotateRA(admin))
	b.now = b.now.Add(30 * day)
	must(t, b.Upkeep(b.now))
	b.check()
	if ras := b.Snapshot("devices").RAs; len(ras) != 1 || ras[0].Number != 3 || b.holder.made["ra.2"] {
		t.Errorf("after the overlap: %s", b.summary())
	}

	// Near its end it is rotated without an order, and not again the minute after.
	b.now = b.Snapshot("devices").RAs[0].Certificate.NotAfter.Add(-29 * day)
	must(t, b.Upkeep(b.now))
	b.check()
	if ras := b.Snapshot("devices").RAs; len(ras) != 2 || ras[0].Number != 4 {
		t.Errorf("near its end: %s", b.summary())
	}
	before := b.summary()
	must(t, b.Upkeep(b.now.Add(time.Minute)))
	if diff := cmp.Diff(before, b.summary()); diff != "" {
		t.Errorf("a minute later (-before +after):\n%s", diff)
	}
}

// Orders to rotate do not use up the room for keys that the authorities' next generations need.
func TestRotatingWithoutEnd(t *testing.T) {
	b := newBox(t)
	rotated := 0
	for ; rotated < 20; rotated++ {
		if err := b.RotateRA(admin); err != nil {
			wantIs(t, "one more", err, authority.ErrOverlap)
			break
		}
	}
	if rotated != 7 {
		t.Fatalf("rotated %d times", rotated)
	}
	b.now = b.now.Add(30 * day)
	must(t, b.Upkeep(b.now))
	must(t, b.RotateRA(admin))
	b.check()
}

// What an authority near its end cuts short is made once and not every minute.
func TestNothingIsRenewedForNothing(t *testing.T) {
	b := newBox(t)
	b.now = b.Snapshot("devices").Active.Issuer.Certificate().NotAfter.Add(-3 * day)
	must(t, b.Upkeep(b.now))
	b.check()
	ra := b.Snapshot("devices").RAs[0]
	if !ra.Certificate.NotAfter.Equal(b.Snapshot("devices").Active.Issuer.Certificate().NotAfter) {
		t.Errorf("the RA ends on %s", ra.Certificate.NotAfter)
	}
	before := b.lastActions(1000)
	b.now = b.now.Add(day)
	must(t, b.Upkeep(b.now))
	if after := b.lastActions(1000); len(after) != len(before) {
		t.Errorf("a day later came %v", after[:len(after)-len(before)])
	}
	if c := b.Conditions(b.now); !slices.ContainsFunc(c, func(c authority.Condition) bool {
		return strings.Contains(c.What, "authority devices ends on") && strings.Contains(c.Mend, "Prepare the next generation")
	}) {
		t.Errorf("conditions %v", c)
	}
	b.now = b.now.Add(3 * day) // past its end: nothing can be made, and nothing fails
	must(t, b.Upkeep(b.now))
	if c := b.Conditions(b.now); !strings.Contains(c[0].What+c[1].What, "authority devices ended on") {
		t.Errorf("conditions %v", c)
	}
	b.reopen()
	// And it goes on with a next generation.
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	b.check()
}

// A responder certificate lives two weeks and is renewed at half of that, for earlier generations too.
func TestResponderRenews(t *testing.T) {
	b := newBox(t)
	issued(t, b.store, b.now.Add(300*day), b.now)
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	first := b.Snapshot("devices")
	if life := first.Active.Responder.Certificate.NotAfter.Sub(b.now); life != 14*day {
		t.Errorf("a responder lives %s", life)
	}
	b.now = b.now.Add(7*day - time.Minute)
	must(t, b.Upkeep(b.now))
	if b.Snapshot("devices") != first {
		t.Error("renewed before half its life")
	}
	b.now = b.now.Add(2 * time.Minute)
	must(t, b.Upkeep(b.now))
	b.check()
	wantActions(t, b, audit.ResponderRenewed, audit.ResponderRenewed)
	now := b.Snapshot("devices")
	for _, g := range []*authority.Generation{now.Active, now.Earlier[0]} {
		if life := g.Responder.Certificate.NotAfter.Sub(b.now); life != 14*day {
			t.Errorf("generation %d: the responder ends in %s", g.Number, life)
		}
	}
}

// TLS certificates follow names and IPv4 addresses, keep their fingerprint otherwise, and can be
// exchanged for uploaded ones.
func TestTLS(t *testing.T) {
	b := newBox(t)
	above := newOffline(t)
	leaf := func() *x509.Certificate { c, _ := b.Certificate(nil); return c.Leaf }
	first := leaf()
	b.addresses = append(b.addresses, net.ParseIP("2001:db8::1"))
	must(t, b.Upkeep(b.now))
	b.reopen()
	if !leaf().Equal(first) {
		t.Error("an IPv6 address changed the certificate")
	}
	b.addresses[0] = net.IPv4(192, 0, 2, 2)
	must(t, b.Upkeep(b.now))
	wantActions(t, b, audit.TLSRenewed, audit.TLSRenewed)
	second := leaf()
	must(t, second.VerifyHostname("192.0.2.2"))
	for _, name := range []string{"pki.example.com", "localhost", "127.0.0.1", "::1"} {
		must(t, second.VerifyHostname(name))
	}
	if diff := cmp.Diff([]string{"pki.example.com", "192.0.2.2", "2001:db8::1"}, b.OwnNames()); diff != "" {
		t.Errorf("own names (-want +got):\n%s", diff)
	}
	onlyRSA := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS12}, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.PKCS1WithSHA256}, SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0}}
	if c, err := b.LegacyCertificate(onlyRSA); err != nil || c.Leaf.PublicKeyAlgorithm != x509.RSA {
		t.Errorf("a client that takes RSA only gets %v, %v", c.Leaf.PublicKeyAlgorithm, err)
	}

	requests, err := b.TLSCSR()
	must(t, err)
	server := func() *x509.Certificate { return serverTemplate(b.now) }
	wrong := server()
	wrong.DNSNames = []string{"www.example.com"}
	client := server()
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	old := server()
	old.NotAfter = b.now.Add(-time.Hour)
	for name, template := range map[string]*x509.Certificate{"another name": wrong, "another usage": client, "ended": old} {
		wantIs(t, name, b.InstallTLS(above.signAs(requests, template), admin), pki.ErrChain)
	}
	must(t, b.InstallTLS(above.signAs(requests, server()), admin))
	b.check()
	wantActions(t, b, audit.TLSInstalled)
	b.addresses = nil
	must(t, b.Upkeep(b.now)) // no business of the uploaded one
	b.reopen()
	if c, _ := b.Certificate(nil); c.Leaf.Issuer.CommonName != "Works offline root" || len(c.Certificate) != 1 {
		t.Errorf("after uploading, %s with %d certificates", c.Leaf.Issuer, len(c.Certificate))
	}
	if !bytes.Contains(b.Bundle(), toPEM(above.root.Raw)) {
		t.Error("the bundle lacks the root of the uploaded certificate")
	}
	b.now = b.now.Add(95 * day)
	if c := b.Conditions(b.now); !slices.ContainsFunc(c, func(c authority.Condition) bool {
		return strings.Contains(c.What, "ECDSA certificate of the box's listeners ends on")
	}) {
		t.Errorf("nobody is told of the uploaded certificate's end: %v", c)
	}
	must(t, b.UseOwnTLS(admin))
	b.check()
	if leaf().Issuer.CommonName != "works TLS root" || !leaf().NotAfter.After(b.now.Add(80*day)) {
		t.Errorf("taken back: %s until %s", leaf().Issuer, leaf().NotAfter)
	}
}

// TestEndOfTLSRoot: what no upkeep renews is told a year ahead, until certificates of others serve for both keys.
func TestEndOfTLSRoot(t *testing.T) {
	b := newBox(t)
	const what = "The root of the box's TLS certificates "
	told := func() (string, string) {
		for _, c := range b.Conditions(b.now) {
			if strings.HasPrefix(c.What, what) {
				return c.What, c.Mend
			}
		}
		return "", ""
	}
	first, _ := b.Certificate(nil)
	root, err := x509.ParseCertificate(first.Certificate[1])
	must(t, err)
	b.now = root.NotAfter.Add(-366 * day)
	if text, _ := told(); text != "" {
		t.Errorf("more than a year ahead: %s", text)
	}
	b.now = root.NotAfter.Add(-364 * day)
	must(t, b.Upkeep(b.now))
	if text, mend := told(); text != what+"ends on "+root.NotAfter.Format(time.DateOnly)+"." || !strings.Contains(mend, "upload TLS certificates of another authority") {
		t.Errorf("a year ahead: %q, %q", text, mend)
	}
	requests, err := b.TLSCSR()
	must(t, err)
	above := newOffline(t)
	for rest, i := requests, 0; len(rest) > 0; i++ {
		if text, _ := told(); text == "" {
			t.Errorf("nothing is told with %d certificates uploaded", i)
		}
		must(t, b.InstallTLS(above.signAs(rest, serverTemplate(b.now)), admin))
		_, rest = pem.Decode(rest)
	}
	if text, _ := told(); text != "" {
		t.Errorf("with certificates of others for both keys: %s", text)
	}
	must(t, b.UseOwnTLS(admin))
	b.now = root.NotAfter.Add(time.Minute)
	if text, _ := told(); text != what+"ended on "+root.NotAfter.Format(time.DateOnly)+"." {
		t.Errorf("afterwards: %q", text)
	}
}

// Lost state, a store of another box and an authority that came later are refused with their mend.
func TestOpenRefuses(t *testing.T) {
	mends := func(what string, err error, want error) {
		t.Helper()
		var m interface{ Mend() string }
		if err == nil || want != nil && !errors.Is(err, want) || !errors.As(err, &m) || m.Mend() == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	b := newBox(t)
	saved := b.fs
	b.close()

	b.fs = vfs.NewCrashableMem()
	empty, err := store.Open(store.Options{Dir: "state", FS: b.fs})
	must(t, err)
	must(t, empty.Close())
	mends("an empty store", b.open(false), authority.ErrStateLost)
	if b.store, err = store.Open(store.Options{Dir: "state", FS: b.fs}); err != nil || b.store.Initialised() {
		t.Errorf("a refused store was touched: %v", err)
	}
	b.close()

	b.fs = saved
	b.site.Authorities = append(b.site.Authorities, provision.Authority{Name: "later", Mode: provision.ModeRoot})
	mends("an authority that was not provisioned", b.open(false), nil)
	b.site.Authorities = b.site.Authorities[:2]

	ours := b.holder
	b.holder = &holder{Client: newHost(t, specs(keys.Sealed)).Client}
	if err := b.open(false); err == nil || !strings.Contains(err.Error(), "disk and TPM do not belong together") {
		t.Errorf("a store with another TPM: %v", err)
	}

	b.holder = ours
	must(t, b.open(false))
	must(t, b.RotateRA(admin))
	b.close()
	delete(b.holder.made, "ra.2")
	mends("a state that names a key which is gone", b.open(false), nil)
	b.store = nil
}

// A store that was written before authorities had generations opens, keeps its certificates and gets what
// it lacks.
func TestStoreWithoutGenerations(t *testing.T) {
	b := newBox(t)
	s := b.Snapshot("devices")
	leaf, _ := b.Certificate(nil)
	root := b.Bundle()
	block, _ := pem.Decode(root)
	id := store.Identity{
		Authorities: map[string]store.AuthorityCerts{"devices": {CA: s.Active.Issuer.Certificate().Raw, RA: s.RAs[0].Certificate.Raw}},
		TLSRoot:     block.Bytes, TLS: leaf.Leaf.Raw,
	}
	must(t, b.store.UpdateIdentity(id, audit.Record{Action: audit.TLSRenewed, Outcome: audit.OutcomeSuccess, Time: b.now, TimeSource: "ntp"}))
	b.site.Authorities = b.site.Authorities[:1]
	b.reopen()
	b.check()
	now := b.Snapshot("devices")
	if !now.Active.Issuer.Certificate().Equal(s.Active.Issuer.Certificate()) || !now.RAs[0].Certificate.Equal(s.RAs[0].Certificate) || now.Active.Number != 1 {
		t.Errorf("opened: %s", b.summary())
	}
	if c, _ := b.Certificate(nil); !c.Leaf.Equal(leaf.Leaf) {
		t.Error("the TLS certificate changed")
	}
	must(t, b.PrepareNext("devices", admin))
	must(t, b.ActivateNext("devices", admin))
	b.reopen()
	b.check()
}

// Readers see one generation or the other while orders are carried out, and never wait for them.
func TestReadersDuringOrders(t *testing.T) {
	b := newBox(t)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for seen := 0; ; {
				select {
				case <-stop:
					return
				default:
				}
				s := b.Snapshot("devices")
				if s.Active == nil || s.Active.Number < seen || s.RAs[0].Certificate.CheckSignatureFrom(s.Active.Issuer.Certificate()) != nil {
					t.Errorf("a reader saw generation %v after %d", s.Active, seen)
					return
				}
				seen = s.Active.Number
				b.Conditions(epoch)
				b.Bundle()
				b.OwnNames()
			}
		})
	}
	for range 3 {
		must(t, b.PrepareNext("devices", admin))
		must(t, b.ActivateNext("devices", admin))
		must(t, b.RotateRA(admin))
	}
	close(stop)
	readers.Wait()
	b.check()
}

// BenchmarkUpkeep is what a minute with nothing to do costs.
func BenchmarkUpkeep(b *testing.B) {
	box := newBox(b)
	for b.Loop() {
		if err := box.Upkeep(box.now); err != nil {
			b.Fatal(err)
		}
	}
}
