package webui

import (
	"fmt"
	"testing"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/store"
)

// What the state disk says is told as that, also where it comes by way of the enrollment engine.
func TestProblemsOfTheDisk(t *testing.T) {
	for err, want := range map[error]int{store.ErrFull: 507, store.ErrFailed: 503, store.ErrDamaged: 500} {
		for _, err := range []error{err, fmt.Errorf("%w: revoking certificate 01: %w", enroll.ErrUnavailable, err)} {
			p, ok := problemOf(err)
			if !ok || p.Status != want || p.Type == problemType("unavailable") {
				t.Errorf("%v: %+v", err, p)
			}
		}
	}
}
