package challenge

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/challenge/phc"
)

// tahini is a hash of "tahini" with other costs than sesame.
var tahini = sync.OnceValue(func() string { return phc.Make([]byte("tahini")) })

func newPasswords(t *testing.T, g *Gate, users ...User) *Passwords {
	t.Helper()
	p, err := g.NewPasswords(users)
	must(t, err)
	return p
}

func TestPasswords(t *testing.T) {
	p := newPasswords(t, NewGate(1), User{"device", sesame, nil}, User{"press", tahini(), []string{"press-1"}})
	ctx := context.Background()
	for range 2 { // before and after the right ones are known
		for _, tt := range []struct {
			user, password string
			want           error
		}{
			{"device", "sesame", nil},
			{"press", "tahini", nil},
			{"device", "tahini", ErrWrong},
			{"press", "sesame", ErrWrong},
			{"nobody", "sesame", ErrWrong},
			{"Device", "sesame", ErrWrong},
			{"", "sesame", ErrWrong},
			{"device", "", ErrWrong},
			{"device", strings.Repeat("x", maxSecret+1), ErrWrong},
		} {
			u, err := p.Verify(ctx, device(t), tt.user, tt.password)
			if !errors.Is(err, tt.want) || (err == nil) != (u.Name == tt.user && tt.want == nil) || u.Hash != "" {
				t.Errorf("%q with %.10q: %+v, %v, want %v", tt.user, tt.password, u, err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "sesame") || strings.Contains(err.Error(), "tahini")) {
				t.Errorf("the error holds a password: %v", err)
			}
		}
		p.gate.failures = failures{} // five wrong ones a round
	}
	u, err := p.Verify(ctx, device(t), "press", "tahini")
	must(t, err)
	if !slices.Equal(u.For, []string{"press-1"}) || !slices.Equal(p.Names(), []string{"device", "press"}) {
		t.Errorf("user %+v of %q", u, p.Names())
	}
}

// A name that is no user is verified by a hash with a user's costs, always the same one, and never well.
func TestUnknownUserCostsTheSame(t *testing.T) {
	p := newPasswords(t, NewGate(1), User{"device", sesame, nil}, User{"press", tahini(), nil})
	table := p.current.Load()
	seen := map[*verifier]bool{}
	for i := range 64 {
		name := fmt.Sprint("user", i)
		v := table.decoy(name)
		if v != table.decoy(name) {
			t.Errorf("%s has another decoy each time", name)
		}
		seen[v] = true
	}
	if len(seen) != 2 {
		t.Errorf("%d decoys for two users' costs", len(seen))
	}
	for v := range seen { // as a decoy it runs the hash, and takes not even its own password
		isRun := v.hash.Matches([]byte("sesame")) || v.hash.Matches([]byte("tahini"))
		if !isRun {
			t.Error("a decoy does not have a user's hash")
		}
		for _, password := range []string{"sesame", "tahini"} {
			if err := v.check(context.Background(), device(t), "nobody", password); !errors.Is(err, ErrWrong) || v.known.Load() != nil {
				t.Errorf("a decoy takes %s: %v", password, err)
			}
		}
	}
	// Both ways go through the gate: nobody is answered while it is full.
	leave, err := p.gate.enter(context.Background(), netip.MustParseAddr("198.51.100.1"))
	must(t, err)
	defer leave()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, user := range []string{"device", "nobody"} {
		if _, err := p.Verify(ctx, device(t), user, "wrong"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", user, err)
		}
	}
}

func TestTooManyFailures(t *testing.T) {
	g := NewGate(1)
	now := time.Now()
	g.failures.now = func() time.Time { return now }
	p := newPasswords(t, g, User{"device", sesame, nil})
	other := newPasswords(t, g, User{"device", sesame, nil}) // of another profile
	ctx := context.Background()
	guess := func(p *Passwords, from, password string, want error) {
		t.Helper()
		if _, err := p.Verify(ctx, netip.MustParseAddr(from), "device", password); !errors.Is(err, want) {
			t.Errorf("%s from %s: %v, want %v", password, from, err, want)
		}
	}
	for i := range MaxFailures {
		guess(p, "2001:db8::1", "sesame", nil) // counts for nothing
		guess(p, fmt.Sprintf("2001:db8::%x", i+1), fmt.Sprint("guess", i), ErrWrong)
		now = now.Add(time.Second)
	}
	guess(p, "2001:db8::1", "another", ErrTooMany)
	guess(p, "2001:db8::ffff", "sesame", ErrTooMany) // known or not: a source could guess by the difference
	guess(other, "2001:db8::1", "sesame", ErrTooMany)
	guess(p, "2001:db8:0:1::1", "sesame", nil)
	now = now.Add(FailurePeriod - MaxFailures*time.Second - 1)
	guess(p, "2001:db8::1", "sesame", ErrTooMany)
	now = now.Add(1) // the first of them is over: one more
	guess(p, "2001:db8::1", "sesame", nil)
	guess(p, "2001:db8::1", "another", ErrWrong)
	guess(p, "2001:db8::1", "another", ErrTooMany)
}

// However many guesses a source has under way, no more of them are verified than it may get wrong.
func TestFailuresCountBeforeTheNextGuess(t *testing.T) {
	g := NewGate(2)
	p := newPasswords(t, g, User{"device", sesame, nil})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var wrong, tooMany int
	for i := range maxWaitingPerSource {
		wg.Go(func() {
			for n := range MaxFailures {
				_, err := p.Verify(context.Background(), device(t), "device", fmt.Sprint(i, "-", n))
				mu.Lock()
				switch {
				case errors.Is(err, ErrWrong):
					wrong++
				case errors.Is(err, ErrTooMany):
					tooMany++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if wrong != MaxFailures || tooMany != (maxWaitingPerSource-1)*MaxFailures {
		t.Errorf("%d guesses were verified, %d were not", wrong, tooMany)
	}
}

// A caller that is refused for its own failures leaves the run to others with the same password.
func TestOneSourcesFailuresAreNotAnothers(t *testing.T) {
	g := NewGate(1)
	p := newPasswords(t, g, User{"device", sesame, nil})
	leave, err := g.enter(context.Background(), netip.MustParseAddr("198.51.100.1"))
	must(t, err)
	verify := func(from string) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := p.Verify(context.Background(), netip.MustParseAddr(from), "device", "sesame")
			done <- err
		}()
		return done
	}
	guesser := verify("192.0.2.66")
	for callers := 0; callers < 2; {
		g.mu.Lock()
		callers = g.waiting
		g.mu.Unlock()
	}
	honest := verify("192.0.2.7")
	for range MaxFailures { // meanwhile
		g.failures.add(netip.MustParseAddr("192.0.2.66"))
	}
	leave()
	if err := <-guesser; !errors.Is(err, ErrTooMany) {
		t.Errorf("the source that failed: %v", err)
	}
	if err := <-honest; err != nil {
		t.Errorf("the other: %v", err)
	}
}

func TestFailuresAreBounded(t *testing.T) {
	now := time.Now()
	f := failures{now: func() time.Time { return now }}
	worst := netip.MustParseAddr("192.0.2.66")
	addr := netip.MustParseAddr("10.0.0.0")
	fill := func(n int) {
		for range n {
			addr = addr.Next()
			f.add(addr)
		}
	}
	fill(1)
	for range MaxFailures {
		f.add(worst)
	}
	fill(maxFailing - 1)
	if len(f.sources) != maxFailing || f.byAge.Len() != maxFailing || !f.isOver(worst) {
		t.Errorf("%d sources, %d in order; the worst is over: %t", len(f.sources), f.byAge.Len(), f.isOver(worst))
	}
	f.add(worst) // in a full table, as the oldest of all: it does not make room for itself
	if !f.isOver(worst) || len(f.sources) != maxFailing {
		t.Error("a source is forgotten by failing again")
	}
	now = now.Add(FailurePeriod)
	fill(1)
	if len(f.sources) != 1 || f.byAge.Len() != 1 || f.isOver(worst) {
		t.Errorf("%d sources once all is over", len(f.sources))
	}
}

func TestReplacePasswords(t *testing.T) {
	p := newPasswords(t, NewGate(1), User{"device", sesame, nil}, User{"press", sesame, nil})
	ctx := context.Background()
	verify := func(user, password string, want error) {
		t.Helper()
		if _, err := p.Verify(ctx, device(t), user, password); !errors.Is(err, want) {
			t.Errorf("%s with %s: %v, want %v", user, password, err, want)
		}
	}
	verify("device", "sesame", nil)
	verify("press", "sesame", nil)
	must(t, p.Replace([]User{{"device", tahini(), nil}, {"press", sesame, []string{"press-1"}}}))
	verify("device", "sesame", ErrWrong) // though it was known
	verify("device", "tahini", nil)
	if known := p.current.Load().users["press"].verifier.known.Load(); known == nil {
		t.Error("a password that stays has to be hashed again")
	}
	if u, err := p.Verify(ctx, device(t), "press", "sesame"); err != nil || len(u.For) != 1 {
		t.Errorf("the names of a user that stays: %v, %v", u.For, err)
	}

	many := make([]User, maxUsers+1)
	for i := range many {
		many[i] = User{fmt.Sprint("u", i), sesame, nil}
	}
	for what, users := range map[string][]User{
		"nobody":               nil,
		"too many":             many,
		"no name":              {{"", sesame, nil}},
		"a colon":              {{"a:b", sesame, nil}},
		"a line end":           {{"a\n", sesame, nil}},
		"a long name":          {{strings.Repeat("x", maxUserName+1), sesame, nil}},
		"twice":                {{"a", sesame, nil}, {"a", tahini(), nil}},
		"no hash":              {{"a", "sesame", nil}},
		"an empty name to ask": {{"a", sesame, []string{"b", ""}}},
		"too many names":       {{"a", sesame, make([]string, maxFor+1)}},
	} {
		if err := p.Replace(users); err == nil || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := NewGate(1).NewPasswords(users); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
	verify("device", "tahini", nil) // the last good ones stay
}

func TestReplaceStatic(t *testing.T) {
	s := newStatic(t, NewGate(1))
	ctx := context.Background()
	must(t, s.Verify(ctx, device(t), "sesame"))
	if err := s.Replace("tahini"); !errors.Is(err, phc.ErrFormat) {
		t.Errorf("error %v", err)
	}
	must(t, s.Verify(ctx, device(t), "sesame"))
	must(t, s.Replace(tahini()))
	if err := s.Verify(ctx, device(t), "sesame"); !errors.Is(err, ErrWrong) {
		t.Errorf("the replaced challenge, which was known: %v", err)
	}
	must(t, s.Verify(ctx, device(t), "tahini"))
}

// A user with names is for these alone, whatever in the request is a name.
func TestUserFor(t *testing.T) {
	u := User{Name: "device", For: []string{"Kiosk", "k.example.test", "k@example.test", "192.0.2.7"}}
	mailed := pkix.AttributeTypeAndValue{Type: oidEmailAddress, Value: "K@example.test"}
	other := pkix.AttributeTypeAndValue{Type: oidEmailAddress, Value: "root@example.test"}
	second := pkix.AttributeTypeAndValue{Type: oidCommonName, Value: "kiosk"}
	for _, c := range []struct {
		subject pkix.Name
		sans    []string
		ok      bool
	}{
		{named("kiosk"), nil, true},
		{named("KIOSK"), []string{"dns:K.example.test", "ip:192.0.2.7"}, true},
		{pkix.Name{}, []string{"dns:k.example.test"}, true},
		{pkix.Name{CommonName: "kiosk", ExtraNames: []pkix.AttributeTypeAndValue{mailed, second}}, nil, true},
		{pkix.Name{}, nil, false},
		{named("\u212aiosk"), nil, false},
		{named("kio\u017fk"), nil, false},
		{pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{Type: oidCommonName, Value: "root"}, second}}, nil, false},
		{pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{second, other}}, nil, false},
		{pkix.Name{SerialNumber: "root"}, []string{"dns:k.example.test"}, false},
		{named("kiosk"), []string{"dns:root.example.test"}, false},
		{named("kiosk"), []string{"upn:root@example.test"}, false},
		{named("kiosk"), []string{"uri:tag:microsoft.com,2022-09-14:sid:S-1-5-21-1-2-3-500"}, false},
	} {
		if what := u.Mismatch(csrFor(t, c.subject, c.sans...)); (what == "") != c.ok {
			t.Errorf("%v %v: %q", c.subject, c.sans, what)
		}
		if what := (User{}).Mismatch(csrFor(t, c.subject, c.sans...)); what != "" {
			t.Errorf("a user for any name: %q", what)
		}
	}
}
