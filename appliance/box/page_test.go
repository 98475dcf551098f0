package box

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/handover"
)

func pages() map[string]Page {
	ready := Page{
		Name: "demo", Version: "0.1.0", Epoch: 1, State: "ready",
		Addresses: []string{"10.0.2.15/24 on eth0 (DHCP)"},
		URLs: []pageURL{{"Console", "https://10.0.2.15:9443/"}, {"EST", "https://10.0.2.15/.well-known/est"},
			{"SCEP", "https://10.0.2.15:8443/scep"}, {"Plain HTTP", "http://10.0.2.15/"}},
		ClaimCode: "ABCD-EFGH", TLSSHA256: strings.Repeat("0123456789abcdef", 4),
		SecureBoot: "off: " + unprotected,
	}
	claimed := ready
	claimed.Name, claimed.Debug, claimed.ClaimCode, claimed.Claimed = "hall-7", true, "", true
	wrong := ready
	wrong.Name, wrong.State, wrong.ClaimCode = "hall-7", "the service is down and will be started again", ""
	wrong.Network = &handover.Condition{What: "No network cable with a live partner is plugged in.", Mend: "Plug a network cable into the box, and check the switch's port."}
	wrong.Service = []handover.Condition{{What: "The enrollment service does not run: exit status 1: profile \x1b[2Jcorp: \"bad\"\nregels", Mend: strings.Repeat("long mend ", 60)}}
	halted := Page{
		Name: "demo", Version: "0.1.0", Epoch: 1, SecureBoot: "off: " + unprotected,
		Halted: &handover.Condition{What: "This TPM does not hold this box's keys.", Mend: "Put the disk back into its own machine."},
		Detail: strings.Repeat("TPM_RC_INTEGRITY ", 60),
	}
	return map[string]Page{"starting": {State: "starting"}, "ready": ready, "claimed": claimed, "wrong": wrong, "halted": halted}
}

func TestPage(t *testing.T) {
	for name, page := range pages() {
		t.Run(name, func(t *testing.T) {
			lines := page.text()
			if len(lines) >= pageHeight {
				t.Errorf("%d lines scroll a screen of %d", len(lines), pageHeight)
			}
			for _, l := range lines {
				if len(l) > pageWidth || clean(l) != l {
					t.Errorf("line of %d: %q", len(l), l)
				}
			}
			got := strings.Join(lines, "\n") + "\n"
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update writes it anew):\n%s", diff)
			}
		})
	}
}

// A service that was taken over hides nothing of what the box itself says, and forges none of its lines
// on the serial console.
func TestServicesWordsStayItsOwn(t *testing.T) {
	var r Report
	long := strings.Repeat("all is well ", 400)
	r.apply(map[string]string{"STATUS": long, handover.NotifyCondition: `{"what":"` + long + `","mend":"` + long + `"}`})
	page := pages()["ready"]
	page.State = stateWords(ServiceState{Report: r})
	page.Boot = []handover.Condition{{What: "The TPM is locked.", Mend: "Wait."}}
	page.Said = r.Condition
	text := strings.Join(page.text(), "\n")
	for _, want := range []string{"The TPM is locked.", "Console", "A B C D - E F G H", "keys are not protected"} {
		if !strings.Contains(text, want) {
			t.Errorf("the screen lacks %q:\n%s", want, text)
		}
	}

	serial := recorder{make(chan string, 10)}
	m := &Machine{screen: &Screen{}, log: &logBuffer{}}
	m.screen.addOutput(serial, false)
	io.WriteString(m.log, "signet: ready {\"claim_code\":\"KT2H-Z8RM\"}\n")
	m.dumpLog()
	if got := <-serial.writes; !strings.HasPrefix(got, "| ") {
		t.Errorf("a child's words came out as %q", got)
	}
}

// recorder is a terminal that shows what was written, one write at a time.
type recorder struct{ writes chan string }

func (r recorder) Write(p []byte) (int, error) { r.writes <- string(p); return len(p), nil }

func TestScreenShowsChangesOnly(t *testing.T) {
	monitor, serial := recorder{make(chan string, 10)}, recorder{make(chan string, 10)}
	s := &Screen{}
	s.addOutput(monitor, true)
	s.addOutput(serial, false)
	s.Update(func(p *Page) { p.State = "one" })
	onMonitor, onSerial := <-monitor.writes, <-serial.writes
	if !strings.HasPrefix(onMonitor, "\x1b[") || !strings.Contains(onMonitor, "one") {
		t.Errorf("monitor got %q", onMonitor)
	}
	if strings.Contains(onSerial, "\x1b") || !strings.Contains(onSerial, "State        one\n") {
		t.Errorf("serial line got %q", onSerial)
	}
	s.Update(func(p *Page) { p.ClaimCode = "" }) // reads the same
	s.Update(func(p *Page) { p.State = "two" })
	if got := <-serial.writes; got != "  State        two\n" {
		t.Errorf("serial line got %q for a new state", got)
	}
	if got := <-monitor.writes; !strings.Contains(got, "two") {
		t.Errorf("monitor got %q for a new state", got)
	}
	s.machineLine("ready", readyLine{Name: "demo", Version: "0.1.0", ClaimCode: "ABCD-EFGH", TLSSHA256: "00", UptimeSeconds: 1.5, MemoryTotal: 3, MemoryAvailable: 2, ServiceResident: 1})
	want := `signet: ready {"name":"demo","version":"0.1.0","claim_code":"ABCD-EFGH","tls_sha256":"00","uptime_seconds":1.5,"memory_total_kib":3,"memory_available_kib":2,"service_resident_kib":1}` + "\n"
	if got := <-serial.writes; got != want {
		t.Errorf("serial line got %q", got)
	}
	s.machineLine("halted", handover.Condition{What: "w", Mend: "m"})
	if got := <-serial.writes; got != `signet: halted {"what":"w","mend":"m"}`+"\n" {
		t.Errorf("serial line got %q", got)
	}
	if len(monitor.writes) != 0 {
		t.Errorf("monitor got %q though nothing on it changed", <-monitor.writes)
	}
}
