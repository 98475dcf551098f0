package scep

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// checkHTTPRefusal wants an HTTP error with one short line of text that says something.
func checkHTTPRefusal(t testing.TB, e exchanged, status int, says string) {
	t.Helper()
	text := string(e.reply)
	if e.status != status || !strings.Contains(text, says) {
		t.Fatalf("status %d, %.200q; want %d and %q", e.status, text, status, says)
	}
	if e.header.Get("Content-Type") != "text/plain" || e.header.Get("Content-Length") != strconv.Itoa(len(text)) {
		t.Errorf("headers %v", e.header)
	}
	if len(text) > 200 || strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
		t.Errorf("not one short line: %q", text)
	}
}

// Until a signature verifies there is nobody to sign an answer for.
func TestUnverifiedMessages(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	good := d.message(s.good())
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 1
		return b
	}
	envelopeAt := bytes.Index(good, mustMarshal(t, pkcs7.OIDEnvelopedData))
	random := make([]byte, 4096)
	rand.Read(random)
	noAttributes := func() []byte {
		sd, err := pkcs7.NewSignedData([]byte("content"))
		if err != nil {
			t.Fatal(err)
		}
		sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
		if err := sd.SignWithoutAttr(d.cert, d.key, pkcs7.SignerInfoConfig{}); err != nil {
			t.Fatal(err)
		}
		b, err := sd.Finish()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()

	for name, c := range map[string]struct {
		body []byte
		says string
	}{
		"empty":                        {nil, "empty message"},
		"random bytes":                 {random, "not a signed CMS SignedData"},
		"cut off":                      {good[:len(good)-10], "not a signed CMS SignedData"},
		"a bare CSR":                   {d.csr, "not a signed CMS SignedData"},
		"another signature":            {flip(len(good) - 1), "signature of the message does not verify"},
		"another content (a splice)":   {flip(envelopeAt + 600), "signature of the message does not verify"},
		"signature without attributes": {noAttributes, "signature of the message does not verify"},
	} {
		t.Run(name, func(t *testing.T) { checkHTTPRefusal(t, s.post("corp", c.body), http.StatusBadRequest, c.says) })
	}
	if n := s.outcomes(audit.OutcomeRefused); n != 3 {
		t.Errorf("%d audit records for three different reasons from one source", n)
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
}

// Whatever a verified sender gets wrong, the answer is a CertRep that repeats the transaction and the nonce, and nothing
// was begun.
func TestRefusedBySignedReply(t *testing.T) {
	s := newService(t, nil)
	key := rsaKey(t, 2048)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dev := newDevice(t, key, "dev")
	ecDevice := newDevice(t, ec, "ec")
	ecDevice.csr = makeCSR(t, ec, "ec", "")
	other := newDevice(t, rsaKey(t, 2048), "other")
	other.csr = dev.csr // another's request, under a key of one's own
	badCSR := newDevice(t, key, "dev")
	badCSR.csr = bytes.Clone(dev.csr)
	badCSR.csr[len(badCSR.csr)-1] ^= 1
	noCSR := newDevice(t, key, "dev")
	noCSR.csr = []byte("not a request")
	wrong := newDevice(t, key, "dev")
	wrong.csr = makeCSR(t, key, "dev", "wrong-challenge")
	none := newDevice(t, key, "dev")
	none.csr = makeCSR(t, key, "dev", "")
	short := newDevice(t, rsaKey(t, 1024), "short")

	with := func(change func(*wrapping)) wrapping {
		w := s.good()
		change(&w)
		return w
	}
	lastBlock := func(envelope []byte) { envelope[len(envelope)-1] ^= 1 }

	for name, c := range map[string]struct {
		d    *device
		w    wrapping
		fail failInfo
		says string
	}{
		"CertRep":              {dev, with(func(w *wrapping) { w.messageType = "3" }), badRequest, "of this type is not answered"},
		"UpdateReq":            {dev, with(func(w *wrapping) { w.messageType = "18" }), badRequest, "of this type is not answered"},
		"CertPoll":             {dev, with(func(w *wrapping) { w.messageType = "20" }), badCertID, "no request of this transaction"},
		"CertPoll, EC key":     {ecDevice, with(func(w *wrapping) { w.messageType = "20" }), badAlg, "use an RSA key"},
		"CertPoll, DES":        {dev, with(func(w *wrapping) { w.messageType, w.cipher = "20", pkcs7.EncryptionAlgorithmDESCBC }), badAlg, "DES-CBC"},
		"GetCert of a CSR":     {dev, with(func(w *wrapping) { w.messageType = "21" }), badCertID, unknownCertificate},
		"GetCert, EC key":      {ecDevice, with(func(w *wrapping) { w.messageType = "21" }), badAlg, "use an RSA key"},
		"GetCRL of a CSR":      {dev, with(func(w *wrapping) { w.messageType = "22" }), badCertID, unknownCertificate},
		"GetCRL, damaged":      {dev, with(func(w *wrapping) { w.messageType, w.damage = "22", lastBlock }), badCertID, unknownCertificate},
		"GetCRL, SHA-1":        {dev, with(func(w *wrapping) { w.messageType, w.digest = "22", pkcs7.OIDDigestAlgorithmSHA1 }), badAlg, "SHA-1"},
		"type 019":             {dev, with(func(w *wrapping) { w.messageType = "019" }), badRequest, "of this type is not answered"},
		"no type":              {dev, with(func(w *wrapping) { w.messageType = nil }), badRequest, "no messageType"},
		"type as a number":     {dev, with(func(w *wrapping) { w.messageType = 19 }), badRequest, "not a PrintableString"},
		"no transaction":       {dev, with(func(w *wrapping) { w.transaction = nil }), badRequest, "no transactionID"},
		"nonce is a string":    {dev, with(func(w *wrapping) { w.nonce = "n" }), badRequest, "senderNonce"},
		"SHA-1":                {dev, with(func(w *wrapping) { w.digest = pkcs7.OIDDigestAlgorithmSHA1 }), badAlg, "SHA-1, which is not allowed: set the client to SHA-256"},
		"DES":                  {dev, with(func(w *wrapping) { w.cipher = pkcs7.EncryptionAlgorithmDESCBC }), badAlg, "DES-CBC"},
		"AES-GCM":              {dev, with(func(w *wrapping) { w.cipher = pkcs7.EncryptionAlgorithmAES128GCM }), badAlg, "in CBC mode"},
		"EC key, no challenge": {ecDevice, s.good(), badAlg, "use an RSA key"},
		"short RSA key":        {short, s.good(), badAlg, "keys.rsa.min_bits"},
		"for another RA":       {dev, with(func(w *wrapping) { w.recipient = other.cert }), badMessageCheck, "fetch it again with GetCACert"},
		"padding damaged":      {dev, with(func(w *wrapping) { w.damage = lastBlock }), badMessageCheck, unopened},
		"CSR damaged":          {badCSR, s.good(), badMessageCheck, unopened},
		"not a CSR":            {noCSR, s.good(), badMessageCheck, unopened},
		"another's request":    {other, s.good(), badRequest, "not signed with the key"},
		"wrong challenge":      {wrong, s.good(), badRequest, "challenge password is missing or wrong"},
		"no challenge":         {none, s.good(), badRequest, "challenge password is missing or wrong"},
		"content not envelope": {dev, with(func(w *wrapping) { w.damage = func(b []byte) { copy(b, "plain text") } }), badMessageCheck, "not a CMS EnvelopedData"},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.openReply(s.post("corp", c.d.message(c.w)))
			if r.status != "2" || r.fail != c.fail || !strings.Contains(r.text, c.says) {
				t.Errorf("pkiStatus %s, failInfo %s, failInfoText %q; want 2, %s and %q", r.status, r.fail, r.text, c.fail, c.says)
			}
			if want, _ := c.w.transaction.(string); r.transaction != want {
				t.Errorf("transaction %q came back as %q", want, r.transaction)
			}
			if want, _ := c.w.nonce.([]byte); !bytes.Equal(r.recipient, want) {
				t.Errorf("nonce %x came back as %x", want, r.recipient)
			}
		})
	}
	if n := s.outcomes(audit.OutcomeBegun); n != 0 {
		t.Errorf("%d issuances begun", n)
	}
	for _, rec := range s.records() {
		if strings.Contains(fmt.Sprintf("%+v", rec), "wrong-challenge") {
			t.Errorf("the audit log holds a challenge: %+v", rec)
		}
	}
	s.checkLog()
}

// A message that is signed in a way nothing is known of here is refused in the way its client understands, where there is a
// transaction to name.
func TestUnknownSignature(t *testing.T) {
	s := newService(t, nil)
	sha224 := func(b []byte) []byte { // in every place where the message names SHA-256
		oid := must(asn1.Marshal(pkcs7.OIDDigestAlgorithmSHA256))
		return bytes.ReplaceAll(b, oid, append(oid[:len(oid)-1:len(oid)-1], 4))
	}
	rsaDevice := newDevice(t, rsaKey(t, 2048), "dev")
	p224 := newDevice(t, must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)), "dev")
	for name, body := range map[string][]byte{
		"SHA-224": sha224(rsaDevice.message(s.good())),
		"P-224":   p224.message(s.good()),
	} {
		r := s.openReply(s.post("corp", body))
		if r.status != "2" || r.fail != badAlg || !strings.Contains(r.text, "signed with an algorithm that is not known here") {
			t.Errorf("%s: pkiStatus %s, failInfo %s, %q", name, r.status, r.fail, r.text)
		}
		if r.transaction == "" || string(r.recipient) != "0123456789abcdef" {
			t.Errorf("%s: transaction %q, nonce %q", name, r.transaction, r.recipient)
		}
	}
	nameless := s.good()
	nameless.transaction = nil
	checkHTTPRefusal(t, s.post("corp", sha224(rsaDevice.message(nameless))), http.StatusBadRequest, "signed with an algorithm that is not known here")
	if begun, refused := s.outcomes(audit.OutcomeBegun), s.outcomes(audit.OutcomeRefused); begun != 0 || refused != 1 {
		t.Errorf("%d issuances begun, %d records of refusals of one reason", begun, refused)
	}
	s.checkLog()
}

// The answer uses the digest and the cipher of the request, holds the certificate first and, where the profile says so, the CA
// behind it.
func TestReplyMirrorsRequest(t *testing.T) {
	s := newService(t, nil)
	des3 := pkcs7.OIDEncryptionAlgorithmDESEDE3CBC
	aes128, aes256 := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	for _, c := range []struct {
		profile string
		cipher  int
		want    asn1.ObjectIdentifier
		digest  asn1.ObjectIdentifier
		chain   int
	}{
		{"corp", pkcs7.EncryptionAlgorithmAES128CBC, aes128, pkcs7.OIDDigestAlgorithmSHA256, 1},
		{"corp", pkcs7.EncryptionAlgorithmAES256CBC, aes256, pkcs7.OIDDigestAlgorithmSHA512, 1},
		{"modern", pkcs7.EncryptionAlgorithmAES128CBC, aes128, pkcs7.OIDDigestAlgorithmSHA384, 2},
		{"legacy", pkcs7.EncryptionAlgorithmAES256CBC, aes256, pkcs7.OIDDigestAlgorithmSHA256, 1},
		{"legacy", pkcs7.EncryptionAlgorithmAES256CBC, aes256, pkcs7.OIDDigestAlgorithmSHA1, 1},
		{"legacy", pkcs7.EncryptionAlgorithmDESCBC, des3, pkcs7.OIDDigestAlgorithmSHA1, 1},
	} {
		d := newDevice(t, rsaKey(t, 2048), "dev")
		w := s.good()
		w.recipient, w.cipher, w.digest = s.ra[c.profile], c.cipher, c.digest
		r := s.openReply(s.post(c.profile, d.message(w)))
		certs, envelope := d.certificates(r)
		if len(certs) != c.chain || !certs[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(d.key.Public()) {
			t.Fatalf("%s: %d certificates, the first for %v", c.profile, len(certs), certs[0].Subject)
		}
		if c.chain == 2 && !certs[1].Equal(s.ca[c.profile]) {
			t.Errorf("%s: the second certificate is not the CA's", c.profile)
		}
		if err := certs[0].CheckSignatureFrom(s.ca[c.profile]); err != nil {
			t.Errorf("%s: %v", c.profile, err)
		}
		if !bytes.Contains(envelope, mustMarshal(t, c.want)) {
			t.Errorf("%s: the answer is not encrypted with %v", c.profile, c.want)
		}
		if got := r.p7.Signers[0].DigestAlgorithm.Algorithm; !got.Equal(c.digest) {
			t.Errorf("%s: the answer is signed with digest %v, the request with %v", c.profile, got, c.digest)
		}
		if r.transaction != w.transaction || !bytes.Equal(r.recipient, w.nonce.([]byte)) {
			t.Errorf("%s: transaction %q, recipientNonce %x", c.profile, r.transaction, r.recipient)
		}
	}
}

// A request without a senderNonce is answered without a recipientNonce.
func TestNoNonce(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	w := s.good()
	w.nonce = nil
	r := s.openReply(s.post("corp", d.message(w)))
	if certs, _ := d.certificates(r); len(certs) != 1 || r.recipient != nil {
		t.Errorf("%d certificates, recipientNonce %x", len(certs), r.recipient)
	}
}

// A retry is a new message: new signer certificate of the same key, new nonce, same transaction and CSR.
func TestRetryWithNewSignerCertificate(t *testing.T) {
	s := newService(t, nil)
	d := newDevice(t, rsaKey(t, 2048), "dev")
	w := s.good()
	first, _ := d.certificates(s.openReply(s.post("corp", d.message(w))))
	d.cert = selfSigned(t, d.key)
	w.nonce = []byte("fedcba9876543210")
	second, _ := d.certificates(s.openReply(s.post("corp", d.message(w))))
	if !first[0].Equal(second[0]) {
		t.Error("the retry got another certificate")
	}
	w.transaction = "another"
	third, _ := d.certificates(s.openReply(s.post("corp", d.message(w))))
	if third[0].Equal(first[0]) {
		t.Error("another transaction got the certificate of the first")
	}
}

// brokenKey is an RA key that answers nothing but an error.
type brokenKey struct {
	public crypto.PublicKey
	err    error
}

func (k brokenKey) Public() crypto.PublicKey { return k.public }
func (k brokenKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, k.err
}
func (k brokenKey) Decrypt(io.Reader, []byte, crypto.DecrypterOpts) ([]byte, error) {
	return nil, k.err
}

// The box's own trouble is never a FAILURE, which would end the client's attempts.
func TestBoxTrouble(t *testing.T) {
	busy, holderBusy := fmt.Errorf("key holder: %w", enroll.ErrBusy), errors.New("queue is full")
	for name, c := range map[string]struct {
		adjust func(*RA)
		status int
		says   string
	}{
		"RA key busy when decrypting":   {func(ra *RA) { ra.Decrypter = brokenKey{ra.Certificate.PublicKey, busy} }, 503, "busy"},
		"RA key busy when signing":      {func(ra *RA) { ra.Signer = brokenKey{ra.Certificate.PublicKey, busy} }, 503, "busy"},
		"in the holder's own words":     {func(ra *RA) { ra.Signer = brokenKey{ra.Certificate.PublicKey, holderBusy} }, 503, "busy"},
		"RA key broken when decrypting": {func(ra *RA) { ra.Decrypter = brokenKey{ra.Certificate.PublicKey, errors.New("gone")} }, 500, "internal error"},
		"RA key broken when signing":    {func(ra *RA) { ra.Signer = brokenKey{ra.Certificate.PublicKey, errors.New("gone")} }, 500, "internal error"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, func(config *Config) {
				config.Profiles[0].changeRA(c.adjust)
				config.IsBusy = func(err error) bool { return errors.Is(err, holderBusy) }
			})
			d := newDevice(t, rsaKey(t, 2048), "dev")
			got := s.post("corp", d.message(s.good()))
			checkHTTPRefusal(t, got, c.status, c.says)
			if (c.status == 503) != (got.header.Get("Retry-After") != "") {
				t.Errorf("Retry-After %q with status %d", got.header.Get("Retry-After"), got.status)
			}
			if c.status == 500 && (!strings.Contains(s.log.String(), "level=ERROR") || !strings.Contains(s.log.String(), "gone")) {
				t.Errorf("the log does not have the reason:\n%s", s.log)
			}
		})
	}
}

// Every error that can reach a client is in the table, and what is not stays inside.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		fail   failInfo
	}{
		{refuse(badAlg, "x"), 200, badAlg},
		{cms.ErrDecrypt, 200, badMessageCheck},
		{cms.ErrNoRecipient, 200, badMessageCheck},
		{cms.ErrAlgorithm, 200, badAlg},
		{cms.ErrKeyBusy, 503, ""},
		{pki.ErrRequest, 200, badMessageCheck},
		{pki.ErrRequestSignature, 200, badMessageCheck},
		{&pki.PolicyError{Rule: "keys.rsa.min_bits", Value: "1024"}, 200, badAlg},
		{&pki.PolicyError{Rule: "san.dns", Value: "x"}, 200, badRequest},
		{enroll.ErrChallenge, 200, badRequest},
		{enroll.ErrSignerKey, 200, badRequest},
		{enroll.ErrReplay, 200, badRequest},
		{enroll.ErrSignerUnknown, 200, badMessageCheck},
		{enroll.ErrSignerRevoked, 200, badMessageCheck},
		{enroll.ErrSignerExpired, 200, badMessageCheck},
		{enroll.ErrRenewalEarly, 200, badRequest},
		{enroll.ErrRenewalIdentity, 200, badRequest},
		{enroll.ErrDenied, 200, badRequest},
		{fmt.Errorf("%w: %s", enroll.ErrDenied, "the operator's words"), 200, badRequest},
		{enroll.ErrHold, 200, badAlg},
		{enroll.ErrNoRequest, 200, badCertID},
		{enroll.ErrRateLimited, 200, badRequest},
		{enroll.ErrCompliance, 200, badRequest},
		{enroll.ErrRaw, 200, badRequest},
		{fmt.Errorf("%w: secret detail", enroll.ErrMaxActive), 200, badRequest},
		{enroll.ErrDuplicateKey, 200, badRequest},
		{enroll.ErrProfileOff, 200, badRequest},
		{enroll.ErrNoAuthority, 503, ""},
		{enroll.ErrWithheld, 503, ""},
		{enroll.ErrHeldFull, 503, ""},
		{enroll.ErrClock, 503, ""},
		{enroll.ErrBusy, 503, ""},
		{enroll.ErrUnavailable, 503, ""},
		{enroll.ErrClosed, 503, ""},
		{enroll.ErrUnknownProfile, 500, ""},
		{errors.New("secret detail"), 500, ""},
	} {
		v := explain(fmt.Errorf("wrapped: %w", c.err))
		if v.status != c.status || v.fail != c.fail || v.reason == "" || strings.Contains(v.text(), "secret detail") {
			t.Errorf("%v: %+v, want status %d and failInfo %q", c.err, v, c.status, c.fail)
		}
	}
	if a, b := explain(cms.ErrDecrypt), explain(pki.ErrRequestSignature); a != b {
		t.Errorf("padding and CSR signature can be told apart: %+v, %+v", a, b)
	}
}

func TestNewRefusesConfig(t *testing.T) {
	var config Config
	newService(t, func(c *Config) { config = *c })
	first := config.Profiles[0]
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := newIssuer(t, "CN=EC", ecKey, time.Now()).IssueServer(ecKey.Public(), []string{"x.test"}, nil, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ecCert := parse(t, der)
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"no engine":    {func(c *Config) { c.Engine = nil }, "required"},
		"no slots":     {func(c *Config) { c.Slots = nil }, "required"},
		"no profiles":  {func(c *Config) { c.Profiles = nil }, "no profiles"},
		"two defaults": {func(c *Config) { c.Profiles[1].Default = true }, "both the default"},
		"same name":    {func(c *Config) { c.Profiles[1].Name = "corp" }, "twice"},
		"GetCACert":    {func(c *Config) { c.Profiles[0].GetCACert = "all" }, "want ra+chain, ra+ca or ra"},
		"no authority": {func(c *Config) { c.Profiles[0].Authority = nil }, "no authority"},
		"no RA":        {func(c *Config) { c.Profiles[0].Authority = always(Authority{CA: ecCert}) }, "has no RA"},
		"no key":       {func(c *Config) { c.Profiles[0].changeRA(func(ra *RA) { ra.Signer = nil }) }, "RA key is missing"},
		"other key":    {func(c *Config) { c.Profiles[0].changeRA(func(ra *RA) { ra.Signer = rsaKey(t, 2048) }) }, "not the one in the RA certificate"},
		"other CA":     {func(c *Config) { c.Profiles[0].change(func(a *Authority) { a.CA = ecCert }) }, "not issued by the CA"},
		"EC RA":        {func(c *Config) { c.Profiles[0].changeRA(func(ra *RA) { ra.Certificate = ecCert }) }, "no RSA key"},
		"empty next":   {func(c *Config) { c.Profiles[0].change(func(a *Authority) { a.Next = &Next{} }) }, "next CA has no certificate"},
		"mode of mTLS": {func(c *Config) { c.Profiles[0].MTLS.Mode = "on" }, "want off, optional or required"},
		"no bundle":    {func(c *Config) { c.Profiles[0].MTLS.Mode = "required" }, "no bundle"},
	} {
		changed := config
		changed.Profiles = append([]Profile{first}, config.Profiles[1:]...)
		c.change(&changed)
		if _, err := New(changed); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

// What keeps an envelope from opening must not be told by the time either: whoever signs another device's envelope with
// changed blocks would learn which padding is right, and with that the challenge.
func TestUnopenedTakesTheSameTime(t *testing.T) {
	s := newService(t, nil)
	key := rsaKey(t, 2048)
	badPadding, badSignature, noRequest := newDevice(t, key, "dev"), newDevice(t, key, "dev"), newDevice(t, key, "dev")
	badPadding.csr = []byte("0")
	badSignature.csr = bytes.Clone(badSignature.csr)
	badSignature.csr[len(badSignature.csr)-1] ^= 1
	noRequest.csr = []byte("not a request")
	w := s.good()
	w.damage = func(envelope []byte) { envelope[len(envelope)-1] ^= 1 }
	for name, message := range map[string][]byte{
		"padding": badPadding.message(w), "signature": badSignature.message(s.good()), "request": noRequest.message(s.good()),
	} {
		began := time.Now()
		r := s.openReply(s.post("corp", message))
		if took := time.Since(began); took < unopenedTime {
			t.Errorf("%s: answered after %v", name, took)
		}
		if r.status != statusFailure || r.text != unopened {
			t.Errorf("%s: status %s, %q", name, r.status, r.text)
		}
	}
}
