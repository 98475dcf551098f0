package box

import (
	"errors"
	"strings"
	"testing"
)

// A box that halts says so once, stops what runs in reverse order, and leaves nothing for the power
// button to stop a second time.
func TestHaltStopsEverythingOnce(t *testing.T) {
	m := testMachine(t)
	serial := recorder{make(chan string, 10)}
	m.screen.addOutput(serial, false)
	var stopped []string
	for _, name := range []string{"holder", "service"} {
		m.onStop(func() { stopped = append(stopped, name) })
	}
	m.log.Write([]byte("keyholder: out of luck\n"))
	m.halt(&Problem{What: "the key holder ended", Mend: "switch the box off and on", Err: errors.New("signal: killed")})
	m.halt(errors.New("and another"))
	m.stopAll()
	if got := strings.Join(stopped, " "); got != "service holder" {
		t.Errorf("stopped %q", got)
	}
	var shown string
	for !strings.Contains(shown, "signet: halted") {
		shown += <-serial.writes
	}
	for _, want := range []string{"keyholder: out of luck\n", "THE BOX HAS STOPPED", "Detail       signal: killed", `signet: halted {"what":"The key holder ended.","mend":"Switch the box off and on."}`} {
		if !strings.Contains(shown, want) {
			t.Errorf("serial line lacks %q:\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "another") || !m.stopping() {
		t.Errorf("halted twice, or not:\n%s", shown)
	}
}
