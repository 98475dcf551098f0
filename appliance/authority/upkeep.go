package authority

import (
	"errors"
	"fmt"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// Upkeep does what has come due: it retires what has ended, rotates the RA key, renews the
// responders' and TLS certificates, and removes keys nobody needs. Called every minute it costs a look at
// the clock and at the box's addresses. What fails is returned, keeps nothing else from being done, and
// is tried again by the next call. On an older state it looks after TLS alone.
func (s *Set) Upkeep(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Older() {
		return s.upkeepTLS(now)
	}
	failed := []error{s.retire(now), s.retireRAs(now)}
	if s.raDue(now) {
		failed = append(failed, s.rotateRA(audit.ActorBox, now))
	}
	if err := s.recertifyRA(now); err != nil {
		failed = append(failed, fmt.Errorf("certifying the RA key: %w", err))
	}
	for _, a := range s.cfg.Site.Authorities {
		if err := s.renewResponders(a, now); err != nil {
			failed = append(failed, fmt.Errorf("authority %s: %w", a.Name, err))
		}
	}
	failed = append(failed, s.upkeepTLS(now))
	if s.sweep {
		s.sweepKeys()
	}
	return errors.Join(failed...)
}

func (s *Set) upkeepTLS(now time.Time) error {
	if err := s.refreshTLS(now); err != nil {
		return fmt.Errorf("renewing the TLS certificate: %w", err)
	}
	return nil
}

// renewResponders renews the responder certificates of an authority's active and earlier generations at
// half their life, and those a clock that was ahead has made.
func (s *Set) renewResponders(a provision.Authority, now time.Time) error {
	snapshot := s.Snapshot(a.Name)
	due := func(g *Generation) bool {
		if g == nil || !a.OCSP {
			return false
		}
		issuer := g.Issuer.Certificate()
		if g.Responder == nil {
			return now.Before(issuer.NotAfter)
		}
		if now.Before(g.Responder.Certificate.NotBefore) { // made by a clock that was ahead
			return !now.Before(issuer.NotBefore)
		}
		end := g.Responder.Certificate.NotAfter
		return now.After(end.Add(-responderValidity/2)) && lasts(issuer, now, responderValidity).After(end.Add(worthRenewing))
	}
	for _, g := range append([]*Generation{snapshot.Active}, snapshot.Earlier...) {
		if !due(g) {
			continue
		}
		err := s.transition(func(next *store.Identity) ([]audit.Record, error) {
			certs := next.Authorities[a.Name]
			for i := range certs.Generations {
				if certs.Generations[i].Number != g.Number {
					continue
				}
				if err := s.certifyResponder(g.Issuer, &certs.Generations[i], now); err != nil {
					return nil, err
				}
				return []audit.Record{s.recordOf(audit.ResponderRenewed, audit.ActorBox, a.Name, g.Number, parsed(certs.Generations[i].Responder))}, nil
			}
			return nil, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
