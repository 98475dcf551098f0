package est

import (
	"slices"
	"strings"
)

// Operations of RFC 7030 §3.2.2, as the last segment of a path.
const (
	opCACerts      = "cacerts"
	opEnroll       = "simpleenroll"
	opReenroll     = "simplereenroll"
	opCSRAttrs     = "csrattrs"
	opServerKeyGen = "serverkeygen"
	opFullCMC      = "fullcmc" // known, so that nothing else goes by its name, and not offered
)

// isOperation tells whether a path segment names an operation.
func isOperation(segment string) bool {
	return slices.Contains([]string{opCACerts, opEnroll, opReenroll, opCSRAttrs, opServerKeyGen, opFullCMC}, segment)
}

// locate returns the profile and the operation a request path selects, or a reason it selects none. The path is the percent-decoded
// one; empty segments are skipped, because devices build URLs by joining and a redirect loses a POST. A first segment that names an
// operation is that operation of the default profile, and no label.
func (s *Server) locate(path string) (p *profile, operation, reason string) {
	const use = "use /.well-known/est/<profile>/<operation>"
	segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(segments) < 3 || segments[0] != ".well-known" || segments[1] != "est" {
		return nil, "", "no EST service at this path: " + use
	}
	segments = segments[2:]
	if isOperation(segments[0]) {
		p, reason = s.fallback, "this box has no default EST profile: "+use
	} else {
		p, reason = s.profiles[segments[0]], "no such EST profile: "+use
		segments = segments[1:]
	}
	switch {
	case p == nil:
		return nil, "", reason
	case len(segments) != 1 || !isOperation(segments[0]):
		return nil, "", "no EST operation at this path: use cacerts, csrattrs, simpleenroll, simplereenroll or serverkeygen"
	}
	return p, segments[0], ""
}
