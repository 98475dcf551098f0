package enroll

import (
	"fmt"
	"strings"
	"time"
)

// clockTolerance is how far behind the newest trusted record the clock may be: sources correct small
// errors in both directions.
const clockTolerance = 2 * time.Minute

// Condition is something about enrollment that a person has to look at.
type Condition struct {
	What string // one sentence, what is wrong
	Mend string // one sentence, what to do
}

// Condition returns what keeps the engine from issuing anything, or nil.
func (e *Engine) Condition() *Condition {
	if err := e.store.Failure(); err != nil {
		return &Condition{
			What: "The state could not be written, so nothing is issued: " + err.Error() + ".",
			Mend: "Restart the box; if this comes back, replace its disk.",
		}
	}
	if c := e.gated(); c != nil {
		return c
	}
	if err := e.checkClock(e.now()); err != nil {
		return &Condition{
			What: "The clock is not trusted, so nothing is issued: " + strings.TrimPrefix(err.Error(), ErrClock.Error()+": ") + ".",
			Mend: "Set the clock (UTC) in the firmware setup and restart the box.",
		}
	}
	return nil
}

// TrustsClock returns nil, or ErrClock with what is wrong with the clock.
func (e *Engine) TrustsClock() error { return e.checkClock(e.now()) }

// checkClock returns ErrClock while the clock is before the image was built or before what is
// already in the audit log.
func (e *Engine) checkClock(now time.Time) error {
	if now.Before(e.timeFloor) {
		return fmt.Errorf("%w: it shows %s, before this image was built (%s)", ErrClock, stamp(now), stamp(e.timeFloor))
	}
	if last := e.store.LastTime(); now.Add(clockTolerance).Before(last) {
		return fmt.Errorf("%w: it shows %s, before the newest audit record (%s)", ErrClock, stamp(now), stamp(last))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
