package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// bundle is one file of certificates that a profile trusts: the site's, or what an administrator put in
// its place.
type bundle struct {
	name string // as administrators call it
	file string // of the site

	mu   sync.Mutex // taken by orders and reloads: the store and what is in force change in one order
	base atomic.Pointer[trusted]
	put  atomic.Pointer[trusted] // nil: base is in use

	// check, where set, refuses certificates that cannot serve. use, where set, takes those in force, which
	// passed check and are valid at the time it is given, into use beyond what now returns.
	check func([]*x509.Certificate) error
	use   func(*trusted, time.Time) error
}

// trusted never changes.
type trusted struct {
	certificates []*x509.Certificate
	pool         *x509.CertPool
	replaced     *webui.Change // nil: the site's
	broken       error         // what was put in the site's place cannot be read any more; then nobody is trusted
}

func newTrusted(certificates []*x509.Certificate, replaced *webui.Change) *trusted {
	t := &trusted{certificates: certificates, pool: x509.NewCertPool(), replaced: replaced}
	addAll(t.pool, certificates)
	return t
}

func newBundle(name string, b provision.Bundle) *bundle {
	out := &bundle{name: name, file: b.File}
	out.base.Store(newTrusted(b.Certificates, nil))
	return out
}

// bundleName is what administrators call a field of the site.
func bundleName(field string) string {
	switch field {
	case provision.FieldSigned:
		return webui.BundleSigned
	case provision.FieldMTLS:
		return webui.BundleSCEPMTLS
	case provision.FieldEST:
		return webui.BundleEST
	case provision.FieldRenewalFrom:
		return webui.BundleRenewFrom
	case provision.FieldCompliance:
		return webui.BundleCompliance
	case provision.FieldIntune:
		return webui.BundleIntune
	}
	return field
}

// newBundles takes the profile's files into use, or what replaced them in earlier runs.
func (s *settings) newBundles(site *provision.Site, overrides map[string]store.Override) {
	for _, u := range site.Bundles() {
		if u.Profile != s.profile.Name {
			continue
		}
		b := newBundle(bundleName(u.Field), u.Bundle)
		switch b.name {
		case webui.BundleSigned:
			b.check = func(c []*x509.Certificate) error { _, err := challenge.NewSigners(c); return err }
			b.use = func(t *trusted, now time.Time) error {
				signers, err := challenge.NewSigners(t.certificates)
				if err != nil {
					return err
				}
				return s.signed.Replace(signers, now)
			}
		case webui.BundleCompliance:
			b.use = func(t *trusted, _ time.Time) error { return s.hook.trust(t.pool) }
		case webui.BundleIntune:
			b.use = func(t *trusted, _ time.Time) error { s.intune.trust(t.pool); return nil }
		}
		if o, ok := overrides[overrideBundle(s.profile.Name, b.name)]; ok {
			b.restore(o)
		}
		s.bundles = append(s.bundles, b)
	}
}

// restore puts back what an administrator put in place of the site's. What cannot be used any more is no
// reason to trust again whom it replaced: it trusts nobody.
func (b *bundle) restore(o store.Override) {
	by := &webui.Change{By: o.By, At: o.At}
	certificates, err := parseCertificates(o.Value)
	if err == nil && b.check != nil {
		err = b.check(certificates)
	}
	t := newTrusted(certificates, by)
	if err != nil {
		t = newTrusted(nil, by)
		t.broken = err
	}
	b.put.Store(t)
}

func (s *settings) bundle(name string) *bundle {
	for _, b := range s.bundles {
		if b.name == name {
			return b
		}
	}
	return nil
}

// pool tells what a bundle of the profile is now; nil where it has none of that name.
func (s *settings) pool(name string) func() *x509.CertPool {
	b := s.bundle(name)
	if b == nil {
		return nil
	}
	return func() *x509.CertPool { return b.now().pool }
}

func (b *bundle) now() *trusted {
	if t := b.put.Load(); t != nil {
		return t
	}
	return b.base.Load()
}

// reread takes what a file of the site says now as the site's, and into use where nothing replaces it.
func (b *bundle) reread(certificates []*x509.Certificate, now time.Time) error {
	if b.check != nil {
		if err := b.check(certificates); err != nil {
			return err
		}
	}
	t := newTrusted(certificates, nil)
	if b.put.Load() == nil && b.use != nil {
		if err := b.use(t, now); err != nil {
			return err
		}
	}
	b.base.Store(t)
	return nil
}

// firstExpired is the first certificate that has ended, nil while all are good.
func firstExpired(certificates []*x509.Certificate, now time.Time) *x509.Certificate {
	for _, cert := range certificates {
		if now.After(cert.NotAfter) {
			return cert
		}
	}
	return nil
}

func expiredText(cert *x509.Certificate, file string) string {
	return fmt.Sprintf("certificate %s in %s expired on %s", cert.Subject, file, cert.NotAfter.UTC().Format(time.DateOnly))
}

// maxBundle bounds the certificates of a bundle that an administrator uploads.
const maxBundle = 100

// parseCertificates reads a PEM file of certificates and nothing else but text between them.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	begun := bytes.Count(text, []byte("-----BEGIN")) // what cannot be read pem.Decode passes over in silence
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %.40q is in the file, upload certificates alone", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read, export it again as PEM: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, cert)
	}
	if begun != len(certificates) {
		return nil, fmt.Errorf("%d blocks begin and %d certificates can be read, upload the whole file", begun, len(certificates))
	}
	if len(certificates) == 0 || len(certificates) > maxBundle {
		return nil, fmt.Errorf("%d certificates, upload 1 to %d in PEM", len(certificates), maxBundle)
	}
	return certificates, nil
}

// replaceBundle puts certificates in place of a baked bundle; nil goes back to it. What is refused or
// cannot be recorded changes nothing.
func (a *Appliance) replaceBundle(s *settings, name string, text []byte, actor string) error {
	b := s.bundle(name)
	if b == nil {
		return &webui.ConflictError{What: "the profile has no such bundle", Mend: "name one of those that the profile's settings show; others take a new bake"}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	record := a.settingRecord(audit.TrustReplaced, s, actor, "")
	next, in := b.base.Load(), (*trusted)(nil)
	if text == nil {
		if cert := firstExpired(next.certificates, record.Time); cert != nil {
			return &webui.ConflictError{What: expiredText(cert, b.file), Mend: "upload its successor; the baked one would switch the profile off"}
		}
		record.Reason = trustedNow(next.certificates, b.file)
	} else {
		certificates, err := parseCertificates(text)
		if err == nil {
			err = checkDates(certificates, record.Time)
		}
		if err == nil && b.check != nil {
			err = b.check(certificates)
		}
		if err != nil {
			return &webui.OrderError{Err: err}
		}
		in = newTrusted(certificates, &webui.Change{By: actor, At: record.Time})
		next, record.Reason = in, trustedNow(certificates, name)
	}
	if _, err := a.put(overrideBundle(s.profile.Name, name), text, record); err != nil {
		return err
	}
	b.put.Store(in)
	a.refreshHints()
	if b.use == nil {
		return nil
	}
	return b.use(next, record.Time)
}

// checkDates refuses certificates that are not valid at a time.
func checkDates(certificates []*x509.Certificate, now time.Time) error {
	for _, cert := range certificates {
		if now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
			return fmt.Errorf("certificate %q is valid from %s to %s and not now, upload one that is",
				cert.Subject, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// trustedNow says in the log whom certificates make the box believe: the SHA-256 of all of them, one after
// the other as DER, which nobody can make another bundle fit, and of each as many octets as there is
// room for, to recognise it by.
func trustedNow(certificates []*x509.Certificate, file string) string {
	whole := sha256.New()
	for _, c := range certificates {
		whole.Write(c.Raw)
	}
	if len(certificates) == 1 {
		return fmt.Sprintf("1 certificate of %s, SHA-256 %x", file, whole.Sum(nil))
	}
	text := fmt.Sprintf("%d certificates of %s, SHA-256 %x, each", len(certificates), file, whole.Sum(nil))
	for _, c := range certificates {
		sum := sha256.Sum256(c.Raw)
		one := fmt.Sprintf(" %x", sum[:5])
		if len(text)+len(one) > audit.MaxReason {
			break
		}
		text += one
	}
	return text
}

// reload reads a bundle's file again. A file that is not good in every part changes nothing; both ends
// are recorded.
func (a *Appliance) reload(profile string, b *bundle, actor string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	read := provision.ReadBundle
	if b.name == webui.BundleSigned {
		read = provision.ReadSigners
	}
	record := a.record(audit.TrustReplaced)
	record.Actor, record.Profile = actor, profile
	log := a.config.Log.With("profile", profile, "file", b.file)
	certificates, err := read(a.config.Files, b.file, record.Time)
	if err == nil {
		err = b.reread(certificates, record.Time)
	}
	if err != nil {
		log.Error("reading trust again; the certificates before stay", "err", err)
		record.Outcome, record.Reason = audit.OutcomeRefused, "the certificates before stay: "+err.Error()
		return errors.Join(&webui.TrustError{Err: err}, a.store.Append(record))
	}
	log.Info("trust read again", "certificates", len(certificates))
	record.Reason = trustedNow(certificates, b.file)
	if b.put.Load() != nil {
		record.Reason = "not in use while replaced: " + record.Reason
	}
	a.refreshHints()
	return a.store.Append(record)
}

// reloads answers every reload signal until ctx ends.
func (a *Appliance) reloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.config.Reload:
			a.reloadAll()
		}
	}
}

// reloadAll reads every file of trust/ that is in use and every profile's hashes again, as SIGHUP asks
// for. What cannot be read was logged and recorded, and changes nothing.
func (a *Appliance) reloadAll() {
	reload := func(profile string, b *bundle) {
		var trust *webui.TrustError
		if err := a.reload(profile, b, audit.ActorBox); err != nil && !errors.As(err, &trust) {
			a.config.Log.Error("recording that trust was read again", "profile", profile, "err", err)
		}
	}
	for _, b := range []*bundle{a.proxies.bundle, a.streaming.bundle} {
		if b != nil {
			reload("", b)
		}
	}
	for _, s := range a.settings {
		for _, b := range s.bundles {
			reload(s.profile.Name, b)
		}
		if err := a.reloadHashes(s); err != nil {
			a.config.Log.Error("recording that hashes were read again", "profile", s.profile.Name, "err", err)
		}
	}
}

// reloadHashes reads the hashes of a profile again, where it holds any. What an administrator replaced
// stays replaced.
func (a *Appliance) reloadHashes(s *settings) error {
	if s.static == nil && s.passwords == nil {
		return nil
	}
	record := a.settingRecord(audit.TrustReplaced, s, audit.ActorBox, "challenge and passwords as the site has them now")
	next, err := provision.ReadHashes(a.config.Files, s.profile.Name)
	if err == nil && ((next.Static != "") != (s.static != nil) || (len(next.Basic) > 0) != (s.passwords != nil)) {
		err = errors.New("the profile takes another kind of proof than when the service started, restart it")
	}
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	if err == nil {
		before := s.hashes.base
		s.hashes.base = next
		if err = s.useHashes(); err != nil {
			s.hashes.base = before
			err = errors.Join(err, s.useHashes())
		}
	}
	if err != nil {
		a.config.Log.Error("reading hashes again; those before stay", "profile", s.profile.Name, "err", err)
		record.Outcome, record.Reason = audit.OutcomeRefused, "the hashes before stay: "+err.Error()
	} else {
		a.config.Log.Info("hashes read again", "profile", s.profile.Name)
	}
	return a.store.Append(record)
}
