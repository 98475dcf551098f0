package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"signet.internal/provision"
)

func newCheck(t *terminal) *cobra.Command {
	return &cobra.Command{
		Use:   "check DIR",
		Short: "find everything wrong with a site",
		Long: `Prints every problem of the site in DIR as file:line: what — mend and ends with exit code 1, or says
what a box baked from it would be. With --json it prints an array of {file, line, what, mend}, empty where
the site is sound.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error { return checkSite(t, a[0]) },
	}
}

func checkSite(t *terminal, dir string) error {
	site, err := provision.Load(os.DirFS(dir))
	var problems provision.Problems
	switch {
	case errors.As(err, &problems):
		var b strings.Builder
		for _, p := range problems {
			p.File = filepath.Join(dir, filepath.FromSlash(p.File))
			fmt.Fprintln(&b, p)
		}
		if err := t.result(problems, b.String()); err != nil {
			return err
		}
		count := "1 problem"
		if len(problems) > 1 {
			count = fmt.Sprintf("%d problems", len(problems))
		}
		return refuse(fmt.Errorf("%s: %s", dir, count), "mend what is listed and run `signet check` again")
	case err != nil:
		return fmt.Errorf("checking %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, secretsDir)); errors.Is(err, os.ErrNotExist) {
		t.notef("no signing keys in %s; `signet init --keys-only %s` makes them before a bake", filepath.Join(dir, secretsDir), dir)
	}
	return t.result(provision.Problems{}, describeSite(site))
}

// describeSite says what a box made from the site would be.
func describeSite(s *provision.Site) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s %s\n", label, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "%s %s, epoch %d: no problems\n", s.Name, s.Version, s.Epoch)
	if s.PublicHost != "" {
		line("reached at", "%s", s.PublicHost)
	}
	if s.Network.DHCP {
		line("network", "DHCP")
	} else {
		line("network", "%s, gateway %s, DNS %v", s.Network.Address, s.Network.Gateway, s.Network.DNS)
	}
	line("listeners", "%s", strings.Join(listenerNames(s.Listeners), ", "))
	if p := s.TrustedProxies; p != nil {
		line("proxies", "%v", p.Networks)
	}
	for _, a := range s.Authorities {
		line("authority", "%s: %s, %s, %s%s", a.Name, a.SubjectText, a.Algorithm, a.Protection, describeMode(a))
	}
	line("RA", "%s, %s, certificates for %d days", s.RA.Algorithm, s.RA.Protection, int(s.RA.Validity.Hours()/24))
	for _, p := range s.Profiles {
		name := p.Name
		if p.Default {
			name += " (default)"
		}
		what := "authority " + p.Authority
		if p.SCEP.On {
			what += ", challenges " + strings.Join(p.SCEP.Challenges.Kinds(), ", ")
		}
		if p.EST != nil {
			what += ", EST with " + strings.Join(p.EST.Modes(), ", ")
		}
		line("profile", "%s: %s", name, what)
	}
	for _, weakness := range s.Weaknesses() {
		line("weak", "%s", weakness)
	}
	return b.String()
}

// describeMode says what has to happen before an authority works, and what it leaves out.
func describeMode(a provision.Authority) string {
	what := ""
	if a.Mode == provision.ModeSubordinate {
		what += ", subordinate: issues once its chain is installed"
	}
	if !a.OCSP {
		what += ", no OCSP"
	}
	return what
}

func listenerNames(l provision.Listeners) []string {
	var names []string
	for _, listener := range []struct {
		on   bool
		name string
	}{{l.EST, "est :443"}, {l.SCEP, "scep :8443"}, {l.Console, "console :9443"}, {l.Plain, "plain :80"}, {l.Legacy, "legacy :7443"}, {l.LegacySCEP, "legacy_scep :7444"}} {
		if listener.on {
			names = append(names, listener.name)
		}
	}
	return names
}
