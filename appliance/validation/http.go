package validation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	mrand "math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
)

const (
	contentTypeText = "text/plain"
	contentTypeCRL  = "application/pkix-crl"  // RFC 2585 §4.2
	contentTypeCert = "application/pkix-cert" // RFC 2585 §4.1
	contentTypeOCSP = "application/ocsp-response"
)

// freshFor is how long a cache between here and a verifier may answer by itself. What was revoked is
// known everywhere after it; asking again costs little, as every answer has a strong ETag.
const freshFor = 10 * time.Minute

// exchange is one HTTP request on its way through, and what its log line will say.
type exchange struct {
	w  http.ResponseWriter
	r  *http.Request
	id string

	source    netip.Addr
	authority string
	what      string // crl, certificate or ocsp
	serial    string // the first one an OCSP request asks for
	outcome   string // answered, cached, unchanged, refused, busy or error
	reason    string // why it was refused
	err       error  // the chain behind an error
	status    int
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{w: w, r: r, id: rand.Text()[:12], source: s.source(r)}
	s.dispatch(x)
	s.logLine(x, time.Since(start))
}

// dispatch finds authority and document. The path is taken as it was sent, escapes included.
func (s *Server) dispatch(x *exchange) {
	path := x.r.URL.EscapedPath()
	if rest, ok := strings.CutPrefix(path, "/ocsp/"); ok {
		name, request, _ := strings.Cut(rest, "/")
		for _, a := range s.authorities() {
			if a.Name == name && a.answersOCSP() {
				x.authority, x.what = name, "ocsp"
				s.ocsp(x, a, request)
				return
			}
		}
	}
	if file, ok := strings.CutPrefix(path, "/pki/"); ok {
		for _, a := range s.authorities() {
			for _, g := range a.Generations {
				switch base := g.file(a.Name); file {
				case base + ".crl":
					x.authority, x.what = base, "crl"
					s.crl(x, g)
					return
				case base + ".cer":
					x.authority, x.what = base, "certificate"
					s.certificate(x, g)
					return
				}
			}
		}
	}
	x.refuse(http.StatusNotFound, "nothing is published here: use /pki/<authority>.crl, /pki/<authority>.cer or /ocsp/<authority>")
}

// file is the name of the generation's files, without what follows the last dot.
func (g Generation) file(authority string) string {
	if g.Number == 1 {
		return authority
	}
	return authority + "." + strconv.Itoa(g.Number)
}

// crl answers with the generation's revocation list.
func (s *Server) crl(x *exchange, g Generation) {
	if !x.reads() {
		return
	}
	list, err := s.engine.IssuerCRL(x.r.Context(), g.Issuer)
	if err != nil {
		x.err = err
		if isForLater(err) {
			x.retryLater("the revocation list cannot be signed now: try again later")
		} else {
			x.refuse(http.StatusInternalServerError, "internal error, see the box's log for request "+x.id)
		}
		return
	}
	x.publish(document{
		contentType: contentTypeCRL, body: list.DER, etag: etagOf(list.DER),
		modified: list.ThisUpdate, expires: list.NextUpdate, maxAge: freshUntil(s.now(), list.NextUpdate),
	})
}

// certificate answers with the generation's CA certificate.
func (s *Server) certificate(x *exchange, g Generation) {
	if !x.reads() {
		return
	}
	cert := g.Issuer.Certificate()
	x.publish(document{
		contentType: contentTypeCert, body: cert.Raw, etag: etagOf(cert.Raw),
		modified: cert.NotBefore, expires: cert.NotAfter, maxAge: freshUntil(s.now(), cert.NotAfter),
	})
}

// isForLater reports whether the same request may be answered later; so may one whose sender did not wait.
func isForLater(err error) bool {
	for _, later := range []error{enroll.ErrBusy, enroll.ErrClock, enroll.ErrUnavailable, enroll.ErrClosed, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, later) {
			return true
		}
	}
	return false
}

// freshUntil is freshFor, or what is left until end.
func freshUntil(now, end time.Time) time.Duration { return max(0, min(freshFor, end.Sub(now))) }

// etagOf is a strong entity tag: other bytes have another.
func etagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// reads reports whether the request is a GET or HEAD; anything else it has answered.
func (x *exchange) reads() bool {
	if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
		return true
	}
	x.w.Header().Set("Allow", "GET, HEAD")
	x.refuse(http.StatusMethodNotAllowed, "use GET")
	return false
}

// document is something public that stays the same for a while.
type document struct {
	contentType       string
	body              []byte
	etag              string
	modified, expires time.Time
	maxAge            time.Duration
}

// publish answers with a document, or 304 where the client has it (RFC 9110 §13.2.2). There are no
// ranges: half a signed document is of no use.
func (x *exchange) publish(d document) {
	h := x.w.Header()
	h.Set("ETag", d.etag)
	h.Set("Last-Modified", d.modified.UTC().Format(http.TimeFormat))
	h.Set("Expires", d.expires.UTC().Format(http.TimeFormat))
	h.Set("Cache-Control", "max-age="+strconv.Itoa(int(d.maxAge/time.Second))+", public, no-transform, must-revalidate") // RFC 5019 §6.2
	if x.outcome == "" {
		x.outcome = "answered"
	}
	if x.has(d) {
		x.outcome, x.status = "unchanged", http.StatusNotModified
		x.w.WriteHeader(http.StatusNotModified)
		return
	}
	x.reply(http.StatusOK, d.contentType, d.body)
}

// has reports whether the client says that it has the document. An entity tag counts before a date.
func (x *exchange) has(d document) bool {
	if tags := x.r.Header.Values("If-None-Match"); len(tags) > 0 {
		for tag := range strings.SplitSeq(strings.Join(tags, ","), ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == d.etag {
				return true
			}
		}
		return false
	}
	since, err := http.ParseTime(x.r.Header.Get("If-Modified-Since"))
	return err == nil && !d.modified.Truncate(time.Second).After(since)
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

// reply writes the whole answer: the body in one write, never chunked.
func (x *exchange) reply(status int, contentType string, body []byte) {
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.status = status
	x.w.WriteHeader(status)
	if x.r.Method == http.MethodHead {
		return
	}
	if _, err := x.w.Write(body); err != nil && x.err == nil {
		x.err = err // the client asks again
	}
}

// logLine writes the one line of an exchange.
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
	add("what", x.what)
	add("authority", x.authority)
	add("serial", x.serial)
	add("reason", x.reason)
	if x.err != nil {
		add("error", x.err.Error())
	}
	level := slog.LevelInfo
	if x.outcome == "error" {
		level = slog.LevelError
	}
	s.log.LogAttrs(x.r.Context(), level, "validation", attrs...)
}
