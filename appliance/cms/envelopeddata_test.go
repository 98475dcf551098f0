package cms

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// envelope is an EnvelopedData to be put together in any way, also wrong ones. The zero value of a field means the usual.
type envelope struct {
	cipher     Cipher
	algorithm  []byte   // of the content
	recipients [][]byte // instead of the usual one
	id         []byte
	transport  []byte
	version    byte // of the recipient
	contentKey []byte
	wrapped    []byte
	encrypted  []byte // whole [0] element
	before     []byte // the recipients
	after      []byte // the content
}

var testIV = []byte("0123456789abcdef")

func testKey(n int) []byte { return []byte("an unremarkable content key, long")[:n] }

func (e envelope) build(t *testing.T, r identity) []byte {
	t.Helper()
	if e.cipher == 0 {
		e.cipher = AES128CBC
	}
	info, _ := e.cipher.info()
	if e.contentKey == nil {
		e.contentKey = testKey(info.key)
	}
	if e.algorithm == nil {
		e.algorithm = encodeAlgorithm(info.oid, element(tagOctetString, testIV[:info.block]))
	}
	if e.recipients == nil {
		e.recipients = [][]byte{e.recipient(t, r)}
	}
	if e.encrypted == nil {
		e.encrypted = element(byte(tagImplicit0), encryptCBC(t, e.cipher, testKey(info.key), padded([]byte("the content"), info.block)))
	}
	return element(byte(casn1.SEQUENCE), encodeOID(OIDEnvelopedData), element(byte(tagExplicit0), element(byte(casn1.SEQUENCE),
		[]byte{2, 1, 0}, e.before, element(byte(casn1.SET), e.recipients...),
		element(byte(casn1.SEQUENCE), encodeOID(OIDData), e.algorithm, e.encrypted), e.after)))
}

func (e envelope) recipient(t *testing.T, r identity) []byte {
	t.Helper()
	if e.id == nil {
		e.id = issuerAndSerial(r)
	}
	if e.transport == nil {
		e.transport = encodeAlgorithm(oidRSAEncryption, []byte{5, 0})
	}
	if e.contentKey == nil {
		e.contentKey = testKey(16)
	}
	if e.wrapped == nil {
		var err error
		if e.wrapped, err = rsa.EncryptPKCS1v15(rand.Reader, &rsaKey().PublicKey, e.contentKey); err != nil {
			t.Fatal(err)
		}
	}
	return element(byte(casn1.SEQUENCE), []byte{2, 1, e.version}, e.id, e.transport, element(tagOctetString, e.wrapped))
}

func padded(b []byte, block int) []byte {
	n := block - len(b)%block
	return append(bytes.Clone(b), bytes.Repeat([]byte{byte(n)}, n)...)
}

func encryptCBC(t *testing.T, c Cipher, key, plain []byte) []byte {
	t.Helper()
	info, _ := c.info()
	block, err := info.make(key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, testIV[:info.block]).CryptBlocks(out, plain)
	return out
}

// countingKey counts how often the private key is asked.
type countingKey struct {
	crypto.Decrypter
	used int
	err  error
}

func (k *countingKey) Decrypt(random io.Reader, b []byte, o crypto.DecrypterOpts) ([]byte, error) {
	k.used++
	if k.err != nil {
		return nil, k.err
	}
	return k.Decrypter.Decrypt(random, b, o)
}

func decrypt(b []byte, r identity, p Policy) ([]byte, int, error) {
	e, err := ParseEnvelopedData(b)
	if err != nil {
		return nil, 0, err
	}
	k := &countingKey{Decrypter: r.signer.(crypto.Decrypter)}
	content, err := e.Decrypt(r.certificate, k, p)
	return content, k.used, err
}

func TestDecryptAccepts(t *testing.T) {
	r := rsaIdentity(t)
	other := envelope{id: element(byte(casn1.SEQUENCE), r.certificate.RawIssuer, []byte{2, 1, 1}), wrapped: []byte("not ours")}.recipient(t, r)
	encrypted := encryptCBC(t, AES128CBC, testKey(16), padded([]byte("the content"), 16))
	keyID := r.certificate.SubjectKeyId
	// A key agreement, a shared key, a password and another kind, as they begin and no further.
	foreign := [][]byte{element(0xa1, []byte{2, 1, 3}), element(0xa2, []byte{2, 1, 4}), element(0xa3, []byte{2, 1, 0}), element(0xa4, encodeOID(OIDData))}
	for name, e := range map[string]envelope{
		"plain":                    {},
		"3DES":                     {cipher: DES3CBC},
		"DES":                      {cipher: DESCBC},
		"AES-192":                  {cipher: AES192CBC},
		"AES-256":                  {cipher: AES256CBC},
		"subject key id":           {id: element(byte(tagImplicit0), keyID), version: 2},
		"subject key id, explicit": {id: element(byte(tagExplicit0), element(tagOctetString, keyID)), version: 2},
		"after another recipient":  {recipients: [][]byte{other, envelope{}.recipient(t, r)}},
		"before another recipient": {recipients: [][]byte{envelope{}.recipient(t, r), other}},
		"among foreign kinds":      {recipients: append(foreign, envelope{}.recipient(t, r))},
		"the same twice":           {recipients: [][]byte{envelope{}.recipient(t, r), envelope{}.recipient(t, r)}},
		"originator":               {before: element(byte(tagExplicit0))},
		"unprotected attributes":   {after: element(byte(tagConstructed1))},
		"transport without NULL":   {transport: encodeAlgorithm(oidRSAEncryption)},
		"content in pieces":        {encrypted: element(byte(tagExplicit0), element(4, encrypted[:5]), element(0x24, element(4, encrypted[5:9]), element(4)), element(4, encrypted[9:]))},
	} {
		t.Run(name, func(t *testing.T) {
			content, used, err := decrypt(e.build(t, r), r, everything)
			if err != nil || string(content) != "the content" || used != 1 {
				t.Fatalf("%q, %v, key used %d times", content, err, used)
			}
		})
	}
}

// An envelope is for each of its recipients, however it names them, and for nobody else.
func TestIsFor(t *testing.T) {
	r, other := rsaIdentity(t), *ecIdentity(t, elliptic.P256()).certificate
	other.SubjectKeyId = []byte("of another key")
	named := envelope{id: element(byte(casn1.SEQUENCE), other.RawIssuer, derInteger(other.SerialNumber))}.recipient(t, r)
	for name, c := range map[string]struct {
		e          envelope
		us, others bool
	}{
		"by serial number": {envelope{}, true, false},
		"by key":           {envelope{id: element(byte(tagImplicit0), r.certificate.SubjectKeyId), version: 2}, true, false},
		"both":             {envelope{recipients: [][]byte{named, envelope{}.recipient(t, r)}}, true, true},
		"the other":        {envelope{recipients: [][]byte{named}}, false, true},
		"no RSA recipient": {envelope{recipients: [][]byte{element(0xa1, []byte{2, 1, 3})}}, false, false},
	} {
		e, err := ParseEnvelopedData(c.e.build(t, r))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if us, others := e.IsFor(r.certificate), e.IsFor(&other); us != c.us || others != c.others {
			t.Errorf("%s: for us %t, for the other %t", name, us, others)
		}
	}
}

// What is refused before the key is used, and how.
func TestDecryptRefuses(t *testing.T) {
	r, ec := rsaIdentity(t), ecIdentity(t, elliptic.P256())
	oaep := func(parameters ...[]byte) envelope {
		return envelope{transport: encodeAlgorithm(oidRSAESOAEP, parameters...)}
	}
	hash := func(tag byte, d Digest) []byte { return element(tag, encodeAlgorithm(infoOf(d).oid)) }
	for _, c := range []struct {
		name     string
		envelope envelope
		policy   Policy
		want     error
	}{
		{"DES", envelope{cipher: DESCBC}, DefaultPolicy(), ErrAlgorithm},
		{"3DES", envelope{cipher: DES3CBC}, DefaultPolicy(), ErrAlgorithm},
		{"zero policy", envelope{}, Policy{}, ErrAlgorithm},
		{"unknown cipher", envelope{algorithm: encodeAlgorithm(asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 6}, element(0x30))}, everything, ErrAlgorithm},
		{"unknown transport", envelope{transport: encodeAlgorithm(asn1.ObjectIdentifier{1, 2, 3})}, everything, ErrAlgorithm},
		{"transport with parameters", envelope{transport: encodeAlgorithm(oidRSAEncryption, []byte{2, 1, 1})}, everything, ErrAlgorithm},
		{"OAEP without parameters", oaep(), everything, ErrAlgorithm},
		{"OAEP with MD5", oaep(element(0x30, hash(0xa0, MD5))), everything, ErrAlgorithm},
		{"OAEP with MGF2", oaep(element(0x30, element(0xa1, encodeAlgorithm(asn1.ObjectIdentifier{1, 2, 3})))), everything, ErrAlgorithm},
		{"OAEP with unknown label source", oaep(element(0x30, element(0xa2, encodeAlgorithm(asn1.ObjectIdentifier{1, 2, 3}, []byte{4, 0})))), everything, ErrAlgorithm},
		{"OAEP with more than a label", oaep(element(0x30, element(0xa2, encodeAlgorithm(oidPSpecified, element(4, make([]byte, maxLabel+1)))))), everything, ErrAlgorithm},
		{"cipher without end", envelope{algorithm: element(0x30, element(6, make([]byte, maxOID+1)), element(4, testIV))}, everything, ErrMalformed},
		{"OAEP with more", oaep(element(0x30, []byte{5, 0})), everything, ErrAlgorithm},
		{"other serial", envelope{id: element(0x30, r.certificate.RawIssuer, []byte{2, 1, 7})}, everything, ErrNoRecipient},
		{"other subject key id", envelope{id: element(byte(tagImplicit0), []byte("other"))}, everything, ErrNoRecipient},
		{"only foreign kinds", envelope{recipients: [][]byte{element(0xa1, []byte{2, 1, 3})}}, everything, ErrNoRecipient},
		{"no recipients", envelope{recipients: [][]byte{}}, everything, ErrNoRecipient},
		{"too many recipients", envelope{recipients: [][]byte{bytes.Repeat(element(0xa1), maxRecipients+1)}}, everything, ErrMalformed},
		{"recipient version 1", envelope{version: 1}, everything, ErrMalformed},
		{"short IV", envelope{algorithm: encodeAlgorithm(infoOfCipher(AES128CBC).oid, element(4, testIV[:8]))}, everything, ErrMalformed},
		{"no IV", envelope{algorithm: encodeAlgorithm(infoOfCipher(AES128CBC).oid)}, everything, ErrMalformed},
		{"content in wrong pieces", envelope{encrypted: element(byte(tagExplicit0), element(12, testIV))}, everything, ErrMalformed},
		{"content twice", envelope{encrypted: bytes.Repeat(element(byte(tagImplicit0), testIV), 2)}, everything, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			content, used, err := decrypt(c.envelope.build(t, r), r, c.policy)
			if !errors.Is(err, c.want) || content != nil || used != 0 {
				t.Fatalf("%q, %v, key used %d times; want %v", content, err, used, c.want)
			}
		})
	}
	e, err := ParseEnvelopedData(envelope{id: issuerAndSerial(ec)}.build(t, r))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Decrypt(ec.certificate, nil, everything); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("recipient with an elliptic curve key: %v, want ErrAlgorithm", err)
	}
}

// Every failure that could tell a sender something about the padding is the very same error.
func TestDecryptFailuresAreTheSame(t *testing.T) {
	r := rsaIdentity(t)
	public := &rsaKey().PublicKey
	raw := func(m []byte) []byte { // textbook RSA, to choose the padding
		c := new(big.Int).Exp(new(big.Int).SetBytes(m), big.NewInt(int64(public.E)), public.N)
		return c.FillBytes(make([]byte, public.Size()))
	}
	pkcs1 := func(prefix []byte, key []byte) []byte {
		m := bytes.Repeat([]byte{0xa5}, public.Size())
		copy(m, prefix)
		m[len(m)-len(key)-1] = 0
		copy(m[len(m)-len(key):], key)
		return m
	}
	good := pkcs1([]byte{0, 2}, testKey(16))
	noSeparator := bytes.Repeat([]byte{0xa5}, public.Size())
	copy(noSeparator, []byte{0, 2})
	content := func(plain []byte) []byte {
		return element(byte(tagImplicit0), encryptCBC(t, AES128CBC, testKey(16), plain))
	}
	block := []byte("fifteen octets.")
	oaep := encodeAlgorithm(oidRSAESOAEP, element(0x30))
	oaepShort, err := rsa.EncryptOAEP(crypto.SHA1.New(), rand.Reader, public, testKey(8), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := decrypt(envelope{wrapped: raw(good)}.build(t, r), r, everything); err != nil {
		t.Fatalf("the well padded message: %v", err)
	}
	if c, _, err := decrypt(envelope{encrypted: content(append(block, 1))}.build(t, r), r, everything); err != nil || !bytes.Equal(c, block) {
		t.Fatalf("the well padded content: %q, %v", c, err)
	}
	for name, e := range map[string]envelope{
		"no PKCS #1 padding":           {wrapped: raw(pkcs1([]byte{1, 2}, testKey(16)))},
		"signature padding":            {wrapped: raw(pkcs1([]byte{0, 1}, testKey(16)))},
		"separator too early":          {wrapped: raw(pkcs1([]byte{0, 2, 7, 0}, testKey(16)))},
		"no separator":                 {wrapped: raw(noSeparator)},
		"key too short":                {wrapped: raw(pkcs1([]byte{0, 2}, testKey(15)))},
		"key too long":                 {wrapped: raw(pkcs1([]byte{0, 2}, testKey(24)))},
		"another key":                  {wrapped: raw(pkcs1([]byte{0, 2}, testIV))},
		"3DES with a key of 16":        {cipher: DES3CBC, contentKey: testKey(16)},
		"3DES with a key of 8":         {cipher: DES3CBC, contentKey: testKey(8)},
		"DES with a key of 24":         {cipher: DESCBC, contentKey: testKey(24)},
		"AES-256 with a key of 16":     {cipher: AES256CBC, contentKey: testKey(16)},
		"wrapped key not below n":      {wrapped: public.N.Bytes()},
		"wrapped key of ones":          {wrapped: bytes.Repeat([]byte{0xff}, public.Size())},
		"wrapped key of zeros":         {wrapped: make([]byte, public.Size())},
		"wrapped key too short":        {wrapped: make([]byte, public.Size()-1)},
		"wrapped key too long":         {wrapped: make([]byte, public.Size()+1)},
		"wrapped key empty":            {wrapped: []byte{}},
		"OAEP that is PKCS #1":         {transport: oaep},
		"OAEP with a short key":        {transport: oaep, wrapped: oaepShort},
		"content padding 0":            {encrypted: content(append(block, 0))},
		"content padding 17":           {encrypted: content(append(block, 17))},
		"content padding 255":          {encrypted: content(append(block, 255))},
		"content padding 2 once":       {encrypted: content(append(block, 2))},
		"content padding 16 but first": {encrypted: content(append([]byte{9}, bytes.Repeat([]byte{16}, 15)...))},
		"content not in whole blocks":  {encrypted: element(byte(tagImplicit0), testIV[:15])},
		"content empty":                {encrypted: element(byte(tagImplicit0))},
		"content absent":               {encrypted: []byte{}},
		"content in no pieces":         {encrypted: element(byte(tagExplicit0))},
	} {
		t.Run(name, func(t *testing.T) {
			// A random key pads validly once in 256 times: the refusal must be that of most attempts.
			refused := 0
			b := e.build(t, r)
			for range 5 {
				content, used, err := decrypt(b, r, everything)
				if used > 1 {
					t.Fatalf("key used %d times", used)
				}
				if err == nil {
					continue
				}
				if err != ErrDecrypt || content != nil {
					t.Fatalf("%q, %v; want ErrDecrypt itself", content, err)
				}
				refused++
			}
			if refused < 2 {
				t.Errorf("refused %d of 5 times", refused)
			}
		})
	}
}

func TestUnpad(t *testing.T) {
	for n := 1; n <= 16; n++ {
		b := append(make([]byte, 32-n), bytes.Repeat([]byte{byte(n)}, n)...)
		if got, ok := unpad(b, 16); !ok || got != 32-n {
			t.Errorf("padding of %d: %d, %v", n, got, ok)
		}
		for i := 32 - n; i < 31; i++ {
			b[i] ^= 0x40
			if _, ok := unpad(b, 16); ok {
				t.Errorf("padding of %d with byte %d wrong is accepted", n, i)
			}
			b[i] ^= 0x40
		}
	}
}

type busyError struct{ temporary bool }

func (busyError) Error() string     { return "queue is full" }
func (e busyError) Temporary() bool { return e.temporary }

// A key that could not be asked is not a failed decryption: the client may come again. Any other error of a key is.
func TestDecryptWithAFailingKey(t *testing.T) {
	r := rsaIdentity(t)
	e, err := ParseEnvelopedData(envelope{}.build(t, r))
	if err != nil {
		t.Fatal(err)
	}
	busy := fmt.Errorf("asking the key holder: %w", busyError{true})
	_, err = e.Decrypt(r.certificate, &countingKey{err: busy}, everything)
	if !errors.Is(err, ErrKeyBusy) || !errors.Is(err, busyError{true}) || errors.Is(err, ErrDecrypt) {
		t.Errorf("busy key: %v", err)
	}
	for _, other := range []error{busyError{false}, rsa.ErrDecryption, errors.New("TPM_RC_FAILURE")} {
		refused := 0
		for range 3 { // the substitute key pads validly once in 256 times
			_, err := e.Decrypt(r.certificate, &countingKey{err: other}, everything)
			if err != nil && err != ErrDecrypt {
				t.Errorf("key that says %v: %v, want ErrDecrypt itself", other, err)
			}
			if err == ErrDecrypt {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("key that says %v: not refused", other)
		}
	}
}

func TestOAEP(t *testing.T) {
	r := rsaIdentity(t)
	for _, hash := range []Digest{SHA1, SHA256, SHA384, SHA512} {
		for _, mgf := range []Digest{SHA1, SHA256} {
			for _, label := range []string{"", "label"} {
				o := &rsa.OAEPOptions{Hash: hash.Hash(), MGFHash: mgf.Hash(), Label: []byte(label)}
				wrapped, err := rsa.EncryptOAEPWithOptions(rand.Reader, &rsaKey().PublicKey, testKey(16), o)
				if err != nil {
					t.Fatal(err)
				}
				var fields [][]byte
				if hash != SHA1 { // the default must be left out in DER
					fields = append(fields, element(0xa0, encodeAlgorithm(infoOf(hash).oid, []byte{5, 0})))
				}
				if mgf != SHA1 {
					fields = append(fields, element(0xa1, encodeAlgorithm(oidMGF1, encodeAlgorithm(infoOf(mgf).oid))))
				}
				if label != "" {
					fields = append(fields, element(0xa2, encodeAlgorithm(oidPSpecified, element(4, []byte(label)))))
				}
				e := envelope{transport: encodeAlgorithm(oidRSAESOAEP, element(0x30, fields...)), wrapped: wrapped}
				content, _, err := decrypt(e.build(t, r), r, DefaultPolicy())
				if err != nil || string(content) != "the content" {
					t.Errorf("%v, MGF1 with %v, label %q: %q, %v", hash, mgf, label, content, err)
				}
			}
		}
	}
}

func derInteger(n *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1BigInt(n)
	return b.BytesOrPanic()
}
