package provision

import (
	"fmt"
	"net/netip"
)

func (l *loader) readNetwork(o *object) {
	if o == nil {
		return
	}
	n := &l.site.Network
	n.DHCP, _ = o.bool("dhcp")
	if n.DHCP {
		for _, field := range []string{"address", "gateway", "dns"} {
			if o.has(field) {
				o.failf(field, "remove it, or write dhcp: false", "means nothing while dhcp is true")
			}
		}
		return
	}
	o.require("address", "write the box's address with its network's length, such as 192.0.2.10/24, or dhcp: true")
	o.require("gateway", "write the router's address")
	if text, ok := o.text("address"); ok {
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			o.failf("address", "write it with its network's length, such as 192.0.2.10/24", "%q is not an address with a length", text)
		case !usableAddress(prefix.Addr()) || prefix.Bits() < prefix.Addr().BitLen()-1 && prefix.Masked().Addr() == prefix.Addr():
			o.failf("address", "write the box's own address, such as 192.0.2.10/24", "%s is not a host's address", text)
		default:
			n.Address = prefix
		}
	}
	if text, ok := o.text("gateway"); ok {
		n.Gateway = address(o, "gateway", text)
		if n.Gateway.IsValid() && n.Address.IsValid() && (!n.Address.Contains(n.Gateway) || n.Gateway == n.Address.Addr()) {
			o.failf("gateway", "write the address of the router on the box's own network", "%s is not another address in %s", text, n.Address.Masked())
		}
	}
	for i, text := range o.texts("dns") {
		if text != "" {
			n.DNS = append(n.DNS, address(o, fmt.Sprintf("dns[%d]", i), text))
		}
	}
}

func usableAddress(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a.Zone() == ""
}

func address(o *object, field, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !usableAddress(a) {
		o.failf(field, "write a host's address such as 192.0.2.1", "%q is not a host's address", text)
		return netip.Addr{}
	}
	return a
}

// readListeners reads what is written; otherwise the legacy listeners are off and every other is on.
func (l *loader) readListeners(o *object) {
	s := &l.site.Listeners
	s.Legacy, s.LegacySCEP = false, false
	for name, on := range map[string]*bool{"est": &s.EST, "scep": &s.SCEP, "console": &s.Console, "plain": &s.Plain, "legacy": &s.Legacy, "legacy_scep": &s.LegacySCEP} {
		listener := o.object(name, "on")
		listener.require("on", "write on: true or on: false")
		if b, ok := listener.bool("on"); ok {
			*on = b
		}
	}
	if o != nil && !s.EST && !s.SCEP && !s.Plain && !s.Legacy && !s.LegacySCEP {
		o.d.failf(o.line, "write scep: {on: true} or est: {on: true}", "no listener is on that a device can enroll at")
	}
	if !s.Console {
		o.failf("console", "write console: {on: true}", "without it nobody can claim the box or see its state")
	}
}

const maxProxyNetworks = 64

// readTrustedProxies reads which proxies are believed. Both enabled and networks have to be written:
// neither a list nor a switch alone lets a sender say where it comes from.
func (l *loader) readTrustedProxies(o *object) {
	o.require("enabled", "write enabled: true, or remove trusted_proxies")
	enabled, written := o.bool("enabled")
	if written && !enabled {
		for _, field := range []string{"networks", "bundle"} {
			if o.has(field) {
				o.failf(field, "remove it, or write enabled: true", "means nothing while trusted_proxies is not enabled")
			}
		}
		return
	}
	o.require("networks", "write the addresses proxies connect from, such as networks: [192.0.2.0/28]")
	p := &TrustedProxies{}
	texts := o.texts("networks")
	if o.value("networks") != nil && len(texts) == 0 {
		o.failf("networks", "write the addresses proxies connect from, or remove trusted_proxies", "no network in it")
	}
	if len(texts) > maxProxyNetworks {
		o.failf("networks", fmt.Sprintf("write at most %d", maxProxyNetworks), "%d networks", len(texts))
	}
	for i, text := range texts {
		if network, ok := proxyNetwork(o, fmt.Sprintf("networks[%d]", i), text); ok {
			p.Networks = append(p.Networks, network)
		}
	}
	if file, ok := o.text("bundle"); ok {
		p.File, p.Certificates = file, l.bundle(o, "bundle", file, "put the CA certificates of the proxies' own client certificates there")
		if !l.site.Listeners.EST && !l.site.Listeners.Legacy {
			o.failf("bundle", "turn on listener est or legacy, or remove bundle", "means nothing while no listener asks for client certificates")
		}
	}
	if o != nil {
		l.site.TrustedProxies = p
	}
}

// proxyBits is the least length of a network of proxies: no private one is shorter (RFC 1918, RFC 4193).
func proxyBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 7
}

// proxyNetwork reads one network of trusted proxies; text is "" where a problem was reported.
func proxyNetwork(o *object, field, text string) (netip.Prefix, bool) {
	if text == "" {
		return netip.Prefix{}, false
	}
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		o.failf(field, "write a network such as 192.0.2.0/28, or 192.0.2.7/32 for one address", "%q is not a network", text)
	case network != network.Masked():
		o.failf(field, fmt.Sprintf("write %s, or /%d for the one address", network.Masked(), network.Addr().BitLen()), "%s has address bits outside its mask", text)
	case network.Bits() < proxyBits(network.Addr()):
		o.failf(field, "write the addresses your proxies have", "%s is everybody: any device could say it is another", text)
	default:
		return network, true
	}
	return netip.Prefix{}, false
}
