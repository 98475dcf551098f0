package tpm

// What a green run does not prove: how the kernel's resource manager, which saves and loads a session around
// every command, bears one that is kept.

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"signet.internal/tpm/tpmtest"
)

// TestSessionIsKeptForSignaturesInARow counts the sessions that signatures cost, and takes away what is kept in
// every way that it can go.
func TestSessionIsKeptForSignaturesInARow(t *testing.T) {
	m := tpmtest.New(t)
	var started atomic.Int64
	flushes := make(chan struct{}, 1)
	d := open(t, m.Through(func(code uint32) tpmtest.Fault {
		switch tpm2.TPMCC(code) {
		case tpm2.TPMCCStartAuthSession:
			started.Add(1)
		case tpm2.TPMCCFlushContext:
			select {
			case flushes <- struct{}{}:
			default:
			}
		}
		return tpmtest.Pass
	}))
	keepFor := func(duration time.Duration) {
		t.Helper()
		if err := d.do(func(transport.TPM) error { d.keepFor = duration; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	keepFor(time.Hour) // however slow the machine is
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	key, blob := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	other, _ := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	ak, _ := makeKey(t, srk, "ecdsa-p256", UsageAttest, p)
	digest := sha256.Sum256([]byte("message"))
	sign := func(k *Key) {
		t.Helper()
		sig, err := k.Sign(digest[:], crypto.SHA256, SchemeECDSA)
		if err != nil || !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], sig) {
			t.Fatalf("signing: %v", err)
		}
	}
	sign(key) // loaded, which takes a session too
	sign(other)
	costs := func(what string, sessions int64, do func()) {
		t.Helper()
		before := started.Load()
		do()
		if n := started.Load() - before; n != sessions {
			t.Errorf("%s: %d sessions started, want %d", what, n, sessions)
		}
		checkTidy(t, d)
	}
	costs("signatures in a row", 2, func() {
		for range 10 {
			sign(key)
		}
	})
	costs("two keys in turn", 6, func() {
		for range 3 {
			sign(other)
			sign(key)
		}
	})
	costs("more than one session is for", 3, func() {
		for range 2*keepUses + 1 {
			sign(key)
		}
	})
	costs("a session that is gone", 1, func() {
		if err := d.do(func(tp transport.TPM) error {
			_, err := tpm2.FlushContext{FlushHandle: d.kept.Handle()}.Execute(tp)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		sign(key)
	})

	wrong, err := srk.Key(blob, "ecdsa-p256", UsageSign, p, []byte("ffffffffffffffffffffffffffffffff"))
	if err != nil {
		t.Fatal(err)
	}
	sign(key)
	for range 3 { // the first has a session for itself
		if _, err := wrong.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrAuth) {
			t.Errorf("wrong authorisation value: %v", err)
		}
	}
	checkTidy(t, d)

	sign(key)
	sign(key)
	if err := d.ExtendPCR(testPCR, "another image"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrMeasurement) {
			t.Errorf("after the PCR moved: %v", err)
		}
	}
	checkTidy(t, d)
	resetPCR(t, d)

	sign(key)
	sign(key)
	if _, err := key.Certify(ak, nil); err != nil {
		t.Errorf("what needs two sessions: %v", err)
	}
	sign(key)
	sign(key)
	select { // a flush of before
	case <-flushes:
	default:
	}
	keepFor(time.Millisecond)
	select {
	case <-flushes:
	case <-time.After(time.Minute):
		t.Error("a session that nobody uses stays open")
	}
	checkTidy(t, d)
}
