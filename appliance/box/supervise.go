package box

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ServiceConfig describes the one service boxinit supervises.
type ServiceConfig struct {
	// Command makes the process, not started, without environment or descriptors. Its pid must
	// stay that of the service (see sandbox.command).
	Command func() *exec.Cmd
	// Inherit opens what one start of the service inherits; release is called once the process has
	// its copies.
	Inherit func() (files []NamedFile, release func(), err error)
	// Observe is told every change, from the goroutine of Run.
	Observe func(ServiceState)

	UID          int           // owner of the notify socket; 0 is the caller
	NotifyPath   string        // where the notify socket is made
	Log          io.Writer     // standard output and error of the service, and what the supervisor notes
	Watchdog     time.Duration // a ready service pings at least this often
	StartTimeout time.Duration // from start to READY=1
	StopTimeout  time.Duration // from SIGTERM, or SIGABRT, to SIGKILL
	Backoff      func(failures int) time.Duration
}

// NamedFile is one inherited descriptor and its name in LISTEN_FDNAMES.
type NamedFile struct {
	Name string
	File *os.File
}

// ServiceState is what Observe learns.
type ServiceState struct {
	Ready    bool
	PID      int // of the service while it runs
	Report   Report
	Failures int           // ends without a stable run in between
	Reason   string        // why it ended last; "" while it never did
	Retry    time.Duration // until the next start; 0 while it runs
}

// stableRun is how long a service must have been ready for its next end to count as the first.
const stableRun = time.Minute

// defaultBackoff is 1 s, doubled with every failure in a row, at most 30 s.
func defaultBackoff(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 5), 30*time.Second)
}

// supervisor runs a service again and again.
type supervisor struct {
	ServiceConfig
	socket  *notifySocket
	notices chan notice
	state   ServiceState
	beat    atomic.Int64 // UnixNano of the last turn of run
}

// beatEvery is how often run shows that it is alive; it may take beatLimit, which is longer than
// any wait of run that does not beat.
const (
	beatEvery = 5 * time.Second
	beatLimit = 50 * time.Second
)

// alive says whether run still does its work, whatever the service does.
func (s *supervisor) alive() bool { return time.Since(time.Unix(0, s.beat.Load())) < beatLimit }

// newSupervisor opens the notify socket; the service starts with run.
func newSupervisor(c ServiceConfig) (*supervisor, error) {
	socket, err := listenNotify(c.NotifyPath, c.UID)
	if err != nil {
		return nil, err
	}
	s := &supervisor{ServiceConfig: c, socket: socket, notices: make(chan notice, 16)}
	s.beat.Store(time.Now().UnixNano())
	go socket.receive(s.notices)
	return s, nil
}

// run starts the service whenever it is not running, until ctx ends; then it stops the service and
// returns once that is gone.
//
// Each process is waited for by its own exec.Cmd, never with wait4(-1), which would steal the exit
// status from some other Cmd. That leaves no zombies: signetd, the key holder and the DHCP helper are
// each the first process of a PID namespace, which takes what they forked with it (see
// sandbox.command), and mke2fs and e2fsck do not fork, so nothing is ever reparented to PID 1.
func (s *supervisor) run(ctx context.Context) {
	defer s.socket.conn.Close()
	for {
		started := time.Now()
		reason := s.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.state.Ready && time.Since(started) > stableRun {
			s.state.Failures = 0
		}
		s.state.Ready = false
		s.state.Failures++
		s.state.Reason = reason
		s.state.Retry = s.Backoff(s.state.Failures)
		s.state.Report.Condition = nil
		s.beat.Store(time.Now().UnixNano())
		s.Observe(s.state) // which takes the service's last words from the log
		s.note("%s; starting it again in %v", reason, s.state.Retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.state.Retry):
		}
		s.state.Retry = 0
		s.Observe(s.state)
	}
}

func (s *supervisor) note(format string, args ...any) {
	fmt.Fprintf(s.Log, "boxinit: "+format+"\n", args...)
}

// runOnce starts the service and returns why it ended.
func (s *supervisor) runOnce(ctx context.Context) (reason string) {
	cmd, err := s.start()
	if err != nil {
		return fmt.Sprintf("the service could not be started: %v", err)
	}
	s.state.PID = cmd.Process.Pid
	defer func() { s.state.PID = 0 }()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	patience := time.NewTimer(s.StartTimeout)
	defer patience.Stop()
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		s.beat.Store(time.Now().UnixNano())
		select {
		case <-beat.C:
		case err := <-ended:
			return fmt.Sprintf("the service ended: %s", exitWords(err))
		case n := <-s.notices:
			if n.pid != cmd.Process.Pid {
				s.note("refused a notification from process %d, which is not the service", n.pid)
				continue
			}
			if s.take(n.vars) {
				patience.Reset(s.Watchdog)
			}
		case <-patience.C:
			reason := fmt.Sprintf("the service sent no sign of life for %v", s.Watchdog)
			if !s.state.Ready {
				reason = fmt.Sprintf("the service was not ready after %v", s.StartTimeout)
			}
			// SIGABRT makes a Go program say where each goroutine was.
			s.stop(cmd, ended, syscall.SIGABRT)
			return reason
		case <-ctx.Done():
			s.stop(cmd, ended, syscall.SIGTERM)
			return "stopped"
		}
	}
}

// take uses one notification of the service and says whether it was a sign of life.
func (s *supervisor) take(vars map[string]string) (alive bool) {
	s.state.Report.apply(vars)
	if vars["READY"] == "1" {
		s.state.Ready = true
		alive = true
	}
	if s.state.Ready && vars["WATCHDOG"] == "1" {
		alive = true
	}
	s.Observe(s.state)
	return alive
}

// start starts the service with its descriptors and its sd_notify environment.
func (s *supervisor) start() (*exec.Cmd, error) {
	files, release, err := s.Inherit()
	if err != nil {
		return nil, err
	}
	defer release()
	cmd := s.Command()
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.File)
	}
	cmd.Env = append(cmd.Env,
		"LISTEN_FDS="+strconv.Itoa(len(files)),
		"LISTEN_FDNAMES="+strings.Join(names, ":"),
		"NOTIFY_SOCKET="+s.NotifyPath,
		"WATCHDOG_USEC="+strconv.FormatInt(s.Watchdog.Microseconds(), 10),
	)
	cmd.Stdout, cmd.Stderr = s.Log, s.Log
	cmd.WaitDelay = s.StopTimeout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd, nil
}

// stop ends the service by signal, and by SIGKILL when that takes too long. Nothing but SIGKILL's
// own wait is unbounded: a process in it is gone as soon as the kernel lets go of it.
func (s *supervisor) stop(cmd *exec.Cmd, ended <-chan error, signal syscall.Signal) {
	cmd.Process.Signal(signal)
	select {
	case <-ended:
	case <-time.After(s.StopTimeout):
		cmd.Process.Kill()
		<-ended
	}
}

// exitWords says how a process ended.
func exitWords(err error) string {
	if err == nil {
		return "it exited by itself"
	}
	return err.Error()
}

// memoryFile is a file without a name that holds data, read from its start by whoever inherits it.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, err
	}
	return f, nil
}
