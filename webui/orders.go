package webui

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
)

// order is what a form of a page orders.
type order struct {
	form    string               // which of the page's forms it is
	done    string               // the key of notices
	path    string               // the page after it
	secrets []string             // inputs that are not shown again
	do      func() error         // r.PostForm is filled
	shown   func() error         // answers where it took effect; nil: path is where that is said
	again   func(*attempt) error // shows the page with the form as it was
}

// take does what a form orders. Where it took effect the browser goes on to the page that says so; where it
// is refused, the page is shown with the form again.
func (c *console) take(w http.ResponseWriter, r *http.Request, o order) error {
	err := readOrder(w, r)
	if err == errMediaType {
		return err
	}
	if err == nil {
		err = o.do()
	}
	if errors.Is(err, errStale) && r.MultipartForm != nil {
		if chain, err := uploaded(r); err == nil { // a browser forgets files; the form shown again has them as text
			r.PostForm.Set("pem", string(chain))
		}
	}
	switch {
	case err == nil && o.shown != nil:
		return o.shown()
	case err == nil:
		return c.done(w, r, o.path, o.done)
	}
	a, isRefusal := attempted(r, o.form, err, o.secrets...)
	if !isRefusal {
		return err
	}
	return o.again(a)
}

const (
	maxUpload = 256 << 10 // bytes of a form with files: as many certificates as the box takes, and more than once
	maxFiles  = 10        // of one form
)

// readOrder reads a form, also one with files. It keeps nothing on the disk.
func readOrder(w http.ResponseWriter, r *http.Request) error {
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "multipart/form-data" {
		return readForm(w, r)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxUpload)
	if err := r.ParseMultipartForm(maxUpload); err != nil {
		return &inputError{"files", "the files are larger than 256 KiB together, or did not arrive whole", "choose files that hold certificates and nothing else"}
	}
	return nil
}

// uploaded are the certificates, PEM, in a form's files and its text. It takes DER files too. What the
// certificates are worth is for others to say.
func uploaded(r *http.Request) ([]byte, error) {
	var out bytes.Buffer
	if text := strings.TrimSpace(strings.ReplaceAll(r.PostForm.Get("pem"), "\r\n", "\n")); text != "" {
		if err := addCertificates(&out, "pem", "what was pasted", []byte(text)); err != nil {
			return nil, err
		}
	}
	if r.MultipartForm != nil {
		files := r.MultipartForm.File["files"]
		if len(files) > maxFiles {
			return nil, &inputError{"files", fmt.Sprintf("%d files are more than %d", len(files), maxFiles), "choose the authority’s certificate and those above it"}
		}
		for _, header := range files {
			if header.Size == 0 { // what browsers send where no file was chosen
				continue
			}
			content, err := contentOf(header)
			if err != nil {
				return nil, fmt.Errorf("reading an uploaded file: %w", err)
			}
			if err := addCertificates(&out, "files", fmt.Sprintf("the file %.60q", header.Filename), content); err != nil {
				return nil, err
			}
		}
	}
	if out.Len() == 0 {
		return nil, &inputError{"files", "there is no certificate", "choose the files that came back, or paste what is in them"}
	}
	return out.Bytes(), nil
}

func contentOf(header *multipart.FileHeader) ([]byte, error) {
	file, err := header.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(file)
}

// addCertificates adds the certificates of one file; field is the input it came by.
func addCertificates(out *bytes.Buffer, field, what string, content []byte) error {
	if certs, err := x509.ParseCertificates(content); err == nil && len(certs) > 0 {
		for _, cert := range certs {
			pem.Encode(out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes everything
		}
		return nil
	}
	begun, read := bytes.Count(content, []byte("-----BEGIN")), 0 // what cannot be read pem.Decode passes over in silence
	for rest := content; ; read++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return &inputError{field, what + " holds a private key, and the box wants none; nothing of it was kept", "send certificates alone; if the key has left its machine, replace it"}
		}
		if block.Type != "CERTIFICATE" {
			return &inputError{field, fmt.Sprintf("%s holds a block %.40q", what, block.Type), "send certificates alone: for a .p7b file, run openssl pkcs7 -print_certs -in FILE"}
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return &inputError{field, what + " holds a certificate that cannot be read", "copy it again, from BEGIN CERTIFICATE to END CERTIFICATE"}
		}
		pem.Encode(out, &pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}) // a buffer takes everything
	}
	if begun != read && read > 0 {
		return &inputError{field, fmt.Sprintf("%s has %d blocks, of which %d can be read", what, begun, read), "copy it again, each certificate from its BEGIN line to its END line"}
	}
	if read == 0 {
		return &inputError{field, what + " holds no certificate", "send PEM, which has a line BEGIN CERTIFICATE, or one certificate in DER"}
	}
	return nil
}

// upload is the inputs of a form that takes certificates.
type upload struct {
	Form    string
	What    string // the certificates, in words
	Attempt *attempt
}

// Upload makes the inputs of one of the page's forms.
func (f *frame) Upload(form, what string) upload { return upload{form, what, f.Attempt} }

// Wrong tells whether the problem is about that input.
func (u upload) Wrong(field string) bool { return u.Attempt.Wrong(u.Form, field) }
