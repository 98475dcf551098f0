package scep

import (
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"signet.internal/appliance/exchange"
)

// maxBody bounds a PKIOperation by POST; real ones are a few kilobytes. By GET, the server's header limit bounds it.
const maxBody = 1 << 20

// Every connection may have a body of smallBody in memory, which is what devices send; of larger ones there are only maxLarge at a
// time, on all listeners together, from when they come in until they are answered. Slow senders, and many that wait for their turn,
// could otherwise fill a small box's memory.
const (
	smallBody = 32 << 10
	maxLarge  = 8
)

// call is one HTTP request on its way through, and what its log line will say: as outcome issued, replayed, pending, refused, busy,
// error, or answered for what only reads.
type call struct {
	exchange.Exchange
	listener    listener
	client      *x509.Certificate // what the device showed in TLS, verified; nil where none is asked for
	profile     *profile          // nil until located
	offer       *offer            // what profile offers throughout the exchange; nil until its operation is known
	operation   string
	transaction string
	isLarge     bool // it has one of Server.large
}

// listener is the kind of listener a request came in by.
type listener int

const (
	plain        listener = iota // without TLS
	secure                       // TLS that never asks for a client certificate
	mutual                       // TLS that asks for one and leaves its verification to this package
	legacy                       // as secure, for devices without TLS 1.3
	legacyMutual                 // as mutual, for those
)

func (l listener) isMutual() bool { return l == mutual || l == legacyMutual }
func (l listener) isLegacy() bool { return l == legacy || l == legacyMutual }

// serve answers one request and writes its log line.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, l listener) {
	x := &call{Exchange: exchange.New(w, r, s.config.Source(r)), listener: l}
	x.OmitDate() // no SCEP client has a use for it
	s.dispatch(x)
	profile := ""
	if x.profile != nil {
		profile = x.profile.Name
	}
	x.Log(s.config.Log, "scep", slog.String("profile", profile), slog.String("operation", x.operation), slog.String("transaction", x.transaction))
}

// dispatch finds profile and operation and refuses what has neither.
func (s *Server) dispatch(x *call) {
	p, reason := s.locate(x.R.URL.Path, x.listener)
	if p == nil {
		x.Refuse(http.StatusNotFound, reason)
		return
	}
	x.profile = p
	if x.listener == plain && !p.PlainHTTP {
		x.Refuse(http.StatusForbidden, "this profile is not served over plain HTTP: use https")
		return
	}
	if x.listener.isLegacy() && !p.LegacyTLS {
		x.Refuse(http.StatusForbidden, "this profile is not served to devices without TLS 1.3: use its other address")
		return
	}
	if x.listener.isMutual() && !s.admit(x) {
		return
	}
	if x.R.Method != http.MethodGet && x.R.Method != http.MethodPost {
		x.W.Header().Set("Allow", "GET, POST")
		x.Refuse(http.StatusMethodNotAllowed, "SCEP uses GET and POST")
		return
	}
	operation, message := query(x.R.URL.RawQuery)
	switch operation {
	case "PKIOperation":
		x.operation = operation
		if s.load(x) {
			s.pkiOperation(x, message)
		}
	case "GetCACaps", "GetCACert", "GetNextCACert":
		// message= names a CA by whatever the client calls it, and the path has already said which one: it is not read.
		x.operation = operation
		if x.R.Method != http.MethodGet {
			x.W.Header().Set("Allow", "GET")
			x.Refuse(http.StatusMethodNotAllowed, operation+" uses GET")
			return
		}
		if p.Off != nil && p.Off() {
			x.Refuse(http.StatusNotFound, profileOff)
			return
		}
		if s.load(x) {
			s.inform(x)
		}
	case "":
		x.Refuse(http.StatusBadRequest, "no operation= in the query: use operation=GetCACaps, GetCACert or PKIOperation")
	default:
		x.Refuse(http.StatusBadRequest, "this operation is not offered: use operation=GetCACaps, GetCACert or PKIOperation")
	}
}

// load looks up what the profile offers, once for the exchange. On a refusal it has answered and returns false.
func (s *Server) load(x *call) bool {
	o, err := x.profile.offer()
	if err != nil {
		s.unable(x, err)
		return false
	}
	x.offer = o
	return true
}

// unable answers an error that is the box's own.
func (s *Server) unable(x *call, err error) {
	x.Err = err
	if v := s.explain(err); v.status == http.StatusServiceUnavailable {
		x.RetryLater(v.text())
		return
	}
	x.Refuse(http.StatusInternalServerError, internalError+" (request "+x.ID+")")
}

// inform answers the operations that only read what the authority is.
func (s *Server) inform(x *call) {
	o := x.offer
	switch {
	case x.operation == "GetCACaps":
		x.Reply(http.StatusOK, exchange.ContentTypeText, o.caps)
	case x.operation == "GetCACert":
		x.Reply(http.StatusOK, o.caCertType, o.caCert)
	case o.Next == nil:
		x.Refuse(http.StatusNotFound, "there is no next CA certificate: go on with the one of GetCACert")
		return
	default:
		if !s.slots.Enter(x.R.Context()) { // the first one has the RA sign
			x.RetryLater("the box is busy: try again later")
			return
		}
		defer s.slots.Leave()
		b, err := o.nextCACert()
		if err != nil {
			s.unable(x, err)
			return
		}
		x.Reply(http.StatusOK, "application/x-x509-next-ca-cert", b)
	}
	x.Outcome = "answered"
}

// pkiMessage returns the bytes of a PKIOperation. On a refusal it has answered and ok is false. The caller gives back what x has of large.
func (s *Server) pkiMessage(x *call, message string) (b []byte, ok bool) {
	if x.R.Method == http.MethodGet {
		b, err := decodeMessage(message)
		if err != nil {
			x.Refuse(http.StatusBadRequest, err.Error())
			return nil, false
		}
		return b, true
	}
	// A body that is announced as too long is not read at all, one that turns out so not to its end; the connection is
	// closed either way, so what is still on its way is nobody's next request.
	const tooLarge = "the message is larger than 1 MiB"
	if x.R.ContentLength > maxBody {
		x.W.Header().Set("Connection", "close")
		x.Refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	}
	body := http.MaxBytesReader(x.W, x.R.Body, maxBody)
	b, err := io.ReadAll(io.LimitReader(body, smallBody))
	if err == nil && len(b) == smallBody {
		select {
		case s.large <- struct{}{}:
			x.isLarge = true
		default:
			x.W.Header().Set("Connection", "close")
			x.RetryLater("the box is busy with other large messages: try again later")
			return nil, false
		}
		var rest []byte
		rest, err = io.ReadAll(body)
		b = append(b, rest...)
	}
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		x.Refuse(http.StatusRequestEntityTooLarge, tooLarge)
		return nil, false
	case err != nil:
		x.Err = err
		x.Refuse(http.StatusBadRequest, "the message was cut off")
		return nil, false
	}
	return b, true
}
