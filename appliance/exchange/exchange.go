// Package exchange is the manners of the listeners that devices and verifiers talk to: one write for an answer, one line in the log, a
// bound on what is worked on at a time.
package exchange

import (
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// ContentTypeText is the type of a refusal.
const ContentTypeText = "text/plain"

// Exchange is one HTTP request on its way through, and what its log line will say.
type Exchange struct {
	W  http.ResponseWriter
	R  *http.Request
	ID string // in the log and in the text of internal errors

	Source  netip.Addr
	Serial  string // of the certificate it was about
	Outcome string // refused, busy or error, or a word of the protocol's own
	Reason  string // why it was refused
	Err     error  // the chain behind an error
	Status  int

	since time.Time
}

// New begins an exchange with whoever is at source.
func New(w http.ResponseWriter, r *http.Request, source netip.Addr) Exchange {
	return Exchange{W: w, R: r, ID: rand.Text()[:12], Source: source, since: time.Now()}
}

// OmitDate leaves net/http's Date out of the answer, for clients that read headers into a small buffer (strongSwan: all of them within
// 1024 bytes) and have no use for it.
func (x *Exchange) OmitDate() { x.W.Header()["Date"] = nil }

// Refuse answers with an HTTP error: a status and one line of text that says what to do.
func (x *Exchange) Refuse(status int, reason string) {
	x.Outcome, x.Reason = "refused", reason
	if status == http.StatusInternalServerError {
		x.Outcome = "error"
	}
	x.Reply(status, ContentTypeText, []byte(reason+"\n"))
}

// RetryLater answers 503, at a time of its own for each client, so that those refused together do not return together.
func (x *Exchange) RetryLater(reason string) {
	x.RetryAfter(time.Duration(5+mrand.IntN(11)) * time.Second)
	x.Refuse(http.StatusServiceUnavailable, reason)
	x.Outcome = "busy"
}

// RetryAfter tells the client when to come back, in seconds: no device reads a date there.
func (x *Exchange) RetryAfter(d time.Duration) {
	x.W.Header().Set("Retry-After", strconv.Itoa(int(d/time.Second)))
}

// Begin sets what every answer has: its status, its length, and its type where it has one.
func (x *Exchange) Begin(status int, contentType string, length int) {
	h := x.W.Header()
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	if status != http.StatusNoContent { // RFC 9110 §8.6 forbids it there
		h.Set("Content-Length", strconv.Itoa(length))
	}
	x.Status = status
}

// Reply writes the whole answer: few headers and the body in one write, never chunked, because small clients read an answer with a
// fixed buffer. The body is left out where the request is a HEAD.
func (x *Exchange) Reply(status int, contentType string, body []byte) {
	x.Begin(status, contentType, len(body))
	x.W.WriteHeader(status)
	if len(body) == 0 || x.R.Method == http.MethodHead {
		return
	}
	if _, err := x.W.Write(body); err != nil && x.Err == nil {
		x.Err = err // the answer may not have arrived; a client that sends the request again gets it again
	}
}

// maxLogged bounds a reason and an error in the log, in bytes: they may repeat what was sent, and a few lines of that would be all the log.
const maxLogged = 4 << 10

// Log writes the one line of an exchange; about is what the protocol has to say of it, and what of that is empty is left out. Nothing in
// it may be what a device proves itself with.
func (x *Exchange) Log(log *slog.Logger, protocol string, about ...slog.Attr) {
	attrs := []slog.Attr{
		slog.String("request", x.ID),
		slog.String("source", x.Source.String()),
		slog.String("outcome", x.Outcome),
		slog.Int("status", x.Status),
		slog.Duration("took", time.Since(x.since)),
	}
	for _, a := range append(about, slog.String("serial", x.Serial), slog.String("reason", x.Reason[:min(len(x.Reason), maxLogged)])) {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	if x.Err != nil {
		text := x.Err.Error()
		attrs = append(attrs, slog.String("error", text[:min(len(text), maxLogged)]))
	}
	level := slog.LevelInfo
	if x.Outcome == "error" {
		level = slog.LevelError
	}
	log.LogAttrs(x.R.Context(), level, protocol, attrs...)
}

// RemoteAddr is the address at the other end of the connection, invalid if that is not an IP connection.
func RemoteAddr(r *http.Request) netip.Addr { return AddrOf(r.RemoteAddr) }

// AddrOf reads "IP:port"; the address is invalid where that is something else. It has no zone and is IPv4 where it can be: a host has one
// address, however it is written.
func AddrOf(peer string) netip.Addr {
	ap, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// PeerCertificates are what the other end of the connection showed in TLS, its own first.
func PeerCertificates(r *http.Request) []*x509.Certificate {
	if r.TLS == nil {
		return nil
	}
	return r.TLS.PeerCertificates
}
