package keys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HardenProcess keeps the memory of the calling process to itself: no core dump, no debugger or
// /proc/PID/mem of the same uid, and no page of it written to swap. The last needs an unlimited
// RLIMIT_MEMLOCK, which root gets by itself and an unprivileged holder from who started it; without,
// memory is left unlocked, because a limited lock makes the Go runtime fail at its next allocation.
func HardenProcess() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switching core dumps off: %w", err)
	}
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		var have unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &have); err != nil {
			return fmt.Errorf("reading the limit of locked memory: %w", err)
		}
		if have.Cur != unix.RLIM_INFINITY {
			return nil
		}
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("locking memory: %w", err)
	}
	return nil
}
