package webui

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/pki"
)

// subjectWords are the parts of a DER Name, in its order. Attribute values that are no text are shown in hex.
func subjectWords(raw []byte) []named {
	var sequence pkix.RDNSequence
	if _, err := asn1.Unmarshal(raw, &sequence); err != nil {
		return []named{{Name: "Not a name", Says: []string{hex.EncodeToString(raw)}, Plain: true}}
	}
	labels := map[string]string{
		"2.5.4.3": "Common name", "2.5.4.4": "Surname", "2.5.4.5": "Serial number", "2.5.4.6": "Country", "2.5.4.7": "Locality", "2.5.4.8": "State or province",
		"2.5.4.9": "Street", "2.5.4.10": "Organization", "2.5.4.11": "Organizational unit", "2.5.4.12": "Title", "2.5.4.42": "Given name", "2.5.4.45": "Unique identifier",
		"2.5.4.46": "DN qualifier", "2.5.4.97": "Organization identifier", "0.9.2342.19200300.100.1.1": "User ID", "0.9.2342.19200300.100.1.25": "Domain component",
		"1.2.840.113549.1.9.1": "Email address", "1.2.840.113549.1.9.2": "Unstructured name", "1.2.840.113549.1.9.8": "Unstructured address",
	}
	var parts []named
	for _, set := range sequence {
		for _, a := range set {
			name, ok := labels[a.Type.String()]
			if !ok {
				name = a.Type.String()
			}
			text, ok := a.Value.(string)
			if !ok {
				text = fmt.Sprint(a.Value)
			}
			parts = append(parts, named{Name: name, Says: []string{text}, Plain: true})
		}
	}
	return parts
}

// nameKinds calls kinds of subjectAltNames by words.
func nameKinds(k pki.Kind) string {
	switch k {
	case pki.DNS:
		return "DNS name"
	case pki.Email:
		return "Email address"
	case pki.IP:
		return "IP address"
	case pki.URI:
		return "URI"
	case pki.UPN:
		return "Windows user name"
	}
	return string(k)
}

// sanWords groups subjectAltNames by kind.
func sanWords(names []pki.Name) []named {
	var out []named
	for _, n := range names {
		kind := nameKinds(n.Kind)
		i := slices.IndexFunc(out, func(o named) bool { return o.Name == kind })
		if i < 0 {
			i = len(out)
			out = append(out, named{Name: kind, Plain: true})
		}
		out[i].Says = append(out[i].Says, n.Value)
	}
	return out
}

// namesOfCertificate are the subjectAltNames of a certificate that crypto/x509 reads.
func namesOfCertificate(cert *x509.Certificate) []named {
	var names []pki.Name
	add := func(kind pki.Kind, value string) { names = append(names, pki.Name{Kind: kind, Value: value}) }
	for _, v := range cert.DNSNames {
		add(pki.DNS, v)
	}
	for _, v := range cert.IPAddresses {
		add(pki.IP, v.String())
	}
	for _, v := range cert.EmailAddresses {
		add(pki.Email, v)
	}
	for _, v := range cert.URIs {
		add(pki.URI, uriText(v))
	}
	out := sanWords(names)
	if len(out) == 0 && slices.ContainsFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.17" }) {
		out = append(out, named{Name: "Other names", Says: []string{"of kinds that this page does not read"}})
	}
	return out
}

func uriText(u *url.URL) string { return u.String() }

// usageWords are key usages, basic and extended, by their names in RFC 5280 §4.2.1.3 and §4.2.1.12.
func usageWords(cert *x509.Certificate) (usages, extended []string) {
	for i, word := range []string{"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly"} {
		if cert.KeyUsage&(1<<i) != 0 {
			usages = append(usages, word)
		}
	}
	words := map[x509.ExtKeyUsage]string{
		x509.ExtKeyUsageAny: "anyExtendedKeyUsage", x509.ExtKeyUsageServerAuth: "serverAuth", x509.ExtKeyUsageClientAuth: "clientAuth", x509.ExtKeyUsageCodeSigning: "codeSigning",
		x509.ExtKeyUsageEmailProtection: "emailProtection", x509.ExtKeyUsageTimeStamping: "timeStamping", x509.ExtKeyUsageOCSPSigning: "OCSPSigning",
		x509.ExtKeyUsageIPSECEndSystem: "IPsec end system", x509.ExtKeyUsageIPSECTunnel: "IPsec tunnel", x509.ExtKeyUsageIPSECUser: "IPsec user",
	}
	for _, u := range cert.ExtKeyUsage {
		if word, ok := words[u]; ok {
			extended = append(extended, word)
		}
	}
	known := map[string]string{"1.3.6.1.4.1.311.20.2.2": "smart card logon", "1.3.6.1.5.5.7.3.17": "IKE intermediate", "1.3.6.1.5.2.3.4": "Kerberos client"}
	for _, oid := range cert.UnknownExtKeyUsage {
		word, ok := known[oid.String()]
		if !ok {
			word = oid.String()
		}
		extended = append(extended, word)
	}
	return usages, extended
}

// extensionName calls an extension by the name in its specification.
func extensionName(id asn1.ObjectIdentifier) string {
	names := map[string]string{
		"2.5.29.14": "subject key identifier", "2.5.29.15": "key usage", "2.5.29.17": "subject alternative name", "2.5.29.18": "issuer alternative name",
		"2.5.29.19": "basic constraints", "2.5.29.31": "CRL distribution points", "2.5.29.32": "certificate policies", "2.5.29.35": "authority key identifier",
		"2.5.29.37": "extended key usage", "1.3.6.1.5.5.7.1.1": "authority information access", "1.3.6.1.5.5.7.1.24": "TLS feature (must-staple)",
		"1.3.6.1.4.1.311.25.2": "Windows account (SID)", "1.3.6.1.4.1.311.20.2": "Microsoft template name", "1.3.6.1.4.1.311.21.7": "Microsoft template",
		"1.3.6.1.4.1.311.21.10": "Microsoft application policies", "2.16.840.1.113730.1.1": "Netscape certificate type", "2.16.840.1.113730.1.13": "Netscape comment",
	}
	if name, ok := names[id.String()]; ok {
		return name
	}
	return id.String()
}

// contentsWords are what a certificate may be used for and where to ask about it, and its other extensions.
func contentsWords(cert *x509.Certificate) []named {
	usages, extended := usageWords(cert)
	var out []named
	add := func(name, note string, says ...string) {
		if len(says) > 0 {
			out = append(out, named{Name: name, Says: says, Note: note})
		}
	}
	add("Key usage", "", strings.Join(usages, ", "))
	add("Extended key usage", "", strings.Join(extended, ", "))
	out = slices.DeleteFunc(out, func(n named) bool { return n.Says[0] == "" })
	isWritten := map[string]bool{"2.5.29.15": true, "2.5.29.37": true, "2.5.29.17": true, "2.5.29.14": true, "2.5.29.35": true, "2.5.29.31": true, "1.3.6.1.5.5.7.1.1": true}
	for _, e := range cert.Extensions {
		switch e.Id.String() {
		case "1.3.6.1.5.5.7.1.24":
			add("Must-staple", "A server that has it must show a fresh OCSP response with it.", "yes")
			isWritten[e.Id.String()] = true
		case "2.5.29.19":
			if cert.IsCA {
				add("It is", "", "an authority: it may sign other certificates")
			}
			isWritten[e.Id.String()] = true
		}
	}
	add("OCSP", "", cert.OCSPServer...)
	add("CRL", "", cert.CRLDistributionPoints...)
	add("Issuer’s certificate", "", cert.IssuingCertificateURL...)
	var others []string
	for _, e := range cert.Extensions {
		if !isWritten[e.Id.String()] {
			others = append(others, extensionName(e.Id))
		}
	}
	add("Other extensions", "", others...)
	return out
}

// lasting is how long a certificate is good, in words.
func lasting(cert *x509.Certificate) string {
	return span(cert.NotAfter.Sub(cert.NotBefore).Round(time.Hour))
}
