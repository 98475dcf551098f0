package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// request is a PKIMessage whose signature verified.
type request struct {
	header
	malformed error // a *refusal: what is wrong with the header
	signer    *cms.Certificate
	digest    cms.Digest // the request's own, also where the policy does not allow it
	envelope  []byte     // ContentInfo(EnvelopedData)
}

// pkiOperation answers a PKIOperation (RFC 8894 §4.3), in the order of what each step costs and gives away:
//
//  1. a slot, or 503, before anything is parsed;
//  2. the signature: until it verifies there is nobody to answer, and the refusal is HTTP 400 and a line of text;
//  3. from here on every refusal is a signed CertRep: attributes, message type, digest, signer key, cipher;
//  4. only then the RA key opens the envelope;
//  5. enroll decides;
//  6. the certificate goes back to the key that signed.
func (s *Server) pkiOperation(x *exchange, message string) {
	raw, ok := s.pkiMessage(x, message)
	if !ok {
		if x.outcome == "refused" {
			s.count(x, x.reason)
		}
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		x.retryLater("the box is busy: try again later")
		return
	}
	req, err := s.open(raw)
	if err != nil {
		x.err = err
		x.refuse(http.StatusBadRequest, unverified(raw, err))
		s.count(x, x.reason)
		return
	}
	x.transaction = req.transaction

	body, err := s.issue(x, req)
	if err != nil {
		body = s.fail(x, req, err)
	}
	if body != nil {
		x.reply(http.StatusOK, contentTypePKIMessage, body)
	}
}

// issue takes a verified request through the checks of this package to the engine, and returns the CertRep SUCCESS.
// Refusals before the engine are counted here; the engine records its own.
func (s *Server) issue(x *exchange, req *request) ([]byte, error) {
	csr, cipher, err := s.certificateRequest(x.r.Context(), x.profile, req)
	if err != nil {
		if v := explain(err); v.status == http.StatusOK {
			s.count(x, v.reason)
		}
		return nil, err
	}
	res, err := s.engine.Enroll(x.r.Context(), enroll.Request{
		Profile:       x.profile.Name,
		Protocol:      enroll.ProtocolSCEP,
		TransactionID: req.transaction,
		CSR:           csr,
		Proof: enroll.Proof{
			Challenge:         csr.Challenge,
			SignerSPKI:        req.signer.RawSPKI,
			SignerCertificate: req.signer.Raw,
			SelfSigned:        bytes.Equal(req.signer.RawIssuer, req.signer.RawSubject),
		},
		Source:      x.source,
		SenderNonce: req.senderNonce,
	})
	if err != nil {
		return nil, err
	}
	x.serial, x.outcome = res.Serial, "issued"
	if res.Replayed {
		x.outcome = "replayed"
	}
	return s.success(x.profile, req, res.Certificate, cipher)
}

// fail returns the CertRep FAILURE for a verified request that gets no certificate, or nil after it has answered with
// the HTTP error that fits better.
func (s *Server) fail(x *exchange, req *request, err error) []byte {
	v := s.explain(err)
	x.err = err
	if v.status == http.StatusOK {
		body, err := s.failure(x.profile, req, v)
		if err == nil {
			x.outcome, x.reason = "refused", v.text()
			return body
		}
		x.err = errors.Join(x.err, err)
		v = s.explain(err)
	}
	if v.status == http.StatusServiceUnavailable {
		x.retryLater(v.text())
		if errors.Is(err, enroll.ErrUnavailable) {
			x.outcome = "error"
		}
		return nil
	}
	x.refuse(http.StatusInternalServerError, internalError+" (request "+x.id+")")
	return nil
}

// explain is explain with the key holder's own word for busy.
func (s *Server) explain(err error) verdict {
	if s.isBusy(err) {
		err = enroll.ErrBusy
	}
	return explain(err)
}

// count reports a refusal of a sender that is not authenticated to the audit log, where only the first of a source
// and reason within a minute costs a record. The reason is one of a fixed set of texts.
func (s *Server) count(x *exchange, reason string) {
	s.engine.Refused(enroll.Refusal{
		Profile:       x.profile.Name,
		Protocol:      enroll.ProtocolSCEP,
		Source:        x.source,
		TransactionID: x.transaction,
		Reason:        reason,
	})
}

// open parses a PKIMessage and verifies its signature.
//
// It verifies digests the policy does not allow as well: what such a signature proves is weak, and nothing is done on
// its word, but a client told "badAlg" in an answer it understands can be mended, and one told HTTP 400 rarely is.
func (s *Server) open(raw []byte) (*request, error) {
	signed, err := cms.ParseSignedData(raw)
	if err != nil {
		return nil, err
	}
	signer, err := signed.Verify(cms.Policy{Digests: []cms.Digest{cms.SHA256, cms.SHA384, cms.SHA512, cms.SHA1, cms.MD5}})
	if err != nil {
		return nil, err
	}
	req := &request{signer: signer.Certificate, digest: signer.Digest, envelope: signed.Content}
	req.header, req.malformed = readHeader(signer.Attribute)
	return req, nil
}

// setSHA is the mend of a refused signature algorithm: what to change on the client.
const setSHA = "set the client to SHA-256, SHA-384 or SHA-512"

// unverified is the text of the HTTP 400 for a message that has no verified sender.
func unverified(raw []byte, err error) string {
	switch {
	case len(raw) == 0:
		return "empty message: send a CMS SignedData"
	case errors.Is(err, cms.ErrSignature):
		return "the signature of the message does not verify"
	case errors.Is(err, cms.ErrAlgorithm):
		return "the message is signed with an algorithm that is not known here: " + setSHA + " with an RSA key"
	case errors.Is(err, cms.ErrSigner):
		return "the message does not have exactly one signer with its certificate"
	}
	return "the message is not a signed CMS SignedData in DER or BER"
}

// certificateRequest makes the checks between signature and engine, the cheap and the public ones before the RA key is
// touched, and returns the request in the envelope and the envelope's cipher.
func (s *Server) certificateRequest(ctx context.Context, p *profile, req *request) (*pki.Request, cms.Cipher, error) {
	if req.malformed != nil {
		return nil, 0, req.malformed
	}
	if req.messageType != typePKCSReq {
		return nil, 0, refuse(badRequest, "message type "+typeName(req.messageType)+" is not offered: send PKCSReq (19)")
	}
	if !s.policy.AllowsDigest(req.digest) {
		return nil, 0, refuse(badAlg, fmt.Sprintf("the message is signed with %v, which is not allowed: "+setSHA, req.digest))
	}
	if _, ok := req.signer.PublicKey.(*rsa.PublicKey); !ok {
		return nil, 0, refuse(badAlg, "the message is not signed with an RSA key, so the answer cannot be encrypted: use an RSA key for SCEP")
	}
	envelope, err := cms.ParseEnvelopedData(req.envelope)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", refuse(badMessageCheck, "the signed content is not a CMS EnvelopedData"), err)
	}
	key := &watchedKey{Decrypter: p.RADecrypter}
	der, err := envelope.Decrypt(p.RA, key, s.policy)
	decrypted := time.Now()
	if key.err != nil {
		return nil, 0, fmt.Errorf("decrypting with the RA key: %w", key.err)
	}
	var csr *pki.Request
	if err == nil {
		csr, err = pki.ParseRequest(der)
	}
	if errors.Is(err, cms.ErrDecrypt) || errors.Is(err, pki.ErrRequest) || errors.Is(err, pki.ErrRequestSignature) {
		waitUntil(ctx, decrypted.Add(unopenedTime))
	}
	if err != nil {
		return nil, 0, err
	}
	return csr, envelope.ContentCipher, nil
}

// unopenedTime is how long after decryption everything that is answered with unopened is answered: longer than any
// request takes to parse and verify, so that the time does not tell what the text does not tell.
const unopenedTime = 25 * time.Millisecond

// waitUntil returns at t or when ctx ends. A timer of the runtime is as coarse as the milliseconds of epoll_wait counted
// from its start, so what went before would show; the end is left to the kernel's clock.
func waitUntil(ctx context.Context, t time.Time) {
	const coarse = 3 * time.Millisecond
	timer := time.NewTimer(time.Until(t) - coarse)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	for left := time.Until(t); left > 0; left = time.Until(t) {
		spec := syscall.NsecToTimespec(left.Nanoseconds())
		syscall.Nanosleep(&spec, nil) // returns early on a signal
	}
}

// watchedKey remembers that the RA key did not work. cms answers that like a message that does not decrypt, as it must
// where the reason may lie in the message; but a client told so would give up for good because a key holder was down.
// What lies in the message is left to cms: a bad padding is no error under PKCS1v15DecryptOptions.SessionKeyLen, and
// everything else that is wrong with a ciphertext is rsa.ErrDecryption.
type watchedKey struct {
	crypto.Decrypter
	err error
}

func (k *watchedKey) Decrypt(random io.Reader, ciphertext []byte, o crypto.DecrypterOpts) ([]byte, error) {
	b, err := k.Decrypter.Decrypt(random, ciphertext, o)
	if err != nil && !errors.Is(err, rsa.ErrDecryption) {
		k.err = err
	}
	return b, err
}
