package exchange

import (
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/netip"
	"time"
)

// Config is what the servers here have in common. Log is required.
type Config struct {
	Log *slog.Logger

	// Source tells whom a request comes from, for limits, the log and the audit log. Nil: the connection's remote address.
	Source func(*http.Request) netip.Addr

	// ClientCertificates returns what a device showed in TLS, its own certificate first, of which it is known that the device has
	// the key and nothing else. Nil: those of the connection; what stands behind a trusted proxy takes them from there.
	ClientCertificates func(*http.Request) []*x509.Certificate

	// Now is the box's clock. Nil: time.Now.
	Now func() time.Time

	// IsBusy reports whether an error of a key says that its holder has too much to do, so that the same request may succeed later.
	// Nil: no error does.
	IsBusy func(error) bool
}

// WithDefaults is the Config with what stands for nil.
func (c Config) WithDefaults() Config {
	if c.Source == nil {
		c.Source = RemoteAddr
	}
	if c.ClientCertificates == nil {
		c.ClientCertificates = PeerCertificates
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.IsBusy == nil {
		c.IsBusy = func(error) bool { return false }
	}
	return c
}
