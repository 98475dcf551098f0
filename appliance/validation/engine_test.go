package validation

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/crypto/ocsp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

var _ Status = (*enroll.Engine)(nil)

// withEngine puts a real engine on a real store behind b's configuration.
func (b *box) withEngine(st *store.Store) *enroll.Engine {
	b.t.Helper()
	engine, err := enroll.New(enroll.Config{Store: st, Now: b.now, TimeSource: "host", Log: slog.New(slog.DiscardHandler)})
	must(b.t, err)
	b.server, err = New(Config{
		Engine: engine, Authorities: func() []Authority { return b.authorities }, Config: exchange.Config{Log: slog.New(slog.DiscardHandler), Now: b.now},
		LivePerSecond: 1 << 30,
	})
	must(b.t, err)
	return engine
}

// begin records the intent for a serial of the first generation; finish has it issued as well.
func (b *box) begin(st *store.Store, serial *big.Int) {
	b.t.Helper()
	text := serial.Text(16)
	id, key := b.first.Issuer.ID(), sha256.Sum256([]byte(text))
	must(b.t, st.Begin(store.Intent{
		Key: store.TransactionKey(key), Replay: store.ReplayKey(key), Serial: text, Profile: "corp", Protocol: "scep", Identity: "printer-" + text, Issuer: id[:],
		PublicKey: key[:], Begun: b.now(), NotAfter: b.now().Add(90 * 24 * time.Hour),
	}, b.record(audit.IssuanceBegun, audit.OutcomeBegun, text)))
}

func (b *box) finish(st *store.Store, serial *big.Int, certificate []byte) {
	b.t.Helper()
	b.begin(st, serial)
	must(b.t, st.Finish(serial.Text(16), certificate, b.now(), b.record(audit.SCEPPKCSReq, audit.OutcomeSuccess, serial.Text(16))))
}

func (b *box) record(action audit.Action, outcome audit.Outcome, serial string) audit.Record {
	return audit.Record{Action: action, Outcome: outcome, Actor: audit.ActorDevice, Time: b.now(), TimeSource: "host", Serial: serial}
}

// serve answers one request without a connection.
func (b *box) serve(method, path string, body []byte) []byte {
	w := httptest.NewRecorder()
	b.server.Handler().ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(body)))
	if w.Code != http.StatusOK {
		b.t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	return w.Body.Bytes()
}

// TestLifeOfACertificate follows certificates of a real engine through OCSP and the list: issued, put on
// hold, released, revoked, and one that was lost between intent and signature.
func TestLifeOfACertificate(t *testing.T) {
	b := newBox(t, nil)
	fs := vfs.NewMem()
	st, err := store.Open(store.Options{Dir: "state", FS: fs})
	must(t, err)
	b.finish(st, b.good.SerialNumber, b.good.Raw)
	b.begin(st, b.revoked.SerialNumber) // and the power goes
	must(t, st.Close())
	st, err = store.Open(store.Options{Dir: "state", FS: fs})
	must(t, err)
	engine := b.withEngine(st)
	defer func() {
		must(t, engine.Close())
		must(t, st.Close())
	}()

	serial := hex.EncodeToString(b.good.SerialNumber.Bytes())
	var number *big.Int
	check := func(want, reason int, listed ...*x509.Certificate) {
		t.Helper()
		r := b.check(b.serve("POST", "/ocsp/devices", b.request(b.good)), b.good, want)
		if r.RevocationReason != reason {
			t.Errorf("OCSP gives reason %d, want %d", r.RevocationReason, reason)
		}
		b.check(b.serve("POST", "/ocsp/devices", b.request(b.revoked)), b.revoked, ocsp.Revoked)
		b.check(b.serve("POST", "/ocsp/devices", b.request(b.unknown)), b.unknown, ocsp.Unknown)
		b.advance(4 * time.Second) // revocations close together share a list
		list, err := x509.ParseRevocationList(b.serve("GET", "/pki/devices.crl", nil))
		must(t, err)
		must(t, list.CheckSignatureFrom(b.first.Issuer.Certificate()))
		if len(list.RevokedCertificateEntries) != len(listed) {
			t.Errorf("%d entries, want %d", len(list.RevokedCertificateEntries), len(listed))
		}
		for _, cert := range listed {
			found := false
			for _, e := range list.RevokedCertificateEntries {
				found = found || e.SerialNumber.Cmp(cert.SerialNumber) == 0
			}
			if !found {
				t.Errorf("%x is not on the list", cert.SerialNumber)
			}
		}
		if number != nil && list.Number.Cmp(number) <= 0 {
			t.Errorf("list %v follows %v", list.Number, number)
		}
		number = list.Number
	}
	check(ocsp.Good, 0, b.revoked)
	must(t, engine.Revoke(t.Context(), serial, "certificateHold", "op"))
	check(ocsp.Revoked, 6, b.good, b.revoked)
	must(t, engine.Revoke(t.Context(), serial, "removeFromCRL", "op"))
	check(ocsp.Good, 0, b.revoked)
	must(t, engine.Revoke(t.Context(), serial, "keyCompromise", "op"))
	check(ocsp.Revoked, 1, b.good, b.revoked)

	// A clock that went back behind what is recorded signs nothing new.
	b.advance(-24 * time.Hour)
	if body := b.serve("POST", "/ocsp/devices", b.request(b.good)); !bytes.Equal(body, pki.OCSPTryLater.Response()) {
		t.Errorf("with a clock that is not trusted: %x", body)
	}
}

const (
	issuedForBench  = 100_000
	revokedForBench = 10_000
)

// benchBox is a box that has issued 100,000 certificates on a real disk, and revoked 10,000 of them.
func benchBox(b *testing.B) (x *box, engine *enroll.Engine, serials []*big.Int) {
	b.Helper()
	x = newBox(b, nil)
	st, err := store.Open(store.Options{Dir: b.TempDir()})
	must(b, err)
	certificate := x.good.Raw
	for i := range issuedForBench {
		sum := sha256.Sum256(fmt.Append(nil, i))
		sum[0] = sum[0]&0x7f | 0x10
		serials = append(serials, new(big.Int).SetBytes(sum[:19]))
	}
	each := func(list []*big.Int, do func(*big.Int)) { // many at once share a sync
		var group sync.WaitGroup
		work := make(chan *big.Int)
		for range 256 {
			group.Go(func() {
				for serial := range work {
					do(serial)
				}
			})
		}
		for _, serial := range list {
			work <- serial
		}
		close(work)
		group.Wait()
	}
	each(serials, func(n *big.Int) { x.finish(st, n, certificate) })
	engine = x.withEngine(st)
	each(serials[:revokedForBench], func(n *big.Int) { must(b, engine.Revoke(b.Context(), n.Text(16), "superseded", "op")) })
	b.Cleanup(func() {
		must(b, engine.Close())
		must(b, st.Close())
	})
	return x, engine, serials
}

// BenchmarkPublished is what a box with 100,000 certificates, 10,000 of them revoked, publishes, with
// software keys on P-256: a list signed anew and one that is current; OCSP from what is kept, for
// another certificate each time, and signed live for a nonce.
func BenchmarkPublished(b *testing.B) {
	x, engine, serials := benchBox(b)
	next := revokedForBench
	heap := func(b *testing.B) {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.HeapInuse)/(1<<20), "heap-MiB")
	}
	b.Run("CRL/signed", func(b *testing.B) {
		var list []byte
		for b.Loop() {
			b.StopTimer()
			must(b, engine.Revoke(b.Context(), serials[next].Text(16), "superseded", "op"))
			next++
			x.advance(4 * time.Second) // revocations close together share a list
			b.StartTimer()
			list = x.serve("GET", "/pki/devices.crl", nil)
		}
		b.ReportMetric(float64(len(list))/1024, "KiB")
		heap(b)
	})
	b.Run("CRL/current", func(b *testing.B) {
		for b.Loop() {
			x.serve("GET", "/pki/devices.crl", nil)
		}
	})
	request := func(n *big.Int) []byte { return x.request(&x509.Certificate{SerialNumber: n}) }
	path := "/ocsp/devices/" + url.PathEscape(base64.StdEncoding.EncodeToString(request(serials[0])))
	b.Run("OCSP/kept", func(b *testing.B) {
		for b.Loop() {
			x.serve("GET", path, nil)
		}
	})
	b.Run("OCSP/other", func(b *testing.B) {
		n := 0
		for b.Loop() {
			x.serve("POST", "/ocsp/devices", request(serials[n%issuedForBench]))
			n++
		}
		heap(b)
	})
	live := withNonce(b, request(serials[0]), make([]byte, 32))
	b.Run("OCSP/nonce", func(b *testing.B) {
		for b.Loop() {
			x.serve("POST", "/ocsp/devices", live)
		}
	})
}
