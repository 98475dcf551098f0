package appliance

import (
	"crypto/tls"
	"crypto/x509"

	"signet.internal/appliance/scep"
	"signet.internal/provision"
)

// tlsConfig is the TLS of a listener, nil for the plain one.
func (a *Appliance) tlsConfig(listener string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: a.identity.Certificate, NextProtos: []string{"http/1.1"}}
	switch listener {
	case "plain":
		return nil
	case "est":
		// Asked for and not verified: a failed handshake would leave no answer that says why. The bundles
		// only tell clients which of their certificates to choose.
		c.ClientAuth, c.ClientCAs = tls.RequestClientCert, x509.NewCertPool()
		for _, p := range a.challenges {
			if m := p.profile.SCEP.MTLS; m != nil {
				addAll(c.ClientCAs, m.Certificates)
			}
		}
	}
	return c
}

func addAll(to *x509.CertPool, certificates []*x509.Certificate) {
	for _, c := range certificates {
		to.AddCert(c)
	}
}

// mtlsOf is whose client certificates a profile's sibling route lets in.
func mtlsOf(m *provision.MTLS) scep.MTLS {
	if m == nil {
		return scep.MTLS{}
	}
	pool := x509.NewCertPool()
	addAll(pool, m.Certificates)
	out := scep.MTLS{Mode: "optional", Pool: func() *x509.CertPool { return pool }}
	if m.Required {
		out.Mode = "required"
	}
	return out
}
