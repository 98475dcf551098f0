package box

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/handover"
	"signet.internal/image/format"
	"signet.internal/provision"
)

// Limits on the service.
const (
	serviceWatchdog = time.Minute
	serviceStart    = 5 * time.Minute // a first start makes certificates with a slow TPM
	serviceStop     = 10 * time.Second
)

// listenerPorts are the listeners a site can switch on with their ports, by name.
func listenerPorts(l provision.Listeners) []listenerPort {
	var on []listenerPort
	for _, p := range []struct {
		on bool
		listenerPort
	}{
		{l.EST, listenerPort{"est", 443}},
		{l.SCEP, listenerPort{"scep", 8443}},
		{l.Console, listenerPort{"console", 9443}},
		{l.Plain, listenerPort{"plain", 80}},
		{l.Legacy, listenerPort{"legacy", 7443}},
		{l.LegacySCEP, listenerPort{"legacy_scep", 7444}},
	} {
		if p.on {
			on = append(on, p.listenerPort)
		}
	}
	return on
}

type listenerPort struct {
	name string
	port uint16
}

// service is the running service and what boxinit does with what it says.
type service struct {
	m         *Machine
	b         *opened
	report    []byte // JSON handover.Boot
	claimCode string
	listeners []NamedFile
	ports     []listenerPort

	// Owned, as b and report now are, by the supervisor's goroutine.
	ready     bool
	openPorts func() error // lets the network reach the listeners; nil once it does
}

// serve brings up the network and the service. The network comes first but waits for nobody:
// listeners take any address, and a box without a cable still says so on its screen.
func (m *Machine) serve(b *opened) error {
	m.say("starting the service")
	s := &service{m: m, b: b, ports: listenerPorts(b.site.Listeners)}
	var err error
	if s.claimCode, err = newClaimCode(rand.Reader); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.openPorts = m.startNetwork(ctx, b, s.ports)
	if s.report, err = json.Marshal(s.bootReport()); err != nil {
		cancel()
		return fmt.Errorf("reporting the boot: %w", err)
	}
	if s.listeners, err = openListeners(s.ports); err != nil {
		cancel()
		return err
	}
	m.screen.Update(func(p *Page) { p.Boot = b.conditions })

	sup, err := newSupervisor(ServiceConfig{
		Command: func() *exec.Cmd {
			return sandbox{uid: uidSignetd}.command(format.SignetdPath,
				"--config", format.SiteDir, "--state", filepath.Join(stateMount, signetdDir), "--confined")
		},
		Inherit:      s.inherit,
		Observe:      s.observe,
		UID:          uidSignetd,
		NotifyPath:   m.path(filepath.Join(runDir, "notify")),
		Log:          m.log,
		Watchdog:     serviceWatchdog,
		StartTimeout: serviceStart,
		StopTimeout:  serviceStop,
		Backoff:      defaultBackoff,
	})
	if err != nil {
		cancel()
		return err
	}
	go m.feedWatchdog(ctx, func() bool { return m.stopping() || sup.alive() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := guard(func() error { sup.run(ctx); return nil }); err != nil {
			go m.halt(err)
		}
	}()
	m.onStop(func() { cancel(); <-done })
	return nil
}

// bootReport is what the service learns about this boot.
func (s *service) bootReport() handover.Boot {
	b := s.b
	return handover.Boot{
		Kind:         handover.KindBox,
		Provisioning: b.firstBoot,
		ClaimCode:    s.claimCode,
		TimeSource:   "rtc",
		TimeFloor:    b.release.BuildTime,
		Version:      b.release.Version,
		Epoch:        b.release.Epoch,
		Debug:        b.release.Debug,
		SecureBoot:   b.secureBoot,
		PCR11:        hex.EncodeToString(b.pcr11),
		TPM:          b.tpm,
		Conditions:   b.conditions,
	}
}

// openListeners binds the ports, which takes root, once: a restarted service gets them again and
// connections wait meanwhile.
func openListeners(ports []listenerPort) ([]NamedFile, error) {
	var files []NamedFile
	for _, p := range ports {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(p.port)})
		if err != nil {
			return nil, fmt.Errorf("opening listener %s: %w", p.name, err)
		}
		f, err := l.File()
		if err = errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("opening listener %s: %w", p.name, err)
		}
		files = append(files, NamedFile{Name: p.name, File: f})
	}
	return files, nil
}

// inherit opens what one start of the service gets besides the listeners.
func (s *service) inherit() ([]NamedFile, func(), error) {
	holder, err := s.b.holder.dial()
	if err != nil {
		return nil, nil, err
	}
	report, err := memoryFile(handover.FDBoot, s.report)
	if err != nil {
		return nil, nil, errors.Join(err, holder.Close())
	}
	files := append(slices.Clone(s.listeners), NamedFile{handover.FDKeys, holder}, NamedFile{handover.FDBoot, report})
	return files, func() { holder.Close(); report.Close() }, nil
}

// readyLine is what `signet run` waits for on the serial line.
type readyLine struct {
	Name          string  `json:"name"`
	Version       string  `json:"version"`
	ClaimCode     string  `json:"claim_code"` // "" once claimed
	TLSSHA256     string  `json:"tls_sha256"`
	UptimeSeconds float64 `json:"uptime_seconds"`

	// In KiB: all of the machine's memory, what could still be given out, and what the service has resident.
	MemoryTotal     int `json:"memory_total_kib"`
	MemoryAvailable int `json:"memory_available_kib"`
	ServiceResident int `json:"service_resident_kib"`
}

// observe shows what the service says, and records the first time it is ready.
func (s *service) observe(state ServiceState) {
	if s.m.stopping() {
		return
	}
	var wrong []handover.Condition
	if state.Ready && s.b.firstBoot {
		if err := s.settle(); err != nil {
			go s.m.halt(err) // which stops the caller
			return
		}
	}
	if state.Retry > 0 {
		wrong = append(wrong, s.ended(state))
	}
	s.m.screen.Update(func(p *Page) {
		p.State = stateWords(state)
		p.TLSSHA256, p.Claimed, p.ClaimCode = state.Report.TLSSHA256, state.Report.Claimed, ""
		if state.Ready && !state.Report.Claimed {
			p.ClaimCode = s.claimCode
		}
		p.Service, p.Said = wrong, state.Report.Condition
	})
	if state.Ready && !s.ready {
		s.announce(state)
	}
	s.ready = state.Ready
}

// settle ends a first boot. That the box is set up is recorded before anybody can reach the service:
// were it not, a box that has certified devices would take lost records for records never made, in
// this boot or a later one, and begin anew with the same keys.
func (s *service) settle() error {
	if err := s.b.vault.MarkInitialised(); err != nil {
		return fmt.Errorf("recording that the box is set up: %w", err)
	}
	s.b.firstBoot = false
	var err error
	if s.report, err = json.Marshal(s.bootReport()); err != nil { // for the next start of the service
		return fmt.Errorf("reporting the boot: %w", err)
	}
	if s.openPorts == nil {
		return nil
	}
	err, s.openPorts = s.openPorts(), nil
	return err
}

func (s *service) announce(state ServiceState) {
	line := readyLine{
		Name: s.b.release.Name, Version: s.b.release.Version, ClaimCode: s.claimCode,
		TLSSHA256: state.Report.TLSSHA256, UptimeSeconds: uptime().Round(10 * time.Millisecond).Seconds(),
		MemoryTotal:     procKiB("/proc/meminfo", "MemTotal"),
		MemoryAvailable: procKiB("/proc/meminfo", "MemAvailable"),
		ServiceResident: procKiB(fmt.Sprintf("/proc/%d/status", state.PID), "VmRSS"),
	}
	if state.Report.Claimed {
		line.ClaimCode = ""
	}
	s.m.screen.machineLine("ready", line)
}

// ended describes the end of the service for the screen.
func (s *service) ended(state ServiceState) handover.Condition {
	what := state.Reason
	if last := s.m.dumpLog(); last != "" {
		what += ": " + last
	}
	return shown("the enrollment service does not run: "+what,
		fmt.Sprintf("it is started again by itself (attempt %d, %v after the last); if it does not come up, mend what the reason says, bake again and flash", state.Failures+1, state.Retry))
}

func stateWords(state ServiceState) string {
	switch {
	case state.Retry > 0:
		return "the service is down and will be started again"
	case state.Ready:
		return "ready"
	case state.Report.Status != "":
		return "starting the service: " + state.Report.Status
	}
	return "starting the service"
}

// startNetwork sets the packet filter and then configures the network. Without the filter the
// network stays down: it is part of what the box promises, and a kernel without it is a bad image.
// In a first boot the listeners stay closed to the network until openPorts is called.
func (m *Machine) startNetwork(ctx context.Context, b *opened, on []listenerPort) (openPorts func() error) {
	if err := raiseLoopback(); err != nil {
		m.note("%v", err)
	}
	var ports []uint16
	for _, p := range on {
		ports = append(ports, p.port)
	}
	first := ports
	if b.firstBoot {
		first, openPorts = nil, func() error { return setFirewall(ports) }
	}
	if err := setFirewall(first); err != nil {
		m.note("%v", err)
		b.conditions = append(b.conditions, shown("the kernel did not take the packet filter's rules, so the network stays down",
			"bake the image on a base whose kernel modules include nf_tables and nft_ct, and flash it"))
		return nil
	}
	n := &network{
		site: b.site.Network, log: m.log, resolv: m.path("/etc/resolv.conf"),
		observe: func(addresses []string, wrong *handover.Condition) {
			m.screen.Update(func(p *Page) {
				p.Addresses, p.Network = addresses, wrong
				p.URLs = pageURLs(on, addresses, b.site.PublicHost)
			})
		},
	}
	go func() {
		if err := guard(func() error { n.run(ctx); return nil }); err != nil {
			m.halt(err)
		}
	}()
	return openPorts
}

// pageURLs are what a person types, the console first; with an address as host, or by the site's public
// name while there is none. The legacy listeners are not among them: they serve the same under other ports, and
// the screen has room for what most need.
func pageURLs(on []listenerPort, addresses []string, publicHost string) []pageURL {
	host := publicHost
	if len(addresses) > 0 {
		if prefix, err := netip.ParsePrefix(firstWord(addresses[0])); err == nil {
			host = prefix.Addr().String()
		}
	}
	if host == "" {
		return nil
	}
	var urls []pageURL
	for _, u := range []struct{ listener, name, url string }{
		{"console", "Console", fmt.Sprintf("https://%s/", net.JoinHostPort(host, "9443"))},
		{"est", "EST", fmt.Sprintf("https://%s/.well-known/est", bracketed(host))},
		{"scep", "SCEP", fmt.Sprintf("https://%s/scep", net.JoinHostPort(host, "8443"))},
		{"plain", "Plain HTTP", fmt.Sprintf("http://%s/", bracketed(host))},
	} {
		if slices.ContainsFunc(on, func(p listenerPort) bool { return p.name == u.listener }) {
			urls = append(urls, pageURL{u.name, u.url})
		}
	}
	return urls
}

// bracketed is a host as URLs without a port have it: IPv6 addresses in brackets (RFC 3986 §3.2.2).
func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}
