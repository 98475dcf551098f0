package scep

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// needsRSA is the mend where there is no challenge to encrypt an answer under.
const needsRSA = "the message is not signed with an RSA key, so the answer cannot be encrypted: use an RSA key for this"

// poll answers a CertPoll (GetCertInitial, RFC 8894 §3.3.3). Transaction and key decide, and nothing in the envelope: it holds no
// more than the names of issuer and subject, which any sender may write there (strongSwan writes the RA's for the issuer's), and an
// answer that depended on whether they can be read would tell whoever signs a captured envelope again what is in it. So it stays
// closed, and a device that polls costs the RA key no more than the signature of its answer.
func (s *Server) poll(x *call, req *request) ([]byte, error) {
	envelope, err := x.profile.envelope(req)
	if err != nil {
		return nil, s.counted(x, err)
	}
	if !x.profile.policy.AllowsCipher(envelope.ContentCipher) {
		return nil, s.counted(x, fmt.Errorf("%w: %v", cms.ErrAlgorithm, envelope.ContentCipher))
	}
	if _, ok := req.signer.PublicKey.(*rsa.PublicKey); !ok {
		return nil, s.counted(x, refuse(badAlg, needsRSA))
	}
	res, err := s.engine.Poll(x.R.Context(), enroll.Poll{
		Profile:       x.profile.Name,
		Protocol:      enroll.ProtocolSCEP,
		TransactionID: req.transaction,
		SignerSPKI:    req.signer.RawSPKI,
		Source:        x.Source,
	})
	if err != nil {
		return nil, err
	}
	return s.result(x, req, res, sealing{recipient: req.signer, cipher: x.profile.answerCipher(envelope.ContentCipher)})
}

// unknownCertificate answers everything between the envelope of a GetCert or GetCRL and a certificate of this profile's authority, in
// one and the same way; see unopened for why.
const unknownCertificate = "the envelope does not open or names no certificate of this profile's authority: encrypt to the RA certificate from GetCACert, and send issuer and serial number"

// lookUp answers a GetCert or a GetCRL (RFC 8894 §3.3.4). Both ask for what is public and are taken from anybody. They are never
// answered from what was answered before: clients send constants for the transaction.
func (s *Server) lookUp(x *call, req *request) ([]byte, error) {
	envelope, err := x.profile.envelope(req)
	if err != nil {
		return nil, s.counted(x, err)
	}
	if _, ok := req.signer.PublicKey.(*rsa.PublicKey); !ok {
		return nil, s.counted(x, refuse(badAlg, needsRSA))
	}
	content, err := req.decrypt(envelope, x.profile.policy)
	decrypted := time.Now()
	if err != nil && !errors.Is(err, cms.ErrDecrypt) {
		return nil, s.counted(x, err)
	}
	issuer, serial, ok := readIssuerAndSerial(content)
	issuer = x.offer.issuer(issuer)
	answer := []byte(nil)
	switch {
	case err != nil || !ok:
		err = enroll.ErrNoCertificate
	case req.messageType == typeGetCRL:
		answer, err = s.crl(x, issuer, serial)
	default:
		answer, err = s.certificate(x, issuer, serial)
	}
	if errors.Is(err, enroll.ErrNoCertificate) {
		waitUntil(x.R.Context(), decrypted.Add(unopenedTime))
		return nil, s.counted(x, refuse(badCertID, unknownCertificate))
	}
	if err != nil {
		return nil, err
	}
	x.Outcome = "answered"
	return s.success(x.profile, req, answer, sealing{recipient: req.signer, cipher: x.profile.answerCipher(envelope.ContentCipher)})
}

// crl is the content of an answer to GetCRL. There is one list for all that a generation of the authority issued; generations have one
// name, so the certificate says which it is. About a certificate that is not there, the list is that of the CA of now.
func (s *Server) crl(x *call, issuer []byte, serial *big.Int) ([]byte, error) {
	if earlier, err := s.earlierIssuer(x, issuer, serial); err != nil {
		return nil, err
	} else if earlier != nil {
		list, err := s.engine.IssuerCRL(x.R.Context(), earlier)
		if err != nil {
			return nil, err
		}
		return cms.CRLOnly(list.DER)
	}
	if !bytes.Equal(issuer, x.offer.CA.RawSubject) {
		return nil, enroll.ErrNoCertificate
	}
	der, err := s.engine.CRL(x.R.Context(), x.profile.Name)
	if err != nil {
		return nil, err
	}
	return cms.CRLOnly(der)
}

// earlierIssuer returns the earlier generation that issued a certificate, nil if none of them did.
func (s *Server) earlierIssuer(x *call, issuer []byte, serial *big.Int) (*pki.Issuer, error) {
	if len(x.offer.Earlier) == 0 {
		return nil, nil
	}
	c := x.offer.own(issuer, serial)
	if c == nil {
		der, err := s.engine.Certificate(x.profile.Name, issuer, serial)
		if errors.Is(err, enroll.ErrNoCertificate) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("reading an issued certificate: %w", err)
		}
	}
	for _, i := range x.offer.Earlier {
		if c.CheckSignatureFrom(i.Certificate()) == nil {
			return i, nil
		}
	}
	return nil, nil
}

// certificate is the content of an answer to GetCert. sscep asks for the RA's own unless told otherwise.
func (s *Server) certificate(x *call, issuer []byte, serial *big.Int) ([]byte, error) {
	if c := x.offer.own(issuer, serial); c != nil {
		return x.offer.certificates(c.Raw)
	}
	der, err := s.engine.Certificate(x.profile.Name, issuer, serial)
	if err != nil {
		return nil, err
	}
	return x.offer.certificates(der)
}

// readIssuerAndSerial reads an IssuerAndSerialNumber (RFC 5652 §10.2.4) with nothing behind it; issuer is the whole Name.
func readIssuerAndSerial(der []byte) (issuer []byte, serial *big.Int, ok bool) {
	in := cryptobyte.String(der)
	var body, name cryptobyte.String
	serial = new(big.Int)
	if !in.ReadASN1(&body, casn1.SEQUENCE) || !in.Empty() ||
		!body.ReadASN1Element(&name, casn1.SEQUENCE) || !body.ReadASN1Integer(serial) || !body.Empty() {
		return nil, nil, false
	}
	return name, serial, true
}
