package provision

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"path"
	"strings"
	"time"

	"signet.internal/appliance/pki"
)

// readTrust checks every bundle in trust/: certificates only, at least one, none expired.
func (l *loader) readTrust() {
	for _, entry := range l.readDir(trustDir) {
		name := path.Join(trustDir, entry.Name())
		if entry.IsDir() || path.Ext(name) != ".pem" {
			l.failf(name, "remove it, or name it *.pem if it is a bundle of certificates", "only files named *.pem belong in %s/", trustDir)
			continue
		}
		if content := l.readFile(name); content != nil {
			_, problems := parseBundle(name, content, l.now)
			l.problems = append(l.problems, problems...)
		}
	}
}

// parseBundle reads the PEM certificates in a file; now is the time none may have ended by, zero for
// any. It finds every problem, and returns the certificates that have none.
func parseBundle(file string, content []byte, now time.Time) ([]*x509.Certificate, Problems) {
	var (
		certificates []*x509.Certificate
		problems     Problems
		found        int // certificates, good or bad
		blocks       int
	)
	failAt := func(line int, what, mend string) {
		problems = append(problems, Problem{File: file, Line: line, What: what, Mend: mend})
	}
	for rest := content; ; {
		block, next := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks++
		// pem.Decode skips text before a block: the block begins at its last BEGIN line.
		consumed := content[:len(content)-len(next)]
		line := 1
		if begin := bytes.LastIndex(consumed, []byte("-----BEGIN ")); begin >= 0 {
			line = lineNumber(content, begin)
		}
		rest = next
		if strings.Contains(block.Type, "PRIVATE KEY") {
			failAt(line, "a private key: everything in "+trustDir+"/ goes into the image", "remove it from the site, and from its history in version control")
			continue
		}
		if block.Type != "CERTIFICATE" {
			failAt(line, "a "+block.Type+", not a certificate", "remove it")
			continue
		}
		found++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			failAt(line, "a certificate that cannot be read: "+err.Error(), "replace it")
			continue
		}
		if !now.IsZero() && now.After(cert.NotAfter) {
			failAt(line, "certificate "+pki.FormatDN(cert.RawSubject)+" expired on "+cert.NotAfter.UTC().Format(time.DateOnly), "remove it, or replace it with its successor")
			continue
		}
		certificates = append(certificates, cert)
	}
	if begins := bytes.Count(content, []byte("-----BEGIN ")); begins > blocks {
		failAt(0, "a PEM block that cannot be read", "restore the file; each block has a BEGIN line, base64 and an END line")
	} else if found == 0 {
		failAt(0, "no certificate in it", "put the PEM certificates in, or remove the file")
	}
	return certificates, problems
}

// bundle reads the certificates of a file in trust/ that a field names. What is wrong inside the file
// is reported where trust/ is read.
func (l *loader) bundle(o *object, field, file, mend string) []*x509.Certificate {
	if path.Dir(file) != trustDir || path.Ext(file) != ".pem" {
		o.failf(field, "put the file in "+trustDir+"/ and write "+trustDir+"/NAME.pem", "%q is not a file in %s/", file, trustDir)
		return nil
	}
	content, err := fs.ReadFile(l.fsys, file)
	if err != nil {
		o.failf(field, mend, "%s: %v", file, pathCause(err))
		return nil
	}
	certificates, _ := parseBundle(file, content, l.now)
	return certificates
}
