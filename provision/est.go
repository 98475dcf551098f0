package provision

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"

	"signet.internal/appliance/pki"
)

const (
	estRetryAfter    = time.Minute
	maxESTRetryAfter = 24 * time.Hour
	maxUsers         = 64  // of one profile
	maxUserName      = 255 // bytes
	maxFor           = 256 // names of one user
)

// readEST reads what a profile says about EST; nil is not served.
func (l *loader) readEST(o *object, p Profile) *EST {
	est := o.object("est", "legacy_tls", "auth", "channel_binding", "server_key", "retry_after")
	if est == nil {
		return nil
	}
	e := &EST{RetryAfter: estRetryAfter}
	e.LegacyTLS, _ = est.bool("legacy_tls")
	if e.LegacyTLS && !l.site.Listeners.Legacy {
		est.failf("legacy_tls", "turn on listener legacy in site.yaml, or write legacy_tls: false", "listener legacy is off")
	} else if !e.LegacyTLS && !l.site.Listeners.EST {
		o.failf("est", "turn on listener est in site.yaml", "no listener serves it")
	}
	l.readESTAuth(est, p, e)
	if est.has("channel_binding") {
		if e.ChannelBinding = est.choice("channel_binding", "off", "optional", "required"); e.ChannelBinding == "off" {
			e.ChannelBinding = ""
		}
	}
	if est.has("server_key") {
		e.ServerKeyGen = est.choice("server_key", keyAlgorithms()...)
		if e.ServerKeyGen != "" && o.has("keys") && !allowsKey(p.config.Keys, e.ServerKeyGen) {
			est.failf("server_key", "choose an algorithm that keys allows, or allow this one there", "%s is not among the keys the profile takes", e.ServerKeyGen)
		}
	}
	if d, ok := est.duration("retry_after"); ok {
		if d < time.Second || d > maxESTRetryAfter {
			est.failf("retry_after", "write a duration from 1s to 1d, such as 60s", "%s is not a usable time", est.written("retry_after"))
		}
		e.RetryAfter = d
	}
	return e
}

// readESTAuth reads how devices authenticate. There is no way that is on without being written.
func (l *loader) readESTAuth(est *object, p Profile, e *EST) {
	const mend = "write for example auth: {certificate: [issued], basic: [{user: device, hash: \"…\"}]}, with what `signet hash` prints"
	before := len(est.d.problems)
	est.require("auth", mend)
	auth := est.object("auth", "basic", "certificate", "challenge")
	e.Basic = readBasic(auth)
	l.readESTCertificates(auth, e)
	e.Challenge, _ = auth.bool("challenge")
	if e.Challenge && p.SCEP.Challenges.OneTime == nil {
		auth.failf("challenge", "write scep: {challenges: {one_time: {ttl: 24h}}} too, which is how challenges are minted", "the profile has no one-time challenges")
	}
	if auth == nil || len(est.d.problems) > before {
		return
	}
	password := len(e.Basic) > 0 || e.Challenge
	switch {
	case !password && !e.Issued && e.Bundle == nil:
		est.failf("auth", mend, "nothing is on: nobody could be told from strangers")
	case e.Issued && !password && p.Renewal.Challenge:
		est.failf("auth", "add basic or challenge, or write renewal: {proof: certificate}", "a renewal needs a password besides the certificate, and there is none")
	}
}

func readBasic(auth *object) []BasicUser {
	var users []BasicUser
	if nodes := auth.list("basic"); len(nodes) > maxUsers {
		auth.failf("basic", fmt.Sprintf("write at most %d; one-time challenges (challenge: true) are for a password per device", maxUsers), "%d users", len(nodes))
		return nil
	}
	for i, n := range auth.list("basic") {
		o := auth.d.object(n, auth.element("basic", i), "user", "hash", "for")
		o.require("user", "write user: NAME")
		o.require("hash", "run `signet hash` and write hash: \"…\"")
		u := BasicUser{Hash: readHash(o), For: o.texts("for")}
		if name, ok := o.text("user"); ok {
			// The first colon ends the name, and control characters have no place in it (RFC 7617 §2).
			if name == "" || len(name) > maxUserName || !utf8.ValidString(name) || strings.Contains(name, ":") || strings.ContainsFunc(name, unicode.IsControl) {
				o.failf("user", fmt.Sprintf("write up to %d bytes without colon and control characters", maxUserName), "%q cannot be a user", name)
			} else if slices.ContainsFunc(users, func(other BasicUser) bool { return other.User == name }) {
				o.failf("user", "give each user a name of its own", "user %s is there twice", name)
			}
			u.User = name
		}
		if o.value("for") != nil && len(u.For) == 0 {
			o.failf("for", "write the names the user may ask certificates for, or remove for", "no name in it")
		}
		if len(u.For) > maxFor {
			o.failf("for", fmt.Sprintf("write at most %d, or spread them over several users", maxFor), "%d names", len(u.For))
		}
		for j, name := range u.For {
			if strings.TrimSpace(name) == "" {
				o.failf(fmt.Sprintf("for[%d]", j), "write a common name or a name of subjectAltName", "empty")
			}
		}
		users = append(users, u)
	}
	return users
}

// readESTCertificates reads whose client certificates let a device in: "issued", or a bundle.
func (l *loader) readESTCertificates(auth *object, e *EST) {
	const mend = "write issued, or {bundle: trust/devices.pem}"
	for i, n := range auth.list("certificate") {
		field := fmt.Sprintf("certificate[%d]", i)
		if n.Type() != ast.MappingType && n.Type() != ast.MappingValueType {
			kind, ok := auth.d.text(n, auth.child(field))
			switch {
			case ok && kind != "issued":
				auth.failf(field, mend, "%q cannot be", kind)
			case ok && e.Issued:
				auth.failf(field, "write it once", "issued is there twice")
			case ok:
				e.Issued = true
			}
			continue
		}
		o := auth.d.object(n, auth.child(field), "bundle")
		o.require("bundle", mend)
		file, ok := o.text("bundle")
		if ok && e.File != "" {
			o.failf("bundle", "put the certificates of both in one file", "a second bundle")
		} else if ok {
			e.File, e.Bundle = file, l.bundle(o, "bundle", file, "put the CA certificates of the devices' first certificates there")
		}
	}
}

// allowsKey reports whether a profile takes keys of an algorithm as in KeySpec.
func allowsKey(c pki.KeyConfig, algorithm string) bool {
	kind, size, _ := strings.Cut(algorithm, "-")
	if kind == "ecdsa" {
		return slices.Contains(c.ECDSA, size)
	}
	bits, err := strconv.Atoi(size)
	return err == nil && c.RSA != nil && bits >= c.RSA.MinBits
}
