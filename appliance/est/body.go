package est

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"mime"
	"net/http"
	"strings"
)

// isPKCS10 tells whether a body claims to be a certification request. Clients that send no Content-Type at all are believed.
// Content-Transfer-Encoding is not looked at (RFC 8951 §3.1), but what is compressed is nothing this package reads.
func isPKCS10(h http.Header) bool {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return false
	}
	value := h.Get("Content-Type")
	if value == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(value)
	if errors.Is(err, mime.ErrInvalidMediaParameter) {
		err = nil // what is wrong with a parameter is nobody's trouble
	}
	return err == nil && media == "application/pkcs10"
}

var errBody = errors.New("the body is not a PKCS#10 request: send it in base64, in PEM or in DER")

// decodeBody returns the DER in a request body, which clients write in base64 with or without line breaks (RFC 8951 §3.1), in PEM or
// bare. A PKCS#10 request is a SEQUENCE, whose first octet is no character that base64 of a SEQUENCE can begin with ('M'), so the
// forms cannot be taken for each other.
func decodeBody(body []byte) ([]byte, error) {
	text := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case len(text) == 0:
		return nil, errBody
	case text[0] == 0x30:
		return text, nil
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		block, _ := pem.Decode(text)
		if block == nil || len(block.Bytes) == 0 || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
			return nil, errBody
		}
		return block.Bytes, nil
	}
	compact := bytes.Map(func(r rune) rune {
		switch r {
		case ' ', '\t', '\r', '\n':
			return -1
		}
		return r
	}, text)
	compact = bytes.TrimRight(compact, "=") // some encoders leave the padding out
	der, err := base64.RawStdEncoding.DecodeString(string(compact))
	if err != nil || len(der) == 0 {
		return nil, errBody
	}
	return der, nil
}

// lines is how base64 is written for a client.
type lines struct {
	width int    // characters a line; 0: everything in one line, and no line break at its end
	end   string // of every line
}

// isLibest recognises a client by what the library libest sends, whatever program it is part of.
func isLibest(r *http.Request) bool { return strings.HasPrefix(r.UserAgent(), "libest ") }

// linesFor chooses how a client reads base64. libest reads nothing but lines; strongSwan up to 5.9.8 takes every line break for a
// fault, and is known by sending neither User-Agent nor Accept. Everybody else, openssl base64 -d above all, reads lines.
func linesFor(r *http.Request) lines {
	if r.UserAgent() == "" && r.Header.Get("Accept") == "" {
		return lines{}
	}
	return lines{64, "\n"}
}

// encode returns b in base64.
func (l lines) encode(b []byte) []byte {
	if l.width == 0 {
		return base64.StdEncoding.AppendEncode(nil, b)
	}
	text := base64.StdEncoding.AppendEncode(nil, b)
	defer clear(text) // it may be a private key
	out := make([]byte, 0, len(text)+len(l.end)*(len(text)/l.width+1))
	for len(text) > 0 {
		n := min(l.width, len(text))
		out = append(append(out, text[:n]...), l.end...)
		text = text[n:]
	}
	return out
}
