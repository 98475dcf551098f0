package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// tokenVariable is where --token is looked for when it is not given: a token on a command line is
// visible to everyone on the machine.
const tokenVariable = "SIGNET_TOKEN"

const (
	apiTimeout = time.Minute // as long as a box goes on answering; passwords are hashed slowly in a machine without KVM
	maxReply   = 8 << 20     // bytes; the largest is a page of audit records
)

// apiFlags are the flags of every command that talks to a box.
type apiFlags struct {
	caBundle string
	token    string
}

func (f *apiFlags) register(cmd *cobra.Command) {
	f.registerTrust(cmd)
	cmd.Flags().StringVar(&f.token, "token", "", "API `token` (default: $"+tokenVariable+")")
}

// registerTrust is register for a command that has no token yet.
func (f *apiFlags) registerTrust(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.caBundle, "ca-bundle", "", "PEM `file` with the box's TLS root (default: what this machine trusts)")
}

// apiClient calls the admin API of one box.
type apiClient struct {
	base  string // https://host:port
	token string // "" calls anonymously
	http  *http.Client
}

// dial checks where a command was pointed and what it shall trust; it does not connect yet.
func (f *apiFlags) dial(target string) (*apiClient, error) {
	base, err := consoleURL(target)
	if err != nil {
		return nil, err
	}
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	c := &apiClient{base: base, token: f.token, http: &http.Client{
		Timeout: apiTimeout,
		Transport: &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots},
		},
		// A redirect would carry the token or the code to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if c.token == "" {
		c.token = os.Getenv(tokenVariable)
	}
	return c, nil
}

// consoleURL accepts https://HOST[:PORT] alone, so that nothing a person pasted is silently dropped.
func consoleURL(target string) (string, error) {
	u, err := url.Parse(target)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return "", usageHint(fmt.Errorf("%q is not a URL", target), "write it like https://192.0.2.7:9443")
	case u.Scheme != "https":
		return "", usageHint(fmt.Errorf("%q does not begin with https://", target), "the console is served over TLS only: write it like https://"+u.Host)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", usageHint(fmt.Errorf("%q says more than where the console is", target), "leave out everything but https://"+u.Host)
	}
	return "https://" + u.Host, nil
}

// usageHint ends a command with the usage exit code and a hint of its own.
func usageHint(err error, mend string) error { return &refusal{err, mend, exitUsage} }

// roots is nil for what this machine trusts.
func (f *apiFlags) roots() (*x509.CertPool, error) {
	if f.caBundle == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(f.caBundle)
	if err != nil {
		return nil, refuse(fmt.Errorf("reading CA bundle: %w", err), "name the bundle that signet run printed, or that the box serves at /api/v1/ca-bundle")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, refuse(fmt.Errorf("CA bundle %s holds no PEM certificate", f.caBundle), "name the bundle that signet run printed, or that the box serves at /api/v1/ca-bundle")
	}
	return pool, nil
}

// call sends in as JSON (nil: no body) and decodes the reply into out. A refusal of the box is
// returned with the mend the box gave.
func (c *apiClient) call(ctx context.Context, method, path string, in, out any) error {
	if in == nil {
		return c.send(ctx, method, path, "", nil, out)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding request: %w", err)
	}
	return c.send(ctx, method, path, "application/json", body, out)
}

// send is call for a body that is encoded already; mediaType is "" where there is none.
func (c *apiClient) send(ctx context.Context, method, path, mediaType string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making request: %w", err)
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return c.unreachable(err)
	}
	if resp.StatusCode != http.StatusOK {
		return c.refused(resp, reply)
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return refuse(fmt.Errorf("%s does not answer like a Signet box", c.base), "check that the address is the box's console")
	}
	return nil
}

// refused turns a reply that is not 200 into an error with its mend.
func (c *apiClient) refused(resp *http.Response, reply []byte) error {
	var p webui.Problem
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") || json.Unmarshal(reply, &p) != nil || p.Title == "" {
		return refuse(fmt.Errorf("%s answered %s, which is not how a Signet box answers", c.base, resp.Status), "check that the address is the box's console")
	}
	if resp.StatusCode == http.StatusUnauthorized && c.token == "" {
		p.Mend = "set " + tokenVariable + ", or --token, to the token that signet claim printed or the console made"
	}
	return refuse(&p, p.Mend)
}

// unreachable says which of the usual reasons kept a reply from coming.
func (c *apiClient) unreachable(err error) error {
	var (
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
		header   tls.RecordHeaderError
		network  net.Error
		inner    *url.Error
		hostless = err
	)
	if errors.As(err, &inner) {
		hostless = inner.Err
	}
	switch {
	case errors.As(err, &unknown):
		return refuse(fmt.Errorf("the certificate of %s is not trusted: %v", c.base, unknown),
			"name the box's CA bundle with --ca-bundle FILE; signet run and signetd say where it is")
	case errors.As(err, &name):
		return refuse(fmt.Errorf("the certificate of %s is for another name: %v", c.base, name),
			"use an address the certificate names, such as the site's public_host")
	case errors.As(err, &invalid):
		return refuse(fmt.Errorf("the certificate of %s is not valid: %v", c.base, invalid),
			"compare the box's clock with this machine's, and check --ca-bundle")
	case errors.As(err, &verify):
		return refuse(fmt.Errorf("verifying the certificate of %s: %v", c.base, verify.Err), "check --ca-bundle")
	case errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch):
		return refuse(fmt.Errorf("%s does not speak TLS", c.base), "check the port: it is the console's, not the plain listener's")
	case errors.As(err, &network) && network.Timeout():
		return refuse(fmt.Errorf("%s did not answer in time", c.base), "check address and port, and that the box is running")
	}
	return refuse(fmt.Errorf("reaching %s: %w", c.base, hostless), "check address and port, and that the box is running")
}
