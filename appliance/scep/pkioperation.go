package scep

import (
	"errors"
	"fmt"
	"net/http"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
)

// request is a PKIMessage whose signature verified, or one that malformed refuses.
type request struct {
	header
	malformed error            // wraps a *refusal: what is wrong with the header, or that the signature cannot be verified
	signer    *cms.Certificate // nil where it cannot
	digest    cms.Digest       // the request's own, also where the policy does not allow it

	envelope *cms.EnvelopedData // nil where unread says why
	unread   error
	ra       RA // that the envelope is addressed to, or the newest
}

// pkiOperation answers a PKIOperation (RFC 8894 §4.3), in the order of what each step costs and gives away:
//
//  1. a slot, or 503, before anything is parsed;
//  2. the signature: until it verifies there is nobody to answer, and the refusal is HTTP 400 and a line of text, but for an
//     algorithm that is not known here;
//  3. from here on every refusal is a signed CertRep: attributes, message type, client certificate, digest, signer key, cipher;
//  4. only then the RA key opens the envelope;
//  5. enroll decides;
//  6. the certificate goes back to the key that signed.
func (s *Server) pkiOperation(x *call, message string) {
	defer func() {
		if x.isLarge {
			<-s.large
		}
	}()
	raw, ok := s.pkiMessage(x, message)
	if !ok {
		if x.Outcome == "refused" {
			s.count(x, x.Reason)
		}
		return
	}
	if !s.slots.Enter(x.R.Context()) {
		x.RetryLater("the box is busy: try again later")
		return
	}
	defer s.slots.Leave()
	signed, err := cms.ParseSignedData(raw)
	if err == nil && x.profile.RawCSR && isBareRequest(signed.Content) {
		s.bareRequest(x, signed)
		return
	}
	var req *request
	if err == nil {
		req, err = open(signed)
	}
	if errors.Is(err, cms.ErrAlgorithm) {
		req, err = unverifiable(signed, err)
	}
	if err != nil {
		x.Err = err
		x.Refuse(http.StatusBadRequest, unverified(raw, err))
		s.count(x, x.Reason)
		return
	}
	x.transaction = req.transaction
	req.envelope, req.unread = cms.ParseEnvelopedData(signed.Content)
	req.ra = x.offer.addressed(req.envelope)

	body, err := s.answer(x, req)
	if err != nil {
		body = s.fail(x, req, err)
	}
	if body != nil {
		x.Reply(http.StatusOK, contentTypePKIMessage, body)
	}
}

// answer returns the CertRep for a verified request. What is not listed here is refused, whatever else is right about it:
// a message type that slips past its checks is a certificate for anyone.
func (s *Server) answer(x *call, req *request) ([]byte, error) {
	err := req.malformed
	if err == nil {
		err = x.checkMTLS()
	}
	if err == nil {
		switch req.messageType {
		case typePKCSReq, typeRenewalReq:
			return s.issue(x, req)
		case typeCertPoll:
			return s.poll(x, req)
		case typeGetCert, typeGetCRL:
			return s.lookUp(x, req)
		}
		err = refuse(badRequest, "a message of this type is not answered: send PKCSReq (19), RenewalReq (17), CertPoll (20), GetCert (21) or GetCRL (22)")
	}
	return nil, s.counted(x, err)
}

// fail returns the CertRep FAILURE for a verified request that gets no certificate, or nil after it has answered with
// the HTTP error that fits better.
func (s *Server) fail(x *call, req *request, err error) []byte {
	v := s.explain(err)
	x.Err = err
	if v.status == http.StatusOK {
		body, err := s.failure(x.profile, req, v)
		if err == nil {
			x.Outcome, x.Reason = "refused", v.text()
			return body
		}
		x.Err = errors.Join(x.Err, err)
		v = s.explain(err)
	}
	if v.status == http.StatusServiceUnavailable {
		x.RetryLater(v.text())
		if errors.Is(err, enroll.ErrUnavailable) {
			x.Outcome = "error"
		}
		return nil
	}
	x.Refuse(http.StatusInternalServerError, internalError+" (request "+x.ID+")")
	return nil
}

// explain is explain with the key holder's own word for busy.
func (s *Server) explain(err error) verdict {
	if s.config.IsBusy(err) {
		err = enroll.ErrBusy
	}
	return explain(err)
}

// count reports a refusal of a sender that is not authenticated to the audit log, where only the first of a source
// and reason within a minute costs a record. The reason is one of a fixed set of texts.
func (s *Server) count(x *call, reason string) {
	s.engine.Refused(enroll.Refusal{
		Profile:       x.profile.Name,
		Protocol:      enroll.ProtocolSCEP,
		Source:        x.Source,
		TransactionID: x.transaction,
		Reason:        reason,
	})
}

// counted counts a refusal of this package and returns it; what fails for other reasons is not held against the sender. Refusals of
// the engine are recorded there.
func (s *Server) counted(x *call, err error) error {
	if v := s.explain(err); v.status == http.StatusOK {
		s.count(x, v.reason)
	}
	return err
}

// open verifies the signature of a PKIMessage.
//
// It verifies digests the policy does not allow as well: what such a signature proves is weak, and nothing is done on
// its word, but a client told "badAlg" in an answer it understands can be mended, and one told HTTP 400 rarely is.
func open(signed *cms.SignedData) (*request, error) {
	signer, err := signed.Verify(cms.Policy{Digests: []cms.Digest{cms.SHA256, cms.SHA384, cms.SHA512, cms.SHA1, cms.MD5}})
	if err != nil {
		return nil, err
	}
	req := &request{signer: signer.Certificate, digest: signer.Digest}
	req.header, req.malformed = readHeader(signer.Attribute)
	return req, nil
}

// unverifiable is a request that is signed in a way nothing is known of here. All that becomes of it is the refusal its client
// understands (RFC 8894 §3.2.1.4.1), which costs what any message does that its sender signed with a key made for it. Where that
// has nothing to go by, err is returned.
func unverifiable(signed *cms.SignedData, err error) (*request, error) {
	h, malformed := readHeader(signed.Signers[0].Attribute)
	if malformed != nil {
		return nil, err
	}
	return &request{header: h, malformed: fmt.Errorf("%w: %w", refuse(badAlg, unknownSignature), err)}, nil
}

// setSHA is the mend of a refused signature algorithm: what to change on the client.
const setSHA = "set the client to SHA-256, SHA-384 or SHA-512"

const unknownSignature = "the message is signed with an algorithm that is not known here: " + setSHA + " with an RSA key"

// unverified is the text of the HTTP 400 for a message that has no verified sender.
func unverified(raw []byte, err error) string {
	switch {
	case len(raw) == 0:
		return "empty message: send a CMS SignedData"
	case errors.Is(err, cms.ErrSignature):
		return "the signature of the message does not verify"
	case errors.Is(err, cms.ErrAlgorithm):
		return unknownSignature
	case errors.Is(err, cms.ErrSigner):
		return "the message does not have exactly one signer with its certificate"
	}
	return "the message is not a signed CMS SignedData in DER or BER"
}
