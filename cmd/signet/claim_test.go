package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/store"
	"signet.internal/webui"
)

const testClaimCode = "K7QM-2XPD"

// testConsole is a real console over a real store. bundle is the file that makes it trusted.
type testConsole struct {
	url    string
	bundle string
	store  *store.Store
}

func newTestConsole(t *testing.T) testConsole {
	t.Helper()
	st, err := store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	engine, err := enroll.New(enroll.Config{Store: st, Now: time.Now, TimeSource: "host", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	handler, err := webui.New(consoleConfig(t, st, engine, newTestBox(t), nil))
	if err != nil {
		t.Fatal(err)
	}
	return serveTLS(t, handler, st)
}

func serveTLS(t *testing.T, handler http.Handler, st *store.Store) testConsole {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // refused handshakes are meant
	srv.StartTLS()
	t.Cleanup(srv.Close)
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return testConsole{srv.URL, bundle, st}
}

// tokenOf is the token in what signet claim printed.
func tokenOf(t *testing.T, claimed string) string {
	t.Helper()
	var out webui.ClaimResponse
	if err := json.Unmarshal([]byte(claimed), &out); err != nil || out.Token == "" {
		t.Fatalf("%v in %q", err, claimed)
	}
	return out.Token
}

// signet runs the real command.
func signet(stdin string, argv ...string) (code int, stdout, stderr string) {
	var out, messages bytes.Buffer
	code = run(&terminal{stdin: strings.NewReader(stdin), stdout: &out, stderr: &messages}, argv)
	return code, out.String(), messages.String()
}

func TestClaimCommand(t *testing.T) {
	t.Setenv(tokenVariable, "")
	for _, c := range []struct {
		name  string
		stdin string
		flags []string
		made  bool // the box makes the password
	}{
		{"box makes the password", "", nil, true},
		{"password from stdin", "correct horse battery\nmore\n", []string{"--password-stdin"}, false},
		{"as JSON", "", []string{"--json"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := newTestConsole(t)
			code, stdout, stderr := signet(c.stdin, append([]string{"claim", box.url, "--code", "k7qm2xpd", "--user", "alice", "--ca-bundle", box.bundle}, c.flags...)...)
			if code != exitOK {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			var out webui.ClaimResponse
			if err := json.Unmarshal([]byte(stdout), &out); err != nil {
				t.Fatalf("%v in %q", err, stdout)
			}
			if out.User != "alice" || out.Role != "administrator" || (out.Password != "") != c.made {
				t.Errorf("printed %s", stdout)
			}
			if _, err := box.store.TokenByHash(sha256.Sum256([]byte(out.Token))); err != nil {
				t.Errorf("the printed token: %v", err)
			}
			if strings.Contains(stderr, out.Token) || !strings.Contains(stderr, "alice is now the administrator") {
				t.Errorf("stderr %q", stderr)
			}

			code, stdout, stderr = signet("", "claim", box.url, "--code", testClaimCode, "--user", "bob", "--ca-bundle", box.bundle)
			if code != exitRefused || stdout != "" || !strings.Contains(stderr, "claimed already") || !strings.Contains(stderr, "→ sign in") {
				t.Errorf("second claim: exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

func TestClaimCommandRefusals(t *testing.T) {
	t.Setenv(tokenVariable, "sgt_of-another-box")
	box := newTestConsole(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	stranger := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("Authorization"); token != "" {
			t.Errorf("a box that is claimed was shown %q", token)
		}
		http.NotFound(w, r)
	}), nil)
	moved := serveTLS(t, http.RedirectHandler(box.url+"/api/v1/claim", http.StatusTemporaryRedirect), nil)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "https://" + l.Addr().String()
	l.Close()

	good := []string{"--code", testClaimCode, "--user", "alice", "--ca-bundle", box.bundle}
	for _, c := range []struct {
		name  string
		stdin string
		argv  []string
		code  int
		says  []string
	}{
		{"wrong code", "", []string{box.url, "--code", "AAAA-AAAA", "--user", "alice", "--ca-bundle", box.bundle}, exitRefused, []string{"claim code is wrong", "→ read the code off the box's own screen"}},
		{"bad user", "", []string{box.url, "--code", testClaimCode, "--user", "a b", "--ca-bundle", box.bundle}, exitRefused, []string{"user name", "→ use 1 to 64"}},
		{"short password", "short\n", append([]string{box.url, "--password-stdin"}, good...), exitRefused, []string{"fewer than 12", "→ choose a longer one"}},
		{"no password on stdin", "\n", append([]string{box.url, "--password-stdin"}, good...), exitRefused, []string{"stdin holds no password", "→"}},
		{"not trusted", "", []string{box.url, "--code", testClaimCode, "--user", "alice"}, exitRefused, []string{"not trusted", "→", "--ca-bundle FILE"}},
		{"other box's bundle", "", []string{strings.Replace(box.url, "127.0.0.1", "localhost", 1), "--code", testClaimCode, "--user", "alice", "--ca-bundle", box.bundle}, exitRefused, []string{"for another name", "→"}},
		{"no bundle there", "", []string{box.url, "--code", testClaimCode, "--user", "alice", "--ca-bundle", empty + "x"}, exitRefused, []string{"reading CA bundle", "→"}},
		{"bundle of nothing", "", []string{box.url, "--code", testClaimCode, "--user", "alice", "--ca-bundle", empty}, exitRefused, []string{"holds no PEM certificate", "→"}},
		{"http", "", append([]string{"http://127.0.0.1:9443"}, good...), exitUsage, []string{"does not begin with https://", "→ the console is served over TLS only"}},
		{"no scheme", "", append([]string{"127.0.0.1:9443"}, good...), exitUsage, []string{"→"}},
		{"a path", "", append([]string{box.url + "/console"}, good...), exitUsage, []string{"more than where the console is", "→ leave out"}},
		{"credentials", "", append([]string{strings.Replace(box.url, "://", "://u:p@", 1)}, good...), exitUsage, []string{"→"}},
		{"no code", "", []string{box.url, "--user", "alice"}, exitUsage, []string{"--code and --user", "→ the code is on the box's own screen"}},
		{"no URL", "", good, exitUsage, []string{"→"}},
		{"plain HTTP port", "", append([]string{strings.Replace(plain.URL, "http:", "https:", 1)}, good...), exitRefused, []string{"does not speak TLS", "→ check the port"}},
		{"nobody there", "", append([]string{closed}, good...), exitRefused, []string{"reaching " + closed, "→ check address and port"}},
		{"another server", "", []string{stranger.url, "--code", testClaimCode, "--user", "alice", "--ca-bundle", stranger.bundle}, exitRefused, []string{"not how a Signet box answers", "→"}},
		{"redirected", "", []string{moved.url, "--code", testClaimCode, "--user", "alice", "--ca-bundle", moved.bundle}, exitRefused, []string{"307", "→"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := signet(c.stdin, append([]string{"claim"}, c.argv...)...)
			if code != c.code || stdout != "" {
				t.Errorf("exit %d, want %d; stdout %q; stderr %q", code, c.code, stdout, stderr)
			}
			for _, text := range c.says {
				if !strings.Contains(stderr, text) {
					t.Errorf("stderr does not say %q: %s", text, stderr)
				}
			}
			if strings.Contains(stderr, testClaimCode) {
				t.Errorf("stderr repeats the code: %s", stderr)
			}
		})
	}
	if box.store.Claimed() {
		t.Error("a refused command claimed the box")
	}
}
