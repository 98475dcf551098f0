package validation

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// TestOCSPByClients has openssl and GnuTLS ask and verify, with nonces.
func TestOCSPByClients(t *testing.T) {
	b := newBox(t, nil)
	ca := b.pemFile("ca.pem", b.first.Issuer.Certificate())
	endpoint := b.url + "/ocsp/devices"
	for name, test := range map[string]struct {
		cert *x509.Certificate
		says string // openssl
		tls  string // GnuTLS
	}{
		"good":      {b.good, ": good", "Certificate Status: good"},
		"revoked":   {b.revoked, ": revoked", "Certificate Status: revoked"},
		"unknown":   {b.unknown, ": unknown", "Certificate Status: unknown"},
		"responder": {b.first.Responder.Certificate(), ": good", "Certificate Status: good"},
	} {
		file := b.pemFile(name+".pem", test.cert)
		for _, hash := range []string{"-sha1", "-sha256"} {
			wantOutput(t, "openssl", []string{"ocsp", "-issuer", ca, hash, "-cert", file, "-nonce", "-url", endpoint, "-CAfile", ca},
				"Response verify OK", file+test.says)
		}
		wantOutput(t, "openssl", []string{"ocsp", "-issuer", ca, "-cert", file, "-no_nonce", "-url", endpoint, "-CAfile", ca}, "Response verify OK", file+test.says)
		for _, nonce := range [][]string{{"--nonce"}, nil} {
			out, err := tool(t, "ocsptool", append(nonce, "--ask="+endpoint, "--load-cert", file, "--load-issuer", ca)...)
			if !strings.Contains(out, "Verifying OCSP Response: Success") || !strings.Contains(out, test.tls) || err != nil && name == "good" {
				t.Errorf("ocsptool about %s: %v\n%s", name, err, out)
			}
		}
	}
	// Two of one issuer in one request.
	good, revoked := b.dir+"/good.pem", b.dir+"/revoked.pem"
	wantOutput(t, "openssl", []string{"ocsp", "-issuer", ca, "-cert", good, "-cert", revoked, "-url", endpoint, "-CAfile", ca},
		"Response verify OK", good+": good", revoked+": revoked", "keyCompromise")
}

// TestOCSPGenerations: one path serves both generations, each by its own responder.
func TestOCSPGenerations(t *testing.T) {
	b := newBox(t, nil)
	newer := b.second.Issuer.Certificate()
	der, err := ocsp.CreateRequest(b.goodNewer, newer, &ocsp.RequestOptions{Hash: crypto.SHA256})
	must(t, err)
	_, body := b.post(der)
	r, err := ocsp.ParseResponseForCert(body, b.goodNewer, newer)
	must(t, err)
	if r.Status != ocsp.Good {
		t.Errorf("status %d", r.Status)
	}
	// The serial of one generation is nothing to the other.
	der, err = ocsp.CreateRequest(b.good, newer, nil)
	must(t, err)
	_, body = b.post(der)
	if r, err = ocsp.ParseResponseForCert(body, b.good, newer); err != nil || r.Status != ocsp.Unknown {
		t.Errorf("%+v, %v", r, err)
	}
	// An issuer that is none of the authority's.
	other := b.generation(1)
	der, err = ocsp.CreateRequest(b.good, other.Issuer.Certificate(), nil)
	must(t, err)
	answer, body := b.post(der)
	b.checkError(answer, body, pki.OCSPUnauthorized)
	if answer, _ := b.do("GET", "/ocsp/silent/MAA="); answer.StatusCode != http.StatusNotFound {
		t.Errorf("an authority without a responder answers %d", answer.StatusCode)
	}
}

// awkward is a request whose base64 has "//", "+" and padding, for a serial that nobody has.
func (b *box) awkward() (*x509.Certificate, string) {
	b.t.Helper()
	for n := range 1 << 20 {
		sum := sha256.Sum256([]byte(strconv.Itoa(n)))
		sum[0] &= 0x7f
		cert := &x509.Certificate{SerialNumber: new(big.Int).SetBytes(sum[:16+n%3])}
		if text := base64.StdEncoding.EncodeToString(b.request(cert)); strings.Contains(text, "//") && strings.Contains(text, "+") && strings.HasSuffix(text, "=") {
			return cert, text
		}
	}
	b.t.Fatal("no such request found")
	return nil, ""
}

// TestOCSPGetPaths asks by GET in every way clients write the path, over a real connection.
func TestOCSPGetPaths(t *testing.T) {
	b := newBox(t, func(c *Config) { c.LivePerSecond = 1000 })
	cert, text := b.awkward()
	bare := strings.TrimRight(text, "=")
	urlSafe := base64.URLEncoding.EncodeToString(b.request(cert))
	for name, path := range map[string]string{
		"as it is":         text,
		"without padding":  bare,
		"form escaped":     url.QueryEscape(text),
		"path escaped":     url.PathEscape(text),
		"lower-case":       strings.NewReplacer("+", "%2b", "/", "%2f", "=", "%3d").Replace(text),
		"only plus":        strings.ReplaceAll(text, "+", "%2B"),
		"only slash":       strings.ReplaceAll(text, "/", "%2F"),
		"URL alphabet":     urlSafe,
		"URL, bare":        strings.TrimRight(urlSafe, "="),
		"one more slash":   "/" + text,
		"wrapped":          text[:40] + "%0A" + text[40:],
		"wrapped by CR LF": text[:40] + "%0D%0A" + text[40:],
		"everything":       "%" + strings.Join(strings.Split(fmt.Sprintf("% X", text), " "), "%"),
	} {
		// curl sends the path as it is given, which http.Client would clean up in parts.
		out, err := tool(t, "curl", "-sS", "--path-as-is", "--globoff", "-w", "%{http_code} %{content_type} %{num_redirects}", "-o", b.dir+"/response", b.url+"/ocsp/devices/"+path)
		if err != nil || out != "200 application/ocsp-response 0" {
			t.Errorf("%s: curl: %v, %s", name, err, out)
			continue
		}
		r, body := b.do("GET", "/ocsp/devices/"+path)
		if r.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", name, r.StatusCode)
		}
		b.check(body, cert, ocsp.Unknown)
	}
	for name, path := range map[string]string{
		"nothing":         "",
		"not base64":      "MEow!",
		"padding within":  "ME=ow",
		"half an octet":   "MEowA",
		"too long":        strings.Repeat("M", maxOCSPPath+1),
		"a file":          "index.html",
		"not a request":   "MAA=",
		"with a tail":     text + "/x",
		"plus as a space": strings.ReplaceAll(text, "+", "%20"),
	} {
		r, body := b.do("GET", "/ocsp/devices/"+path)
		if !bytes.Equal(body, pki.OCSPMalformedRequest.Response()) {
			t.Errorf("%s: %d %q", name, r.StatusCode, body)
			continue
		}
		b.checkError(r, body, pki.OCSPMalformedRequest)
	}
}

// TestOCSPMalformedPost holds what is wrong against the answer, which says nothing more than that.
func TestOCSPMalformedPost(t *testing.T) {
	b := newBox(t, nil)
	good := b.request(b.good)
	for name, body := range map[string][]byte{
		"empty":          {},
		"text":           []byte("hello"),
		"trailing":       append(bytes.Clone(good), 0),
		"too large":      bytes.Repeat([]byte{0x30}, pki.MaxOCSPRequest+1),
		"much too large": bytes.Repeat([]byte{0x30}, 1<<20),
		"nonce of 0":     withNonce(t, good, nil),
		"nonce of 129":   withNonce(t, good, make([]byte, 129)),
	} {
		r, answer := b.post(body)
		if !bytes.Equal(answer, pki.OCSPMalformedRequest.Response()) {
			t.Errorf("%s: %d %q", name, r.StatusCode, answer)
			continue
		}
		b.checkError(r, answer, pki.OCSPMalformedRequest)
	}
	// In chunks, so that the length is not announced.
	for size, want := range map[int][]byte{len(good): nil, pki.MaxOCSPRequest + 1: pki.OCSPMalformedRequest.Response()} {
		body := append(bytes.Clone(good), make([]byte, size-len(good))...)
		request, err := http.NewRequest("POST", b.url+"/ocsp/devices", struct{ *bytes.Reader }{bytes.NewReader(body)})
		must(t, err)
		request.ContentLength = -1
		r, err := http.DefaultClient.Do(request)
		must(t, err)
		if _, answer := read(t, r); want != nil && !bytes.Equal(answer, want) {
			t.Errorf("%d octets in chunks: %q", size, answer)
		} else if want == nil {
			b.check(answer, b.good, ocsp.Good)
		}
	}
	if strings.Contains(b.log.String(), "level=ERROR") {
		t.Errorf("what anyone can send is logged as an error:\n%s", b.log)
	}
	for _, method := range []string{"PUT", "DELETE"} {
		if r, _ := b.do(method, "/ocsp/devices"); r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") == "" {
			t.Errorf("%s: %d", method, r.StatusCode)
		}
	}
}

// TestOCSPNonce: a nonce of every length comes back and is never served to another.
func TestOCSPNonce(t *testing.T) {
	b := newBox(t, nil)
	for _, n := range []int{1, 16, 32, 128} {
		nonce := bytes.Repeat([]byte{byte(n)}, n)
		for range 2 {
			before := b.signer.count()
			r, body := b.post(withNonce(t, b.request(b.good), nonce))
			b.check(body, b.good, ocsp.Good)
			if !bytes.Contains(body, element(0x04, element(0x04, nonce))) {
				t.Errorf("nonce of %d octets is not in the response", n)
			}
			if b.signer.count() != before+1 || r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("ETag") != "" {
				t.Errorf("nonce of %d octets: %d signatures, headers %v", n, b.signer.count()-before, r.Header)
			}
		}
	}
	// By GET as well, where it must not be cached either.
	path := "/ocsp/devices/" + url.PathEscape(base64.StdEncoding.EncodeToString(withNonce(t, b.request(b.good), []byte("nonce"))))
	r, body := b.do("GET", path)
	b.check(body, b.good, ocsp.Good)
	if r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("ETag")+r.Header.Get("Expires") != "" {
		t.Errorf("a response with a nonce may be cached: %v", r.Header)
	}
}

// TestOCSPKept tells when a response without a nonce is signed anew: at half its time, when the status
// changes, when the responder does, and when the clock was set back.
func TestOCSPKept(t *testing.T) {
	b := newBox(t, nil)
	ask := func(cert *x509.Certificate, want, signatures int) *ocsp.Response {
		t.Helper()
		before := b.signer.count()
		_, body := b.post(b.request(cert))
		r := b.check(body, cert, want)
		if got := b.signer.count() - before; got != signatures {
			t.Errorf("%d signatures, want %d", got, signatures)
		}
		return r
	}
	first := ask(b.good, ocsp.Good, 1)
	if got := first.NextUpdate.Sub(first.ThisUpdate); got != ocspValidity {
		t.Errorf("good for %s", got)
	}
	ask(b.good, ocsp.Good, 0)
	ask(b.revoked, ocsp.Revoked, 1)
	ask(b.revoked, ocsp.Revoked, 0)

	b.records.set(b.first, b.good, enroll.CertStatus{State: enroll.Revoked, At: b.now(), Reason: 6})
	if r := ask(b.good, ocsp.Revoked, 1); r.RevocationReason != 6 {
		t.Errorf("reason %d", r.RevocationReason)
	}
	ask(b.good, ocsp.Revoked, 0)
	b.records.set(b.first, b.good, enroll.CertStatus{State: enroll.Good}) // taken off hold
	ask(b.good, ocsp.Good, 1)

	b.advance(ocspValidity/2 - time.Minute)
	ask(b.good, ocsp.Good, 0)
	b.advance(2 * time.Minute)
	if r := ask(b.good, ocsp.Good, 1); r.ThisUpdate.Before(first.ThisUpdate.Add(ocspValidity / 2)) {
		t.Errorf("the new one is of %s", r.ThisUpdate)
	}
	b.advance(-2 * time.Hour)
	ask(b.good, ocsp.Good, 1)

	renewed := b.withResponder(b.first, 10*time.Hour)
	b.mu.Lock()
	b.authorities = []Authority{{Name: "devices", Generations: []Generation{renewed}}}
	b.mu.Unlock()
	if r := ask(b.good, ocsp.Good, 1); !r.NextUpdate.Equal(renewed.Responder.Certificate().NotAfter) {
		t.Errorf("the response is good until %s, its signer until %s", r.NextUpdate, renewed.Responder.Certificate().NotAfter)
	}
	// Never issued: nothing is kept.
	ask(b.unknown, ocsp.Unknown, 1)
	ask(b.unknown, ocsp.Unknown, 1)
}

func (b *box) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead += d
}

// TestOCSPGetCaching holds the headers of a GET against RFC 5019 §6 and revalidates.
func TestOCSPGetCaching(t *testing.T) {
	b := newBox(t, nil)
	path := "/ocsp/devices/" + url.PathEscape(base64.StdEncoding.EncodeToString(b.request(b.good)))
	r, body := b.do("GET", path)
	response := b.check(body, b.good, ocsp.Good)
	h := r.Header
	if got := h.Get("Last-Modified"); got != response.ThisUpdate.Format(http.TimeFormat) {
		t.Errorf("Last-Modified %s, thisUpdate %s", got, response.ThisUpdate)
	}
	if got := h.Get("Expires"); got != response.NextUpdate.Format(http.TimeFormat) {
		t.Errorf("Expires %s, nextUpdate %s", got, response.NextUpdate)
	}
	if got := h.Get("Cache-Control"); got != "max-age=600, public, no-transform, must-revalidate" {
		t.Errorf("Cache-Control %s", got)
	}
	tag := h.Get("ETag")
	if !strings.HasPrefix(tag, `"`) || len(tag) < 34 {
		t.Errorf("ETag %s is not a strong one", tag)
	}
	if got := h.Get("Content-Length"); got != strconv.Itoa(len(body)) {
		t.Errorf("Content-Length %s of %d", got, len(body))
	}
	if r, body := b.do("GET", path, "If-None-Match", tag); r.StatusCode != http.StatusNotModified || len(body) > 0 {
		t.Errorf("revalidation: %d", r.StatusCode)
	}
	if r, body := b.do("HEAD", path); r.StatusCode != http.StatusOK || len(body) > 0 || r.Header.Get("ETag") != tag || r.Header.Get("Content-Length") != h.Get("Content-Length") {
		t.Errorf("HEAD: %d, %v", r.StatusCode, r.Header)
	}
	if r, body := b.post(b.request(b.good)); r.Header.Get("Cache-Control") != "no-store" || r.Header.Get("ETag") != "" || !bytes.Equal(body, mustBody(b, path)) {
		t.Errorf("by POST: %v", r.Header)
	}
	b.records.set(b.first, b.good, enroll.CertStatus{State: enroll.Revoked, At: b.now(), Reason: 1})
	if r, body := b.do("GET", path, "If-None-Match", tag); r.StatusCode != http.StatusOK || r.Header.Get("ETag") == tag {
		t.Errorf("revalidation after revocation: %d", r.StatusCode)
	} else {
		b.check(body, b.good, ocsp.Revoked)
	}
	// Shortly before the response is signed anew, a cache may keep it no longer than until then.
	b.advance(ocspValidity/2 - time.Minute)
	r, _ = b.do("GET", path)
	age, err := strconv.Atoi(strings.TrimPrefix(strings.Split(r.Header.Get("Cache-Control"), ",")[0], "max-age="))
	if err != nil || age > 60 {
		t.Errorf("Cache-Control %s", r.Header.Get("Cache-Control"))
	}
}

func mustBody(b *box, path string) []byte {
	b.t.Helper()
	_, body := b.do("GET", path)
	return body
}

// TestOCSPLimit: what needs a response of its own is bounded, and what everyone may have is served still.
func TestOCSPLimit(t *testing.T) {
	b := newBox(t, func(c *Config) { c.LivePerSecond = 1 })
	live := b.server.live
	live.mu.Lock()
	if live.left != 2 {
		t.Errorf("%v responses at one a second pass at once", live.left)
	}
	live.left, live.perSecond = 1, 0 // one passes, and none comes back however long this takes
	live.mu.Unlock()
	_, body := b.post(b.request(b.good))
	b.check(body, b.good, ocsp.Good)
	late := 0
	for range 20 {
		r, body := b.post(b.request(b.unknown))
		if bytes.Equal(body, pki.OCSPTryLater.Response()) {
			late++
			b.checkError(r, body, pki.OCSPTryLater)
		}
	}
	if late != 19 {
		t.Errorf("%d of 20 responses were signed, one passes", 20-late)
	}
	// Who asks for so much keeps nobody else from an answer: there is one for everyone, without a nonce.
	for cert, want := range map[*x509.Certificate]int{b.good: ocsp.Good, b.revoked: ocsp.Revoked} {
		before := b.signer.count()
		for n := range 20 {
			_, body = b.post(withNonce(t, b.request(cert), []byte{byte(n)}))
			b.check(body, cert, want)
		}
		if got := b.signer.count() - before; got > 1 {
			t.Errorf("%d responses were signed, one is for everyone", got)
		}
	}
	_, body = b.post(b.request(b.good))
	b.check(body, b.good, ocsp.Good)
	_, body = b.post(b.request(b.revoked))
	b.check(body, b.revoked, ocsp.Revoked)
}

// TestBucket holds the limit itself against a clock.
func TestBucket(t *testing.T) {
	at := time.Unix(0, 0)
	k := newBucket(2)
	take := func(want int) {
		t.Helper()
		got := 0
		for k.take(at) {
			got++
		}
		if got != want {
			t.Errorf("%d passed, want %d", got, want)
		}
	}
	take(4)
	at = at.Add(time.Second)
	take(2)
	at = at.Add(time.Hour)
	take(4)
	at = at.Add(-time.Hour)
	take(0)
}

// TestOCSPFailures maps what goes wrong inside to OCSP's errors, and keeps the reason in the log.
func TestOCSPFailures(t *testing.T) {
	secret := errors.New("disk sector 4711 unreadable")
	for name, test := range map[string]struct {
		records, signer error
		condition       *enroll.Condition
		want            pki.OCSPError
		level           string
	}{
		"store closed":  {records: enroll.ErrClosed, want: pki.OCSPTryLater, level: "INFO"},
		"store failing": {records: fmt.Errorf("%w: %w", enroll.ErrUnavailable, secret), want: pki.OCSPTryLater, level: "INFO"},
		"inside":        {records: secret, want: pki.OCSPInternalError, level: "ERROR"},
		"clock":         {condition: &enroll.Condition{What: "disk sector 4711 unreadable"}, want: pki.OCSPTryLater, level: "INFO"},
		"key busy":      {signer: fmt.Errorf("%w: %w", errHolderBusy, secret), want: pki.OCSPTryLater, level: "INFO"},
		"key gone":      {signer: secret, want: pki.OCSPInternalError, level: "ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, nil)
			_, body := b.post(b.request(b.good))
			b.check(body, b.good, ocsp.Good)
			b.records.fail(test.records, test.condition)
			b.signer.set(test.signer, nil)
			r, body := b.post(b.request(b.revoked))
			b.checkError(r, body, test.want)
			log := b.log.String()
			if last := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]; test.records != enroll.ErrClosed && !strings.Contains(last, "sector 4711") || !strings.Contains(last, "level="+test.level) {
				t.Errorf("logged: %s", last)
			}
			// It comes back by itself, and nothing of the failure was kept.
			b.records.fail(nil, nil)
			b.signer.set(nil, nil)
			_, body = b.post(b.request(b.revoked))
			b.check(body, b.revoked, ocsp.Revoked)
		})
	}
}

// TestOCSPResponderExpired: a responder whose certificate has ended answers nothing that nobody could verify.
func TestOCSPResponderExpired(t *testing.T) {
	b := newBox(t, nil)
	b.advance(31 * 24 * time.Hour)
	r, body := b.post(b.request(b.good))
	b.checkError(r, body, pki.OCSPInternalError)
}

// TestCacheIsBounded fills the cache with more than it keeps: the ones used last stay.
func TestCacheIsBounded(t *testing.T) {
	c := newCache(3)
	for i := range 5 {
		c.put(strconv.Itoa(i), response{etag: strconv.Itoa(i)})
		c.get("0") // in use, so it stays
	}
	c.put("4", response{etag: "new"})
	for key, want := range map[string]string{"0": "0", "1": "", "2": "", "3": "3", "4": "new"} {
		if r, ok := c.get(key); r.etag != want || ok != (want != "") {
			t.Errorf("%s: %q, %t", key, r.etag, ok)
		}
	}
	if len(c.byKey) != 3 || c.order.Len() != 3 {
		t.Errorf("%d and %d kept", len(c.byKey), c.order.Len())
	}
}

// FuzzDecodePath: nothing panics, and whatever bytes a request has come back from each way to write them.
func FuzzDecodePath(f *testing.F) {
	f.Add("MEow%2F%2b//-_==")
	f.Add("%0D%0A")
	f.Fuzz(func(t *testing.T, path string) {
		der, err := decodePath(path)
		if err != nil {
			return
		}
		text := base64.StdEncoding.EncodeToString(der)
		for _, again := range []string{url.PathEscape(text), url.QueryEscape(text), base64.RawURLEncoding.EncodeToString(der)} {
			if got, err := decodePath(again); len(again) <= maxOCSPPath && len(der) > 0 && der[0] == 0x30 && (err != nil || !bytes.Equal(got, der)) {
				t.Fatalf("%q: %x, %v; want %x", again, got, err, der)
			}
		}
		if _, err := pki.ParseOCSPRequest(der); err != nil && !errors.Is(err, pki.ErrOCSPRequest) {
			t.Fatal(err)
		}
	})
}
