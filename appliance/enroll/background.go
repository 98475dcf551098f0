package enroll

import "time"

// sweepMax is how many expired entries one period removes: more than a box can add in that time.
const sweepMax = 50_000

// background writes counted refusals and removes what has expired, once a period, until the engine
// closes.
func (e *Engine) background() {
	defer close(e.stopped)
	t := time.NewTicker(refusalPeriod)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := e.writeCounted(); err != nil {
				e.log.Error("recording counted refusals", "error", err)
			}
			if err := e.sweep(); err != nil {
				e.log.Error("removing expired entries", "error", err)
			}
		case <-e.stop:
			return
		}
	}
}

// sweep removes expired challenges, nonces, replay entries and decided requests. By a clock that is not
// trusted nothing is: what it took for expired would be forgotten for good.
func (e *Engine) sweep() error {
	now := e.now()
	if e.checkClock(now) != nil {
		return nil
	}
	_, err := e.store.Sweep(now, sweepMax)
	return err
}
