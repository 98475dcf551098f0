package appliance

import (
	"context"
	"time"
)

// Expired entries of the store are removed so often, and at most so many in one batch.
const (
	sweepInterval = time.Minute
	sweepBatch    = 1000
)

// sweep removes what has expired of challenges, nonces and rates, a little at a time.
func (a *Appliance) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if a.engine.Condition() != nil {
			continue // by a clock that is not trusted nothing has expired
		}
		for ctx.Err() == nil {
			n, err := a.store.Sweep(a.config.Now(), sweepBatch)
			if err != nil {
				a.config.Log.Error("removing expired entries", "err", err)
			}
			if err != nil || n < sweepBatch {
				break
			}
		}
	}
}
