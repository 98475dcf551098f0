package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/provision"
	"signet.internal/webui"
)

// bundle is one file of certificates that a profile trusts: the site's, or what an administrator put in
// its place.
type bundle struct {
	name string // as administrators call it
	file string // of the site
	base atomic.Pointer[trusted]
	put  atomic.Pointer[trusted] // nil: base is in use

	// check, where set, refuses certificates that cannot serve; use has those in force taken into use
	// where they are not asked for by pool.
	check func([]*x509.Certificate) error
	use   func(*trusted) error
}

type trusted struct {
	certificates []*x509.Certificate
	pool         *x509.CertPool
	replaced     *webui.Change // nil: the site's
}

func newTrusted(certificates []*x509.Certificate, replaced *webui.Change) *trusted {
	t := &trusted{certificates: certificates, pool: x509.NewCertPool(), replaced: replaced}
	addAll(t.pool, certificates)
	return t
}

// bundleNames are what administrators call the site's fields.
var bundleNames = map[string]string{
	provision.FieldSigned:      webui.BundleSigned,
	provision.FieldMTLS:        webui.BundleSCEPMTLS,
	provision.FieldEST:         webui.BundleEST,
	provision.FieldRenewalFrom: webui.BundleRenewFrom,
	provision.FieldCompliance:  webui.BundleCompliance,
	provision.FieldIntune:      webui.BundleIntune,
}

// newBundles takes the profile's files into use.
func (s *settings) newBundles(site *provision.Site, now func() time.Time) error {
	for _, u := range site.Bundles() {
		if u.Profile != s.profile.Name {
			continue
		}
		b := &bundle{name: bundleNames[u.Field], file: u.File}
		switch b.name {
		case webui.BundleSigned:
			b.check = func(c []*x509.Certificate) error { _, err := challenge.NewSigners(c); return err }
			b.use = func(t *trusted) error {
				signers, err := challenge.NewSigners(t.certificates)
				if err != nil {
					return err
				}
				return s.signed.Replace(signers, now())
			}
		case webui.BundleCompliance:
			b.use = func(t *trusted) error { return s.hook.trust(t.pool) }
		case webui.BundleIntune:
			b.use = func(t *trusted) error { s.intune.trust(t.pool); return nil }
		}
		b.base.Store(newTrusted(u.Certificates, nil))
		s.bundles = append(s.bundles, b)
	}
	return nil
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

// replace puts certificates in place of the site's, nil takes the site's again. After an error those
// before are in use.
func (b *bundle) replace(certificates []*x509.Certificate, by *webui.Change) error {
	next, in := b.base.Load(), (*trusted)(nil)
	if certificates != nil {
		in = newTrusted(certificates, by)
		next = in
	}
	if b.use != nil {
		if err := b.use(next); err != nil {
			return err
		}
	}
	b.put.Store(in)
	return nil
}

// reread takes what a file of the site says now as the site's.
func (b *bundle) reread(certificates []*x509.Certificate) error {
	t := newTrusted(certificates, nil)
	if b.check != nil {
		if err := b.check(certificates); err != nil {
			return err
		}
	}
	if b.put.Load() == nil && b.use != nil {
		if err := b.use(t); err != nil {
			return err
		}
	}
	b.base.Store(t)
	return nil
}

// maxBundle bounds the certificates of a bundle that an administrator uploads.
const maxBundle = 100

// parseCertificates reads a PEM file of certificates and nothing else but text between them.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %s is in the file, upload certificates alone", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read, export it again as PEM: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, cert)
	}
	if bytes.Contains(text, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("what stands after certificate %d is not PEM, upload the whole file", len(certificates))
	}
	if len(certificates) == 0 || len(certificates) > maxBundle {
		return nil, fmt.Errorf("%d certificates, upload 1 to %d in PEM", len(certificates), maxBundle)
	}
	return certificates, nil
}

// replaceBundle puts certificates in place of a baked bundle; nil goes back to it.
func (a *Appliance) replaceBundle(s *settings, name string, text []byte, actor string) error {
	b := s.bundle(name)
	if b == nil {
		return &webui.ConflictError{What: "the profile has no such bundle", Mend: "Name one of those that the profile's settings show; others take a new bake."}
	}
	record := a.settingRecord(audit.TrustReplaced, s, actor, name+": "+trustedNow(b.base.Load().certificates, b.file))
	var certificates []*x509.Certificate
	var by *webui.Change
	if text != nil {
		var err error
		if certificates, err = parseCertificates(text); err != nil {
			return &webui.OrderError{Err: err}
		}
		for _, cert := range certificates {
			if now := record.Time; now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
				return &webui.OrderError{Err: fmt.Errorf("certificate %q is not valid now, upload one that is", cert.Subject)}
			}
		}
		by = &webui.Change{By: actor, At: record.Time}
		record.Reason = trustedNow(certificates, name)
	}
	before := b.put.Load()
	if err := b.replace(certificates, by); err != nil {
		return &webui.OrderError{Err: err}
	}
	if _, err := a.put(overrideBundle(s.profile.Name, name), text, record); err != nil {
		if before == nil {
			return errors.Join(err, b.replace(nil, nil))
		}
		return errors.Join(err, b.replace(before.certificates, before.replaced))
	}
	a.refreshHints()
	return nil
}

// trustedNow says in the log whom certificates make the box believe: each by the beginning of its
// SHA-256, which is short enough for all of them.
func trustedNow(certificates []*x509.Certificate, file string) string {
	text := fmt.Sprintf("%d certificates of %s are in use, SHA-256", len(certificates), file)
	for _, c := range certificates {
		sum := sha256.Sum256(c.Raw)
		text += fmt.Sprintf(" %x", sum[:5])
	}
	return text
}

// reloadTrust reads the signers of a profile again, for whoever orders it over the API.
func (a *Appliance) reloadTrust(profile, actor string) (name string, err error) {
	s, err := a.settingsOf(profile)
	if err != nil {
		return "", err
	}
	b := s.bundle(webui.BundleSigned)
	if b == nil {
		return "", webui.ErrNoSigned
	}
	if b.put.Load() != nil {
		return "", &webui.ConflictError{What: "an administrator replaced these certificates, and the file is not in use", Mend: "Go back to the baked bundle first."}
	}
	return s.profile.Name, a.reload(s, b, actor)
}

// reload reads a bundle's file again. A file that is not good in every part changes nothing; both ends
// are recorded.
func (a *Appliance) reload(s *settings, b *bundle, actor string) error {
	read := provision.ReadBundle
	if b.name == webui.BundleSigned {
		read = provision.ReadSigners
	}
	certificates, err := read(a.config.Files, b.file, a.config.Now())
	if err == nil {
		err = b.reread(certificates)
	}
	if err != nil {
		a.config.Log.Error("reading trust again; the certificates before stay in use", "profile", s.profile.Name, "file", b.file, "err", err)
		record := a.settingRecord(audit.TrustReplaced, s, actor, "the certificates before stay in use: "+err.Error())
		record.Outcome = audit.OutcomeRefused
		return errors.Join(&webui.TrustError{Err: err}, a.store.Append(record))
	}
	a.config.Log.Info("trust read again", "profile", s.profile.Name, "file", b.file, "certificates", len(certificates))
	a.refreshHints()
	return a.store.Append(a.settingRecord(audit.TrustReplaced, s, actor, trustedNow(certificates, b.file)))
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

// reloadAll reads every profile's files of trust/ and hashes again, as SIGHUP asks for. What cannot be
// read was logged and recorded, and changes nothing.
func (a *Appliance) reloadAll() {
	for _, s := range a.settings {
		for _, b := range s.bundles {
			var trust *webui.TrustError
			if err := a.reload(s, b, audit.ActorBox); err != nil && !errors.As(err, &trust) {
				a.config.Log.Error("recording that trust was read again", "profile", s.profile.Name, "err", err)
			}
		}
		if err := a.reloadHashes(s); err != nil {
			a.config.Log.Error("recording that hashes were read again", "profile", s.profile.Name, "err", err)
		}
	}
}

// reloadHashes reads the hashes of a profile again, where it holds any.
func (a *Appliance) reloadHashes(s *settings) error {
	if s.static == nil && s.passwords == nil {
		return nil
	}
	next, err := provision.ReadHashes(a.config.Files, s.profile.Name)
	if err == nil && ((next.Static != "") != (s.static != nil) || (len(next.Basic) > 0) != (s.passwords != nil)) {
		err = errors.New("the profile takes another kind of proof than when the service started, restart it")
	}
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	before := s.hashes.base
	if err == nil {
		s.hashes.base = next
		if err = s.useHashes(); err != nil {
			s.hashes.base = before
			err = errors.Join(err, s.useHashes())
		}
	}
	if err != nil {
		a.config.Log.Error("reading hashes again; those before stay in use", "profile", s.profile.Name, "err", err)
		record := a.settingRecord(audit.TrustReplaced, s, audit.ActorBox, "the hashes before stay in use: "+err.Error())
		record.Outcome = audit.OutcomeRefused
		return a.store.Append(record)
	}
	a.config.Log.Info("hashes read again", "profile", s.profile.Name)
	return a.store.Append(a.settingRecord(audit.TrustReplaced, s, audit.ActorBox, "challenge and passwords as the site has them now"))
}
