package est

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
)

// sequenceOf is a DER SEQUENCE of n octets of which base64 is mostly "+".
func sequenceOf(n int) []byte {
	return append([]byte{0x30, 0x82, byte(n >> 8), byte(n)}, bytes.Repeat([]byte{0xef, 0xbe, 0xfb}, n)[:n]...)
}

// inLines breaks text after every n characters.
func inLines(text, end string, n int) string {
	var b strings.Builder
	for len(text) > n {
		b.WriteString(text[:n] + end)
		text = text[n:]
	}
	return b.String() + text + end
}

func TestDecodeBody(t *testing.T) {
	der := sequenceOf(301) // not a multiple of three, so base64 needs padding
	text := base64.StdEncoding.EncodeToString(der)
	armour := func(kind string) string { return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})) }
	for name, body := range map[string]string{
		"in one line":             text,
		"with a line break":       text + "\n",
		"lines of 64":             inLines(text, "\n", 64),
		"lines of 76 with CRLF":   inLines(text, "\r\n", 76),
		"lines of 1":              inLines(text, "\n", 1),
		"indented":                " \t" + inLines(text, "\n  ", 64),
		"after an empty line":     "\r\n" + text,
		"without padding":         strings.TrimRight(text, "="),
		"PEM":                     armour("CERTIFICATE REQUEST"),
		"PEM, old name":           armour("NEW CERTIFICATE REQUEST"),
		"PEM, CRLF":               strings.ReplaceAll(armour("CERTIFICATE REQUEST"), "\n", "\r\n"),
		"PEM after an empty line": "\n" + armour("CERTIFICATE REQUEST"),
		"DER":                     string(der),
	} {
		got, err := decodeBody([]byte(body))
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	for name, body := range map[string]string{
		"empty":             "",
		"spaces":            " \r\n\t ",
		"padding alone":     "==",
		"PEM certificate":   armour("CERTIFICATE"),
		"PEM key":           armour("PRIVATE KEY"),
		"PEM of nothing":    "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----",
		"PEM cut off":       armour("CERTIFICATE REQUEST")[:80],
		"URL-safe":          base64.RawURLEncoding.EncodeToString(der),
		"percent-encoded":   strings.ReplaceAll(text, "+", "%2B"),
		"form":              "request=" + text,
		"one character":     "M",
		"padding in it":     text[:8] + "=" + text[8:],
		"text after base64": text + "\n.",
	} {
		if got, err := decodeBody([]byte(body)); err != errBody {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestIsPKCS10(t *testing.T) {
	for value, want := range map[string]bool{
		"":                                      true,
		"application/pkcs10":                    true,
		"Application/PKCS10":                    true,
		"application/pkcs10; charset=utf-8":     true,
		"application/pkcs10;charset":            true,
		"application/pkcs10 ; smime-type=x; y":  true,
		"application/x-www-form-urlencoded":     false,
		"application/pkcs7-mime":                false,
		"application/pkcs10x":                   false,
		"text/plain; type=\"application/pkcs10": false,
		"; application/pkcs10":                  false,
	} {
		h := http.Header{}
		if value != "" {
			h.Set("Content-Type", value)
		}
		if isPKCS10(h) != want {
			t.Errorf("%q: %v", value, !want)
		}
	}
	for encoding, want := range map[string]bool{"identity": true, "gzip": false} {
		if isPKCS10(http.Header{"Content-Encoding": {encoding}}) != want {
			t.Errorf("Content-Encoding %s: %v", encoding, !want)
		}
	}
}

// Which lines a client gets, by what it sends.
func TestLines(t *testing.T) {
	der := sequenceOf(100)
	text := base64.StdEncoding.EncodeToString(der)
	for name, c := range map[string]struct {
		header http.Header
		want   string
	}{
		"strongSwan 5.9.8": {http.Header{}, text},
		"libest":           {http.Header{"User-Agent": {"libest 3.2.0p"}}, inLines(text, "\n", 64)},
		"curl":             {http.Header{"User-Agent": {"curl/7.88.1"}, "Accept": {"*/*"}}, inLines(text, "\n", 64)},
		"Accept alone":     {http.Header{"Accept": {"*/*"}}, inLines(text, "\n", 64)},
	} {
		if got := string(linesFor(&http.Request{Header: c.header}).encode(der)); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := string(lines{64, "\n"}.encode(der[:48])); got != base64.StdEncoding.EncodeToString(der[:48])+"\n" {
		t.Errorf("exactly one line: %q", got)
	}
}

func FuzzDecodeBody(f *testing.F) {
	der := sequenceOf(20)
	f.Add([]byte(base64.StdEncoding.EncodeToString(der)))
	f.Add([]byte(inLines(base64.StdEncoding.EncodeToString(der), "\r\n", 8)))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	f.Add(der)
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeBody(body)
		switch {
		case err != nil && (err != errBody || got != nil):
			t.Errorf("%x, %v", got, err)
		case err == nil && (len(got) == 0 || len(got) > len(body)):
			t.Errorf("%d octets from %d", len(got), len(body))
		case err == nil && got[0] == 0x30: // what was read reads the same in every form
			for _, form := range [][]byte{got, lines{}.encode(got), lines{64, "\r\n"}.encode(got), lines{76, "\n"}.encode(got)} {
				if again, err := decodeBody(form); err != nil || !bytes.Equal(again, got) {
					t.Errorf("%q: %x, %v; want %x", form, again, err, got)
				}
			}
		}
	})
}

func FuzzReadRequest(f *testing.F) {
	f.Add(sequenceOf(20))
	for _, csr := range sampleRequests(f) {
		f.Add(csr)
		f.Add([]byte(base64.StdEncoding.EncodeToString(csr)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		signed, err := readRequest(body, false)
		if err != nil {
			if v := explain(err); v.status != 400 {
				t.Errorf("%v: status %d", err, v.status)
			}
		}
		template, again := readRequest(body, true)
		if again != nil {
			if v := explain(again); v.status != 400 || err == nil {
				t.Errorf("%v: status %d, with its signature checked %v", again, v.status, err)
			}
			return
		}
		if err == nil && (signed.identity() != template.identity() || signed.challenge() != template.challenge()) {
			t.Errorf("it asks for %q and %q", signed.identity(), template.identity())
		}
		w, err := readWish(template.template.RawInfo())
		if err != nil {
			if v := explain(err); v.status != 400 {
				t.Errorf("%v: status %d", err, v.status)
			}
			return
		}
		if to, err := w.recipient(nil); w.isMade == (err == nil) || to != nil {
			t.Errorf("%+v: %v, %v", w, to, err)
		}
	})
}

// The attributes alone: the signature around them keeps FuzzReadRequest from getting far.
func FuzzReadWish(f *testing.F) {
	for _, csr := range sampleRequests(f) {
		parsed, err := readRequest(csr, true)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(parsed.template.RawInfo())
	}
	f.Fuzz(func(t *testing.T, info []byte) {
		w, err := readWish(info)
		if err != nil && (w.isMade || w.keyID != nil) {
			t.Errorf("%+v with %v", w, err)
		}
		if err == nil && w.isMade != (len(w.keyID) > 0) {
			t.Errorf("%+v", w)
		}
	})
}
