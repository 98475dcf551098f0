package est

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

// maxBody bounds a request as it is sent, base64 and all; real ones are a few kilobytes.
const maxBody = 64 << 10

// call is one HTTP request on its way through, and what its log line will say: as outcome issued, replayed, pending, refused, busy,
// error, or answered for what only reads.
type call struct {
	exchange.Exchange
	listener  listener
	peer      []*x509.Certificate // what the device showed in TLS
	profile   *profile            // nil until located
	operation string
	identity  string // whom the request names, "" until it is read
}

// listener is the kind of listener a request came in by.
type listener int

const (
	modern listener = iota // TLS 1.3
	old                    // TLS 1.2 too
)

// serve answers one request and writes its log line.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, l listener) {
	x := &call{Exchange: exchange.New(w, r, s.config.Source(r)), listener: l}
	x.OmitDate() // no EST client has a use for it
	s.dispatch(x)
	s.count(x)
	profile := ""
	if x.profile != nil {
		profile = x.profile.Name
	}
	x.Log(s.config.Log, "est", slog.String("profile", profile), slog.String("operation", x.operation), slog.String("identity", x.identity))
}

// dispatch finds profile and operation and refuses what has neither.
func (s *Server) dispatch(x *call) {
	p, operation, reason := s.locate(x.R.URL.Path)
	if p == nil {
		x.Refuse(http.StatusNotFound, reason)
		return
	}
	x.profile, x.operation = p, operation
	if x.R.TLS == nil { // a listener that serves this by mistake hands out no keys and takes no passwords
		x.Refuse(http.StatusForbidden, "EST is spoken over TLS only: use https")
		return
	}
	if x.listener == old && !p.LegacyTLS {
		x.Refuse(http.StatusForbidden, "this profile is not served here: use the listener with TLS 1.3")
		return
	}
	switch operation {
	case opCACerts, opCSRAttrs:
		if x.allows(http.MethodGet) {
			s.read(x)
		}
	case opServerKeyGen:
		if p.keys == nil {
			x.Refuse(http.StatusNotFound, "this profile makes no keys: make one on the device and use simpleenroll")
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
		x.Refuse(http.StatusNotFound, "this operation is not offered: use simpleenroll or simplereenroll")
	}
}

// allows answers 405 to any other method.
func (x *call) allows(method string) bool {
	if x.R.Method == method {
		return true
	}
	x.W.Header().Set("Allow", method)
	x.Refuse(http.StatusMethodNotAllowed, x.operation+" uses "+method)
	return false
}

// read answers what is public and needs no authentication (RFC 7030 §4.1 and §4.5).
func (s *Server) read(x *call) {
	if x.operation == opCSRAttrs {
		x.Outcome = "answered"
		attributes := x.profile.attributes
		if isLibest(x.R) {
			attributes = x.profile.bare
		}
		if len(attributes) == 0 {
			x.reply(http.StatusNoContent, "", nil)
			return
		}
		x.replyBase64("application/csrattrs", attributes)
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
	x.Outcome = "answered"
	x.replyBase64("application/pkcs7-mime", body)
}

// body reads the body of a request. On a refusal it has answered and ok is false.
func (s *Server) body(x *call) (b []byte, ok bool) {
	// A body that is announced as too long is not read at all, one that turns out so not to its end; the connection is closed either
	// way, so what is still on its way is nobody's next request.
	const tooLarge = "the request is larger than 64 KiB"
	if x.R.ContentLength > maxBody {
		x.W.Header().Set("Connection", "close")
		x.Refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	}
	b, err := io.ReadAll(http.MaxBytesReader(x.W, x.R.Body, maxBody))
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		x.Refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	case err != nil:
		x.Err = err
		x.Refuse(http.StatusBadRequest, "the request was cut off")
		return nil, false
	}
	return b, true
}

// unauthorized answers 401, without a body whatever the reason: Bouncy Castle gives up on any other. libest compares header names with
// capitals as RFC 7235 writes them, which is not how http.Header.Set would.
func (x *call) unauthorized(reason string) {
	x.Outcome, x.Reason = "refused", reason
	if x.profile.Basic {
		x.W.Header()["WWW-Authenticate"] = []string{`Basic realm="est"`}
	}
	x.reply(http.StatusUnauthorized, "", nil)
}

// replyBase64 answers with one object in base64, its lines as this client reads them.
func (x *call) replyBase64(contentType string, der []byte) {
	x.W.Header().Set("Content-Transfer-Encoding", "base64")
	x.reply(http.StatusOK, contentType, linesFor(x.R).encode(der))
}

// reply writes the whole answer, a long one as the client at its other end needs it.
func (x *call) reply(status int, contentType string, body []byte) {
	if len(body) > oneWrite && linesFor(x.R) == (lines{}) && x.replyAtOnce(status, contentType, body) {
		return
	}
	x.Reply(status, contentType, body)
}

// oneWrite is how much of a body net/http hands on together with the headers, which have the rest of its buffer of 4096 bytes.
const oneWrite = 3 << 10

// replyTimeout is how long a client may take to read an answer of replyAtOnce.
const replyTimeout = 30 * time.Second

// replyAtOnce writes an answer in one piece, so in one TLS record, and ends the connection. strongSwan up to 5.9.8 reads what is behind
// its first read in one other, and takes what of it came in another record than the headers for all there is. It returns false, and
// nothing is written, where the connection cannot be had.
func (x *call) replyAtOnce(status int, contentType string, body []byte) bool {
	conn, _, err := http.NewResponseController(x.W).Hijack()
	if err != nil {
		return false
	}
	defer conn.Close()
	x.Begin(status, contentType, len(body))
	x.W.Header().Set("Connection", "close")
	answer := bytes.NewBuffer(make([]byte, 0, 1<<10+len(body))) // large enough that no copy of a private key is left behind
	fmt.Fprintf(answer, "HTTP/1.1 %d %s\r\n", x.Status, http.StatusText(x.Status))
	x.W.Header().Write(answer)
	answer.WriteString("\r\n")
	answer.Write(body)
	defer clear(answer.Bytes())
	err = conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	if err == nil {
		_, err = conn.Write(answer.Bytes())
	}
	if err != nil && x.Err == nil {
		x.Err = err
	}
	return true
}
