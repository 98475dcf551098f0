package est

import (
	"fmt"
	"net/http"

	"signet.internal/appliance/cms"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// enroll answers simpleenroll, simplereenroll and serverkeygen (RFC 7030 §4.2 and §4.4), in the order of what each step costs:
//
//  1. the type and the size of the body, and a slot, or 503, before anything is parsed;
//  2. the request and, where its key is to be certified, the signature with that;
//  3. whether it belongs to this connection;
//  4. enroll authenticates and decides;
//  5. the certificate goes back, alone.
func (s *Server) enroll(x *call) {
	if !isPKCS10(x.R.Header) {
		s.failCounted(x, refuse(http.StatusUnsupportedMediaType, "the request is not of type application/pkcs10: send the PKCS#10 request under this Content-Type"))
		return
	}
	body, ok := s.body(x)
	if !ok {
		return
	}
	if !s.slots.Enter(x.R.Context()) {
		x.RetryLater("the box is busy: try again later")
		return
	}
	defer s.slots.Leave()
	asked, err := readRequest(body, x.operation == opServerKeyGen)
	if err != nil {
		s.failCounted(x, err)
		return
	}
	x.identity = asked.identity()
	if err := checkBinding(x.profile.ChannelBinding, x.R.TLS, asked.challenge()); err != nil {
		s.failCounted(x, fmt.Errorf("%w: %w", errBinding, err))
		return
	}
	credentials, err := credentialsOf(x.R)
	if err != nil {
		s.failCounted(x, err)
		return
	}
	x.peer = s.config.ClientCertificates(x.R)
	req := enroll.Request{
		Profile:     x.profile.Name,
		Protocol:    enroll.ProtocolEST,
		Operation:   x.operation,
		CSR:         asked.csr,
		Source:      x.Source,
		Credentials: credentials,
		Peer:        x.peer,
	}
	if x.operation == opServerKeyGen {
		s.serverKeyGen(x, asked.template, req)
		return
	}
	res, err := s.engine.Enroll(x.R.Context(), req)
	if err != nil {
		s.fail(x, err)
		return
	}
	if res.Pending {
		x.pending()
		return
	}
	answer, err := cms.CertsOnly([][]byte{res.Certificate})
	if err != nil {
		s.fail(x, err)
		return
	}
	x.issued(res)
	x.replyBase64(contentTypeCertsOnly, answer)
}

// contentTypeCertsOnly is compared by libest as it is written here.
const contentTypeCertsOnly = "application/pkcs7-mime; smime-type=certs-only"

// asked is what a body asks for: csr, or template where the key is made here. The other one is nil.
type asked struct {
	csr      *pki.Request
	template *pki.Template
}

func (a asked) identity() string {
	if a.template != nil {
		return a.template.Identity()
	}
	return a.csr.Identity()
}

func (a asked) challenge() string {
	if a.template != nil {
		return a.template.Challenge()
	}
	return a.csr.Challenge
}

// readRequest returns what a body asks for. What is in it is never part of the error.
func readRequest(body []byte, isForNewKey bool) (a asked, err error) {
	der, err := decodeBody(body)
	if err != nil {
		return asked{}, err
	}
	if isForNewKey {
		a.template, err = pki.ParseTemplate(der)
	} else {
		a.csr, err = pki.ParseRequest(der)
	}
	return a, err
}

// credentialsOf returns what the client sent by HTTP Basic, nil if it sent nothing. Any other scheme, and what cannot be read, is an
// error and no reason to fall back to its certificate.
func credentialsOf(r *http.Request) (*enroll.Credentials, error) {
	if r.Header.Get("Authorization") == "" {
		return nil, nil
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		return nil, refuse(http.StatusUnauthorized, "credentials are not of HTTP Basic")
	}
	return &enroll.Credentials{User: user, Password: password}, nil
}

// pending answers that a person has to decide first (RFC 7030 §4.2.3), without a body: Bouncy Castle gives up on any other.
func (x *call) pending() {
	x.Outcome = "pending"
	x.RetryAfter(x.profile.RetryAfter)
	x.reply(http.StatusAccepted, "", nil)
}

// issued notes a certificate for the log line.
func (x *call) issued(res *enroll.Result) {
	x.Serial, x.Outcome = res.Serial, "issued"
	if res.Replayed {
		x.Outcome = "replayed"
	}
}
