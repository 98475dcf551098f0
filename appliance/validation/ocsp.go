package validation

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

const (
	// ocspValidity is the time from thisUpdate to nextUpdate: what a server may staple, or a device go
	// on by, while the box is out of reach.
	ocspValidity = 24 * time.Hour

	// maxOCSPPath bounds the request in a GET, escaped; RFC 5019 §5 has clients use POST from 255 octets on.
	maxOCSPPath = 4 << 10

	// signPatience is how long a request waits while others are signed.
	signPatience = 2 * time.Second
)

func (a Authority) answersOCSP() bool {
	for _, g := range a.Generations {
		if g.Responder != nil {
			return true
		}
	}
	return false
}

// errLimit: more responses were asked for than may be signed for one request alone.
var errLimit = errors.New("too many OCSP requests that need a response of their own")

// ocsp answers an OCSP request: by POST in the body, by GET in the path behind the authority's name (RFC
// 6960 appendix A.1). What goes wrong is told in OCSP's own terms, with status 200.
func (s *Server) ocsp(x *call, a Authority, path string) {
	var der []byte
	var err error
	switch x.R.Method {
	case http.MethodGet, http.MethodHead:
		der, err = decodePath(path)
	case http.MethodPost:
		der, err = readBody(x)
	default:
		x.W.Header().Set("Allow", "GET, HEAD, POST")
		x.Refuse(http.StatusMethodNotAllowed, "OCSP uses GET and POST")
		return
	}
	var request *pki.OCSPRequest
	if err == nil {
		request, err = pki.ParseOCSPRequest(der)
	}
	if err != nil {
		x.refuseOCSP(pki.OCSPMalformedRequest, err)
		return
	}
	x.Serial = request.IDs[0].Serial
	response, err := s.respond(x.R.Context(), a, request)
	switch {
	case errors.Is(err, errUnauthorized):
		x.refuseOCSP(pki.OCSPUnauthorized, err)
	case errors.Is(err, errLimit), isForLater(err), s.config.IsBusy(err):
		x.refuseOCSP(pki.OCSPTryLater, err)
		x.Outcome = "busy"
	case err != nil:
		x.refuseOCSP(pki.OCSPInternalError, err)
		x.Outcome = "error"
	default:
		x.Outcome = "answered"
		if response.cached {
			x.Outcome = "cached"
		}
		if response.renew.IsZero() || x.R.Method == http.MethodPost {
			x.W.Header().Set("Cache-Control", "no-store")
			x.Reply(http.StatusOK, contentTypeOCSP, response.der)
			return
		}
		x.publish(document{
			contentType: contentTypeOCSP, body: response.der, etag: response.etag,
			modified: response.thisUpdate, expires: response.nextUpdate, maxAge: freshUntil(s.config.Now(), response.renew),
		})
	}
}

// refuseOCSP answers with an OCSP error; why is for the log alone.
func (x *call) refuseOCSP(e pki.OCSPError, why error) {
	x.Outcome, x.Err = "refused", why
	x.W.Header().Set("Cache-Control", "no-store")
	x.Reply(http.StatusOK, contentTypeOCSP, e.Response())
}

// decodePath reads the request out of a path, as sent: base64, of which any character may be escaped.
// Clients differ: some escape nothing, some leave out the padding, some use the URL alphabet, and some put
// one more slash in front, where no request has one.
func decodePath(escaped string) ([]byte, error) {
	if len(escaped) > maxOCSPPath {
		return nil, fmt.Errorf("a request of %d characters, %d is the most", len(escaped), maxOCSPPath)
	}
	text, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, fmt.Errorf("unescaping the request: %w", err)
	}
	text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(strings.TrimLeft(text, "/"), "="))
	der, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("the request is not base64: %w", err)
	}
	return der, nil
}

// readBody reads a request by POST. The type it is sent with does not matter: it is an OCSP request or
// it is none.
func readBody(x *call) ([]byte, error) {
	if x.R.ContentLength > pki.MaxOCSPRequest {
		x.W.Header().Set("Connection", "close") // the rest is nobody's next request
		return nil, fmt.Errorf("a body of %d octets, %d is the most", x.R.ContentLength, pki.MaxOCSPRequest)
	}
	der, err := io.ReadAll(http.MaxBytesReader(x.W, x.R.Body, pki.MaxOCSPRequest))
	if err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	return der, nil
}

// status is what is known of one certificate; two that are equal make the same response.
type status struct {
	state  pki.OCSPState
	at     time.Time
	reason int
}

// response is a signed answer.
type response struct {
	der                    []byte
	thisUpdate, nextUpdate time.Time

	// Of one that is kept for whoever asks the same; zero in others.
	etag      string
	renew     time.Time // it is signed anew from then on
	status    status
	responder *pki.Responder
	cached    bool // this one was signed for an earlier request
}

// errUnauthorized: the request asks for certificates of an issuer that is not this authority.
var errUnauthorized = errors.New("the request is for another issuer")

// respond answers a request in one of two ways. A request for one certificate that was issued, without a
// nonce, gets a response that serves everyone for half its time, or until the certificate's status
// changes. Any other has one signed for itself, within a limit: the sender chooses nonces and serials that
// nobody has, so keeping those would only push out what others ask for. Beyond the limit a nonce is not
// repeated (clients go by the response's times then, RFC 5019 §4): nobody who floods the box keeps others from
// learning about certificates that were issued.
func (s *Server) respond(ctx context.Context, a Authority, r *pki.OCSPRequest) (response, error) {
	g, first, err := s.find(a, r.IDs[0])
	if err != nil {
		return response{}, err
	}
	isShared := len(r.IDs) == 1 && first.state != pki.OCSPUnknown
	if r.Nonce == nil && isShared {
		return s.shared(ctx, g, r.IDs[0], first)
	}
	if !s.live.take(time.Now()) {
		if isShared {
			return s.shared(ctx, g, r.IDs[0], first)
		}
		return response{}, errLimit
	}
	known := []status{first}
	for _, id := range r.IDs[1:] {
		if !g.Responder.AnswersFor(id) { // a response has one signer
			return response{}, errUnauthorized
		}
		st, err := s.statusOf(g, id.Serial)
		if err != nil {
			return response{}, err
		}
		known = append(known, st)
	}
	return s.sign(ctx, g, r, known)
}

// shared is the response about one certificate that everybody gets.
func (s *Server) shared(ctx context.Context, g Generation, id pki.CertID, st status) (response, error) {
	key := string(id.Raw())
	if kept, ok := s.cache.get(key); ok && kept.status == st && kept.responder == g.Responder &&
		!s.config.Now().Before(kept.thisUpdate) && s.config.Now().Before(kept.renew) {
		kept.cached = true
		return kept, nil
	}
	made, err := s.sign(ctx, g, &pki.OCSPRequest{IDs: []pki.CertID{id}}, []status{st})
	if err != nil {
		return response{}, err
	}
	made.etag, made.status, made.responder = etagOf(made.der), st, g.Responder
	made.renew = made.thisUpdate.Add(made.nextUpdate.Sub(made.thisUpdate) / 2)
	s.cache.put(key, made)
	return made, nil
}

// find returns the generation that id is of, and what it knows of it.
func (s *Server) find(a Authority, id pki.CertID) (Generation, status, error) {
	for _, g := range a.Generations {
		if g.Responder != nil && g.Responder.AnswersFor(id) {
			st, err := s.statusOf(g, id.Serial)
			return g, st, err
		}
	}
	return Generation{}, status{}, errUnauthorized
}

// statusOf asks the engine about a serial, unless it is of one of the box's own certificates.
func (s *Server) statusOf(g Generation, serial string) (status, error) {
	if serial == "" {
		return status{state: pki.OCSPUnknown}, nil
	}
	for _, own := range g.Own {
		if serial == hex.EncodeToString(own.SerialNumber.Bytes()) && !s.config.Now().After(own.NotAfter) {
			return status{state: pki.OCSPGood}, nil
		}
	}
	st, err := s.engine.CertificateStatus(g.Issuer.ID(), serial)
	if err != nil {
		return status{}, fmt.Errorf("looking up certificate %s: %w", serial, err)
	}
	switch st.State {
	case enroll.Good:
		return status{state: pki.OCSPGood}, nil
	case enroll.Revoked:
		return status{state: pki.OCSPRevoked, at: st.At, reason: st.Reason}, nil
	}
	return status{state: pki.OCSPUnknown}, nil
}

// sign has the response to r signed, saying what is known of each certificate in it.
func (s *Server) sign(ctx context.Context, g Generation, r *pki.OCSPRequest, known []status) (response, error) {
	if c := s.engine.Condition(); c != nil {
		return response{}, fmt.Errorf("%w: %s", enroll.ErrUnavailable, c.What)
	}
	ctx, cancel := context.WithTimeout(ctx, signPatience)
	defer cancel()
	select {
	case s.signing <- struct{}{}:
		defer func() { <-s.signing }()
	case <-ctx.Done():
		return response{}, fmt.Errorf("waiting for other responses to be signed: %w", ctx.Err())
	}
	now := s.config.Now()
	made := response{thisUpdate: now.UTC().Truncate(time.Second)}
	made.nextUpdate = made.thisUpdate.Add(ocspValidity)
	if end := g.Responder.Certificate().NotAfter; end.Before(made.nextUpdate) {
		made.nextUpdate = end // nobody accepts the response after its signer
	}
	answers := make([]pki.OCSPAnswer, len(known))
	for i, st := range known {
		answers[i] = pki.OCSPAnswer{
			ID: r.IDs[i], State: st.state, At: st.at, Reason: st.reason,
			ThisUpdate: made.thisUpdate, NextUpdate: made.nextUpdate,
		}
	}
	var err error
	made.der, err = g.Responder.Respond(answers, r.Nonce, now)
	return made, err
}
