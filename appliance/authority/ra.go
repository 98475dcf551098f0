package authority

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
)

// maxRAs bounds the RA keys that orders make: they share the room in KEYS with the authorities'
// next generations.
const maxRAs = 8

// RotateRA makes a new RA key, which every active authority certifies. The one before decrypts
// what is still sent to it for the site's overlap, and is removed then. Errors: ErrOverlap, ErrOlder.
func (s *Set) RotateRA(actor string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Older() {
		return ErrOlder
	}
	decrypt := map[int]bool{}
	for _, a := range s.saved.Authorities {
		for _, r := range a.RAs {
			decrypt[r.Number] = true
		}
	}
	if len(decrypt) >= maxRAs {
		return ErrOverlap
	}
	return s.rotateRA(actor, s.cfg.Now())
}

func (s *Set) rotateRA(actor string, now time.Time) error {
	err := s.transition(func(next *store.Identity) ([]audit.Record, error) {
		number := next.RANumber + 1
		key, err := s.created(keys.Spec{Name: raKey(number), Algorithm: s.cfg.Site.RA.Algorithm, Protection: s.cfg.Site.RA.Protection})
		if err != nil {
			return nil, err
		}
		for _, a := range s.cfg.Site.Authorities {
			active := s.Snapshot(a.Name).Active
			if active == nil || !now.Before(active.Issuer.Certificate().NotAfter) {
				continue // it is certified when the authority has a certificate again
			}
			certs := next.Authorities[a.Name]
			if err := s.certifyRA(&certs, active.Issuer, key, number, now); err != nil {
				return nil, fmt.Errorf("authority %s: %w", a.Name, err)
			}
			next.Authorities[a.Name] = certs
		}
		next.RANumber = number
		record := s.record(audit.RARenewed, actor)
		record.Identity, record.Reason = raKey(number), fmt.Sprintf("the key before decrypts until %s", now.Add(s.cfg.Site.RA.Overlap).UTC().Format(time.RFC3339))
		return []audit.Record{record}, nil
	})
	if err != nil {
		return fmt.Errorf("rotating the RA key: %w", err)
	}
	return nil
}

// raDue says whether an RA certificate comes near its end that a new one would outlast.
func (s *Set) raDue(now time.Time) bool {
	for _, a := range s.cfg.Site.Authorities {
		snapshot := s.Snapshot(a.Name)
		if snapshot.Active == nil {
			continue
		}
		current := snapshot.RAs[0].Certificate
		before := min(raRenewBefore, s.cfg.Site.RA.Validity/3)
		end := lasts(snapshot.Active.Issuer.Certificate(), now, s.cfg.Site.RA.Validity)
		if now.After(current.NotAfter.Add(-before)) && end.After(current.NotAfter.Add(worthRenewing)) {
			return true
		}
	}
	return false
}

// recertifyRA has the authorities whose RA certificate begins later than now, which only a clock that was
// wrong can have made, certify the same key anew. The caller holds mu.
func (s *Set) recertifyRA(now time.Time) error {
	return s.transition(func(next *store.Identity) ([]audit.Record, error) {
		var records []audit.Record
		for _, a := range s.cfg.Site.Authorities {
			snapshot := s.Snapshot(a.Name)
			if snapshot.Active == nil || !now.Before(snapshot.RAs[0].Certificate.NotBefore) || now.Before(snapshot.Active.Issuer.Certificate().NotBefore) {
				continue
			}
			certs, current := next.Authorities[a.Name], snapshot.RAs[0]
			if err := s.certifyRA(&certs, snapshot.Active.Issuer, current.Key, current.Number, now); err != nil {
				return nil, fmt.Errorf("authority %s: %w", a.Name, err)
			}
			next.Authorities[a.Name] = certs
			record := s.record(audit.RARenewed, audit.ActorBox)
			record.Identity, record.Reason = a.Name, "the certificate before was made by a clock that was ahead"
			records = append(records, record)
		}
		return records, nil
	})
}

// retireRAs drops the certificates of the RA whose overlap is over. The caller holds mu.
func (s *Set) retireRAs(now time.Time) error {
	over := func(r store.RACert) bool {
		return !r.Replaced.IsZero() && !now.Before(r.Replaced.Add(s.cfg.Site.RA.Overlap))
	}
	var failed []error
	for _, a := range s.cfg.Site.Authorities {
		if !slices.ContainsFunc(s.saved.Authorities[a.Name].RAs, over) {
			continue
		}
		failed = append(failed, s.transition(func(next *store.Identity) ([]audit.Record, error) {
			certs := next.Authorities[a.Name]
			before := len(certs.RAs)
			certs.RAs = slices.DeleteFunc(certs.RAs, over)
			next.Authorities[a.Name] = certs
			s.sweep = true
			record := s.record(audit.RARetired, audit.ActorBox)
			record.Identity, record.Reason = a.Name, fmt.Sprintf("%d certificates", before-len(certs.RAs))
			return []audit.Record{record}, nil
		}))
	}
	return errors.Join(failed...)
}
