package est

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/exchange"
)

// An answer to a client that reads no more than one record is one write to its connection, small or large; others get the large one as
// net/http writes it, and keep their connection.
func TestOneRecord(t *testing.T) {
	s := newService(t, func(c *Config) {
		for i, p := range c.Profiles {
			if p.Name == "modern" {
				one := p.CACerts()[0]
				c.Profiles[i].CACerts = func() [][]byte { return slices.Repeat([][]byte{one}, 16) }
			}
		}
	})
	roots := x509.NewCertPool()
	roots.AddCert(s.tls.cert)
	for _, c := range []struct {
		path, header string
		atLeast      int
		one, closes  bool
	}{
		{"corp/cacerts", "", 1000, true, false},
		{"modern/cacerts", "", 8000, true, true},
		{"corp/cacerts", "User-Agent: other\r\n", 1000, true, false},
		{"modern/cacerts", "User-Agent: other\r\n", 8000, false, false},
	} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reader := bufio.NewReader(conn)
		for range 2 { // the second answer tells whether the connection is still good
			s.writes.drain()
			fmt.Fprintf(conn, "GET /.well-known/est/%s HTTP/1.1\r\nHost: x\r\n%s\r\n", c.path, c.header)
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("%+v: %v", c, err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || len(body) < c.atLeast || resp.ContentLength != int64(len(body)) {
				t.Fatalf("%+v: %d, %d bytes, %v", c, resp.StatusCode, len(body), err)
			}
			if certs := certsOnly(t, decoded(t, body)); len(certs) == 0 {
				t.Error("no certificates")
			}
			if n := len(s.writes.drain()); (n == 1) != c.one {
				t.Errorf("%+v: %d writes", c, n)
			}
			if resp.Close != c.closes {
				t.Errorf("%+v: connection to be closed: %v", c, resp.Close)
			}
			if c.closes {
				if _, err := reader.ReadByte(); err != io.EOF {
					t.Errorf("%+v: the connection does not end: %v", c, err)
				}
				break
			}
		}
	}
}

// raw sends bytes to a listener and returns the whole answer until the server closes the connection.
func (s *service) raw(url, request string) string {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.tls.cert)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: roots})
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		s.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// post is a request as small clients write it, and the connection ends behind its answer.
func post(path, header, body string) string {
	return fmt.Sprintf("POST /.well-known/est/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", path, header, len(body), body)
}

// libestAsks is a request of libest 3.2.0, recorded.
func libestAsks(path string) string {
	return "GET /.well-known/est/" + path + " HTTP/1.1\r\nUser-Agent: libest 3.2.0p\r\nConnection: close\r\nHost: 127.0.0.1:7443\r\nAccept: */*\r\n\r\n"
}

const basic = "Authorization: Basic ZGV2aWNlOmNvcnAtZGVtby1wYXNzd29yZA==\r\n" // user and secret

// Every answer, to the byte: the header names as written here, a length, nothing chunked, and all headers within what a small client
// reads at once.
func TestRawAnswers(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	csr := base64.StdEncoding.EncodeToString(d.csr())
	held := s.device("dev.approve.test")
	for name, c := range map[string]struct {
		request string
		head    string // the whole header block, %d for the length
		body    string // "*" for base64 in lines, "**" for base64 in one line
	}{
		"no credentials": {post("simpleenroll", "", csr),
			"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nWWW-Authenticate: Basic realm=\"est\"\r\nConnection: close\r\n\r\n", ""},
		"no credentials, where there are none": {post("boot/simpleenroll", "", csr),
			"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", ""},
		"enrolled, strongSwan": {post("simpleenroll", basic, csr),
			"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Transfer-Encoding: base64\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\nConnection: close\r\n\r\n", "**"},
		"enrolled, libest": {post("simpleenroll", basic+"User-Agent: libest 3.2.0p\r\n", csr),
			"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Transfer-Encoding: base64\r\nContent-Type: application/pkcs7-mime; smime-type=certs-only\r\nConnection: close\r\n\r\n", "*"},
		"held": {post("manual/simpleenroll", basic, base64.StdEncoding.EncodeToString(held.csr())),
			"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n", ""},
		"CA certificates": {"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Transfer-Encoding: base64\r\nContent-Type: application/pkcs7-mime\r\nConnection: close\r\n\r\n", "**"},
		"attributes": {"GET /.well-known/est/csrattrs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Transfer-Encoding: base64\r\nContent-Type: application/csrattrs\r\nConnection: close\r\n\r\n", "**"},
		"attributes, libest": {libestAsks("csrattrs"),
			"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Transfer-Encoding: base64\r\nContent-Type: application/csrattrs\r\nConnection: close\r\n\r\n", "MAoGCCqGSM49BAMC\n"},
		"no attributes": {"GET /.well-known/est/modern/csrattrs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", ""},
		"HTTP/1.0": {"GET //.well-known//est/modern/csrattrs HTTP/1.0\r\n\r\n",
			"HTTP/1.0 204 No Content\r\n\r\n", ""},
		"wrong method": {"GET /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Length: %d\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n", "simpleenroll uses POST\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := s.in(t).raw(s.url, c.request)
			head, body, ok := strings.Cut(got, "\r\n\r\n")
			if head += "\r\n\r\n"; !ok || len(head) >= 1024 {
				t.Fatalf("%q", got)
			}
			want := c.head
			if strings.Contains(want, "%d") {
				want = fmt.Sprintf(want, len(body))
			}
			if head != want {
				t.Errorf("got  %q\nwant %q", head, want)
			}
			switch c.body {
			case "**":
				if strings.ContainsAny(body, "\r\n") || len(decoded(t, []byte(body))) == 0 {
					t.Errorf("not base64 in one line: %q", body)
				}
			case "*":
				if len(decoded(t, []byte(body))) == 0 || body != inLines(strings.ReplaceAll(body, "\n", ""), "\n", 64) {
					t.Errorf("not base64 in lines of 64: %q", body)
				}
			default:
				if body != c.body {
					t.Errorf("body %q", body)
				}
			}
		})
	}
}

// Every way clients write the same request enrolls: each but the first is another sending of it, so all get one certificate.
func TestRequestForms(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	der := d.csr()
	text := base64.StdEncoding.EncodeToString(der)
	var first []byte
	for i, c := range []struct {
		body   string
		header []string
	}{
		{body: text},
		{body: inLines(text, "\n", 64), header: []string{"Content-Transfer-Encoding", "base64"}},
		{body: inLines(text, "\r\n", 76), header: []string{"Content-Type", "application/pkcs10; charset=us-ascii", "Accept", "text/plain"}},
		{body: "-----BEGIN CERTIFICATE REQUEST-----\n" + inLines(text, "\n", 64) + "-----END CERTIFICATE REQUEST-----\n"},
		{body: string(der), header: []string{"Content-Type", "", "Content-Transfer-Encoding", "binary"}},
	} {
		got := d.enrolled("corp", d.do("POST", "simpleenroll", []byte(c.body), c.header...))
		if i == 0 {
			first = got.Raw
		} else if !bytes.Equal(got.Raw, first) {
			t.Errorf("form %d: another certificate for the same request", i)
		}
	}
	chunked := "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + basic + "Content-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n" +
		fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 10, text[:10], len(text)-10, text[10:])
	_, body, _ := strings.Cut(s.raw(s.url, chunked), "\r\n\r\n")
	if certs := certsOnly(t, decoded(t, []byte(body))); len(certs) != 1 || !bytes.Equal(certs[0].Raw, first) {
		t.Error("chunked: another answer")
	}
	if n := len(s.records(audit.OutcomeSuccess)); n != 1 {
		t.Errorf("%d certificates", n)
	}
	s.checkLog()
}

func TestRefusedRequests(t *testing.T) {
	s := newService(t, func(c *Config) {
		for i := range c.Profiles {
			c.Profiles[i].Default = false
		}
	})
	d := s.device("dev")
	csr := d.csr()
	broken := bytes.Clone(csr)
	broken[len(broken)-1] ^= 1
	for _, c := range []struct {
		method, path string
		body         []byte
		header       []string
		status       int
		says         string
	}{
		{"GET", "cacerts", nil, nil, 404, "no default EST profile"},
		{"GET", "unknown/cacerts", nil, nil, 404, "no such EST profile"},
		{"GET", "corp/unknown", nil, nil, 404, "no EST operation"},
		{"POST", "corp/fullcmc", csr, nil, 404, "not offered"},
		{"POST", "corp/serverkeygen", csr, nil, 404, "makes no keys"},
		{"POST", "corp/cacerts", csr, nil, 405, "uses GET"},
		{"PUT", "corp/simplereenroll", csr, nil, 405, "uses POST"},
		{"POST", "corp/simpleenroll", csr, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "send the PKCS#10 request under"},
		{"POST", "corp/simpleenroll", csr, []string{"Content-Encoding", "gzip"}, 415, "application/pkcs10"},
		{"POST", "corp/simpleenroll", nil, nil, 400, "not a PKCS#10 request"},
		{"POST", "corp/simpleenroll", []byte("hello"), nil, 400, "not a PKCS#10 request"},
		{"POST", "corp/simpleenroll", csr[:len(csr)-1], nil, 400, "not a PKCS#10 request"},
		{"POST", "corp/simpleenroll", broken, nil, 400, "not signed with its own key"},
		{"POST", "corp/simpleenroll", make([]byte, maxBody+1), nil, 413, "larger than 64 KiB"},
		{"GET", "waiting/cacerts", nil, nil, 503, "not active yet"},
		{"POST", "waiting/simpleenroll", csr, nil, 503, "not active yet"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			s, d := s.in(t), *d
			d.s = s
			a := d.do(c.method, c.path, c.body, c.header...)
			s.refused(a, c.status, c.says)
			if want := map[int]string{405: map[string]string{"POST": "GET", "PUT": "POST"}[c.method]}[c.status]; a.header.Get("Allow") != want {
				t.Errorf("Allow %q, want %q", a.header.Get("Allow"), want)
			}
			if got := a.header.Get("Retry-After"); (c.status == 503) != (got != "") {
				t.Errorf("Retry-After %q", got)
			}
		})
	}
	head, err := http.NewRequest("HEAD", s.url+"/.well-known/est/corp/cacerts", nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := do(t, d.client(), head); a.status != 405 || a.header.Get("Allow") != "GET" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
	// A body without a length is read no further than the limit.
	endless, err := http.NewRequest("POST", s.url+"/.well-known/est/corp/simpleenroll", io.LimitReader(zeros{}, maxBody+1))
	if err != nil {
		t.Fatal(err)
	}
	s.refused(do(t, d.client(), endless), 413, "larger than 64 KiB")
	if n := len(s.records(audit.OutcomeBegun)); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Where each profile is served.
func TestListeners(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	if a := d.do("GET", "tls13/cacerts", nil); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	d.url = s.legacy
	for _, path := range []string{"tls13/cacerts", "tls13/csrattrs"} {
		s.refused(d.do("GET", path, nil), 403, "use the listener with TLS 1.3")
	}
	s.refused(d.post("tls13/simpleenroll"), 403, "use the listener with TLS 1.3")
	for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		d.max = max
		d.enrolled("corp", d.post("simpleenroll"))
	}
}

// Nothing is answered where there is no TLS, whatever mistake led there.
func TestWithoutTLS(t *testing.T) {
	s := newService(t, nil)
	for _, legacy := range []bool{false, true} {
		w := httptest.NewRecorder()
		s.server.Handler(legacy).ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/est/cacerts", nil))
		s.refused(answer{w.Code, w.Header(), w.Body.Bytes()}, 403, "use https")
	}
}

// Past the number of requests in flight, nothing of a request is parsed.
func TestBusy(t *testing.T) {
	s := newService(t, func(c *Config) { c.Slots = exchange.NewSlots(1, 0) })
	if !s.server.slots.Enter(t.Context()) {
		t.Fatal("no slot")
	}
	d := s.device("dev")
	for _, path := range []string{"simpleenroll", "simplereenroll", "modern/serverkeygen"} {
		a := d.do("POST", path, []byte("nonsense"))
		s.refused(a, 503, "the box is busy")
		if strings.Trim(a.header.Get("Retry-After"), "0123456789") != "" || a.header.Get("Retry-After") == "" {
			t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
		}
	}
	if a := d.do("GET", "cacerts", nil); a.status != 200 {
		t.Errorf("cacerts while busy: %d", a.status)
	}
	s.server.slots.Leave()
	d.enrolled("corp", d.post("simpleenroll"))
}

// What is public needs no proof, and is the same whatever proof is offered.
func TestPublic(t *testing.T) {
	s := newService(t, nil)
	d := s.device("dev")
	for _, user := range []string{"", "device", "nobody"} {
		d.user = user
		for profile, issuer := range s.issuer {
			if profile == "waiting" {
				continue
			}
			a := d.do("GET", profile+"/cacerts", nil)
			if a.status != 200 || a.header.Get("Content-Type") != "application/pkcs7-mime" {
				t.Fatalf("%d %v", a.status, a.header)
			}
			if certs := certsOnly(t, decoded(t, a.body)); len(certs) != 1 || !certs[0].Equal(issuer.Certificate()) {
				t.Errorf("%s: not the CA certificate", profile)
			}
		}
	}
	if a := d.do("GET", "csrattrs", nil); a.status != 200 || a.header.Get("Content-Type") != "application/csrattrs" || !bytes.Equal(decoded(t, a.body), csrAttrs(t)) {
		t.Errorf("csrattrs: %d %v %q", a.status, a.header, a.body)
	}
	if a := d.do("GET", "loose/csrattrs", nil); a.status != 204 || len(a.body) != 0 {
		t.Errorf("csrattrs with nothing to say: %d %q", a.status, a.body)
	}
	if a := d.do("GET", "bound/csrattrs", nil); a.status != 200 || fmt.Sprintf("%x", decoded(t, a.body)) != "300b06092a864886f70d010907" {
		t.Errorf("csrattrs of a profile that wants a channel binding: %d %q", a.status, a.body)
	}
}

// libest is told bare types, and nothing behind the last of them.
func TestBareTypes(t *testing.T) {
	const san, challengePassword = "0603551d11", "06092a864886f70d010907"
	// What corp of the demo says: two kinds of key, an extensionRequest, the bare type subjectAltName and a template.
	const demo = "3081b7301106092a864886f70d01010131040202080" + "0301c06072a8648ce3d0201311106052b8104002206082a8648ce3d030107" +
		"302e06092a864886f70d01090e3121301f301d0603551d250416301406082b0601050507030206082b06010505070301" + san +
		"304f060b2a864886f70d010910023d3140303e020100a1393037060b2a864886f70d010910023e312830" +
		"26301d0603551d250416301406082b0601050507030206082b060105050703013005" + san
	for in, want := range map[string]string{
		"":                               "",
		"3000":                           "",
		"3003020105":                     "",
		demo:                             "3005" + san,
		"3010" + san + challengePassword: "3010" + san + challengePassword,
	} {
		got, err := bareTypes(must(hex.DecodeString(in)))
		if fmt.Sprintf("%x", got) != want || err != nil {
			t.Errorf("%s: %x, %v", in, got, err)
		}
	}
	if got, err := bareTypes([]byte("x")); err == nil {
		t.Errorf("%x of no CsrAttrs", got)
	}
}

func TestWithChallengePassword(t *testing.T) {
	const oid = "06092a864886f70d010907"
	for in, want := range map[string]string{
		"":                       "300b" + oid,
		"3000":                   "300b" + oid,
		"3003020105":             "300e020105" + oid,
		"300b" + oid:             "300b" + oid,
		"300e020105" + oid:       "300e020105" + oid,
		"3100":                   "",
		"300002":                 "",
		"30030204" + "05":        "",
		"04" + "0b" + oid + "00": "",
	} {
		der := must(hex.DecodeString(in))
		got, err := withChallengePassword(der)
		if fmt.Sprintf("%x", got) != want || (err != nil) != (want == "") {
			t.Errorf("%s: %x, %v", in, got, err)
		}
	}
}

// A server is not made of what it could not serve.
func TestNewRefuses(t *testing.T) {
	s := newService(t, nil)
	some := func() [][]byte { return nil }
	for name, c := range map[string]struct {
		profiles []Profile
		says     string
	}{
		"nothing":             {nil, "no profiles"},
		"no name":             {[]Profile{{CACerts: some}}, "no name"},
		"an operation's name": {[]Profile{{Name: "cacerts", CACerts: some}}, "that of an EST operation"},
		"no certificates":     {[]Profile{{Name: "a"}}, "cacerts"},
		"twice":               {[]Profile{{Name: "a", CACerts: some}, {Name: "a", CACerts: some}}, "twice"},
		"two defaults":        {[]Profile{{Name: "a", CACerts: some, Default: true}, {Name: "b", CACerts: some, Default: true}}, "both the default"},
		"a binding":           {[]Profile{{Name: "a", CACerts: some, ChannelBinding: "always"}}, "want off, optional or required"},
		"attributes":          {[]Profile{{Name: "a", CACerts: some, ChannelBinding: "required", CSRAttrs: []byte("x")}}, "csrattrs"},
		"a kind of key":       {[]Profile{{Name: "a", CACerts: some, ServerKeyGen: "dsa"}}, "cannot make a key"},
		"parts of a second":   {[]Profile{{Name: "a", CACerts: some, RetryAfter: 1500e6}}, "whole seconds"},
	} {
		if _, err := New(Config{Config: s.server.config, Engine: s.engine, Profiles: c.profiles, Slots: s.server.slots}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
		}
	}
}
