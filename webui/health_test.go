package webui

import (
	"net/http"
	"testing"
	"time"
)

// demoMachine is a box at work.
func demoMachine() Machine {
	return Machine{
		Keys:    KeyUse{Waiting: 2, Done: 1284, Mean: 212 * time.Millisecond, Newest: 190 * time.Millisecond},
		Storage: Storage{Total: 8 << 30, Free: 6 << 30, Reserve: 128 << 20, Known: true},
		Listeners: []Listener{{"est", "[::]:443", "TLS 1.3"}, {"scep", "[::]:8443", "TLS 1.3"}, {"console", "[::]:9443", "TLS 1.3"},
			{"plain", "[::]:80", ""}, {"legacy", "[::]:7443", "TLS 1.2"}},
		Watchdog: Watchdog{Armed: true, Answered: start.Add(-10 * time.Second)},
	}
}

// demoHistory is a week as a site has it.
func demoHistory() (History, error) {
	return week([3]uint64{41, 2, 0}, [3]uint64{3, 0, 0}, [3]uint64{6, 1, 0}, [3]uint64{118, 9, 2}, [3]uint64{87, 4, 0}, [3]uint64{95, 12, 0}, [3]uint64{52, 3, 1}), nil
}

// TestHealthDetails: strangers are told whether it serves and nothing else.
func TestHealthDetails(t *testing.T) {
	box := newBox(t, allIssue)
	who := bearer(box.claimAs(administrator, auditor))
	var h Health
	got := box.get("/api/v1/health")
	if got.decode(t, &h); got.StatusCode != 200 || h.Status != "ok" || !h.Ready || h.Details != nil {
		t.Errorf("a stranger is told %d %+v", got.StatusCode, h)
	}
	box.request("lamp.wait")
	box.get("/api/v1/health", who).decode(t, &h)
	d := h.Details
	if d == nil || d.Pending != 1 || d.Keys.Waiting != 2 || d.Keys.MeanMillis != 212 || d.Storage.Free != 6<<30 || len(d.Listeners) != 5 ||
		!d.Watchdog.Armed || d.Watchdog.Answered == nil || d.Audit.Records < 2 || !d.Clock.Trusted || d.Clock.Source != "rtc" {
		t.Errorf("%+v", d)
	}
	box.clock.pass(11 * 365 * 24 * time.Hour) // every certificate has ended
	if got := box.get("/api/v1/health", who); got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d with nothing to issue by", got.StatusCode)
	}
}

// TestClock: a clock that is before what the box knows is not believed, and the floor says why.
func TestClock(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(administrator, auditor))
	var c Clock
	box.get("/api/v1/clock", who).decode(t, &c)
	if !c.Trusted || !c.Now.Equal(start) || !c.Floor.Equal(demoBoot().TimeFloor) {
		t.Errorf("%+v", c)
	}
	later := newBox(t, func(c *Config) { c.Boot.TimeFloor = start.Add(time.Hour) })
	who = bearer(later.claimAs(administrator, auditor))
	later.get("/api/v1/clock", who).decode(t, &c)
	if c.Floor.Equal(demoBoot().TimeFloor) {
		t.Errorf("%+v", c)
	}
	later.get("/api/v1/clock").checkProblem(t, 401, "unauthenticated")
}
