package scep

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/exchange"
)

// direct serves a service's handler without the recorder, as the box does.
func (s *service) direct(plain bool) string {
	web := httptest.NewServer(s.server.Handler(plain))
	s.t.Cleanup(web.Close)
	return web.URL
}

// raw sends bytes to a server and returns the whole answer until the server closes the connection.
func raw(t *testing.T, serverURL, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(serverURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The exact bytes of an answer to the oldest way to ask: HTTP/1.0, no Host, a path that is not clean.
func TestTranscript(t *testing.T) {
	s := newService(t, nil)
	plain := s.direct(true)
	got := raw(t, plain, "GET //scep//pkiclient.exe?operation=GetCACaps&message=CA%IDENT HTTP/1.0\r\n\r\n")
	want := "HTTP/1.0 200 OK\r\nContent-Length: 65\r\nContent-Type: text/plain\r\n\r\n" +
		"POSTPKIOperation\nSHA-256\nSHA-384\nSHA-512\nAES\nSCEPStandard\nRenewal"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	got = raw(t, plain, "GET /SCEP HTTP/1.0\r\n\r\n")
	want = "HTTP/1.0 404 Not Found\r\nContent-Length: 50\r\nContent-Type: text/plain\r\n\r\n" +
		"no SCEP service at this path: use /scep/<profile>\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestRefusedRequests(t *testing.T) {
	s := newService(t, nil)
	for _, c := range []struct {
		method, path string
		status       int
		says, allow  string
	}{
		{"GET", "/", 404, "/scep/<profile>", ""},
		{"GET", "/scep/unknown?operation=GetCACaps", 404, "no such SCEP profile", ""},
		{"POST", "/scep/unknown?operation=PKIOperation", 404, "no such SCEP profile", ""},
		{"GET", "/scep", 400, "no operation=", ""},
		{"GET", "/scep?operation=GetNextCACert", 404, "no next CA", ""},
		{"POST", "/scep?operation=GetNextCACert", 405, "uses GET", "GET"},
		{"GET", "/scep?operation=getcacaps", 400, "not offered", ""},
		{"POST", "/scep", 400, "no operation=", ""},
		{"POST", "/scep?operation=GetCACert", 405, "uses GET", "GET"},
		{"POST", "/scep?operation=GetCACaps", 405, "uses GET", "GET"},
		{"PUT", "/scep?operation=PKIOperation", 405, "GET and POST", "GET, POST"},
		{"DELETE", "/scep", 405, "GET and POST", "GET, POST"},
		{"OPTIONS", "/scep", 405, "GET and POST", "GET, POST"},
		{"GET", "/scep?operation=PKIOperation", 400, "empty message", ""},
		{"GET", "/scep?operation=PKIOperation&message=***", 400, "not base64", ""},
		{"GET", "/scep?operation=PKIOperation&message=MIIB%2", 400, "not base64", ""},
		{"GET", "/scep?operation=PKIOperation&message=AAAA", 400, "not a signed CMS SignedData", ""},
		{"GET", "/scep/tlsonly?operation=GetCACaps", 403, "use https", ""},
		{"POST", "/scep/tlsonly/pkiclient.exe?operation=PKIOperation", 403, "use https", ""},
	} {
		r, err := http.NewRequest(c.method, s.url+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			checkHTTPRefusal(t, exchanged{status: resp.StatusCode, reply: text, header: resp.Header}, c.status, c.says)
			if got := resp.Header.Get("Allow"); got != c.allow {
				t.Errorf("Allow: %q, want %q", got, c.allow)
			}
		})
	}
	resp, err := http.Head(s.url + "/scep?operation=GetCACaps")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, POST" {
		t.Errorf("HEAD: %d %v", resp.StatusCode, resp.Header)
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
}

func TestGetCACert(t *testing.T) {
	s := newService(t, nil)
	tls := s.direct(false)
	for _, c := range []struct {
		profile, contentType string
		certs                int
	}{
		{"corp", "application/x-x509-ca-ra-cert", 2},
		{"modern", "application/x-x509-ca-ra-cert", 2},
		{"tlsonly", "application/x-x509-ca-cert", 1},
	} {
		for _, message := range []string{"", "&message=", "&message=0", "&message=CAIdentifier", "&message=a%2", "&message=" + url.QueryEscape("two words")} {
			resp, err := http.Get(tls + "/scep/" + c.profile + "?operation=GetCACert" + message)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != c.contentType {
				t.Fatalf("%s%s: %d %v", c.profile, message, resp.StatusCode, resp.Header)
			}
			if c.certs == 1 {
				if !bytes.Equal(body, s.ra[c.profile].Raw) {
					t.Errorf("%s: not the RA certificate", c.profile)
				}
				continue
			}
			p7, err := pkcs7.Parse(body)
			if err != nil {
				t.Fatal(err)
			}
			if len(p7.Certificates) != 2 || !p7.Certificates[0].Equal(s.ra[c.profile]) || !p7.Certificates[1].Equal(s.ca[c.profile]) {
				t.Errorf("%s: not RA and CA certificate in this order", c.profile)
			}
		}
	}
}

// Every way clients write message= in a query enrolls: the same message, so each but the first is a replay.
func TestEnrollByGET(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	std := base64.StdEncoding.EncodeToString(d.message(s.good()))
	plain := s.direct(true)
	var first []byte
	for i, c := range []struct{ path, message string }{
		{"/scep", url.QueryEscape(std)},
		{"/cgi-bin/pkiclient.exe", strings.ReplaceAll(std, "=", "%3D")},
		{"/scep/corp/pkiclient.exe", strings.ReplaceAll(strings.ReplaceAll(std, "+", "-"), "/", "_")},
		{"/certsrv/mscep/mscep.dll", strings.ReplaceAll(std, "+", "%20")},
	} {
		answer := raw(t, plain, "GET "+c.path+"?operation=PKIOperation&message="+c.message+" HTTP/1.0\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for name := range resp.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		if !slices.Equal(names, []string{"Content-Length", "Content-Type"}) {
			t.Errorf("headers %v", resp.Header)
		}
		certs, _ := d.certificates(s.openReply(exchanged{status: resp.StatusCode, header: resp.Header, reply: body}))
		if i == 0 {
			first = certs[0].Raw
		} else if !bytes.Equal(certs[0].Raw, first) {
			t.Errorf("%s: another certificate for the same message", c.path)
		}
	}
	if n := s.outcomes(audit.OutcomeSuccess); n != 1 {
		t.Errorf("%d certificates issued for one message", n)
	}
}

// endless counts what is read of a body of zeros.
type endless struct {
	mu   sync.Mutex
	read int64
	left int64
}

func (e *endless) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.left)
	clear(p[:n])
	e.left -= n
	e.read += n
	return int(n), nil
}

func (e *endless) count() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.read
}

func TestLargeBody(t *testing.T) {
	s := newService(t, nil)
	plain := s.direct(true)
	const hundred = 100 << 20
	for _, announced := range []int64{hundred, -1} {
		t.Run(fmt.Sprintf("Content-Length %d", announced), func(t *testing.T) {
			body := &endless{left: hundred}
			r, err := http.NewRequest(http.MethodPost, plain+"/scep?operation=PKIOperation", body)
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = announced
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			checkHTTPRefusal(t, exchanged{status: resp.StatusCode, header: resp.Header, reply: text}, http.StatusRequestEntityTooLarge, "larger than 1 MiB")
			if !resp.Close {
				t.Error("the connection stays open")
			}
			if n := body.count(); n > hundred/2 {
				t.Errorf("the box took %d bytes", n)
			}
		})
	}
	// The largest message that is read is parsed, and refused for what it is.
	checkHTTPRefusal(t, s.post("corp", make([]byte, maxBody)), http.StatusBadRequest, "not a signed CMS SignedData")
}

// While large bodies come in as many as there may, another is refused and what devices send is not.
func TestLargeBodiesAreBounded(t *testing.T) {
	s := newService(t, nil)
	if cap(s.server.large) != maxLarge {
		t.Fatalf("%d large bodies", cap(s.server.large))
	}
	for range maxLarge - 1 {
		s.server.large <- struct{}{}
	}
	checkHTTPRefusal(t, s.post("corp", make([]byte, smallBody)), http.StatusBadRequest, "not a signed CMS SignedData")
	s.server.large <- struct{}{}
	checkHTTPRefusal(t, s.post("corp", make([]byte, smallBody-1)), http.StatusBadRequest, "not a signed CMS SignedData")
	got := s.post("corp", make([]byte, smallBody))
	checkHTTPRefusal(t, got, http.StatusServiceUnavailable, "large messages")
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if n := len(s.server.large); n != maxLarge {
		t.Errorf("%d large bodies counted, want %d", n, maxLarge)
	}
}

// toEnd is a body that tells when it was read to its end.
type toEnd struct {
	endless
	end func()
}

func (b *toEnd) Read(p []byte) (int, error) {
	n, err := b.endless.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

// Large bodies that wait for their turn count as well: no more than those are ever in memory.
func TestLargeBodiesThatWait(t *testing.T) {
	s := newService(t, func(c *Config) { c.Slots = exchange.NewSlots(1, time.Hour) })
	s.server.slots.Enter(t.Context()) // so that nobody's turn comes
	ctx, leave := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for n := range maxLarge + 1 {
		read, answered := make(chan struct{}), make(chan struct{})
		w := httptest.NewRecorder()
		body := &toEnd{endless{left: maxBody}, sync.OnceFunc(func() { close(read) })}
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/scep/corp?operation=PKIOperation", body)
		waiting.Go(func() {
			defer close(answered)
			s.server.Handler(true).ServeHTTP(w, r)
		})
		select {
		case <-read:
			if n == maxLarge {
				t.Errorf("%d large bodies in memory, want %d", n+1, maxLarge)
			}
		case <-answered:
			if n < maxLarge || w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "large messages") {
				t.Errorf("body %d: %d %s", n+1, w.Code, w.Body)
			}
		}
	}
	leave()
	waiting.Wait()
	if n := len(s.server.large); n != 0 {
		t.Errorf("%d large bodies counted when all are answered", n)
	}
}

// Over the bound a request is refused before it is looked at, and what is cheap is still answered.
func TestOverload(t *testing.T) {
	s := newService(t, func(c *Config) { c.Slots = exchange.NewSlots(2, 0) })
	if n := s.free(); n != 2 {
		t.Fatalf("%d slots", n)
	}
	for range 2 {
		s.server.slots.Enter(t.Context())
	}
	for _, body := range [][]byte{[]byte("not even a message"), newDevice(t, rsaKey(t, 2048), "dev").message(s.good())} {
		got := s.post("corp", body)
		checkHTTPRefusal(t, got, http.StatusServiceUnavailable, "busy")
		if n, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || n < 1 {
			t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
		}
	}
	resp, err := http.Get(s.url + "/scep?operation=GetCACaps")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("GetCACaps under load: %d", resp.StatusCode)
	}
	s.server.slots.Leave()
	d := newDevice(t, rsaKey(t, 2048), "dev")
	d.certificates(s.openReply(s.post("corp", d.message(s.good()))))
	if n := s.free(); n != 1 {
		t.Errorf("%d slots free after the request, 1 before", n)
	}
}

// free counts the slots that nobody has.
func (s *service) free() int {
	n := 0
	for s.server.slots.Enter(s.t.Context()) {
		n++
	}
	for range n {
		s.server.slots.Leave()
	}
	return n
}

// Concurrent devices each get their own certificate, and the slots come back.
func TestConcurrentDevices(t *testing.T) {
	s := newService(t, nil)
	const devices = 8
	messages := make([][]byte, devices)
	all := make([]*device, devices)
	for i := range all {
		all[i] = newDevice(t, rsaKey(t, 2048), fmt.Sprintf("dev%d", i))
		messages[i] = all[i].message(s.good()) // not concurrently: pkcs7's cipher is a global
	}
	replies := make([]exchanged, devices)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { replies[i] = s.post("corp", messages[i]) })
	}
	wg.Wait()
	serials := map[string]bool{}
	for i, d := range all {
		certs, _ := d.certificates(s.openReply(replies[i]))
		if want := fmt.Sprintf("dev%d", i); certs[0].Subject.CommonName != want {
			t.Errorf("%s got the certificate of %s", want, certs[0].Subject.CommonName)
		}
		serials[certs[0].SerialNumber.String()] = true
	}
	if len(serials) != devices || s.outcomes(audit.OutcomeSuccess) != devices || s.free() != 32 {
		t.Errorf("%d serials, %d records, %d slots free", len(serials), s.outcomes(audit.OutcomeSuccess), s.free())
	}
}
