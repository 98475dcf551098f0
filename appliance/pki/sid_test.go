package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// sidExtension is an Extension as Windows writes it for the account S-1-5-21-1-2-3-500.
const sidExtension = "\x30\x36\x06\x09\x2b\x06\x01\x04\x01\x82\x37\x19\x02\x04\x29\x30\x27\xa0\x25\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x19\x02\x01" +
	"\xa0\x17\x04\x15S-1-5-21-100-200-3500"

func TestIsSID(t *testing.T) {
	for sid, want := range map[string]bool{
		"S-1-5-21-1111111111-2222222222-3333333333-500": true, "S-1-5-18": true, "S-1-281474976710655-4294967295": true,
		"": false, "S-1-5": false, "S-2-5-18": false, "s-1-5-18": false, "S-1-5-018": false, "S-1-5-4294967296": false, "S-1-5--18": false, "S-1-5-18\x00": false,
		"S-1-5" + strings.Repeat("-1", 15): true, "S-1-5" + strings.Repeat("-1", 16): false,
	} {
		if got := isSID(sid); got != want {
			t.Errorf("%q: %t", sid, got)
		}
	}
}

// requestWithSID asks for an account, or with value "" for the extension with that value.
func requestWithSID(t *testing.T, sid string, value []byte) *Request {
	t.Helper()
	if sid != "" {
		var err error
		if value, err = encodeSID(sid); err != nil {
			t.Fatal(err)
		}
	}
	return goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "me"}, ExtraExtensions: []pkix.Extension{{Id: oidNTDSSecurity, Value: value}},
	})
}

// sidOf is the account a certificate would log in, and whether it has the extension at all.
func sidOf(t *testing.T, issuer *Issuer, p *Profile, r *Request) (cert *x509.Certificate, sid string, present bool) {
	t.Helper()
	prepared, err := issuer.Prepare(p, r, now)
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	cert = parse(t, der)
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidNTDSSecurity) {
			if e.Critical {
				t.Error("the extension is critical")
			}
			return cert, parseSID(e.Value), true
		}
	}
	return cert, "", false
}

// TestSIDExtension: the account a request asks for is kept where the profile says so, and nowhere else.
func TestSIDExtension(t *testing.T) {
	const sid = "S-1-5-21-1-2-3-500"
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	dropping := newProfile(t, permissive())
	c := permissive()
	c.ADSID = true
	keeping := newProfile(t, c)

	request := requestWithSID(t, sid, nil)
	if request.SID != sid || request.OtherNames() != "1 more name: sid:"+sid {
		t.Errorf("read %q, shown %q", request.SID, request.OtherNames())
	}
	checkKept(t, request)
	if _, got, _ := sidOf(t, issuer, keeping, request); got != sid {
		t.Errorf("kept %q", got)
	}
	if _, _, present := sidOf(t, issuer, dropping, request); present {
		t.Error("kept where the profile does not say so")
	}

	// What Windows makes is read, and other shapes are refused only where they would be kept.
	windows, err := ParseRequest(rawRequest(t, newKey(t, "ecdsa-p256"), mustDN(t, "CN=me"), attributeDER(t, oidMSExtensions, stringDER(t, 0x30, sidExtension))))
	if err != nil || windows.SID != "S-1-5-21-100-200-3500" {
		t.Errorf("read %v, %v", windows, err)
	}
	good, err := encodeSID(sid)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := encodeSID("S-1-5-21-1-2-3-500\x00")
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range [][]byte{{}, {0x30, 0x00}, append(good[:len(good):len(good)], 0), odd, []byte(sid)} {
		request := requestWithSID(t, "", value)
		if _, _, present := sidOf(t, issuer, dropping, request); present {
			t.Errorf("value %d is kept", i)
		}
		var refused *PolicyError
		if _, err := issuer.Prepare(keeping, request, now); !errors.As(err, &refused) || refused.Rule != "ad_sid" {
			t.Errorf("value %d: %v", i, err)
		}
	}
}

// TestSIDOfRenewal: a renewal has the account of the old certificate or none.
func TestSIDOfRenewal(t *testing.T) {
	issuer := newAuthority(t, newKey(t, "ecdsa-p256"))
	c := permissive()
	c.ADSID = true
	keeping, dropping := newProfile(t, c), newProfile(t, permissive())
	const mine, other = "S-1-5-21-1-2-3-1104", "S-1-5-21-1-2-3-500"
	old, _, _ := sidOf(t, issuer, keeping, requestWithSID(t, mine, nil))
	without, _, _ := sidOf(t, issuer, dropping, requestWithSID(t, mine, nil))
	plain := goRequest(t, newKey(t, "ecdsa-p256"), x509.CertificateRequest{Subject: pkix.Name{CommonName: "me"}})

	for _, tt := range []struct {
		name    string
		old     *x509.Certificate
		request *Request
		profile *Profile
		want    string // SID of the renewed certificate
		err     error
	}{
		{"the same", old, requestWithSID(t, mine, nil), keeping, mine, nil},
		{"inherited", old, plain, keeping, mine, nil},
		{"another", old, requestWithSID(t, other, nil), keeping, "", ErrIdentity},
		{"a first one", without, requestWithSID(t, mine, nil), keeping, "", ErrIdentity},
		{"none, and none before", without, plain, keeping, "", nil},
		{"no longer kept", old, requestWithSID(t, mine, nil), dropping, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := tt.request.Inherit(tt.old)
			if err != nil {
				t.Fatal(err)
			}
			checkKept(t, r)
			prepared, err := issuer.Prepare(tt.profile, r, now)
			if err != nil {
				t.Fatal(err)
			}
			if err := prepared.CheckIdentity(tt.old); !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("%v, want %v", err, tt.err)
			}
			if tt.err != nil {
				return
			}
			if _, got, _ := sidOf(t, issuer, tt.profile, r); got != tt.want {
				t.Errorf("account %q, want %q", got, tt.want)
			}
		})
	}
	if fmt.Sprint(plain.SID) != "" {
		t.Error("the request itself was changed")
	}
}
