package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"time"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// issue answers a PKCSReq or a RenewalReq. Which of the two it is says little, clients renew with either: the engine goes by the
// certificate that signed.
func (s *Server) issue(x *call, req *request) ([]byte, error) {
	csr, seal, err := certificateRequest(x.R.Context(), x.profile, req)
	if err != nil {
		return nil, s.counted(x, err)
	}
	res, err := s.engine.Enroll(x.R.Context(), enroll.Request{
		Profile:       x.profile.Name,
		Protocol:      enroll.ProtocolSCEP,
		TransactionID: req.transaction,
		CSR:           csr,
		Proof:         req.proof(csr),
		Source:        x.Source,
		SenderNonce:   req.senderNonce,
		Renewal:       req.messageType == typeRenewalReq,
		AnswerNow:     seal.recipient == nil, // a poll carries no challenge to answer under
		MTLS:          x.client,
	})
	if err != nil {
		return nil, err
	}
	return s.result(x, req, res, seal)
}

// proof is what a signed request offers to show who sent it.
func (req *request) proof(csr *pki.Request) enroll.Proof {
	return enroll.Proof{
		Challenge:         csr.Challenge,
		SignerSPKI:        req.signer.RawSPKI,
		SignerCertificate: req.signer.Raw,
		SelfSigned:        bytes.Equal(req.signer.RawIssuer, req.signer.RawSubject),
	}
}

// result returns the CertRep for what the engine decided: SUCCESS or PENDING.
func (s *Server) result(x *call, req *request, res *enroll.Result, seal sealing) ([]byte, error) {
	if res.Pending {
		x.Outcome = "pending"
		return s.pending(x.profile, req)
	}
	content, err := x.offer.certificates(res.Certificate)
	if err != nil {
		return nil, err
	}
	x.issued(res)
	return s.success(x.profile, req, content, seal)
}

// issued notes a certificate for the log line.
func (x *call) issued(res *enroll.Result) {
	x.Serial, x.Outcome = res.Serial, "issued"
	if res.Replayed {
		x.Outcome = "replayed"
	}
}

// certificateRequest makes the checks between signature and engine, the cheap and the public ones before the RA key is
// touched, and returns the request in the envelope and how to seal the answer.
func certificateRequest(ctx context.Context, p *profile, req *request) (*pki.Request, sealing, error) {
	envelope, err := p.envelope(req)
	if err != nil {
		return nil, sealing{}, err
	}
	der, err := req.decrypt(envelope, p.policy)
	decrypted := time.Now()
	var csr *pki.Request
	if err == nil {
		csr, err = pki.ParseRequest(der)
	}
	if errors.Is(err, cms.ErrDecrypt) || errors.Is(err, pki.ErrRequest) || errors.Is(err, pki.ErrRequestSignature) {
		waitUntil(ctx, decrypted.Add(unopenedTime))
	}
	if err != nil {
		return nil, sealing{}, err
	}
	seal := sealing{recipient: req.signer, cipher: p.answerCipher(envelope.ContentCipher)}
	if _, ok := req.signer.PublicKey.(*rsa.PublicKey); !ok {
		if csr.Challenge == "" {
			return nil, sealing{}, refuse(badAlg, "the answer cannot be encrypted to the key that signed, nor under a challenge password that is not there: send one, or use an RSA key")
		}
		seal.recipient, seal.password = nil, csr.Challenge
	}
	return csr, seal, nil
}

// envelope returns the envelope of a request after checks of what the sender chose in clear.
func (p *profile) envelope(req *request) (*cms.EnvelopedData, error) {
	if !p.policy.AllowsDigest(req.digest) {
		return nil, refuse(badAlg, fmt.Sprintf("the message is signed with %v, which is not allowed: "+setSHA, req.digest))
	}
	if req.unread != nil {
		return nil, fmt.Errorf("%w: %w", refuse(badMessageCheck, "the signed content is not a CMS EnvelopedData"), req.unread)
	}
	return req.envelope, nil
}

// decrypt opens the envelope of a request with the key of the RA it is addressed to.
func (req *request) decrypt(envelope *cms.EnvelopedData, p cms.Policy) ([]byte, error) {
	key := &watchedKey{Decrypter: req.ra.Decrypter}
	content, err := envelope.Decrypt(req.ra.Certificate, key, p)
	if key.err != nil {
		return nil, fmt.Errorf("decrypting with the RA key: %w", key.err)
	}
	return content, err
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
