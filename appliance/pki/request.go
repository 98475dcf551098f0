package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// What ParseRequest refuses wraps one of these.
var (
	ErrRequest          = errors.New("bad certification request")
	ErrRequestSignature = errors.New("bad signature on certification request")
)

// Bounds on what a sender may make us compute or keep.
const (
	maxRequest   = 256 << 10 // bytes of DER
	maxChallenge = 64 << 10  // bytes of challengePassword; RFC 2985's 255 is exceeded by signed challenges
	minRSABits   = 1024      // below, crypto/rsa does not verify at all; profiles ask for more
	maxRSABits   = 8192      // above, one verification is worth an attack
)

var (
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}      // RFC 2985 §5.4.1
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}     // RFC 2985 §5.4.2
	oidMSExtensions      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14} // [MS-WCCE] §2.2.2.7.7.4, szOID_CERT_EXTENSIONS
	oidSubjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}                    // RFC 5280 §4.2.1.6
	oidBasicConstraints  = asn1.ObjectIdentifier{2, 5, 29, 19}                    // RFC 5280 §4.2.1.9
	oidRSAPSS            = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}     // RFC 4055 §3.1
	oidMGF1              = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}      // RFC 4055 §2.2
)

// Request is a PKCS#10 certification request (RFC 2986) whose self-signature was checked, or one for a
// key that was made here (see [Template]).
//
// The slices alias one private copy of the input; nobody may change them.
type Request struct {
	Raw        []byte // the whole CertificationRequest
	RawInfo    []byte // CertificationRequestInfo, what the sender signed
	RawSubject []byte // Name, its order and string types as sent
	RawSPKI    []byte // SubjectPublicKeyInfo

	// RawUnbound is RawInfo's attributes but challengePassword, one after the other: what stays the same
	// where a request is made anew for another connection (RFC 7030 §3.5).
	RawUnbound []byte

	PublicKey crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey

	// Challenge is the challengePassword attribute as UTF-8; empty where it is absent. It is a secret:
	// keep it out of logs and errors.
	Challenge string

	SAN    []Name // subjectAltName in order, empty where it is absent
	RawSAN []byte // value of the subjectAltName extension (GeneralNames), nil where it is absent

	// SID is the Active Directory account the request's NTDS security extension names ([MS-WCCE]
	// §2.2.2.7.7.4), such as "S-1-5-21-…-1104"; "" where there is none that can be read.
	SID string

	Extensions []pkix.Extension // every requested extension, each type once

	issued bool // the subject is that of the certificate to be renewed, byte for byte
}

// ParseRequest parses one DER PKCS#10 request and checks its self-signature.
//
// Attributes are walked here because [x509.ParseCertificateRequest] silently drops every attribute
// that is not an extension request, challengePassword among them. SHA-1 signatures are accepted (the
// signature proves possession of a key, nothing else), MD5 is not. The version number is ignored:
// widespread libraries write 2 where RFC 2986 wants 0.
func ParseRequest(der []byte) (*Request, error) {
	r, algorithm, signature, err := readRequest(der)
	if err != nil {
		return nil, err
	}
	if signature.BitLength%8 != 0 {
		return nil, fmt.Errorf("%w: signature is not of whole bytes", ErrRequest)
	}
	if err := r.parseKey(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := r.checkSignature(algorithm, signature.Bytes); err != nil {
		return nil, err
	}
	return r, nil
}

// readRequest reads everything of a request but its key, and checks nothing of its signature.
func readRequest(der []byte) (r *Request, algorithm cryptobyte.String, signature asn1.BitString, err error) {
	if len(der) > maxRequest {
		return nil, nil, signature, fmt.Errorf("%w: %d bytes, at most %d are read", ErrRequest, len(der), maxRequest)
	}
	input := cryptobyte.String(append([]byte(nil), der...))
	r = &Request{Raw: input}
	var outer, infoElement cryptobyte.String
	if !input.ReadASN1(&outer, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, nil, signature, fmt.Errorf("%w: not one DER SEQUENCE", ErrRequest)
	}
	if !outer.ReadASN1Element(&infoElement, cbasn1.SEQUENCE) ||
		!outer.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) ||
		!outer.ReadASN1BitString(&signature) || !outer.Empty() {
		return nil, nil, signature, fmt.Errorf("%w: not info, algorithm and signature", ErrRequest)
	}
	r.RawInfo = infoElement
	if err := r.readInfo(infoElement); err != nil {
		return nil, nil, signature, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return r, algorithm, signature, nil
}

// parseInfo reads a CertificationRequestInfo whose signature nobody checks.
func (r *Request) parseInfo(element cryptobyte.String) error {
	if err := r.readInfo(element); err != nil {
		return err
	}
	return r.parseKey()
}

// readInfo reads all of a CertificationRequestInfo but what its key is.
func (r *Request) readInfo(element cryptobyte.String) error {
	var info, version, subject, spki cryptobyte.String
	if !element.ReadASN1(&info, cbasn1.SEQUENCE) ||
		!info.ReadASN1(&version, cbasn1.INTEGER) ||
		!info.ReadASN1Element(&subject, cbasn1.SEQUENCE) ||
		!info.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		return errors.New("info is not version, subject and public key")
	}
	r.RawSubject, r.RawSPKI = subject, spki
	if _, err := parseName(subject); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	// attributes [0] IMPLICIT SET OF Attribute; some clients leave the field out altogether.
	var attributes cryptobyte.String
	var present bool
	if !info.ReadOptionalASN1(&attributes, &present, cbasn1.Tag(0).Constructed().ContextSpecific()) || !info.Empty() {
		return errors.New("attributes are not a SET")
	}
	return r.parseAttributes(attributes)
}

func (r *Request) parseKey() (err error) {
	r.PublicKey, err = parseKey(r.RawSPKI)
	return err
}

func parseKey(spki []byte) (crypto.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("public key: %v", err)
	}
	// crypto/x509 skips what follows the fields it knows. The bytes go into the certificate as they
	// are, so there must be one way only to write a key.
	if canonical, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(canonical, spki) {
		return nil, errors.New("public key: not in its only encoding")
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("public key: RSA of %d bits, %d to %d are read", bits, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("public key: %s are not read", keyKind(key))
	}
	return key, nil
}

func (r *Request) parseAttributes(attributes cryptobyte.String) error {
	seen := map[string]bool{}
	for !attributes.Empty() {
		var element, attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !attributes.ReadASN1Element(&element, cbasn1.SEQUENCE) {
			return errors.New("attribute is not a SEQUENCE")
		}
		whole := element
		if !element.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() {
			return errors.New("attribute is not a type and a SET of values")
		}
		if seen[oid.String()] {
			return fmt.Errorf("attribute %s twice", oid)
		}
		seen[oid.String()] = true
		if !oid.Equal(oidChallengePassword) {
			r.RawUnbound = append(r.RawUnbound, whole...)
		}
		var err error
		switch {
		case oid.Equal(oidChallengePassword):
			r.Challenge, err = parseChallenge(values)
		case oid.Equal(oidExtensionRequest), oid.Equal(oidMSExtensions):
			err = r.parseExtensions(values)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", oid, err)
		}
	}
	return nil
}

// parseChallenge reads the one DirectoryString or IA5String of a challengePassword attribute.
func parseChallenge(values cryptobyte.String) (string, error) {
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !values.ReadAnyASN1(&value, &tag) || !values.Empty() {
		return "", errors.New("not exactly one value")
	}
	if len(value) > maxChallenge {
		return "", fmt.Errorf("%d bytes, at most %d are read", len(value), maxChallenge)
	}
	return decodeString(tag, value)
}

func (r *Request) parseExtensions(values cryptobyte.String) error {
	var list cryptobyte.String
	if !values.ReadASN1(&list, cbasn1.SEQUENCE) || !values.Empty() {
		return errors.New("not exactly one list of extensions")
	}
	for !list.Empty() {
		var extension, value cryptobyte.String
		var ext pkix.Extension
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&ext.Id) {
			return errors.New("extension without a type")
		}
		if extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&ext.Critical) {
			return fmt.Errorf("extension %s: critical is not a BOOLEAN", ext.Id)
		}
		if !extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
			return fmt.Errorf("extension %s: no value", ext.Id)
		}
		ext.Value = value
		for _, other := range r.Extensions {
			if other.Id.Equal(ext.Id) {
				return fmt.Errorf("extension %s twice", ext.Id)
			}
		}
		r.Extensions = append(r.Extensions, ext)
		if ext.Id.Equal(oidNTDSSecurity) {
			r.SID = parseSID(value)
		}
		if ext.Id.Equal(oidSubjectAltName) {
			names, err := parseNames(value)
			if err != nil {
				return fmt.Errorf("subjectAltName: %w", err)
			}
			r.SAN, r.RawSAN = names, value
		}
	}
	return nil
}

// asksForCA reports whether the request wants basicConstraints with cA TRUE (or unreadable ones).
func (r *Request) asksForCA() bool {
	for _, ext := range r.Extensions {
		if !ext.Id.Equal(oidBasicConstraints) {
			continue
		}
		value := cryptobyte.String(ext.Value)
		var constraints cryptobyte.String
		var ca bool
		if !value.ReadASN1(&constraints, cbasn1.SEQUENCE) || !value.Empty() {
			return true
		}
		if constraints.PeekASN1Tag(cbasn1.BOOLEAN) && !constraints.ReadASN1Boolean(&ca) {
			return true
		}
		if ca {
			return true
		}
	}
	return false
}

func (r *Request) checkSignature(algorithm cryptobyte.String, signature []byte) error {
	id, err := signatureAlgorithm(algorithm)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRequestSignature, err)
	}
	csr := x509.CertificateRequest{
		RawTBSCertificateRequest: r.RawInfo,
		SignatureAlgorithm:       id,
		Signature:                signature,
		PublicKey:                r.PublicKey,
	}
	// CheckSignature accepts SHA-1 for requests and no other weak digest.
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("%w: %v", ErrRequestSignature, err)
	}
	return nil
}

// signatureAlgorithm maps an AlgorithmIdentifier to the algorithms a request may be signed with.
func signatureAlgorithm(element cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var algorithm cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !element.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) {
		return 0, errors.New("algorithm without a type")
	}
	if oid.Equal(oidRSAPSS) {
		return pssAlgorithm(algorithm)
	}
	switch oid.String() {
	case "1.2.840.113549.1.1.4":
		return 0, errors.New("MD5 signatures are not accepted; the client has to sign with SHA-256")
	case "1.2.840.113549.1.1.5":
		return x509.SHA1WithRSA, nil
	case "1.2.840.113549.1.1.11":
		return x509.SHA256WithRSA, nil
	case "1.2.840.113549.1.1.12":
		return x509.SHA384WithRSA, nil
	case "1.2.840.113549.1.1.13":
		return x509.SHA512WithRSA, nil
	case "1.2.840.10045.4.1":
		return x509.ECDSAWithSHA1, nil
	case "1.2.840.10045.4.3.2":
		return x509.ECDSAWithSHA256, nil
	case "1.2.840.10045.4.3.3":
		return x509.ECDSAWithSHA384, nil
	case "1.2.840.10045.4.3.4":
		return x509.ECDSAWithSHA512, nil
	case "1.3.101.112":
		return x509.PureEd25519, nil
	}
	return 0, fmt.Errorf("algorithm %s is not accepted; the client has to sign with SHA-256", oid)
}

// pssAlgorithm reads RSASSA-PSS-params (RFC 4055 §3.1). Only the shapes crypto/x509 verifies are
// accepted: MGF1 over the same digest, salt as long as the digest.
func pssAlgorithm(parameters cryptobyte.String) (x509.SignatureAlgorithm, error) {
	var params pssParameters
	rest, err := asn1.Unmarshal(parameters, &params)
	if err != nil || len(rest) != 0 {
		return 0, errors.New("RSA-PSS parameters cannot be read")
	}
	var mgfHash pkix.AlgorithmIdentifier
	if _, err := asn1.Unmarshal(params.MGF.Parameters.FullBytes, &mgfHash); err != nil ||
		!params.MGF.Algorithm.Equal(oidMGF1) || !mgfHash.Algorithm.Equal(params.Hash.Algorithm) ||
		params.TrailerField != 1 {
		return 0, errors.New("RSA-PSS without MGF1 over the same digest is not accepted")
	}
	digest := params.Hash.Algorithm.String()
	switch {
	case digest == "2.16.840.1.101.3.4.2.1" && params.SaltLength == 32:
		return x509.SHA256WithRSAPSS, nil
	case digest == "2.16.840.1.101.3.4.2.2" && params.SaltLength == 48:
		return x509.SHA384WithRSAPSS, nil
	case digest == "2.16.840.1.101.3.4.2.3" && params.SaltLength == 64:
		return x509.SHA512WithRSAPSS, nil
	}
	return 0, errors.New("RSA-PSS is accepted with SHA-256, SHA-384 or SHA-512 and a salt of that length only")
}

type pssParameters struct {
	Hash         pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
	MGF          pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
	SaltLength   int                      `asn1:"explicit,tag:2"`
	TrailerField int                      `asn1:"optional,explicit,tag:3,default:1"`
}

// Identity names the device for people and for the audit log: the subject's last CN, else its
// serialNumber, else the first subjectAltName, else the whole subject. Characters that cannot be
// printed are replaced, and the text is cut at 200 characters.
func (r *Request) Identity() string {
	name, err := parseName(r.RawSubject)
	if err != nil {
		return ""
	}
	text := name.last(oidCommonName)
	if text == "" {
		text = name.last(oidSerialNumber)
	}
	if text == "" && len(r.SAN) > 0 {
		text = r.SAN[0].Value
	}
	if text == "" {
		text = name.String()
	}
	return printable(text)
}

// OtherNames lists, for the audit log, what the certificate is to be for besides [Request.Identity]:
// every further common name (software differs in which of several it believes), every subjectAltName
// and the SID. "" where there is none. It begins with their number, because a log may cut it.
func (r *Request) OtherNames() string { return r.otherNames(printable) }

// AllOtherNames is [Request.OtherNames] with every name whole, for whoever decides on the request.
func (r *Request) AllOtherNames() string { return r.otherNames(replaceUnprintable) }

func (r *Request) otherNames(show func(string) string) string {
	subject, err := parseName(r.RawSubject)
	if err != nil {
		return ""
	}
	identity := r.Identity()
	var others []string
	add := func(label, value string) {
		if text := show(value); text != identity {
			others = append(others, label+text)
		}
	}
	for _, rdn := range subject {
		for _, a := range rdn {
			if a.oid.Equal(oidCommonName) {
				add("CN=", a.value)
			}
		}
	}
	for _, name := range r.SAN {
		add(string(name.Kind)+":", name.Value)
	}
	if r.SID != "" {
		add("sid:", r.SID)
	}
	switch len(others) {
	case 0:
		return ""
	case 1:
		return "1 more name: " + others[0]
	}
	return fmt.Sprintf("%d more names: %s", len(others), strings.Join(others, ", "))
}

// IsNamed reports whether the certificate would be good for a host: whether a common name or a
// subjectAltName is that DNS name or address, in any case and form.
func (r *Request) IsNamed(host string) bool {
	address, _ := netip.ParseAddr(host)
	same := func(name string) bool {
		name = significant(name)
		if a, err := netip.ParseAddr(name); err == nil && address.IsValid() {
			return a.Unmap() == address.Unmap()
		}
		return strings.EqualFold(name, host)
	}
	return slices.ContainsFunc(r.namesOf(DNS, IP), same)
}

// CN is the kind [Request.Names] gives common names. It is no kind of subjectAltName.
const CN Kind = "cn"

// Names returns every common name, in order, and then every subjectAltName: whatever a certificate
// made from the request could be taken to be for. A common name that is no character string is not
// among them; no profile allows one.
func (r *Request) Names() []Name {
	var names []Name
	if subject, err := parseName(r.RawSubject); err == nil {
		for _, rdn := range subject {
			for _, a := range rdn {
				if a.oid.Equal(oidCommonName) && !a.opaque {
					names = append(names, Name{CN, a.value})
				}
			}
		}
	}
	return append(names, r.SAN...)
}

// namesOf returns the subjectAltNames of these kinds, and every common name: readers take either for a
// host's name.
func (r *Request) namesOf(kinds ...Kind) []string {
	var names []string
	for _, name := range r.SAN {
		if slices.Contains(kinds, name.Kind) {
			names = append(names, name.Value)
		}
	}
	subject, err := parseName(r.RawSubject)
	if err != nil {
		return names
	}
	for _, rdn := range subject {
		for _, a := range rdn {
			if a.oid.Equal(oidCommonName) {
				names = append(names, a.value)
			}
		}
	}
	return names
}

// EndsWith reports whether a common name or DNS subjectAltName ends with suffix, in any case.
func (r *Request) EndsWith(suffix string) bool {
	suffix = significant(strings.ToLower(suffix))
	return slices.ContainsFunc(r.namesOf(DNS), func(name string) bool {
		return strings.HasSuffix(strings.ToLower(significant(name)), suffix)
	})
}

// significant leaves out of a name what directories and resolvers do not compare: spaces around it
// (RFC 4518 §2.6.1) and final dots.
func significant(name string) string {
	return strings.TrimLeft(strings.TrimRight(name, " ."), " ")
}

func replaceUnprintable(s string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return utf8.RuneError
		}
		return c
	}, s)
}

func printable(s string) string {
	s = replaceUnprintable(s)
	if runes := []rune(s); len(runes) > 200 {
		return string(runes[:200])
	}
	return s
}
