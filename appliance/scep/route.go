package scep

import "strings"

// locate returns the profile a request path selects on a listener, or a reason it selects none. The path is the percent-decoded one;
// empty segments are skipped, because devices build URLs like //scep//pkiclient.exe and a redirect loses a POST.
//
// Clients append what their first server was called (pkiclient.exe of the original CGI, mscep.dll of NDES), so those
// names mean the default profile both under /scep and at the root, in any case; what follows a profile's own name is
// ignored for the same reason. On listeners that ask for client certificates /scep-mtls takes the place of /scep, and the root
// has no such names.
func (s *Server) locate(path string, l listener) (p *profile, reason string) {
	prefix := "scep"
	if l.isMutual() {
		prefix = "scep-mtls"
	}
	segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	switch {
	case len(segments) == 0:
		return nil, "no SCEP service at this path: use /" + prefix + "/<profile>"
	case segments[0] == prefix:
		segments = segments[1:]
		if len(segments) == 0 {
			break
		}
		if p := s.profiles[segments[0]]; p != nil {
			return p, ""
		}
		if !legacySegment(segments[0]) {
			return nil, "no such SCEP profile: use /" + prefix + "/<profile>"
		}
	case l.isMutual() || !legacyPath(segments):
		return nil, "no SCEP service at this path: use /" + prefix + "/<profile>"
	}
	if s.fallback == nil {
		return nil, "this box has no default SCEP profile: use /" + prefix + "/<profile>"
	}
	return s.fallback, ""
}

// legacySegment tells whether a segment after /scep is a name other servers used and not a profile.
func legacySegment(segment string) bool {
	switch strings.ToLower(segment) {
	case "pkiclient.exe", "cgi-bin", "mscep.dll", "certsrv":
		return true
	}
	return false
}

// legacyPath tells whether a path outside /scep is the SCEP address of another server: /pkiclient.exe,
// /cgi-bin/pkiclient.exe, /mscep.dll or /certsrv/mscep/mscep.dll, with anything behind it.
func legacyPath(segments []string) bool {
	at := func(i int, name string) bool { return i < len(segments) && strings.EqualFold(segments[i], name) }
	return at(0, "pkiclient.exe") || at(0, "mscep.dll") ||
		at(0, "cgi-bin") && at(1, "pkiclient.exe") ||
		at(0, "certsrv") && at(1, "mscep") && at(2, "mscep.dll")
}
