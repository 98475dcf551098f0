package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"signet.internal/appliance/confine"
)

// Patience of the DHCP helper.
const (
	dhcpTimeout = 3 * time.Second // for one answer
	dhcpPause   = 5 * time.Second // between attempts without a lease
	dhcpRenewal = time.Minute     // between attempts to renew (RFC 2131 §4.4.5 asks for at least this)
)

// runDHCP is the DHCP helper's process: it proposes leases for one interface on out and never
// changes anything itself. It ends when out is closed.
func runDHCP(name string, out io.Writer) error {
	if err := enclose(confine.DHCP()); err != nil {
		return err
	}
	for {
		if err := lease(name, json.NewEncoder(out)); err != nil {
			return err
		}
		time.Sleep(dhcpPause)
	}
}

// lease gets one lease and renews it as long as the server lets it; the error is fatal.
func lease(name string, out *json.Encoder) error {
	client, err := nclient4.New(name, nclient4.WithTimeout(dhcpTimeout), nclient4.WithRetry(2))
	if err != nil {
		return fmt.Errorf("opening %s for DHCP: %w", name, err)
	}
	defer client.Close()
	held, err := client.Request(context.Background())
	if err != nil {
		fmt.Fprintf(os.Stderr, "dhcp: %s: %v\n", name, err)
		return nil
	}
	for {
		proposal := proposalOf(held.ACK)
		if err := out.Encode(proposal); err != nil {
			return err
		}
		time.Sleep(renewalOf(held.ACK, proposal.Duration))
		held, err = renew(client, held, held.CreationTime.Add(proposal.Duration))
		if err != nil {
			fmt.Fprintf(os.Stderr, "dhcp: %s: renewing: %v\n", name, err)
			return out.Encode(Lease{})
		}
	}
}

// renewalOf is how long after an acknowledgement the lease is renewed: when the server says so, but
// neither so soon that a malicious one could keep the box busy with it, nor after the lease.
func renewalOf(ack *dhcpv4.DHCPv4, lease time.Duration) time.Duration {
	return max(dhcpRenewal, min(ack.IPAddressRenewalTime(lease/2), lease/2))
}

// renew renews a lease, trying until it expires. nclient4 broadcasts the request, so a server that
// took over from the first may answer too.
func renew(client *nclient4.Client, held *nclient4.Lease, expires time.Time) (*nclient4.Lease, error) {
	for {
		renewed, err := client.Renew(context.Background(), held)
		if err == nil {
			return renewed, nil
		}
		var refused *nclient4.ErrNak
		if errors.As(err, &refused) || time.Now().Add(dhcpRenewal).After(expires) {
			return nil, err
		}
		time.Sleep(dhcpRenewal)
	}
}

// proposalOf takes the parts of an acknowledgement the box uses.
func proposalOf(ack *dhcpv4.DHCPv4) Lease {
	// RFC 2131 §3.3 has leases for ever; the box renews those too.
	l := Lease{Duration: min(ack.IPAddressLeaseTime(time.Hour), maxLease)}
	address, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if ones, bits := ack.SubnetMask().Size(); ok && bits == 32 {
		l.Address = netip.PrefixFrom(address, ones)
	}
	if routers := ack.Router(); len(routers) > 0 {
		l.Gateway, _ = netip.AddrFromSlice(routers[0].To4())
	}
	for _, server := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(server.To4()); ok && len(l.DNS) < maxResolver {
			l.DNS = append(l.DNS, a)
		}
	}
	return l
}
