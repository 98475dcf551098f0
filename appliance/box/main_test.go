package box

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/needtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain lets the test binary stand in for boxinit's own binary (as "shim", "keyholder") and for
// the supervised service (as "service").
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case modeShim, modeHolder:
			os.Exit(Main(os.Args, os.Stdout, os.Stderr))
		case "service":
			os.Exit(serviceMain(os.Args[2]))
		case "linger":
			os.Exit(lingerMain(len(os.Args) > 2))
		case "status":
			b, err := os.ReadFile("/proc/self/status")
			fmt.Print(string(b))
			var tasks syscall.Rlimit
			syscall.Getrlimit(6, &tasks) // RLIMIT_NPROC
			fmt.Printf("MaxTasks: %d %d\n", tasks.Cur, tasks.Max)
			if err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// lingers is how long what lingerMain leaves stays if nobody ends it.
const lingers = 4 * time.Minute

// lingerMain leaves a process behind that keeps standard output, and is that process where left is set.
func lingerMain(left bool) int {
	if left {
		time.Sleep(lingers)
		return 0
	}
	cmd := exec.Command("/proc/self/exe", "linger", "left")
	cmd.Stdout = os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("left")
	return 0
}

// serviceMain is a service as signetd is one: sockets by go-systemd's activation, words by its
// daemon package. how says what becomes of it.
func serviceMain(how string) int {
	if how == "impostor" {
		_, err := daemon.SdNotify(false, daemon.SdNotifyReady)
		fmt.Println("impostor: notified", err)
		return 0
	}
	var names []string
	for _, f := range activation.Files(true) {
		names = append(names, f.Name())
		switch f.Name() {
		case handover.FDBoot:
			if _, err := handover.ReadBoot(f); err != nil {
				fmt.Println("service:", err)
				return 4
			}
		case "scep":
			if _, err := net.FileListener(f); err != nil {
				fmt.Println("service: no listener:", err)
				return 5
			}
		}
	}
	fmt.Println("service: inherited", strings.Join(names, ","))
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		fmt.Println("service: watchdog", interval, err)
		return 6
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	dir := filepath.Dir(os.Getenv("NOTIFY_SOCKET"))
	count := starts(dir)
	switch {
	case how == "crash-once" && count == 1:
		fmt.Println("service: cannot read its configuration")
		return 7
	case how == "never-ready":
		<-term
		return 0
	case how == "impersonated":
		impostor := exec.Command(os.Args[0], "service", "impostor")
		impostor.Env = os.Environ()
		impostor.Stdout = os.Stdout
		if err := impostor.Run(); err != nil {
			fmt.Println("service: impostor:", err)
			return 8
		}
	}
	daemon.SdNotify(false, strings.Join([]string{
		daemon.SdNotifyReady, "STATUS=two authorities",
		handover.NotifyTLSSHA256 + "=" + strings.Repeat("ab", 32),
		handover.NotifyClaimed + "=1",
		handover.NotifyCondition + `={"what":"w","mend":"m"}`,
	}, "\n"))
	if how == "hang-once" && count == 1 {
		select {} // ready, but without a sign of life from here on; not even for SIGTERM
	}
	ping := time.NewTicker(interval / 4)
	for {
		select {
		case <-ping.C:
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		case <-term:
			fmt.Println("service: told to end")
			return 0
		}
	}
}

// starts counts the starts of the service in dir.
func starts(dir string) int {
	for n := 1; ; n++ {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("start", n)), os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			f.Close()
			return n
		}
	}
}

// needTool returns where a tool is; without it the test fails under CI and is skipped elsewhere.
func needTool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range slices.Concat(filepath.SplitList(os.Getenv("PATH")), []string{"/sbin", "/usr/sbin"}) {
		if path := filepath.Join(dir, name); isFile(path) {
			return path
		}
	}
	needtest.Missing(t, name+" is not installed")
	return ""
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

func itoa(n int) string { return strconv.Itoa(n) }

func ownerOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
