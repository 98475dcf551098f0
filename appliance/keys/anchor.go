package keys

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"signet.internal/tpm"
)

// AnchorGap is how far apart two advances of the anchor are at least, but for the first of a boot. Each
// is a write to NV memory that wears out, and whoever takes the enrollment service over can ask for them:
// 100 000 writes, which the worst TPMs endure, are eleven years of them.
const AnchorGap = time.Hour

var (
	// ErrAnchorSoon says that the anchor was advanced less than AnchorGap ago.
	ErrAnchorSoon = errors.New("the state-rollback counter was advanced within the hour")
	// ErrAnchorMoved says that the anchor does not stand where it was expected to, or is not in the TPM.
	ErrAnchorMoved = errors.New("the state-rollback counter does not stand where it was expected to")
)

// Anchor is the counter in the TPM by which an older disk shows that was put back.
type Anchor struct {
	Count uint64        // where it stands; 0: the TPM has none, or something else in its place
	First uint64        // where it began at provisioning; 0: the box was provisioned before boxes had one
	Wait  time.Duration // until it can be advanced
}

// anchor is the holder's side of it.
type anchor struct {
	counter *tpm.Counter
	first   uint64
	now     func() time.Time // with a monotonic clock: nobody sets the wait aside with the time

	mu   sync.Mutex // held while the TPM works on it
	last time.Time  // of the last advance in this boot; zero: there was none
}

// anchorCounter is the counter of a creation secret. The holder has that, to make the counter of a box
// that was provisioned without.
func anchorCounter(srk *tpm.SRK, creation []byte) (*tpm.Counter, error) {
	auth, err := deriveAuth(creation, labelAnchorAuth)
	if err != nil {
		return nil, err
	}
	return srk.Counter(auth)
}

func (a *anchor) wait() time.Duration {
	if a.last.IsZero() {
		return 0
	}
	return max(0, AnchorGap-a.now().Sub(a.last))
}

// read answers opAnchor.
func (a *anchor) read() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	count, err := a.counter.Read()
	if err != nil && !errors.Is(err, tpm.ErrNoCounter) && !errors.Is(err, tpm.ErrHandleTaken) {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddUint64(count)
	b.AddUint64(a.first)
	b.AddUint64(uint64(a.wait()))
	return b.Bytes()
}

// advance answers opAdvance.
func (a *anchor) advance(from uint64) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.wait() > 0 {
		return nil, ErrAnchorSoon
	}
	before := a.last
	a.last = a.now() // what became of a step whose answer is lost nobody knows: it counts
	step := a.counter.Make
	if from > 0 {
		step = func() (uint64, error) { return a.counter.Advance(from) }
	}
	count, err := step()
	if errors.Is(err, tpm.ErrCounterMoved) || errors.Is(err, tpm.ErrNoCounter) || errors.Is(err, tpm.ErrBusy) || errors.Is(err, tpm.ErrHandleTaken) {
		a.last = before // nothing was written
	}
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddUint64(count)
	return b.Bytes()
}

// parseAnchor returns the work of opAnchor and opAdvance, or false if the request is malformed.
func (h *Holder) parseAnchor(f frame) (work func() ([]byte, error), ok bool) {
	if f.code == opAnchor {
		return h.anchor.read, len(f.body) == 0
	}
	s := cryptobyte.String(f.body)
	var from uint64
	if !s.ReadUint64(&from) || !s.Empty() {
		return nil, false
	}
	return func() ([]byte, error) { return h.anchor.advance(from) }, true
}

// Anchor says where the state-rollback counter stands.
func (c *Client) Anchor() (Anchor, error) {
	f, err := c.call(opAnchor, nil)
	if err != nil {
		return Anchor{}, fmt.Errorf("reading the state-rollback counter: %w", err)
	}
	var a Anchor
	var wait uint64
	s := cryptobyte.String(f.body)
	if !s.ReadUint64(&a.Count) || !s.ReadUint64(&a.First) || !s.ReadUint64(&wait) || !s.Empty() {
		return Anchor{}, fmt.Errorf("reading the state-rollback counter: %w", errFrame)
	}
	a.Wait = time.Duration(wait)
	return a, nil
}

// Advance adds one to the counter, which stands at from, and returns where it stands then: ErrAnchorMoved
// unless it stands there, ErrAnchorSoon within AnchorGap of the last time, but for the first of a boot;
// then nothing happened. Advance(0) makes the counter of a box whose TPM has none that its keys open,
// above all that the TPM ever had; an error where somebody else's is in its place. After another error the counter may have been advanced, and Anchor
// says whether.
func (c *Client) Advance(from uint64) (uint64, error) {
	var b cryptobyte.Builder
	b.AddUint64(from)
	body, err := b.Bytes()
	if err != nil {
		return 0, fmt.Errorf("advancing the state-rollback counter: %w", err)
	}
	f, err := c.call(opAdvance, body)
	if err != nil {
		return 0, fmt.Errorf("advancing the state-rollback counter: %w", err)
	}
	var count uint64
	s := cryptobyte.String(f.body)
	if !s.ReadUint64(&count) || !s.Empty() {
		return 0, fmt.Errorf("advancing the state-rollback counter: %w", errFrame)
	}
	return count, nil
}
