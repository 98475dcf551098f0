package enroll

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
)

// Refusal is a message refused before its sender was authenticated.
type Refusal struct {
	Profile       string // "" where the message did not get that far
	Protocol      string // ProtocolSCEP or ProtocolEST
	Source        netip.Addr
	TransactionID string // as sent, "" if unreadable
	Identity      string // who the CSR names, "" if unreadable

	// Reason is one of a fixed set of texts of the calling package: refusals are counted by it, so
	// nothing of the message belongs into it.
	Reason string
}

// Bounds on what senders nobody knows can make the box write: per minute at most writtenMax records
// at once, each with its own sync, and at the minute's end at most countedMax+1 more with one sync.
const (
	refusalPeriod = time.Minute
	writtenMax    = 20
	countedMax    = 64
)

// Bounds on what senders with a good proof can make the box write: so many refusals a minute have a
// record each, of one source and of all; what is more is counted. A challenge that all devices share is
// a good proof too, and a refusal takes no slot of the profile's limits.
const (
	knownPerSource = 60
	knownMax       = 600
)

// Refused records a refusal that the calling protocol made: the first of its source and reason in a
// minute at once, the others of that minute as one record with their number.
func (e *Engine) Refused(r Refusal) {
	if !e.enter() {
		return
	}
	defer e.running.Done()
	e.countRefusal(r)
}

func (e *Engine) countRefusal(r Refusal) {
	if !e.refusals.add(r) {
		return
	}
	if err := e.store.Append(e.refusalRecord(r, r.Reason)); err != nil {
		e.log.Error("recording refusal", "error", err)
		e.refusals.count(r) // the minute's end tries again
	}
}

// refuseUnauthenticated counts the refusal of a request whose proof was not good.
func (e *Engine) refuseUnauthenticated(r Request, cause error) {
	var reason string
	switch {
	case errors.Is(cause, ErrUnknownProfile):
		reason = "unknown profile"
	case errors.Is(cause, ErrProfileOff):
		reason = "profile is switched off"
	case errors.Is(cause, ErrNotOffered):
		reason = "operation that the profile does not offer"
	case errors.Is(cause, ErrTooManyFailures):
		reason = "too many wrong passwords"
	case errors.Is(cause, ErrSignerKey):
		reason = "signer key is not the key of the CSR"
	case errors.Is(cause, ErrChallenge), errors.As(cause, new(*challenge.Refused)):
		reason = "wrong or missing challenge"
		if refused := (*challenge.Refused)(nil); errors.As(cause, &refused) {
			reason = string(refused.Kind) + " challenge refused: " + string(refused.Label)
		}
	case errors.Is(cause, ErrRaw):
		reason = "profile takes no bare CSR"
	case errors.Is(cause, ErrSignerUnknown):
		reason = "renewal signed by a certificate this authority did not issue"
	case errors.Is(cause, ErrSignerRevoked):
		reason = "certificate is revoked"
	case errors.Is(cause, ErrSignerExpired):
		reason = "renewal of an expired certificate"
	case errors.Is(cause, ErrRenewalEarly):
		reason = "renewal before its time"
	case errors.Is(cause, ErrClock):
		reason = "the box does not trust its clock"
	case errors.Is(cause, ErrCredentials):
		reason = "wrong password or client certificate"
	default: // the box's own trouble, a client that went away, or one of EST that asks what to send
		return
	}
	e.countRefusal(Refusal{
		Profile: r.Profile, Protocol: r.Protocol, Source: r.Source,
		TransactionID: r.TransactionID, Identity: r.CSR.Identity(), Reason: reason,
	})
}

// refuse records the refusal of an authenticated request and returns the error for the caller. What
// the transaction's own records already tell, and a client that went away, is not recorded again.
//
// A limit keeps a sender from costing more than its share, so what it refuses is only counted, and so is
// what one sender is refused too often.
func (e *Engine) refuse(x *attempt, cause error) error {
	switch {
	case errors.Is(cause, ErrRateLimited):
		e.countRefusal(Refusal{
			Profile: x.Profile, Protocol: x.Protocol, Source: x.Source,
			TransactionID: x.TransactionID, Identity: x.CSR.Identity(), Reason: x.refusal("too many certificates within an hour"),
		})
		return cause
	case errors.Is(cause, ErrBusy), errors.Is(cause, ErrUnavailable):
		return cause
	case errors.Is(cause, ErrCompliance): // also where the hook's time was over
	case errors.Is(cause, context.Canceled), errors.Is(cause, context.DeadlineExceeded):
		return cause
	}
	if !e.refusals.addKnown(x.Source) {
		e.countRefusal(Refusal{Profile: x.Profile, Protocol: x.Protocol, Source: x.Source, Reason: x.refusal("refused although the proof was good")})
		return cause
	}
	rec := e.recordOf(x, refusedBy(x.Protocol), audit.OutcomeRefused, e.now())
	rec.Reason = x.refusal(cause.Error())
	if err := e.store.Append(rec); err != nil {
		e.log.Error("recording refusal", "error", err)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return cause
}

// refusal is why x is refused, as in the log. It begins with the kind of a device manager's challenge, as where that is
// refused itself.
func (x *attempt) refusal(why string) string {
	if x.isManaged() {
		return string(x.verdict.Kind) + " challenge: " + why
	}
	return why
}

// flushRefusals writes counted refusals once a period until the engine closes, and ends what has
// waited too long.
func (e *Engine) flushRefusals() {
	defer close(e.stopped)
	t := time.NewTicker(refusalPeriod)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := e.writeCounted(); err != nil {
				e.log.Error("recording counted refusals", "error", err)
			}
			if err := e.expireHeld(); err != nil {
				e.log.Error("ending what waits for approval", "error", err)
			}
		case <-e.stop:
			return
		}
	}
}

// writeCounted writes what was counted since the last time, in one batch, and starts a new period.
func (e *Engine) writeCounted() error {
	var records []audit.Record
	for _, c := range e.refusals.drain() {
		records = append(records, e.refusalRecord(c.refusal, c.refusal.Reason+": "+strconv.FormatUint(c.n, 10)+" more within a minute"))
	}
	return e.store.Append(records...)
}

// refusedBy is the audit action of a protocol's refusals.
func refusedBy(protocol string) audit.Action {
	if protocol == ProtocolEST {
		return audit.ESTRefused
	}
	return audit.SCEPRefused
}

func (e *Engine) refusalRecord(r Refusal, reason string) audit.Record {
	rec := e.record(refusedBy(r.Protocol), audit.OutcomeRefused, e.now())
	rec.Actor = audit.ActorDevice
	rec.Source = sourceText(r.Source)
	rec.Profile, rec.Protocol, rec.Transaction, rec.Identity, rec.Reason = r.Profile, r.Protocol, r.TransactionID, r.Identity, reason
	return rec
}

// record is a record of the box itself at a time.
func (e *Engine) record(action audit.Action, outcome audit.Outcome, now time.Time) audit.Record {
	return audit.Record{Time: now, TimeSource: e.timeSource, Action: action, Outcome: outcome}
}

// recordOf is a record about a device's request.
func (e *Engine) recordOf(x *attempt, action audit.Action, outcome audit.Outcome, now time.Time) audit.Record {
	rec := e.record(action, outcome, now)
	rec.Actor, rec.Source = audit.ActorDevice, sourceText(x.Source)
	rec.Profile, rec.Protocol, rec.Transaction = x.Profile, x.Protocol, x.TransactionID
	rec.Identity, rec.CSRSHA256 = x.CSR.Identity(), hex.EncodeToString(x.csrSum[:])
	return rec
}

// sourceText is an address as in the log, "" where it is not known.
func sourceText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// refusals counts refusals of one period. It holds at most countedMax sources and reasons; what
// comes beyond them is counted together.
type refusals struct {
	mu      sync.Mutex
	counts  map[refusalKey]*counted
	written int
	beyond  uint64

	known      map[netip.Addr]int // refusals with a record, by source; at most knownMax
	knownTotal int
}

type refusalKey struct {
	protocol, profile, reason string
	source                    netip.Addr
}

type counted struct {
	refusal Refusal // without what differs from message to message
	n       uint64
}

func newRefusals() refusals {
	return refusals{counts: map[refusalKey]*counted{}, known: map[netip.Addr]int{}}
}

// addKnown returns true where the refusal of a sender with a good proof is to have a record of its own.
func (rs *refusals) addKnown(source netip.Addr) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	key := oneSource(source)
	if rs.known[key] >= knownPerSource || rs.knownTotal >= knownMax {
		return false
	}
	rs.known[key]++
	rs.knownTotal++
	return true
}

// add counts r, or returns true where it is to be written at once instead.
func (rs *refusals) add(r Refusal) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	c, seen := rs.entry(r)
	if !seen && rs.written < writtenMax {
		rs.written++
		return true
	}
	rs.increment(c)
	return false
}

// count counts r without asking for it to be written.
func (rs *refusals) count(r Refusal) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	c, _ := rs.entry(r)
	rs.increment(c)
}

func (rs *refusals) increment(c *counted) {
	if c == nil {
		rs.beyond++
		return
	}
	c.n++
}

// entry returns the counter of r, nil where there is no room for another, and whether r's source and
// reason were seen before in this period or cannot be told apart any more.
func (rs *refusals) entry(r Refusal) (c *counted, seen bool) {
	const keyText = 128
	k := refusalKey{cut(r.Protocol, keyText), cut(r.Profile, keyText), cut(r.Reason, keyText), oneSource(r.Source)}
	if c, ok := rs.counts[k]; ok {
		return c, true
	}
	if len(rs.counts) >= countedMax {
		return nil, true
	}
	c = &counted{refusal: Refusal{Profile: k.profile, Protocol: k.protocol, Reason: k.reason, Source: r.Source.WithZone("")}}
	rs.counts[k] = c
	return c, false
}

// drain returns the counters that counted anything and starts a new period.
func (rs *refusals) drain() []counted {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var all []counted
	for _, c := range rs.counts {
		if c.n > 0 {
			all = append(all, *c)
		}
	}
	if rs.beyond > 0 {
		all = append(all, counted{refusal: Refusal{Reason: "refusals from further sources"}, n: rs.beyond})
	}
	clear(rs.counts)
	clear(rs.known)
	rs.written, rs.beyond, rs.knownTotal = 0, 0, 0
	return all
}

// oneSource is what counts as one source: an IPv4 address, or the /64 one IPv6 host chooses freely in.
func oneSource(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if p, err := a.Prefix(min(a.BitLen(), 64)); err == nil && p.IsValid() {
		return p.Addr()
	}
	return a
}

func cut(s string, n int) string { return s[:min(len(s), n)] }
