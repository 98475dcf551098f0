package box

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/confine"
)

// Users of the processes below boxinit. The image has no passwd file: nothing asks for names.
const (
	uidHolder  = 901
	uidSignetd = 902
	uidDHCP    = 903
)

// selfPath is this binary, also when the file it was started from is gone.
const selfPath = "/proc/self/exe"

// sandbox says what a child keeps of boxinit's rights.
type sandbox struct {
	uid       int  // user and group; 0 keeps the caller's, which only a host's test wants
	netRaw    bool // CAP_NET_RAW and nothing else
	lockPages bool // no limit on locked memory, and never killed for want of it
}

// command runs program under s: this binary again as "shim", which gives rights up and then
// executes program in the same process, so the pid boxinit started is the pid of program. That is
// the only place LISTEN_PID can be known before the program runs (sd_listen_fds(3)).
//
// A child with a user of its own is the first process of a PID namespace: it can signal nothing
// outside, and whatever it left behind ends with it. A taken-over service would otherwise leave a
// process that outlives its restart, with its sockets and its connection to the key holder.
func (s sandbox) command(program string, args ...string) *exec.Cmd {
	shim := []string{"shim", "-uid", strconv.Itoa(s.uid)}
	if s.netRaw {
		shim = append(shim, "-net-raw")
	}
	if s.lockPages {
		shim = append(shim, "-lock-pages")
	}
	shim = append(shim, "--", program)
	cmd := exec.Command(selfPath, append(shim, args...)...)
	if s.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	}
	return cmd
}

// runShim gives up rights and becomes the program in its arguments; it returns only on failure.
//
// Capabilities, no_new_privs and the raw set*id calls belong to one thread: the goroutine stays on
// its thread until execve, which ends every other thread.
func runShim(args []string) error {
	runtime.LockOSThread()
	var s sandbox
	flags := flag.NewFlagSet("shim", flag.ContinueOnError)
	flags.IntVar(&s.uid, "uid", 0, "user and group of the program")
	flags.BoolVar(&s.netRaw, "net-raw", false, "keep CAP_NET_RAW")
	flags.BoolVar(&s.lockPages, "lock-pages", false, "allow locking memory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("shim: no program given")
	}
	if err := s.enter(); err != nil {
		return fmt.Errorf("giving up rights: %w", err)
	}
	pid := strconv.Itoa(os.Getpid())
	env := os.Environ()
	for _, name := range []string{"LISTEN_PID", "WATCHDOG_PID"} {
		env = append(env, name+"="+pid)
	}
	program := flags.Arg(0)
	return fmt.Errorf("executing %s: %w", program, unix.Exec(program, flags.Args(), env))
}

// maxTasks bounds processes and threads of each user: many times what a Go program needs, and far from
// what keeps boxinit from starting another.
const maxTasks = 512

// enter gives up everything s does not keep.
func (s sandbox) enter() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: maxTasks, Max: maxTasks}); err != nil {
		return fmt.Errorf("bounding the number of threads: %w", err)
	}
	if s.lockPages {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
			return fmt.Errorf("allowing locked memory: %w", err)
		}
		// What nothing can start again in this boot is the last to go when memory runs out.
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
			return fmt.Errorf("keeping the process when memory runs out: %w", err)
		}
	}
	if s.uid != 0 {
		if err := s.changeUser(); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	return nil
}

func (s sandbox) changeUser() error {
	if err := dropBounding(s.netRaw); err != nil {
		return err
	}
	if s.netRaw {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("keeping capabilities: %w", err)
		}
	}
	// Raw calls: the wrappers of syscall change every thread, here only this one goes on.
	for _, call := range []struct {
		name       string
		nr         uintptr
		a1, a2, a3 uintptr
	}{
		{"setgroups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"setresgid", unix.SYS_SETRESGID, uintptr(s.uid), uintptr(s.uid), uintptr(s.uid)},
		{"setresuid", unix.SYS_SETRESUID, uintptr(s.uid), uintptr(s.uid), uintptr(s.uid)},
	} {
		if _, _, errno := unix.RawSyscall(call.nr, call.a1, call.a2, call.a3); errno != 0 {
			return fmt.Errorf("%s: %w", call.name, errno)
		}
	}
	return s.setCapabilities()
}

// dropBounding empties the bounding set, but for CAP_NET_RAW where it is kept.
func dropBounding(netRaw bool) error {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return fmt.Errorf("reading number of capabilities: %w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("reading number of capabilities: %w", err)
	}
	for c := 0; c <= last; c++ {
		if netRaw && c == unix.CAP_NET_RAW {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	return nil
}

// setCapabilities clears every set, and puts CAP_NET_RAW into all of them where it is kept: only
// an ambient capability outlives execve of a file without capabilities.
func (s sandbox) setCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if s.netRaw {
		const bit = 1 << unix.CAP_NET_RAW
		data[0] = unix.CapUserData{Effective: bit, Permitted: bit, Inheritable: bit}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("setting capabilities: %w", err)
	}
	if !s.netRaw {
		return nil
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_RAW, 0, 0); err != nil {
		return fmt.Errorf("keeping CAP_NET_RAW over execve: %w", err)
	}
	return nil
}

// enclose leaves this process, which opens no files, the system calls of l. A process that cannot be
// confined must not go on.
func enclose(l confine.List) error {
	if _, err := confine.Landlock(confine.Paths{}); err != nil {
		return fmt.Errorf("confining the process: %w", err)
	}
	if err := confine.Seccomp(l); err != nil {
		return fmt.Errorf("confining the process: %w", err)
	}
	return nil
}
