package metrics

import (
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// Published counts who asks for what the box publishes: revocation lists, CA certificates and OCSP.
type Published struct {
	authorities []string

	mu    sync.Mutex
	count map[publication]uint64
}

// publication is a kind of answer.
type publication struct {
	authority string // "" for a path that names none of the site's
	document  string // "crl", "certificate", "ocsp" or "none"
	status    int
}

// NewPublished counts for the authorities of a site.
func NewPublished(authorities []string) *Published {
	return &Published{authorities: authorities, count: map[publication]uint64{}}
}

// Handler counts what next answers under /pki/ and /ocsp/.
func (p *Published) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(seen, r)
		one := p.publication(r.URL.Path)
		one.status = seen.status
		p.mu.Lock()
		defer p.mu.Unlock()
		p.count[one]++
	})
}

// publication reads a path by what a site has, so that nobody makes up a series.
func (p *Published) publication(requested string) publication {
	name, document := "", "none"
	if rest, ok := strings.CutPrefix(requested, "/ocsp/"); ok {
		name, _, _ = strings.Cut(rest, "/")
		document = "ocsp"
	} else if file, ok := strings.CutPrefix(requested, "/pki/"); ok {
		switch path.Ext(file) {
		case ".crl":
			document = "crl"
		case ".cer":
			document = "certificate"
		}
		name, _, _ = strings.Cut(file, ".") // a generation may follow
	}
	if !slices.Contains(p.authorities, name) {
		return publication{document: "none"}
	}
	return publication{authority: name, document: document}
}

func (p *Published) snapshot() map[publication]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.count)
}

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the server's own writer.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
