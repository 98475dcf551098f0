package box

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Lease is what the DHCP helper proposes, one JSON object a line. The helper parses packets of
// whoever is on the network, so boxinit believes none of it before check.
type Lease struct {
	Address  netip.Prefix  `json:"address"` // the box's address with its prefix length; zero: no lease any more
	Gateway  netip.Addr    `json:"gateway"` // zero: none
	DNS      []netip.Addr  `json:"dns"`
	Duration time.Duration `json:"duration_ns"`
}

// Bounds of a lease that is believed.
const (
	minLease    = time.Minute
	maxLease    = 366 * 24 * time.Hour
	maxResolver = 3 // resolv.conf(5) MAXNS
)

// check refuses a lease that cannot be meant for a host on an IPv4 network.
func (l Lease) check() error {
	address := l.Address.Addr()
	switch {
	case !l.Address.IsValid() || !address.Is4():
		return errors.New("no IPv4 address")
	case !unicast(address):
		return fmt.Errorf("%s is no host's address", address)
	case l.Address.Bits() < 8 || l.Address.Bits() > 31:
		return fmt.Errorf("prefix length %d", l.Address.Bits())
	case l.Duration < minLease || l.Duration > maxLease:
		return fmt.Errorf("lease of %v", l.Duration)
	case l.Gateway.IsValid() && (!unicast(l.Gateway) || !l.Address.Masked().Contains(l.Gateway) || l.Gateway == address):
		return fmt.Errorf("gateway %s is not a neighbour", l.Gateway)
	case len(l.DNS) > maxResolver:
		return fmt.Errorf("%d name servers", len(l.DNS))
	}
	for _, server := range l.DNS {
		if !unicast(server) {
			return fmt.Errorf("name server %s is no host's address", server)
		}
	}
	return nil
}

// unicast says whether a can be some other machine's or this machine's address on a network. A zone
// is any text and would end up in files.
func unicast(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!(a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240))
}
