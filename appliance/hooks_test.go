package appliance_test

// What is asked of others before a certificate is issued: a site's webhook, and Microsoft's service, of
// which a green run says that the box talks to a fake as Microsoft's library does, not that Microsoft
// takes it.

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"signet.internal/appliance"
	"signet.internal/appliance/handover"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

// question is what a webhook is asked.
type question struct {
	Profile, Protocol, Transaction, Identity, Source string
	SANs                                             []string
	CSRSHA256                                        string `json:"csr_sha256"`
	Renewal                                          bool
}

// webhook is a site's compliance service. It answers nothing that is not signed as Standard Webhooks says.
type webhook struct {
	*httptest.Server
	key []byte

	mu     sync.Mutex
	asked  []question
	ids    map[string]bool
	answer func(http.ResponseWriter, *http.Request)
}

func newWebhook(t *testing.T) *webhook {
	w := &webhook{key: bytes.Repeat([]byte("webhook key!"), 3), ids: map[string]bool{}}
	w.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the question: %v", err)
		}
		id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
		mac := hmac.New(sha256.New, w.key)
		fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
		seconds, err := strconv.ParseInt(at, 10, 64)
		if age := time.Since(time.Unix(seconds, 0)); err != nil || age < -time.Minute || age > time.Minute {
			t.Errorf("timestamp %q: %v", at, err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) || w.ids[id] {
			t.Errorf("question %s is not signed with the key, or asked twice", id)
		}
		w.ids[id] = true
		var q question
		if err := json.Unmarshal(body, &q); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		w.asked = append(w.asked, q)
		w.answer(rw, r)
	}))
	w.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	t.Cleanup(w.Close)
	w.says(`{"allow": true}`)
	return w
}

func (w *webhook) then(answer func(http.ResponseWriter, *http.Request)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *webhook) says(text string) {
	w.then(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		io.WriteString(rw, text)
	})
}

// questions are those since the last call.
func (w *webhook) questions() []question {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.asked
	w.asked = nil
	return asked
}

func TestComplianceWebhook(t *testing.T) {
	hook := newWebhook(t)
	compliance := "\ncompliance: {url: \"" + hook.URL + "/signet?q=1\", roots: trust/compliance.pem, timeout: 10s}\n"
	c := startChanging(t, variant(t, map[string]string{
		"profiles/corp.yaml":   demo(t, "profiles/corp.yaml") + compliance,
		"profiles/intune.yaml": demo(t, "profiles/intune.yaml") + compliance,
		"trust/compliance.pem": string(pemOf("CERTIFICATE", hook.Certificate().Raw)),
	}))
	const missing = "Profile corp issues nothing: the compliance webhook's key was not entered yet."
	if err := c.scep(t, "corp", "corp-demo-challenge"); err == nil || len(hook.questions()) != 0 {
		t.Errorf("without the key: %v", err)
	}
	if status := c.get(t, "/api/v1/status", c.token); !strings.Contains(status, missing) {
		t.Errorf("the status says nothing of it: %s", status)
	}
	secret := "whsec_" + base64.StdEncoding.EncodeToString(hook.key)
	for name, value := range map[string]string{"no prefix": secret[6:], "short": "whsec_AAAA", "no base64": "whsec_" + strings.Repeat("!", 48)} {
		if code := c.api(t, "PUT", "/api/v1/profiles/corp/secrets/compliance", c.token, map[string]string{"value": value}, nil); code != 422 {
			t.Errorf("a key with %s: HTTP %d", name, code)
		}
	}
	c.want(409, "PUT", "modern/secrets/compliance", map[string]string{"value": secret}, nil)
	for _, profile := range []string{"corp", "intune"} {
		c.want(200, "PUT", profile+"/secrets/compliance", map[string]string{"value": secret}, nil)
	}
	if status := c.get(t, "/api/v1/status", c.token); strings.Contains(status, missing) {
		t.Error("the status still misses the key")
	}
	t.Run("verdicts", func(t *testing.T) { c.verdicts(t, hook) })
	t.Run("signed challenges count", func(t *testing.T) {
		d := newDevice(t, c.ready.SCEPPlain+"/scep/intune")
		connector := demoKey(t, "connector").PrivateKey.(*rsa.PrivateKey)
		hook.says(`{"allow": false}`)
		if err := d.request("laptop-1", d.newKey("1.key"), "1.crt", "--password", sign(t, connector, "laptop-1", "n-1")); err == nil {
			t.Error("the webhook's no is not heard")
		}
		hook.says(`{"allow": true}`)
		if err := d.request("laptop-1", "1.key", "1.crt", "--password", sign(t, connector, "laptop-1", "n-2")); err != nil {
			t.Error(err)
		}
		metrics := c.get(t, "/metrics", c.token)
		for _, want := range []string{`outcome="compliance_failed",profile="intune"} 1`, `outcome="success",profile="intune"} 1`} {
			if !strings.Contains(metrics, want) {
				t.Errorf("metrics do not say %s", want)
			}
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		c.restart()
		hook.questions()
		if err := c.scep(t, "corp", "corp-demo-challenge"); err != nil || len(hook.questions()) != 1 {
			t.Error(err)
		}
		if err := c.stop(); err != nil {
			t.Fatal(err)
		}
		sealed := 0
		filepath.WalkDir(c.state, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				sealed++
				if b := readFile(t, path); bytes.Contains(b, hook.key) || bytes.Contains(b, []byte(secret[6:])) || bytes.Contains(b, []byte(hex.EncodeToString(hook.key))) {
					t.Errorf("%s holds the key in clear", path)
				}
			}
			return nil
		})
		if sealed == 0 {
			t.Error("no file of the state was looked at")
		}
	})
}

// verdicts: a clear yes issues, everything else does not, and what it was stands in the log alone.
func (c *changing) verdicts(t *testing.T, hook *webhook) {
	const cn = "plc-9.example.com"
	d := newDevice(t, c.ready.SCEPPlain+"/scep/corp")
	if err := d.request(cn, d.newKey("a.key"), "a.crt", "--password", "corp-demo-challenge"); err != nil {
		t.Fatal(err)
	}
	if err := d.request(cn, d.newKey("b.key"), "b.crt", "--cert", "a.crt", "--key", "a.key"); err != nil {
		t.Fatalf("renewal: %v", err)
	}
	if code, answer := c.est("corp", "corp-demo-password", nil); code != 200 {
		t.Errorf("EST: HTTP %d %s", code, answer)
	}
	asked := hook.questions()
	if len(asked) != 3 {
		t.Fatalf("asked %d times: %+v", len(asked), asked)
	}
	for i, q := range asked {
		first, protocol := i != 1, map[bool]string{true: "scep", false: "est"}[i < 2]
		if q.Profile != "corp" || q.Protocol != protocol || q.Renewal == first || len(q.CSRSHA256) != 64 || len(q.SANs) != 1 || !strings.HasPrefix(q.Source, "127.") || i < 2 && (q.Identity != cn || q.SANs[0] != "DNS:"+cn) {
			t.Errorf("question %d is %+v", i, q)
		}
	}
	asks := 0
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asks++ }))
	defer elsewhere.Close()
	for name, x := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		logged string
	}{
		"no": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"allow": false, "reason": "not in the asset database"}`)
		}, "not in the asset database"},
		"no verdict": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{}`)
		}, "not understood"},
		"an error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"allow": true}`, 500) }, "status 500"},
		"too late": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "status 307"},
		"half a answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"allow": true}`)
		}, "no answer"},
	} {
		hook.then(x.answer)
		var both sync.WaitGroup
		for kind, more := range map[string][]string{"first": {"--password", "corp-demo-challenge"}, "renewal": {"--cert", "a.crt", "--key", "a.key"}} {
			key := d.newKey(kind + ".key")
			both.Go(func() {
				err := d.request(cn, key, kind+".crt", more...)
				if err == nil {
					t.Errorf("%s: %s request was issued", name, kind)
				} else if strings.Contains(err.Error(), "asset database") {
					t.Errorf("%s: the device reads the webhook's words: %v", name, err)
				}
			})
		}
		both.Wait()
		var page auditPage
		c.api(t, "GET", "/api/v1/audit?limit=2", c.token, nil, &page)
		for _, r := range page.Records {
			if r.Action != "scep_refused" || r.Identity != cn || !strings.Contains(r.Reason, x.logged) {
				t.Errorf("%s is recorded as %+v", name, r)
			}
		}
	}
	if hook.says(`{"allow": true}`); asks != 0 {
		t.Error("the question followed a redirect")
	}
	// Whom the webhook's certificate chains to can be replaced, and gone back to.
	if code, answer := c.upload(t, "/api/v1/profiles/corp/bundles/compliance", c.token, pemOf("CERTIFICATE", newAuthority(t, "Another").Certificate[0])); code != 200 {
		t.Fatalf("replacing the roots: HTTP %d %s", code, answer)
	}
	if err := c.scep(t, "corp", "corp-demo-challenge"); err == nil {
		t.Error("a webhook that nobody certified was believed")
	}
	c.want(200, "DELETE", "corp/bundles/compliance", nil, nil)
	if err := c.scep(t, "corp", "corp-demo-challenge"); err != nil {
		t.Errorf("the baked roots again: %v", err)
	}
	hook.questions()
}

const (
	tenant   = "contoso.onmicrosoft.com"
	clientID = "11111111-2222-4333-8444-555555555555"
)

// cloud stands for Entra, Graph and Intune, on one server.
type cloud struct {
	*httptest.Server

	mu         sync.Mutex
	registered *x509.Certificate // at Entra
	calls      []string          // what Intune was told, without what is before the last slash
	bodies     []map[string]map[string]any
	code       string // Intune's answer to validateRequest
	broken     bool   // Intune answers nothing but 400
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{code: "Success"}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /"+tenant+"/oauth2/v2.0/token", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.checkAssertion(r); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"error":"invalid_client","error_codes":[700027]}`)
			return
		}
		io.WriteString(w, `{"token_type":"Bearer","expires_in":3599,"access_token":"token"}`)
	})
	mux.HandleFunc("GET /v1.0/servicePrincipals/{app}/endpoints", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"value":[{"providerName":"ScepRequestValidationFEService","uri":%q}]}`, c.URL+"/StatelessScep")
	})
	mux.HandleFunc("POST /StatelessScep/ScepActions/{action}", func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		var body map[string]map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("Intune got %v, %v", r.Header, err)
		}
		action := r.PathValue("action")
		c.calls, c.bodies = append(c.calls, action), append(c.bodies, body)
		if c.broken && action != "validateRequest" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		code := "Success"
		if action == "validateRequest" {
			code = c.code
		}
		fmt.Fprintf(w, `{"code":%q,"errorDescription":""}`, code)
	})
	c.Server = httptest.NewTLSServer(mux)
	c.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	t.Cleanup(c.Close)
	return c
}

// checkAssertion verifies the proof of the credential as Entra does, with the certificate it was given.
func (c *cloud) checkAssertion(r *http.Request) error {
	if c.registered == nil {
		return errors.New("nothing is registered")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return err
	}
	_, err = jws.Verify(c.registered.PublicKey)
	return err
}

func (c *cloud) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// told is what Intune was told since the last call.
func (c *cloud) told() (string, []map[string]map[string]any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls, bodies := strings.Join(c.calls, " "), c.bodies
	c.calls, c.bodies = nil, nil
	return calls, bodies
}

// startIntune runs a site whose Microsoft is the fake.
func startIntune(t *testing.T, site, spec, state string, cloud *cloud) *service {
	t.Helper()
	return startWith(t, site, spec, state, []string{"console", "plain"}, func(c *appliance.Config) {
		c.Microsoft = appliance.Microsoft{Authority: cloud.URL, Graph: cloud.URL}
	})
}

// startWith runs a site with some of its listeners and a configuration that a test changes.
func startWith(t *testing.T, site, spec, state string, names []string, change func(*appliance.Config)) *service {
	t.Helper()
	loaded, storage, host := openHost(t, site, spec, state)
	listeners := loopback(t, names...)
	ready := filepath.Join(t.TempDir(), "ready")
	config := appliance.Config{
		Site: loaded, Files: os.DirFS(site), StateDir: state, Keys: host.Client, Now: time.Now, ReadyFile: ready, Listeners: listeners,
		Boot:        handover.Boot{Kind: handover.KindHost, Provisioning: !host.Vault.Initialised(), ClaimCode: "KT2H-Z8RM", TimeSource: "host"},
		Initialised: host.Vault.MarkInitialised, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	change(&config)
	a, err := appliance.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx) }()
	s := &service{state: state}
	s.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, host.Close(), storage.Close())
	})
	t.Cleanup(func() { s.stop() })
	s.awaitReady(t, ready, done)
	return s
}

// TestIntune: a credential in the TPM, a device's challenge validated, its certificate told before it is
// handed out, and withheld until that works.
func TestIntune(t *testing.T) {
	cloud := newCloud(t)
	const profile = "challenges:\n    intune: {tenant: " + tenant + ", client_id: " + clientID + ", roots: trust/microsoft.pem}\n"
	corp := demo(t, "profiles/corp.yaml", "name: corp", "name: managed", "default: true", "default: false", "renewal: {proof: certificate, window: 90d}", "renewal: {window: 90d}")
	head, _, _ := strings.Cut(corp, "challenges:\n")
	site := variant(t, map[string]string{"profiles/managed.yaml": head + profile, "trust/microsoft.pem": string(pemOf("CERTIFICATE", cloud.Certificate().Raw))})
	loaded, err := provision.Load(os.DirFS(site))
	if err != nil {
		t.Fatal(err)
	}
	if weak := strings.Join(loaded.Weaknesses(), "\n"); !strings.Contains(weak, "profile managed: challenges.intune is experimental") {
		t.Errorf("nothing says that this is experimental: %s", weak)
	}
	tpm, state := tpmtest.Start(t), t.TempDir()
	s := startIntune(t, site, tpm, state, cloud)
	token := s.claim(t)
	status := func() string { return s.get(t, "/api/v1/status", token) }
	fetch := func() *x509.Certificate {
		t.Helper()
		block, _ := pem.Decode([]byte(s.get(t, "/api/v1/profiles/managed/intune/certificate", token)))
		if block == nil {
			t.Fatal("no certificate to register")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	challenge := strings.Repeat("a blob of Intune's ", 20)
	d := newDevice(t, s.ready.SCEPPlain+"/scep/managed")
	device := func(cn, key string) error { return d.request(cn, key, cn+".crt", "--password", challenge) }
	want := func(what, calls string) []map[string]map[string]any {
		t.Helper()
		told, bodies := cloud.told()
		if told != calls {
			t.Errorf("%s: Intune was asked %q, want %q", what, told, calls)
		}
		return bodies
	}

	if err := device("laptop", d.newKey("k")); err == nil || !strings.Contains(status(), "Profile managed cannot ask Intune: the box has no credential for it yet.") {
		t.Errorf("without a credential: %v", err)
	}
	want("without a credential", "")
	cert := fetch()
	if !fetch().Equal(cert) {
		t.Error("each time it is fetched the credential is another")
	}
	if err := device("laptop", "k"); err == nil {
		t.Error("issued although Entra does not know the credential")
	}
	cloud.set(func() { cloud.registered = cert })
	if err := device("laptop", "k"); err != nil {
		t.Fatal(err)
	}
	serial := d.serial("laptop.crt")
	bodies := want("a first certificate", "validateRequest successNotification")
	if len(bodies) == 2 {
		n := bodies[1]["notification"]
		if got := strings.ToLower(fmt.Sprint(n["certificateSerialNumber"])); strings.TrimLeft(got, "0") != strings.TrimLeft(serial, "0") ||
			n["transactionId"] != bodies[0]["request"]["transactionId"] || n["certificateRequest"] != bodies[0]["request"]["certificateRequest"] {
			t.Errorf("validated %v, told %v", bodies[0], n)
		}
	}
	if !s.has(t, token, "certificate_delivered", "success", "laptop") {
		t.Error("the log does not say that it was delivered")
	}

	cloud.set(func() { cloud.code = "SubjectNameMismatch" })
	if err := device("stranger", d.newKey("s")); err == nil {
		t.Error("issued against Intune's word")
	}
	want("Intune's no", "validateRequest")
	cloud.set(func() { cloud.code = "Success"; cloud.broken = true })
	if err := device("phone", d.newKey("p")); err == nil {
		t.Error("handed out although Intune was not told")
	}
	if calls, _ := cloud.told(); !strings.HasPrefix(calls, "validateRequest successNotification") || strings.Contains(calls, "failure") {
		t.Errorf("Intune was asked %q", calls)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = startIntune(t, site, tpm, state, cloud)
	d.url = s.ready.SCEPPlain + "/scep/managed"
	cloud.set(func() { cloud.broken = false })
	var found struct {
		Certificates []struct{ Serial, Identity string }
	}
	s.api(t, "GET", "/api/v1/certificates?q=phone", token, nil, &found)
	if err := device("phone", "p"); err != nil {
		t.Fatalf("the retry, after a restart: %v", err)
	}
	want("the retry", "validateRequest successNotification")
	if got := d.serial("phone.crt"); len(found.Certificates) != 1 || strings.TrimLeft(found.Certificates[0].Serial, "0") != strings.TrimLeft(got, "0") {
		t.Errorf("the retry got %s, and %+v was there", got, found)
	}
	// What the policy refuses Intune hears of.
	if err := device("*.example.com", d.newKey("w")); err == nil {
		t.Error("a wildcard was issued")
	}
	if calls, _ := cloud.told(); calls != "validateRequest failureNotification" {
		t.Errorf("of a refusal Intune was told %q", calls)
	}
}

func trusting(t testing.TB, bundle string) *http.Transport {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(readFile(t, bundle)) {
		t.Fatal("no CA bundle")
	}
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
}
