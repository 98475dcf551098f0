package scep

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// countedKey counts what it is asked for.
type countedKey struct {
	*rsa.PrivateKey
	decrypted, signed int
}

func (k *countedKey) Decrypt(random io.Reader, b []byte, o crypto.DecrypterOpts) ([]byte, error) {
	k.decrypted++
	return k.PrivateKey.Decrypt(random, b, o)
}

func (k *countedKey) Sign(random io.Reader, b []byte, o crypto.SignerOpts) ([]byte, error) {
	k.signed++
	return k.PrivateKey.Sign(random, b, o)
}

// masked is a reply without what differs in every reply: the nonce and the RA's signature at its end.
func (s *service) masked(e exchanged) []byte {
	s.t.Helper()
	r := s.openReply(e)
	b := bytes.Replace(e.reply, r.sender, make([]byte, len(r.sender)), 1)
	return b[:len(b)-s.raKey.Size()]
}

// Whatever is wrong between the envelope and a request that verifies, the answer is the same to the byte, at the price of the
// same private key operations. Whoever signs a recorded envelope again, changed, learns nothing from it.
func TestAnswersTellNothingApart(t *testing.T) {
	key := &countedKey{}
	s := newService(t, func(c *Config) {
		key.PrivateKey = c.Profiles[0].Authority().RAs[0].Signer.(*rsa.PrivateKey)
		c.Profiles[0].changeRA(func(ra *RA) { ra.Signer, ra.Decrypter = key, key })
	})
	d := newDevice(t, rsaKey(t, 2048), "dev")
	ra := &s.raKey.PublicKey
	// replaceKey puts an encrypted key of the attacker's making in the place of the envelope's own.
	replaceKey := func(block []byte) func([]byte) {
		return func(envelope []byte) {
			p7 := must(cms.ParseEnvelopedData(envelope))
			if p7 == nil {
				t.Fatal("no envelope")
			}
			at := bytes.Index(envelope, []byte{4, 0x82, 1, 0}) // OCTET STRING of 256 bytes
			if at < 0 {
				t.Fatal("no encrypted key")
			}
			raw := new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(ra.E)), ra.N)
			raw.FillBytes(envelope[at+4 : at+4+ra.Size()])
		}
	}
	padded := func(payload []byte) []byte { // PKCS #1 v1.5, block type 2
		b := bytes.Repeat([]byte{0x5a}, ra.Size())
		b[0], b[1] = 0, 2
		b[len(b)-len(payload)-1] = 0
		copy(b[len(b)-len(payload):], payload)
		return b
	}
	unpadded := bytes.Repeat([]byte{0x5a}, ra.Size())
	unpadded[0] = 0

	badSignature := bytes.Clone(d.csr)
	badSignature[len(badSignature)-1] ^= 1
	w := s.good()
	cases := map[string]func(w *wrapping){
		"RSA padding of no kind":             func(w *wrapping) { w.damage = replaceKey(unpadded) },
		"RSA padding without end":            func(w *wrapping) { w.damage = replaceKey(append([]byte{0, 2}, unpadded[2:]...)) },
		"another content key":                func(w *wrapping) { w.damage = replaceKey(padded(make([]byte, 16))) },
		"content key too short":              func(w *wrapping) { w.damage = replaceKey(padded(make([]byte, 8))) },
		"content key too long":               func(w *wrapping) { w.damage = replaceKey(padded(make([]byte, 32))) },
		"CBC padding":                        func(w *wrapping) { w.damage = func(b []byte) { b[len(b)-17] ^= 0x80 } },
		"last block":                         func(w *wrapping) { w.damage = func(b []byte) { b[len(b)-1] ^= 1 } },
		"a block in the middle":              func(w *wrapping) { w.damage = func(b []byte) { b[len(b)-200] ^= 1 } },
		"garbage for a request":              func(w *wrapping) { w.content = []byte("not a request, but of some length") },
		"nothing for a request":              func(w *wrapping) { w.content = []byte{} },
		"signature of the request":           func(w *wrapping) { w.content = badSignature },
		"request cut off":                    func(w *wrapping) { w.content = d.csr[:len(d.csr)-1] },
		"something behind the request":       func(w *wrapping) { w.content = append(bytes.Clone(d.csr), 0) },
		"another structure, IssuerAndSerial": func(w *wrapping) { w.content = issuerAndSerial(t, s.ca["corp"].RawSubject, big.NewInt(1)) },
	}
	oaep := sealWithOpenSSL(t, d.csr, []string{"-aes128"}, []string{"-keyopt", "rsa_padding_mode:oaep"}, s.ra["corp"])
	stream := sealWithOpenSSL(t, d.csr, []string{"-aes256", "-stream"}, nil, s.ra["corp"])
	cases["OAEP padding"] = func(w *wrapping) { w.envelope, w.damage = bytes.Clone(oaep), replaceKey(unpadded) }
	cases["CBC padding behind OAEP"] = func(w *wrapping) { w.envelope, w.damage = bytes.Clone(oaep), func(b []byte) { b[len(b)-1] ^= 1 } }
	cases["RSA padding, BER"] = func(w *wrapping) { w.envelope, w.damage = bytes.Clone(stream), replaceKey(unpadded) }
	var want []byte
	for name, change := range cases {
		bad := w // the same transaction and nonce throughout
		change(&bad)
		key.decrypted, key.signed = 0, 0
		e := s.post("corp", d.message(bad))
		got := s.masked(e)
		if want == nil {
			want = got
		}
		if r := s.openReply(e); r.status != "2" || r.fail != badMessageCheck || r.text != unopened {
			t.Errorf("%s: pkiStatus %s, failInfo %s, %q", name, r.status, r.fail, r.text)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the answer differs from the others:\n%x\n%x", name, got, want)
		}
		if key.decrypted != 1 || key.signed != 1 {
			t.Errorf("%s: %d decryptions, %d signatures", name, key.decrypted, key.signed)
		}
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
	if n := s.outcomes(audit.OutcomeRefused); n != 1 {
		t.Errorf("%d audit records: the log tells them apart", n)
	}
}

// The same holds for what GetCert and GetCRL ask about.
func TestLookUpsTellNothingApart(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	for _, messageType := range []string{"21", "22"} {
		w := s.good()
		w.messageType = messageType
		cases := map[string]func(w *wrapping){
			"CBC padding":      func(w *wrapping) { w.damage = func(b []byte) { b[len(b)-1] ^= 1 } },
			"garbage":          func(w *wrapping) { w.content = []byte("garbage") },
			"a request":        func(w *wrapping) { w.content = d.csr },
			"something behind": func(w *wrapping) { w.content = append(issuerAndSerial(t, s.ca["corp"].RawSubject, big.NewInt(77)), 0) },
			"another issuer": func(w *wrapping) {
				w.content = issuerAndSerial(t, s.ca["modern"].RawSubject, s.ra["corp"].SerialNumber)
			},
		}
		if messageType == "21" {
			cases["no such serial"] = func(w *wrapping) { w.content = issuerAndSerial(t, s.ca["corp"].RawSubject, big.NewInt(77)) }
		}
		var want []byte
		for name, change := range cases {
			bad := w
			change(&bad)
			e := s.post("corp", d.message(bad))
			got := s.masked(e)
			if want == nil {
				want = got
			}
			if r := s.openReply(e); r.status != "2" || r.fail != badCertID || !bytes.Equal(got, want) {
				t.Errorf("type %s, %s: pkiStatus %s, failInfo %s, %q", messageType, name, r.status, r.fail, r.text)
			}
		}
	}
}

// What a sender calls something is neither sent back nor logged at any length: a megabyte of it would be the whole of what a box
// keeps of its log.
func TestLongNamesAreNotRepeated(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	long := element(6, bytes.Repeat([]byte{0x7f}, 1<<19))
	message := func(envelope []byte) []byte {
		w := s.good()
		w.envelope = envelope
		return d.message(w)
	}
	enveloped := func(transport, cipher []byte) []byte {
		id := issuerAndSerial(t, s.ra["corp"].RawIssuer, s.ra["corp"].SerialNumber)
		data := must(asn1.Marshal(pkcs7.OIDData))
		return element(0x30, must(asn1.Marshal(pkcs7.OIDEnvelopedData)), element(0xa0, element(0x30, []byte{2, 1, 0},
			element(0x31, element(0x30, []byte{2, 1, 0}, id, element(0x30, transport), element(4, make([]byte, 256)))),
			element(0x30, data, element(0x30, cipher, element(4, make([]byte, 16))), element(0x80, make([]byte, 32))))))
	}
	for name, body := range map[string][]byte{
		"cipher":    message(enveloped(must(asn1.Marshal(pkcs7.OIDEncryptionAlgorithmRSA)), long)),
		"transport": message(enveloped(long, must(asn1.Marshal(pkcs7.OIDEncryptionAlgorithmAES128CBC)))),
		"message":   element(0x30, long, element(0xa0)),
	} {
		before, w := len(s.log.String()), httptest.NewRecorder()
		s.server.Handler(true).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/scep/corp?operation=PKIOperation", bytes.NewReader(body)))
		if logged := len(s.log.String()) - before; w.Body.Len() > 4<<10 || logged > 4<<10 {
			t.Errorf("%s: answer of %d bytes, %d logged", name, w.Body.Len(), logged)
		}
	}
}

// element is a DER element.
func element(tag casn1.Tag, parts ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(slices.Concat(parts...)) })
	return b.BytesOrPanic()
}

// The envelope of a CertPoll is not opened at all: the RA key is not asked, and what is in it changes nothing.
func TestPollNeverOpensEnvelope(t *testing.T) {
	key := &countedKey{}
	s := newService(t, func(c *Config) {
		key.PrivateKey = c.Profiles[0].Authority().RAs[0].Signer.(*rsa.PrivateKey)
		c.Profiles[0].changeRA(func(ra *RA) { ra.Decrypter = key })
	})
	d := newDevice(t, rsaKey(t, 2048), "dev")
	w := s.good()
	w.messageType = "20"
	first := s.masked(s.post("corp", d.message(w)))
	w.damage = func(b []byte) { b[len(b)-1] ^= 1 }
	second := s.masked(s.post("corp", d.message(w)))
	if !bytes.Equal(first, second) || key.decrypted != 0 {
		t.Errorf("answers %x and %x, %d decryptions", first, second, key.decrypted)
	}
}

// unwilling is an engine that takes no challenge, and so no time to verify one.
func unwilling(t testing.TB, profiles ...string) *enroll.Engine {
	t.Helper()
	st := must(store.Open(store.Options{Dir: filepath.Join(t.TempDir(), "store")}))
	t.Cleanup(func() { st.Close() })
	config := enroll.Config{Store: st, Now: time.Now, TimeSource: "test", Log: slog.New(slog.DiscardHandler)}
	issuer := newIssuer(t, "CN=nobody", boxKeys()[1], time.Now())
	policy := must(pki.NewProfile(pki.ProfileConfig{
		Keys:     pki.KeyConfig{RSA: &pki.RSAConfig{MinBits: 2048}},
		Subject:  pki.SubjectConfig{Allow: []string{"CN"}},
		Usage:    pki.UsageConfig{Key: []string{"digitalSignature"}, Extended: []string{"clientAuth"}},
		Validity: time.Hour,
	}))
	for _, name := range profiles {
		config.Profiles = append(config.Profiles, enroll.Profile{
			Name: name, Policy: policy, Issuers: enroll.Always(issuer), Challenges: challenge.NewSet(challenge.Config{}), RawCSR: true,
		})
	}
	e := must(enroll.New(config))
	t.Cleanup(func() { e.Close() })
	return e
}

// FuzzPKIOperation holds every body to: no panic, an answer of the right kind, and no certificate for anything.
func FuzzPKIOperation(f *testing.F) {
	files, err := filepath.Glob("../cms/testdata/requests/*.der")
	if err != nil || len(files) == 0 {
		f.Fatalf("no recorded requests: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	block := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("../cms/testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		p, _ := pem.Decode(b)
		return p.Bytes
	}
	ra, ca := parse(f, block("ra.crt")), parse(f, block("ca.crt"))
	key := must(parsePKCS8(block("ra-test-only.key")))
	s := newService(f, func(c *Config) {
		c.Engine = unwilling(f, "legacy", "raw")
		for i := range c.Profiles {
			if p := &c.Profiles[i]; p.Name == "legacy" || p.Name == "raw" {
				p.Authority = always(Authority{CA: ca, RAs: []RA{{ra, key, key}}})
				p.Legacy, p.RawCSR = Legacy{true, true, true, true}, true
			}
		}
	})
	f.Add(bare(must(os.ReadFile(files[0]))), true)
	plainly, securely := s.server.Handler(true), s.server.Handler(false)
	f.Fuzz(func(t *testing.T, body []byte, tls bool) {
		handler, url := plainly, "http://box/scep/legacy?operation=PKIOperation"
		if tls {
			handler, url = securely, "https://box/scep/raw?operation=PKIOperation"
		}
		r := httptest.NewRequest(http.MethodPost, url, bytes.NewReader(body))
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		switch text := w.Body.String(); w.Code {
		case http.StatusOK:
			p7, err := pkcs7.Parse(w.Body.Bytes())
			if err != nil {
				t.Fatalf("answered with %x: %v", w.Body.Bytes(), err)
			}
			var status string
			if err := p7.UnmarshalSignedAttribute(oidPKIStatus, &status); err != nil || status != "2" {
				t.Fatalf("pkiStatus %q, %v", status, err)
			}
		case http.StatusBadRequest, http.StatusForbidden:
			if strings.Count(text, "\n") != 1 || len(text) > 400 {
				t.Fatalf("status %d: %q", w.Code, text)
			}
		default:
			t.Fatalf("status %d: %s", w.Code, text)
		}
	})
}

// FuzzReadIssuerAndSerial: what is read is all there is.
func FuzzReadIssuerAndSerial(f *testing.F) {
	f.Add([]byte("\x30\x05\x30\x00\x02\x01\x07"))
	f.Add([]byte("\x30\x06\x30\x00\x02\x02\x00\x80"))
	f.Add([]byte("\x30\x05\x30\x00\x02\x01\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		issuer, serial, ok := readIssuerAndSerial(b)
		if !ok {
			return
		}
		if again := issuerAndSerial(t, issuer, serial); !bytes.Equal(again, b) {
			t.Fatalf("%x is read as %x", b, again)
		}
	})
}

func FuzzIsBareRequest(f *testing.F) {
	f.Add([]byte("\x30\x02\x30\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := cms.ParseEnvelopedData(b); err == nil && isBareRequest(b) {
			t.Fatalf("%x is an envelope and a bare request", b)
		}
	})
}
