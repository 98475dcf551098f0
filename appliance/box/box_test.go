package box

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"signet.internal/appliance/keys"
	"signet.internal/image/format"
	"signet.internal/provision"
	"signet.internal/tpm"
)

func TestClaimCode(t *testing.T) {
	var all []byte // every byte, in an order that starts with those refused
	for i := range 256 {
		all = append(all, byte(255-i))
	}
	seen := map[rune]int{}
	for random := bytes.NewReader(all); ; {
		code, err := newClaimCode(random)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(code) != 9 || code[4] != '-' {
			t.Fatalf("code %q", code)
		}
		for _, r := range strings.ReplaceAll(code, "-", "") {
			seen[r]++
		}
	}
	// 240 of the 256 bytes are used: each of the 30 characters the same number of times.
	if len(seen) != 30 {
		t.Errorf("%d characters", len(seen))
	}
	for r, n := range seen {
		if n != 8 {
			t.Errorf("%q %d times of 240", r, n)
		}
	}
	if strings.ContainsAny(claimAlphabet, "01OILU") {
		t.Error("characters that are mistaken for others")
	}
}

func TestLeaseCheck(t *testing.T) {
	good := Lease{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: netip.MustParseAddr("10.0.2.2"), DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Duration: 24 * time.Hour}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Lease){
		"no address":         func(l *Lease) { l.Address = netip.Prefix{} },
		"loopback":           func(l *Lease) { l.Address = netip.MustParsePrefix("127.0.0.1/8") },
		"multicast":          func(l *Lease) { l.Address = netip.MustParsePrefix("224.0.0.1/24") },
		"broadcast":          func(l *Lease) { l.Address = netip.MustParsePrefix("255.255.255.255/24") },
		"unspecified":        func(l *Lease) { l.Address = netip.MustParsePrefix("0.0.0.0/24") },
		"IPv6":               func(l *Lease) { l.Address = netip.MustParsePrefix("2001:db8::1/64") },
		"whole internet":     func(l *Lease) { l.Address = netip.MustParsePrefix("10.0.2.15/0") },
		"far gateway":        func(l *Lease) { l.Gateway = netip.MustParseAddr("192.0.2.1") },
		"itself as gateway":  func(l *Lease) { l.Gateway = l.Address.Addr() },
		"loopback as server": func(l *Lease) { l.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.53")} },
		"text as zone":       func(l *Lease) { l.DNS = []netip.Addr{netip.MustParseAddr("fe80::1%x\nsearch evil.test")} },
		"too many servers":   func(l *Lease) { l.DNS = append(l.DNS, l.DNS[0], l.DNS[0], l.DNS[0]) },
		"a second":           func(l *Lease) { l.Duration = time.Second },
		"for ever":           func(l *Lease) { l.Duration = 1 << 62 },
	} {
		l := good
		change(&l)
		if err := l.check(); err == nil {
			t.Errorf("%s: accepted %+v", name, l)
		}
	}
}

// What the helper makes of a server's packet survives its own check and the pipe.
func TestProposal(t *testing.T) {
	ack, err := dhcpv4.New(
		dhcpv4.WithYourIP(net.IPv4(10, 0, 2, 15)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 0, 2, 2)),
		dhcpv4.WithDNS(net.IPv4(10, 0, 2, 3), net.IPv4(10, 0, 2, 4)), dhcpv4.WithLeaseTime(86400))
	if err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(proposalOf(ack))
	if err != nil {
		t.Fatal(err)
	}
	to := make(chan Lease, 10)
	readProposals(strings.NewReader(string(line)+"\n{}\nnonsense\n{}\n"), to)
	var got []Lease
	for l := range to {
		got = append(got, l)
	}
	addr := netip.MustParseAddr
	want := []Lease{
		{Address: netip.MustParsePrefix("10.0.2.15/24"), Gateway: addr("10.0.2.2"), DNS: []netip.Addr{addr("10.0.2.3"), addr("10.0.2.4")}, Duration: 24 * time.Hour},
		{}, // and nothing after a line that makes no sense
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := got[0].check(); err != nil {
		t.Error(err)
	}
	if empty, err := dhcpv4.New(); err != nil {
		t.Fatal(err)
	} else if err := proposalOf(empty).check(); err == nil {
		t.Error("an empty packet is a lease")
	}
}

// What a server says of time neither keeps the box busy nor leaves it without a lease.
func TestTimesOfALease(t *testing.T) {
	const forever = 1<<32 - 1
	for _, c := range []struct {
		name               string
		lease, renewal     uint32 // seconds
		duration, renewing time.Duration
	}{
		{"usual", 86400, 43200, 24 * time.Hour, 12 * time.Hour},
		{"for ever", forever, forever, maxLease, maxLease / 2},
		{"renewed at once", 86400, 0, 24 * time.Hour, dhcpRenewal},
		{"renewed too late", 3600, 86400, time.Hour, 30 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			seconds := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
			ack, err := dhcpv4.New(
				dhcpv4.WithYourIP(net.IPv4(10, 0, 2, 15)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
				dhcpv4.WithGeneric(dhcpv4.OptionIPAddressLeaseTime, seconds(c.lease)),
				dhcpv4.WithGeneric(dhcpv4.OptionRenewTimeValue, seconds(c.renewal)))
			if err != nil {
				t.Fatal(err)
			}
			l := proposalOf(ack)
			if err := l.check(); err != nil || l.Duration != c.duration {
				t.Errorf("lease of %v, %v; want %v", l.Duration, err, c.duration)
			}
			if got := renewalOf(ack, l.Duration); got != c.renewing {
				t.Errorf("renewed after %v, want %v", got, c.renewing)
			}
		})
	}
}

func TestWriteResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for _, servers := range []string{"10.0.2.3 10.0.2.4", ""} {
		var list []netip.Addr
		want := ""
		for _, s := range strings.Fields(servers) {
			list = append(list, netip.MustParseAddr(s))
			want += "nameserver " + s + "\n"
		}
		if err := writeResolvers(path, list); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// What expires after the site was baked keeps no box from starting.
func TestReadSiteWithAnExpiredCertificate(t *testing.T) {
	m := &Machine{root: t.TempDir(), screen: &Screen{}, log: &logBuffer{}}
	if err := os.CopyFS(m.path(format.SiteDir), os.DirFS("../../configs/demo")); err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "expired"}, NotAfter: time.Now().Add(-time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(m.path(filepath.Join(format.SiteDir, "trust/bootstrap.pem")), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := provision.Load(os.DirFS(m.path(format.SiteDir))); err == nil {
		t.Fatal("this could be baked")
	}
	var b opened
	if err := m.readSite(&b); err != nil || len(b.site.Profiles) == 0 {
		t.Errorf("%+v, %v", b.site, err)
	}
}

func TestListenersAndURLs(t *testing.T) {
	all := listenerPorts(provision.Listeners{EST: true, SCEP: true, Console: true, Plain: true, Legacy: true, LegacySCEP: true})
	want := []listenerPort{{"est", 443}, {"scep", 8443}, {"console", 9443}, {"plain", 80}, {"legacy", 7443}, {"legacy_scep", 7444}}
	if diff := cmp.Diff(want, all, cmp.AllowUnexported(listenerPort{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantURLs := []pageURL{
		{"Console", "https://[2001:db8::7]:9443/"}, {"EST", "https://[2001:db8::7]/.well-known/est"},
		{"SCEP", "https://[2001:db8::7]:8443/scep"}, {"Plain HTTP", "http://[2001:db8::7]/"},
	}
	if diff := cmp.Diff(wantURLs, pageURLs(all, []string{"2001:db8::7/64 on eth0"}, "pki.example")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	on := listenerPorts(provision.Listeners{SCEP: true, Console: true, Plain: true})
	if got := listenerPorts(provision.Listeners{Console: true}); len(got) != 1 || got[0].port != 9443 {
		t.Errorf("console alone: %v", got)
	}
	if got := pageURLs(on, []string{"10.0.2.15/24 on eth0 (DHCP)"}, "pki.example"); got[0].URL != "https://10.0.2.15:9443/" {
		t.Errorf("with an address: %v", got)
	}
	if got := pageURLs(on, nil, "pki.example"); got[1].URL != "https://pki.example:8443/scep" {
		t.Errorf("without an address: %v", got)
	}
}

func TestCheckClock(t *testing.T) {
	built := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
	if got := checkClock(built.Add(time.Hour), built); got != nil {
		t.Errorf("good clock: %v", got)
	}
	got := checkClock(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), built)
	if len(got) != 1 || !strings.Contains(got[0].What, "2000-01-01 00:00 UTC") || got[0].Mend == "" {
		t.Errorf("clock of 2000: %v", got)
	}
}

func TestPowerKey(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		b := make([]byte, inputEventSize)
		binary.NativeEndian.PutUint16(b[16:], kind)
		binary.NativeEndian.PutUint16(b[18:], code)
		binary.NativeEndian.PutUint32(b[20:], value)
		return b
	}
	for name, c := range map[string]struct {
		events [][]byte
		want   int
	}{
		"press and release": {[][]byte{event(1, keyPower, 1), event(0, 0, 0), event(1, keyPower, 0)}, 1},
		"held":              {[][]byte{event(1, keyPower, 1), event(1, keyPower, 2)}, 1},
		"another key":       {[][]byte{event(1, 30, 1)}, 0},
		"not a key":         {[][]byte{event(3, keyPower, 1)}, 0},
	} {
		pressed := 0
		watchKeys(io.NopCloser(bytes.NewReader(bytes.Join(c.events, nil))), func() { pressed++ })
		if pressed != c.want {
			t.Errorf("%s: %d presses, want %d", name, pressed, c.want)
		}
	}
}

func TestLogBufferKeepsLastLines(t *testing.T) {
	var l logBuffer
	var passed []string
	l.forward(func(line string) { passed = append(passed, line) })
	for _, part := range []string{"one\ntw", "o\n", strings.Repeat("x", 5000) + "\nrest"} {
		if n, err := io.WriteString(&l, part); n != len(part) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	want := []string{"one", "two", strings.Repeat("x", logLine)}
	kept, forwarded := l.take()
	if !forwarded {
		t.Error("lines were passed on, and it says not")
	}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, passed); diff != "" {
		t.Errorf("passed on (-want +got):\n%s", diff)
	}
	io.WriteString(&l, strings.Repeat("\n", 10*logLines))
	if got, _ := l.take(); len(got) != logLines {
		t.Errorf("kept %d lines", len(got))
	}
}

func TestDescribe(t *testing.T) {
	for name, c := range map[string]struct {
		err                error
		what, mend, detail string
	}{
		"own":    {errors.Join(errors.New("first"), &Problem{What: "w", Mend: "m", Err: errors.New("cause")}), "W.", "M.", "cause"},
		"keys":   {errors.Join(&keys.Error{What: "w", Mend: "m", Err: errors.New("cause")}), "W.", "M.", "cause"},
		"others": {errors.New("mounting STATE: bad"), "The box could not go on: mounting STATE: bad.", sentence(mendReport), ""},
		"panic":  {guard(func() error { panic("no") }), "The box's own software failed: no.", sentence(mendReport), ""},
	} {
		wrong, detail := describe(c.err)
		if wrong.What != c.what || wrong.Mend != c.mend || detail != c.detail {
			t.Errorf("%s: %+v, %q", name, wrong, detail)
		}
	}
}

func TestWeighFindings(t *testing.T) {
	locked := tpm.Finding{What: "the TPM is locked", Mend: "clear it", NewKeysOnly: true}
	if conditions, err := weighFindings([]tpm.Finding{locked}); err != nil || len(conditions) != 1 || !strings.Contains(conditions[0].Mend, "do not clear") {
		t.Errorf("a locked TPM: %v, %v; want a condition and a boot that goes on", conditions, err)
	}
	old := tpm.Finding{What: "the TPM is of family 1.2", Mend: "another machine"}
	if _, err := weighFindings([]tpm.Finding{locked, old}); err == nil || err.Error() != old.What {
		t.Errorf("an unfit TPM: %v", err)
	} else {
		checkMend(t, err)
	}
	if conditions, err := weighFindings(nil); err != nil || len(conditions) != 0 {
		t.Errorf("a fit TPM: %v, %v", conditions, err)
	}
}
