package intune

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What these tests do not prove: that Microsoft's services are as this cloud. It was written from
// Microsoft's library and documentation, not recorded from a tenant.

const (
	tenant   = "contoso.onmicrosoft.com"
	clientID = "11111111-2222-4333-8444-555555555555"
	caller   = "Signet 0.1.0"

	graphToken  = "graph-token-SECRET"
	intuneToken = "intune-token-SECRET"
	csrText     = "a request with its challenge SECRET"
)

var (
	keyOnce sync.Once
	rsaKey  *rsa.PrivateKey
)

func testKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	keyOnce.Do(func() {
		var err error
		if rsaKey, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatal(err)
		}
	})
	return rsaKey
}

func testCertificate(t testing.TB, serial *big.Int, from, to time.Time) *x509.Certificate {
	t.Helper()
	key := testKey(t)
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: from, NotAfter: to,
		Subject: pkix.Name{CommonName: "Demo CA, East", Organization: []string{"Signet"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// signer hides the key, as one in a TPM is hidden.
type signer struct{ crypto.Signer }

// seen is one request as a server of the cloud got it.
type seen struct {
	method, path string
	header       http.Header
	body         []byte
}

type answer struct {
	status int
	header map[string]string
	body   string
}

// cloud is Entra, Graph and Intune. Answers are taken from the front of a list whose last one stays.
type cloud struct {
	t                    *testing.T
	entra, graph, intune *httptest.Server
	roots                *x509.CertPool

	mu       sync.Mutex
	requests map[string][]seen
	answers  map[string][]answer
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{t: t, requests: map[string][]seen{}, answers: map[string][]answer{}, roots: x509.NewCertPool()}
	serve := func(name string) *httptest.Server {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.serve(name, w, r) }))
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		t.Cleanup(s.Close)
		c.roots.AddCert(s.Certificate())
		return s
	}
	c.entra, c.graph, c.intune = serve("entra"), serve("graph"), serve("intune")
	c.answer("graph", answer{200, nil, c.endpoints(c.intune.URL + "/RACerts/Gateway/Service")})
	c.answer("intune", answer{200, nil, `{"@odata.context":"x","code":"Success","errorDescription":""}`})
	return c
}

func (c *cloud) endpoints(uri string) string {
	return fmt.Sprintf(`{"@odata.context":"https://graph.microsoft.com/v1.0/$metadata","value":[
		{"id":"1","providerName":"PkiConnectorFEService","uri":"https://elsewhere.example/"},
		{"id":"2","capability":"x","providerName":"sceprequestValidationFEService","providerId":"y","uri":%q}]}`, uri)
}

func (c *cloud) answer(name string, list ...answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[name] = list
}

func (c *cloud) seen(name string) []seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]seen(nil), c.requests[name]...)
}

func (c *cloud) serve(name string, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Errorf("%s: reading the request: %v", name, err)
	}
	c.mu.Lock()
	c.requests[name] = append(c.requests[name], seen{r.Method, r.URL.RequestURI(), r.Header.Clone(), body})
	var a answer
	if list := c.answers[name]; len(list) > 0 {
		if a = list[0]; len(list) > 1 {
			c.answers[name] = list[1:]
		}
	} else if name == "entra" {
		a = c.token(body)
	}
	c.mu.Unlock()
	for k, v := range a.header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(a.status)
	io.WriteString(w, a.body)
}

// token answers by scope, so that a token used at the wrong place is noticed there.
func (c *cloud) token(body []byte) answer {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		c.t.Errorf("token request: %v", err)
	}
	token := graphToken
	if strings.HasSuffix(form.Get("scope"), "//.default") {
		token = intuneToken
	}
	return answer{200, nil, fmt.Sprintf(`{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":%q}`, token)}
}

func (c *cloud) config() Config {
	now := time.Now()
	return Config{
		Tenant: tenant, ClientID: clientID, Caller: caller,
		Certificate: testCertificate(c.t, big.NewInt(7), now.Add(-time.Hour), now.Add(time.Hour)), Key: signer{testKey(c.t)},
		Authority: c.entra.URL, Graph: c.graph.URL + "/", Roots: c.roots, Backoff: time.Millisecond,
	}
}

func (c *cloud) client(change func(*Config)) *Client {
	c.t.Helper()
	config := c.config()
	if change != nil {
		change(&config)
	}
	cl, err := New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

// checkToken re-verifies one token request with another JOSE implementation.
func checkToken(t *testing.T, c *cloud, s seen, cert *x509.Certificate, scope string, alg jose.SignatureAlgorithm, header map[string]any) {
	t.Helper()
	if s.method != "POST" || s.path != "/"+tenant+"/oauth2/v2.0/token" || s.header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Errorf("token request is %s %s %s", s.method, s.path, s.header.Get("Content-Type"))
	}
	form, err := url.ParseQuery(string(s.body))
	if err != nil {
		t.Fatal(err)
	}
	assertion := form.Get("client_assertion")
	want := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {clientID}, "scope": {scope}, "client_assertion": {assertion},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	if form.Encode() != want.Encode() {
		t.Errorf("token request has the form %v", form)
	}
	jws, err := jose.ParseSignedCompact(assertion, []jose.SignatureAlgorithm{alg})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(cert.PublicKey)
	if err != nil {
		t.Fatalf("assertion: %v", err)
	}
	var got map[string]any
	decodeSegment(t, assertion, 0, &got)
	if !maps.Equal(got, header) {
		t.Errorf("assertion has the header %v, not %v", got, header)
	}
	var claims struct {
		Aud, Iss, Sub, Jti string
		Iat, Nbf, Exp      int64
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&claims); err != nil {
		t.Fatal(err)
	}
	if claims.Aud != c.entra.URL+"/"+tenant+"/oauth2/v2.0/token" || claims.Iss != clientID || claims.Sub != clientID ||
		!isUUID(claims.Jti) || claims.Iat != claims.Nbf || claims.Exp != claims.Nbf+300 {
		t.Errorf("assertion claims %+v", claims)
	}
}
