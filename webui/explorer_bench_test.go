package webui

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/store"
)

var explorerRecords = flag.Int("explorer-records", 1_000_000, "records of the audit log that BenchmarkExplorer looks at")

// BenchmarkExplorer appends -explorer-records records and measures what people and auditors do with such
// a log: pages of the explorer with and without filters, a record with its proof, the export, and its
// verification. B/op and heap-MB say what memory it takes.
func BenchmarkExplorer(b *testing.B) {
	n := *explorerRecords
	console, st := benchConsole(b)
	begun := time.Now()
	appendMany(b, st, n)
	perSecond := float64(n) / time.Since(begun).Seconds()
	b.Run("append", func(b *testing.B) {
		for b.Loop() {
			appendMany(b, st, 1000)
		}
		b.ReportMetric(perSecond, "records/s-of-all")
	})
	handler := console.handler()
	get := func(path string) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Header.Set("Authorization", "Bearer "+benchToken)
				handler.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Fatalf("%s: status %d: %.300s", path, w.Code, w.Body)
				}
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MB")
		}
	}
	half := start.Add(time.Duration(n/2) * time.Second)
	b.Run("newest", get("/audit"))
	b.Run("middle", get(fmt.Sprintf("/audit?before=%d", n/2)))
	b.Run("minute-by-time", get("/audit?since="+half.Format("2006-01-02T15:04")+"&until="+half.Add(time.Minute).Format("2006-01-02T15:04")))
	b.Run("text-not-there", get("/audit?q=nowhere"))
	b.Run("rare-action", get("/audit?action=certificate_revoked"))
	b.Run("record-verified", get(fmt.Sprintf("/audit/%d?do=verify", n/3)))
	b.Run("api-page", get("/api/v1/audit?limit=100"))
	file := b.TempDir() + "/export.ndjson"
	b.Run("export", func(b *testing.B) {
		for b.Loop() {
			benchExport(b, handler, file)
		}
		b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "records/s")
	})
	b.Run("verify", func(b *testing.B) {
		key, err := audit.NewVerifier(console.cfg.Audit.Key())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			f, err := os.Open(file)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := audit.Verify(f, key); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		b.ReportMetric(float64(b.N)*float64(n)/b.Elapsed().Seconds(), "records/s")
	})
}

// benchExport writes the export to a file, as a client does that keeps no more than a page in memory.
func benchExport(b *testing.B, handler http.Handler, file string) {
	b.Helper()
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	r := httptest.NewRequest(http.MethodGet, "/api/v1/audit/export", nil)
	r.Header.Set("Authorization", "Bearer "+benchToken)
	handler.ServeHTTP(&fileWriter{header: http.Header{}, w: f}, r)
}

// fileWriter is an http.ResponseWriter that keeps nothing in memory.
type fileWriter struct {
	header http.Header
	w      io.Writer
}

func (f *fileWriter) Header() http.Header         { return f.header }
func (f *fileWriter) Write(p []byte) (int, error) { return f.w.Write(p) }
func (f *fileWriter) WriteHeader(int)             {}

// appendMany writes n records a second apart, as a box that enrolls devices does, in batches.
func appendMany(b *testing.B, st *store.Store, n int) {
	b.Helper()
	from, _, err := st.LogHead()
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; i < n; {
		var batch []audit.Record
		for ; i < n && len(batch) < 1000; i++ {
			at := int(from) + i
			batch = append(batch, audit.Record{
				Time: start.Add(time.Duration(at) * time.Second), TimeSource: "rtc", Action: audit.SCEPPKCSReq, Actor: audit.ActorDevice, Source: "10.20.30.40",
				Profile: "corp", Protocol: "scep", Transaction: fmt.Sprintf("%064x", at), Identity: fmt.Sprintf("device-%07d.example.com", at),
				Serial: fmt.Sprintf("%032x", at), CSRSHA256: fmt.Sprintf("%064x", at), Outcome: audit.OutcomeSuccess,
			})
		}
		if err := st.Append(batch...); err != nil {
			b.Fatal(err)
		}
	}
}

var benchToken, benchHash = newToken()

// benchConsole is a console over a store of its own that serves for long.
func benchConsole(b *testing.B) (*console, *store.Store) {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	st, err := store.Open(store.Options{Dir: b.TempDir()})
	must(err)
	b.Cleanup(func() { st.Close() })
	must(st.Claim(store.User{Name: "alice", Role: auditor.String(), Created: start},
		store.Token{Hash: benchHash, Name: "bench", User: "alice", Role: auditor.String(), Created: start, Expires: time.Now().AddDate(100, 0, 0)},
		audit.Record{Time: start, TimeSource: "rtc", Action: audit.AdminClaimed, Outcome: audit.OutcomeSuccess}))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	signer, err := store.NewLogSigner(st, "bench", key, time.Now)
	must(err)
	quiet := slog.New(slog.DiscardHandler)
	engine, err := enroll.New(enroll.Config{Store: st, Now: time.Now, TimeSource: "rtc", Log: quiet})
	must(err)
	b.Cleanup(func() { engine.Close() })
	c, err := newConsole(Config{
		Store: st, Boot: demoBoot(), Site: demoSite, CABundle: func() []byte { return nil }, Now: time.Now, TimeSource: "rtc", Log: quiet,
		Source: func(*http.Request) netip.Addr { return netip.IPv6Loopback() },
		Audit:  signer, Enroll: engine, SCEP: func() []SCEPProfile { return nil }, Box: newBenchBox(), Metrics: http.NotFoundHandler(),
		Machine: func() Machine { return Machine{} }, History: func() (History, error) { return History{}, nil },
		Mint:        func(Mint) (string, time.Time, error) { return "", time.Time{}, ErrNoProfile },
		EST:         func() []ESTProfile { return nil },
		ReloadTrust: func(string, string) (string, error) { return "", ErrNoProfile }, ReloadESTTrust: func(string, string) (string, error) { return "", ErrNoProfile },
	})
	must(err)
	return c, st
}

// newBenchBox is a box that is asked for nothing.
func newBenchBox() Box { return &fakeBox{now: time.Now} }
