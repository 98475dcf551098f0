package provision

import (
	"crypto/x509"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/pki"
)

// Audit says what becomes of the audit log.
type Audit struct {
	Retention time.Duration // how long a record is kept; 0: for ever
	Syslog    *Syslog       // nil: nobody is sent the log
}

// Syslog is who is sent the audit log, by RFC 5424 over TLS.
type Syslog struct {
	Address  string              // host and port
	File     string              // of the site, in trust/
	Roots    []*x509.Certificate // of File, at least one: whom the receiver's certificate chains to
	Facility int                 // RFC 5424 §6.2.1, table 1
}

// The facility where none is written: "log audit".
const facilityAudit = 13

const (
	minRetention = 30 * 24 * time.Hour // as package store has it
	maxRetention = 100 * 366 * 24 * time.Hour
)

// facilities are what receivers sort by; the others are of the system's own daemons.
func facilities() (names []string, numbers map[string]int) {
	names, numbers = []string{"auth", "authpriv", "audit"}, map[string]int{"auth": 4, "authpriv": 10, "audit": facilityAudit}
	for i := range 8 {
		name := "local" + strconv.Itoa(i)
		names, numbers[name] = append(names, name), 16+i
	}
	return names, numbers
}

func (l *loader) readAudit(o *object) {
	a := &l.site.Audit
	if d, ok := o.duration("retention"); ok {
		if d < minRetention || d > maxRetention {
			o.failf("retention", "write a duration from 30d, such as 365d, or remove it to keep every record", "%s is not a usable time", o.written("retention"))
		}
		a.Retention = d
	}
	if o.has("syslog") {
		a.Syslog = l.readSyslog(o.object("syslog", "address", "ca", "facility"))
	}
}

// readSyslog reads who is sent the audit log; nil where that is not written as a set of fields.
func (l *loader) readSyslog(o *object) *Syslog {
	if o == nil {
		return nil
	}
	s := &Syslog{Facility: facilityAudit}
	o.require("address", "write the receiver's host and port, such as address: log.example.com:6514")
	o.require("ca", "write ca: trust/syslog.pem, a file with the CA certificate the receiver's certificate chains to: the box has none of its own")
	if text, ok := o.text("address"); ok {
		host, port, err := net.SplitHostPort(text)
		n, portErr := strconv.ParseUint(port, 10, 16)
		_, addressErr := netip.ParseAddr(host)
		switch {
		case err != nil || portErr != nil || n == 0 || strings.HasPrefix(port, "0") || addressErr != nil && pki.CheckDNSName(host) != nil:
			o.failf("address", "write a name or address and the port, such as log.example.com:6514", "%q is not a host and a port", text)
		case addressErr != nil:
			l.needDNS(o, "address")
		}
		s.Address = text
	}
	if file, ok := o.text("ca"); ok {
		s.File, s.Roots = file, l.bundle(o, "ca", file, "put the CA certificate the receiver's certificate chains to there")
	}
	if o.has("facility") {
		names, numbers := facilities()
		s.Facility = numbers[o.choice("facility", names...)]
	}
	return s
}
