package webui

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// endless is a body without an end, which counts what is read of it.
type endless struct {
	head string
	read int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.read > 64<<20 {
		return 0, io.EOF // the test has failed by then
	}
	n := copy(p, e.head)
	e.head = e.head[n:]
	for i := n; i < len(p); i++ {
		p[i] = 'x'
	}
	e.read += len(p)
	return len(p), nil
}

// TestNobodyFillsMemory: no address reads more of a body than its form needs, and a page for strangers none,
// whatever the body says it is.
func TestNobodyFillsMemory(t *testing.T) {
	box := newBox(t)
	token := box.mustClaim().Token
	for _, rt := range box.console.routes {
		if rt.pattern == "/events" {
			continue
		}
		for _, mediaType := range []string{"multipart/form-data; boundary=b", "application/x-www-form-urlencoded", mediaJSON, mediaPEM} {
			body := &endless{head: "--b\r\nContent-Disposition: form-data; name=\"next\"\r\n\r\n"}
			r := httptest.NewRequest(rt.method, "https://localhost"+pathOf(rt), body)
			r.Header.Set("Content-Type", mediaType)
			r.Header.Set("Authorization", "Bearer "+token)
			box.console.handler().ServeHTTP(httptest.NewRecorder(), r)
			most := maxUpload + 64<<10 // what the reader takes ahead
			if rt.method == http.MethodGet {
				most = 0
			}
			if body.read > most {
				t.Errorf("%s %s reads %d bytes of a body of %s", rt.method, rt.pattern, body.read, mediaType)
			}
		}
	}
	part := "--b\r\nContent-Disposition: form-data; name=\"next\"\r\n\r\n/box\r\n--b--\r\n"
	box.send("GET", "/sign-in", strings.NewReader(part), header("Content-Type", "multipart/form-data; boundary=b")).saysNot(t, `name="next"`)
}

// meanwhile has f done once, at the nth time that the console asks where a request comes from: between two steps
// of what it does for one.
func (b *testBox) meanwhile(n int, f func()) {
	source := b.console.cfg.Source
	b.console.cfg.Source = func(r *http.Request) netip.Addr {
		if n--; n == 0 {
			f()
		}
		return source(r)
	}
}

// TestSignInAgainstChange: who signs in with a password, role or account that an administrator takes away at the
// same moment has no session afterwards, at whatever step of the sign-in that comes.
func TestSignInAgainstChange(t *testing.T) {
	role, password := "auditor", "another horse battery"
	for name, change := range map[string]func(box *testBox, admin principal) error{
		"another password": func(box *testBox, admin principal) error {
			_, err := box.console.changeUser(httptest.NewRequest("PATCH", "/", nil), "bob", UserPatch{Password: &password}, admin)
			return err
		},
		"another role": func(box *testBox, admin principal) error {
			_, err := box.console.changeUser(httptest.NewRequest("PATCH", "/", nil), "bob", UserPatch{Role: &role}, admin)
			return err
		},
		"another user": func(box *testBox, admin principal) error {
			if _, err := box.console.removeUser(httptest.NewRequest("DELETE", "/", nil), "bob", admin); err != nil {
				return err
			}
			box.clock.pass(time.Second)
			_, err := box.console.createUser(httptest.NewRequest("POST", "/", nil), UserRequest{Name: "bob", Role: "operator"}, admin)
			return err
		},
	} {
		for _, step := range []int{2, 4} { // before the sign-in is recorded, and before its session is kept
			box := newBox(t)
			out := box.mustClaim()
			box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, bearer(out.Token))
			done := false
			box.meanwhile(step, func() {
				done = true
				source := box.console.cfg.Source
				box.console.cfg.Source = func(*http.Request) netip.Addr { return addr("192.0.2.9") }
				defer func() { box.console.cfg.Source = source }()
				if err := change(box, principal{user: "alice", role: administrator, via: "test"}); err != nil {
					t.Error(err)
				}
			})
			in := box.submit("/sign-in", url.Values{"user": {"bob"}, "password": {"correct horse battery"}})
			for _, c := range in.Cookies() {
				if c.Name != sessionCookie || c.Value == "" {
					continue
				}
				if got := box.get("/api/v1/account", withCookie(c)); got.StatusCode == 200 {
					t.Errorf("%s at step %d: the session is good", name, step)
				}
			}
			if !done {
				t.Errorf("a sign-in asks for the source less than %d times: this test tests nothing", step)
			}
			if in.StatusCode == http.StatusInternalServerError {
				t.Errorf("%s at step %d: status %d: %s", name, step, in.StatusCode, box.log.String())
			}
		}
	}
}

// TestOwnPasswordAgainstReset: who changes their password with the one that an administrator replaces at the same
// moment does not undo that.
func TestOwnPasswordAgainstReset(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, bearer(out.Token))
	mallory := withCookie(box.signedIn("bob", "correct horse battery")) // knows bob's password
	admins := "a password only bob is told"
	box.meanwhile(1, func() {
		hash, err := box.console.hasher.hash(t.Context(), admins)
		if err != nil {
			t.Error(err)
		}
		if err := box.store.ChangeUser("bob", store.UserChange{PasswordHash: &hash}); err != nil {
			t.Error(err)
		}
	})
	box.post("/api/v1/account/password", PasswordRequest{Current: "correct horse battery", New: "mallory keeps it"}, mallory).checkProblem(t, 409, "account-changed")
	box.signedIn("bob", admins)
}

// TestCommandsRunNothingElse: what a site calls its users is one word of the commands that people paste, whatever
// is in it.
func TestCommandsRunNothingElse(t *testing.T) {
	user := `o'brien'; touch pwned; echo "$(touch pwned)" ` + "`touch pwned`" + ` \' $HOME`
	box := newBox(t, func(c *Config) {
		est := c.EST()
		for i := range est {
			est[i].Users = []string{user}
		}
		c.EST = func() []ESTProfile { return est }
	})
	ran := 0
	for _, g := range must(box.console.recipe(httptest.NewRequest("GET", "https://localhost/", nil), "corp"))(t).guides() {
		for _, step := range g.Steps {
			option := map[string]string{"strongswan": "--userpass ", "curl": "--cacert signet-tls.pem -u "}[g.Key]
			_, after, ok := strings.Cut(step.Code, option)
			if option == "" || !ok {
				continue
			}
			ran++
			word, _, ok := strings.Cut(after, ":PASSWORD'")
			if !ok {
				t.Fatalf("%s: %s", g.Key, step.Code)
			}
			sh := exec.Command("sh", "-c", "set -- "+word+":PASSWORD'; printf '%s %s' $# \"$1\"")
			sh.Dir = t.TempDir()
			said, err := sh.CombinedOutput()
			if err != nil || string(said) != "1 "+user+":PASSWORD" {
				t.Errorf("%s: a shell reads %q, %v", g.Key, said, err)
			}
			if left, err := os.ReadDir(sh.Dir); err != nil || len(left) > 0 {
				t.Errorf("%s: a command ran: %v, %v", g.Key, left, err)
			}
		}
	}
	if ran != 2 {
		t.Errorf("%d commands with a user, want curl's and strongSwan's", ran)
	}
}

// must is for what does not go wrong in a test.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestNobodyIsLed: a GET that makes something makes nothing where a page of another origin, also one of the same
// site, which browsers bring the session to, sent the browser here.
func TestNobodyIsLed(t *testing.T) {
	box := newBox(t)
	who := withCookie(box.signedIn("alice", box.mustClaim().Password))
	for _, path := range []string{"/certsrv/mscep_admin?profile=iot&cn=x", "/profiles/corp/intune.pem", "/api/v1/profiles/corp/intune/certificate"} {
		for site, status := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200} {
			if got := box.get(path, who, header("Sec-Fetch-Site", site)); got.StatusCode != status {
				t.Errorf("%s from %s: status %d", path, site, got.StatusCode)
			}
		}
	}
}

// TestNobodyIsTheBox: no user is called what the audit log calls the box and its devices.
func TestNobodyIsTheBox(t *testing.T) {
	for _, name := range []string{"box", "Box", "device", "DEVICE"} {
		if checkUser(name) == nil {
			t.Errorf("a user may be called %s", name)
		}
	}
}

// TestUnseen: nobody looks like somebody else by characters that are not seen, and a page spells out those that its
// template does not, but for lines and tabs.
func TestUnseen(t *testing.T) {
	for _, r := range "\u202e\u2066\u200b\u00ad\ufe0f\u3164\u115f\u2800\u034f\u00a0\U000e0041\x00\x1b" {
		if got := visible("cam" + string(r)); got == "cam"+string(r) || len(got) < 5 {
			t.Errorf("%U is shown as %q", r, got)
		}
		if got := string(legible([]byte("<p>\n\tcam" + string(r) + "</p>"))); got != "<p>\n\tcam"+spell(r)+"</p>" {
			t.Errorf("%U is on a page as %q", r, got)
		}
	}
	if plain := "Zoë’s Drücker – 打印机 מדפסת"; visible(plain) != plain {
		t.Errorf("%q is shown as %q", plain, visible(plain))
	}

	box := newBox(t)
	who := bearer(box.mustClaim().Token)
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "cam\u202e1", Outcome: audit.OutcomeRefused})
	box.get("/audit/1", who).says(t, 200, "which are spelt out here", `cam\u202e1`)
	box.append(audit.Record{Action: audit.SCEPRefused, Protocol: "scep", Identity: "cam1", Outcome: audit.OutcomeRefused})
	box.get("/audit/2", who).saysNot(t, "which are spelt out here")
}
