package box

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// setFirewall drops what comes in, but for answers to what the box sent, loopback, ping, IPv6
// neighbour discovery and the TCP ports of its listeners; nothing is forwarded. The DHCP helper
// needs no rule: its packet socket is served before the filter. What it set before is replaced in one
// step.
func setFirewall(ports []uint16) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening packet filter: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "signet"})
	conn.FlushTable(table)
	drop := nftables.ChainPolicyDrop
	input := conn.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	conn.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	for _, match := range inputRules(ports) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: append(match, &expr.Verdict{Kind: expr.VerdictAccept})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("setting packet filter: %w", err)
	}
	return nil
}

// inputRules are the matches whose packets are let in.
func inputRules(ports []uint16) [][]expr.Any {
	const (
		icmpEcho      = 8   // RFC 792
		icmp6Echo     = 128 // RFC 4443
		icmp6RouterAd = 134 // RFC 4861, with the two below
		icmp6Solicit  = 135
		icmp6Advert   = 136
	)
	rules := [][]expr.Any{
		{
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		},
		{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceName("lo")},
		},
		transport(unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 0, []byte{icmpEcho}),
	}
	for _, kind := range []byte{icmp6Echo, icmp6RouterAd, icmp6Solicit, icmp6Advert} {
		rules = append(rules, transport(unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, 0, []byte{kind}))
	}
	for _, port := range ports {
		rules = append(rules, transport(0, unix.IPPROTO_TCP, 2, binary.BigEndian.AppendUint16(nil, port)))
	}
	return rules
}

// transport matches want at an offset of the transport header of one protocol; family 0 is any.
func transport(family, protocol byte, offset uint32, want []byte) []expr.Any {
	var match []expr.Any
	if family != 0 {
		match = append(match,
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}})
	}
	return append(match,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want})
}

// interfaceName is a name as the kernel compares it, padded to IFNAMSIZ.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
