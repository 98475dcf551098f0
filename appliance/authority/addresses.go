package authority

import (
	"bytes"
	"net"
	"slices"
)

// InterfaceAddresses are the addresses of the interfaces that are up, sorted, without loopback and
// link-local ones.
func InterfaceAddresses() []net.IP {
	interfaces, _ := net.InterfaceAddrs() // none found leaves the fixed names
	var own []net.IP
	for _, a := range interfaces {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback() {
			own = append(own, n.IP)
		}
	}
	slices.SortFunc(own, func(a, b net.IP) int { return bytes.Compare(a.To16(), b.To16()) })
	return own
}

// IPv4 leaves those addresses that certificates carry. A box gets IPv6 addresses from whatever router
// advertises, at any time: a name reaches it by those, and a certificate that followed them would change
// its fingerprint again and again.
func IPv4(addresses []net.IP) []net.IP {
	return slices.DeleteFunc(slices.Clone(addresses), func(ip net.IP) bool { return ip.To4() == nil })
}
