package webui

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// mediaMobileconfig makes Apple's devices offer to install what they download.
const mediaMobileconfig = "application/x-apple-aspen-config"

// mobileconfigPlain answers a configuration profile without a challenge: whoever installs it adds that.
func (c *console) mobileconfigPlain(w http.ResponseWriter, r *http.Request, who principal) error {
	x, err := c.recipe(r, r.PathValue("profile"))
	if err != nil {
		return err
	}
	if cn := r.URL.Query().Get("cn"); cn != "" {
		if !deviceName.MatchString(cn) {
			return badName()
		}
		x.name = cn
	}
	return x.sendMobileconfig(w)
}

// mobileconfigMint answers one with a challenge in it: the one that a page before made and the form hands on, or a
// one-time challenge made for the device that the form names.
func (c *console) mobileconfigMint(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	x, err := c.recipe(r, r.PathValue("profile"))
	if err != nil {
		return err
	}
	if !x.isReady() || !x.apple().Apple {
		return errNoApple // before a challenge is made that nobody gets
	}
	if err := x.carry(r); err != nil {
		return err
	}
	if x.made != nil {
		if x.name = r.PostForm.Get("cn"); !deviceName.MatchString(x.name) {
			return badName()
		}
		return x.sendMobileconfig(w)
	}
	x, view, err := c.mintFor(w, r, who, "apple")
	if err != nil {
		return err
	}
	if view != nil {
		return c.page(w, "connect-profile", view)
	}
	return x.sendMobileconfig(w)
}

// errNoApple refuses a configuration profile for what Apple's devices cannot enroll at.
var errNoApple = &ConflictError{What: "no device of Apple’s can enroll at this profile", Mend: "the page Connect a device says why, under iPhone, iPad, Mac"}

// isReady says whether there is an authority to enroll at.
func (x *recipe) isReady() bool { return len(x.chain) > 0 }

func (x *recipe) sendMobileconfig(w http.ResponseWriter) error {
	if !x.isReady() || !x.apple().Apple {
		return errNoApple
	}
	body := x.mobileconfig()
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", x.name+".mobileconfig"))
	write(w, http.StatusOK, mediaMobileconfig, body)
	return nil
}

// mobileconfig is an Apple configuration profile: the certificates of the authority, those the box's
// listeners are verified with where the address is over TLS, and a SCEP payload. Installed again for the
// same device it replaces the one before, because its identifiers are the same.
func (x *recipe) mobileconfig() []byte {
	address := x.scepURL()
	roots := slices.Clone(x.chain)
	if strings.HasPrefix(address, "https://") {
		roots = append(roots, x.tls...)
	}
	id := "signet." + x.site + "." + x.profile.Name
	var payloads plistArray
	for i, cert := range roots {
		if slices.ContainsFunc(roots[:i], cert.Equal) {
			continue
		}
		kind := "com.apple.security.pkcs1"
		if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			kind = "com.apple.security.root"
		}
		own := fmt.Sprintf("%s.ca.%x", id, sha256Of(cert)[:8])
		payloads = append(payloads, plistDict{
			{"PayloadType", kind}, {"PayloadVersion", 1}, {"PayloadIdentifier", own}, {"PayloadUUID", uuidOf(own)},
			{"PayloadDisplayName", nameOf(cert)}, {"PayloadContent", cert.Raw},
		})
	}
	retries := 3
	if x.profile.Holds {
		retries = 360 // an hour for a person to approve
	}
	scep := plistDict{
		{"URL", address}, {"Name", x.profile.Name}, {"Subject", plistArray{plistArray{plistArray{"CN", x.name}}}},
		{"Keysize", x.bits()}, {"Key Type", "RSA"}, {"Key Usage", 5}, // signing and encryption
		{"CAFingerprint", sha1Of(x.chain[0])}, {"Retries", retries}, {"RetryDelay", 10},
	}
	if x.profile.DNSNames {
		scep = append(scep, plistEntry{"SubjectAltName", plistDict{{"dNSName", x.name}}})
	}
	if challenge := x.secretOf(kindOneTime, kindShared); challenge != "" {
		scep = append(scep, plistEntry{"Challenge", challenge})
	}
	own := id + ".scep." + x.name
	payloads = append(payloads, plistDict{
		{"PayloadType", "com.apple.security.scep"}, {"PayloadVersion", 1}, {"PayloadIdentifier", own}, {"PayloadUUID", uuidOf(own)},
		{"PayloadDisplayName", "Certificate of " + x.name}, {"PayloadContent", scep},
	})
	own = id + "." + x.name
	var b bytes.Buffer
	b.WriteString(xml.Header + `<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">` + "\n<plist version=\"1.0\">\n")
	plist(&b, plistDict{
		{"PayloadType", "Configuration"}, {"PayloadVersion", 1}, {"PayloadIdentifier", own}, {"PayloadUUID", uuidOf(own)},
		{"PayloadDisplayName", "Signet " + x.site + ", " + x.profile.Name}, {"PayloadOrganization", "Signet " + x.site},
		{"PayloadDescription", "Enrolls " + x.name + " at profile " + x.profile.Name + "."}, {"PayloadContent", payloads},
	})
	b.WriteString("</plist>\n")
	return b.Bytes()
}

func nameOf(cert *x509.Certificate) string {
	if cn := cert.Subject.CommonName; cn != "" {
		return cn
	}
	return cert.Subject.String()
}

// uuidOf is a UUID of version 8 (RFC 9562 §5.8) that is always the same for an identifier.
func uuidOf(identifier string) string {
	sum := sha256.Sum256([]byte(identifier))
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]))
}

// plistDict and plistArray are a property list's, whose other values are string, int and []byte.
type (
	plistDict  []plistEntry
	plistArray []any
	plistEntry struct {
		Key   string
		Value any
	}
)

// plist writes a value as XML.
func plist(b *bytes.Buffer, value any) {
	text := func(tag, s string) {
		b.WriteString("<" + tag + ">")
		xml.EscapeText(b, []byte(s)) // a bytes.Buffer takes everything
		b.WriteString("</" + tag + ">\n")
	}
	switch v := value.(type) {
	case string:
		text("string", v)
	case int:
		text("integer", fmt.Sprint(v))
	case []byte:
		text("data", base64.StdEncoding.EncodeToString(v))
	case plistArray:
		b.WriteString("<array>\n")
		for _, one := range v {
			plist(b, one)
		}
		b.WriteString("</array>\n")
	case plistDict:
		b.WriteString("<dict>\n")
		for _, e := range v {
			text("key", e.Key)
			plist(b, e.Value)
		}
		b.WriteString("</dict>\n")
	}
}
