package pki

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseDN(t *testing.T) {
	tests := []struct{ in, want string }{ // want: as FormatDN writes it
		{"CN=Demo Devices CA,O=Signet Demo", "CN=Demo Devices CA,O=Signet Demo"},
		{" CN = a , O = b ", "CN=a,O=b"},
		{"cn=a,SERIALNUMBER=1", "CN=a,serialNumber=1"},
		{`O=Sue\, Grabbit and Runn,C=GB`, `O=Sue\, Grabbit and Runn,C=GB`},
		{`CN=Before\0dAfter`, `CN=Before\0dAfter`},
		{`CN=Lu\C4\8Di\C4\87`, `CN=Lučić`},
		{`CN=\ a\ `, `CN=\ a\ `},
		{`CN=\#a=b`, `CN=\#a\=b`},
		{"CN=a+serialNumber=b", "CN=a+serialNumber=b"},
		{"1.3.6.1.4.1.99999.1=x", "1.3.6.1.4.1.99999.1=x"},
		{"DC=example,DC=com", "DC=example,DC=com"},
	}
	for _, tt := range tests {
		raw, err := ParseDN(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if got := FormatDN(raw); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.in, got, tt.want)
		}
		again, err := ParseDN(FormatDN(raw))
		if err != nil || string(again) != string(raw) {
			t.Errorf("%q does not survive being written and read: %v", tt.in, err)
		}
	}
}

func TestParseDNRefuses(t *testing.T) {
	for _, in := range []string{
		"", "CN", "CN=", "=a", "CN=a,", ",CN=a", "CN=a,,O=b", "Nickname=a", "CN=a;O=b", `CN="a"`, "CN=#0403", `CN=a\`, `CN=a\x`,
		"C=Switzerland", "C=ch", "C=1 ", "CN=" + strings.Repeat("x", 65), "serialNumber=a*b", "DC=ü", "CN=\xff", `CN=\ff`,
		"CN=a+CN=b", "3.1=a", "1.40=a", "1=a", "2.05=a", strings.Repeat("CN=a,", 100) + "CN=a",
	} {
		if raw, err := ParseDN(in); err == nil {
			t.Errorf("%q is accepted as %s", in, FormatDN(raw))
		}
	}
}

// TestParseDNIsOpenSSLOrder holds the order of the encoding against openssl's -subj.
func TestParseDNIsOpenSSLOrder(t *testing.T) {
	der := opensslRequest(t, "[req]\ndistinguished_name = dn\nstring_mask = pkix\n[dn]\n", "-subj", "/CN=a b/O=Signet/C=CH")
	request, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	if raw := mustDN(t, "CN=a b,O=Signet,C=CH"); fmt.Sprintf("%x", raw) != fmt.Sprintf("%x", request.RawSubject) {
		t.Errorf("encoded %x, openssl %x", raw, request.RawSubject)
	}
}

func FuzzParseDN(f *testing.F) {
	for _, seed := range []string{"CN=Demo Devices CA,O=Signet Demo", `O=Sue\, Grabbit,C=GB`, `CN=Lu\C4\8Di`, "CN=a+serialNumber=b", `CN=\ a\ `, "1.2.3=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		raw, err := ParseDN(in)
		if err != nil {
			return
		}
		again, err := ParseDN(FormatDN(raw))
		if err != nil || string(again) != string(raw) {
			t.Errorf("%q became %q, which is read as %x (%v), not %x", in, FormatDN(raw), again, err, raw)
		}
	})
}
