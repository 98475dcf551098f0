package appliance

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/authority"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/est"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// inFlight bounds PKIOperations taken in at a time to what the TPM's queue takes: each waits for a
// CA signature, of which a hardware TPM makes two to five a second, so that a longer queue would
// only make clients time out. Senders of wrong challenges, who wait for a hash, can hold half of them.
const inFlight = 2 * challenge.MaxWaiting

// patience is how long a request waits for its turn: a burst of devices is worked off, while none waits
// so long that it gives up and comes again.
const patience = 3 * time.Second

// upkeepInterval is how often certificates and addresses are looked after, and the watchdog at least.
const upkeepInterval = time.Minute

// Config is a service ready to be put together: every part that touches hardware comes in as a value.
type Config struct {
	Site        *provision.Site
	Files       fs.FS // the site's directory, to read trust/ again
	StateDir    string
	Keys        *keys.Client
	Boot        handover.Boot
	Listeners   map[string]net.Listener // by name of the listener table; New takes them over
	Log         *slog.Logger
	Now         func() time.Time
	Reload      <-chan os.Signal // each value has trust/ read again; nil: never
	ReadyFile   string           // "" writes none
	Initialised func() error     // called in a provisioning boot before anybody is answered; nil: nobody wants to know
	Microsoft   Microsoft        // for tests; zero: the public cloud
}

// Appliance is the running enrollment service.
type Appliance struct {
	config    Config
	store     *store.Store
	logSigner *store.LogSigner // makes the audit log's checkpoints
	identity  *identity
	anchor    *anchor
	settings  []*settings // of the profiles, in the site's order
	proxies   *proxies
	streaming *streaming
	hinting   sync.Mutex                    // serialises changes of hints
	hints     atomic.Pointer[x509.CertPool] // see askForCertificates
	engine    *enroll.Engine
	health    *health
	servers   []*server

	writing sync.Mutex // serialises writes of the ready file
	written Ready      // as it is on disk
	bundle  []byte     // the PEM it names
}

// New opens the state and puts the service together; Serve runs it.
func New(c Config) (*Appliance, error) {
	var recent *recentLog
	c.Log, recent = keepLog(c.Log)
	st, err := store.Open(store.Options{
		Dir:       filepath.Join(c.StateDir, "store"),
		MustExist: !c.Boot.Provisioning,
		Log:       c.Log,
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &mendable{fmt.Errorf("%w: %w", authority.ErrStateLost, err), authority.StateLostMend}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	a := &Appliance{config: c, store: st}
	if err := a.assemble(recent); err != nil {
		if a.engine != nil {
			err = errors.Join(err, a.engine.Close())
		}
		return nil, errors.Join(err, st.Close())
	}
	return a, nil
}

func (a *Appliance) assemble(recent *recentLog) error {
	c := a.config
	var err error
	if a.anchor, err = newAnchor(c, a.store, a.record); err != nil {
		return err
	}
	isNew := !a.store.Initialised() // then what is recorded first is that it is
	if !isNew {
		if err := a.anchor.open(c.Now()); err != nil {
			return err
		}
	}
	if a.identity, err = openIdentity(c, a.store, a.anchor.isOlder); err != nil {
		return err
	}
	if isNew {
		if err := a.anchor.open(c.Now()); err != nil {
			return err
		}
	}
	if a.settings, err = a.newSettings(); err != nil {
		return err
	}
	if a.logSigner, err = a.newLogSigner(); err != nil {
		return err
	}
	a.proxies = newProxies(c.Site, c.Now, func(cert *x509.Certificate) (bool, error) { return a.engine.IsRevoked(cert) })
	a.refreshHints()
	if a.streaming, err = a.newStreaming(); err != nil {
		return err
	}
	if a.engine, err = a.newEngine(); err != nil {
		return err
	}
	if a.health, err = a.newHealth(recent); err != nil {
		return err
	}
	handlers, err := a.handlers()
	if err != nil {
		return err
	}
	for name, l := range c.Listeners {
		handler, ok := handlers[name]
		if !ok {
			return fmt.Errorf("no handler for listener %q", name)
		}
		a.servers = append(a.servers, newServer(name, l, handler, a.tlsConfig(name), c.Log))
	}
	return nil
}

// newConsole is the console; served is nil where no profile is on for EST.
func (a *Appliance) newConsole(served *est.Server) (http.Handler, error) {
	return webui.New(webui.Config{
		Store:      a.store,
		Boot:       a.config.Boot,
		Site:       a.siteForConsole,
		ClaimCode:  a.config.Boot.ClaimCode,
		CABundle:   a.identity.Bundle,
		Now:        a.config.Now,
		TimeSource: a.config.Boot.TimeSource,
		Log:        a.config.Log,
		OnClaimed:  a.onClaimed,
		Source:     a.proxies.source,

		Audit:       a.logSigner,
		Enroll:      a.engine,
		SCEP:        a.scepForConsole,
		Metrics:     a.newMetrics(),
		Box:         orders{a},
		Mint:        a.mint,
		ReloadTrust: a.reloadTrust,

		Machine:   a.machine,
		History:   a.history,
		RecentLog: a.health.recent.text,
		Stopping:  a.health.stopping,

		EST:            func() []webui.ESTProfile { return a.estForConsole(served) },
		ReloadESTTrust: a.reloadESTTrust,
	})
}

// Serve answers on every listener until ctx ends, then lets requests in progress finish.
func (a *Appliance) Serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.engine.Close(), a.store.Close()) }()
	// First: state that is lost after a certificate was issued must never pass for state not made yet.
	if a.config.Initialised != nil && a.config.Boot.Provisioning {
		if err := a.config.Initialised(); err != nil {
			return errors.Join(fmt.Errorf("recording that the state is initialised: %w", err), closeAll(a.config.Listeners))
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, a.health.stop) // streams end before the servers wait for what is under way
	for _, s := range a.servers {
		g.Go(s.serve)
		g.Go(func() error {
			<-ctx.Done()
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
			defer cancel()
			return s.shutdown(stopping)
		})
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-a.store.Failed():
			return &mendable{fmt.Errorf("the state takes no more writes: %w", a.store.Failure()), "look at the disk: it is full or broken; what devices were answered is stored"}
		}
	})
	if err := a.ready(); err != nil {
		return errors.Join(err, closeAll(a.config.Listeners))
	}
	g.Go(func() error { return a.watch(ctx) })
	g.Go(func() error { return a.upkeep(ctx) })
	g.Go(func() error { return a.count(ctx) })
	g.Go(func() error { return a.sweep(ctx) })
	g.Go(func() error { return a.reloads(ctx) })
	g.Go(func() error { return a.stream(ctx) })
	g.Go(func() error { return a.retain(ctx) })
	return g.Wait()
}

// ready records the start and tells whoever waits that every listener accepts and every authority
// can sign.
func (a *Appliance) ready() error {
	started := a.record(audit.BoxStarted)
	started.Identity = a.config.Site.Name
	started.Reason = fmt.Sprintf("version %s, epoch %d, PCR 11 %s", a.config.Boot.Version, a.config.Boot.Epoch, cmp.Or(a.config.Boot.PCR11, "not measured"))
	if err := a.store.Started(started); err != nil {
		return err
	}
	a.anchor.started()
	if _, err := a.logSigner.Checkpoint(); err != nil {
		a.config.Log.Error("signing the audit log", "err", err) // upkeep tries again
	}
	if err := a.writeReadyFile(); err != nil {
		return err
	}
	a.notify(daemon.SdNotifyReady)
	a.config.Log.Info("ready", "site", a.config.Site.Name, "version", a.config.Boot.Version, "tls_sha256", a.tlsSHA256())
	return nil
}

// notify sends state and what the screen shows to the supervisor; without one it does nothing.
func (a *Appliance) notify(state string) {
	claimed := "0"
	if a.store.Claimed() {
		claimed = "1"
	}
	condition := ""
	conditions := a.conditions()
	if c := a.engine.Condition(); c != nil {
		conditions = append([]handover.Condition{handover.Condition(*c)}, conditions...)
	}
	if len(conditions) > 0 { // the screen has room for the worst
		b, _ := json.Marshal(conditions[0]) // two strings cannot fail to encode
		condition = string(b)
	}
	message := fmt.Sprintf("%s\n%s=%s\n%s=%s\n%s=%s", state,
		handover.NotifyTLSSHA256, a.tlsSHA256(), handover.NotifyClaimed, claimed, handover.NotifyCondition, condition)
	if _, err := daemon.SdNotify(false, message); err != nil {
		a.config.Log.Warn("telling the supervisor", "err", err)
	}
}

func (a *Appliance) onClaimed() {
	a.notify("STATUS=claimed")
	if err := a.writeReadyFile(); err != nil {
		a.config.Log.Warn("rewriting the ready file", "err", err)
	}
}

// upkeep has what comes due of the box's certificates done, and the ready file follow. It may take as long
// as the TPM takes to make a key, which the watchdog must not wait for.
func (a *Appliance) upkeep(ctx context.Context) error {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := a.identity.Upkeep(a.config.Now()); err != nil {
			a.config.Log.Error("renewing the box's certificates", "err", err)
		}
		if err := a.writeReadyFile(); err != nil {
			a.config.Log.Error("rewriting the ready file", "err", err)
		}
		a.anchor.upkeep()
		a.signLog()
	}
}

// watch tells the supervisor where the service stands and feeds its watchdog, for as long as the key holder
// answers.
func (a *Appliance) watch(ctx context.Context) error {
	interval := upkeepInterval
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("reading the watchdog's interval: %w", err)
	}
	a.health.arm(watchdog > 0)
	if watchdog > 0 {
		interval = min(interval, watchdog/3)
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		_, err := a.config.Keys.List()
		a.health.looked(a.config.Now(), err == nil)
		if err != nil {
			a.config.Log.Error("the key holder does not answer", "err", err)
			a.notify("STATUS=not healthy") // no ping: the supervisor restarts what does not recover
			continue
		}
		a.notify(daemon.SdNotifyWatchdog)
	}
}

func (a *Appliance) tlsSHA256() string {
	served, _ := a.identity.Certificate(nil) // the same for every client
	sum := sha256.Sum256(served.Leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// siteForConsole is what the console shows of the site and of its certificates.
func (a *Appliance) siteForConsole() webui.Site {
	site := webui.Site{
		Name:       a.config.Site.Name,
		Version:    a.config.Site.Version,
		PublicHost: a.config.Site.PublicHost,
		Demo:       a.config.Site.Demo(),
	}
	site.Profiles = a.profilesForConsole()
	site.Conditions = a.conditions()
	if c := a.engine.Condition(); c != nil {
		site.Stopped = true
		site.Conditions = append(site.Conditions, handover.Condition(*c))
	}
	return site
}

// writeReadyFile writes the ready file and the bundle it names where they are wanted and not written as
// they would be now. A subordinate that waits for its certificate is not waited for: whoever fetches its
// request and uploads the chain finds the console and the claim code in this file.
func (a *Appliance) writeReadyFile() error {
	if a.config.ReadyFile == "" {
		return nil
	}
	bundle, err := filepath.Abs(filepath.Join(a.config.StateDir, "ca-bundle.pem"))
	if err != nil {
		return err
	}
	r := Ready{TLSSHA256: a.tlsSHA256(), CABundle: bundle}
	if !a.store.Claimed() {
		r.ClaimCode = a.config.Boot.ClaimCode
	}
	for name, l := range a.config.Listeners {
		switch name {
		case "est":
			r.EST = listenerURL("https", l)
		case "scep":
			r.SCEP = listenerURL("https", l)
		case "console":
			r.Console = listenerURL("https", l)
		case "plain":
			r.SCEPPlain = listenerURL("http", l)
			r.PKI, r.OCSP = r.SCEPPlain, r.SCEPPlain
		case "legacy":
			r.Legacy = listenerURL("https", l)
		case "legacy_scep":
			r.LegacySCEP = listenerURL("https", l)
		}
	}
	roots := a.identity.Bundle()
	a.writing.Lock()
	defer a.writing.Unlock()
	if r == a.written && bytes.Equal(roots, a.bundle) {
		return nil
	}
	if err := writeWhole(bundle, roots, 0o644); err != nil {
		return err
	}
	if err := writeReady(a.config.ReadyFile, r); err != nil {
		return err
	}
	a.written, a.bundle = r, roots
	return nil
}
