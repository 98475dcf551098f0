package est

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"strings"
)

// Of tls-exporter (RFC 9266 §2).
const (
	exporterLabel = "EXPORTER-Channel-Binding"
	exporterSize  = 32
)

// checkBinding tells whether a request was made for the connection it came by, so that nobody in between passed it on (RFC 7030
// §3.5): its challengePassword is then the base64 of tls-unique (RFC 5929 §3) under TLS 1.2, of tls-exporter (RFC 9266) under TLS
// 1.3. "optional" checks a challengePassword that is there, "required" wants one; otherwise it is not looked at, because relays from
// other protocols leave secrets of their own in it.
func checkBinding(mode string, connection *tls.ConnectionState, challenge string) error {
	switch {
	case mode != bindingOptional && mode != bindingRequired:
		return nil
	case challenge == "" && mode == bindingOptional:
		return nil
	case challenge == "":
		return refuse(http.StatusBadRequest, "this profile wants the request bound to its connection: put base64 of tls-unique (TLS 1.2) or tls-exporter (TLS 1.3) into challengePassword")
	}
	want := bindingOf(connection)
	if want == nil {
		return refuse(http.StatusBadRequest, "this connection has no channel binding: make a new one without resuming an old session, and without a proxy")
	}
	text := strings.Join(strings.Fields(challenge), "")
	if subtle.ConstantTimeCompare([]byte(text), []byte(base64.StdEncoding.EncodeToString(want))) != 1 {
		return refuse(http.StatusBadRequest, "the challengePassword is not the channel binding of this connection: put base64 of tls-unique (TLS 1.2) or tls-exporter (TLS 1.3) into it")
	}
	return nil
}

// bindingOf returns the channel binding of a connection, nil if it has none.
func bindingOf(connection *tls.ConnectionState) []byte {
	switch {
	case connection == nil:
		return nil
	case connection.Version == tls.VersionTLS12:
		return connection.TLSUnique // nil where a session was resumed that is not bound to its handshake
	case connection.Version >= tls.VersionTLS13:
		binding, err := connection.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
		if err != nil {
			return nil
		}
		return binding
	}
	return nil
}
