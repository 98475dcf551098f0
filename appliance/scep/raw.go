package scep

import (
	"fmt"
	"net/http"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/exchange"
	"signet.internal/appliance/pki"
)

// isBareRequest tells whether the content of a SignedData is a PKCS#10 request and not an envelope: a CertificationRequest begins with a
// SEQUENCE in its SEQUENCE (RFC 2986 §4.2), a ContentInfo with an OBJECT IDENTIFIER. This alone chooses the way of a message, never
// that it failed on another.
func isBareRequest(content []byte) bool {
	in := cryptobyte.String(content)
	var body cryptobyte.String
	return in.ReadASN1(&body, casn1.SEQUENCE) && in.Empty() && body.PeekASN1Tag(casn1.SEQUENCE)
}

// pollBare is how long the sender of a bare request that is held is told to wait before it sends it again.
const pollBare = 60 // seconds

// bareRequest answers a request that came without an envelope: a certificate in a certs-only message, or an HTTP error with a line of
// text, as there is nothing to write a CertRep with. The challenge is in clear, so it must have come by TLS. The message
// may be signed by nobody, the request in it proves the key; where it is signed, the signature must be good.
func (s *Server) bareRequest(x *call, signed *cms.SignedData) {
	res, err := s.enrollBare(x, signed)
	if err == nil && res.Pending {
		x.Outcome = "pending"
		x.W.Header().Set("Retry-After", strconv.Itoa(pollBare))
		x.Reply(http.StatusAccepted, exchange.ContentTypeText, []byte("held for approval: send the same request again later\n"))
		return
	}
	var content []byte
	if err == nil {
		content, err = x.offer.certificates(res.Certificate)
	}
	if err == nil {
		x.issued(res)
		x.Reply(http.StatusOK, contentTypePKIMessage, content)
		return
	}
	x.Err = err
	switch v := s.explain(err); {
	case v.status == http.StatusServiceUnavailable:
		x.RetryLater(v.text())
	case v.status != http.StatusOK:
		x.Refuse(http.StatusInternalServerError, internalError+" (request "+x.ID+")")
	case v.fail == badRequest:
		x.Refuse(http.StatusForbidden, v.text())
	default:
		x.Refuse(http.StatusBadRequest, v.text())
	}
}

func (s *Server) enrollBare(x *call, signed *cms.SignedData) (*enroll.Result, error) {
	csr, proof, err := x.readBare(signed)
	if err != nil {
		return nil, s.counted(x, err)
	}
	return s.engine.Enroll(x.R.Context(), enroll.Request{
		Profile:  x.profile.Name,
		Protocol: enroll.ProtocolSCEP,
		CSR:      csr,
		Proof:    proof,
		Source:   x.Source,
		Raw:      true,
		MTLS:     x.client,
	})
}

// readBare checks a bare request as far as this package does.
func (x *call) readBare(signed *cms.SignedData) (*pki.Request, enroll.Proof, error) {
	if x.listener == plain {
		return nil, enroll.Proof{}, refuse(badRequest, "a request without an envelope shows its challenge password to everybody: use https")
	}
	if err := x.checkMTLS(); err != nil {
		return nil, enroll.Proof{}, err
	}
	var signer *request
	if len(signed.Signers) > 0 {
		var err error
		if signer, err = open(signed); err != nil {
			return nil, enroll.Proof{}, fmt.Errorf("%w: %w", refuse(badMessageCheck, "the signature of the message does not verify"), err)
		}
		if !x.profile.policy.AllowsDigest(signer.digest) {
			return nil, enroll.Proof{}, refuse(badAlg, fmt.Sprintf("the message is signed with %v, which is not allowed: "+setSHA, signer.digest))
		}
	}
	csr, err := pki.ParseRequest(signed.Content)
	if err != nil {
		return nil, enroll.Proof{}, fmt.Errorf("%w: %w", refuse(badMessageCheck, "the content is no valid PKCS#10 request: sign the request with its own key"), err)
	}
	if signer == nil {
		return csr, enroll.Proof{Challenge: csr.Challenge, SignerSPKI: csr.RawSPKI, SelfSigned: true}, nil
	}
	return csr, signer.proof(csr), nil
}
