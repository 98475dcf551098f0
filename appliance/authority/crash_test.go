package authority_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/authority"
)

// step is one transition of the story.
type step struct {
	name string
	// do makes it. done is what it answers where it was made before; nil where that succeeds too.
	do   func(*box) error
	done error
	// several is true for what is several transitions, between which the power may go too.
	several bool
}

// story makes every transition. upload signs the request of the moment before the step is cut, so that the
// repeated order brings the same chain.
func story(above *offline) []step {
	var chain []byte
	upload := func(b *box) error {
		if chain == nil {
			request, err := b.CSR("branch")
			if err != nil {
				return err
			}
			chain = above.sign(request.PEM, b.now, 1000*day)
		}
		return b.InstallChain("branch", chain, admin)
	}
	forget := func(b *box) error { chain = nil; return nil }
	after := func(days int) func(*box) error {
		return func(b *box) error {
			if then := epoch.AddDate(0, 0, days); b.now.Before(then) {
				b.now = then
			}
			first := b.Upkeep(b.now)
			b.now = b.now.AddDate(0, 0, 3) // what goes for good goes once the clock has stood there for a while
			return errors.Join(first, b.Upkeep(b.now))
		}
	}
	var tlsChain []byte
	return []step{
		{"upload the first chain", upload, nil, false},
		{"", forget, nil, false},
		{"prepare a root", func(b *box) error { return b.PrepareNext("devices", admin) }, authority.ErrPrepared, false},
		{"cancel it", func(b *box) error { return b.CancelNext("devices", admin) }, authority.ErrNotPrepared, false},
		{"prepare it again", func(b *box) error { return b.PrepareNext("devices", admin) }, authority.ErrPrepared, false},
		{"activate it", func(b *box) error { return b.ActivateNext("devices", admin) }, authority.ErrNotPrepared, false},
		{"prepare a subordinate", func(b *box) error { return b.PrepareNext("branch", admin) }, authority.ErrPrepared, false},
		{"upload its chain", upload, nil, false},
		{"activate it", func(b *box) error { return b.ActivateNext("branch", admin) }, authority.ErrNotPrepared, false},
		{"upload a TLS certificate", func(b *box) error {
			if tlsChain == nil {
				requests, err := b.TLSCSR()
				if err != nil {
					return err
				}
				tlsChain = above.signAs(requests, serverTemplate(b.now))
			}
			return b.InstallTLS(tlsChain, admin)
		}, nil, false},
		{"take it back", func(b *box) error { return b.UseOwnTLS(admin) }, nil, false},
		{"renew responders", after(8), nil, true},
		{"prepare a third root", func(b *box) error { return b.PrepareNext("devices", admin) }, authority.ErrPrepared, false},
		{"activate it", func(b *box) error { return b.ActivateNext("devices", admin) }, authority.ErrNotPrepared, false},
		{"retire", after(40), nil, true},
		{"rotate the RA", after(340), nil, true},
		{"retire the RA", after(380), nil, true},
	}
}

// The power goes at every write of the disk and at every change of keys, before it or when it is done: the
// box opens in the state before the transition or after it, and the repeated order completes it.
func TestPowerCuts(t *testing.T) {
	b := newBox(t)
	cuts := 0
	for _, s := range story(newOffline(t)) {
		if s.name == "" {
			must(t, s.do(b))
			continue
		}
		b.close()
		start := b.fs.(*vfs.MemFS)
		made := maps.Clone(b.holder.made)
		// rewind is a box in the state before the step.
		rewind := func() *box {
			c := *b
			c.holder = &holder{Client: b.holder.Client, made: maps.Clone(made)}
			c.fs = start.CrashClone(vfs.CrashCloneCfg{})
			return &c
		}
		old, undisturbed := rewind(), rewind()
		must(t, old.open(false))
		before := old.summary()
		old.close()
		must(t, undisturbed.open(false))
		if err := s.do(undisturbed); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		after := undisturbed.summary()
		undisturbed.check()
		if before == after {
			t.Fatalf("%s changes nothing", s.name)
		}
		keyOps := undisturbed.holder.ops

		checkCut := func(what string, c *box) {
			cuts++
			c.holder.failAt = 0
			if err := c.open(false); err != nil {
				t.Fatalf("%s, %s: opening after it: %v", s.name, what, err)
			}
			defer c.close()
			if got := c.summary(); got != before && got != after && !s.several {
				t.Errorf("%s, %s: neither before nor after\n%s", s.name, what, cmp.Diff(after, got))
			}
			c.check()
			if err := s.do(c); err != nil && (s.done == nil || !errors.Is(err, s.done)) {
				t.Errorf("%s, %s: repeating it: %v", s.name, what, err)
			}
			if diff := cmp.Diff(after, c.summary()); diff != "" {
				t.Errorf("%s, %s: after repeating it (-want +got):\n%s", s.name, what, diff)
			}
			c.check()
		}
		for n := 1; n <= keyOps; n++ {
			for _, late := range []bool{false, true} {
				c := rewind()
				must(t, c.open(false))
				c.holder.failAt, c.holder.late = c.holder.ops+n, late
				_ = s.do(c) // fails, or leaves removing a key for later
				mem := c.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
				c.close()
				c.fs = mem
				checkCut(fmt.Sprintf("key operation %d, late %t", n, late), c)
			}
		}
		for n := 0; ; n++ {
			c := rewind()
			mem := c.fs.(*vfs.MemFS)
			faults := &writes{failAt: -1}
			c.fs = errorfs.Wrap(mem, faults)
			must(t, c.open(false))
			faults.arm(n)
			err := s.do(c)
			reached := faults.reached()
			crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(n), 1))})
			c.close()
			if !reached {
				must(t, err)
				break
			}
			c.fs = crashed
			checkCut(fmt.Sprintf("write %d", n), c)
		}
		undisturbed.close()
		b.holder, b.fs, b.now = undisturbed.holder, undisturbed.fs, undisturbed.now
		must(t, b.open(false))
	}
	if cuts < 60 {
		t.Errorf("only %d cuts", cuts)
	}
	t.Logf("%d cuts", cuts)
}

// writes fails the n-th write to the filesystem after arm, and every later one.
type writes struct {
	mu     sync.Mutex
	failAt int // -1: none
	seen   int
}

func (w *writes) String() string { return "power cut" }

func (w *writes) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failAt < 0 {
		return nil
	}
	w.seen++
	if w.seen > w.failAt {
		return errCut
	}
	return nil
}

func (w *writes) arm(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failAt, w.seen = n, 0
}

// reached says whether the power went.
func (w *writes) reached() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen > w.failAt
}

func serverTemplate(now time.Time) *x509.Certificate {
	return &x509.Certificate{NotBefore: now.Add(-day), NotAfter: now.Add(100 * day), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"pki.example.com"}}
}
