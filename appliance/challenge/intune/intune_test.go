package intune

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func isUUID(s string) bool { return uuid.MatchString(s) }

func decodeSegment(t *testing.T, token string, n int, v any) {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

var transaction = Transaction{ID: "4F2C", CSR: []byte(csrText)}

// checkAction compares one action, header by header and member by member.
func checkAction(t *testing.T, s seen, path, body string) {
	t.Helper()
	if s.method != "POST" || s.path != "/RACerts/Gateway/Service/ScepActions/"+path {
		t.Errorf("action is %s %s", s.method, s.path)
	}
	for name, want := range map[string]string{
		"Authorization": "Bearer " + intuneToken, "Content-Type": "application/json; charset=utf-8",
		"Api-Version": "2018-02-20", "Useragent": caller, "User-Agent": caller,
	} {
		if got := s.header.Get(name); got != want {
			t.Errorf("%s: %s is %q, not %q", path, name, got, want)
		}
	}
	if !isUUID(s.header.Get("Client-Request-Id")) {
		t.Errorf("%s: client-request-id is %q", path, s.header.Get("Client-Request-Id"))
	}
	var got, want any
	if err := json.Unmarshal(s.body, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(body), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestLifeOfARequest(t *testing.T) {
	c := newCloud(t)
	var log bytes.Buffer
	config := c.config()
	cl := c.client(func(x *Config) {
		x.Certificate = config.Certificate
		x.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	serial, _ := new(big.Int).SetString("0a1b2c3d4e5f60718293", 16)
	issued := testCertificate(t, serial, time.Now(), time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC))

	ctx := context.Background()
	if err := cl.ValidateRequest(ctx, transaction); err != nil {
		t.Fatal(err)
	}
	if err := cl.NotifySuccess(ctx, transaction, issued); err != nil {
		t.Fatal(err)
	}
	if err := cl.NotifyFailure(ctx, transaction, Unexpected, "the TPM\nis  busy"); err != nil {
		t.Fatal(err)
	}

	csr := base64.StdEncoding.EncodeToString([]byte(csrText))
	sum := sha1.Sum(issued.Raw)
	thumbprint := strings.ToUpper(hex.EncodeToString(sum[:]))
	const issuer = `CN=Demo CA\\, East,O=Signet` // JSON-escaped
	actions := c.seen("intune")
	if len(actions) != 3 {
		t.Fatalf("%d actions", len(actions))
	}
	checkAction(t, actions[0], "validateRequest",
		`{"request":{"transactionId":"4F2C","certificateRequest":"`+csr+`","callerInfo":"Signet 0.1.0"}}`)
	checkAction(t, actions[1], "successNotification",
		`{"notification":{"transactionId":"4F2C","certificateRequest":"`+csr+`","certificateThumbprint":"`+thumbprint+`",
		"certificateSerialNumber":"A1B2C3D4E5F60718293","certificateExpirationDateUtc":"2027-03-04T05:06:07.000Z",
		"issuingCertificateAuthority":"`+issuer+`","callerInfo":"Signet 0.1.0","caConfiguration":"`+issuer+`","certificateAuthority":"`+issuer+`"}}`)
	checkAction(t, actions[2], "failureNotification",
		`{"notification":{"transactionId":"4F2C","certificateRequest":"`+csr+`","hResult":2147549183,
		"errorDescription":"the TPM is  busy","callerInfo":"Signet 0.1.0"}}`)
	if actions[0].header.Get("Client-Request-Id") == actions[1].header.Get("Client-Request-Id") {
		t.Error("two calls have one activity ID")
	}

	graph := c.seen("graph")
	if len(graph) != 1 {
		t.Fatalf("%d discoveries, not one", len(graph))
	}
	if g := graph[0]; g.method != "GET" || g.path != "/v1.0/servicePrincipals/appId=0000000a-0000-0000-c000-000000000000/endpoints" ||
		g.header.Get("Authorization") != "Bearer "+graphToken || !isUUID(g.header.Get("Client-Request-Id")) {
		t.Errorf("discovery is %s %s %v", g.method, g.path, g.header)
	}

	tokens := c.seen("entra")
	if len(tokens) != 2 {
		t.Fatalf("%d tokens, not one for Graph and one for Intune", len(tokens))
	}
	x5t := sha1.Sum(config.Certificate.Raw)
	header := map[string]any{"typ": "JWT", "alg": "RS256", "x5t": base64.RawURLEncoding.EncodeToString(x5t[:])}
	checkToken(t, c, tokens[0], config.Certificate, c.graph.URL+"/.default", jose.RS256, header)
	checkToken(t, c, tokens[1], config.Certificate, "https://api.manage.microsoft.com//.default", jose.RS256, header)

	checkNoSecrets(t, log.String())
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d log lines for three calls:\n%s", n, log.String())
	}
}

func checkNoSecrets(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{"SECRET", base64.StdEncoding.EncodeToString([]byte(csrText)), "eyJ"} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret (%s) in %q", secret, text)
		}
	}
}

func TestPS256(t *testing.T) {
	c := newCloud(t)
	config := c.config()
	cl := c.client(func(x *Config) { x.Certificate, x.Algorithm = config.Certificate, "PS256" })
	if err := cl.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := cl.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	tokens := c.seen("entra")
	if len(tokens) != 4 || len(c.seen("graph")) != 2 || len(c.seen("intune")) != 0 {
		t.Fatalf("two checks made %d tokens, %d discoveries, %d actions", len(tokens), len(c.seen("graph")), len(c.seen("intune")))
	}
	sum := sha256.Sum256(config.Certificate.Raw)
	checkToken(t, c, tokens[0], config.Certificate, c.graph.URL+"/.default", jose.PS256,
		map[string]any{"typ": "JWT", "alg": "PS256", "x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])})
}

// longSalt salts as a TPM does: as long as fits.
type longSalt struct{ *rsa.PrivateKey }

func (k longSalt) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: pss.Hash}
	}
	return k.PrivateKey.Sign(r, digest, opts)
}

func TestConfigurationRefused(t *testing.T) {
	c := newCloud(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no tenant":         {func(x *Config) { x.Tenant = "" }, "tenant"},
		"tenant of a path":  {func(x *Config) { x.Tenant = "a/../b" }, "tenant"},
		"no client":         {func(x *Config) { x.ClientID = " " }, "client ID"},
		"no caller":         {func(x *Config) { x.Caller = "" }, "caller"},
		"caller breaks":     {func(x *Config) { x.Caller = "a\r\nb" }, "caller"},
		"plain authority":   {func(x *Config) { x.Authority = "http://login.example/" }, "authority"},
		"graph with query":  {func(x *Config) { x.Graph = "https://graph.example/?a" }, "graph"},
		"graph with a user": {func(x *Config) { x.Graph = "https://u:p@graph.example/" }, "graph"},
		"resource":          {func(x *Config) { x.Resource = "api.manage.microsoft.com" }, "resource"},
		"no certificate":    {func(x *Config) { x.Certificate = nil }, "certificate"},
		"no key":            {func(x *Config) { x.Key = nil }, "key"},
		"another's key":     {func(x *Config) { x.Key = other }, "belong together"},
		"EC certificate":    {func(x *Config) { x.Certificate = &x509.Certificate{PublicKey: ec.Public()}; x.Key = ec }, "RSA"},
		"algorithm":         {func(x *Config) { x.Algorithm = "ES256" }, "RS256 or PS256"},
		"salts of a TPM":    {func(x *Config) { x.Algorithm = "PS256"; x.Key = longSalt{testKey(t)} }, "write algorithm RS256"},
		"negative timeout":  {func(x *Config) { x.Timeout = -1 }, "negative"},
	} {
		config := c.config()
		test.change(&config)
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, not a refusal with %q", name, err, test.want)
		}
	}
	config := c.config()
	config.Key = longSalt{testKey(t)}
	if _, err := New(config); err != nil {
		t.Errorf("RS256 with the key of a TPM: %v", err)
	}
}

func TestVerdicts(t *testing.T) {
	for code, class := range map[string]error{
		"CertificateRequestDecodingFailed":       ErrMalformed,
		"ChallengePasswordMissing":               ErrMalformed,
		"ChallengeDeserializationError":          ErrMalformed,
		"ChallengeDecodingError":                 ErrMalformed,
		"ChallengeDecryptionError":               ErrChallenge,
		"ChallengeInvalidTimestamp":              ErrExpired,
		"ChallengeExpired":                       ErrExpired,
		"SubjectNameMissing":                     ErrMismatch,
		"SubjectNameMismatch":                    ErrMismatch,
		"SubjectAltNameMissing":                  ErrMismatch,
		"SubjectAltNameMismatch":                 ErrMismatch,
		"KeyUsageMismatch":                       ErrMismatch,
		"KeyLengthMismatch":                      ErrMismatch,
		"EnhancedKeyUsageMissing":                ErrMismatch,
		"EnhancedKeyUsageMismatch":               ErrMismatch,
		"AadKeyIdentifierListMissing":            ErrMismatch,
		"RegisteredKeyMismatch":                  ErrMismatch,
		"SigningCertThumbprintMismatch":          ErrChallenge,
		"ScepProfileNoLongerTargetedToTheClient": ErrNotTargeted,
		"SignatureValidationFailed":              ErrChallenge,
		"BadCertificateRequestIdInChallenge":     ErrChallenge,
		"BadDeviceIdInChallenge":                 ErrChallenge,
		"BadUserIdInChallenge":                   ErrChallenge,
		"Unknown":                                ErrUnknownCode,
		"SomethingNew":                           ErrUnknownCode,
		"success":                                ErrUnknownCode,
		"1":                                      ErrUnknownCode,
		"":                                       ErrUnknownCode,
		"two\nlines":                             ErrUnknownCode,
	} {
		body, err := json.Marshal(map[string]string{"code": code, "errorDescription": "it said\r\nSECRET"})
		if err != nil {
			t.Fatal(err)
		}
		err = verdict(body, "activity")
		var rejected *Rejected
		if !errors.As(err, &rejected) || !errors.Is(err, ErrRejected) || !errors.Is(err, class) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%q: %v", code, err)
			continue
		}
		if rejected.Description != "it said  SECRET" || rejected.Activity != "activity" {
			t.Errorf("%q: %+v", code, rejected)
		}
		if word(code) && rejected.Code != Code(code) || !word(code) && rejected.Code != Unknown {
			t.Errorf("%q became %q", code, rejected.Code)
		}
		checkNoSecrets(t, err.Error())
	}
}

func TestAnswersThatAreNoVerdict(t *testing.T) {
	for _, body := range []string{
		``, `null`, `"Success"`, `[{"code":"Success"}]`, `{}`, `{"Code":"Success"}`, `{"code":null}`, `{"code":true}`, `{"code":["Success"]}`,
		`{"code":"Success","code":"Success"}`, `{"code":"ChallengeExpired","code":"Success"}`, `{"code":"Success"} {}`, `{"code":"Success"`,
		`{"code":"Success"}x`, `<html>Success</html>`, `{"c\u006fde":"Success","code":"Success"}`, `{"value":{"code":"Success"}}`,
	} {
		err := verdict([]byte(body), "activity")
		var rejected *Rejected
		if !errors.Is(err, ErrUnavailable) || errors.As(err, &rejected) {
			t.Errorf("%s: %v", body, err)
		}
	}
	if err := verdict([]byte(` {"errorDescription":null,"code":"Success","more":{"code":1}} `), ""); err != nil {
		t.Error(err)
	}
}

// TestFailures has one place answer wrongly, again and again or once, and counts who was asked how often.
func TestFailures(t *testing.T) {
	success := answer{200, nil, `{"code":"Success"}`}
	for name, test := range map[string]struct {
		at         string
		answers    []answer
		ok         bool
		credential bool
		want       string // in the error
		asked      int    // requests at that place
	}{
		"intune down":           {"intune", []answer{{503, nil, "SECRET"}}, false, false, "status 503", 3},
		"intune down twice":     {"intune", []answer{{503, nil, ""}, {500, nil, ""}, success}, true, false, "", 3},
		"intune busy, shortly":  {"intune", []answer{{429, map[string]string{"Retry-After": "0"}, ""}, success}, true, false, "", 2},
		"intune busy for long":  {"intune", []answer{{429, map[string]string{"Retry-After": "9"}, ""}, success}, false, false, "status 429", 1},
		"intune moved":          {"intune", []answer{{302, map[string]string{"Location": "https://127.0.0.1:1/SECRET"}, ""}}, false, false, "redirect", 1},
		"intune unauthorized":   {"intune", []answer{{401, nil, ""}, success}, true, false, "", 2},
		"intune unauthorized 3": {"intune", []answer{{401, nil, ""}}, false, true, "scep_challenge_provider", 3},
		"intune forbidden":      {"intune", []answer{{403, nil, "SECRET"}}, false, true, "scep_challenge_provider", 1},
		"intune 404":            {"intune", []answer{{404, nil, "SECRET"}}, false, false, "status 404", 1},
		"intune no verdict":     {"intune", []answer{{200, nil, `{"SECRET":1}`}}, false, false, "not understood", 1},
		"intune too long":       {"intune", []answer{{200, nil, `{"code":"Success","x":"` + strings.Repeat("S", maxAnswer) + `"}`}}, false, false, "longer than", 1},
		"graph forbidden":       {"graph", []answer{{403, nil, `{"error":{"message":"SECRET"}}`}}, false, true, "Application.Read.All", 1},
		"graph down":            {"graph", []answer{{500, nil, ""}}, false, false, "status 500", 3},
		"graph lists nothing":   {"graph", []answer{{200, nil, `{"value":[]}`}}, false, true, "admin consent", 1},
		"graph lists no list":   {"graph", []answer{{200, nil, `{"values":[]}`}}, false, false, "not understood", 1},
		"graph lists http":      {"graph", []answer{{200, nil, `{"value":[{"providerName":"ScepRequestValidationFEService","uri":"http://a/"}]}`}}, false, false, "https", 1},
		"graph lists a query":   {"graph", []answer{{200, nil, `{"value":[{"providerName":"ScepRequestValidationFEService","uri":"https://a/?SECRET"}]}`}}, false, false, "https", 1},
		"graph redirects":       {"graph", []answer{{301, map[string]string{"Location": "/"}, ""}}, false, false, "redirect", 1},
		"entra does not know":   {"entra", []answer{{401, nil, `{"error":"invalid_client","error_description":"AADSTS700027 SECRET","error_codes":[700027],"trace_id":"x"}`}}, false, true, "AADSTS700027; upload the certificate", 1},
		"entra: some number":    {"entra", []answer{{400, nil, `{"error":"invalid_request","error_codes":[900144]}`}}, false, true, "invalid_request, AADSTS900144; look", 1},
		"entra: a page":         {"entra", []answer{{400, nil, `<html>SECRET`}}, false, true, "status 400", 1},
		"entra: bad name":       {"entra", []answer{{400, nil, `{"error":"a\nb"}`}}, false, true, "status 400;", 1},
		"entra for a while":     {"entra", []answer{{400, nil, `{"error":"temporarily_unavailable"}`}}, false, false, "later", 3},
		"entra down":            {"entra", []answer{{503, nil, ""}}, false, false, "status 503", 3},
		"entra redirects":       {"entra", []answer{{307, map[string]string{"Location": "/"}, ""}}, false, false, "redirect", 1},
		"entra: no token":       {"entra", []answer{{200, nil, `{"token_type":"Bearer","expires_in":1}`}}, false, false, "access_token", 1},
		"entra: token breaks":   {"entra", []answer{{200, nil, `{"token_type":"Bearer","expires_in":1,"access_token":"SECRET\r\nX:y"}`}}, false, false, "no token", 1},
		"entra: other type":     {"entra", []answer{{200, nil, `{"token_type":"mac","expires_in":1,"access_token":"SECRET"}`}}, false, false, "Bearer", 1},
		"entra: no age":         {"entra", []answer{{200, nil, `{"token_type":"Bearer","access_token":"SECRET"}`}}, false, false, "expires_in", 1},
		"entra: negative age":   {"entra", []answer{{200, nil, `{"token_type":"Bearer","expires_in":-1,"access_token":"SECRET"}`}}, false, false, "expires_in", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			c.answer(test.at, test.answers...)
			var log bytes.Buffer
			cl := c.client(func(x *Config) { x.Log = slog.New(slog.NewTextHandler(&log, nil)) })
			err := cl.ValidateRequest(context.Background(), transaction)
			asked := c.seen(test.at)
			if len(asked) != test.asked {
				t.Errorf("%s was asked %d times, not %d", test.at, len(asked), test.asked)
			}
			for _, s := range asked[1:] {
				if s.header.Get("Client-Request-Id") != asked[0].header.Get("Client-Request-Id") {
					t.Error("attempts of one call have several activity IDs")
				}
			}
			checkNoSecrets(t, log.String())
			if test.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRejected) || e.What == "" || e.Mend == "" || !isUUID(e.Activity) {
				t.Fatalf("%#v is no unavailability with a mend", err)
			}
			if errors.Is(err, ErrCredential) != test.credential {
				t.Errorf("credential: %v for %v", errors.Is(err, ErrCredential), err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v does not say %q", err, test.want)
			}
			checkNoSecrets(t, err.Error())
		})
	}
}

func TestRejectionIsNotTriedAgain(t *testing.T) {
	c := newCloud(t)
	c.answer("intune", answer{200, nil, `{"code":"ChallengeExpired","errorDescription":""}`})
	cl := c.client(nil)
	for _, call := range []func() error{
		func() error { return cl.ValidateRequest(context.Background(), transaction) },
		func() error {
			return cl.NotifySuccess(context.Background(), transaction, testCertificate(t, big.NewInt(1), time.Now(), time.Now()))
		},
		func() error { return cl.NotifyFailure(context.Background(), transaction, AccessDenied, "") },
	} {
		if err := call(); !errors.Is(err, ErrRejected) || !errors.Is(err, ErrExpired) {
			t.Errorf("%v", err)
		}
	}
	if n := len(c.seen("intune")); n != 3 {
		t.Errorf("three rejected calls were %d requests", n)
	}
}

// TestServiceMoves: an unreachable or failing address is looked up again.
func TestServiceMoves(t *testing.T) {
	c := newCloud(t)
	gone := httptest.NewTLSServer(http.NotFoundHandler())
	gone.Close()
	c.answer("graph", answer{200, nil, c.endpoints(gone.URL + "/old")}, answer{200, nil, c.endpoints(c.intune.URL + "/new/")})
	if err := c.client(nil).ValidateRequest(context.Background(), transaction); err != nil {
		t.Fatal(err)
	}
	if s := c.seen("intune"); len(s) != 1 || s[0].path != "/new/ScepActions/validateRequest" {
		t.Errorf("asked %v", s)
	}
}

func TestTokensAreRenewedBeforeTheirEnd(t *testing.T) {
	c := newCloud(t)
	now := time.Now()
	cl := c.client(func(x *Config) { x.Now = func() time.Time { return now } })
	validate := func(after time.Duration, tokens int) {
		t.Helper()
		now = now.Add(after)
		if err := cl.ValidateRequest(context.Background(), transaction); err != nil {
			t.Fatal(err)
		}
		if n := len(c.seen("entra")); n != tokens {
			t.Errorf("%d tokens, not %d", n, tokens)
		}
	}
	validate(0, 2)
	validate(54*time.Minute, 2)
	validate(2*time.Minute, 3) // only Intune's: the service's address is still known
}

// TestRefusedTokenIsReplaced: a 401 costs one new token, a 403 the next caller one, since a token keeps
// the permissions it was made with.
func TestRefusedTokenIsReplaced(t *testing.T) {
	c := newCloud(t)
	cl := c.client(nil)
	for _, test := range []struct {
		status, tokens int
		ok             bool
	}{{200, 2, true}, {401, 3, true}, {403, 3, false}, {200, 4, true}, {200, 4, true}} {
		c.answer("intune", answer{test.status, nil, `{"code":"Success"}`}, answer{200, nil, `{"code":"Success"}`})
		if err := cl.ValidateRequest(context.Background(), transaction); (err == nil) != test.ok {
			t.Errorf("status %d: %v", test.status, err)
		}
		if n := len(c.seen("entra")); n != test.tokens {
			t.Errorf("status %d: %d tokens, not %d", test.status, n, test.tokens)
		}
	}
	if n := len(c.seen("graph")); n != 1 {
		t.Errorf("%d discoveries, not one", n)
	}
}

func TestExpiredCertificate(t *testing.T) {
	c := newCloud(t)
	cl := c.client(func(x *Config) { x.Now = func() time.Time { return time.Now().Add(48 * time.Hour) } })
	err := cl.ValidateRequest(context.Background(), transaction)
	if !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), "renew it") || len(c.seen("entra")) != 0 {
		t.Errorf("%v", err)
	}
}

func TestManyAtOnceShareTokens(t *testing.T) {
	c := newCloud(t)
	cl := c.client(nil)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if err := cl.ValidateRequest(context.Background(), transaction); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if e, g, i := len(c.seen("entra")), len(c.seen("graph")), len(c.seen("intune")); e != 2 || g != 1 || i != 40 {
		t.Errorf("40 requests made %d tokens, %d discoveries and %d actions", e, g, i)
	}
}

// TestSilence: a place that never answers ends with the time of an attempt, with the call's time, or
// with the caller's patience; callers waiting for its token end with theirs.
func TestSilence(t *testing.T) {
	c := newCloud(t)
	asked := make(chan struct{}, 100)
	silent := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	t.Cleanup(silent.Close)
	at := func(x *Config) { x.Authority = silent.URL }

	var log bytes.Buffer
	cl := c.client(func(x *Config) {
		at(x)
		x.Attempt, x.Log = 20*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
	})
	if err := cl.ValidateRequest(context.Background(), transaction); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attempts: %v", err)
	}
	if !strings.Contains(log.String(), "attempts=3") {
		t.Errorf("not three attempts: %s", log.String())
	}
	cl = c.client(func(x *Config) { at(x); x.Timeout = 20 * time.Millisecond })
	if err := cl.ValidateRequest(context.Background(), transaction); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timeout: %v", err)
	}

	for len(asked) > 0 {
		<-asked
	}
	cl = c.client(at)
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan error, 2)
	for range 2 {
		go func() { results <- cl.ValidateRequest(ctx, transaction) }()
	}
	<-asked // one asks, the other waits for its token
	cancel()
	for range 2 {
		if err := <-results; !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("patience: %v", err)
		}
	}
}

func TestUnknownRootIsRefused(t *testing.T) {
	c := newCloud(t)
	cl := c.client(func(x *Config) { x.Roots = x509.NewCertPool() })
	err := cl.ValidateRequest(context.Background(), transaction)
	var unknown x509.UnknownAuthorityError
	if !errors.Is(err, ErrUnavailable) || !errors.As(err, &unknown) || len(c.seen("entra")) != 0 || strings.Contains(err.Error(), "oauth2") {
		t.Errorf("%v", err)
	}
}

func TestTransactionsRefusedHere(t *testing.T) {
	c := newCloud(t)
	cl := c.client(nil)
	csr := []byte(csrText)
	for _, tr := range []Transaction{
		{"", csr}, {" ", csr}, {"a\nb", csr}, {"\xff", csr}, {strings.Repeat("a", maxTransaction+1), csr}, {"a", nil}, {"a", make([]byte, maxRequest+1)},
	} {
		if err := cl.ValidateRequest(context.Background(), tr); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%.20q: %v", tr.ID, err)
		}
	}
	if len(c.seen("entra")) != 0 {
		t.Error("somebody was asked")
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "",
		" a\tb\x00\x1b[31mc ":            "a b[31mc",
		"a\xffb":                         "ab",
		strings.Repeat("ä", 300):         strings.Repeat("ä", 255),
		strings.Repeat("😀", 300):         strings.Repeat("😀", 127), // two UTF-16 units each
		"a\u202egnp.exe":                 "agnp.exe",
		"one\u2028two":                   "one two",
		strings.Repeat("x", 255) + "  y": strings.Repeat("x", 255),
	} {
		if got := clean(in); got != want {
			t.Errorf("%q became %q, not %q", in, got, want)
		}
	}
}

// FuzzAnswers reads whatever a service may send with each of the readers.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"code":"Success","errorDescription":""}`, `{"code":"ChallengeExpired","errorDescription":"x"}`, `{"Code":"Success"}`,
		`{"code":"ChallengeExpired","code":"Success"}`, `{"value":[{"providerName":"ScepRequestValidationFEService","uri":"https://a/b"}]}`,
		`{"token_type":"Bearer","expires_in":"3599","access_token":"abc"}`, `{"error":"invalid_client","error_codes":[700027]}`, `{"a":[[[{}]]]}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if err := verdict(body, "activity"); err == nil {
			// Another reader of JSON has to agree that the answer says Success, and nothing else.
			var m map[string]any
			if json.Unmarshal(body, &m) != nil || m["code"] != "Success" {
				t.Errorf("%q is taken for success", body)
			}
		} else if !errors.Is(err, ErrRejected) && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v is neither a no nor an unavailability", err)
		} else if strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%q breaks the log", err)
		}
		if uri, err := findService(body); err == nil && (!strings.HasPrefix(strings.ToLower(uri), "https://") || strings.HasSuffix(uri, "/")) {
			t.Errorf("%q is taken for the service", uri)
		}
		if token, age, err := readToken(body); err == nil && (token == "" || strings.ContainsAny(token, " \r\n\x00") || age <= 0 || age > maxTokenAge) {
			t.Errorf("%q for %v is taken for a token", token, age)
		}
		if err := tokenRefused(400, http.Header{}, body, "activity"); !errors.Is(err, ErrUnavailable) || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%q", err)
		}
	})
}
