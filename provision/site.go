// Package provision reads a site: the directory an operator keeps in version control and bakes into
// an image.
//
// Loading is strict and finds everything wrong in one pass, each with file, line and mend. A field
// that is accepted does something; every other field is a problem.
//
// Whoever can change a site's files before it is baked decides who gets certificates. No secret is
// in them but secrets/, which nothing here reads: challenges are argon2id hashes.
package provision

import (
	"net/netip"
	"time"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/appliance/pki"
)

// Site is a site whose every check passed.
type Site struct {
	Name        string // lower-case letters, digits, hyphens; at most 32
	Version     string // MAJOR.MINOR.PATCH
	Epoch       uint32 // at least 1
	PublicHost  string // DNS name or address devices reach the box by
	SecureBoot  string // "none"
	Network     Network
	Listeners   Listeners
	Authorities []Authority // at least one, as written
	RA          RA
	Profiles    []Profile // at least one, in order of file name; exactly one is the default
	Files       []string  // every file of the site that was read, sorted: what belongs in the image
}

// Network is how the box gets its address: DHCP, or Address and Gateway.
type Network struct {
	DHCP    bool
	Address netip.Prefix // the box's own address with the length of its network
	Gateway netip.Addr
	DNS     []netip.Addr
}

// Listeners says which listeners are on.
type Listeners struct {
	SCEP    bool // :8443, TLS 1.3
	Console bool // :9443, TLS 1.3
	Plain   bool // :80
}

// Authority is one root CA.
type Authority struct {
	Name        string
	Subject     []byte // DER Name
	SubjectText string // as written
	Algorithm   string // as in KeySpec
	Protection  string // as in KeySpec
}

// RA is the key SCEP clients encrypt to; each authority certifies it.
type RA struct {
	Algorithm  string        // "rsa-2048", "rsa-3072" or "rsa-4096"
	Protection string        // as in KeySpec
	Validity   time.Duration // of the RA certificates
}

// Profile is one kind of enrollment.
type Profile struct {
	Name      string
	Default   bool
	Authority string // name of one of the site's authorities
	Policy    *pki.Profile
	SCEP      SCEP

	config pki.ProfileConfig
}

// SCEP is what a profile says about SCEP.
type SCEP struct {
	PlainHTTP  bool   // served on the plain listener too
	Chain      bool   // the CA certificate comes with an issued one
	GetCACert  string // "ra+chain", "ra+ca" or "ra"
	StaticHash string // argon2id hash of the challenge
}

// KeySpec is one key the box holds.
type KeySpec struct {
	Name       string
	Algorithm  string // "rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256" or "ecdsa-p384"
	Protection string // "resident" in the TPM, or "sealed" under its root secret
}

// Key names besides "authority/<name>".
const (
	KeyAuthorityPrefix = "authority/"
	KeyAudit           = "audit"
	KeyAttestation     = "attestation"
	KeyTLSCA           = "tls-ca"
	KeyRA              = "ra"
	KeyTLS             = "tls"
)

const (
	resident = "resident"
	sealed   = "sealed"
)

// Keys lists every key the box holds for this site, in a fixed order.
func (s *Site) Keys() []KeySpec {
	var keys []KeySpec
	for _, a := range s.Authorities {
		keys = append(keys, KeySpec{KeyAuthorityPrefix + a.Name, a.Algorithm, a.Protection})
	}
	return append(keys,
		KeySpec{KeyAudit, "ecdsa-p256", resident},
		KeySpec{KeyAttestation, "ecdsa-p256", resident},
		KeySpec{KeyTLSCA, "ecdsa-p256", resident},
		KeySpec{KeyRA, s.RA.Algorithm, s.RA.Protection},
		KeySpec{KeyTLS, "ecdsa-p256", sealed},
	)
}

// DemoName is the name of the demo site. Its challenges are published, so a box of that name says on
// every screen that it is not for production.
const DemoName = "demo"

// Demo reports whether this is the demo site.
func (s *Site) Demo() bool { return s.Name == DemoName }

// Weaknesses says, in one sentence each, what a site allows that a careful one would not. None of
// them stops a bake.
func (s *Site) Weaknesses() []string {
	var weak []string
	if s.Demo() {
		weak = append(weak, "this is the demo site: its challenges are published, never use it in production")
	}
	if s.SecureBoot == "none" {
		weak = append(weak, "secure_boot is none: keys are not protected against a changed disk")
	}
	for _, a := range s.Authorities {
		if a.Protection == sealed {
			weak = append(weak, "authority "+a.Name+": its key is sealed, not resident: while the box runs it is in memory")
		}
	}
	for _, p := range s.Profiles {
		if p.SCEP.PlainHTTP {
			weak = append(weak, "profile "+p.Name+": plain_http lets somebody on the path swap the CA certificates a device fetches")
		}
		for _, pattern := range p.config.SAN.DNS {
			if pattern == "*" {
				weak = append(weak, "profile "+p.Name+": whoever knows its challenge gets any DNS name (san: dns: [\"*\"])")
			}
		}
	}
	return weak
}

// HashSecret hashes a challenge or password as profiles hold it:
// "$argon2id$v=19$m=65536,t=3,p=1$salt$hash". The error is always nil.
func HashSecret(secret []byte) (string, error) { return phc.Make(secret), nil }
