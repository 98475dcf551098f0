package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The NTDS security extension ([MS-WCCE] §2.2.2.7.7.4): GeneralNames of one otherName, whose value is the
// SID's text in an OCTET STRING.
var (
	oidNTDSSecurity = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2}
	oidNTDSObjectID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2, 1}
)

// encodeSID writes the value of the NTDS security extension.
func encodeSID(sid string) ([]byte, error) {
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(constructed, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidNTDSObjectID)
			b.AddASN1(constructed, func(b *cryptobyte.Builder) { b.AddASN1OctetString([]byte(sid)) })
		})
	})
	return b.Bytes()
}

// parseSID reads the value of the NTDS security extension; "" where it is not exactly one well-formed SID.
func parseSID(value []byte) string {
	constructed := cbasn1.Tag(0).ContextSpecific().Constructed()
	input := cryptobyte.String(value)
	var list, name, wrapped, text cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !input.ReadASN1(&list, cbasn1.SEQUENCE) || !list.ReadASN1(&name, constructed) || !name.ReadASN1ObjectIdentifier(&oid) ||
		!oid.Equal(oidNTDSObjectID) || !name.ReadASN1(&wrapped, constructed) || !wrapped.ReadASN1(&text, cbasn1.OCTET_STRING) {
		return ""
	}
	sid := string(text)
	if canonical, err := encodeSID(sid); err != nil || !bytes.Equal(canonical, value) || !isSID(sid) {
		return ""
	}
	return sid
}

// isSID checks the string format of a SID ([MS-DTYP] §2.4.2.1) with a decimal identifier authority: S-1-
// and an authority of 48 bits, then 1 to 15 numbers of 32 bits.
func isSID(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) < 4 || len(parts) > 18 || parts[0] != "S" || parts[1] != "1" {
		return false
	}
	for i, part := range parts[2:] {
		bits := 32
		if i == 0 {
			bits = 48
		}
		n, err := strconv.ParseUint(part, 10, bits)
		if err != nil || strconv.FormatUint(n, 10) != part {
			return false
		}
	}
	return true
}

// certificateSID is the account a certificate's NTDS security extension names, "" for none.
func certificateSID(cert *x509.Certificate) string {
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(oidNTDSSecurity) {
			return parseSID(ext.Value)
		}
	}
	return ""
}

// checkSID refuses an NTDS security extension that is to be kept and cannot be read.
func (p *Profile) checkSID(r *Request) error {
	if !p.adSID || r.SID != "" {
		return nil
	}
	for _, ext := range r.Extensions {
		if ext.Id.Equal(oidNTDSSecurity) {
			return &PolicyError{"ad_sid", "an extension " + oidNTDSSecurity.String() + " without exactly one SID"}
		}
	}
	return nil
}
