package appliance

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"

	"signet.internal/appliance/scep"
	"signet.internal/webui"
)

// legacySuites are what TLS 1.2 is spoken with: forward secret and authenticated.
var legacySuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// tlsConfig is the TLS of a listener, nil for the plain one.
func (a *Appliance) tlsConfig(listener string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: a.identity.Certificate, NextProtos: []string{"http/1.1"},
		// Some EST clients read one record and take it for the answer.
		DynamicRecordSizingDisabled: true,
	}
	switch listener {
	case "plain":
		return nil
	case "legacy", "legacy_scep":
		c.MinVersion, c.CipherSuites, c.GetCertificate = tls.VersionTLS12, legacySuites, a.identity.LegacyCertificate
	}
	if listener == "est" || listener == "legacy" {
		a.askForCertificates(c)
	}
	return c
}

// askForCertificates has a listener ask for client certificates, which crypto/tls does not verify: a
// failed handshake would leave no answer that says why. The bundles only tell clients which of their
// certificates to choose.
func (a *Appliance) askForCertificates(c *tls.Config) {
	c.ClientAuth = tls.RequestClientCert
	type hinted struct {
		hints  *x509.CertPool
		config *tls.Config
	}
	// Clones share the keys of session tickets with c.
	var current atomic.Pointer[hinted]
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		hints := a.hints.Load()
		if h := current.Load(); h != nil && h.hints == hints {
			return h.config, nil
		}
		clone := c.Clone()
		clone.GetConfigForClient, clone.ClientCAs = nil, hints
		current.Store(&hinted{hints, clone})
		return clone, nil
	}
}

// refreshHints collects whose client certificates any profile takes now, and of whom proxies have theirs.
func (a *Appliance) refreshHints() {
	a.hinting.Lock()
	defer a.hinting.Unlock()
	hints := x509.NewCertPool()
	if b := a.proxies.bundle; b != nil {
		addAll(hints, b.now().certificates)
	}
	for _, s := range a.settings {
		for _, name := range []string{webui.BundleSCEPMTLS, webui.BundleEST, webui.BundleRenewFrom} {
			if b := s.bundle(name); b != nil {
				addAll(hints, b.now().certificates)
			}
		}
		if e := s.profile.EST; e == nil || !e.Issued {
			continue
		}
		issuers := a.identity.view(s.profile.Authority).issuers
		for _, i := range issuers.Earlier {
			hints.AddCert(i.Certificate())
		}
		if issuers.Active != nil {
			hints.AddCert(issuers.Active.Certificate())
		}
	}
	a.hints.Store(hints)
}

func addAll(to *x509.CertPool, certificates []*x509.Certificate) {
	for _, c := range certificates {
		to.AddCert(c)
	}
}

// mtls is whose client certificates a profile's sibling route lets in.
func (s *settings) mtls() scep.MTLS {
	m := s.profile.SCEP.MTLS
	if m == nil {
		return scep.MTLS{}
	}
	out := scep.MTLS{Mode: "optional", Pool: s.pool(webui.BundleSCEPMTLS)}
	if m.Required {
		out.Mode = "required"
	}
	return out
}
