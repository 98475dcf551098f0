package box

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"signet.internal/appliance/handover"
	"signet.internal/provision"
)

// network keeps one network interface of the box configured, as the site says.
type network struct {
	site    provision.Network
	log     io.Writer
	resolv  string                                              // path of resolv.conf
	observe func(addresses []string, wrong *handover.Condition) // told every change
}

const (
	carrierPoll = 2 * time.Second  // how often a missing cable is looked for
	leaseWait   = 20 * time.Second // for a lease, before another interface gets its turn
)

// errNoLease moves on to the next interface.
var errNoLease = errors.New("no DHCP server answered")

// raiseLoopback brings lo up; the service's own checks use it.
func raiseLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raising loopback: %w", err)
	}
	return nil
}

// run configures the first interface with a cable, and the next where DHCP gets no answer, until
// ctx ends.
func (n *network) run(ctx context.Context) {
	noCable := shown("no network cable with a live partner is plugged in", "plug a network cable into the box, and check the switch's port")
	for turn := 0; ctx.Err() == nil; turn++ {
		links, err := connected()
		if err != nil {
			wrong := shown("the network cannot be configured: "+err.Error(), mendReport)
			n.observe(nil, &wrong)
		} else if len(links) == 0 {
			if turn > 2 { // a card needs seconds to find its partner
				n.observe(nil, &noCable)
			}
		} else {
			link := links[turn%len(links)]
			err := n.serve(ctx, link)
			n.forget(link)
			if err != nil {
				fmt.Fprintf(n.log, "network: %s: %v\n", link.Attrs().Name, err)
				n.observe(nil, networkWrong(link, err))
			}
		}
		sleep(ctx, carrierPoll)
	}
}

func networkWrong(link netlink.Link, err error) *handover.Condition {
	name := link.Attrs().Name
	wrong := shown("the network on "+name+" failed: "+err.Error(), "check the cable and the site's network settings; the box tries again by itself")
	if errors.Is(err, errNoLease) {
		wrong = shown("no DHCP server answered on "+name, "check the cable and the DHCP server, or bake the site with a fixed address")
	}
	return &wrong
}

// serve keeps link configured until its cable is pulled (nil) or something fails.
func (n *network) serve(ctx context.Context, link netlink.Link) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if n.site.DHCP {
		go n.watchCarrier(ctx, cancel, link)
		return n.serveDHCP(ctx, link)
	}
	static := Lease{Address: n.site.Address, Gateway: n.site.Gateway, DNS: n.site.DNS}
	if err := n.apply(link, static); err != nil {
		return err
	}
	n.observe([]string{fmt.Sprintf("%s on %s (fixed)", static.Address, link.Attrs().Name)}, nil)
	n.watchCarrier(ctx, cancel, link)
	return nil
}

// watchCarrier cancels when link has no cable any more, and returns when ctx ends.
func (n *network) watchCarrier(ctx context.Context, cancel func(), link netlink.Link) {
	for sleep(ctx, carrierPoll) {
		now, err := netlink.LinkByIndex(link.Attrs().Index)
		if err != nil || !carrier(now) {
			cancel()
			return
		}
	}
}

// serveDHCP runs the helper and applies what it proposes, until ctx ends (nil).
func (n *network) serveDHCP(ctx context.Context, link netlink.Link) error {
	name := link.Attrs().Name
	cmd := sandbox{uid: uidDHCP, netRaw: true}.command(selfPath, modeDHCP, name)
	cmd.Env = []string{}
	cmd.Stderr = n.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the DHCP helper: %w", err)
	}
	proposals := make(chan Lease)
	go readProposals(out, proposals)
	defer func() {
		cmd.Process.Kill()
		for range proposals {
		}
		cmd.Wait()
	}()

	patience := time.NewTimer(leaseWait)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-patience.C:
			return errNoLease
		case l, ok := <-proposals:
			if !ok {
				return errors.New("the DHCP helper ended")
			}
			if l.Address == (netip.Prefix{}) {
				return errors.New("the DHCP lease expired")
			}
			if err := l.check(); err != nil {
				return fmt.Errorf("the DHCP server's offer is not usable: %w", err)
			}
			if err := n.apply(link, l); err != nil {
				return err
			}
			patience.Reset(l.Duration)
			n.observe([]string{fmt.Sprintf("%s on %s (DHCP)", l.Address, name)}, nil)
		}
	}
}

// maxProposal bounds a line of the helper.
const maxProposal = 4 << 10

// readProposals decodes the helper's lines and closes to when they end or make no sense.
func readProposals(out io.Reader, to chan<- Lease) {
	defer close(to)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, maxProposal)
	for lines.Scan() {
		var l Lease
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return
		}
		to <- l
	}
}

// connected raises every Ethernet interface and returns those with a cable.
func connected() ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing network interfaces: %w", err)
	}
	var links []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if l.Type() != "device" || a.EncapType != "ether" {
			continue
		}
		if a.RawFlags&unix.IFF_UP == 0 {
			if err := netlink.LinkSetUp(l); err != nil {
				return nil, fmt.Errorf("raising %s: %w", a.Name, err)
			}
			if l, err = netlink.LinkByIndex(a.Index); err != nil {
				return nil, fmt.Errorf("raising %s: %w", a.Name, err)
			}
		}
		if carrier(l) {
			links = append(links, l)
		}
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return strings.Compare(a.Attrs().Name, b.Attrs().Name) })
	return links, nil
}

func carrier(l netlink.Link) bool { return l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

// apply makes l the configuration of link: its address, its default route, its name servers.
func (n *network) apply(link netlink.Link, l Lease) error {
	old, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range old {
		if a.IPNet.String() != l.Address.String() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("removing address %s: %w", a.IPNet, err)
			}
		}
	}
	address, err := netlink.ParseAddr(l.Address.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, address); err != nil {
		return fmt.Errorf("setting address %s: %w", l.Address, err)
	}
	if l.Gateway.IsValid() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.Gateway.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("setting gateway %s: %w", l.Gateway, err)
		}
	}
	return writeResolvers(n.resolv, l.DNS)
}

// forget takes the IPv4 addresses off link, and with them its routes.
func (n *network) forget(link netlink.Link) {
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
	for _, a := range addresses {
		err = errors.Join(err, netlink.AddrDel(link, &a))
	}
	if err != nil {
		fmt.Fprintf(n.log, "network: %s: taking addresses off: %v\n", link.Attrs().Name, err)
	}
}

// writeResolvers replaces resolv.conf whole.
func writeResolvers(path string, servers []netip.Addr) error {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if err := os.WriteFile(path+".new", []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("writing name servers: %w", err)
	}
	return os.Rename(path+".new", path)
}

// sleep waits d and says whether ctx is still on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
