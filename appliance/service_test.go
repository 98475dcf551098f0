package appliance_test

// A green run here proves the service from HTTP to the TPM's protocol with clients nobody here
// wrote, on swtpm. It does not prove boot policies (host keys have none) or timing on a real TPM.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/needtest"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

const demoSite = "../configs/demo"

// service is one run of the whole service on loopback.
type service struct {
	ready  appliance.Ready
	state  string
	client *http.Client
	stop   func() error
}

// start runs the demo site on the TPM at spec with the given state directory.
func start(t testing.TB, spec, state string) *service {
	t.Helper()
	return startSite(t, demoSite, spec, state, nil)
}

// openHost loads a site and opens the keys of a development host for it. The storage is to be closed after the host.
func openHost(t testing.TB, site, spec, state string) (*provision.Site, *os.File, *keys.Host) {
	t.Helper()
	loaded, err := provision.Load(os.DirFS(site))
	if err != nil {
		t.Fatal(err)
	}
	storage, err := os.OpenFile(filepath.Join(state, "keys"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var specs []keys.Spec
	for _, k := range loaded.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	host, err := keys.OpenHost(spec, storage, loaded.Name, specs)
	if err != nil {
		t.Fatal(err)
	}
	return loaded, storage, host
}

// loopback listens for each name on a free port.
func loopback(t testing.TB, names ...string) map[string]net.Listener {
	t.Helper()
	all := map[string]net.Listener{}
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all[name] = l
	}
	return all
}

// startSite runs the site in a directory.
func startSite(t testing.TB, site, spec, state string, reload <-chan os.Signal) *service {
	t.Helper()
	o := appliance.Options{
		ConfigDir:  site,
		StateDir:   state,
		TPM:        spec,
		Reload:     reload,
		ListenBase: "127.0.0.1:0",
		ReadyFile:  filepath.Join(t.TempDir(), "ready.json"),
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- appliance.Run(ctx, o) }()
	s := &service{state: state}
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stopping the service: %v", err)
		}
	})
	s.awaitReady(t, o.ReadyFile, done)
	return s
}

// awaitReady reads the ready file once it is there. What comes of ended before that ends the test.
func (s *service) awaitReady(t testing.TB, file string, ended chan error) {
	t.Helper()
	for {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the service ended before it was ready: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if err := json.Unmarshal(b, &s.ready); err != nil {
			t.Fatalf("ready file: %v\n%s", err, b)
		}
		s.client = &http.Client{Timeout: time.Minute, Transport: trusting(t, s.ready.CABundle)}
		return
	}
}

// api calls the admin API and decodes its answer into out.
func (s *service) api(t *testing.T, method, path, token string, in, out any) int {
	t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, s.ready.Console+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(b, out); err != nil {
			t.Fatalf("%s %s: %v\n%s", method, path, err, b)
		}
	}
	return resp.StatusCode
}

func (s *service) claim(t *testing.T) (token string) {
	t.Helper()
	var out struct{ Token string }
	if code := s.api(t, "POST", "/api/v1/claim", "", map[string]string{"code": s.ready.ClaimCode, "user": "ada"}, &out); code >= 300 {
		t.Fatalf("claim: HTTP %d", code)
	}
	return out.Token
}

// run executes a program in dir and returns everything it printed.
func run(t *testing.T, dir, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	out, err := run(t, dir, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

// enrollStrongSwan enrolls cn by strongSwan's pki and returns the PEM certificate's path.
func enrollStrongSwan(t *testing.T, dir, url, cn, challenge string) (string, error) {
	t.Helper()
	pki := needtest.Program(t, "pki", "strongswan-pki")
	mustRun(t, dir, pki, "--scepca", "--url", url, "--caout", "ca.crt", "--raout", "ra.crt", "--outform", "pem", "--force")
	key, err := exec.Command(pki, "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem").Output()
	if err != nil {
		t.Fatalf("pki --gen: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, cn+".key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(pki, "--scep", "--url", url, "--in", cn+".key", "--dn", "C=CH, CN="+cn, "--san", cn,
		"--password", challenge, "--cacert-enc", "ra.crt", "--cacert-sig", "ra.crt", "--cacert", "ca.crt", "--outform", "pem")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	path := filepath.Join(dir, cn+".crt")
	return path, os.WriteFile(path, out, 0o600)
}

type auditPage struct {
	Records []struct {
		Index                                              uint64
		Action, Actor, Source, Profile, Identity, Serial   string
		Outcome, Reason, Protocol, Transaction, TimeSource string `json:",omitempty"`
	}
}

func TestServiceEnrollsRealClients(t *testing.T) {
	needtest.Program(t, "pki", "strongswan-pki")
	openssl := needtest.Program(t, "openssl", "openssl")
	swtpm := tpmtest.Start(t)
	state := t.TempDir()
	s := start(t, swtpm, state)
	token := s.claim(t)

	for _, profile := range []struct{ name, challenge string }{
		{"corp", "corp-demo-challenge"},
		{"modern", "modern-demo-challenge"},
	} {
		t.Run("strongSwan enrolls at "+profile.name, func(t *testing.T) {
			dir := t.TempDir()
			cn := profile.name + "-device.example.com"
			crt, err := enrollStrongSwan(t, dir, s.ready.SCEPPlain+"/scep/"+profile.name, cn, profile.challenge)
			if err != nil {
				t.Fatalf("pki --scep: %v\n%s", err, crt)
			}
			out := mustRun(t, dir, openssl, "verify", "-x509_strict", "-CAfile", "ca.crt", crt)
			if !strings.Contains(out, ": OK") {
				t.Errorf("openssl verify: %s", out)
			}
			mustRun(t, dir, openssl, "verify", "-CAfile", s.ready.CABundle, crt)
			serial := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(mustRun(t, dir, openssl, "x509", "-in", crt, "-noout", "-serial")), "serial="))
			var page auditPage
			s.api(t, "GET", "/api/v1/audit", token, nil, &page)
			found := false
			for _, r := range page.Records {
				found = found || (r.Identity == cn && strings.TrimLeft(r.Serial, "0") == strings.TrimLeft(serial, "0") && r.Profile == profile.name)
			}
			if !found {
				t.Errorf("no audit record of %s with serial %s in %+v", cn, serial, page.Records)
			}
		})
	}

	t.Run("a wrong challenge is a clean failure and a record", func(t *testing.T) {
		out, err := enrollStrongSwan(t, t.TempDir(), s.ready.SCEPPlain+"/scep/corp", "mallory.example.com", "guess")
		if err == nil {
			t.Fatal("a wrong challenge got a certificate")
		}
		if !strings.Contains(out, "FAILURE") && !strings.Contains(strings.ToLower(out), "fail") {
			t.Errorf("strongSwan does not report a SCEP failure:\n%s", out)
		}
		var page auditPage
		s.api(t, "GET", "/api/v1/audit", token, nil, &page)
		found := false
		for _, r := range page.Records {
			found = found || (r.Outcome != "success" && strings.Contains(r.Reason, "challenge"))
		}
		if !found {
			t.Errorf("no audit record of the refusal in %+v", page.Records)
		}
	})

	t.Run("the box's own address is nobody's name", func(t *testing.T) {
		addresses, err := net.InterfaceAddrs()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(addresses, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			return ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback()
		})
		if i < 0 {
			t.Skip("this machine has no address but the loopback's")
		}
		own := addresses[i].(*net.IPNet).IP.String()
		if out, err := enrollStrongSwan(t, t.TempDir(), s.ready.SCEPPlain+"/scep/corp", own, "corp-demo-challenge"); err == nil {
			t.Errorf("a device got a certificate for %s: %s", own, out)
		}
	})

	t.Run("bad input gets one clear answer", func(t *testing.T) {
		random := make([]byte, 700)
		rand.Read(random)
		post := func(body io.Reader) (int, string) {
			resp, err := s.client.Post(s.ready.SCEPPlain+"/scep?operation=PKIOperation", "application/x-pki-message", body)
			if err != nil {
				t.Fatalf("POST: %v", err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b)
		}
		if code, body := post(bytes.NewReader(random)); code != http.StatusBadRequest || body == "" {
			t.Errorf("random bytes: HTTP %d %q", code, body)
		}
		if code, body := post(bytes.NewReader(nil)); code != http.StatusBadRequest || body == "" {
			t.Errorf("empty body: HTTP %d %q", code, body)
		}
		if code := hugePost(t, s.ready.SCEPPlain+"/scep?operation=PKIOperation"); code != http.StatusRequestEntityTooLarge {
			t.Errorf("100 MB: HTTP %d", code)
		}
		if code := s.api(t, "GET", "/api/v1/status", "", nil, nil); code != http.StatusUnauthorized {
			t.Errorf("status without a token: HTTP %d", code)
		}
	})

	t.Run("after a restart it is the same box", func(t *testing.T) {
		before, err := os.ReadFile(s.ready.CABundle)
		if err != nil {
			t.Fatal(err)
		}
		var was, is auditPage
		s.api(t, "GET", "/api/v1/audit", token, nil, &was)
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		again := start(t, swtpm, state)
		after, err := os.ReadFile(again.ready.CABundle)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before, after) {
			t.Error("the authorities changed over a restart")
		}
		if again.ready.TLSSHA256 != s.ready.TLSSHA256 {
			t.Error("the TLS certificate changed over a restart")
		}
		if again.ready.ClaimCode != "" {
			t.Error("a claimed box still shows a claim code")
		}
		again.api(t, "GET", "/api/v1/audit", token, nil, &is)
		if len(was.Records) == 0 || len(is.Records) < len(was.Records) {
			t.Errorf("records before the restart %d, after %d", len(was.Records), len(is.Records))
		}
		if err := again.stop(); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("an empty state directory with provisioned keys is refused", func(t *testing.T) {
		if err := os.RemoveAll(filepath.Join(state, "store")); err != nil {
			t.Fatal(err)
		}
		o := appliance.Options{ConfigDir: demoSite, StateDir: state, TPM: swtpm, ListenBase: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}
		err := appliance.Run(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), "state") {
			t.Errorf("got %v", err)
		}
	})
}

// hugePost sends up to 100 MB and returns the status the server answered with, also when it answered
// before it had read everything.
func hugePost(t *testing.T, url string) int {
	t.Helper()
	out, err := exec.Command(needtest.Program(t, "curl", "curl"), "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60",
		"-H", "Expect:", "--data-binary", "@"+hugeFile(t), url).Output()
	var code int
	fmt.Sscan(string(out), &code)
	if code == 0 {
		t.Fatalf("curl: %v %q", err, out)
	}
	return code
}

func hugeFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "huge")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(100 << 20); err != nil {
		t.Fatal(err)
	}
	return path
}
