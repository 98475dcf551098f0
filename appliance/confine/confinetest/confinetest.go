// Package confinetest says whether tests can run processes that confine themselves.
package confinetest

import (
	"runtime/debug"
	"testing"

	kernel "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"signet.internal/appliance/needtest"
)

// Need skips the test where this binary, or this machine's kernel, cannot confine a process; where
// CI is set it fails instead.
func Need(t testing.TB) {
	t.Helper()
	why := ""
	if abi, err := kernel.LandlockGetABIVersion(); err != nil || abi < 1 {
		why = "this kernel has no Landlock"
	}
	// With cgo, Landlock reaches other threads by way of /proc, which a process that is undumpable, or in
	// another PID namespace than its /proc, cannot read.
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "CGO_ENABLED" && s.Value != "0" {
			why = "built with cgo, as the programs of a box never are: set CGO_ENABLED=0"
		}
	}
	if why != "" {
		needtest.Missing(t, why)
	}
}
