package appliance

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
	"signet.internal/appliance/syslog"
	"signet.internal/provision"
)

const (
	// retainInterval is how often it is looked whether records have served. They go once a day: each removal
	// is a record itself.
	retainInterval = time.Hour
	retainGrain    = 24 * time.Hour

	// streamPatience is how long a receiver may be away before a person hears of it: as long as one takes to
	// start anew.
	streamPatience = time.Minute

	// streamStall is how long a receiver may take nothing of what waits, connected or not.
	streamStall = 10 * time.Minute
)

// streaming is what becomes of the audit log besides being written: it is sent to a receiver, and its first
// records go when they have served.
type streaming struct {
	site   *provision.Syslog // nil: nobody is sent the log
	sender *syslog.Stream
	bundle *bundle // whom the receiver chains to

	broken atomic.Pointer[string] // why no record can be removed; nil: they can
}

// newStreaming makes the stream to the site's receiver; nothing runs yet.
func (a *Appliance) newStreaming() (*streaming, error) {
	s := &streaming{site: a.config.Site.Audit.Syslog}
	if s.site == nil {
		return s, nil
	}
	s.bundle = newBundle(provision.FieldSyslog, provision.Bundle{File: s.site.File, Certificates: s.site.Roots})
	var err error
	s.sender, err = syslog.New(syslog.Config{
		Store: a.store, Address: s.site.Address, Facility: s.site.Facility,
		Roots:    func() *x509.CertPool { return s.bundle.now().pool },
		Hostname: cmp.Or(a.config.Site.PublicHost, a.config.Site.Name), Site: a.config.Site.Name, Version: a.config.Site.Version,
		Certificate: func() (*tls.Certificate, error) { return a.identity.Certificate(nil) },
		Now:         a.config.Now, Log: a.config.Log,
	})
	return s, err
}

// stream sends the log until ctx ends.
func (a *Appliance) stream(ctx context.Context) error {
	if a.streaming.sender != nil {
		a.streaming.sender.Run(ctx)
	}
	return nil
}

// status says where the stream stands; ok is false where the site has none.
func (s *streaming) status() (status syslog.Status, ok bool) {
	if s.sender == nil {
		return syslog.Status{}, false
	}
	return s.sender.Status(), true
}

// retain counts how long the box runs, and removes the records that have served, until ctx ends. It counts
// where the site keeps all of them too: another image's site may not.
func (a *Appliance) retain(ctx context.Context) error {
	tick := time.NewTicker(retainInterval)
	defer tick.Stop()
	for counted := time.Now(); ; {
		now := time.Now() // with a monotonic clock
		if err := a.store.Ran(now.Sub(counted)); err != nil {
			a.config.Log.Error("counting how long the box runs", "err", err)
		}
		counted = now
		if a.config.Site.Audit.Retention > 0 {
			a.removeRecords()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// removeRecords removes what has served by now.
func (a *Appliance) removeRecords() {
	if a.engine.Condition() != nil {
		return // by a clock that is not trusted nothing is old
	}
	aged, err := a.store.Aged()
	if err != nil {
		a.config.Log.Error("removing audit records", "err", err)
		return
	}
	now, keep := a.config.Now(), a.config.Site.Audit.Retention
	r := store.Retention{Now: now, Keep: keep + now.Sub(now.Truncate(retainGrain)), Aged: aged, Delivered: store.Everyone}
	if status, ok := a.streaming.status(); ok {
		r.Delivered = status.Delivered
	}
	record := a.record(audit.RecordsRemoved)
	record.Reason = fmt.Sprintf("the site keeps them for %d days", keep/(24*time.Hour))
	for {
		n, err := a.store.RemoveRecords(r, record)
		if err != nil {
			a.config.Log.Error("removing audit records", "err", err)
			text := err.Error()
			a.streaming.broken.Store(&text)
			return
		}
		a.streaming.broken.Store(nil)
		if n == 0 {
			return
		}
		a.config.Log.Info("audit records removed", "records", n, "before", a.store.Removed().Before)
	}
}

// conditions tell of a receiver that is away, and of a log that somebody changed.
func (s *streaming) conditions(now time.Time) []handover.Condition {
	var all []handover.Condition
	if text := s.broken.Load(); text != nil {
		all = append(all, handover.Condition{
			What: "No audit record is removed, although the site's retention says so: " + *text + ".",
			Mend: "Export the audit log and verify it (signet audit export); if a record is bad, keep the disk as it is and find out who changed it.",
		})
	}
	if s.sender == nil {
		return all
	}
	if cert := firstExpired(s.bundle.now().certificates, now); cert != nil {
		all = append(all, handover.Condition{
			What: "The audit log's receiver may not be believed: " + expiredText(cert, s.bundle.file) + ".",
			Mend: "Replace the certificate in the site and bake it again; on a host replace the file and reload.",
		})
	}
	status := s.sender.Status()
	if status.Err == nil || status.Connected || now.Sub(status.Since) < streamPatience {
		if status.Waiting.IsZero() || now.Sub(status.Waiting) < streamStall {
			return all
		}
		return append(all, handover.Condition{
			What: fmt.Sprintf("The audit log is sent to %s, which ends connections before what it was sent can count as delivered: since %s nothing has. %d records wait on the disk, and none of them is removed until then.",
				s.site.Address, status.Waiting.UTC().Format(conditionTime), status.Lag),
			Mend: "Look at the receiver, and at what is between it and the box: a connection has to stand for longer than ten seconds.",
		})
	}
	return append(all, handover.Condition{
		What: fmt.Sprintf("The audit log is not sent to %s since %s: %v. %d records wait on the disk, and none of them is removed until then.",
			s.site.Address, status.Since.UTC().Format(conditionTime), status.Err, status.Lag),
		Mend: "Look at the receiver, the network to it, and whether its certificate chains to " + s.site.File + " of the site.",
	})
}

// spaceConditions tell of a disk that is full, or soon is.
func (a *Appliance) spaceConditions() []handover.Condition {
	const mend = "Give the disk more room, or shorten audit.retention of the site and bake it again; what was removed frees space within a day."
	p := a.store.Space()
	free, issue := p.Free>>20, p.Issue>>20
	switch {
	case p.Total == 0 || p.Free >= 2*p.Issue:
		return nil
	case p.Free < p.Tend:
		return []handover.Condition{{What: fmt.Sprintf("The state disk is full, so nothing is issued and nothing can be changed: %d MiB are left, and %d needed to change anything.", free, p.Tend>>20), Mend: mend}}
	case p.Free < p.Issue:
		return []handover.Condition{{What: fmt.Sprintf("The state disk is nearly full, so nothing is issued: %d MiB are left, %d are needed. Certificates can still be revoked.", free, issue), Mend: mend}}
	}
	return []handover.Condition{{What: fmt.Sprintf("The state disk fills up: %d MiB are left, and below %d nothing is issued any more.", free, issue), Mend: mend}}
}
