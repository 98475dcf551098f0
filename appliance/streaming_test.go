package appliance

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
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/appliance/syslog"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

// logReceiver takes the log over TLS, from when listen is called.
type logReceiver struct {
	address string
	cert    tls.Certificate

	mu       sync.Mutex
	messages []string
}

func newLogReceiver(t *testing.T) *logReceiver {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "log"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &logReceiver{address: l.Addr().String(), cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}
}

func (r *logReceiver) listen(t *testing.T) {
	t.Helper()
	l, err := tls.Listen("tcp", r.address, &tls.Config{Certificates: []tls.Certificate{r.cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.read(conn)
		}
	}()
}

func (r *logReceiver) read(conn net.Conn) {
	defer conn.Close()
	for in := bufio.NewReader(conn); ; {
		text, err := in.ReadString(' ')
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimSuffix(text, " "))
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		r.mu.Lock()
		r.messages = append(r.messages, string(b))
		r.mu.Unlock()
	}
}

func (r *logReceiver) has(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.messages {
		if strings.Contains(m, part) {
			return true
		}
	}
	return false
}

// boxes are runs of one box, each at its own time.
type boxes struct {
	t    *testing.T
	site *provision.Site
	dir  string
	spec string
}

// run serves at a time until f returns, which sees the appliance.
func (b *boxes) run(at time.Duration, f func(a *Appliance)) {
	b.t.Helper()
	storage, err := os.OpenFile(filepath.Join(b.dir, "keys"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer storage.Close()
	var specs []keys.Spec
	for _, k := range b.site.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	host, err := keys.OpenHost(b.spec, storage, b.site.Name, specs)
	if err != nil {
		b.t.Fatal(err)
	}
	defer host.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	ready := filepath.Join(b.t.TempDir(), "ready.json")
	a, err := New(Config{
		Site: b.site, Files: os.DirFS("../configs/demo"), StateDir: b.dir, Keys: host.Client, Now: func() time.Time { return time.Now().Add(at) },
		Boot:      handover.Boot{Kind: handover.KindHost, Provisioning: !host.Vault.Initialised(), TimeSource: "host"},
		Listeners: map[string]net.Listener{"plain": l}, Initialised: host.Vault.MarkInitialised, Log: slog.New(slog.NewTextHandler(b.t.Output(), nil)),
		ReadyFile: ready,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx) }()
	b.until("the service is ready", func() bool { _, err := os.Stat(ready); return err == nil })
	f(a)
	cancel()
	if err := <-done; err != nil {
		b.t.Fatal(err)
	}
}

func (b *boxes) until(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("never: %s", what)
		}
	}
}

// A person hears of a receiver that is there and takes nothing of what waits, but not at once.
func TestReceiverThatTakesNothing(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	must(t, err)
	defer st.Close()
	site := &provision.Syslog{Address: "log.example.com:6514", File: "trust/log.pem", Facility: 13}
	s := &streaming{site: site, bundle: newBundle(provision.FieldSyslog, provision.Bundle{File: site.File})}
	s.sender, err = syslog.New(syslog.Config{Store: st, Address: site.Address, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	now := time.Now()
	if c := s.conditions(now.Add(2 * streamStall)); c != nil {
		t.Errorf("nothing waits: %+v", c)
	}
	must(t, st.Append(audit.Record{Action: audit.BoxStarted, Outcome: audit.OutcomeSuccess, Time: now, TimeSource: "host"}))
	if c := s.conditions(now); c != nil {
		t.Errorf("at once: %+v", c)
	}
	if c := s.conditions(now.Add(2 * streamStall)); len(c) != 1 || !strings.Contains(c[0].What, site.Address) || !strings.Contains(c[0].What, " 1 records wait") || c[0].Mend == "" {
		t.Errorf("later: %+v", c)
	}
}

// The site keeps records for 30 days and has the log sent. What is older goes, but not before the receiver
// has it, nor before the box has run for as long; a person hears of a receiver that is away; and the log stays provable.
func TestLogIsSentAndThenForgotten(t *testing.T) {
	site, err := provision.Load(os.DirFS("../configs/demo"))
	if err != nil {
		t.Fatal(err)
	}
	receiver := newLogReceiver(t)
	site.Audit = provision.Audit{Retention: store.MinRetention, Syslog: &provision.Syslog{
		Address: receiver.address, File: "trust/log.pem", Roots: []*x509.Certificate{receiver.cert.Leaf}, Facility: 13,
	}}
	b := &boxes{t: t, site: site, dir: t.TempDir(), spec: tpmtest.Start(t)}
	const later = 40 * 24 * time.Hour
	told := func(a *Appliance, after time.Duration) string {
		var all []string
		for _, c := range a.streaming.conditions(a.config.Now().Add(after)) {
			all = append(all, c.What)
		}
		return strings.Join(all, "\n")
	}
	var before int
	b.run(0, func(a *Appliance) {
		b.until("an attempt fails", func() bool { s, _ := a.streaming.status(); return s.Err != nil })
		if c := told(a, 0); c != "" {
			t.Errorf("at once a person hears: %s", c)
		}
		if c := told(a, 2*streamPatience); !strings.HasPrefix(c, "The audit log is not sent to "+receiver.address+" since ") || !strings.Contains(c, "connection refused. ") {
			t.Errorf("after a while a person hears: %s", c)
		}
		size, _, err := a.store.LogHead()
		if err != nil {
			t.Fatal(err)
		}
		before = int(size)
		must(t, a.store.Ran(25*time.Hour)) // with the start's, the second mark of the log's age
	})
	b.run(later, func(a *Appliance) {
		a.removeRecords()
		if r := a.store.Removed(); r.Before != 0 {
			t.Errorf("records that nobody else has were removed: %+v", r)
		}
	})
	receiver.listen(t)
	b.run(later, func(a *Appliance) {
		b.until("the receiver has the log", func() bool {
			size, _, err := a.store.LogHead()
			return err == nil && receiver.has(` index="`+strconv.FormatUint(size-1, 10)+`" `)
		})
	})
	if !receiver.has(` index="0" action="box_initialised" `) || !receiver.has(" - checkpoint ") {
		t.Error("the receiver lacks the first record, or a checkpoint")
	}
	b.run(later, func(a *Appliance) {
		a.removeRecords()
		if r := a.store.Removed(); r.Before != 0 {
			t.Errorf("a clock that was set ahead had records removed: %+v", r)
		}
		must(t, a.store.Ran(store.MinRetention))
		a.removeRecords()
		if c := told(a, 0); c != "" {
			t.Errorf("a person hears: %s", c)
		}
		r := a.store.Removed()
		if int(r.Before) != before {
			t.Errorf("%d records were removed, want those of the first run, %d", r.Before, before)
		}
		a.removeRecords()
		if again := a.store.Removed(); again != r {
			t.Errorf("more was removed on the same day: %+v", again)
		}
		records, err := a.store.Records(r.Record+1, 1)
		if err != nil || len(records) != 1 || records[0].Action != audit.RecordsRemoved || records[0].Actor != audit.ActorBox || !strings.HasSuffix(records[0].Reason, "; the site keeps them for 30 days") {
			t.Errorf("recorded: %+v, %v", records, err)
		}
		verifyRest(t, a)
	})
}

// verifyRest exports what is left of the log and verifies it.
func verifyRest(t *testing.T, a *Appliance) {
	t.Helper()
	key, err := audit.NewVerifier(a.logSigner.Key())
	if err != nil {
		t.Fatal(err)
	}
	removed, release := a.store.HoldRecords()
	defer release()
	var export bytes.Buffer
	export.Write(audit.RemovedLine(removed.Before))
	var head audit.Checkpoint
	var signed []byte
	for head.Size <= removed.Record {
		if signed, err = a.logSigner.Checkpoint(); err == nil {
			head, err = audit.PeekCheckpoint(signed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	leaves, err := a.store.Leaves(removed.Before, head.Size)
	hashes, hashErr := a.store.LeafHashes(0, head.Size)
	if err := errors.Join(err, hashErr); err != nil {
		t.Fatal(err)
	}
	for _, leaf := range leaves {
		export.Write(append(leaf, '\n'))
	}
	export.Write(audit.HashesLine(hashes))
	export.Write(audit.CheckpointLine(signed))
	report, err := audit.Verify(bytes.NewReader(export.Bytes()), key)
	if err != nil || report.Gone() != removed.Before {
		t.Errorf("export: %+v, %v", report, err)
	}
}

// What somebody changed on the disk is not removed, and a person hears of it.
func TestChangedLogIsTold(t *testing.T) {
	s := &streaming{}
	if c := s.conditions(time.Now()); len(c) != 0 {
		t.Errorf("%v", c)
	}
	text := "audit record 7 is not the one that was written"
	s.broken.Store(&text)
	if c := s.conditions(time.Now()); len(c) != 1 || !strings.Contains(c[0].What, text) || !strings.Contains(c[0].Mend, "signet audit export") {
		t.Errorf("%v", c)
	}
}
