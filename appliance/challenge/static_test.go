package challenge

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"signet.internal/appliance/challenge/phc"
)

// sesame is the least costly hash that is accepted, of "sesame".
const sesame = "$argon2id$v=19$m=19456,t=2,p=1$c2lnbmV0LXRlc3Qtc2FsdA$CWGJ2CYd2xqeep4IvtzAQkZ6sLZg+Ck/TgufucKWFuI"

func device(t *testing.T) netip.Addr {
	t.Helper()
	return netip.MustParseAddr("192.0.2.7")
}

func newStatic(t *testing.T, g *Gate) *Static {
	t.Helper()
	s, err := g.NewStatic(sesame)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatic(t *testing.T) {
	s := newStatic(t, NewGate(1))
	ctx := context.Background()
	check := func(challenge string, want error) {
		t.Helper()
		if err := s.Verify(ctx, device(t), challenge); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", challenge, err, want)
		}
	}
	for range 2 { // before and after the right one is known
		check("", ErrWrong)
		check("Sesame", ErrWrong)
		check("sesame\x00", ErrWrong)
		check(strings.Repeat("x", maxSecret+1), ErrWrong)
		check("sesame", nil)
	}
	if s.current.Load().known.Load() == nil {
		t.Error("the right challenge costs an argon2id run each time")
	}
	if len(s.gate.sources) != 0 || s.gate.waiting != 0 {
		t.Errorf("the gate still holds %d sources, %d callers", len(s.gate.sources), s.gate.waiting)
	}
}

// TestSameChallengeIsVerifiedOnce: after a start a whole fleet brings the right challenge at once, and
// more of them than may wait get in.
func TestSameChallengeIsVerifiedOnce(t *testing.T) {
	s := newStatic(t, NewGate(1))
	leave, err := s.gate.enter(context.Background(), netip.MustParseAddr("198.51.100.1"))
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(context.Background())
	first := make(chan error)
	go func() { first <- s.Verify(gone, device(t), "sesame") }()
	for running := 0; running == 0; {
		v := s.current.Load()
		v.mu.Lock()
		running = len(v.running)
		v.mu.Unlock()
	}
	var wg sync.WaitGroup
	for range 4 * MaxWaiting {
		wg.Go(func() {
			if err := s.Verify(context.Background(), device(t), "sesame"); err != nil {
				t.Error(err)
			}
		})
	}
	cancel() // whoever was first gives up; the others do not
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	leave()
	wg.Wait()
	if len(s.current.Load().running) != 0 || s.gate.waiting != 0 {
		t.Errorf("left behind: %d verifications, %d callers", len(s.current.Load().running), s.gate.waiting)
	}
}

// TestKnownChallengeNeedsNoSlot: once the right challenge was seen, devices that have it get in
// while others guess.
func TestKnownChallengeNeedsNoSlot(t *testing.T) {
	s := newStatic(t, NewGate(1))
	ctx := context.Background()
	if err := s.Verify(ctx, device(t), "sesame"); err != nil {
		t.Fatal(err)
	}
	leave, err := s.gate.enter(ctx, netip.MustParseAddr("198.51.100.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	if err := s.Verify(ctx, device(t), "sesame"); err != nil {
		t.Error(err)
	}
}

// TestWaitingEndsWithTheContext: a caller that waits, for its source's turn or for a slot, leaves
// nothing behind when its context ends.
func TestWaitingEndsWithTheContext(t *testing.T) {
	for name, from := range map[string]string{"turn": "192.0.2.7", "slot": "192.0.2.8"} {
		t.Run(name, func(t *testing.T) {
			s := newStatic(t, NewGate(1))
			leave, err := s.gate.enter(context.Background(), device(t))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := s.Verify(ctx, netip.MustParseAddr(from), "sesame"); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			leave()
			if len(s.gate.sources) != 0 || s.gate.waiting != 0 || len(s.gate.slots) != 0 {
				t.Errorf("left behind: %d sources, %d callers, %d slots", len(s.gate.sources), s.gate.waiting, len(s.gate.slots))
			}
		})
	}
}

func TestGateBounds(t *testing.T) {
	g := NewGate(1)
	ctx, cancel := context.WithCancel(context.Background())
	leave, err := g.enter(ctx, device(t))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wait := func(from netip.Addr) {
		wg.Go(func() {
			if leave, err := g.enter(ctx, from); err == nil {
				leave()
			}
		})
	}
	callers := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting
	}
	for callers() < maxWaitingPerSource {
		before := callers()
		wait(device(t))
		for callers() == before {
		}
	}
	if _, err := g.enter(ctx, device(t)); !errors.Is(err, ErrBusy) {
		t.Errorf("one caller too many of one source: %v", err)
	}
	other := netip.MustParseAddr("10.0.0.0")
	for callers() < MaxWaiting {
		before := callers()
		other = other.Next()
		wait(other)
		for callers() == before {
		}
	}
	if _, err := g.enter(ctx, netip.MustParseAddr("203.0.113.1")); !errors.Is(err, ErrBusy) {
		t.Errorf("one caller too many: %v", err)
	}
	cancel()
	wg.Wait()
	leave()
	if len(g.sources) != 0 || g.waiting != 0 || len(g.slots) != 0 {
		t.Errorf("left behind: %d sources, %d callers, %d slots", len(g.sources), g.waiting, len(g.slots))
	}
}

// TestGateRunsOneOfASourceAtATime has many callers of two sources pass a gate with two slots.
func TestGateRunsOneOfASourceAtATime(t *testing.T) {
	g := NewGate(2)
	var mu sync.Mutex
	running := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for i := range 2 * maxWaitingPerSource {
		from := device(t)
		if i%2 == 1 {
			from = netip.MustParseAddr("198.51.100.1")
		}
		wg.Go(func() {
			leave, err := g.enter(context.Background(), from)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			running[from]++
			if running[from] > 1 || len(g.slots) > 2 {
				t.Errorf("%d of %s run at a time, %d in all", running[from], from, len(g.slots))
			}
			mu.Unlock()
			mu.Lock()
			running[from]--
			mu.Unlock()
			leave()
		})
	}
	wg.Wait()
}

func TestSourceKey(t *testing.T) {
	tests := []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"2001:db8::1", "2001:db8::ffff:1", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
	}
	for _, tt := range tests {
		if same := sourceKey(netip.MustParseAddr(tt.a)) == sourceKey(netip.MustParseAddr(tt.b)); same != tt.same {
			t.Errorf("%s and %s are one source: %t", tt.a, tt.b, same)
		}
	}
}

func TestNewStaticRefusesBadHash(t *testing.T) {
	if _, err := NewGate(1).NewStatic("sesame"); !errors.Is(err, phc.ErrFormat) || strings.Contains(err.Error(), "sesame") {
		t.Errorf("error %v", err)
	}
}
