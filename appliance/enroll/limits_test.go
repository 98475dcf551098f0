package enroll

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/store"
)

// Hundreds of devices bring one challenge at once: one gets a certificate. The power goes while it is
// signed: that one alone can come back for it.
func TestChallengeOnce(t *testing.T) {
	for _, profile := range []string{"once", "signed"} {
		for _, crash := range []bool{false, true} {
			t.Run(profile+map[bool]string{false: ", at once", true: ", across a crash"}[crash], func(t *testing.T) {
				b := newBox(t)
				secret := b.token("printer-7")
				if profile == "once" {
					secret = b.mint("once", "printer-7")
				}
				requests := make([]Request, 200)
				for i := range requests {
					requests[i] = in(profile, newDevice(t).request(printer))
					requests[i].Proof.Challenge = secret
				}
				old := *b
				if crash {
					b.signer.set(func() error {
						b.signer.set(nil)
						b.crash()
						return nil
					})
				}
				first := winners(t, old.engine, requests)
				if len(first) != 1 {
					t.Fatalf("%d certificates for one challenge", len(first))
				}
				if crash {
					if second := winners(t, b.engine, requests); len(second) != 1 || second[0] != first[0] {
						t.Errorf("after the crash %v got certificates, %v had begun", second, first)
					}
					old.close()
				}
				b.clock.advance(2 * time.Hour) // the challenge is over, the retry is the same transaction
				if last := winners(t, b.engine, requests); len(last) != 1 || last[0] != first[0] {
					t.Errorf("retries: %v, want %v", last, first)
				}
				certificates := 0
				for _, rec := range b.log() {
					if (rec.Action == audit.SCEPPKCSReq || rec.Action == audit.SCEPPKCSReqIntune) && rec.Outcome == audit.OutcomeSuccess {
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
}

// winners sends all requests at once and returns which got a certificate; the others are told that
// their challenge is not good.
func winners(t *testing.T, engine *Engine, requests []Request) (won []int) {
	t.Helper()
	var done sync.WaitGroup
	var mu sync.Mutex
	for i, r := range requests {
		done.Go(func() {
			_, err := engine.Enroll(context.Background(), r)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, i)
			} else if !errors.Is(err, ErrChallenge) {
				t.Error(err)
			}
		})
	}
	done.Wait()
	return won
}

// A signed challenge is for one request, a renewal included, and for so many a day; the log tells
// these requests from others, and the counters what became of them.
func TestSignedChallenges(t *testing.T) {
	b := newBox(t)
	d := newDevice(t)
	ask := func() Request {
		r := in("signed", d.request(printer))
		r.TransactionID, r.Proof.Challenge = string(nonce()), b.token("printer-7")
		return r
	}
	r := ask()
	first := b.issue(r)
	b.issue(r)
	renewal := in("signed", d.renewal(first.Certificate, d, printer))
	b.refused(renewal, ErrChallenge)
	renewal.Proof.Challenge = r.Proof.Challenge
	b.refused(renewal, ErrChallenge) // used
	renewal.Proof.Challenge = b.token("printer-8")
	b.refused(renewal, ErrChallenge) // for another device
	renewal.Proof.Challenge = b.token("printer-7")
	b.issue(renewal)
	b.issue(ask())
	b.refused(ask(), ErrChallenge) // the fourth in a day
	b.clock.advance(24 * time.Hour)
	b.issue(ask())

	var actions []audit.Action
	for _, rec := range b.log() {
		if rec.Outcome == audit.OutcomeSuccess {
			actions = append(actions, rec.Action)
		}
	}
	want := []audit.Action{audit.SCEPPKCSReqIntune, audit.SCEPRenewalReqIntune, audit.SCEPPKCSReqIntune, audit.SCEPPKCSReqIntune}
	if !slices.Equal(actions, want) {
		t.Errorf("log %v, want %v", actions, want)
	}
	counted := b.engine.profiles["signed"].Challenges.Snapshot()
	for label, n := range map[challenge.Label]uint64{
		challenge.Success: 4, challenge.Replay: 1, challenge.ClaimMismatch: 1, challenge.RateLimited: 1,
	} {
		if counted[label] != n {
			t.Errorf("%d requests are counted as %s, want %d", counted[label], label, n)
		}
	}
	b.close()
}

// Where a device manager's challenge was good and the request is refused all the same, the log names the challenge: the
// console's list of Intune's failures goes by it.
func TestLogOfGoodSignedChallenges(t *testing.T) {
	b, c := newBox(t), &cloud{}
	b.intune("once", c)
	p := b.engine.profiles["signed"]
	p.Compliance = b.engine.profiles["compliant"].Compliance
	p.Limits = Limits{PerSource: 1}
	b.engine.profiles["signed"] = p
	ask := func(profile, challenge string, name pkix.Name) {
		r := in(profile, newDevice(t).request(name))
		r.Proof.Challenge = challenge
		if res, err := b.enroll(r); err == nil {
			t.Errorf("%v at %s: %+v", name, profile, res)
		}
	}
	here := pkix.Name{CommonName: "printer-7", Locality: []string{"here"}}
	ask("signed", b.token("rooted-phone"), pkix.Name{CommonName: "rooted-phone"})
	ask("signed", b.token("printer-7"), here)
	ask("once", "blob", here)
	ask("corp", secret, here)
	good := in("signed", newDevice(t).request(printer))
	good.Proof.Challenge = b.token("printer-7")
	b.issue(good)
	ask("signed", b.token("printer-7"), printer)
	var got []string
	for _, r := range b.log() {
		if r.Action == audit.SCEPRefused {
			kind, _, _ := strings.Cut(r.Reason, ":")
			got = append(got, kind)
		}
	}
	if want := []string{"signed challenge", "signed challenge", "intune challenge", "the profile's rule subject.allow does not allow L=here", "signed challenge"}; !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	b.close()
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
	if n != 1 { // one source, also where its address is written as IPv6
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
