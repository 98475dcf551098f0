package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"signet.internal/webui"
)

// testBox is a box with authority devices, a root, and plant, a subordinate that waits for its chain;
// its profile iot can be switched off.
type testBox struct {
	webui.Box // nil: the commands order nothing else

	mu          sync.Mutex
	authorities []webui.AuthorityInfo
	off         *webui.Switch
}

func newTestBox(t *testing.T) *testBox {
	t.Helper()
	ca := newIssuer(t).Certificate()
	return &testBox{authorities: []webui.AuthorityInfo{
		{Name: "devices", Mode: "root", RAs: []webui.RAInfo{{Certificate: ca}}, Generations: []webui.GenerationInfo{{Number: 1, State: webui.GenerationActive, Certificate: ca}}},
		{Name: "plant", Mode: "subordinate", Generations: []webui.GenerationInfo{{Number: 1, State: webui.GenerationWaiting}}},
	}}
}

func (b *testBox) Authorities() []webui.AuthorityInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]webui.AuthorityInfo{}, b.authorities...)
}

// change puts other generations in place of an authority's.
func (b *testBox) change(name string, f func([]webui.GenerationInfo) ([]webui.GenerationInfo, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, a := range b.authorities {
		if a.Name != name {
			continue
		}
		generations, err := f(append([]webui.GenerationInfo{}, a.Generations...))
		if err != nil {
			return err
		}
		b.authorities[i].Generations = generations
		return nil
	}
	return webui.ErrNoAuthority
}

func (b *testBox) AuthorityRequest(name string) (webui.AuthorityRequest, error) {
	switch name {
	case "plant":
	case "devices":
		return webui.AuthorityRequest{}, &webui.ConflictError{What: "authority devices is its own root", Mend: "ask for a subordinate's request"}
	default:
		return webui.AuthorityRequest{}, webui.ErrNoAuthority
	}
	return webui.AuthorityRequest{Generation: 1, PEM: []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
		Certification: &webui.Certification{Attest: []byte("attest")}}, nil
}

func (b *testBox) InstallChain(name string, chain []byte, _ string) error {
	block, _ := pem.Decode(chain)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return &webui.OrderError{Err: errors.New("the chain does not reach a root")}
	}
	return b.change(name, func(g []webui.GenerationInfo) ([]webui.GenerationInfo, error) {
		g[0].State, g[0].Certificate = webui.GenerationActive, cert
		return g, nil
	})
}

func (b *testBox) PrepareNext(name, _ string) error {
	return b.change(name, func(g []webui.GenerationInfo) ([]webui.GenerationInfo, error) {
		return append(g, webui.GenerationInfo{Number: 2, State: webui.GenerationNext, Certificate: g[0].Certificate}), nil
	})
}

func (b *testBox) ActivateNext(name, _ string) error {
	return b.change(name, func(g []webui.GenerationInfo) ([]webui.GenerationInfo, error) {
		if len(g) < 2 {
			return nil, &webui.ConflictError{What: "no next generation was prepared", Mend: "prepare one first"}
		}
		g[0].State, g[1].State = webui.GenerationEarlier, webui.GenerationActive
		return g, nil
	})
}

func (b *testBox) CancelNext(name, _ string) error {
	return b.change(name, func(g []webui.GenerationInfo) ([]webui.GenerationInfo, error) { return g[:1], nil })
}

func (b *testBox) RotateRA(string) error { return nil }

func (b *testBox) Settings(profile string) (webui.ProfileSettings, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if profile != "iot" {
		return webui.ProfileSettings{}, webui.ErrNoProfile
	}
	return webui.ProfileSettings{Profile: profile, Authority: "devices", Off: b.off}, nil
}

func (b *testBox) SwitchProfile(profile string, off bool, reason, actor string) error {
	if _, err := b.Settings(profile); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off = nil
	if off {
		b.off = &webui.Switch{Reason: reason, Change: webui.Change{By: actor, At: time.Now()}}
	}
	return nil
}

// TestAdminister runs testdata/administer.txtar with the real main against a console over a testBox and
// a real engine: $URL, $CA and $SIGNET_TOKEN lead to it, $CHAIN is a PEM file with a certificate, $SERIAL
// and $REVOKED are serials of certificates for lamp and Tür.
func TestAdminister(t *testing.T) {
	t.Setenv(tokenVariable, "")
	o := newOperated(t)
	code, stdout, stderr := signet("", "claim", o.url, "--code", testClaimCode, "--user", "ada", "--ca-bundle", o.bundle, "--json")
	if code != exitOK {
		t.Fatalf("claim: exit %d: %s", code, stderr)
	}
	chain := filepath.Join(t.TempDir(), "chain.pem")
	if err := os.WriteFile(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newIssuer(t).Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{tokenVariable: tokenOf(t, stdout), "URL": o.url, "CA": o.bundle, "CHAIN": chain,
		"SERIAL": o.request(t, "lamp").Serial, "REVOKED": o.request(t, "Tür").Serial}
	if err := o.engine.Revoke(t.Context(), variables["REVOKED"], "keyCompromise", "ada"); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/administer.txtar"},
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": cmdExits},
		Setup: func(e *testscript.Env) error {
			for name, value := range variables {
				e.Setenv(name, value)
			}
			return nil
		},
	})
}
