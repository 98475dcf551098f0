package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/webui"
)

// operated is a console over a real engine with profile iot: one-time challenges, and every device
// whose name ends in .wait is held.
type operated struct {
	testConsole
	engine  *enroll.Engine
	oneTime *challenge.OneTime
}

func newOperated(t *testing.T) *operated {
	t.Helper()
	st, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	anchored := audit.Record{Action: audit.BoxAnchored, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess, Time: time.Now(), TimeSource: "host"}
	if err := st.ResetAnchor(7, anchored); err != nil {
		t.Fatal(err)
	}
	o := &operated{}
	if o.oneTime, err = challenge.NewOneTime(challenge.OneTimeConfig{Store: st, Profile: "iot", TTL: 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	policy, err := pki.NewProfile(pki.ProfileConfig{
		Keys: pki.KeyConfig{ECDSA: []string{"p256"}}, Subject: pki.SubjectConfig{Allow: []string{"CN"}}, SAN: pki.SANConfig{DNS: []string{"*"}},
		Usage: pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}}, Validity: 24 * time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	o.engine, err = enroll.New(enroll.Config{
		Store: st, Now: time.Now, TimeSource: "host", Log: slog.New(slog.DiscardHandler),
		Profiles: []enroll.Profile{{Name: "iot", Policy: policy, Issuers: enroll.Always(newIssuer(t)), Challenges: challenge.NewSet(challenge.Config{OneTime: o.oneTime}),
			Approval: enroll.Approval{ManualIf: []string{".wait"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.engine.Close(); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	handler, err := webui.New(consoleConfig(t, st, o.engine, newTestBox(t), func(m webui.Mint) (string, time.Time, error) {
		if m.Profile != "iot" {
			return "", time.Time{}, webui.ErrNoOneTime
		}
		secret, expires, err := o.mint(m.CN, m.TTL)
		if err != nil {
			err = &webui.OrderError{Err: err}
		}
		return secret, expires, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	o.testConsole = serveTLS(t, handler, st)
	return o
}

func (o *operated) mint(cn string, ttl time.Duration) (string, time.Time, error) {
	return o.oneTime.Mint(cn, nil, ttl, time.Now(), func(g store.Guard) error {
		return o.store.Mint(g, audit.Record{Time: time.Now(), TimeSource: "host", Action: audit.ChallengeMinted, Outcome: audit.OutcomeSuccess, Identity: cn})
	})
}

// consoleConfig is a console's configuration in a test; mint may be nil.
func consoleConfig(t *testing.T, st *store.Store, e *enroll.Engine, box webui.Box, mint func(webui.Mint) (string, time.Time, error)) webui.Config {
	if mint == nil {
		mint = func(webui.Mint) (string, time.Time, error) { return "", time.Time{}, webui.ErrNoOneTime }
	}
	signer, err := store.NewLogSigner(st, "demo", newECKey(t), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return webui.Config{
		Audit: signer,
		Store: st, Boot: handover.Boot{Kind: handover.KindHost}, Site: func() webui.Site { return webui.Site{Name: "demo"} },
		ClaimCode: testClaimCode, CABundle: func() []byte { return nil }, Now: time.Now, TimeSource: "host", Log: slog.New(slog.DiscardHandler),
		Source: func(*http.Request) netip.Addr { return netip.MustParseAddr("127.0.0.1") },
		Enroll: e, SCEP: func() []webui.SCEPProfile { return nil }, Box: box, Metrics: http.NotFoundHandler(), Mint: mint,
		Machine: func() webui.Machine { return webui.Machine{} }, History: func() (webui.History, error) { return webui.History{}, nil },
		EST:         func() []webui.ESTProfile { return nil },
		ReloadTrust: func(string, string) (string, error) { return "", webui.ErrNoSigned }, ReloadESTTrust: func(string, string) (string, error) { return "", webui.ErrNoESTTrust },
	}
}

func newIssuer(t *testing.T) *pki.Issuer {
	t.Helper()
	key := newECKey(t)
	subject, err := pki.ParseDN("CN=Test CA")
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewRoot(subject, key, time.Now(), 24*time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.NewIssuer(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return issuer
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request has a device ask for a certificate for cn.
func (o *operated) request(t *testing.T, cn string) *enroll.Result {
	t.Helper()
	secret, _, err := o.mint(cn, 0)
	if err != nil {
		t.Fatal(err)
	}
	key := newECKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	nonce := sha256.Sum256([]byte(cn))
	result, err := o.engine.Enroll(context.Background(), enroll.Request{
		Profile: "iot", Protocol: enroll.ProtocolSCEP, TransactionID: "of " + cn, CSR: csr, SenderNonce: nonce[:16], Source: netip.MustParseAddr("192.0.2.7"),
		Proof: enroll.Proof{Challenge: secret, SignerSPKI: csr.RawSPKI, SelfSigned: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// TestOperate runs testdata/operate.txtar with the real main against a console on which devices
// wait: $URL, $CA and $SIGNET_TOKEN lead to it, $ID and $ID2 are held requests, $SERIAL a certificate.
func TestOperate(t *testing.T) {
	t.Setenv(tokenVariable, "")
	o := newOperated(t)
	code, stdout, stderr := signet("", "claim", o.url, "--code", testClaimCode, "--user", "ada", "--ca-bundle", o.bundle, "--json")
	if code != exitOK {
		t.Fatalf("claim: exit %d: %s", code, stderr)
	}
	variables := map[string]string{
		tokenVariable: tokenOf(t, stdout), "URL": o.url, "CA": o.bundle,
		"ID": o.request(t, "Tür.wait").ID, "ID2": o.request(t, "gate.wait").ID, "SERIAL": o.request(t, "lamp").Serial,
	}
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/operate.txtar"}, // one script: it decides what waits
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": cmdExits},
		Setup: func(e *testscript.Env) error {
			for name, value := range variables {
				e.Setenv(name, value)
			}
			return nil
		},
	})
}
