// Command signetd is the enrollment service, in the image or on any Linux host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"signet.internal/appliance"
)

func main() {
	os.Exit(run())
}

func run() int {
	var o appliance.Options
	flag.StringVar(&o.ConfigDir, "config", "", "the site directory (site.yaml, profiles/, trust/)")
	flag.StringVar(&o.StateDir, "state", "", "directory for the store, created if absent")
	flag.StringVar(&o.TPM, "tpm", "", "swtpm:SOCKET or a device; without it a key holder's socket is inherited, as on a box")
	flag.StringVar(&o.ListenBase, "listen-base", "", "ADDRESS:PORT; listener n of the table est, scep, console, plain, legacy, legacy_scep listens on PORT+n, with PORT 0 on any that is free")
	flag.StringVar(&o.ReadyFile, "ready-file", "", "written once every listener accepts: one JSON object with the addresses")
	flag.BoolVar(&o.Confined, "confined", false, "give up all files but the two directories, which must exist, and all system calls the service has no use for; or do not start. For a box, where sockets are inherited")
	flag.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: signetd --config DIR --state DIR [--tpm swtpm:SOCKET|DEVICE] [--listen-base ADDRESS:PORT] [--ready-file FILE] [--confined]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || o.ConfigDir == "" || o.StateDir == "" {
		flag.Usage()
		return 2
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	o.Reload = reload
	err := appliance.Run(ctx, o)
	if err == nil || errors.Is(err, context.Canceled) {
		return 0
	}
	fmt.Fprintf(os.Stderr, "signetd: %v\n", err)
	var mend interface{ Mend() string }
	if errors.As(err, &mend) {
		fmt.Fprintf(os.Stderr, "  → %s\n", mend.Mend())
	}
	return 1
}
