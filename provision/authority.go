package provision

import (
	"fmt"
	"time"

	"github.com/goccy/go-yaml/ast"

	"signet.internal/appliance/pki"
)

// What an authority and the RA mean where the site does not say.
const (
	maxAuthorities  = 16 // each with a key, and with more of them later on
	rootValidity    = 3650 * 24 * time.Hour
	minRootValidity = 30 * 24 * time.Hour
	maxRootValidity = 36500 * 24 * time.Hour
	crlValidity     = 7 * 24 * time.Hour
	maxPathLen      = 5 // more than any client follows
	raOverlap       = 30 * 24 * time.Hour
	maxRAOverlap    = 365 * 24 * time.Hour
)

func keyAlgorithms() []string {
	return []string{"rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384"}
}

func (l *loader) readAuthorities(o *object) {
	nodes := o.list("authorities")
	if list, ok := o.value("authorities").(*ast.SequenceNode); ok && len(list.Values) == 0 {
		o.failf("authorities", "write at least one authority", "the list is empty")
	}
	if len(nodes) > maxAuthorities {
		o.failf("authorities", fmt.Sprintf("write at most %d; profiles share one", maxAuthorities), "%d authorities", len(nodes))
		return
	}
	seen := map[string]bool{}
	for i, n := range nodes {
		a := o.d.object(n, o.element("authorities", i), "name", "mode", "subject", "key", "validity", "path_len", "crl_validity", "ocsp")
		a.require("name", "write a short name such as devices")
		a.require("mode", "write mode: root, or mode: subordinate for one that an offline root signs")
		a.require("subject", `write a subject such as "CN=Plant 7 Devices CA,O=Example"`)
		a.require("key", "write key: {algorithm: rsa-2048, protection: resident}")
		var authority Authority
		authority.Name, _ = a.text("name")
		if authority.Name != "" {
			checkLabel(a, "name", authority.Name)
			if seen[authority.Name] {
				a.failf("name", "give each authority a name of its own", "authority %s is there twice", authority.Name)
			}
			seen[authority.Name] = true
		}
		authority.Mode = a.choice("mode", ModeRoot, ModeSubordinate)
		if text, ok := a.text("subject"); ok {
			raw, err := pki.ParseDN(text)
			if err != nil {
				a.failf("subject", `write a subject such as "CN=Plant 7 Devices CA,O=Example"`, "%v", err)
			}
			authority.Subject, authority.SubjectText = raw, text
			for _, other := range l.site.Authorities {
				if err == nil && pki.SameDN(other.Subject, raw) {
					a.failf("subject", "give each authority a subject of its own: devices tell them apart by it", "authorities %s and %s have the same", other.Name, authority.Name)
				}
			}
		}
		key := a.object("key", "algorithm", "protection")
		key.require("algorithm", "write algorithm: rsa-2048 or ecdsa-p256")
		authority.Algorithm = key.choice("algorithm", keyAlgorithms()...)
		authority.Protection = protection(key, resident)
		l.readLife(a, &authority)
		l.site.Authorities = append(l.site.Authorities, authority)
	}
}

// readLife reads how long what an authority signs is good for, and how it says what it revoked.
func (l *loader) readLife(o *object, a *Authority) {
	if a.Mode == ModeRoot {
		a.Validity = rootValidity
	}
	if d, ok := o.duration("validity"); ok {
		switch {
		case a.Mode == ModeSubordinate:
			o.failf("validity", "remove it: whoever signs a subordinate's certificate decides", "means nothing for mode subordinate")
		case d < minRootValidity || d > maxRootValidity:
			o.failf("validity", "write a duration from 30d to 36500d, such as 3650d", "%s is not a usable validity", o.written("validity"))
		default:
			a.Validity = d
		}
	}
	if n, ok := o.number("path_len", 0, maxPathLen); ok {
		a.PathLen = new(int)
		*a.PathLen = int(n)
	}
	a.CRLValidity = crlValidity
	if d, ok := o.duration("crl_validity"); ok {
		if d < time.Hour || d > 90*24*time.Hour {
			o.failf("crl_validity", "write a duration from 1h to 90d, such as 7d", "%s is not a usable validity", o.written("crl_validity"))
		}
		a.CRLValidity = d
	}
	a.OCSP = l.site.Listeners.Plain
	if on, ok := o.bool("ocsp"); ok {
		if on && !l.site.Listeners.Plain {
			o.failf("ocsp", "turn on listener plain, or write ocsp: false", "listener plain, which serves it, is off")
		}
		a.OCSP = on
	}
}

// protection reads how a key is kept, with what is meant where it is not written.
func protection(o *object, otherwise string) string {
	if !o.has("protection") {
		return otherwise
	}
	return o.choice("protection", resident, sealed)
}

func (l *loader) readRA(o *object) {
	o.require("algorithm", "write algorithm: rsa-2048")
	o.require("validity", "write validity: 365d")
	l.site.RA.Algorithm = o.choice("algorithm", "rsa-2048", "rsa-3072", "rsa-4096")
	l.site.RA.Protection = protection(o, sealed)
	if d, ok := o.duration("validity"); ok {
		if d < 24*time.Hour || d > 3650*24*time.Hour {
			o.failf("validity", "write a duration from 1d to 3650d, such as 365d", "%s is not a usable validity", d)
		}
		l.site.RA.Validity = d
	}
	l.site.RA.Overlap = raOverlap
	if d, ok := o.duration("overlap"); ok {
		if d > maxRAOverlap {
			o.failf("overlap", "write how long a replaced key decrypts on, such as 30d; at most 365d", "%s is not a usable time", o.written("overlap"))
		}
		l.site.RA.Overlap = d
	}
}
