package est

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
)

// maxBody bounds a request as it is sent, base64 and all; real ones are a few kilobytes.
const maxBody = 64 << 10

const contentTypeText = "text/plain"

// exchange is one HTTP request on its way through, and what its log line will say.
type exchange struct {
	w  http.ResponseWriter
	r  *http.Request
	id string // in the log and in the text of internal errors

	source    netip.Addr
	listener  listener
	peer      []*x509.Certificate // what the device showed in TLS
	profile   *profile            // nil until located
	operation string
	identity  string // whom the request names, "" until it is read
	serial    string // of the certificate that was sent
	outcome   string // issued, replayed, pending, refused, busy, error, or answered for what only reads
	reason    string // why it was refused
	err       error  // the chain behind an error
	status    int
}

// listener is the kind of listener a request came in by.
type listener int

const (
	modern listener = iota // TLS 1.3
	old                    // TLS 1.2 too
)

// serve answers one request and writes its log line.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, l listener) {
	start := time.Now()
	x := &exchange{w: w, r: r, id: rand.Text()[:12], source: s.source(r), listener: l}
	s.dispatch(x)
	s.logLine(x, time.Since(start))
}

// dispatch finds profile and operation and refuses what has neither.
func (s *Server) dispatch(x *exchange) {
	p, operation, reason := s.locate(x.r.URL.Path)
	if p == nil {
		x.refuse(http.StatusNotFound, reason)
		return
	}
	x.profile, x.operation = p, operation
	if x.r.TLS == nil { // a listener that serves this by mistake hands out no keys and takes no passwords
		x.refuse(http.StatusForbidden, "EST is spoken over TLS only: use https")
		return
	}
	if x.listener == old && !p.LegacyTLS {
		x.refuse(http.StatusForbidden, "this profile is not served here: use the listener with TLS 1.3")
		return
	}
	switch operation {
	case opCACerts, opCSRAttrs:
		if x.allows(http.MethodGet) {
			s.read(x)
		}
	case opServerKeyGen:
		if p.keys == nil {
			x.refuse(http.StatusNotFound, "this profile makes no keys: make one on the device and use simpleenroll")
			return
		}
		if x.allows(http.MethodPost) {
			s.enroll(x)
		}
	case opEnroll, opReenroll:
		if x.allows(http.MethodPost) {
			s.enroll(x)
		}
	default:
		x.refuse(http.StatusNotFound, "this operation is not offered: use simpleenroll or simplereenroll")
	}
}

// allows answers 405 to any other method.
func (x *exchange) allows(method string) bool {
	if x.r.Method == method {
		return true
	}
	x.w.Header().Set("Allow", method)
	x.refuse(http.StatusMethodNotAllowed, x.operation+" uses "+method)
	return false
}

// read answers what is public and needs no authentication (RFC 7030 §4.1 and §4.5).
func (s *Server) read(x *exchange) {
	if x.operation == opCSRAttrs {
		x.outcome = "answered"
		if len(x.profile.attributes) == 0 {
			x.reply(http.StatusNoContent, "", nil)
			return
		}
		x.replyBase64("application/csrattrs", x.profile.attributes)
		return
	}
	certificates := x.profile.CACerts()
	if len(certificates) == 0 {
		s.fail(x, enroll.ErrNoAuthority)
		return
	}
	body, err := cms.CertsOnly(certificates)
	if err != nil {
		s.fail(x, err)
		return
	}
	x.outcome = "answered"
	x.replyBase64("application/pkcs7-mime", body)
}

// body reads the body of a request. On a refusal it has answered and ok is false.
func (s *Server) body(x *exchange) (b []byte, ok bool) {
	// A body that is announced as too long is not read at all, one that turns out so not to its end; the connection is closed either
	// way, so what is still on its way is nobody's next request.
	const tooLarge = "the request is larger than 64 KiB"
	if x.r.ContentLength > maxBody {
		x.w.Header().Set("Connection", "close")
		x.refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	}
	b, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, maxBody))
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		x.refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	case err != nil:
		x.err = err
		x.refuse(http.StatusBadRequest, "the request was cut off")
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

// unauthorized answers 401, without a body whatever the reason: Bouncy Castle gives up on any other. libest compares header names with
// capitals as RFC 7235 writes them, which is not how http.Header.Set would.
func (x *exchange) unauthorized(reason string) {
	x.outcome, x.reason = "refused", reason
	if x.profile.Basic {
		x.w.Header()["WWW-Authenticate"] = []string{`Basic realm="est"`}
	}
	x.reply(http.StatusUnauthorized, "", nil)
}

// retryLater answers 503, at a time of its own for each client, so that those refused together do not return together.
func (x *exchange) retryLater(reason string) {
	x.retryAfter(time.Duration(5+mrand.IntN(11)) * time.Second)
	x.refuse(http.StatusServiceUnavailable, reason)
	x.outcome = "busy"
}

// retryAfter tells the client when to come back, in seconds: no EST client reads a date (RFC 7030 §4.2.3).
func (x *exchange) retryAfter(d time.Duration) {
	x.w.Header().Set("Retry-After", strconv.Itoa(int(d/time.Second)))
}

// replyBase64 answers with one object in base64, its lines as this client reads them.
func (x *exchange) replyBase64(contentType string, der []byte) {
	x.w.Header().Set("Content-Transfer-Encoding", "base64")
	x.reply(http.StatusOK, contentType, linesFor(x.r).encode(der))
}

// reply writes the whole answer: few headers and the body in one write, never chunked, because small clients read an answer with a
// fixed buffer (strongSwan: all headers within 1024 bytes). net/http's Date is suppressed for the same reason; no EST client has a use
// for it.
func (x *exchange) reply(status int, contentType string, body []byte) {
	h := x.w.Header()
	h["Date"] = nil
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	if status != http.StatusNoContent { // RFC 9110 §8.6 forbids it there
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	x.status = status
	if len(body) > oneWrite && linesFor(x.r) == (lines{}) && x.replyAtOnce(body) {
		return
	}
	x.w.WriteHeader(status)
	if len(body) == 0 {
		return
	}
	if _, err := x.w.Write(body); err != nil && x.r.Method != http.MethodHead && x.err == nil {
		x.err = err // the answer may not have arrived; a client that sends the request again soon gets it again
	}
}

// oneWrite is how much of a body net/http hands on together with the headers, which have the rest of its buffer of 4096 bytes.
const oneWrite = 3 << 10

// replyTimeout is how long a client may take to read an answer of replyAtOnce.
const replyTimeout = 30 * time.Second

// replyAtOnce writes an answer in one piece, so in one TLS record, and ends the connection. strongSwan up to 5.9.8 reads what is behind
// its first read in one other, and takes what of it came in another record than the headers for all there is. It returns false, and
// nothing is written, where the connection cannot be had.
func (x *exchange) replyAtOnce(body []byte) bool {
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return false
	}
	defer conn.Close()
	x.w.Header().Set("Connection", "close")
	answer := bytes.NewBuffer(make([]byte, 0, 1<<10+len(body))) // large enough that no copy of a private key is left behind
	fmt.Fprintf(answer, "HTTP/1.1 %d %s\r\n", x.status, http.StatusText(x.status))
	x.w.Header().Write(answer)
	answer.WriteString("\r\n")
	answer.Write(body)
	defer clear(answer.Bytes())
	err = conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	if err == nil {
		_, err = conn.Write(answer.Bytes())
	}
	if err != nil && x.err == nil {
		x.err = err
	}
	return true
}

// logLine writes the one line of an exchange. It holds nothing that a device proves itself with.
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
	add("identity", x.identity)
	add("serial", x.serial)
	add("reason", x.reason)
	if x.err != nil {
		add("error", x.err.Error())
	}
	level := slog.LevelInfo
	if x.outcome == "error" {
		level = slog.LevelError
	}
	s.log.LogAttrs(x.r.Context(), level, "est", attrs...)
}
