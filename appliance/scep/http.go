package scep

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// maxBody bounds a PKIOperation by POST; real ones are a few kilobytes. By GET, the server's header limit bounds it.
const maxBody = 1 << 20

// Every connection may have a body of smallBody in memory while it comes in, which is what devices send; of larger ones
// only maxLarge come in at a time, on all listeners together. Slow senders could otherwise fill a small box's memory.
const (
	smallBody = 32 << 10
	maxLarge  = 8
)

const contentTypeText = "text/plain"

// exchange is one HTTP request on its way through, and what its log line will say.
type exchange struct {
	w  http.ResponseWriter
	r  *http.Request
	id string // in the log and in the text of internal errors

	source      netip.Addr
	listener    listener
	client      *x509.Certificate // what the device showed in TLS, verified; nil where none is asked for
	profile     *profile          // nil until located
	offer       *offer            // what profile offers throughout the exchange; nil until its operation is known
	operation   string
	transaction string
	serial      string // of the certificate that was sent
	outcome     string // issued, replayed, pending, refused, busy, error, or answered for what only reads
	reason      string // why it was refused
	err         error  // the chain behind an error
	status      int
}

// listener is the kind of listener a request came in by.
type listener int

const (
	plain        listener = iota // without TLS
	secure                       // TLS that never asks for a client certificate
	mutual                       // TLS that asks for one and leaves its verification to this package
	legacy                       // as secure, for devices without TLS 1.3
	legacyMutual                 // as mutual, for those
)

func (l listener) isMutual() bool { return l == mutual || l == legacyMutual }
func (l listener) isLegacy() bool { return l == legacy || l == legacyMutual }

// serve answers one request and writes its log line.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, l listener) {
	start := time.Now()
	x := &exchange{w: w, r: r, id: rand.Text()[:12], source: s.source(r), listener: l}
	s.dispatch(x)
	s.logLine(x, time.Since(start))
}

// dispatch finds profile and operation and refuses what has neither.
func (s *Server) dispatch(x *exchange) {
	p, reason := s.locate(x.r.URL.Path, x.listener)
	if p == nil {
		x.refuse(http.StatusNotFound, reason)
		return
	}
	x.profile = p
	if x.listener == plain && !p.PlainHTTP {
		x.refuse(http.StatusForbidden, "this profile is not served over plain HTTP: use https")
		return
	}
	if x.listener.isLegacy() && !p.LegacyTLS {
		x.refuse(http.StatusForbidden, "this profile is not served to devices without TLS 1.3: use its other address")
		return
	}
	if x.listener.isMutual() && !s.admit(x) {
		return
	}
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodPost {
		x.w.Header().Set("Allow", "GET, POST")
		x.refuse(http.StatusMethodNotAllowed, "SCEP uses GET and POST")
		return
	}
	operation, message := query(x.r.URL.RawQuery)
	switch operation {
	case "PKIOperation":
		x.operation = operation
		if s.load(x) {
			s.pkiOperation(x, message)
		}
	case "GetCACaps", "GetCACert", "GetNextCACert":
		// message= names a CA by whatever the client calls it, and the path has already said which one: it is not read.
		x.operation = operation
		if x.r.Method != http.MethodGet {
			x.w.Header().Set("Allow", "GET")
			x.refuse(http.StatusMethodNotAllowed, operation+" uses GET")
			return
		}
		if p.Off != nil && p.Off() {
			x.refuse(http.StatusNotFound, profileOff)
			return
		}
		if s.load(x) {
			s.inform(x)
		}
	case "":
		x.refuse(http.StatusBadRequest, "no operation= in the query: use operation=GetCACaps, GetCACert or PKIOperation")
	default:
		x.refuse(http.StatusBadRequest, "this operation is not offered: use operation=GetCACaps, GetCACert or PKIOperation")
	}
}

// load looks up what the profile offers, once for the exchange. On a refusal it has answered and returns false.
func (s *Server) load(x *exchange) bool {
	o, err := x.profile.offer()
	if err != nil {
		s.unable(x, err)
		return false
	}
	x.offer = o
	return true
}

// unable answers an error that is the box's own.
func (s *Server) unable(x *exchange, err error) {
	x.err = err
	if v := s.explain(err); v.status == http.StatusServiceUnavailable {
		x.retryLater(v.text())
		return
	}
	x.refuse(http.StatusInternalServerError, internalError+" (request "+x.id+")")
}

// inform answers the operations that only read what the authority is.
func (s *Server) inform(x *exchange) {
	o := x.offer
	switch {
	case x.operation == "GetCACaps":
		x.reply(http.StatusOK, contentTypeText, o.caps)
	case x.operation == "GetCACert":
		x.reply(http.StatusOK, o.caCertType, o.caCert)
	case o.Next == nil:
		x.refuse(http.StatusNotFound, "there is no next CA certificate: go on with the one of GetCACert")
		return
	default:
		if !s.enter(x.r.Context()) { // the first one has the RA sign
			x.retryLater("the box is busy: try again later")
			return
		}
		defer s.leave()
		b, err := o.nextCACert()
		if err != nil {
			s.unable(x, err)
			return
		}
		x.reply(http.StatusOK, "application/x-x509-next-ca-cert", b)
	}
	x.outcome = "answered"
}

// pkiMessage returns the bytes of a PKIOperation. On a refusal it has answered and ok is false.
func (s *Server) pkiMessage(x *exchange, message string) (b []byte, ok bool) {
	if x.r.Method == http.MethodGet {
		b, err := decodeMessage(message)
		if err != nil {
			x.refuse(http.StatusBadRequest, err.Error())
			return nil, false
		}
		return b, true
	}
	// A body that is announced as too long is not read at all, one that turns out so not to its end; the connection is
	// closed either way, so what is still on its way is nobody's next request.
	const tooLarge = "the message is larger than 1 MiB"
	if x.r.ContentLength > maxBody {
		x.w.Header().Set("Connection", "close")
		x.refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	}
	body := http.MaxBytesReader(x.w, x.r.Body, maxBody)
	b, err := io.ReadAll(io.LimitReader(body, smallBody))
	if err == nil && len(b) == smallBody {
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
		default:
			x.w.Header().Set("Connection", "close")
			x.retryLater("the box is busy with other large messages: try again later")
			return nil, false
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		b = append(b, rest...)
	}
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		x.refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	case err != nil:
		x.err = err
		x.refuse(http.StatusBadRequest, "the message was cut off")
		return nil, false
	}
	return b, true
}

// refuse answers with an HTTP error: a status and one line of text that says what to do.
func (x *exchange) refuse(status int, reason string) {
	x.outcome, x.reason = "refused", reason
	if status == http.StatusInternalServerError {
		x.outcome = "error"
	}
	x.reply(status, contentTypeText, []byte(reason+"\n"))
}

// retryLater answers 503, at a time of its own for each client, so that those refused together do not return together.
func (x *exchange) retryLater(reason string) {
	x.w.Header().Set("Retry-After", strconv.Itoa(5+mrand.IntN(11)))
	x.refuse(http.StatusServiceUnavailable, reason)
	x.outcome = "busy"
}

// reply writes the whole answer: few headers and the body in one write, never chunked, because small clients read an
// answer with a fixed buffer. net/http's Date is suppressed for the same reason; no SCEP client has a use for it.
func (x *exchange) reply(status int, contentType string, body []byte) {
	h := x.w.Header()
	h["Date"] = nil
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.status = status
	x.w.WriteHeader(status)
	if _, err := x.w.Write(body); err != nil && x.r.Method != http.MethodHead && x.err == nil {
		x.err = err // the answer may not have arrived; a client that sends the request again gets it again
	}
}

// logLine writes the one line of an exchange. It holds nothing of the envelope's content, so no challenge.
func (s *Server) logLine(x *exchange, took time.Duration) {
	attrs := []slog.Attr{
		slog.String("request", x.id),
		slog.String("source", x.source.String()),
		slog.String("outcome", x.outcome),
		slog.Int("status", x.status),
		slog.Duration("took", took),
	}
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	if x.profile != nil {
		add("profile", x.profile.Name)
	}
	add("operation", x.operation)
	add("transaction", x.transaction)
	add("serial", x.serial)
	add("reason", x.reason)
	if x.err != nil {
		add("error", x.err.Error())
	}
	level := slog.LevelInfo
	if x.outcome == "error" {
		level = slog.LevelError
	}
	s.log.LogAttrs(x.r.Context(), level, "scep", attrs...)
}
