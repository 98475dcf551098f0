// Package box is what the image's /init does: it measures the boot, opens the keys and the state
// in the order that makes a foreign system unable to, and supervises the service.
//
// The order is the protection. Keys open only while PCR 11 says enter-initrd; nothing of the
// network is touched before it says leave-initrd, and then nothing opens them again in this boot.
// Which system may say so is Secure Boot's to decide: without it, one made for the purpose can measure
// what this one measures, and the order keeps out only what this one lets in.
package box

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The processes that are this binary (see Main).
const (
	modeShim   = "shim"
	modeHolder = "keyholder"
	modeDHCP   = "dhcp"
)

// Main is the program: /init without arguments as PID 1, else one of the processes it starts. It
// returns the exit status; as PID 1 it does not return.
func Main(args []string, out, errOut io.Writer) int {
	mode := ""
	if len(args) > 1 {
		mode = args[1]
	}
	var err error
	switch {
	case mode == modeShim:
		err = runShim(args[2:])
	case mode == modeHolder:
		err = runHolder()
	case mode == modeDHCP && len(args) == 3:
		err = runDHCP(args[2], out)
	case os.Getpid() == 1:
		NewMachine().Run()
	default:
		fmt.Fprintln(errOut, "boxinit: this is the /init of a box; it runs as the first process of its image only")
		return 2
	}
	if err != nil {
		fmt.Fprintf(errOut, "boxinit: %v\n", err)
		return 1
	}
	return 0
}

// Machine is the computer the box runs on, as far as boxinit touches it.
type Machine struct {
	root   string // before every path; "" but in tests
	screen *Screen
	log    *logBuffer // what boxinit and its children say

	mu      sync.Mutex
	stops   []func() // undo what runs, last first; run by stopAll
	halting bool
	off     sync.Once
}

// NewMachine is the computer this process is PID 1 of.
func NewMachine() *Machine {
	return &Machine{screen: &Screen{}, log: &logBuffer{}}
}

func (m *Machine) path(p string) string { return filepath.Join(m.root, p) }

// onStop remembers what is to be stopped when the box halts or is switched off.
func (m *Machine) onStop(stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stops = append(m.stops, stop)
}

// say shows what the box is doing.
func (m *Machine) say(state string) {
	m.screen.Update(func(p *Page) { p.State = state })
}

// note is for whoever reads the serial line while something is wrong.
func (m *Machine) note(format string, args ...any) {
	m.screen.serialLine("boxinit: " + clean(fmt.Sprintf(format, args...)))
}

// dumpLog puts what boxinit's children said last on the serial line, where whoever looks for a cause
// has more room than on the screen.
func (m *Machine) dumpLog() (last string) {
	lines, forwarded := m.log.take()
	for _, last = range lines {
		if !forwarded {
			m.screen.serialLine(quoted(last))
		}
	}
	return last
}

// quoted is a line of a child for the serial line: nothing a child says begins like a line of boxinit.
func quoted(line string) string { return "| " + clean(line) }

// Run boots and never returns: PID 1 must not end. Whatever happens, a person sees why on the
// screen and the power button works.
func (m *Machine) Run() {
	if err := guard(m.boot); err != nil {
		m.halt(err)
	}
	select {}
}

// halt shows why the box does not go on, and stops what runs: a service without its key holder
// could only refuse. It is the end of a boot, not of the machine: the screen stays, nothing restarts
// by itself, and the disk is left alone. What is stopped must not wait for the caller of halt.
func (m *Machine) halt(err error) {
	m.mu.Lock()
	first := !m.halting
	m.halting = true
	m.mu.Unlock()
	if !first {
		return
	}
	wrong, detail := describe(err)
	m.dumpLog()
	m.screen.Update(func(p *Page) {
		p.State, p.Halted, p.Detail = "stopped", &wrong, detail
	})
	m.screen.machineLine("halted", wrong)
	m.stopAll()
}

// stopAll stops what runs, the last started first. A second call finds nothing left to stop.
func (m *Machine) stopAll() {
	m.mu.Lock()
	stops := m.stops
	m.stops = nil
	m.mu.Unlock()
	for i := len(stops) - 1; i >= 0; i-- {
		guard(func() error { stops[i](); return nil })
	}
}

// powerOff stops everything in order and switches the machine off.
func (m *Machine) powerOff() {
	m.off.Do(func() {
		m.screen.Update(func(p *Page) { p.State = "switching off" })
		m.mu.Lock()
		m.halting = true // what ends from here on ends because it was told to
		m.mu.Unlock()
		m.stopAll()
		unix.Sync()
		if err := unix.Unmount(m.path(stateMount), 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			m.note("unmounting STATE: %v", err)
		}
		m.screen.drain(2 * time.Second)
		err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		m.say(fmt.Sprintf("stopped; the machine does not switch off by itself (%v)", err))
	})
}

// stopping says whether the box is on its way down or has halted.
func (m *Machine) stopping() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.halting
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// procKiB reads "name: N kB" from a file of /proc; 0 where it is not there.
func procKiB(path, name string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return n
		}
	}
	return 0
}
