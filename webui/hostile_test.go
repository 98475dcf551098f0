package webui

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
