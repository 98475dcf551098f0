package webui

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
)

// listener is a client of the stream.
type listener struct {
	t      *testing.T
	status int
	lines  chan string // closed at the end of the stream
	cancel context.CancelFunc
}

// listen opens a stream; change adds to its request.
func (b *testBox) listen(change ...func(*http.Request)) *listener {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.URL+"/events", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Accept", mediaEvents)
	for _, f := range change {
		f(req)
	}
	resp, err := b.Client().Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	l := &listener{t: b.t, status: resp.StatusCode, lines: make(chan string, 100), cancel: cancel}
	if resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Type") != mediaEvents {
		b.t.Errorf("Content-Type %q", resp.Header.Get("Content-Type"))
	}
	go func() {
		defer close(l.lines)
		defer resp.Body.Close()
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			l.lines <- s.Text()
		}
	}()
	return l
}

// event reads on to the next event; "" at the end of the stream.
func (l *listener) event() (name, data, id string) {
	l.t.Helper()
	for line := range l.lines {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "event":
			name = value
		case "data":
			data = value
		case "id":
			id = value
		case "":
			if name != "" {
				return name, data, id
			}
		}
	}
	return "", "", ""
}

// until reads events until one names a topic, and returns its id.
func (l *listener) until(topic string) string {
	l.t.Helper()
	for {
		name, data, id := l.event()
		if name == "" {
			l.t.Fatalf("the stream ends before %q", topic)
		}
		if name == "change" && slices.Contains(strings.Fields(data), topic) {
			return id
		}
	}
}

// quickFeed looks often.
func quickFeed(b *testBox) *testBox {
	b.console.feed.every = 5 * time.Millisecond
	return b
}

func streamsOf(b *testBox) int {
	f := b.console.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.streams)
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// TestEvents: what happens is told under its topic, once, and a client that comes back is told what it missed.
func TestEvents(t *testing.T) {
	conditions := make(chan []handover.Condition, 1)
	told := []handover.Condition(nil)
	box := quickFeed(newBox(t, func(c *Config) {
		c.Site = func() Site {
			select {
			case told = <-conditions:
			default:
			}
			s := demoSite()
			s.Conditions = told
			return s
		}
	}))
	who := bearer(box.claimAs(administrator, auditor))
	box.clock.pass(10 * time.Minute) // what made the box is long ago
	l := box.listen(who)
	if l.status != http.StatusOK {
		t.Fatalf("status %d", l.status)
	}
	box.request("gate.wait")
	l.until(topicPending)
	box.request("lamp")
	l.until(topicCertificates)
	conditions <- []handover.Condition{{What: "Something.", Mend: "Mend it."}}
	l.until(topicConditions)
	box.clock.pass(time.Minute)
	l.until(topicMinute)
	if err := box.store.Append(audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.ProfileSwitched, Outcome: audit.OutcomeSuccess}); err != nil {
		t.Fatal(err)
	}
	id := l.until(topicProfiles)
	l.cancel()
	eventually(t, "the feed forgets who went", func() bool { return streamsOf(box) == 0 })

	again := box.listen(who, header("Last-Event-ID", id))
	box.request("lamp-2")
	if name, data, _ := again.event(); name != "change" || data == strings.Join(allTopics(), " ") || !strings.Contains(data, topicAudit) {
		t.Errorf("a client that missed nothing is told %s %s", name, data)
	}
	again.cancel()
	late := box.listen(who, header("Last-Event-ID", id))
	if name, data, _ := late.event(); name != "change" || len(strings.Fields(data)) != len(allTopics()) {
		t.Errorf("a client that missed something is told %s %s", name, data)
	}
}

// TestEventsJustBefore: what happened between a page and its stream is told.
func TestEventsJustBefore(t *testing.T) {
	box := quickFeed(newBox(t))
	who := bearer(box.claimAs(administrator, auditor))
	box.clock.pass(10 * time.Minute)
	box.request("lamp")
	l := box.listen(who)
	if _, data, _ := l.event(); !strings.Contains(data, topicCertificates) {
		t.Errorf("told %q", data)
	}
}

// TestEventStreamsEnd: with the credential, and when the box stops.
func TestEventStreamsEnd(t *testing.T) {
	stopping := make(chan struct{})
	box := quickFeed(newBox(t, func(c *Config) { c.Stopping = stopping }))
	out := box.mustClaim()
	session := box.submit("/sign-in", map[string][]string{"user": {"alice"}, "password": {out.Password}}).cookie(t)
	box.clock.pass(time.Minute)
	l, other := box.listen(withCookie(session)), box.listen(bearer(out.Token))
	box.submit("/sign-out", nil, withCookie(session)).says(t, http.StatusSeeOther) // its record wakes the streams
	for {
		name, data, _ := l.event()
		if name == "end" && data == "signed-out" {
			break
		}
		if name == "" {
			t.Fatal("the stream of a session that ended says nothing of it")
		}
	}
	if name, _, _ := l.event(); name != "" {
		t.Errorf("after its end the stream says %s", name)
	}
	other.until(topicAudit)
	close(stopping)
	for {
		name, data, _ := other.event()
		if name == "end" && data == "stopping" {
			break
		}
		if name == "" {
			t.Fatal("the stream of a box that stops says nothing of it")
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := box.Config.Shutdown(ctx); err != nil {
		t.Errorf("streams hold the shutdown back: %v", err)
	}
}

// aging is a listener whose connections meet their deadlines when a test says so, and not before.
type aging struct {
	net.Listener

	mu    sync.Mutex
	conns []*agingConn
}

func (l *aging) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &agingConn{Conn: conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c, nil
}

// pass has all deadlines pass that are set, and counts them.
func (l *aging) pass() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		n += c.pass()
	}
	return n
}

type agingConn struct {
	net.Conn

	mu          sync.Mutex
	read, write bool // has a deadline
}

func (c *agingConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *agingConn) SetReadDeadline(t time.Time) error {
	return c.set(t, &c.read, c.Conn.SetReadDeadline)
}

func (c *agingConn) SetWriteDeadline(t time.Time) error {
	return c.set(t, &c.write, c.Conn.SetWriteDeadline)
}

// set keeps what is to come. A deadline that is over already is how a server ends a read.
func (c *agingConn) set(t time.Time, has *bool, now func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *has = t.After(time.Now()); *has {
		t = time.Time{}
	}
	return now(t)
}

func (c *agingConn) pass() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read {
		n++
		_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	if c.write {
		n++
		_ = c.Conn.SetWriteDeadline(time.Unix(1, 0))
	}
	return n
}

// TestEventStreamsOutliveTimeouts: the server's timeouts, which are for requests, do not cut a stream off.
func TestEventStreamsOutliveTimeouts(t *testing.T) {
	box := quickFeed(newBox(t))
	who := bearer(box.claimAs(administrator, auditor))
	box.Close()
	box.Server = httptest.NewUnstartedServer(box.console.handler())
	clients := &aging{Listener: box.Server.Listener}
	box.Server.Listener = clients
	limits := box.Server.Config
	limits.ReadTimeout, limits.WriteTimeout, limits.IdleTimeout = time.Hour, time.Hour, time.Hour
	box.StartTLS()
	t.Cleanup(box.Close)
	box.clock.pass(10 * time.Minute) // nothing is on its way to the client while time passes
	l := box.listen(who)
	if clients.pass() == 0 {
		t.Error("no deadline is set, not even for the client to take an event")
	}
	box.request("lamp")
	l.until(topicCertificates)
}

// TestEventStreamsAreBounded: for one person, and in all; a stream that ends makes room.
func TestEventStreamsAreBounded(t *testing.T) {
	box := quickFeed(newBox(t))
	who := bearer(box.claimAs(administrator, auditor))
	var open []*listener
	for range maxStreamsEach {
		open = append(open, box.listen(who))
	}
	stream := header("Accept", mediaEvents)
	box.get("/events", who, stream).checkProblem(t, 503, "busy-events")
	open[0].cancel()
	eventually(t, "room for another", func() bool { return streamsOf(box) < maxStreamsEach })
	if l := box.listen(who); l.status != http.StatusOK {
		t.Errorf("status %d where there is room", l.status)
	}
	for i := range maxStreams - maxStreamsEach {
		if _, err := box.console.feed.open(strings.Repeat("x", 1+i/maxStreamsEach), ""); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, err := box.console.feed.open("somebody else", ""); err != errStreams {
		t.Errorf("one more than all: %v", err)
	}
	box.get("/events", who).checkProblem(t, 422, "input")
	box.get("/events", stream).checkProblem(t, 401, "unauthenticated")
}

// TestSlowClients: what waits for a client that does not read is bounded by the topics.
func TestSlowClients(t *testing.T) {
	s := &stream{wake: make(chan struct{}, 1), topics: map[string]bool{}}
	for i := range 10_000 {
		s.add(allTopics(), uint64(i))
	}
	topics, size := s.take()
	if len(topics) != len(allTopics()) || size != 9999 {
		t.Errorf("%d topics wait, of a log of %d", len(topics), size)
	}
	if topics, _ := s.take(); len(topics) != 0 {
		t.Errorf("told twice: %v", topics)
	}
}

// TestTopics: every action of the log is about something.
func TestTopics(t *testing.T) {
	for _, a := range audit.Actions() {
		for _, protocol := range []string{"", "scep"} {
			topics := topicsOf([]audit.Record{{Action: a, Protocol: protocol, Outcome: audit.OutcomeSuccess}})
			if len(topics) < 2 || !slices.Contains(topics, topicAudit) {
				t.Errorf("%s (%q): %v", a, protocol, topics)
			}
			for _, one := range topics {
				if !slices.Contains(allTopics(), one) {
					t.Errorf("%s: unknown topic %s", a, one)
				}
			}
		}
	}
}
