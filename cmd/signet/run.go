package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"signet.internal/image"
	"signet.internal/image/vm"
)

const (
	// readyPatience covers a first boot on a busy computer without KVM.
	readyPatience = 10 * time.Minute
	// shutdownPatience is how long a guest may take to stop its service and unmount its disk.
	shutdownPatience = 60 * time.Second
	maxCABundle      = 1 << 20 // bytes
	caBundleFile     = "ca-bundle.pem"
)

// endpoints is what `signet run --json` prints; a key is absent while its listener is off. The
// values are scheme://127.0.0.1:port.
type endpoints struct {
	EST        string `json:"est,omitempty"`         // :443
	SCEP       string `json:"scep,omitempty"`        // :8443
	Console    string `json:"console,omitempty"`     // :9443
	SCEPPlain  string `json:"scep_plain,omitempty"`  // :80
	PKI        string `json:"pki,omitempty"`         // :80
	OCSP       string `json:"ocsp,omitempty"`        // :80
	Legacy     string `json:"legacy,omitempty"`      // :7443
	LegacySCEP string `json:"legacy_scep,omitempty"` // :7444
	ClaimCode  string `json:"claim_code"`            // "" once claimed
	TLSSHA256  string `json:"tls_sha256"`            // lower-case hex of the console leaf's DER
	CABundle   string `json:"ca_bundle"`             // path of a PEM file: TLS root and CA roots

	moved   bool   // a listener has another port here than on the box
	started string // how the box started, in a line
}

// runOptions is how `signet run` was called.
type runOptions struct {
	out           string
	detach, fresh bool
}

func newRun(t *terminal) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run OUT",
		Short: "boot a baked image in a virtual machine",
		Long: `Boots OUT/signet.img under QEMU with UEFI firmware and a software TPM, waits until the box is ready, prints
where it is reached, and stays until Ctrl-C shuts it down (or returns with --detach; 'signet stop OUT' shuts it
down then). Disk and TPM are kept in OUT/vm: the next run finds the same box, also after another bake into OUT.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			o.out = a[0]
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runImage(ctx, t, o)
		},
	}
	cmd.Flags().BoolVar(&o.detach, "detach", false, "return once the box is ready and leave it running")
	cmd.Flags().BoolVar(&o.fresh, "fresh", false, "start over with an empty disk and a new TPM")
	return cmd
}

func runImage(ctx context.Context, t *terminal, o runOptions) error {
	m, err := image.ReadManifest(o.out)
	if errors.Is(err, image.ErrNoImage) {
		return refuse(err, fmt.Sprintf("`signet bake DIR -o %s` bakes one, `make image` the demo's", o.out))
	} else if err != nil {
		return err
	}
	p := t.progress()
	machine, err := vm.Start(ctx, vm.Options{Out: o.out, Fresh: o.fresh, Progress: p.next})
	if err != nil {
		p.done()
		return startRefusal(o.out, err)
	}
	p.next("waiting for the firmware (" + machine.Accelerator() + ")")
	e, err := awaitBox(ctx, p, machine, m)
	p.done()
	if err != nil {
		return errors.Join(boxRefusal(o.out, machine, err), shutdown(t, machine))
	}
	t.notef("%s", e.started)
	if err := t.result(e, describeBox(m, e)); err != nil {
		return errors.Join(err, shutdown(t, machine))
	}
	if o.detach {
		t.notef("running in the background; `signet stop %s` shuts it down", o.out)
		return nil
	}
	t.notef("Ctrl-C shuts the box down")
	if err := machine.Wait(ctx); err == nil {
		t.notef("the machine was switched off; its console is in %s", machine.SerialPath())
		return machine.Kill() // swtpm and sockets
	}
	return shutdown(t, machine)
}

// startRefusal turns an error of vm.Start into what a person can do.
func startRefusal(out string, err error) error {
	var part *vm.MissingError
	switch {
	case errors.As(err, &part):
		return missing(err, "apt-get install "+part.Package)
	case errors.Is(err, vm.ErrRunning):
		return refuse(err, fmt.Sprintf("`signet stop %s` shuts it down", out))
	case errors.Is(err, context.Canceled):
		return refuse(errors.New("interrupted before the box was started"), "run it again")
	}
	return refuse(err, fmt.Sprintf("the machine's logs are in %s", filepath.Join(out, "vm")))
}

// boxRefusal says why a started box did not become ready.
func boxRefusal(out string, machine *vm.Machine, err error) error {
	var halted *vm.HaltedError
	switch {
	case errors.As(err, &halted):
		return refuse(err, halted.Mend)
	case errors.Is(err, context.Canceled):
		return refuse(errors.New("interrupted before the box was ready"), "run it again; what the box stored is kept")
	}
	return refuse(err, fmt.Sprintf("the whole console is in %s; `signet run %s --fresh` starts over", machine.SerialPath(), out))
}

// awaitBox waits until the box is ready and fetches its CA bundle.
func awaitBox(ctx context.Context, p *progress, machine *vm.Machine, m *image.Manifest) (*endpoints, error) {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	ready, err := machine.WaitReady(ctx, func(state string) { p.next("the box: " + state) })
	if err != nil {
		return nil, err
	}
	e := &endpoints{ClaimCode: ready.ClaimCode, TLSSHA256: ready.TLSSHA256}
	e.started = fmt.Sprintf("ready at %.1f s of guest uptime; guest memory %d of %d MiB used; signetd %d MiB resident",
		ready.UptimeSeconds, (ready.MemoryTotal-ready.MemoryAvailable)>>10, ready.MemoryTotal>>10, ready.ServiceResident>>10)
	on := func(name string) bool { return slices.Contains(m.Listeners, name) }
	for name, port := range map[string]int{"est": 443, "scep": 8443, "console": 9443, "plain": 80, "legacy": 7443, "legacy_scep": 7444} {
		e.moved = e.moved || on(name) && !strings.HasSuffix(machine.Addr(port), fmt.Sprintf(":%d", port))
	}
	if on("est") {
		e.EST = "https://" + machine.Addr(443)
	}
	if on("scep") {
		e.SCEP = "https://" + machine.Addr(8443)
	}
	if on("plain") {
		e.SCEPPlain = "http://" + machine.Addr(80)
		e.PKI, e.OCSP = e.SCEPPlain, e.SCEPPlain
	}
	if on("legacy") {
		e.Legacy = "https://" + machine.Addr(7443)
	}
	if on("legacy_scep") {
		e.LegacySCEP = "https://" + machine.Addr(7444)
	}
	if on("console") {
		e.Console = "https://" + machine.Addr(9443)
		bundle, err := fetchCABundle(ctx, e.Console, ready.TLSSHA256)
		if err != nil {
			return nil, fmt.Errorf("fetching the box's CA bundle: %w", err)
		}
		e.CABundle = filepath.Join(machine.Dir(), caBundleFile)
		if err := os.WriteFile(e.CABundle+".new", bundle, 0o644); err != nil {
			return nil, err
		}
		if err := os.Rename(e.CABundle+".new", e.CABundle); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// fetchCABundle gets the PEM bundle from a console whose certificate has the given hash: the serial
// console, not the network, says which box this is.
func fetchCABundle(ctx context.Context, console, tlsSHA256 string) ([]byte, error) {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the comparison below
		VerifyConnection: func(cs tls.ConnectionState) error {
			sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
			if got := hex.EncodeToString(sum[:]); got != tlsSHA256 {
				return fmt.Errorf("the console's certificate is %s, the box's screen says %s", got, tlsSHA256)
			}
			return nil
		},
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, console+"/api/v1/ca-bundle", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCABundle))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "BEGIN CERTIFICATE") {
		return nil, fmt.Errorf("the console answered %s", resp.Status)
	}
	return body, nil
}

// shutdown presses the power button and waits; a second Ctrl-C cuts the power.
func shutdown(t *terminal, machine *vm.Machine) error {
	if !machine.Running() {
		return machine.Kill()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, shutdownPatience)
	defer cancel()
	p := t.progress()
	defer p.done()
	p.next("shutting the box down")
	if err := machine.Shutdown(ctx); err != nil {
		return refuse(err, "nothing the box acknowledged is lost; it checks its disk when it starts again")
	}
	return nil
}

// describeBox says where the box is and how a device enrolls.
func describeBox(m *image.Manifest, e *endpoints) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s %s is ready\n\n", m.Name, m.Version)
	for _, x := range []struct{ label, value string }{
		{"console", e.Console}, {"EST", e.EST}, {"EST, TLS 1.2 too", e.Legacy},
		{"SCEP", e.SCEP}, {"SCEP, TLS 1.2 too", e.LegacySCEP}, {"plain HTTP", e.SCEPPlain}, {"claim code", e.ClaimCode}, {"TLS SHA-256", e.TLSSHA256}, {"CA bundle", e.CABundle},
	} {
		if x.value != "" {
			fmt.Fprintf(&b, "  %-17s %s\n", x.label, x.value)
		}
	}
	if e.ClaimCode != "" && e.Console != "" {
		fmt.Fprintf(&b, "\nMake the first administrator: open %s in a browser, or\n\n  %s claim %s --ca-bundle %s --code %s --user NAME\n", strings.Replace(e.Console, "127.0.0.1", "localhost", 1), os.Args[0], e.Console, e.CABundle, e.ClaimCode)
	}
	if command := enrollCommand(m, e); command != "" {
		fmt.Fprintf(&b, "\nEnroll a device (Debian package strongswan-pki):\n\n%s", command)
	}
	if e.moved {
		fmt.Fprintf(&b, "\nPorts of the box are taken here, or only root has them: where the console shows the box's own address, use the one above.\n")
	}
	return b.String()
}

// enrollCommand is a script for strongSwan's pki that enrolls a device by the first profile served
// over plain HTTP, the default one if it can be; "" if there is none.
func enrollCommand(m *image.Manifest, e *endpoints) string {
	var profile *image.Profile
	for i, p := range m.Profiles {
		if p.PlainSCEP && (profile == nil || p.Default) {
			profile = &m.Profiles[i]
		}
	}
	if profile == nil {
		return ""
	}
	challenge := cmp.Or(profile.PublicChallenge, "CHALLENGE")
	url := e.SCEPPlain + "/scep/" + profile.Name
	return strings.Join([]string{
		"  pki --gen --type rsa --size 2048 --outform pem > device.key",
		"  pki --scepca --url " + url + " --caout ca.crt --raout ra.crt --outform pem --force",
		"  pki --scep --url " + url + " --in device.key --dn \"CN=device-1\" --password " + challenge + " \\",
		"      --cacert-enc ra.crt --cacert-sig ra.crt --cacert ca.crt --outform pem > device.crt", "",
	}, "\n")
}
