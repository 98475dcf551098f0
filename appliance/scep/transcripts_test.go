package scep

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/needtest"
)

// update has TestReplayTranscripts run the installed clients and record what they send before it replays that.
var update = flag.Bool("update", false, "record testdata/transcripts anew from the installed clients")

// A transcript is what one client sent, line by line:
//
//	> POST /scep/corp?operation=PKIOperation HTTP/1.1   a request, then its Content-Type and its body, in base64
//	< 200 application/x-pki-message pkiStatus 3         how it was answered
//	! approve                                           an operator approved what was held
//
// The certificates and the key that the messages are encrypted to lie beside them. A replay proves that the same bytes are still
// answered the same way. It cannot prove that the client takes the answer: the tests that run the client do that. Renewals are not among
// them, as their signer is in no other box's store.
const transcripts = "testdata/transcripts"

// byHand has transcripts of clients that Debian does not have, recorded by hand; see the README.md there.
const byHand = "testdata/byhand"

// taped are the profiles that transcripts are made with.
var taped = []string{"corp", "legacy", "iot"}

// tape writes a transcript of the requests it passes on, one after another.
type tape struct {
	t    *testing.T
	next http.Handler

	mu    sync.Mutex
	lines []string
}

func (p *tape) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	rec := httptest.NewRecorder()
	p.next.ServeHTTP(rec, r)
	p.lines = append(p.lines, fmt.Sprintf("> %s %s %s", r.Method, r.RequestURI, r.Proto))
	if len(body) > 0 {
		p.lines = append(p.lines, r.Header.Get("Content-Type"), base64.StdEncoding.EncodeToString(body))
	}
	p.lines = append(p.lines, "< "+summary(p.t, rec.Code, rec.Header().Get("Content-Type"), rec.Body.Bytes()))
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
}

// approve approves the one request that is held, between two requests.
func (p *tape) approve(s *service) {
	held := s.pendingRequest()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := s.engine.Approve(p.t.Context(), held.ID, "test"); err != nil {
		p.t.Error(err)
	}
	p.lines = append(p.lines, "! approve")
}

// summary is what does not differ between two answers to the same bytes.
func summary(t *testing.T, status int, contentType string, body []byte) string {
	t.Helper()
	s := fmt.Sprint(status, " ", contentType)
	switch contentType {
	case "text/plain":
		return s + fmt.Sprintf(" %q", body)
	case "application/x-x509-ca-ra-cert":
		return s + fmt.Sprint(" certificates ", len(must(pkcs7.Parse(body)).Certificates))
	case contentTypePKIMessage:
		p7 := must(pkcs7.Parse(body))
		if err := p7.Verify(); err != nil {
			t.Error(err)
		}
		var pkiStatus, fail string
		if err := p7.UnmarshalSignedAttribute(oidPKIStatus, &pkiStatus); err != nil {
			t.Error(err)
		}
		s += " pkiStatus " + pkiStatus
		if p7.UnmarshalSignedAttribute(oidFailInfo, &fail) == nil {
			s += " failInfo " + fail
		}
		if must(cms.ParseSignedData(body)).Content == nil {
			s += " without content"
		}
	}
	return s
}

// recordTranscripts runs the clients and writes what they send and what it is encrypted to.
func recordTranscripts(t *testing.T) {
	for name, c := range map[string]struct {
		of  string // Debian package
		run func(t *testing.T, s *service, p *tape, url string)
	}{
		"strongswan": {"strongswan-pki", func(t *testing.T, s *service, p *tape, url string) {
			newSwan(t, url+"/scep/corp").enroll(secret)
			newSwan(t, url+"/scep/corp").enroll("wrong-challenge")
		}},
		"strongswan-poll": {"strongswan-pki", func(t *testing.T, s *service, p *tape, url string) {
			d := newSwan(t, url+"/scep/iot")
			var wg sync.WaitGroup
			wg.Go(func() { d.enroll(secret, "--dn", "CN=dev.approve.test", "-t", "1", "-m", "30") })
			p.approve(s)
			wg.Wait()
		}},
		"scepclient": {"scep", func(t *testing.T, s *service, p *tape, url string) {
			for _, profile := range []string{"legacy", "corp"} { // which takes nothing of what it sends
				run(t, t.TempDir(), needtest.Program(t, "scepclient", "scep"), "-server-url", url+"/scep/"+profile, "-challenge", secret, "-private-key", "k.key",
					"-certificate", "out.crt", "-cn", "dev.example.com", "-keySize", "2048")
			}
		}},
		"certmonger": {"certmonger", func(t *testing.T, s *service, p *tape, url string) {
			certmonger(t, s, t.TempDir(), url+"/scep/corp", secret)
		}},
		"openssl": {"openssl", sendOpenSSL},
	} {
		s := tapedService(t, transcripts)
		p := &tape{t: t, next: s.server.Handler(true)}
		web := httptest.NewServer(p)
		c.run(t, s, p, web.URL)
		web.Close()
		version, _ := exec.Command("dpkg-query", "-W", "-f", "${Version}", c.of).Output()
		text := fmt.Sprintf("# Debian %s %s\n%s\n", c.of, version, strings.Join(p.lines, "\n"))
		if err := os.WriteFile(filepath.Join(transcripts, name+".txt"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sendOpenSSL sends envelopes that openssl made, in messages signed by smallstep/pkcs7.
func sendOpenSSL(t *testing.T, s *service, p *tape, url string) {
	post := func(d *device, w wrapping) {
		resp, err := http.Post(url+"/scep/corp?operation=PKIOperation", "application/x-pki-message", bytes.NewReader(d.message(w)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	d := newDevice(t, rsaKey(t, 2048), "dev.example.com")
	oaep := []string{"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"}
	for _, c := range []struct {
		args, key  []string
		recipients []*x509.Certificate
	}{
		{[]string{"-aes192"}, oaep, []*x509.Certificate{s.ra["corp"]}},
		{[]string{"-aes256", "-stream"}, nil, []*x509.Certificate{s.ra["legacy"], s.ra["corp"]}},
	} {
		w := s.good()
		w.envelope = sealWithOpenSSL(t, d.csr, c.args, c.key, c.recipients...)
		post(d, w)
	}
	ec := newDevice(t, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), "ec.example.com")
	w := s.good()
	w.envelope = sealWithOpenSSL(t, ec.csr, []string{"-aes128", "-keyid"}, nil, s.ra["corp"])
	post(ec, w)
}

// makeRAs writes what the transcripts are encrypted to.
func makeRAs(t *testing.T) {
	if err := os.MkdirAll(transcripts, 0o755); err != nil {
		t.Fatal(err)
	}
	key := rsaKey(t, 2048)
	writePEM(t, filepath.Join(transcripts, "ra-test-only.key"), "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
	s := newService(t, nil)
	for _, name := range taped {
		writePEM(t, filepath.Join(transcripts, name+"-ra.crt"), "CERTIFICATE", s.newRA(name, key).Certificate.Raw)
	}
}

// tapedService is a service with the RAs that the transcripts in dir are encrypted to. Its CAs have the names of those that issued them.
func tapedService(t *testing.T, dir string) *service {
	load := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		return block.Bytes
	}
	key := must(parsePKCS8(load("ra-test-only.key")))
	ras := map[string]*x509.Certificate{}
	s := newService(t, func(c *Config) {
		for _, name := range taped {
			ras[name] = parse(t, load(name+"-ra.crt"))
			i := slices.IndexFunc(c.Profiles, func(p Profile) bool { return p.Name == name })
			c.Profiles[i].changeRA(func(ra *RA) { *ra = RA{ras[name], key, key} })
		}
	})
	s.raKey = key
	maps.Copy(s.ra, ras)
	return s
}

// What the clients sent once is answered as it was then.
func TestReplayTranscripts(t *testing.T) {
	if *update {
		makeRAs(t)
		recordTranscripts(t)
	}
	files, err := filepath.Glob("testdata/*/*.txt")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d transcripts, %v: record them with -update", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := tapedService(t, filepath.Dir(file))
			url := s.direct(true)
			var got []string
			lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
			for i := 0; i < len(lines); i++ {
				got = append(got, lines[i])
				switch {
				case lines[i] == "! approve":
					if err := s.engine.Approve(t.Context(), s.pendingRequest().ID, "test"); err != nil {
						t.Fatal(err)
					}
				case strings.HasPrefix(lines[i], "> "):
					end := i + 1
					for end < len(lines) && !strings.HasPrefix(lines[end], "< ") {
						end++
					}
					got = append(got, lines[i+1:end]...)
					got = append(got, "< "+replay(t, url, lines[i][2:], lines[i+1:end]))
					i = end
				case !strings.HasPrefix(lines[i], "#"):
					t.Fatalf("line %d is not of a transcript", i+1)
				}
			}
			if diff := cmp.Diff(lines, got); diff != "" {
				t.Errorf("-recorded +now:\n%s", diff)
			}
			s.checkLog()
		})
	}
}

// replay sends a recorded request as it was, but for the headers, and sums up the answer.
func replay(t *testing.T, url, requestLine string, rest []string) string {
	t.Helper()
	request := requestLine + "\r\nHost: box\r\nConnection: close\r\n"
	var body []byte
	if len(rest) == 2 {
		var err error
		if body, err = base64.StdEncoding.DecodeString(rest[1]); err != nil {
			t.Fatal(err)
		}
		request += fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", rest[0], len(body))
	}
	answer := raw(t, url, request+"\r\n"+string(body))
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return summary(t, resp.StatusCode, resp.Header.Get("Content-Type"), must(io.ReadAll(resp.Body)))
}
