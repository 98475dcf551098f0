package scep

import (
	"strings"

	"signet.internal/appliance/cms"
)

// Legacy are the algorithms that a profile takes from devices which know no better, each by its own switch. None of them weakens what
// other devices of the profile get: an answer uses what its request used.
type Legacy struct {
	SHA1       bool // messages signed with SHA-1, which are answered with it
	DES3       bool // messages encrypted with 3DES, which are answered with it
	DESDecrypt bool // messages encrypted with single DES; the answer never is
	MD5        bool // messages signed with MD5; the answer never is
}

// policy is what requests may use.
func (l Legacy) policy() cms.Policy {
	p := cms.DefaultPolicy()
	if l.SHA1 {
		p.Digests = append(p.Digests, cms.SHA1)
	}
	if l.MD5 {
		p.Digests = append(p.Digests, cms.MD5)
	}
	if l.DES3 {
		p.Ciphers = append(p.Ciphers, cms.DES3CBC)
	}
	if l.DESDecrypt {
		p.Ciphers = append(p.Ciphers, cms.DESCBC)
	}
	return p
}

// answerDigest is what a reply is signed with: the digest of the request, so that a client that knows one understands the answer,
// where the policy takes it. A client of MD5 knows SHA-1 at best.
func (p *profile) answerDigest(d cms.Digest) cms.Digest {
	switch {
	case d == cms.MD5 && p.Legacy.MD5 && p.Legacy.SHA1:
		return cms.SHA1
	case d == cms.MD5 || !p.policy.AllowsDigest(d):
		return cms.SHA256
	}
	return d
}

// answerCipher is what a reply to an opened request is encrypted with: the cipher the client chose itself, but never single DES, which
// OpenSSL 3 does not decrypt either.
func (p *profile) answerCipher(c cms.Cipher) cms.Cipher {
	if c != cms.DESCBC {
		return c
	}
	if p.Legacy.DES3 {
		return cms.DES3CBC
	}
	return cms.AES128CBC
}

// capabilities is the GetCACaps answer: RFC 8894 §3.5.2. No line is empty, none has spaces, and the last has no end: strongSwan takes
// an empty line for every capability there is. Up to 5.9.10 it also believes SHA-256 and AES only where SHA-384 is listed. Single
// DES and MD5 have no name here and are never offered; GetNextCACert is while there is a next CA.
func capabilities(p Profile, hasNext bool) []byte {
	lines := []string{"POSTPKIOperation", "SHA-256", "SHA-384", "SHA-512", "AES", "SCEPStandard"}
	if p.Renewal {
		lines = append(lines, "Renewal")
	}
	if p.Legacy.SHA1 {
		lines = append(lines, "SHA-1")
	}
	if p.Legacy.DES3 {
		lines = append(lines, "DES3")
	}
	if hasNext {
		lines = append(lines, "GetNextCACert")
	}
	return []byte(strings.Join(lines, "\n"))
}
