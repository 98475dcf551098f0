package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// spawn starts a program in a session of its own, so that it survives this process and never sees a
// terminal's Ctrl-C. Its messages go to logPath.
func spawn(logPath string, extra []*os.File, argv ...string) (pid int, err error) {
	log, err := os.Create(logPath)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = extra
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting %s: %w", filepath.Base(argv[0]), err)
	}
	go cmd.Wait() // reaps; whether it runs is read from /proc, as for a machine another process started
	// For a moment around exec a process has no command line, and alive would take it for ended.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = waitFor(ctx, func() bool {
		cmdline, err := readCmdline(cmd.Process.Pid)
		return err != nil || len(cmdline) > 0
	})
	return cmd.Process.Pid, err
}

func readCmdline(pid int) ([]byte, error) { return os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) }

// alive says whether pid runs and has mark, the path of the machine's sockets, on its command line:
// the number of a process that ended may belong to another by now. A zombie has no command line.
func alive(pid int, mark string) bool {
	if pid <= 0 || mark == "" {
		return false
	}
	cmdline, err := readCmdline(pid)
	return err == nil && bytes.Contains(cmdline, []byte(mark))
}

// kill ends a process of ours at once and waits until it is gone.
func kill(pid int, mark string) error {
	if !alive(pid, mark) {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := waitFor(ctx, func() bool { return !alive(pid, mark) }); err != nil {
		return fmt.Errorf("process %d does not end: %w", pid, err)
	}
	return nil
}
