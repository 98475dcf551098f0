// Package appliance puts the enrollment service together: keys, store, engine, protocols, console
// and the listeners they answer on.
package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"signet.internal/appliance/confine"
	"signet.internal/provision"
)

// Options are signetd's command line.
type Options struct {
	ConfigDir  string // the site directory
	StateDir   string // created if absent
	TPM        string // "swtpm:SOCKET" or a device; empty on a box, where the key holder's socket is inherited
	ListenBase string // "ADDRESS:PORT", port 0: any free ones; empty: the ports of the listener table, or inherited sockets
	ReadyFile  string // see Ready; empty: none is written
	Confined   bool   // confine the process first (see confine); StateDir exists, the rest is inherited as on a box

	Reload <-chan os.Signal // each value has the site's trust/ read again; nil: never
	Log    *slog.Logger     // where requests and events go
}

// mendable is an error with the action that mends it.
type mendable struct {
	err  error
	mend string
}

func (e *mendable) Error() string { return e.err.Error() }
func (e *mendable) Unwrap() error { return e.err }
func (e *mendable) Mend() string  { return e.mend }

// Run loads the site, opens keys and state and serves until ctx ends.
func Run(ctx context.Context, o Options) error {
	load := provision.Load
	if o.TPM == "" {
		load = provision.LoadBaked // boxinit checked the image; what expired since must not stop a box
	}
	site, err := load(os.DirFS(o.ConfigDir))
	if err != nil {
		return &mendable{fmt.Errorf("loading site %s:\n%w", o.ConfigDir, err), "mend what is listed, then run `signet check " + o.ConfigDir + "`"}
	}
	// Only the site says how; on a box it was measured.
	if o.Confined {
		if err := enclose(o, site); err != nil {
			return fmt.Errorf("confining the service: %w", err)
		}
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("creating state directory: %w", err)
	}
	inherited, err := inheritDescriptors()
	if err != nil {
		return err
	}
	c := Config{Site: site, Files: os.DirFS(o.ConfigDir), Reload: o.Reload, StateDir: o.StateDir, Log: o.Log, Now: time.Now, ReadyFile: o.ReadyFile}
	if o.TPM == "" {
		if c.Keys, c.Boot, err = inherited.fromBox(); err != nil {
			return err
		}
	} else {
		host, err := openHostKeys(o.TPM, o.StateDir, site)
		if err != nil {
			return err
		}
		defer host.Close()
		c.Keys, c.Boot, c.Initialised = host.Client, host.boot, host.Vault.MarkInitialised
	}
	c.Listeners, err = listen(site.Listeners, inherited.listeners, o.ListenBase)
	if err != nil {
		return err
	}
	a, err := New(c)
	if err != nil {
		return errors.Join(err, closeAll(c.Listeners))
	}
	return a.Serve(ctx)
}

// resolverDir holds resolv.conf, which boxinit replaces when the network's name servers change. On a box
// nothing in it is secret.
const resolverDir = "/etc"

// enclose leaves the process the site, the state and the service's system calls.
func enclose(o Options, site *provision.Site) error {
	paths := confine.Paths{Read: []string{o.ConfigDir}, Write: []string{o.StateDir}}
	outgoing := asksOthers(site)
	if outgoing {
		paths.Read = append(paths.Read, resolverDir)
	}
	abi, err := confine.Landlock(paths)
	if err != nil {
		return err
	}
	if err := confine.Seccomp(confine.Signetd(outgoing)); err != nil {
		return err
	}
	o.Log.Info("confined", "landlock_abi", abi, "outgoing", outgoing)
	return nil
}

// asksOthers says whether the site has the audit log sent elsewhere, or a profile asks a service on the
// network before it issues.
func asksOthers(site *provision.Site) bool {
	return site.Audit.Syslog != nil || slices.ContainsFunc(site.Profiles, func(p provision.Profile) bool {
		return p.Compliance != nil || p.SCEP.Challenges.Intune != nil
	})
}
