package provision

import (
	"strings"
	"testing"
	"time"
)

func audited(t *testing.T, fields, network string) files {
	t.Helper()
	f := good()
	f["site.yaml"] = strings.Replace(goodSite, "{dhcp: true}", network, 1) + "audit: {" + fields + "}\n"
	f["trust/log.pem"] = certificatePEM(t, time.Now().Add(time.Hour))
	return f
}

func TestAudit(t *testing.T) {
	site, err := Load(audited(t, `retention: 365d, syslog: {address: "log.example.com:6514", ca: trust/log.pem, facility: local3}`, "{dhcp: true}").fs())
	if err != nil {
		t.Fatal(err)
	}
	s := site.Audit.Syslog
	if site.Audit.Retention != 365*24*time.Hour || s == nil || s.Address != "log.example.com:6514" || s.File != "trust/log.pem" || len(s.Roots) != 1 || s.Facility != 19 {
		t.Errorf("%+v, %+v", site.Audit, s)
	}
	if uses := site.Bundles(); len(uses) != 1 || uses[0].Field != FieldSyslog || uses[0].Profile != "" || uses[0].File != "trust/log.pem" {
		t.Errorf("bundles: %+v", uses)
	}
	for text, facility := range map[string]int{"": 13, ", facility: audit": 13, ", facility: auth": 4, ", facility: authpriv": 10, ", facility: local0": 16, ", facility: local7": 23} {
		site, err := Load(audited(t, `syslog: {address: "192.0.2.9:601", ca: trust/log.pem`+text+"}", "{address: 192.0.2.10/24, gateway: 192.0.2.1}").fs())
		if err != nil || site.Audit.Syslog.Facility != facility || site.Audit.Retention != 0 {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAuditProblems(t *testing.T) {
	const line = "site.yaml:18: "
	fixed := "{address: 192.0.2.10/24, gateway: 192.0.2.1}"
	address := func(a string) string { return `syslog: {address: "` + a + `", ca: trust/log.pem}` }
	for fields, c := range map[string]struct{ network, want string }{
		"retension: 365d":                                      {"", line + "unknown field audit.retension — did you mean retention?"},
		"retention: 29d":                                       {"", line + "29d is not a usable time — from 30d"},
		"retention: 1y":                                        {"", line + `"1y" is not a duration — 90d`},
		"syslog: {}":                                           {"", line + "audit.syslog.address is missing — log.example.com:6514\n" + line + "audit.syslog.ca is missing — the box has none"},
		"syslog: log.example.com:6514":                         {"", line + "audit.syslog is not a set of fields — address, ca"},
		address("log.example.com"):                             {"", line + `"log.example.com" is not a host and a port — such as log.example.com:6514`},
		address(":6514"):                                       {"", line + "not a host and a port — name or address"},
		address("log.example.com:0"):                           {"", line + "not a host and a port — name or address"},
		address("log.example.com:65536"):                       {"", line + "not a host and a port — name or address"},
		address("log.example.com:syslog"):                      {"", line + "not a host and a port — name or address"},
		address("tls://log.example.com:14"):                    {"", line + "not a host and a port — name or address"},
		address("log_1.example.com:6514 "):                     {"", line + "not a host and a port — name or address"},
		address("log.example.com:6514"):                        {fixed, line + "no DNS server — dns in network"},
		`syslog: {address: "192.0.2.9:6514", ca: trust/x.pem}`: {"", line + "trust/x.pem: file does not exist — put the CA certificate"},
		`syslog: {address: "192.0.2.9:6514", ca: log.pem}`:     {"", line + `"log.pem" is not a file in trust/ — trust/NAME.pem`},
		`syslog: {address: "192.0.2.9:6514", ca: trust/log.pem, facility: local8}`:      {"", line + `"local8" cannot be — did you mean local0?`},
		`syslog: {address: "192.0.2.9:6514", ca: trust/log.pem, client: trust/log.pem}`: {"", line + "unknown field audit.syslog.client — remove it"},
	} {
		if c.network == "" {
			c.network = "{dhcp: true}"
		}
		t.Run(fields, func(t *testing.T) {
			_, err := Load(audited(t, fields, c.network).fs())
			checkProblems(t, err, c.want)
		})
	}
}
