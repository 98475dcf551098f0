package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"signet.internal/appliance/keys"
	"signet.internal/appliance/metrics"
	"signet.internal/webui"
)

// health is how the box is doing apart from certificates: for the console and for metrics.
type health struct {
	tally     *metrics.Tally
	published *metrics.Published
	recent    *recentLog
	stopping  chan struct{} // closed when the service stops
	stop      func()        // closes it, once

	mu       sync.Mutex
	watchdog webui.Watchdog
}

// keepLog has the newest lines of the log kept beside where they go.
func keepLog(log *slog.Logger) (*slog.Logger, *recentLog) {
	recent := &recentLog{most: recentBytes}
	return slog.New(slog.NewMultiHandler(log.Handler(), slog.NewTextHandler(recent, nil))), recent
}

func (a *Appliance) newHealth(recent *recentLog) (*health, error) {
	var profiles, authorities []string
	for _, p := range a.config.Site.Profiles {
		profiles = append(profiles, p.Name)
	}
	for _, s := range a.config.Site.Authorities {
		authorities = append(authorities, s.Name)
	}
	tally, err := metrics.NewTally(a.store, profiles, a.config.Now)
	if err != nil {
		return nil, fmt.Errorf("counting enrollments: %w", err)
	}
	h := &health{tally: tally, published: metrics.NewPublished(authorities), recent: recent, stopping: make(chan struct{})}
	h.stop = sync.OnceFunc(func() { close(h.stopping) })
	return h, nil
}

// count reads what the log has got, so that nobody who asks waits for much of it.
func (a *Appliance) count(ctx context.Context) error {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	for {
		if err := a.health.tally.Read(); err != nil {
			a.config.Log.Error("counting enrollments", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// arm notes whether a supervisor starts the service again where it stops answering.
func (h *health) arm(armed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchdog.Armed = armed
}

// looked notes how a look at the key holder came out.
func (h *health) looked(now time.Time, answered bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !answered {
		h.watchdog.Missed++
		return
	}
	h.watchdog.Answered = now
}

func (h *health) watchdogNow() webui.Watchdog {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watchdog
}

// machine is what the console shows of it.
func (a *Appliance) machine() webui.Machine {
	m := webui.Machine{Keys: keyUse(a.config.Keys.Usage()), Watchdog: a.health.watchdogNow()}
	space := a.store.Space()
	m.Storage = webui.Storage{Total: space.Total, Free: space.Free, Reserve: space.Issue, Known: space.Total > 0}
	if s, ok := a.streaming.status(); ok {
		m.Stream = &webui.Stream{Address: a.streaming.site.Address, Connected: s.Connected, Since: s.Since, Delivered: s.Delivered, Lag: s.Lag}
	}
	for _, entry := range listenerTable {
		l := a.config.Listeners[entry.name]
		if l == nil {
			continue
		}
		one := webui.Listener{Name: entry.name, Address: l.Addr().String(), TLS: "TLS 1.3"}
		switch entry.name {
		case "plain":
			one.TLS = ""
		case "legacy", "legacy_scep":
			one.TLS = "TLS 1.2"
		}
		m.Listeners = append(m.Listeners, one)
	}
	return m
}

// keyUse is the TPM's part of what the key holder was asked.
func keyUse(u keys.Usage) webui.KeyUse {
	out := webui.KeyUse{Waiting: u.Waiting[keys.Resident], Refused: u.Busy}
	var sum time.Duration
	for op, l := range u.Operations {
		if op.Protection != keys.Resident {
			continue
		}
		out.Done += l.Count
		sum += l.Sum
		if op.Name == "sign" {
			out.Newest = l.Newest
		}
	}
	if out.Done > 0 {
		out.Mean = sum / time.Duration(out.Done)
	}
	return out
}

// history is the last days for the console's picture.
func (a *Appliance) history() (webui.History, error) {
	h := a.health.tally.History()
	if h.Counted { // the first reading is count's
		if err := a.health.tally.Read(); err != nil {
			return webui.History{}, err
		}
		h = a.health.tally.History()
	}
	out := webui.History{Since: h.Since, Counted: h.Counted}
	for _, d := range h.Days {
		out.Days = append(out.Days, webui.HistoryDay(d))
	}
	return out, nil
}
