package validation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
)

const (
	contentTypeCRL  = "application/pkix-crl"  // RFC 2585 §4.2
	contentTypeCert = "application/pkix-cert" // RFC 2585 §4.1
	contentTypeOCSP = "application/ocsp-response"
)

// freshFor is how long a cache between here and a verifier may answer by itself. What was revoked is
// known everywhere after it; asking again costs little, as every answer has a strong ETag.
const freshFor = 10 * time.Minute

// call is one HTTP request on its way through, and what its log line will say: as outcome answered, cached, unchanged, refused, busy or
// error, and as serial the first one an OCSP request asks for.
type call struct {
	exchange.Exchange
	authority string
	what      string // crl, certificate or ocsp
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	x := &call{Exchange: exchange.New(w, r, s.config.Source(r))}
	s.dispatch(x)
	x.Log(s.config.Log, "validation", slog.String("what", x.what), slog.String("authority", x.authority))
}

// dispatch finds authority and document. The path is taken as it was sent, escapes included.
func (s *Server) dispatch(x *call) {
	path := x.R.URL.EscapedPath()
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
	x.Refuse(http.StatusNotFound, "nothing is published here: use /pki/<authority>.crl, /pki/<authority>.cer or /ocsp/<authority>")
}

// file is the name of the generation's files, without what follows the last dot.
func (g Generation) file(authority string) string {
	if g.Number == 1 {
		return authority
	}
	return authority + "." + strconv.Itoa(g.Number)
}

// crl answers with the generation's revocation list.
func (s *Server) crl(x *call, g Generation) {
	if !x.reads() {
		return
	}
	list, err := s.engine.IssuerCRL(x.R.Context(), g.Issuer)
	if err != nil {
		x.Err = err
		if isForLater(err) {
			x.RetryLater("the revocation list cannot be signed now: try again later")
		} else {
			x.Refuse(http.StatusInternalServerError, "internal error, see the box's log for request "+x.ID)
		}
		return
	}
	x.publish(document{
		contentType: contentTypeCRL, body: list.DER, etag: etagOf(list.DER),
		modified: list.ThisUpdate, expires: list.NextUpdate, maxAge: freshUntil(s.config.Now(), list.NextUpdate),
	})
}

// certificate answers with the generation's CA certificate.
func (s *Server) certificate(x *call, g Generation) {
	if !x.reads() {
		return
	}
	cert := g.Issuer.Certificate()
	x.publish(document{
		contentType: contentTypeCert, body: cert.Raw, etag: etagOf(cert.Raw),
		modified: cert.NotBefore, expires: cert.NotAfter, maxAge: freshUntil(s.config.Now(), cert.NotAfter),
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
func (x *call) reads() bool {
	if x.R.Method == http.MethodGet || x.R.Method == http.MethodHead {
		return true
	}
	x.W.Header().Set("Allow", "GET, HEAD")
	x.Refuse(http.StatusMethodNotAllowed, "use GET")
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
func (x *call) publish(d document) {
	h := x.W.Header()
	h.Set("ETag", d.etag)
	h.Set("Last-Modified", d.modified.UTC().Format(http.TimeFormat))
	h.Set("Expires", d.expires.UTC().Format(http.TimeFormat))
	h.Set("Cache-Control", "max-age="+strconv.Itoa(int(d.maxAge/time.Second))+", public, no-transform, must-revalidate") // RFC 5019 §6.2
	if x.Outcome == "" {
		x.Outcome = "answered"
	}
	if x.has(d) {
		x.Outcome, x.Status = "unchanged", http.StatusNotModified
		x.W.WriteHeader(http.StatusNotModified)
		return
	}
	x.Reply(http.StatusOK, d.contentType, d.body)
}

// has reports whether the client says that it has the document. An entity tag counts before a date.
func (x *call) has(d document) bool {
	if tags := x.R.Header.Values("If-None-Match"); len(tags) > 0 {
		for tag := range strings.SplitSeq(strings.Join(tags, ","), ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == d.etag {
				return true
			}
		}
		return false
	}
	since, err := http.ParseTime(x.R.Header.Get("If-Modified-Since"))
	return err == nil && !d.modified.Truncate(time.Second).After(since)
}
