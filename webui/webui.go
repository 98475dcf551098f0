// Package webui is the box's console: its pages, the admin API under /api/v1 and the OpenAPI
// document that describes it. It shows what others decided and passes on what people ask for; it
// decides nothing about certificates.
package webui

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
)

// Config is what a console needs; every field but those that say so is required.
type Config struct {
	Store      *store.Store
	Boot       handover.Boot
	Site       func() Site   // called for each page: certificates and conditions change while the box runs
	ClaimCode  string        // as on the box's screen; "" lets nobody claim the box
	CABundle   func() []byte // PEM: the root of the box's TLS certificates and of every active authority
	Now        func() time.Time
	TimeSource string // of Now, for audit records
	Log        *slog.Logger
	OnClaimed  func() // called after the first administrator is stored; nil: nobody wants to know
	Source     func(*http.Request) netip.Addr

	Audit   *store.LogSigner     // signs the audit log
	Enroll  *enroll.Engine       // decides what operators ask for
	SCEP    func() []SCEPProfile // called for each answer, in the site's order
	EST     func() []ESTProfile  // called for each answer, in the site's order
	Box     Box                  // does what administrators order
	Metrics http.Handler         // in Prometheus' text format

	Machine   func() Machine          // called for each answer
	History   func() (History, error) // of enrollments, counted as the audit log grows
	RecentLog func() []byte           // the newest lines of the box's log; nil: none are kept
	Stopping  <-chan struct{}         // closed when the box stops; nil: never

	// Mint makes a one-time challenge: ErrNoProfile, ErrNoOneTime, or an error of the store.
	Mint func(Mint) (secret string, expires time.Time, err error)
	// ReloadTrust reads a profile's signers again, the default profile's for "", and returns its name:
	// ErrNoProfile, ErrNoSigned, or a *TrustError, after which those before are still in use.
	ReloadTrust func(profile, actor string) (name string, err error)
	// ReloadESTTrust is ReloadTrust for the certificates that let devices in over EST: ErrNoESTTrust.
	ReloadESTTrust func(profile, actor string) (name string, err error)
}

// Site is what the console shows of the baked site and of its certificates.
type Site struct {
	Name       string
	Version    string
	PublicHost string
	Demo       bool // its keys and challenges are public: every page says so
	Profiles   []Profile
	Conditions []handover.Condition // what needs a person now, beyond the boot report's
	Stopped    bool                 // nothing is issued now; one of Conditions says why
}

// Profile is one enrollment profile and where devices reach it.
type Profile struct {
	Name      string
	Default   bool
	Authority string
	SCEP      []string // absolute URLs, the preferred first
	EST       []string // absolute URLs of its EST, the preferred first; empty where it is off

	Keys         DeviceKeys
	DNSNames     bool          // certificates may carry DNS names
	Usages       []string      // extended key usages of certificates, as the site writes them
	Validity     time.Duration // of certificates
	RenewsWithin time.Duration // before its end a certificate can be renewed
	Holds        bool          // a person may have to approve a request
}

// DeviceKeys are the keys that a profile takes from devices.
type DeviceKeys struct {
	RSABits int      // of an RSA key, at least; 0: takes none
	Curves  []string // of ECDSA keys: "p256", "p384"
}

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// console serves the pages and the API.
type console struct {
	cfg      Config
	started  time.Time
	routes   []route
	openAPI  []byte
	assets   assets
	pages    *template.Template
	sessions *sessions
	hasher   *hasher
	codes    *limiter      // wrong claim codes, per source
	allCodes *limiter      // wrong claim codes, all sources together
	signIns  *lockout      // wrong passwords, per source
	guessed  *lockout      // wrong passwords, per user name, from sources that never signed in under it
	passkeys *passkeys     // sign-ins and registrations by passkey under way
	forms    onceForms     // that made a secret
	notes    *limiter      // refusals written to the audit log, all sources together
	unnoted  atomic.Int64  // refusals since the last one written
	exports  chan struct{} // one for each export of the audit log under way
	bundling chan struct{} // one for the support bundle under way
	claiming sync.Mutex
	feed     *feed // of what changes, for browsers that listen
	due      dueCount
}

// New returns the handler of the console listener. It expects TLS and timeouts around it.
func New(cfg Config) (http.Handler, error) {
	c, err := newConsole(cfg)
	if err != nil {
		return nil, err
	}
	return c.handler(), nil
}

func newConsole(cfg Config) (*console, error) {
	if cfg.Store == nil || cfg.Site == nil || cfg.CABundle == nil || cfg.Now == nil || cfg.Log == nil || cfg.Source == nil ||
		cfg.Audit == nil || cfg.Enroll == nil || cfg.SCEP == nil || cfg.EST == nil || cfg.Box == nil || cfg.Metrics == nil || cfg.Machine == nil || cfg.History == nil || cfg.Mint == nil || cfg.ReloadTrust == nil || cfg.ReloadESTTrust == nil {
		return nil, errors.New("console configuration: a required field is not set")
	}
	c := &console{
		cfg:      cfg,
		started:  cfg.Now(),
		routes:   routeTable(),
		sessions: newSessions(cfg.Now),
		hasher:   newHasher(),
		codes:    newLimiter(5, time.Minute, cfg.Now),
		allCodes: newLimiter(codesPerMinute, time.Minute, cfg.Now),
		signIns:  newLockout(5, time.Minute, 15*time.Minute, cfg.Now),
		guessed:  newLockout(10, time.Minute, 15*time.Minute, cfg.Now),
		passkeys: newPasskeys(cfg.Now),
		notes:    newLimiter(notesPerMinute, time.Minute, cfg.Now),
		exports:  make(chan struct{}, maxExports),
		bundling: make(chan struct{}, 1),
	}
	c.feed = newFeed(c)
	var err error
	if c.assets, err = loadAssets(staticFiles); err != nil {
		return nil, fmt.Errorf("loading the console's files: %w", err)
	}
	if c.pages, err = parsePages(templateFiles, c.assets); err != nil {
		return nil, fmt.Errorf("parsing the console's pages: %w", err)
	}
	if c.openAPI, err = buildOpenAPI(c.routes); err != nil {
		return nil, fmt.Errorf("describing the API: %w", err)
	}
	return c, nil
}

// handler routes by the table and puts what every reply needs around it.
func (c *console) handler() http.Handler {
	mux := http.NewServeMux()
	allowed := map[string]string{}
	for _, rt := range c.routes {
		mux.Handle(rt.method+" "+rt.pattern, c.serve(rt))
		if allowed[rt.pattern] != "" {
			allowed[rt.pattern] += ", "
		}
		allowed[rt.pattern] += rt.method
		if rt.method == http.MethodGet {
			allowed[rt.pattern] += ", HEAD"
		}
	}
	for pattern, methods := range allowed {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", methods)
			c.refuse(w, r, errMethod)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { c.refuse(w, r, errNotFound) })

	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.refuse(w, r, errCrossOrigin) }))
	return c.observed(guard.Handler(mux))
}

// serve checks the caller's role and calls the route.
func (c *console) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := c.allowed(rt, r)
		if err == nil && rt.role > anonymous && rt.method != http.MethodGet {
			// An order counts when all of it is there: who began it may have been switched off since.
			body, _ := io.ReadAll(r.Body) // the error comes again to whoever reads on
			r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
			who, err = c.allowed(rt, r)
		}
		switch {
		case rt.role == anonymous && !isInternal(err):
			err = nil // a stale credential does not close what is open to everyone
		case errors.Is(err, errBadCredential) && r.Header.Get("Authorization") != "":
			c.note(r, audit.LoginRefused, "unknown or expired token")
		}
		if err == nil {
			err = rt.serve(c, w, r, who)
		} else if rt.isPage() && !takesBasic(r) && r.Method == http.MethodGet && who.role == anonymous && (errors.Is(err, errNoCredential) || errors.Is(err, errBadCredential)) {
			http.Redirect(w, r, "/sign-in?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return
		}
		if err != nil {
			c.refuse(w, r, err)
		}
	})
}

// allowed says who sent r, with errRole where they may not call the route.
func (c *console) allowed(rt route, r *http.Request) (principal, error) {
	who, err := c.authenticate(r)
	if err == nil && who.role < rt.role {
		err = errRole
	}
	return who, err
}

func isInternal(err error) bool {
	_, known := problemOf(err)
	return err != nil && !known
}

// observed gives each request an id, security headers and one line in the log.
func (c *console) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		securityHeaders(w.Header())
		id := rand.Text()[:12]
		w.Header().Set("X-Request-Id", id)
		r.Body = http.MaxBytesReader(w, r.Body, maxUpload) // whatever reads it: no route takes more
		logged := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		start := time.Now()
		next.ServeHTTP(logged, r)
		c.cfg.Log.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "console request",
			slog.String("id", id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
			slog.String("source", c.cfg.Source(r).String()), slog.Int("status", logged.status),
			slog.Duration("took", time.Since(start).Round(time.Microsecond)))
	})
}

// securityHeaders allows the page nothing but its own stylesheet, scripts, icon, forms and events.
func securityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // no-referrer would make browsers send "Origin: null" with forms
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// statusWriter remembers the status for the log.
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
