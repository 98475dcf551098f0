package appliance

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/est"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/scep"
	"signet.internal/appliance/validation"
	"signet.internal/webui"
)

// isBusy says whether a key refused because the key holder has too much to do.
func isBusy(err error) bool { return errors.Is(err, keys.ErrBusy) }

func (a *Appliance) newEngine() (*enroll.Engine, error) {
	var profiles []enroll.Profile
	for _, s := range a.settings {
		profiles = append(profiles, a.enrollProfile(s))
	}
	return enroll.New(enroll.Config{
		Store:      a.store,
		Profiles:   profiles,
		Now:        a.config.Now,
		TimeSource: a.config.Boot.TimeSource,
		TimeFloor:  a.config.Boot.TimeFloor,
		Log:        a.config.Log,
		OwnNames:   a.identity.OwnNames,
		IsBusy:     isBusy,
		Stopped:    a.anchor.stopped,

		CRLValidity: a.crlValidity,
	})
}

// crlValidity is what the site says about the lists of an issuer, any generation of an authority.
func (a *Appliance) crlValidity(i *pki.Issuer) time.Duration {
	for _, s := range a.config.Site.Authorities {
		issuers := a.identity.view(s.Name).issuers
		if issuers.Active != nil && issuers.Active.ID() == i.ID() || slices.ContainsFunc(issuers.Earlier, func(e *pki.Issuer) bool { return e.ID() == i.ID() }) {
			return s.CRLValidity
		}
	}
	return 7 * 24 * time.Hour // of no authority of the site: nobody asks for it
}

func (a *Appliance) enrollProfile(s *settings) enroll.Profile {
	p := s.profile
	out := enroll.Profile{
		Name:       p.Name,
		Policy:     p.Policy,
		Issuers:    func() enroll.Issuers { return a.identity.view(p.Authority).issuers },
		Off:        func() bool { return s.isOff(a.config.Now()) },
		Challenges: s.set,
		Renewal:    enroll.Renewal{Proof: enroll.ProofCertificate, Window: p.Renewal.Window, Grace: p.Renewal.Grace},
		RenewFrom:  s.pool(webui.BundleRenewFrom),
		Approval:   enroll.Approval{Manual: p.Approval.Manual, ManualIf: p.Approval.CNSuffix},
		Limits:     enroll.Limits(p.Limits),
		RawCSR:     p.SCEP.RawCSR,
		MaxActive:  p.MaxActive, UniqueKey: p.UniqueKey, RevokeOnReplace: p.RevokeOnReplace,
	}
	if p.Renewal.Challenge {
		out.Renewal.Proof = enroll.ProofCertificateChallenge
	}
	if e := p.EST; e != nil {
		out.EST = enroll.EST{On: true, Basic: s.passwords, Challenge: e.Challenge, Issued: e.Issued, Bundle: s.pool(webui.BundleEST)}
	}
	if s.intune != nil {
		out.Intune = s.intune
	}
	if s.hook != nil {
		out.Compliance = func(ctx context.Context, r enroll.Request) error { return s.hook.Check(ctx, r) }
	}
	return out
}

// exchanges is what the servers for devices and verifiers have in common.
func (a *Appliance) exchanges() exchange.Config {
	return exchange.Config{Log: a.config.Log, Source: a.proxies.source, ClientCertificates: a.proxies.clientCertificates, Now: a.config.Now, IsBusy: isBusy}
}

// newSCEP serves the profiles that are on for SCEP; nil where none is.
func (a *Appliance) newSCEP() (*scep.Server, error) {
	var profiles []scep.Profile
	for _, s := range a.settings {
		p := s.profile
		if !p.SCEP.On {
			continue
		}
		profiles = append(profiles, scep.Profile{
			Name:       p.Name,
			Default:    p.Default,
			PlainHTTP:  p.SCEP.PlainHTTP,
			LegacyTLS:  p.SCEP.LegacyTLS,
			Chain:      p.SCEP.Chain,
			GetCACert:  p.SCEP.GetCACert,
			PreviousRA: p.SCEP.PreviousRA,
			Renewal:    true,
			Legacy:     scep.Legacy(p.SCEP.Legacy),
			RawCSR:     p.SCEP.RawCSR,
			Authority:  func() *scep.Authority { return a.identity.view(p.Authority).scep },
			MTLS:       s.mtls(),
			Off:        func() bool { return s.isOff(a.config.Now()) },
		})
	}
	if len(profiles) == 0 {
		return nil, nil
	}
	return scep.New(scep.Config{Config: a.exchanges(), Engine: a.engine, Profiles: profiles, Slots: exchange.NewSlots(inFlight, patience)})
}

// newEST serves the profiles that are on for EST; nil where none is.
func (a *Appliance) newEST() (*est.Server, error) {
	var profiles []est.Profile
	for _, s := range a.settings {
		p := s.profile
		if p.EST == nil {
			continue
		}
		view := func() *view { return a.identity.view(p.Authority) }
		profiles = append(profiles, est.Profile{
			Name:           p.Name,
			Default:        p.Default,
			LegacyTLS:      p.EST.LegacyTLS,
			Basic:          s.passwords != nil || p.EST.Challenge,
			ChannelBinding: p.EST.ChannelBinding,
			ServerKeyGen:   p.EST.ServerKeyGen,
			KeySigner:      func() (*x509.Certificate, crypto.Signer) { return view().signer() },
			CSRAttrs:       p.Policy.CSRAttrs(),
			CACerts:        func() [][]byte { return view().caCerts },
			RetryAfter:     p.EST.RetryAfter,
		})
	}
	if len(profiles) == 0 {
		return nil, nil
	}
	return est.New(est.Config{Config: a.exchanges(), Engine: a.engine, Profiles: profiles, Slots: exchange.NewSlots(inFlight, patience)})
}

func (a *Appliance) newValidation() (*validation.Server, error) {
	return validation.New(validation.Config{Config: a.exchanges(), Engine: a.engine, Authorities: a.published})
}

// published is every authority that has a certificate, for those who ask about certificates.
func (a *Appliance) published() []validation.Authority {
	var all []validation.Authority
	for _, s := range a.config.Site.Authorities {
		if v := a.identity.view(s.Name); len(v.published) > 0 {
			all = append(all, validation.Authority{Name: s.Name, Generations: v.published})
		}
	}
	return all
}

// handlers are what each listener serves.
func (a *Appliance) handlers() (map[string]http.Handler, error) {
	scepServer, err := a.newSCEP()
	if err != nil {
		return nil, err
	}
	estServer, err := a.newEST()
	if err != nil {
		return nil, err
	}
	published, err := a.newValidation()
	if err != nil {
		return nil, err
	}
	console, err := a.newConsole(estServer)
	if err != nil {
		return nil, err
	}
	nothing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no profile of this site is served here", http.StatusNotFound)
	})
	// http.ServeMux would redirect paths that are not clean, which neither SCEP, EST nor OCSP clients follow.
	routes := func(fallback http.Handler, prefixes map[string]http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for prefix, h := range prefixes {
				if strings.HasPrefix(r.URL.Path, prefix) {
					h.ServeHTTP(w, r)
					return
				}
			}
			fallback.ServeHTTP(w, r)
		})
	}
	handlers := map[string]http.Handler{
		"est": nothing, "legacy": nothing, "scep": nothing, "legacy_scep": nothing, "console": console,
	}
	counted := a.health.published.Handler(published.Handler())
	plain := http.Handler(nothing)
	if scepServer != nil {
		handlers["est"], handlers["legacy"] = scepServer.HandlerMTLS(), scepServer.HandlerLegacy(true)
		handlers["scep"], handlers["legacy_scep"] = scepServer.Handler(false), scepServer.HandlerLegacy(false)
		plain = scepServer.Handler(true)
	}
	if estServer != nil {
		handlers["est"] = routes(handlers["est"], map[string]http.Handler{"/.well-known/": estServer.Handler(false)})
		handlers["legacy"] = routes(handlers["legacy"], map[string]http.Handler{"/.well-known/": estServer.Handler(true)})
	}
	handlers["plain"] = routes(plain, map[string]http.Handler{"/pki/": counted, "/ocsp/": counted})
	return handlers, nil
}

// locations is where a generation of an authority publishes; nowhere where no plain listener is on.
func (c Config) locations(authority string, generation int) pki.Locations {
	l := c.Listeners["plain"]
	if l == nil {
		return pki.Locations{}
	}
	base := "http://" + hostPort(c.Site.PublicHost, l, 80)
	name := authority
	if generation > 1 {
		name += "." + strconv.Itoa(generation)
	}
	out := pki.Locations{CRL: base + "/pki/" + name + ".crl", CAIssuers: base + "/pki/" + name + ".cer"}
	for _, a := range c.Site.Authorities {
		if a.Name == authority && a.OCSP {
			out.OCSP = base + "/ocsp/" + authority
		}
	}
	return out
}

// hostPort is host, with the listener's port where that is not the usual one.
func hostPort(host string, l net.Listener, usual int) string {
	if port := l.Addr().(*net.TCPAddr).Port; port != usual {
		return net.JoinHostPort(host, strconv.Itoa(port))
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
