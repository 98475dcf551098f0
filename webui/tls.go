package webui

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"time"
)

// tlsRoutes are the page of the box's own TLS certificates and the orders given there.
func tlsRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{get, "/tls", auditor, nil, (*console).tlsPage},
		{get, "/tls/ecdsa.csr.pem", auditor, nil, (*console).tlsRequestECDSA},
		{get, "/tls/rsa.csr.pem", auditor, nil, (*console).tlsRequestRSA},
		{post, "/tls/chain", administrator, nil, (*console).tlsChainForm},
		{post, "/tls/own", administrator, nil, (*console).tlsOwnForm},
	}
}

// tlsView is the page of the box's TLS certificates.
type tlsView struct {
	frame
	PublicHost   string
	Now          time.Time
	Certificates []tlsCertificate
}

// Uploaded: at least one of the certificates is somebody else's.
func (v *tlsView) Uploaded() bool {
	for _, c := range v.Certificates {
		if c.Uploaded {
			return true
		}
	}
	return false
}

// tlsCertificate is a certificate of the box's listeners.
type tlsCertificate struct {
	Certificate *Certificate
	Names       []string // DNS names and addresses
	Uploaded    bool
	IsLegacy    bool // for old clients alone
}

func (c *console) tlsPage(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.showTLS(w, r, who, nil)
}

func (c *console) showTLS(w http.ResponseWriter, r *http.Request, who principal, a *attempt) error {
	view := tlsView{frame: c.frame(r, who, "/box", "TLS certificates"), PublicHost: c.cfg.Site().PublicHost, Now: c.cfg.Now()}
	if view.Attempt = a; a != nil {
		view.Do = a.Form
	}
	for _, shown := range c.cfg.Box.TLS() {
		d, err := describe(shown.Certificate)
		if err != nil {
			return fmt.Errorf("TLS certificate: %w", err)
		}
		one := tlsCertificate{Certificate: d, Uploaded: shown.Uploaded, IsLegacy: shown.Certificate.PublicKeyAlgorithm == x509.RSA, Names: shown.Certificate.DNSNames}
		for _, ip := range shown.Certificate.IPAddresses {
			one.Names = append(one.Names, ip.String())
		}
		view.Certificates = append(view.Certificates, one)
	}
	return c.page(w, "tls", &view)
}

func (c *console) tlsRequestECDSA(w http.ResponseWriter, _ *http.Request, _ principal) error {
	return c.tlsRequest(w, x509.ECDSA, "signet-tls-ecdsa.csr.pem")
}

func (c *console) tlsRequestRSA(w http.ResponseWriter, _ *http.Request, _ principal) error {
	return c.tlsRequest(w, x509.RSA, "signet-tls-rsa.csr.pem")
}

// tlsRequest sends the request over the key of that kind.
func (c *console) tlsRequest(w http.ResponseWriter, kind x509.PublicKeyAlgorithm, file string) error {
	rest, err := c.cfg.Box.TLSRequest()
	if err != nil {
		return err
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return &ConflictError{"the box has no TLS key of that kind", "use the request for the other one"}
		}
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return fmt.Errorf("request for a TLS certificate: %w", err)
		}
		if request.PublicKeyAlgorithm != kind {
			continue
		}
		var out bytes.Buffer
		pem.Encode(&out, block) // a buffer takes everything
		attach(w, file, mediaPEM, out.Bytes())
		return nil
	}
}

// tlsOrder takes an order that a form on the page gives.
func (c *console) tlsOrder(w http.ResponseWriter, r *http.Request, who principal, form, done string, do func() error) error {
	return c.take(w, r, order{form: form, done: done, path: "/tls", do: do,
		again: func(a *attempt) error { return c.showTLS(w, r, who, a) }})
}

func (c *console) tlsChainForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.tlsOrder(w, r, who, "chain", "tls-installed", func() error {
		chain, err := uploaded(r)
		if err != nil {
			return err
		}
		return c.installTLS(chain, who)
	})
}

func (c *console) tlsOwnForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.tlsOrder(w, r, who, "own", "tls-dropped", func() error { return c.dropTLS(who) })
}
