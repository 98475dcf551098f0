package appliance_test

// A green run proves that the listeners of the running service hold against senders of broken HTTP: what
// comes after a refused request is never taken for one, and slow or endless senders keep nobody else out.
// It does not prove anything about floods of packets below TCP.

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"signet.internal/tpm/tpmtest"
)

// dial opens a connection to a listener from a loopback address.
func (s *service) dial(t *testing.T, from, url string) (net.Conn, error) {
	t.Helper()
	scheme, address, _ := strings.Cut(url, "://")
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 2 * time.Minute}).Dial("tcp", address)
	if err != nil || scheme == "http" {
		return c, err
	}
	roots := s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs
	secure := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "localhost"})
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	if err := secure.Handshake(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.SetDeadline(time.Time{})
	return secure, nil
}

// statuses sends raw bytes, and that there are no more, and returns the status of each answer until the service closes.
func (s *service) statuses(t *testing.T, url, raw string) (all []int) {
	t.Helper()
	c, err := s.dial(t, "127.0.0.1", url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	go func() { // the service may close before it has read it all
		if _, err := io.WriteString(c, raw); err == nil {
			c.(interface{ CloseWrite() error }).CloseWrite()
		}
	}()
	r := bufio.NewReader(c)
	for {
		answer, err := http.ReadResponse(r, nil)
		if isTimeout(err) {
			t.Errorf("after %v the service neither answers nor closes", all)
		}
		if err != nil {
			return all
		}
		io.Copy(io.Discard, answer.Body)
		all = append(all, answer.StatusCode)
		if answer.Close {
			return all
		}
	}
}

func TestHostileHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, tpmtest.Start(t), t.TempDir())
	token := s.claim(t)
	listeners := map[string]string{"console": s.ready.Console, "est": s.ready.EST, "scep": s.ready.SCEP, "plain": s.ready.SCEPPlain, "legacy": s.ready.Legacy}

	t.Run("smuggling", func(t *testing.T) {
		const inner = "GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
		body := func(head string) string {
			return "POST /api/v1/claim HTTP/1.1\r\nHost: localhost\r\n" + head + "\r\n\r\n"
		}
		for name, c := range map[string]struct {
			raw  string
			most int // answers
		}{
			// One request each; what follows belongs to its body.
			"body of a refused request":  {body("Content-Type: text/plain\r\nContent-Length: "+fmt.Sprint(len(inner))) + inner, 1},
			"length and chunks":          {body("Content-Length: 4\r\nTransfer-Encoding: chunked") + "0\r\n\r\n" + inner, 2},
			"two lengths":                {body("Content-Length: 0\r\nContent-Length: 50") + inner, 1},
			"two lengths in one":         {body("Content-Length: 0, 50") + inner, 1},
			"signed length":              {body("Content-Length: +0") + inner, 1},
			"chunked twice":              {body("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity") + "0\r\n\r\n" + inner, 1},
			"unknown coding":             {body("Transfer-Encoding: xchunked") + inner, 1},
			"space before the colon":     {body("Transfer-Encoding : chunked") + "0\r\n\r\n" + inner, 1},
			"folded header":              {body("X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\tb") + inner, 1},
			"chunk size that overflows":  {body("Transfer-Encoding: chunked") + "fffffffffffffffff0\r\n" + inner, 1},
			"bare line feeds in a chunk": {body("Transfer-Encoding: chunked") + "1\nZ\n0\n\n" + inner, 1},
			"null in a header":           {body("X: a\x00b\r\nContent-Length: 0") + inner, 1},
			"two hosts":                  {"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n" + inner, 1},
		} {
			if got := s.statuses(t, s.ready.Console, c.raw); len(got) > c.most || len(got) == 0 || got[0] < 400 {
				t.Errorf("%s: answers %v, want at most %d, the first a refusal", name, got, c.most)
			}
		}
		if got := s.statuses(t, s.ready.Console, inner+inner); fmt.Sprint(got) != "[200 200]" {
			t.Errorf("two honest requests on one connection: %v", got) // the control: the inner request is a good one
		}
	})

	t.Run("paths", func(t *testing.T) {
		for _, path := range []string{"/static/../webui.go", "/static/%2e%2e/%2e%2e/etc/passwd", "/static/..%2f..%2fetc%2fpasswd", "/static//etc/passwd", "/static/\\..\\x",
			"/%00", "/api/v1/certificates/../users", "/scep/../metrics", "/.well-known/est/../../api/v1/audit", "//localhost/api/v1/audit"} {
			for name, url := range listeners {
				got := s.statuses(t, url, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
				if len(got) != 1 || got[0] == 200 || got[0] >= 500 {
					t.Errorf("%s%s: %v", name, path, got)
				}
			}
		}
	})

	t.Run("sizes", func(t *testing.T) {
		for name, url := range listeners {
			if got := s.statuses(t, url, "GET / HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("a", 1<<20)+"\r\n\r\n"); len(got) > 1 || len(got) == 1 && got[0] != 431 {
				t.Errorf("%s: a megabyte of header: %v", name, got)
			}
		}
		for name, path := range map[string]string{"claim": "/api/v1/claim", "sign-in": "/sign-in", "chain": "/api/v1/authorities/devices/chain"} {
			endless := io.MultiReader(strings.NewReader(`{"code":"`), io.LimitReader(letters{}, 8<<20))
			r, err := http.NewRequest("POST", s.ready.Console+path, endless)
			if err != nil {
				t.Fatal(err)
			}
			if name == "chain" {
				r.Method = "PUT"
				r.Header.Set("Content-Type", "application/x-pem-file")
			} else if name == "claim" {
				r.Header.Set("Content-Type", "application/json")
			} else {
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			r.Header.Set("Authorization", "Bearer "+token)
			answer, err := s.client.Do(r)
			if err != nil {
				continue // cut off while it was still being sent
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("%s: eight megabytes of body: status %d", name, answer.StatusCode)
			}
		}
	})

	t.Run("old TLS", func(t *testing.T) {
		roots := s.client.Transport.(*http.Transport).TLSClientConfig.RootCAs
		for name, url := range listeners {
			if !strings.HasPrefix(url, "https") {
				continue
			}
			for version, word := range map[uint16]string{tls.VersionTLS10: "1.0", tls.VersionTLS11: "1.1", tls.VersionTLS12: "1.2"} {
				c, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: version, MaxVersion: version})
				if err == nil {
					c.Close()
				}
				if open := name == "legacy" && version == tls.VersionTLS12; (err == nil) != open {
					t.Errorf("%s speaks TLS %s: %v", name, word, err == nil)
				}
			}
		}
	})

	t.Run("slow senders", func(t *testing.T) {
		t.Parallel()
		for name, url := range listeners {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var slow []net.Conn
				for range 64 {
					c, err := s.dial(t, "127.0.0.3", url)
					if err != nil {
						t.Fatalf("connection %d: %v", len(slow), err)
					}
					defer c.Close()
					slow = append(slow, c)
					io.WriteString(c, "POST /scep/corp?operation=PKIOperation HTTP/1.1\r\nHost: loc")
				}
				// Others are served while the slow ones hang, from the same address too.
				for _, from := range []string{"127.0.0.1", "127.0.0.3"} {
					c, err := s.dial(t, from, url)
					if err != nil {
						t.Fatalf("from %s: %v", from, err)
					}
					c.SetDeadline(time.Now().Add(2 * time.Minute))
					fmt.Fprintf(c, "GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
					if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusNotFound {
						t.Errorf("from %s: %v %v", from, answer, err)
					}
					c.Close()
				}
				// And the slow ones do not hang for ever: one byte now and then does not keep them.
				for i, c := range slow {
					c.SetReadDeadline(time.Now().Add(2 * time.Minute))
					if i == 0 {
						go func() {
							for {
								if _, err := io.WriteString(c, "a"); err != nil {
									return
								}
								time.Sleep(time.Second)
							}
						}()
					}
					if _, err := io.Copy(io.Discard, c); isTimeout(err) {
						t.Fatalf("slow sender %d is still connected", i)
					}
				}
			})
		}
	})
}

// letters is an endless run of one letter.
type letters struct{}

func (letters) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("a"), len(p))), nil }

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
