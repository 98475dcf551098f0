package appliance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"signet.internal/appliance/exchange"
	"signet.internal/provision"
)

// The listener table: a listener's place in it is its offset from --listen-base.
var listenerTable = []struct {
	name string
	port uint16
}{
	{"est", 443},
	{"scep", 8443},
	{"console", 9443},
	{"plain", 80},
	{"legacy", 7443},
	{"legacy_scep", 7444},
}

// Bounds of one connection and of all of them. A device on a slow line sends a request of a few KiB
// within these times; nothing else may hold memory for longer.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 60 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 64 << 10 // a PKIOperation by GET carries the whole message in its request line
	maxConnections = 512      // per listener
	maxPerSource   = maxConnections / 2
)

// enabled are the names of the listeners the site has on.
func enabled(l provision.Listeners) []string {
	var names []string
	for name, on := range map[string]bool{"est": l.EST, "scep": l.SCEP, "console": l.Console, "plain": l.Plain, "legacy": l.Legacy, "legacy_scep": l.LegacySCEP} {
		if on {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// listen opens every enabled listener: the inherited socket where there is one, else its port of the
// table, moved to base where base is given; with port 0 there, any that is free. An inherited socket the site does not ask for is an error.
func listen(site provision.Listeners, inherited map[string]net.Listener, base string) (map[string]net.Listener, error) {
	want := enabled(site)
	for name := range inherited {
		if !slices.Contains(want, name) {
			return nil, &mendable{fmt.Errorf("inherited a socket named %q, which the site has off", name), "turn the listener on in site.yaml or drop the socket"}
		}
	}
	host, basePort := "", 0
	if base != "" {
		h, p, err := net.SplitHostPort(base)
		if err == nil {
			basePort, err = strconv.Atoi(p)
		}
		if err != nil || basePort < 0 || basePort+len(listenerTable) > 65536 {
			return nil, &mendable{fmt.Errorf("--listen-base %q is not ADDRESS:PORT", base), "give for example --listen-base 127.0.0.1:20000"}
		}
		host = h
	}
	open := map[string]net.Listener{}
	for i, entry := range listenerTable {
		if !slices.Contains(want, entry.name) {
			continue
		}
		if l := inherited[entry.name]; l != nil {
			open[entry.name] = l
			continue
		}
		port := int(entry.port)
		if basePort > 0 {
			port = basePort + i
		} else if base != "" {
			port = 0
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return nil, &mendable{errors.Join(fmt.Errorf("opening the %s listener: %w", entry.name, err), closeAll(open)), "free the port, or move all listeners with --listen-base 127.0.0.1:20000"}
		}
		open[entry.name] = l
	}
	return open, nil
}

func closeAll(listeners map[string]net.Listener) error {
	var err error
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// server is one listener's HTTP server.
type server struct {
	name     string
	listener net.Listener
	http     *http.Server
}

// newServer serves handler on l, over TLS where a configuration is given.
func newServer(name string, l net.Listener, handler http.Handler, secure *tls.Config, log *slog.Logger) *server {
	l = &perSource{Listener: netutil.LimitListener(l, maxConnections), most: maxPerSource, open: map[netip.Prefix]int{}}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	return &server{name: name, listener: l, http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// Failed handshakes and the like are noise any sender can make.
		ErrorLog: slog.NewLogLogger(log.With("listener", name).Handler(), slog.LevelDebug),
	}}
}

// perSource closes connections of a source that has as many open as it may, so that no host alone keeps
// all others out. Half of all is a lot for one host, but a whole site may come through one address.
type perSource struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[netip.Prefix]int // only sources with a connection
}

func (l *perSource) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := exchange.AddrOf(c.RemoteAddr().String())
		key, err := source.Prefix(min(source.BitLen(), 64)) // an IPv6 host chooses freely in its /64
		if err != nil || !key.IsValid() {
			return c, nil // not an IP connection
		}
		if l.enter(key) {
			return &countedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(key) })}, nil
		}
		c.Close()
	}
}

func (l *perSource) enter(key netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key] >= l.most {
		return false
	}
	l.open[key]++
	return true
}

func (l *perSource) leave(key netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key]--; l.open[key] == 0 {
		delete(l.open, key)
	}
}

type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

func (s *server) serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving %s: %w", s.name, err)
	}
	return nil
}

func (s *server) shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }
