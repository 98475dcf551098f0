// Package syslog sends the audit log to a receiver elsewhere, as RFC 5424 messages over TLS (RFC 5425).
//
// It reads behind: what is written to the log waits for nobody, and what was not delivered waits on the
// disk. Delivery is in order and at least once. Syslog has no acknowledgement of its own, so a record
// counts as delivered when the receiver's kernel acknowledged it and the connection stood for a while
// after, in which the receiver's process reads it; or when the receiver closed the connection after
// the box had. Every connection begins with some records before those that count.
//
// # What someone on the way gains
//
// TLS keeps them from reading and changing what is sent. Who forges TCP acknowledgements makes the box
// believe that records arrived which did not: the receiver sees the gap in the records' indexes, and that the
// next checkpoint does not fit what it has.
//
// A receiver that somebody took over can keep records from counting as delivered, which shows (see
// Status.Waiting), and fill the disk that way. What it sends is cut off: no receiver has anything to say.
package syslog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

const (
	pageRecords  = 64   // read at a time: what others wait for, and what is held in memory
	roundRecords = 4096 // sent before the receiver's kernel has to have all of them
	rewind       = 256  // records that count as delivered and come again with each connection

	patience = 30 * time.Second // for a connection, a write, or the receiver's kernel to take a round
	maxPause = time.Minute      // between attempts
	maxSaid  = 64 << 10         // bytes that a receiver sends before the connection is ended
)

// Config is a stream to one receiver.
type Config struct {
	Store    *store.Store
	Address  string                // host and port; the host is what its certificate names
	Roots    func() *x509.CertPool // whom that chains to, asked at each connection
	Facility int                   // RFC 5424 §6.2.1
	Hostname string                // of the box, as messages carry it
	Site     string                // its name
	Version  string                // of the site

	// Certificate is what the box shows a receiver that asks, if it may be a client's (extended key
	// usage clientAuth or none); nil for none.
	Certificate func() (*tls.Certificate, error)
	Now         func() time.Time
	Log         *slog.Logger

	tick     time.Duration // between looks at the log; 0: a second
	settle   time.Duration // how long a connection has to stand; 0: ten seconds
	farewell time.Duration // for the receiver to close after the box did; 0: five seconds
}

// Stream sends the log to its receiver while Run runs.
type Stream struct {
	config Config

	mu     sync.Mutex
	status Status
}

// Status is where a stream stands.
type Status struct {
	Connected bool
	Since     time.Time // that it is connected, or is not
	Err       error     // why it is not; nil before the first attempt and while it is
	Delivered uint64    // records below are with the receiver
	Lag       uint64    // records of the log that are not
	Waiting   time.Time // since when none of them was delivered, connected or not; zero where there are none
}

// New makes a stream; Run runs it. The error is the store's.
func New(c Config) (*Stream, error) {
	if c.tick == 0 {
		c.tick = time.Second
	}
	if c.settle == 0 {
		c.settle = 10 * time.Second
	}
	if c.farewell == 0 {
		c.farewell = 5 * time.Second
	}
	if c.Certificate == nil {
		c.Certificate = func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	}
	cursor, err := c.Store.Delivered(c.Address)
	if err != nil {
		return nil, err
	}
	return &Stream{config: c, status: Status{Since: c.Now(), Delivered: cursor.Next}}, nil
}

// Status says where the stream stands now.
func (s *Stream) Status() Status {
	size, _, err := s.config.Store.LogHead()
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	if err == nil && size > status.Delivered {
		status.Lag = size - status.Delivered
	}
	if status.Lag == 0 {
		s.status.Waiting = time.Time{}
	} else if s.status.Waiting.IsZero() {
		s.status.Waiting = s.config.Now()
	}
	status.Waiting = s.status.Waiting
	return status
}

// Run sends until ctx ends, then closes the connection and waits a little for the receiver to have all of
// it. No trouble with the receiver ends it.
func (s *Stream) Run(ctx context.Context) {
	pause := s.config.tick
	for ctx.Err() == nil {
		progress, err := s.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			pause = s.config.tick
		}
		s.failed(err)
		wait := pause/2 + mrand.N(pause/2+1) // boxes that lost the same receiver do not come back at once
		pause = min(2*pause, maxPause)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// failed remembers why there is no connection, and since when.
func (s *Stream) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected || s.status.Err == nil {
		s.status.Since = s.config.Now()
		s.config.Log.Warn("the audit log's receiver is not reached", "address", s.config.Address, "err", err)
	}
	s.status.Connected, s.status.Err = false, err
}

func (s *Stream) connected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Connected, s.status.Err, s.status.Since = true, nil, s.config.Now()
	s.config.Log.Info("the audit log is sent", "address", s.config.Address, "delivered", s.status.Delivered)
}

// connect dials the receiver and sends until that ends; progress says that it was one to send by.
func (s *Stream) connect(ctx context.Context) (progress bool, err error) {
	dialing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	host, _, err := net.SplitHostPort(s.config.Address)
	if err != nil {
		return false, err
	}
	raw, err := (&net.Dialer{}).DialContext(dialing, "tcp", s.config.Address)
	if err != nil {
		return false, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: s.config.Roots(), Time: s.config.Now, GetClientCertificate: s.clientCertificate,
	})
	defer conn.Close() // what it may say was said before
	if err := conn.HandshakeContext(dialing); err != nil {
		return false, fmt.Errorf("TLS with %s: %w", s.config.Address, err)
	}
	cursor, err := s.config.Store.Delivered(s.config.Address)
	if err != nil {
		return false, err
	}
	x := &session{stream: s, conn: conn, tcp: raw.(*net.TCPConn), next: cursor.Next - min(cursor.Next, rewind), ended: make(chan error, 1)}
	x.signed, x.confirmed = x.next, cursor.Next
	go func() { // a receiver says nothing: what comes is its end
		_, err := io.CopyN(io.Discard, conn, maxSaid)
		if err == nil {
			err = errTalks
		}
		x.ended <- err
	}()
	err = x.run(ctx)
	return x.progress, err
}

var errTalks = errors.New("it sends data, which no syslog receiver does")

// clientCertificate is the box's own where that may be a client's. One that is a server's alone is refused by
// receivers, some of which take clients without.
func (s *Stream) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cert, err := s.config.Certificate()
	if err != nil || cert.Leaf == nil {
		return &tls.Certificate{}, err
	}
	usages := cert.Leaf.ExtKeyUsage
	if len(usages)+len(cert.Leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(usages, x509.ExtKeyUsageClientAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return &tls.Certificate{}, nil
	}
	return cert, nil
}

// session is one connection.
type session struct {
	stream *Stream
	conn   *tls.Conn
	tcp    *net.TCPConn
	ended  chan error // the receiver's end, once

	next      uint64 // record to be sent
	signed    uint64 // size of the last checkpoint that was sent, or below which none is
	confirmed uint64 // as the cursor is
	marks     []mark // what the receiver's kernel has and does not count yet, oldest first
	buffer    []byte
	sent      uint64 // bytes of messages
	progress  bool   // the connection stands
}

// mark says that the receiver's kernel had all records below next at a time.
type mark struct {
	next uint64
	at   time.Time
}

// run sends in rounds until ctx or the connection ends.
func (x *session) run(ctx context.Context) error {
	began := time.Now()
	for {
		x.stream.Status() // to see when something begins to wait
		before := x.sent
		isMore, err := x.round(ctx)
		if err == nil && x.sent > before {
			err = x.acknowledged(ctx)
		}
		if err == nil {
			err = x.count()
		}
		if err == nil && !isMore {
			err = x.wait(ctx, x.stream.config.tick)
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		if ctx.Err() != nil {
			return x.close()
		}
		// A receiver that wants another certificate of the box's says so after TLS 1.3's handshake.
		if !x.progress && time.Since(began) >= x.stream.config.tick {
			x.progress = true
			x.stream.connected()
		}
	}
}

// wait waits; the error is that of the connection's end.
func (x *session) wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-x.ended:
		x.ended <- err
		return fmt.Errorf("%s closed the connection: %w", x.stream.config.Address, err)
	case <-time.After(d):
		return nil
	}
}

// round sends up to roundRecords, and the checkpoints over what was sent; isMore says that there are more.
func (x *session) round(ctx context.Context) (isMore bool, err error) {
	size, _, err := x.stream.config.Store.LogHead()
	if err != nil {
		return false, err
	}
	for end := x.next + roundRecords; x.next < min(size, end); {
		if err := x.page(min(x.next+pageRecords, size, end)); err != nil {
			return false, err
		}
		if ctx.Err() != nil {
			return false, nil
		}
	}
	return x.next < size, x.checkpoints()
}

// page sends the records up to one, and the checkpoints over them.
func (x *session) page(to uint64) error {
	st := x.stream.config.Store
	leaves, err := st.Leaves(x.next, to)
	if err != nil {
		return err
	}
	if uint64(len(leaves)) != to-x.next {
		if first := st.Removed().Before; first > x.next { // delivered before, by retention's own rule
			x.next, x.signed = first, max(x.signed, first)
			return nil
		}
		return fmt.Errorf("one of the audit records %d to %d is missing on the disk", x.next, to-1)
	}
	for i, leaf := range leaves {
		x.buffer = x.stream.config.record(x.buffer, x.next+uint64(i), leaf)
	}
	if err := x.flush(); err != nil {
		return err
	}
	x.next = to
	return x.checkpoints()
}

// checkpoints sends those over what was sent.
func (x *session) checkpoints() error {
	for {
		page, last, err := x.stream.config.Store.Checkpoints(x.signed, 1)
		if err != nil || len(page) == 0 || last > x.next {
			return err
		}
		x.buffer = x.stream.config.checkpoint(x.buffer, last, page[0])
		if err := x.flush(); err != nil {
			return err
		}
		x.signed = last
	}
}

// flush sends what is in the buffer.
func (x *session) flush() error {
	defer func() { x.buffer = x.buffer[:0] }()
	if err := x.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := x.conn.Write(x.buffer)
	x.sent += uint64(n)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // the receiver's last word says more
		_ = x.tcp.CloseRead() // what has come is read still
		ended := <-x.ended
		x.ended <- ended
		err = errors.Join(err, ended)
	}
	return err
}

// acknowledged waits until the receiver's kernel has everything that was sent.
func (x *session) acknowledged(ctx context.Context) error {
	for waited := time.Duration(0); ; {
		left, err := unacknowledged(x.tcp)
		if err != nil {
			return err
		}
		if !left {
			x.marks = append(x.marks, mark{x.next, time.Now()})
			return nil
		}
		const step = 5 * time.Millisecond
		if waited += step; waited > patience {
			return fmt.Errorf("%s takes nothing of what it is sent", x.stream.config.Address)
		}
		if err := x.wait(ctx, step); err != nil {
			return err
		}
	}
}

// unacknowledged says whether a connection has sent something that the peer's kernel does not have, or has
// it to send.
func unacknowledged(conn *net.TCPConn) (bool, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var info *unix.TCPInfo
	controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return false, fmt.Errorf("asking what was acknowledged: %w", err)
	}
	return info.Unacked > 0 || info.Notsent_bytes > 0, nil
}

// count moves the cursor over what has stood for long enough.
func (x *session) count() error {
	n := 0
	for n < len(x.marks) && time.Since(x.marks[n].at) >= x.stream.config.settle {
		n++
	}
	if n == 0 {
		return nil
	}
	next := x.marks[n-1].next
	x.marks = slices.Delete(x.marks, 0, n)
	return x.deliver(next)
}

func (x *session) deliver(next uint64) error {
	if next <= x.confirmed {
		return nil
	}
	if err := x.stream.config.Store.SetDelivered(store.Cursor{To: x.stream.config.Address, Next: next}); err != nil {
		return err
	}
	x.confirmed = next
	x.stream.mu.Lock()
	defer x.stream.mu.Unlock()
	x.stream.status.Delivered, x.stream.status.Waiting = next, time.Time{}
	return nil
}

// close ends the connection: a receiver that ends it too has read all there was to read.
func (x *session) close() error {
	if err := errors.Join(x.conn.CloseWrite(), x.tcp.CloseWrite()); err != nil {
		return err
	}
	select {
	case err := <-x.ended:
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // not a reset
			return x.deliver(x.next)
		}
		return err
	case <-time.After(x.stream.config.farewell):
		return fmt.Errorf("%s does not close the connection", x.stream.config.Address)
	}
}

// severities of outcomes, RFC 5424 §6.2.1.
func severity(o audit.Outcome) int {
	switch o {
	case audit.OutcomeSuccess, audit.OutcomeBegun:
		return 6 // informational
	case audit.OutcomePending:
		return 5 // notice
	case audit.OutcomeRefused:
		return 4 // warning
	}
	return 3 // error
}
