package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func TestSubjectTemplate(t *testing.T) {
	issuer, key := newAuthority(t, newKey(t, "ecdsa-p256")), newKey(t, "ecdsa-p256")
	tests := []struct {
		name            string
		template, allow string // allow: separated by spaces
		subject         string
		want            string // subject of the certificate; "" where it is refused
		rule, value     string // of the refusal
	}{
		{"filled in", "CN={CN},O=Factory 7,C=CH", "CN OU", "OU=x,CN=dev", "CN=dev,O=Factory 7,C=CH", "", ""},
		{"order of the template", "C=CH,O=Factory 7,CN={CN}", "CN", "CN=dev", "C=CH,O=Factory 7,CN=dev", "", ""},
		{"spaces and case", " cn = { cn } , O=Factory 7 ", "CN", "CN=dev", "CN=dev,O=Factory 7", "", ""},
		{"several in a part", "O=B+CN={CN}", "CN", "CN=dev", "O=B+CN=dev", "", ""},
		{"another attribute", "OU={serialNumber},O=B", "serialNumber", "serialNumber=FTX1", "OU=FTX1,O=B", "", ""},
		{"one used twice", "OU={serialNumber},serialNumber={serialNumber}", "serialNumber", "serialNumber=7", "OU=7,serialNumber=7", "", ""},
		{"nothing from the request", "CN=kiosk", "O", "O=x", "CN=kiosk", "", ""},
		{"an escaped text", `CN={CN},O=Sue\, Grabbit`, "CN", "CN=dev", `CN=dev,O=Sue\, Grabbit`, "", ""},
		{"what the template writes", "CN={CN},O=Factory 7", "CN", "CN=dev,O=Factory 7", "CN=dev,O=Factory 7", "", ""},
		{"not what the template writes", "CN={CN},O=Factory 7", "CN", "CN=dev,O=Factory 8", "", "subject.allow", "O=Factory 8"},
		{"missing", "CN={CN},O=B", "CN O", "O=x", "", "subject.template", "0 values for CN"},
		{"ambiguous", "CN={CN},O=B", "CN", "CN=a,CN=b", "", "subject.template", "2 values for CN"},
		{"too long", strings.Repeat("description={description},", 4) + "description={description}", "description", "description=" + strings.Repeat("x", 1000), "", "subject.template", "bytes (at most"},
		{"not allowed", "CN={CN},O=B", "CN", "CN=a,L=x", "", "subject.allow", "L=x"},
		{"too long for the other", "OU={description}", "description", "description=" + strings.Repeat("x", 65), "", "subject.template", "65 characters"},
		{"does not fit the other", "C={OU}", "OU", "OU=ch", "", "subject.template", "OU=ch as C: a country is two capital letters"},
		{"the authority's own name", "CN={CN},O=Signet", "CN", "CN=Test CA", "", "subject.allow", "own name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := permissive()
			c.Subject = SubjectConfig{Allow: strings.Fields(tt.allow), Template: tt.template}
			p := newProfile(t, c)
			r := goRequest(t, key, x509.CertificateRequest{RawSubject: mustDN(t, tt.subject)})
			prepared, err := issuer.Prepare(p, r, now)
			if tt.want == "" {
				var refused *PolicyError
				if !errors.As(err, &refused) || refused.Rule != tt.rule || !strings.Contains(refused.Value, tt.value) {
					t.Errorf("error %v, want rule %s and value %s", err, tt.rule, tt.value)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			der, err := issuer.Issue(prepared)
			if err != nil {
				t.Fatal(err)
			}
			cert := parse(t, der)
			if got := FormatDN(cert.RawSubject); got != tt.want {
				t.Fatalf("subject %s, want %s", got, tt.want)
			}

			// Its device renews with the subject it was given, or with what it asked for at first; what is
			// kept until somebody decides is no different.
			for _, subject := range [][]byte{cert.RawSubject, r.RawSubject} {
				renewal, err := goRequest(t, key, x509.CertificateRequest{RawSubject: subject}).Inherit(cert)
				if err != nil {
					t.Fatal(err)
				}
				kept, err := renewal.Keep()
				if err != nil {
					t.Fatal(err)
				}
				if renewal, err = ParseKept(kept); err != nil {
					t.Fatal(err)
				}
				prepared, err := issuer.Prepare(p, renewal, now)
				if err != nil {
					t.Errorf("renewal as %s: %v", FormatDN(subject), err)
					continue
				}
				if err := prepared.CheckIdentity(cert); err != nil {
					t.Errorf("renewal as %s: %v", FormatDN(subject), err)
				}
			}
		})
	}
}

// TestTemplateOfFirstRequest: what only a renewal may ask for is not given to a first request.
func TestTemplateOfFirstRequest(t *testing.T) {
	issuer, key := newAuthority(t, newKey(t, "ecdsa-p256")), newKey(t, "ecdsa-p256")
	c := permissive()
	c.Subject = SubjectConfig{Allow: []string{"serialNumber"}, Template: "OU={serialNumber},O=B", Match: map[string][]string{"serialNumber": {"FTX*"}}}
	p := newProfile(t, c)
	made := goRequest(t, key, x509.CertificateRequest{RawSubject: mustDN(t, "OU=FTX1,O=B")})
	var refused *PolicyError
	if _, err := issuer.Prepare(p, made, now); !errors.As(err, &refused) || refused.Rule != "subject.allow" {
		t.Errorf("first request: %v", err)
	}

	// Nor to a renewal for another subject.
	old := issued(t, issuer, goRequest(t, key, x509.CertificateRequest{RawSubject: mustDN(t, "OU=FTX2,O=B")}))
	if renewal, err := made.Inherit(old); err != nil {
		t.Fatal(err)
	} else if _, err := issuer.Prepare(p, renewal, now); !errors.As(err, &refused) || refused.Rule != "subject.allow" {
		t.Errorf("renewal for another subject: %v", err)
	}

	// A certificate of another authority, whose subject this template could have made but would not.
	for subject, rule := range map[string]string{"OU=FTX1,O=B": "", "OU=admin,O=B": "subject.match", "OU=FTX1,O=C": "subject.allow", "OU=FTX1": "subject.allow"} {
		permissive := newProfile(t, permissive())
		foreign := goRequest(t, key, x509.CertificateRequest{RawSubject: mustDN(t, subject)})
		prepared, err := issuer.Prepare(permissive, foreign, now)
		if err != nil {
			t.Fatal(err)
		}
		der, err := issuer.Issue(prepared)
		if err != nil {
			t.Fatal(err)
		}
		renewal, err := foreign.Inherit(parse(t, der))
		if err != nil {
			t.Fatal(err)
		}
		_, err = issuer.Prepare(p, renewal, now)
		if errors.As(err, &refused) != (rule != "") || rule != "" && refused.Rule != rule {
			t.Errorf("renewal of %s: %v, want rule %q", subject, err, rule)
		}
	}
}

// TestTemplateKeepsEncoding: a value that is taken over stays in the string type it came in.
func TestTemplateKeepsEncoding(t *testing.T) {
	type pair struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	set, err := asn1.MarshalWithParams([]pair{{oidCommonName, asn1.RawValue{Tag: int(cbasn1.T61String), Bytes: []byte("Z\xfcrich")}}}, "set")
	if err != nil {
		t.Fatal(err)
	}
	latin1, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: set})
	if err != nil {
		t.Fatal(err)
	}
	c := permissive()
	c.Subject.Template = "O=B,CN={CN}"
	p := newProfile(t, c)
	subject, err := p.subjectFor(goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{RawSubject: latin1}))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(subject, set) || FormatDN(subject) != "O=B,CN=Zürich" {
		t.Errorf("subject %x", subject)
	}
}

// TestSubjectText: what is no text, or none that can be read, is in no certificate.
func TestSubjectText(t *testing.T) {
	issuer, key := newAuthority(t, newKey(t, "ecdsa-p256")), newKey(t, "ecdsa-p256")
	filled := permissive()
	filled.Subject.Template = "CN={CN},O=B"
	cn := func(tag cbasn1.Tag, value string) []byte {
		return stringDER(t, cbasn1.SEQUENCE, string(stringDER(t, cbasn1.SET, string(stringDER(t, cbasn1.SEQUENCE, "\x06\x03\x55\x04\x03"+string(stringDER(t, tag, value)))))))
	}
	for name, tt := range map[string]struct {
		config  ProfileConfig
		subject []byte
		rule    string
	}{
		"text":                    {permissive(), cn(cbasn1.UTF8String, "dev"), ""},
		"octets":                  {permissive(), cn(cbasn1.OCTET_STRING, "dev"), "subject.allow"},
		"control character":       {permissive(), cn(cbasn1.UTF8String, "dev\x00"), "subject.allow"},
		"no PrintableString":      {permissive(), cn(cbasn1.PrintableString, "de@v"), "subject and san"},
		"empty, for the template": {filled, cn(cbasn1.UTF8String, ""), "subject.template"},
	} {
		request, err := ParseRequest(rawRequest(t, key, tt.subject, nil))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = issuer.Prepare(newProfile(t, tt.config), request, now)
		var refused *PolicyError
		if (err == nil) != (tt.rule == "") || err != nil && (!errors.As(err, &refused) || refused.Rule != tt.rule) {
			t.Errorf("%s: %v, want rule %q", name, err, tt.rule)
		}
	}
}

func TestSubjectMatch(t *testing.T) {
	c := permissive()
	c.Subject.Match = map[string][]string{"CN": {"dev-*", "regex:[a-z]{3}[0-9]"}, "o": {"Signet"}}
	p, key := newProfile(t, c), newKey(t, "ecdsa-p256")
	for subject, refusal := range map[string]string{
		"CN=DEV-1": "", "CN=plc7": "", "OU=no common name": "", "CN=dev-1,O=signet": "",
		"CN=plc77": "CN=plc77", "CN=xdev-1": "CN=xdev-1", "CN=dev-1,CN=admin": "CN=admin", "CN=dev-1,O=Signet AG": "O=Signet AG",
	} {
		err := p.Check(goRequest(t, key, x509.CertificateRequest{RawSubject: mustDN(t, subject)}))
		var refused *PolicyError
		if (err == nil) != (refusal == "") || err != nil && (!errors.As(err, &refused) || refused.Rule != "subject.match" || refused.Value != refusal) {
			t.Errorf("%s: %v", subject, err)
		}
	}
}

func TestTemplateProblems(t *testing.T) {
	for template, want := range map[string]string{
		"CN":            "not an attribute",
		"CN={CN":        "neither a text nor one",
		"CN=x{CN}":      "neither a text nor one",
		"CN={CN}{O}":    "unknown",
		"CN={Nickname}": "unknown",
		"Nickname={CN}": "unknown",
		"CN={CN}+CN=x":  "twice",
		"C=ch":          "two capital letters",
		"CN=":           "no value",
		"CN={CN},L={L}": "no request may hold the L",
		"CN={O}":        "a common name is {CN} or a text",
		"CN=kiosk":      "leave CN out",
		"CN={CN},,O=B":  "not an attribute",
		strings.Repeat("O=x,", maxRDNs) + "CN={CN}": "more than",
	} {
		c := permissive()
		c.Subject.Allow, c.Subject.Template = []string{"CN", "O"}, template
		_, err := NewProfile(c)
		var errs ConfigErrors
		if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Field != "subject.template" || !strings.Contains(errs[0].What, want) {
			t.Errorf("%.40s: %v, want %s", template, err, want)
		}
	}
}
