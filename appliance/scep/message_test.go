package scep

import (
	"encoding/asn1"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// signed is a set of signed attributes, as readHeader gets them from a SignerInfo.
type signed map[string]asn1.RawValue

func (s signed) get(oid asn1.ObjectIdentifier) (asn1.RawValue, bool) {
	v, ok := s[oid.String()]
	return v, ok
}

func str(tag int, s string) asn1.RawValue { return asn1.RawValue{Tag: tag, Bytes: []byte(s)} }

func TestReadHeader(t *testing.T) {
	id, typ, nonce := oidTransactionID.String(), oidMessageType.String(), oidSenderNonce.String()
	sixteen := strings.Repeat("n", 16)
	decimal := strings.Repeat("9", 78) // certmonger: a 256-bit number

	for name, c := range map[string]struct {
		in      signed
		want    header
		refusal string // a part of its text
	}{
		"PrintableString": {
			in:   signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagPrintableString, "19"), nonce: str(asn1.TagOctetString, sixteen)},
			want: header{transaction: "abc", transactionTag: asn1.TagPrintableString, messageType: "19", senderNonce: []byte(sixteen)},
		},
		"IA5String and UTF8String": {
			in:   signed{id: str(asn1.TagIA5String, "a/b+c=="), typ: str(asn1.TagUTF8String, "20"), nonce: str(asn1.TagOctetString, sixteen)},
			want: header{transaction: "a/b+c==", transactionTag: asn1.TagIA5String, messageType: "20", senderNonce: []byte(sixteen)},
		},
		"a long decimal transaction, a short nonce": {
			in:   signed{id: str(asn1.TagPrintableString, decimal), typ: str(asn1.TagPrintableString, "19"), nonce: str(asn1.TagOctetString, "n")},
			want: header{transaction: decimal, transactionTag: asn1.TagPrintableString, messageType: "19", senderNonce: []byte("n")},
		},
		"no nonce": {
			in:   signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagPrintableString, "19")},
			want: header{transaction: "abc", transactionTag: asn1.TagPrintableString, messageType: "19"},
		},
		"randomNonce, of cryptlib": {
			in:   signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagPrintableString, "19"), oidRandomNonce.String(): str(asn1.TagOctetString, "n")},
			want: header{transaction: "abc", transactionTag: asn1.TagPrintableString, messageType: "19", noContent: true},
		},
		"nothing": {refusal: "no transactionID"},
		"no transaction, but a nonce to repeat": {
			in:      signed{typ: str(asn1.TagPrintableString, "19"), nonce: str(asn1.TagOctetString, sixteen)},
			want:    header{messageType: "19", senderNonce: []byte(sixteen)},
			refusal: "no transactionID",
		},
		"no type, but a transaction to repeat": {
			in:      signed{id: str(asn1.TagPrintableString, "abc")},
			want:    header{transaction: "abc", transactionTag: asn1.TagPrintableString},
			refusal: "no messageType",
		},
		"type as INTEGER": {
			in:      signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagInteger, "\x13")},
			want:    header{transaction: "abc", transactionTag: asn1.TagPrintableString},
			refusal: "messageType attribute is not a PrintableString",
		},
		"empty transaction": {
			in:      signed{id: str(asn1.TagPrintableString, ""), typ: str(asn1.TagPrintableString, "19")},
			want:    header{messageType: "19"},
			refusal: "transactionID attribute is empty",
		},
		"endless transaction": {
			in:      signed{id: str(asn1.TagPrintableString, strings.Repeat("a", 257)), typ: str(asn1.TagPrintableString, "19")},
			want:    header{messageType: "19"},
			refusal: "longer than 256 bytes",
		},
		"transaction that would break a log line": {
			in:      signed{id: str(asn1.TagUTF8String, "a\nb"), typ: str(asn1.TagPrintableString, "19")},
			want:    header{messageType: "19"},
			refusal: "transactionID attribute is not text",
		},
		"transaction that is not UTF-8": {
			in:      signed{id: str(asn1.TagPrintableString, "a\xff"), typ: str(asn1.TagPrintableString, "19")},
			want:    header{messageType: "19"},
			refusal: "transactionID attribute is not text",
		},
		"nonce as a string": {
			in:      signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagPrintableString, "19"), nonce: str(asn1.TagPrintableString, sixteen)},
			want:    header{transaction: "abc", transactionTag: asn1.TagPrintableString, messageType: "19"},
			refusal: "senderNonce",
		},
		"endless nonce": {
			in:      signed{id: str(asn1.TagPrintableString, "abc"), typ: str(asn1.TagPrintableString, "19"), nonce: str(asn1.TagOctetString, strings.Repeat("n", 257))},
			want:    header{transaction: "abc", transactionTag: asn1.TagPrintableString, messageType: "19"},
			refusal: "senderNonce",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readHeader(c.in.get)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(header{})); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			var r *refusal
			switch {
			case c.refusal == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.refusal != "" && (!errors.As(err, &r) || r.fail != badRequest || !strings.Contains(r.text, c.refusal)):
				t.Errorf("got %v, want a badRequest that says %q", err, c.refusal)
			}
		})
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add([]byte("\x13\x03abc"), []byte("\x13\x0219"), []byte("\x04\x10nnnnnnnnnnnnnnnn"))
	f.Add([]byte("\x0c\x03a\nb"), []byte("\x02\x01\x13"), []byte("\x24\x04\x04\x02ab"))
	f.Add([]byte("\x16\x00"), []byte("\x93\x0219"), []byte{})
	f.Fuzz(func(t *testing.T, id, typ, nonce []byte) {
		in := signed{}
		for oid, der := range map[string][]byte{
			oidTransactionID.String(): id, oidMessageType.String(): typ, oidSenderNonce.String(): nonce,
		} {
			var v asn1.RawValue
			if _, err := asn1.Unmarshal(der, &v); err == nil {
				in[oid] = v
			}
		}
		h, err := readHeader(in.get)
		if err == nil && (h.transaction == "" || h.messageType == "") {
			t.Fatalf("accepted %+v", h)
		}
		if !utf8.ValidString(h.transaction) || strings.ContainsAny(h.transaction, "\x00\r\n\x1b") {
			t.Fatalf("transaction %q", h.transaction)
		}
		if h.transaction != "" {
			again, err := asn1.Marshal(asn1.RawValue{Tag: h.transactionTag, Bytes: []byte(h.transaction)})
			var v asn1.RawValue
			if err != nil {
				t.Fatal(err)
			}
			if _, err := asn1.Unmarshal(again, &v); err != nil || string(v.Bytes) != string(in[oidTransactionID.String()].Bytes) {
				t.Fatalf("transaction %x comes back as %x", in[oidTransactionID.String()].Bytes, again)
			}
		}
	})
}
