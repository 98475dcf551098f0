package syslog

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"

	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// authority issues the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Log CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{cert, key}
}

func (a *authority) issue(t testing.TB, usage ...x509.ExtKeyUsage) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: usage, KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// box is a log that is written to and signed.
type box struct {
	t      testing.TB
	store  *store.Store
	signer *store.LogSigner
	config Config
	n      int
}

func newBox(t testing.TB, roots *x509.CertPool) *box {
	t.Helper()
	s, err := store.Open(store.Options{Dir: t.TempDir()})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	// Each checkpoint is of an hour of its own, so that the store keeps all.
	hours := 0
	signer, err := store.NewLogSigner(s, "plant-7", key, func() time.Time { hours++; return time.Now().Add(time.Duration(hours) * time.Hour) })
	must(t, err)
	return &box{t: t, store: s, signer: signer, config: Config{
		Store: s, Roots: func() *x509.CertPool { return roots }, Facility: 13, Hostname: "pki.example.com", Site: "plant-7", Version: "1.2.3",
		Now: time.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), tick: 20 * time.Millisecond, settle: 200 * time.Millisecond,
	}}
}

// write appends n records, and has every fiftieth signed.
func (b *box) write(n int) {
	b.t.Helper()
	for range n {
		b.n++
		must(b.t, b.store.Append(audit.Record{Time: time.Now(), TimeSource: "rtc", Action: audit.SCEPPKCSReq, Outcome: audit.OutcomeSuccess,
			Identity: fmt.Sprintf(`device "%d" ]`+"\n", b.n), Reason: strings.Repeat("because ", 20)}))
		if b.n%50 == 0 {
			_, err := b.signer.Checkpoint()
			must(b.t, err)
		}
	}
}

// stream runs a stream to an address; stop ends it.
func (b *box) stream(address string) (s *Stream, stop func()) {
	b.t.Helper()
	b.config.Address = address
	s, err := New(b.config)
	must(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	b.t.Cleanup(stop)
	return s, stop
}

// until waits for what happens in the background.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// receiver takes connections and keeps whole messages. It is ours: that receivers of others understand
// the box is rsyslog's to show.
type receiver struct {
	t        testing.TB
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
	messages []string
}

func receive(t testing.TB, config *tls.Config) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &receiver{t: t, listener: l}
	t.Cleanup(func() { l.Close(); r.cut() })
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, config)
			r.mu.Lock()
			r.conns = append(r.conns, conn)
			r.mu.Unlock()
			go r.read(conn)
		}
	}()
	return r
}

func (r *receiver) read(conn *tls.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		text, err := in.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(text, " "))
		if err != nil {
			r.t.Errorf("a frame begins with %q", text)
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		r.mu.Lock()
		r.messages = append(r.messages, string(b))
		r.mu.Unlock()
	}
}

// cut resets every connection.
func (r *receiver) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		raw := c.(*tls.Conn).NetConn().(*net.TCPConn)
		_, _ = raw.SetLinger(0), raw.Close()
	}
	r.conns = nil
}

func (r *receiver) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.messages...)
}

// hasCheckpoint says whether the checkpoint over the first records is there, and with it they are.
func (r *receiver) hasCheckpoint(records int) bool {
	return slices.ContainsFunc(r.all(), func(m string) bool { return strings.Contains(m, fmt.Sprintf(`\n%d\n`, records)) })
}

// bodies are the MSG parts of messages.
func bodies(messages []string) (all []string) {
	for _, m := range messages {
		i := strings.Index(m, `] `)
		for !strings.HasPrefix(m[i+2:], "{") {
			i += 2 + strings.Index(m[i+2:], `] `)
		}
		all = append(all, m[i+2:])
	}
	return all
}

// checkCopy builds the log of what a receiver has: every record, in order but for what came again, and
// checkpoints by the box's key that fit.
func (b *box) checkCopy(received []string) {
	b.t.Helper()
	key, err := audit.NewVerifier(b.signer.Key())
	must(b.t, err)
	size, _, err := b.store.LogHead()
	must(b.t, err)
	want, err := b.store.Leaves(0, size)
	must(b.t, err)
	export, checkpoints := new(bytes.Buffer), []audit.Checkpoint{}
	next := 0
	for _, body := range received {
		var line struct {
			Index      *int
			Checkpoint string
		}
		if err := json.Unmarshal([]byte(body), &line); err != nil {
			b.t.Fatalf("%v in %q", err, body)
		}
		switch {
		case line.Checkpoint != "":
			c, err := audit.OpenCheckpoint([]byte(line.Checkpoint), key)
			must(b.t, err)
			if c.Size > uint64(next) {
				b.t.Errorf("a checkpoint over %d records after %d", c.Size, next)
			}
			checkpoints = append(checkpoints, c)
		case line.Index == nil || *line.Index > next:
			b.t.Fatalf("after record %d comes %.100s", next-1, body)
		case body != string(want[*line.Index]):
			b.t.Fatalf("record %d is %s, want %s", *line.Index, body, want[*line.Index])
		case *line.Index == next:
			fmt.Fprintln(export, body)
			next++
		}
	}
	if next != len(want) {
		b.t.Errorf("%d records arrived, the log has %d", next, len(want))
	}
	kept, _, err := b.store.Checkpoints(0, 10000)
	must(b.t, err)
	for _, k := range kept {
		c, err := audit.PeekCheckpoint(k.Note)
		must(b.t, err)
		if !containsCheckpoint(checkpoints, c) {
			b.t.Errorf("the checkpoint over %d records did not arrive", c.Size)
		}
	}
}

func containsCheckpoint(all []audit.Checkpoint, c audit.Checkpoint) bool {
	for _, x := range all {
		if x.Size == c.Size && x.Root == c.Root {
			return true
		}
	}
	return false
}

// Everything arrives as it is stored, while the log is written and connections are reset over and over.
func TestStream(t *testing.T) {
	ca := newAuthority(t)
	b := newBox(t, ca.pool())
	b.config.settle = time.Hour // what a reset destroys was not counted, however late the receiver reads
	b.config.farewell = 2 * time.Minute
	b.write(650)
	r := receive(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageServerAuth)}})
	s, stop := b.stream(r.listener.Addr().String())
	for range 10 {
		b.write(100)
		before := len(r.all())
		until(t, "something arrives", func() bool { return len(r.all()) > before && s.Status().Connected })
		r.cut()
	}
	until(t, "all arrives", func() bool { return r.hasCheckpoint(1650) })
	stop()
	b.config.settle = 200 * time.Millisecond
	s, stop = b.stream(r.listener.Addr().String())
	b.write(50)
	until(t, "all is delivered", func() bool { return s.Status().Lag == 0 && r.hasCheckpoint(1700) })
	if status := s.Status(); !status.Connected || status.Err != nil || status.Delivered != 1700 {
		t.Errorf("status %+v", status)
	}
	b.checkCopy(bodies(r.all()))

	// What was sent and not counted yet counts once the receiver closes after the box.
	b.config.settle = time.Hour
	stop()
	s, stop = b.stream(r.listener.Addr().String())
	b.write(100)
	until(t, "all arrives", func() bool { return r.hasCheckpoint(1800) })
	if lag := s.Status().Lag; lag != 100 {
		t.Errorf("%d records count as not delivered, want 100", lag)
	}
	stop()
	if c, err := b.store.Delivered(b.config.Address); err != nil || c.Next != 1800 {
		t.Errorf("after the end: %+v, %v", c, err)
	}
	b.checkCopy(bodies(r.all()))

	// Another run begins a little before, one to somebody else at the beginning.
	n := len(r.all())
	_, stop = b.stream(r.listener.Addr().String())
	until(t, "records come again", func() bool { return len(r.all()) > n })
	if first := bodies(r.all()[n:])[0]; !strings.HasPrefix(first, fmt.Sprintf(`{"index":%d,`, 1800-rewind)) {
		t.Errorf("a new connection begins with %.60s", first)
	}
	stop()
	other := receive(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageServerAuth)}})
	s, _ = b.stream(other.listener.Addr().String())
	until(t, "all arrives elsewhere", func() bool { return len(other.all()) >= 1800+36 })
	b.checkCopy(bodies(other.all()))
	if s.Status().Delivered != 0 {
		t.Errorf("%d records count as delivered before their time", s.Status().Delivered)
	}
}

// A receiver that is not the one, or does not take the box for one of its own, gets nothing, and the
// status says why.
func TestReceiverIsVerified(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := *ca.issue(t, x509.ExtKeyUsageServerAuth)
	for name, c := range map[string]struct {
		config *tls.Config
		shown  *tls.Certificate
		works  bool
		says   string
	}{
		"right":                     {&tls.Config{Certificates: []tls.Certificate{server}}, nil, true, ""},
		"TLS 1.2":                   {&tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: tls.VersionTLS12}, nil, true, ""},
		"TLS 1.1":                   {&tls.Config{Certificates: []tls.Certificate{server}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, nil, false, "protocol version"},
		"another authority":         {&tls.Config{Certificates: []tls.Certificate{*other.issue(t, x509.ExtKeyUsageServerAuth)}}, nil, false, "unknown authority"},
		"a client's certificate":    {&tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageClientAuth)}}, nil, false, "key usage"},
		"asks, the box has none":    {&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool()}, nil, false, "certificate required"},
		"asks, the box has one":     {&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool()}, ca.issue(t, x509.ExtKeyUsageClientAuth), true, ""},
		"asks, without usages":      {&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert}, ca.issue(t), true, ""},
		"asks, the box is a server": {&tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool()}, &server, false, "certificate required"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, ca.pool())
			if !c.works { // the receiver has time to say so before the connection stands
				t.Parallel()
				b.config.tick, b.config.settle = 3*time.Second, time.Hour
			}
			if c.shown != nil {
				b.config.Certificate = func() (*tls.Certificate, error) { return c.shown, nil }
			}
			b.write(10)
			r := receive(t, c.config)
			s, _ := b.stream(r.listener.Addr().String())
			if c.works {
				until(t, "all is delivered", func() bool { return s.Status().Lag == 0 })
				b.checkCopy(bodies(r.all()))
				return
			}
			until(t, "an error", func() bool { return s.Status().Err != nil })
			since := s.Status().Since
			until(t, "another attempt", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.conns) > 2 })
			status := s.Status()
			if status.Connected || !strings.Contains(status.Err.Error(), c.says) || status.Lag != 10 || len(r.all()) > 0 {
				t.Errorf("%+v, %d messages", status, len(r.all()))
			}
			if !status.Since.Equal(since) {
				t.Errorf("not connected since %v, then since %v", since, status.Since)
			}
		})
	}
}

// A receiver that reads nothing, or is not there, holds nobody up: records are appended all the same,
// wait, and none of them counts.
func TestNobodyWaitsForTheReceiver(t *testing.T) {
	ca := newAuthority(t)
	b := newBox(t, ca.pool())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			defer raw.Close()
			_ = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageServerAuth)}}).Handshake()
		}
	}()
	s, stop := b.stream(l.Addr().String())
	for range 100 {
		batch := make([]audit.Record, 500)
		for i := range batch {
			batch[i] = audit.Record{Time: time.Now(), TimeSource: "rtc", Action: audit.SCEPPKCSReq, Outcome: audit.OutcomeSuccess, Reason: strings.Repeat("x", 500)}
		}
		must(t, b.store.Append(batch...))
	}
	until(t, "the kernel's buffers are full", func() bool { return s.Status().Connected || s.Status().Lag == 50_000 })
	if status := s.Status(); status.Delivered > 25_000 {
		t.Errorf("%d records count as delivered to somebody who reads nothing", status.Delivered)
	}
	stop()
}

// A receiver that takes everything and ends each connection before it counts is connected most of the time, and
// the status says all the same since when nothing was delivered. So it does of one that talks, which is not
// listened to.
func TestReceiverThatEndsConnections(t *testing.T) {
	for what, meet := range map[string]func(*tls.Conn) error{
		"it closes": func(conn *tls.Conn) error {
			_, _ = io.CopyN(io.Discard, conn, 1000)
			time.Sleep(100 * time.Millisecond)
			return nil
		},
		"it talks": func(conn *tls.Conn) error {
			go io.Copy(io.Discard, conn)
			for {
				if _, err := conn.Write(make([]byte, 1<<10)); err != nil {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			ca := newAuthority(t)
			b := newBox(t, ca.pool())
			b.config.settle = time.Hour
			b.write(10)
			config := &tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageServerAuth)}}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			var mu sync.Mutex
			met := 0
			go func() {
				for {
					raw, err := l.Accept()
					if err != nil {
						return
					}
					mu.Lock()
					met++
					mu.Unlock()
					go func() {
						defer raw.Close()
						_ = meet(tls.Server(raw, config))
					}()
				}
			}()
			began := time.Now()
			s, stop := b.stream(l.Addr().String())
			until(t, "several connections", func() bool { mu.Lock(); defer mu.Unlock(); return met > 3 })
			if status := s.Status(); status.Delivered != 0 || status.Waiting.Before(began) || status.Waiting.After(status.Since.Add(time.Second)) || time.Since(status.Waiting) < 100*time.Millisecond {
				t.Errorf("%+v", status)
			}
			stop()
		})
	}
	ca := newAuthority(t)
	b := newBox(t, ca.pool())
	r := receive(t, &tls.Config{Certificates: []tls.Certificate{*ca.issue(t, x509.ExtKeyUsageServerAuth)}})
	b.write(10)
	s, _ := b.stream(r.listener.Addr().String())
	if s.Status().Waiting.IsZero() {
		t.Error("nothing waits, and nothing was delivered")
	}
	until(t, "all is delivered", func() bool { status := s.Status(); return status.Lag == 0 && status.Waiting.IsZero() })
}

// BenchmarkAppend is what the log takes with a stream behind it and without.
func BenchmarkAppend(b *testing.B) {
	ca := newAuthority(b)
	server := *ca.issue(b, x509.ExtKeyUsageServerAuth)
	for _, streamed := range []bool{false, true} {
		b.Run(fmt.Sprintf("streamed=%v", streamed), func(b *testing.B) {
			x := newBox(b, ca.pool())
			x.config.tick, x.config.settle = 0, 0
			var s *Stream
			if streamed {
				s, _ = x.stream(receive(b, &tls.Config{Certificates: []tls.Certificate{server}}).listener.Addr().String())
			}
			batch := make([]audit.Record, 100)
			for i := range batch {
				batch[i] = audit.Record{Time: time.Now(), TimeSource: "rtc", Action: audit.SCEPPKCSReq, Outcome: audit.OutcomeSuccess, Reason: strings.Repeat("x", 100)}
			}
			b.ResetTimer()
			for range b.N {
				must(b, x.store.Append(batch...))
			}
			b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "records/s")
			if streamed {
				b.ReportMetric(float64(s.Status().Lag), "records-behind")
			}
		})
	}
}

func TestMessages(t *testing.T) {
	c := Config{Facility: 13, Hostname: "pki.example.com", Site: "plant-7", Version: "1.2.3"}
	at := time.Date(2026, 5, 4, 12, 0, 0, 7e6, time.UTC)
	leaf := func(o audit.Outcome) []byte {
		return audit.Leaf(audit.Record{Index: 7, Time: at, TimeSource: "rtc", Action: audit.SCEPRenewalReqIntune, Outcome: o})
	}
	for outcome, pri := range map[audit.Outcome]int{audit.OutcomeSuccess: 110, audit.OutcomeBegun: 110, audit.OutcomePending: 109, audit.OutcomeRefused: 108, audit.OutcomeFailed: 107, audit.OutcomeLost: 107} {
		body := string(leaf(outcome))
		want := fmt.Sprintf(`<%d>1 2026-05-04T12:00:00.007Z pki.example.com signet - scep_renewalreq_intune [origin software="signet" swVersion="1.2.3"]`+
			`[signet@32473 site="plant-7" index="7" action="scep_renewalreq_intune" outcome="%s"] %s`, pri, outcome, body)
		if got := string(c.record(nil, 7, []byte(body))); got != fmt.Sprintf("%d %s", len(want), want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	// What is not the record of its place is sent as it is, and loudly.
	for name, bad := range map[string][]byte{"another's": leaf(audit.OutcomeSuccess), "no record": []byte("gone\n"), "nothing": nil} {
		got := string(c.record(nil, 8, bad))
		if !strings.Contains(got, ` <105>1 - pki.example.com signet - unreadable [`) || !strings.HasSuffix(got, ` index="8"] `+string(bad)) {
			t.Errorf("%s: %s", name, got)
		}
	}
	got := string(c.checkpoint([]byte("x"), 9, store.Checkpoint{Note: []byte("a\n9\nroot\n\n— sig\n"), At: at}))
	want := `<110>1 2026-05-04T12:00:00.007Z pki.example.com signet - checkpoint [origin software="signet" swVersion="1.2.3"][signet@32473 site="plant-7" size="9"] {"checkpoint":"a\n9\nroot\n\n— sig\n"}`
	if got != fmt.Sprintf("x%d %s", len(want), want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if s := escaped(`a"b\c]d`); s != `a\"b\\c\]d` {
		t.Errorf("escaped %s", s)
	}
	for in, out := range map[string]string{"": "-", "a b\nc": "a_b_c", strings.Repeat("é", 300): strings.Repeat("_", 255)} {
		if got := printable(in, maxHostname); got != out {
			t.Errorf("%q is %q", in, got)
		}
	}
}
