package enroll

import "fmt"

// gate returns ErrUnavailable with what keeps the engine from issuing, besides its store and its clock.
// Requests, polls and approvals pass it first, and lists of what is revoked: a newer state may have revoked what
// this one does not know of, and a list without it would take that back. Those that were handed out stay
// good for half their time at least. Revocations are taken in all the same.
func (e *Engine) gate() error {
	if c := e.gated(); c != nil {
		return fmt.Errorf("%w: nothing is issued: %s", ErrUnavailable, c.What)
	}
	return nil
}
