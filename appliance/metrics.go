package appliance

import (
	"net/http"

	"signet.internal/appliance/metrics"
)

// newMetrics answers in Prometheus' text format with what the service counts when somebody asks.
func (a *Appliance) newMetrics() http.Handler {
	boot := a.config.Boot
	return metrics.NewHandler(metrics.Sources{
		Box:       metrics.Box{Site: a.config.Site.Name, Version: boot.Version, Kind: boot.Kind, Epoch: boot.Epoch},
		Tally:     a.health.tally,
		Published: a.health.published,
		Challenges: func() map[string]map[string]uint64 {
			all := map[string]map[string]uint64{}
			for _, s := range a.settings {
				outcomes := map[string]uint64{}
				for label, n := range s.set.Snapshot() {
					outcomes[string(label)] = n
				}
				all[s.profile.Name] = outcomes
			}
			return all
		},
		Pending: func() (int, error) {
			held, err := a.engine.PendingRequests()
			return len(held), err
		},
		Keys: a.config.Keys.Usage,
		Storage: func() metrics.Storage {
			space := a.store.Space()
			return metrics.Storage{Total: space.Total, Free: space.Free, Reserve: space.Issue}
		},
		AuditRecords: func() (uint64, error) {
			size, _, err := a.store.LogHead()
			return size, err
		},
		Certificates: a.certificatesForMetrics,
		Clock: func() metrics.Clock {
			floor := boot.TimeFloor
			if last := a.store.LastTime(); last.After(floor) {
				floor = last
			}
			return metrics.Clock{Now: a.config.Now(), Floor: floor, Source: boot.TimeSource, Trusted: a.engine.TrustsClock() == nil}
		},
		Watchdog: func() metrics.Watchdog {
			w := a.health.watchdogNow()
			return metrics.Watchdog{Answered: w.Answered, Missed: w.Missed}
		},
		Stream: func() (metrics.Stream, bool) {
			s, ok := a.streaming.status()
			return metrics.Stream{Connected: s.Connected, Lag: s.Lag}, ok
		},
		Conditions: func() (n int, stopped bool) {
			site := a.siteForConsole()
			return len(site.Conditions) + len(boot.Conditions), site.Stopped
		},
	})
}

// certificatesForMetrics are those that have to be renewed in time.
func (a *Appliance) certificatesForMetrics() []metrics.Certificate {
	var all []metrics.Certificate
	for _, s := range a.config.Site.Authorities {
		now := a.identity.Snapshot(s.Name)
		if now.Active == nil {
			continue
		}
		all = append(all, metrics.Certificate{Authority: s.Name, Kind: "ca", Generation: now.Active.Number, NotAfter: now.Active.Issuer.Certificate().NotAfter})
		if r := now.Active.Responder; r != nil {
			all = append(all, metrics.Certificate{Authority: s.Name, Kind: "ocsp", NotAfter: r.Certificate.NotAfter})
		}
		if len(now.RAs) > 0 {
			all = append(all, metrics.Certificate{Authority: s.Name, Kind: "ra", NotAfter: now.RAs[0].Certificate.NotAfter})
		}
	}
	served, _ := a.identity.Certificate(nil) // the same for every client
	return append(all, metrics.Certificate{Kind: "tls", NotAfter: served.Leaf.NotAfter})
}
