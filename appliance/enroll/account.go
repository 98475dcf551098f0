package enroll

import (
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/challenge"
	"signet.internal/appliance/pki"
)

// oidNTDSSecurity is the extension by which a domain controller knows the account that a certificate logs
// in ([MS-WCCE] §2.2.2.7.7.4).
var oidNTDSSecurity = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2}

// checkAccount refuses a first request whose certificate would log in another account than its challenge,
// made for one device, is for. What a profile drops of a request need not fit. A renewal has the account
// of the certificate it renews, see [pki.Prepared.CheckIdentity].
func (x *attempt) checkAccount(prepared *pki.Prepared) error {
	sid := x.CSR.SID
	if sid == "" || sid == x.verdict.SID || x.renews != nil || !x.verdict.IsForDevice() || !logsIn(prepared.Template()) {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrChallenge, &challenge.Refused{
		Kind: x.verdict.Kind, Label: challenge.ClaimMismatch, Detail: "the CSR names account " + sid + ", which the challenge is not for",
	})
}

// logsIn reports whether a TBSCertificate (RFC 5280 §4.1, DER) has the extension, or cannot be read.
func logsIn(tbs []byte) bool {
	in := cryptobyte.String(tbs)
	var body, wrapped, list cryptobyte.String
	if !in.ReadASN1(&body, casn1.SEQUENCE) {
		return true
	}
	extensions := casn1.Tag(3).ContextSpecific().Constructed()
	for !body.Empty() && !body.PeekASN1Tag(extensions) {
		if !body.ReadAnyASN1Element(&wrapped, new(casn1.Tag)) {
			return true
		}
	}
	if body.Empty() {
		return false
	}
	if !body.ReadASN1(&wrapped, extensions) || !wrapped.ReadASN1(&list, casn1.SEQUENCE) {
		return true
	}
	for !list.Empty() {
		var extension cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !list.ReadASN1(&extension, casn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) || oid.Equal(oidNTDSSecurity) {
			return true
		}
	}
	return false
}
