package appliance

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/webui"
)

// anchor holds the state against a counter in the TPM, which nobody can set back, so that an older copy of
// the disk shows when it is put in the place of the newest.
//
//	the disk       records that the counter goes to c+1   synced
//	the TPM        counts to c+1
//	the disk       records that the counter is at c+1     synced
//
// Wherever the power goes, the counter stands where the disk had it, or where the disk had it go. Elsewhere
// the disk is an older one: nothing is issued until an administrator has acknowledged that.
//
// The counter moves once at a start and once an hour in which something was recorded, for its memory wears
// out: what happened since it last moved can be undone unseen, by a copy that was made in that time. Nor does
// it show where whoever puts the disk back can put back the TPM too, as the host of a virtual machine can.
//
// The key holder bounds how often it moves. Whoever takes this service over can move it without the disk
// knowing, once an hour, which stops the box at its next start and nothing else.
type anchor struct {
	keys   *keys.Client
	store  *store.Store
	log    *slog.Logger
	record func(audit.Action) audit.Record

	rollback atomic.Pointer[webui.Rollback] // nil: the disk is the newest
	older    atomic.Pointer[store.Older]    // what of an older disk is recorded, acknowledged or not; nil: none was ever put back
	failure  atomic.Pointer[string]         // why the counter could not be moved the last time; nil: it could

	mu  sync.Mutex // held while the counter is looked at and moved
	due time.Time  // by the monotonic clock: the counter is not asked for before
}

// olderMention is how long the console says that an older disk was acknowledged, as long as records are kept at
// least: what was lost has to be made good by people.
const olderMention = store.MinRetention

// anchorRetry is how soon a counter that could not be moved is tried again at the earliest.
const anchorRetry = time.Minute

// newAnchor refuses a disk from before the first start of a box that has had one, before anything is made
// anew on it: there is nobody who could acknowledge that, and nothing to serve.
func newAnchor(c Config, st *store.Store, record func(audit.Action) audit.Record) (*anchor, error) {
	a := &anchor{keys: c.Keys, store: st, log: c.Log, record: record}
	if st.Initialised() {
		return a, nil
	}
	now, err := a.keys.Anchor()
	if err != nil {
		return nil, err
	}
	if now.Count != now.First {
		return nil, &mendable{
			fmt.Errorf("the disk is a copy from before this box's first start: its TPM has counted to %d since, from %d", now.Count, now.First),
			"put the box's newest disk back; to start over, clear the TPM in the firmware setup and flash the image again",
		}
	}
	return a, nil
}

// open compares the disk with the counter. On a disk that is not new nothing may be written before.
func (a *anchor) open(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if older, err := a.store.Older(); err == nil {
		a.older.Store(&older)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	at, err := a.keys.Anchor()
	if err != nil {
		return err
	}
	known, err := a.store.Anchor()
	if errors.Is(err, store.ErrNotFound) {
		return a.begin(at, now)
	}
	if err != nil {
		return err
	}
	switch at.Count {
	case known.Intended:
		return a.store.ConfirmAnchor(at.Count) // where the power went before that; else it changes nothing
	case known.Confirmed:
		return nil
	}
	return a.found(known.Confirmed, at.Count, now)
}

// begin is open on a disk that knows of no counter: the first start since the box was provisioned, or since
// it has software that counts. Where the counter has moved from where provisioning made it, such a disk is an
// older one. Where provisioning made none, so it is if there is one: should the power go between the making of
// such a box's counter and its record, once in its life, an administrator has to say that nothing was put
// back, for a disk that says "any counter will do" could be put back for ever.
func (a *anchor) begin(at keys.Anchor, now time.Time) error {
	if at.Count != at.First {
		return a.found(0, at.Count, now)
	}
	if at.Count == 0 {
		var err error
		if at.Count, err = a.keys.Advance(0); err != nil {
			return err
		}
	}
	r := a.record(audit.BoxAnchored)
	r.Reason = fmt.Sprintf("at %d", at.Count)
	return a.store.ResetAnchor(at.Count, r)
}

// found closes the box.
func (a *anchor) found(expected, found uint64, now time.Time) error {
	older, err := a.store.FoundOlder(now)
	if err != nil {
		return err
	}
	a.older.Store(&older)
	a.rollback.Store(&webui.Rollback{Expected: expected, Found: found, Since: older.Found, Records: older.Records, Until: older.Until})
	a.log.Error("the disk is not the newest", "disk", expected, "tpm", found, "records", older.Records)
	return nil
}

// isOlder says whether the box is closed because its disk is not the newest.
func (a *anchor) isOlder() bool { return a.rollback.Load() != nil }

// started moves the counter once the start is in the log, or has the log say why the box is closed.
func (a *anchor) started() {
	r := a.rollback.Load()
	if r == nil {
		a.upkeep()
		return
	}
	record := a.record(audit.BoxRollbackFound)
	record.Outcome = audit.OutcomeRefused
	record.Reason = fmt.Sprintf("the disk knows the counter at %d, the TPM has it at %d; %s", r.Expected, r.Found, lost(*a.older.Load()))
	if err := a.store.Append(record); err != nil { // a full disk: the console says it all the same
		a.log.Error("recording that the disk is not the newest", "err", err)
	}
}

// lost says what an older disk does not know, and where who has a copy of the newer log finds it.
func lost(o store.Older) string {
	return fmt.Sprintf("it does not know what was issued and revoked after %s, in records %d and on of the newer log", o.Until.UTC().Format(conditionTime), o.Records)
}

// stopped is what keeps the box from issuing, for enroll.Config; nil on the newest disk.
func (a *anchor) stopped() *enroll.Condition {
	r := a.rollback.Load()
	if r == nil {
		return nil
	}
	const (
		put   = "Put the box's newest disk back. If there is none, an administrator can acknowledge it on the page of the box: "
		loses = "what it did since is forgotten then. Revocations have to be made again, certificates issued since are unknown to the box and not revoked by their serial, challenges that were used up can be used again, and users, passwords and tokens are those of then."
	)
	switch {
	case r.Found == 0:
		return &enroll.Condition{
			What: "The counter by which the box knows its newest disk is gone from the TPM, so nothing is issued: the disk may be an older copy.",
			Mend: "Find out who removed it. " + put + loses,
		}
	case r.Expected == 0:
		return &enroll.Condition{
			What: fmt.Sprintf("The disk is an older copy of this box's, so nothing is issued: the TPM has counted to %d, and the disk is from before it counted; its audit log ends on %s.", r.Found, r.Until.UTC().Format(conditionTime)),
			Mend: put + loses + " The same shows where the power went while this box counted for the very first time; then nothing is lost.",
		}
	}
	return &enroll.Condition{
		What: fmt.Sprintf("The disk is an older copy of this box's, so nothing is issued: the TPM has counted to %d, the disk to %d; its audit log ends on %s.", r.Found, r.Expected, r.Until.UTC().Format(conditionTime)),
		Mend: put + loses,
	}
}

// conditions are what about the counter needs a person while the box goes on.
func (a *anchor) conditions(now time.Time) []handover.Condition {
	if a.isOlder() {
		return nil
	}
	var all []handover.Condition
	if why := a.failure.Load(); why != nil {
		all = append(all, handover.Condition{
			What: "The counter in the TPM could not be moved, so that an older disk which is put back might not show: " + *why + ".",
			Mend: "Switch the box off and on; if it comes back, the TPM is failing.",
		})
	}
	if o := a.older.Load(); o != nil && now.Before(o.Acknowledged.Add(olderMention)) {
		all = append(all, handover.Condition{
			What: fmt.Sprintf("The box goes on with an older copy of its disk since %s: %s.", o.Acknowledged.UTC().Format(conditionTime), lost(*o)),
			Mend: "Revoke again what was revoked then: lists and OCSP call it good. Certificates issued then are unknown here and not revoked by their serial: where one must end, those who rely on it have to refuse it. Whoever was sent the audit log, or exported it, has those records.",
		})
	}
	return all
}

// upkeep moves the counter where that is due, and says so where it cannot.
func (a *anchor) upkeep() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rollback.Load() != nil || time.Now().Before(a.due) {
		return
	}
	err := a.move()
	switch {
	case err == nil:
		a.failure.Store(nil)
		return
	case errors.Is(err, keys.ErrBusy):
		a.log.Info("the counter in the TPM has to wait", "err", err)
	default:
		a.log.Error("moving the counter in the TPM", "err", err)
		why := err.Error()
		a.failure.Store(&why)
	}
	a.due = time.Now().Add(anchorRetry)
}

// move has the counter go on by one, if the log grew since it last did and the key holder lets it. A move
// whose end was not seen is seen now.
func (a *anchor) move() error {
	known, err := a.store.Anchor()
	if err != nil {
		return err
	}
	size, _, err := a.store.LogHead()
	if err != nil {
		return err
	}
	isPending := known.Intended != known.Confirmed
	if !isPending && size <= known.LogSize {
		return nil
	}
	at, err := a.keys.Anchor()
	if err != nil {
		return err
	}
	switch {
	case isPending && at.Count == known.Intended:
		return a.store.ConfirmAnchor(at.Count)
	case at.Count != known.Confirmed:
		return fmt.Errorf("it stands at %d, and the box left it at %d", at.Count, known.Confirmed)
	case at.Wait > 0:
		a.due = time.Now().Add(at.Wait)
		return nil
	}
	if err := a.store.IntendAnchor(at.Count + 1); err != nil {
		return err
	}
	count, err := a.keys.Advance(at.Count)
	if err != nil {
		return err
	}
	a.due = time.Now().Add(keys.AnchorGap)
	return a.store.ConfirmAnchor(count)
}

// acknowledge takes the disk for the newest from here on, because an administrator says so, and opens the
// box. The counter moves then, so that neither the disk as it was nor the newer one, should it come back,
// passes for the newest.
func (a *anchor) acknowledge(actor string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.rollback.Load()
	if was == nil {
		return &webui.ConflictError{What: "the box does not wait for that", Mend: "go on: its disk is the newest it had, or somebody acknowledged that it is not"}
	}
	at, err := a.keys.Anchor()
	if err == nil && at.Count == 0 {
		at.Count, err = a.keys.Advance(0)
	}
	if errors.Is(err, keys.ErrAnchorSoon) {
		return &webui.ConflictError{What: err.Error(), Mend: "try again an hour later, or start the box anew"}
	}
	if err != nil {
		return ordered(err)
	}
	r := a.record(audit.BoxRollbackAcknowledged)
	r.Actor = actor
	r.Reason = fmt.Sprintf("the disk knew the counter at %d, the TPM had it at %d; %s", was.Expected, at.Count, lost(*a.older.Load()))
	if err := a.store.AcknowledgeAnchor(at.Count, r); err != nil {
		return err
	}
	older := *a.older.Load()
	older.Acknowledged = r.Time
	a.older.Store(&older)
	a.rollback.Store(nil)
	a.log.Warn("the disk was acknowledged as the newest", "actor", actor, "counter", at.Count)
	if err := a.move(); err != nil { // upkeep tries again
		a.log.Error("moving the counter in the TPM", "err", err)
	}
	return nil
}

// acknowledgeRollback has the box go on with an older disk.
func (a *Appliance) acknowledgeRollback(actor string) error {
	if err := a.anchor.acknowledge(actor); err != nil {
		return err
	}
	a.notify("STATUS=the disk was acknowledged")
	return nil
}

// Rollback implements webui.Box.
func (o orders) Rollback() *webui.Rollback { return o.a.anchor.rollback.Load() }

// AcknowledgeRollback implements webui.Box.
func (o orders) AcknowledgeRollback(actor string) error { return o.a.acknowledgeRollback(actor) }
