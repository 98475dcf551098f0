package box

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Hardware watchdog: the machine resets when it is not fed for watchdogTimeout.
const (
	watchdogTimeout = 60 // seconds
	watchdogFeed    = 10 * time.Second
)

// feedWatchdog feeds the machine's watchdog, where it has one, for as long as alive says so. alive
// is false only when boxinit itself no longer does its work: a service that does not come up is a
// state with a name on the screen, which a reset would not mend. At the end of ctx the watchdog is
// switched off, so that an orderly stop may take its time.
func (m *Machine) feedWatchdog(ctx context.Context, alive func() bool) {
	f, err := os.OpenFile(m.path("/dev/watchdog"), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// A driver that cannot change its timeout keeps its own, which is longer than watchdogFeed.
	unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, watchdogTimeout)
	for {
		if alive() {
			f.WriteString("\x00")
		}
		if !sleep(ctx, watchdogFeed) {
			f.WriteString("V") // magic close: Documentation/watchdog/watchdog-api.rst
			return
		}
	}
}
