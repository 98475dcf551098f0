package authority

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// PrepareNext makes the next generation of an authority: a new key, which takes a TPM seconds to minutes,
// and for a root its certificate and the links to the generation in use. A root's is published from
// then on; a subordinate's waits for InstallChain. Errors: ErrUnknown; ErrPrepared; ErrWaiting for a
// subordinate whose first chain was not uploaded yet.
func (s *Set) PrepareNext(name, actor string) error {
	return s.order(name, func(a provision.Authority, next *store.Identity) ([]audit.Record, error) {
		certs, now := next.Authorities[name], s.cfg.Now()
		active := inState(certs, store.GenerationActive)
		switch {
		case active == nil:
			return nil, ErrWaiting
		case inState(certs, store.GenerationNext) != nil, inState(certs, store.GenerationWaiting) != nil:
			return nil, ErrPrepared
		}
		g := store.GenerationCerts{Number: certs.Numbered + 1, State: store.GenerationWaiting}
		key, err := s.created(keys.Spec{Name: authorityKey(name, g.Number), Algorithm: a.Algorithm, Protection: a.Protection})
		if err != nil {
			return nil, err
		}
		var cert *x509.Certificate
		if a.Mode != provision.ModeSubordinate {
			if cert, err = s.newRoot(a, &g, key, *active, now); err != nil {
				return nil, err
			}
		}
		certs.Numbered = g.Number
		certs.Generations = append(certs.Generations, g)
		next.Authorities[name] = certs
		return []audit.Record{s.recordOf(audit.AuthorityPrepared, actor, name, g.Number, cert)}, nil
	})
}

// newRoot gives g a root's certificate, and the links between it and the root before.
func (s *Set) newRoot(a provision.Authority, g *store.GenerationCerts, key *keys.Key, before store.GenerationCerts, now time.Time) (*x509.Certificate, error) {
	der, err := pki.NewRoot(a.Subject, key, now, a.Validity, a.PathLen)
	if err != nil {
		return nil, err
	}
	g.State, g.Chain = store.GenerationNext, [][]byte{der}
	issuer, err := s.issuerOf(a.Name, *g)
	if err != nil {
		return nil, err
	}
	old, err := s.issuerOf(a.Name, before)
	if err != nil {
		return nil, err
	}
	if len(before.Chain) > 1 || !now.Before(old.Certificate().NotAfter) { // was a subordinate, or nobody trusts it any more
		return issuer.Certificate(), nil
	}
	if g.NewWithOld, err = old.IssueLink(issuer.Certificate(), now); err != nil {
		return nil, fmt.Errorf("certifying the new root by the old: %w", err)
	}
	if g.OldWithNew, err = issuer.IssueLink(old.Certificate(), now); err != nil {
		return nil, fmt.Errorf("certifying the old root by the new: %w", err)
	}
	return issuer.Certificate(), nil
}

// ActivateNext makes the next generation the one that issues; the one before signs revocation lists
// and is trusted for renewals until its certificates have ended. Errors: ErrUnknown; ErrNotPrepared;
// ErrWaiting where its chain was not uploaded.
func (s *Set) ActivateNext(name, actor string) error {
	return s.order(name, func(a provision.Authority, next *store.Identity) ([]audit.Record, error) {
		certs := next.Authorities[name]
		g := inState(certs, store.GenerationNext)
		switch {
		case g == nil && inState(certs, store.GenerationWaiting) != nil:
			return nil, ErrWaiting
		case g == nil:
			return nil, ErrNotPrepared
		}
		if err := s.activate(a, next, &certs, g, s.cfg.Now()); err != nil {
			return nil, err
		}
		next.Authorities[name] = certs
		return []audit.Record{s.recordOf(audit.AuthorityActivated, actor, name, g.Number, parsed(g.Chain[0]))}, nil
	})
}

// CancelNext gives the next generation up, published or waiting for its chain. Its key is removed and
// its number never used again. Errors: ErrUnknown, ErrNotPrepared.
func (s *Set) CancelNext(name, actor string) error {
	return s.order(name, func(_ provision.Authority, next *store.Identity) ([]audit.Record, error) {
		certs := next.Authorities[name]
		if inState(certs, store.GenerationActive) == nil {
			return nil, ErrNotPrepared
		}
		var records []audit.Record
		certs.Generations = slices.DeleteFunc(certs.Generations, func(g store.GenerationCerts) bool {
			gone := g.State == store.GenerationNext || g.State == store.GenerationWaiting
			if gone {
				records = append(records, s.recordOf(audit.AuthorityCancelled, actor, name, g.Number, nil))
			}
			return gone
		})
		if records == nil {
			return nil, ErrNotPrepared
		}
		next.Authorities[name] = certs
		return records, nil
	})
}

// inFlight is how long after its successor took over a generation may still finish an issuance.
const inFlight = time.Hour

// settled is how long the clock has to have stood past a generation's end, with the box running, before the
// key goes for good: time to see and mend a clock that shows years too much. Of two readings of [time.Now]
// it counts the time between them and no steps of the clock.
const settled = 3 * 24 * time.Hour

// retire drops the earlier generations whose last certificate has ended, and cannot be renewed late
// either. The caller holds mu.
func (s *Set) retire(now time.Time) error {
	var failed []error
	for _, a := range s.cfg.Site.Authorities {
		for _, g := range s.Snapshot(a.Name).Earlier {
			if now.Before(g.Superseded.Add(inFlight)) {
				continue
			}
			id := generationID{a.Name, g.Number}
			end, known := s.ended[id]
			if !known { // once a process: nothing is issued under it any more
				last, err := s.cfg.Store.LastNotAfter(g.Superseded.Add(inFlight))
				if err != nil {
					failed = append(failed, err)
					continue
				}
				if end = g.Issuer.Certificate().NotAfter; last.Before(end) {
					end = last
				}
				end = end.Add(s.longestGrace())
				s.ended[id] = end
			}
			if now.Before(end) {
				delete(s.over, id)
				continue
			}
			if since, seen := s.over[id]; !seen {
				s.over[id] = now
				continue
			} else if now.Sub(since) < settled {
				continue
			}
			failed = append(failed, s.transition(func(next *store.Identity) ([]audit.Record, error) {
				certs := next.Authorities[a.Name]
				certs.Generations = slices.DeleteFunc(certs.Generations, func(x store.GenerationCerts) bool { return x.Number == g.Number })
				next.Authorities[a.Name] = certs
				s.sweep = true
				return []audit.Record{s.recordOf(audit.AuthorityRetired, audit.ActorBox, a.Name, g.Number, g.Issuer.Certificate())}, nil
			}))
		}
	}
	return errors.Join(failed...)
}

// longestGrace is how long after its end a certificate can be renewed under any of the site's profiles.
func (s *Set) longestGrace() time.Duration {
	var longest time.Duration
	for _, p := range s.cfg.Site.Profiles {
		longest = max(longest, p.Renewal.Grace)
	}
	return longest
}
