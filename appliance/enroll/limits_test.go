package enroll

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/store"
)

// Hundreds of devices bring one one-time challenge at once: one gets a certificate. The power goes
// while it is signed: that one alone can come back for it.
func TestOneTimeChallengeOnce(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(map[bool]string{false: "at once", true: "across a crash"}[crash], func(t *testing.T) {
			b := newBox(t)
			secret := b.mint("once", "printer-7")
			const n = 200
			requests := make([]Request, n)
			for i := range requests {
				requests[i] = in("once", newDevice(t).request(printer))
				requests[i].Proof.Challenge = secret
			}
			all := func(engine *Engine) (winners []int) {
				var done sync.WaitGroup
				var mu sync.Mutex
				for i, r := range requests {
					done.Go(func() {
						_, err := engine.Enroll(context.Background(), r)
						mu.Lock()
						defer mu.Unlock()
						if err == nil {
							winners = append(winners, i)
						} else if !errors.Is(err, ErrChallenge) {
							t.Error(err)
						}
					})
				}
				done.Wait()
				return winners
			}
			old := *b
			if crash {
				b.signer.set(func() error {
					b.signer.set(nil)
					b.crash()
					return nil
				})
			}
			first := all(old.engine)
			if len(first) != 1 {
				t.Fatalf("%d certificates for one challenge", len(first))
			}
			if crash {
				if second := all(b.engine); len(second) != 1 || second[0] != first[0] {
					t.Errorf("after the crash %v got certificates, %v had begun", second, first)
				}
				old.close()
			}
			if last := all(b.engine); len(last) != 1 || last[0] != first[0] {
				t.Errorf("retries: %v, want %v", last, first)
			}
			certificates := 0
			for _, rec := range b.log() {
				if rec.Action == audit.SCEPPKCSReq && rec.Outcome == audit.OutcomeSuccess {
					certificates++
				}
			}
			if certificates != 1 {
				t.Errorf("%d certificates in the log", certificates)
			}
			b.close()
		})
	}
}

func TestLimits(t *testing.T) {
	b := newBox(t)
	from := func(address string) Request {
		r := in("limited", newDevice(t).request(printer))
		r.Source = netip.MustParseAddr(address)
		return r
	}
	first := from("192.0.2.1")
	b.issue(first)
	b.issue(from("192.0.2.1"))
	for range 5 {
		b.refused(from("192.0.2.1"), ErrRateLimited)
	}
	b.refused(from("::ffff:192.0.2.1"), ErrRateLimited) // the same source
	b.issue(first)                                      // a retry takes no slot, and is answered when none is left
	b.issue(from("2001:db8::1"))
	b.refused(from("2001:db8::2"), ErrRateLimited) // the profile's
	b.crash()
	b.refused(from("192.0.2.9"), ErrRateLimited)
	b.clock.advance(time.Hour)
	b.issue(from("192.0.2.1"))

	// Counted, not written one by one.
	n := 0
	for _, rec := range b.log() {
		if rec.Action == audit.SCEPRefused && rec.Source == "192.0.2.1" && rec.Transaction == "TRANSACTION" {
			n++
		}
	}
	if n != 2 { // the address as IPv4, and written as IPv6
		t.Errorf("%d records of refusals of one source by a limit", n)
	}
	b.close()
}

// A limit larger than one entry of the store holds is the same rate within a shorter time.
func TestHourly(t *testing.T) {
	for n, want := range map[int]store.Guard{
		1:    {Max: 1, Window: time.Hour},
		500:  {Max: 500, Window: time.Hour},
		3600: {Max: 500, Window: 500 * time.Second},
	} {
		g := hourly(n, "test")
		if g.Max != want.Max || g.Window != want.Window || g.Kind != store.GuardRate {
			t.Errorf("%d an hour: %+v", n, g)
		}
	}
	if hourly(1, "a", "bc").Key == hourly(1, "ab", "c").Key {
		t.Error("two limits share their key")
	}
}

func TestProfileCheck(t *testing.T) {
	set := challenge.NewSet(challenge.Config{})
	good := []Profile{
		{Challenges: set}, {Challenges: set, Renewal: Renewal{Proof: ProofCertificate, Window: 1}},
		{Challenges: set, Renewal: Renewal{Proof: ProofCertificateChallenge, Window: 1, Grace: 1}},
	}
	for _, p := range good {
		must(t, p.check())
	}
	for name, p := range map[string]Profile{
		"no challenges":        {},
		"window without proof": {Challenges: set, Renewal: Renewal{Window: 1}},
		"proof without window": {Challenges: set, Renewal: Renewal{Proof: ProofCertificate}},
		"unknown proof":        {Challenges: set, Renewal: Renewal{Proof: "trust", Window: 1}},
		"negative grace":       {Challenges: set, Renewal: Renewal{Proof: ProofCertificate, Window: 1, Grace: -1}},
		"negative limit":       {Challenges: set, Limits: Limits{PerSource: -1}},
		"empty suffix":         {Challenges: set, Approval: Approval{ManualIf: []string{" "}}},
	} {
		if p.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
