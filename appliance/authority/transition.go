package authority

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// transition has f change a copy of the identity, which becomes what is stored, together with the
// records f returns, and then what readers see. Without records nothing has changed. The caller holds mu.
func (s *Set) transition(f func(next *store.Identity) ([]audit.Record, error)) error {
	next := clone(s.saved)
	records, err := f(&next)
	if err != nil || len(records) == 0 {
		return err
	}
	b, err := s.build(s.saved, next)
	if err != nil {
		return err
	}
	if err := s.cfg.Store.UpdateIdentity(next, records...); err != nil {
		return err
	}
	s.saved = next
	s.publish(b)
	return nil
}

// order is a transition of one authority that a user asks for. Error: ErrOlder.
func (s *Set) order(name string, f func(a provision.Authority, next *store.Identity) ([]audit.Record, error)) error {
	a, err := s.of(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Older() {
		return fmt.Errorf("authority %s: %w", name, ErrOlder)
	}
	err = s.transition(func(next *store.Identity) ([]audit.Record, error) { return f(a, next) })
	if err != nil {
		return fmt.Errorf("authority %s: %w", name, err)
	}
	s.sweepKeys()
	return nil
}

// recordOf is the record of something that happened to one generation of an authority.
func (s *Set) recordOf(action audit.Action, actor, name string, generation int, cert *x509.Certificate) audit.Record {
	r := s.record(action, actor)
	r.Identity, r.Reason = name, fmt.Sprintf("generation %d", generation)
	if cert != nil {
		r.Serial = serial(cert)
	}
	return r
}

// parsed is a certificate just made, for its record; nil if it cannot be read, which build refuses then.
func parsed(der []byte) *x509.Certificate {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert
}

func serial(cert *x509.Certificate) string { return fmt.Sprintf("%x", cert.SerialNumber.Bytes()) }

// inState is the generation in that state; nil if there is none.
func inState(a store.AuthorityCerts, state store.GenerationState) *store.GenerationCerts {
	i := slices.IndexFunc(a.Generations, func(g store.GenerationCerts) bool { return g.State == state })
	if i < 0 {
		return nil
	}
	return &a.Generations[i]
}

// initial is the identity of a new box: every root's first generation with what it certifies, the keys
// of subordinates waiting for their chains, and TLS.
func (s *Set) initial(now time.Time) (store.Identity, error) {
	id := store.Identity{Authorities: map[string]store.AuthorityCerts{}, RANumber: 1}
	for _, a := range s.cfg.Site.Authorities {
		certs := store.AuthorityCerts{Numbered: 1, Generations: []store.GenerationCerts{{Number: 1, State: store.GenerationWaiting}}}
		key, err := s.key(authorityKey(a.Name, 1))
		if err != nil {
			return id, fmt.Errorf("authority %s: %w", a.Name, err)
		}
		if a.Mode != provision.ModeSubordinate {
			root, err := pki.NewRoot(a.Subject, key, now, a.Validity, a.PathLen)
			if err != nil {
				return id, fmt.Errorf("authority %s: %w", a.Name, err)
			}
			certs.Generations[0].Chain = [][]byte{root}
			if err := s.activate(a, &id, &certs, &certs.Generations[0], now); err != nil {
				return id, fmt.Errorf("authority %s: %w", a.Name, err)
			}
		}
		id.Authorities[a.Name] = certs
	}
	return id, s.initialTLS(&id, now)
}

// activate makes g, which has a certificate, the generation of certs that issues: it certifies the
// RA key in use and, where OCSP is on, the responder's.
func (s *Set) activate(a provision.Authority, id *store.Identity, certs *store.AuthorityCerts, g *store.GenerationCerts, now time.Time) error {
	issuer, err := s.issuerOf(a.Name, *g)
	if err != nil {
		return err
	}
	key, err := s.key(raKey(id.RANumber))
	if err != nil {
		return err
	}
	if err := s.certifyRA(certs, issuer, key, id.RANumber, now); err != nil {
		return err
	}
	if a.OCSP {
		if err := s.certifyResponder(issuer, g, now); err != nil {
			return err
		}
	}
	if old := inState(*certs, store.GenerationActive); old != nil && old != g {
		old.State, old.Superseded = store.GenerationEarlier, now
	}
	g.State = store.GenerationActive
	return nil
}

// issuerOf is the issuer of a stored generation.
func (s *Set) issuerOf(name string, g store.GenerationCerts) (*pki.Issuer, error) {
	generation, err := s.generation(name, g)
	if err != nil {
		return nil, err
	}
	return generation.Issuer, nil
}

// certifyRA puts a certificate of an RA key in front of those the authority has.
func (s *Set) certifyRA(certs *store.AuthorityCerts, issuer *pki.Issuer, key *keys.Key, number int, now time.Time) error {
	der, err := issuer.IssueRA(key.Public(), now, s.cfg.Site.RA.Validity)
	if err != nil {
		return fmt.Errorf("RA certificate: %w", err)
	}
	if len(certs.RAs) > 0 && certs.RAs[0].Replaced.IsZero() {
		certs.RAs[0].Replaced = now
	}
	certs.RAs = slices.Insert(certs.RAs, 0, store.RACert{Number: number, Certificate: der})
	return nil
}

// certifyResponder has a generation certify the OCSP key anew.
func (s *Set) certifyResponder(issuer *pki.Issuer, g *store.GenerationCerts, now time.Time) error {
	key, err := s.key(provision.KeyOCSP)
	if err != nil {
		return err
	}
	if g.Responder, err = issuer.IssueResponder(key.Public(), now, responderValidity); err != nil {
		return fmt.Errorf("responder certificate: %w", err)
	}
	return nil
}

// sweepKeys removes the keys that no certificate names any more. One whose number was never used is
// left: an attempt to make it was cut short, and the next takes it up. The caller holds mu.
func (s *Set) sweepKeys() {
	infos, err := s.cfg.Keys.List()
	if err != nil {
		s.sweep = true
		s.cfg.Log.Warn("looking for keys nobody needs", "err", err)
		return
	}
	s.sweep = false
	for _, info := range infos {
		if !s.unnamed(info.Name) {
			continue
		}
		if err := s.cfg.Keys.Delete(info.Name); err != nil && !errors.Is(err, keys.ErrNoKey) {
			s.sweep = true
			s.cfg.Log.Warn("removing a key nobody needs; it is tried again", "key", info.Name, "err", err)
			continue
		}
		delete(s.held, info.Name)
	}
}

// unnamed says whether a key was made at run time, for a generation or the RA, and belongs to nothing
// any more.
func (s *Set) unnamed(key string) bool {
	rest, number := cutNumber(key)
	if number < 2 {
		return false
	}
	if rest == provision.KeyRA {
		for _, a := range s.saved.Authorities {
			if slices.ContainsFunc(a.RAs, func(r store.RACert) bool { return r.Number == number }) {
				return false
			}
		}
		return number < s.saved.RANumber
	}
	name, ok := strings.CutPrefix(rest, provision.KeyAuthorityPrefix)
	if !ok {
		return false
	}
	a, ok := s.saved.Authorities[name]
	return ok && number <= a.Numbered && !slices.ContainsFunc(a.Generations, func(g store.GenerationCerts) bool { return g.Number == number })
}

// cutNumber splits "ra.3" into "ra" and 3; 0 where there is no number.
func cutNumber(name string) (string, int) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, 0
	}
	n, err := strconv.Atoi(name[i+1:])
	if err != nil {
		return name, 0
	}
	return name[:i], n
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// lasts says until when a certificate that an authority makes now for validity lasts.
func lasts(issuer *x509.Certificate, now time.Time, validity time.Duration) time.Time {
	if end := now.Add(validity); end.Before(issuer.NotAfter) {
		return end
	}
	return issuer.NotAfter
}
