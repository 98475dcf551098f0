package provision

import (
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"
)

// BundleUse is one place where a site names a file of certificates in trust/.
type BundleUse struct {
	Profile string // its name; "" for the site itself
	Field   string // path in the profile's file or in site.yaml, such as "scep.mtls.bundle"
	Bundle
}

// The fields that name files in trust/.
const (
	FieldSyslog      = "audit.syslog.ca"
	FieldProxies     = "trusted_proxies.bundle"
	FieldRenewalFrom = "renewal.from"
	FieldCompliance  = "compliance.roots"
	FieldMTLS        = "scep.mtls.bundle"
	FieldSigned      = "scep.challenges.signed.certificates"
	FieldIntune      = "scep.challenges.intune.roots"
	FieldEST         = "est.auth.certificate"
)

// Bundles lists every use of a file in trust/, the site's own first, then profile by profile. A file can
// have several.
func (s *Site) Bundles() []BundleUse {
	var uses []BundleUse
	add := func(profile, field, file string, certificates []*x509.Certificate) {
		uses = append(uses, BundleUse{profile, field, Bundle{file, certificates}})
	}
	if p := s.TrustedProxies; p != nil && p.File != "" {
		add("", FieldProxies, p.File, p.Certificates)
	}
	if g := s.Audit.Syslog; g != nil {
		add("", FieldSyslog, g.File, g.Roots)
	}
	for _, p := range s.Profiles {
		if b := p.Renewal.From; b != nil {
			add(p.Name, FieldRenewalFrom, b.File, b.Certificates)
		}
		if c := p.Compliance; c != nil {
			add(p.Name, FieldCompliance, c.File, c.Roots)
		}
		if m := p.SCEP.MTLS; m != nil {
			add(p.Name, FieldMTLS, m.File, m.Certificates)
		}
		if c := p.SCEP.Challenges.Signed; c != nil {
			add(p.Name, FieldSigned, c.File, c.Certificates)
		}
		if c := p.SCEP.Challenges.Intune; c != nil {
			add(p.Name, FieldIntune, c.File, c.Roots)
		}
		if e := p.EST; e != nil && e.File != "" {
			add(p.Name, FieldEST, e.File, e.Bundle)
		}
	}
	return uses
}

// ReadBundle reads a file of trust/ again, as of now. The error is [Problems]; then the certificates in
// use are to be kept.
func ReadBundle(site fs.FS, file string, now time.Time) ([]*x509.Certificate, error) {
	certificates, problems := readBundle(site, file, now)
	if len(problems) > 0 {
		return nil, problems
	}
	return certificates, nil
}

// ReadSigners is [ReadBundle] for a file of challenge-signing certificates.
func ReadSigners(site fs.FS, file string, now time.Time) ([]*x509.Certificate, error) {
	certificates, problems := readBundle(site, file, now)
	for _, what := range unusableSigners(certificates) {
		problems = append(problems, Problem{File: file, What: what, Mend: signerMend})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return certificates, nil
}

// readBundle reads a file as [load] reads those of trust/.
func readBundle(site fs.FS, file string, now time.Time) ([]*x509.Certificate, Problems) {
	f, err := site.Open(file)
	if err != nil {
		return nil, Problems{{File: file, What: fmt.Sprintf("cannot be read: %v", pathCause(err)), Mend: "make the file readable"}}
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, Problems{{File: file, What: fmt.Sprintf("cannot be read: %v", pathCause(err)), Mend: "make it a readable file"}}
	case len(content) > maxFile:
		return nil, Problems{{File: file, What: fmt.Sprintf("larger than %d MiB", maxFile>>20), Mend: "make it smaller"}}
	}
	return parseBundle(file, content, now)
}

// Hashes are the secrets a profile's file holds, as argon2id hashes.
type Hashes struct {
	Static string      // of the challenge all devices share; "" where that kind is off
	Basic  []BasicUser // of EST; none where that is off
}

// ReadHashes reads the hashes of a profile again. The error is [Problems] with what is wrong with
// site.yaml or the profile's file; then the hashes in use are to be kept. Whether a kind of challenge
// was added or removed since the site was loaded is the caller's to see.
func ReadHashes(site fs.FS, profile string) (Hashes, error) {
	l := newLoader(site, time.Time{})
	l.readSite()
	if len(l.problems) > 0 {
		return Hashes{}, l.problems.sorted()
	}
	for _, file := range l.profileFiles() {
		// A problem of another profile's file is no reason to keep this one's hashes.
		before, others := len(l.problems), len(l.site.Profiles)
		content := l.readFile(file)
		if content == nil {
			continue
		}
		l.readProfile(file, content)
		if len(l.site.Profiles) == others || l.site.Profiles[others].Name != profile {
			continue
		}
		if problems := slices.Clone(l.problems[before:]); len(problems) > 0 {
			return Hashes{}, problems.sorted()
		}
		return l.site.Profiles[others].Hashes(), nil
	}
	if len(l.problems) > 0 {
		return Hashes{}, l.problems.sorted()
	}
	return Hashes{}, Problems{{File: profilesDir, What: fmt.Sprintf("no file is about profile %q", profile), Mend: "restore the profile's file"}}
}

// Hashes are the hashes of the profile as it was loaded.
func (p *Profile) Hashes() Hashes {
	h := Hashes{Static: p.SCEP.Challenges.StaticHash}
	if p.EST != nil {
		h.Basic = p.EST.Basic
	}
	return h
}
