package enroll

import "fmt"

// gate returns ErrUnavailable with what keeps the engine from issuing, besides its store and its clock.
// Requests, polls and approvals pass it first. Lists of what is revoked are signed, and revocations taken in,
// all the same: what is revoked is so whatever else is in doubt.
func (e *Engine) gate() error {
	if c := e.gated(); c != nil {
		return fmt.Errorf("%w: nothing is issued: %s", ErrUnavailable, c.What)
	}
	return nil
}
