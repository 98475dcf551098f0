package box

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/logtest"
)

// supervised is a supervisor over this test binary as the service, started through the real shim.
type supervised struct {
	t      *testing.T
	states chan ServiceState
	log    *logtest.Buffer
	cancel func()
	done   chan struct{}
}

func supervise(t *testing.T, how string, change func(*ServiceConfig)) *supervised {
	t.Helper()
	s := &supervised{t: t, states: make(chan ServiceState, 1000), log: &logtest.Buffer{}, done: make(chan struct{})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	t.Cleanup(func() { file.Close() })
	report, err := json.Marshal(handover.Boot{Kind: handover.KindBox})
	if err != nil {
		t.Fatal(err)
	}
	c := ServiceConfig{
		Command: func() *exec.Cmd { return sandbox{}.command(os.Args[0], "service", how) },
		Inherit: func() ([]NamedFile, func(), error) {
			boot, err := memoryFile(handover.FDBoot, report)
			if err != nil {
				return nil, nil, err
			}
			return []NamedFile{{"scep", file}, {handover.FDBoot, boot}}, func() { boot.Close() }, nil
		},
		Observe:      func(s2 ServiceState) { s.states <- s2 },
		NotifyPath:   filepath.Join(t.TempDir(), "notify"),
		Log:          s.log,
		Watchdog:     5 * time.Minute,
		StartTimeout: 5 * time.Minute,
		StopTimeout:  2 * time.Minute,
		Backoff:      func(int) time.Duration { return time.Millisecond },
	}
	if change != nil {
		change(&c)
	}
	sup, err := newSupervisor(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { defer close(s.done); sup.run(ctx) }()
	t.Cleanup(func() { cancel(); <-s.done })
	return s
}

// until waits for a state.
func (s *supervised) until(what string, is func(ServiceState) bool) ServiceState {
	s.t.Helper()
	late := time.After(2 * time.Minute)
	for {
		select {
		case state := <-s.states:
			if is(state) {
				return state
			}
		case <-late:
			s.t.Fatalf("never %s; log:\n%s", what, s.log)
		}
	}
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func isReady(s ServiceState) bool { return s.Ready }

func TestServiceInheritsAndReports(t *testing.T) {
	s := supervise(t, "good", nil)
	got := s.until("ready", isReady)
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", got.PID)); err != nil || exe != executable(t) {
		t.Errorf("PID %d is %q (%v), not the service", got.PID, exe, err)
	}
	want := ServiceState{Ready: true, PID: got.PID, Report: Report{
		Status: "two authorities", TLSSHA256: strings.Repeat("ab", 32), Claimed: true,
		Condition: &handover.Condition{What: "w", Mend: "m"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	s.cancel()
	<-s.done
	if want := "service: inherited scep,boot\nservice: told to end\n"; s.log.String() != want {
		t.Errorf("log is not of a service with its descriptors, stopped by SIGTERM:\n%s", s.log)
	}
}

func TestServiceIsStartedAgain(t *testing.T) {
	s := supervise(t, "crash-once", nil)
	down := s.until("down", func(s ServiceState) bool { return s.Retry > 0 })
	if down.Ready || down.Failures != 1 || !strings.Contains(down.Reason, "exit status 7") {
		t.Errorf("after the crash: %+v", down)
	}
	up := s.until("ready", isReady)
	if up.Failures != 1 || up.Retry != 0 {
		t.Errorf("after the restart: %+v", up)
	}
}

func TestWatchdogEndsSilentService(t *testing.T) {
	s := supervise(t, "hang-once", func(c *ServiceConfig) { c.Watchdog, c.StopTimeout = time.Second, time.Second })
	s.until("ready", isReady)
	down := s.until("down", func(s ServiceState) bool { return s.Retry > 0 })
	if !strings.Contains(down.Reason, "no sign of life") {
		t.Errorf("reason %q", down.Reason)
	}
	s.until("ready again", isReady)
}

func TestServiceThatNeverBecomesReady(t *testing.T) {
	s := supervise(t, "never-ready", func(c *ServiceConfig) { c.StartTimeout, c.StopTimeout = time.Second, time.Second })
	down := s.until("down", func(s ServiceState) bool {
		if s.Ready {
			t.Error("the service counts as ready")
		}
		return s.Retry > 0
	})
	if !strings.Contains(down.Reason, "not ready") {
		t.Errorf("reason %q", down.Reason)
	}
}

// Another process of the same user cannot speak for the service.
func TestImpostorIsRefused(t *testing.T) {
	s := supervise(t, "impersonated", nil)
	up := s.until("ready", isReady) // the service itself says so once the other has
	if up.Report.Status != "two authorities" {
		t.Errorf("another process's READY=1 was believed: %+v", up)
	}
	s.cancel()
	<-s.done
	log := s.log.String()
	if !strings.Contains(log, "impostor: notified <nil>") || !strings.Contains(log, "which is not the service") {
		t.Errorf("the other process's notification was not seen and refused:\n%s", log)
	}
}

func TestServiceThatCannotStart(t *testing.T) {
	s := supervise(t, "good", func(c *ServiceConfig) {
		c.Inherit = func() ([]NamedFile, func(), error) { return nil, nil, fmt.Errorf("no key holder") }
	})
	down := s.until("down", func(s ServiceState) bool { return s.Failures == 3 })
	if !strings.Contains(down.Reason, "no key holder") {
		t.Errorf("reason %q", down.Reason)
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := 1; n <= 8; n++ {
		got = append(got, defaultBackoff(n)/time.Second)
	}
	if diff := cmp.Diff([]time.Duration{1, 2, 4, 8, 16, 30, 30, 30}, got); diff != "" {
		t.Errorf("seconds (-want +got):\n%s", diff)
	}
}

func TestReportRefusesNonsense(t *testing.T) {
	r := Report{TLSSHA256: "before", Claimed: true, Condition: &handover.Condition{What: "before"}}
	r.apply(map[string]string{
		handover.NotifyTLSSHA256: "abcd", handover.NotifyClaimed: "yes", handover.NotifyCondition: "{}",
	})
	want := Report{TLSSHA256: "before", Claimed: true, Condition: &handover.Condition{What: "before"}}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.apply(map[string]string{handover.NotifyCondition: "", handover.NotifyClaimed: "0"})
	if r.Condition != nil || r.Claimed {
		t.Errorf("not cleared: %+v", r)
	}
}
