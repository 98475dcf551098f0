package webui

import (
	"fmt"
	"net/http"
	"testing"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/store"
)

// TestProblemsOfApproval: whatever can refuse an approval is told as that, and not as a fault of the box.
func TestProblemsOfApproval(t *testing.T) {
	for _, err := range []error{
		enroll.ErrProfileOff, enroll.ErrUnknownProfile, enroll.ErrNoAuthority, enroll.ErrMaxActive, enroll.ErrDuplicateKey, enroll.ErrRenewalIdentity,
		enroll.ErrSignerRevoked, enroll.ErrChallenge, enroll.ErrReplay, enroll.ErrCompliance, enroll.ErrDecided,
	} {
		p, ok := problemOf(fmt.Errorf("%w: approving request 01: more", err))
		if !ok || p.Status != http.StatusConflict {
			t.Errorf("%v: %+v", err, p)
		}
	}
}

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
