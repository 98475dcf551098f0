package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"unicode"
)

// Lines the box prints on its serial console besides the status page, each followed by one JSON
// document.
const (
	readyMark  = "signet: ready {"
	haltedMark = "signet: halted {"
	panicMark  = "Kernel panic - not syncing"
)

// Ready is what the box says once its service accepts requests.
type Ready struct {
	Name          string  `json:"name"`
	Version       string  `json:"version"`
	ClaimCode     string  `json:"claim_code"` // "" once claimed
	TLSSHA256     string  `json:"tls_sha256"` // lower-case hex, console leaf
	UptimeSeconds float64 `json:"uptime_seconds"`

	// In KiB: all of the guest's memory, what could still be given out, and what signetd has resident.
	MemoryTotal     int `json:"memory_total_kib"`
	MemoryAvailable int `json:"memory_available_kib"`
	ServiceResident int `json:"service_resident_kib"`
}

// HaltedError is a box that refused to go on and says so on its screen.
type HaltedError struct {
	What string `json:"what"`
	Mend string `json:"mend"`
}

func (e *HaltedError) Error() string { return "the box halted: " + e.What }

// WaitReady waits until the box is ready, and tells progress, which may be nil, each state that the box
// shows until then. It returns *HaltedError where the box refuses to go on, and an error with the end of
// the serial log where the guest panics, QEMU ends or ctx is done.
func (m *Machine) WaitReady(ctx context.Context, progress func(state string)) (*Ready, error) {
	var ready *Ready
	var failed error
	told := ""
	err := waitFor(ctx, func() bool {
		running := m.Running() // before reading: what it printed last must not be missed
		log, err := os.ReadFile(m.SerialPath())
		if err != nil && !os.IsNotExist(err) {
			failed = fmt.Errorf("reading the serial log: %w", err)
			return true
		}
		ready, failed = readSerial(log)
		if state := lastState(log); state != told && progress != nil && ready == nil && failed == nil {
			told = state
			progress(state)
		}
		if ready == nil && failed == nil && !running {
			failed = fmt.Errorf("the machine ended before the box was ready%s%s", tail(m.path("qemu.log")), tail(m.SerialPath()))
		}
		return ready != nil || failed != nil
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for the box: %w%s", err, tail(m.SerialPath()))
	}
	return ready, failed
}

// readSerial looks for the first complete message of the box in a serial log.
func readSerial(log []byte) (*Ready, error) {
	var ready Ready
	var halted HaltedError
	switch {
	case findMessage(log, haltedMark, &halted):
		return nil, &halted
	case findMessage(log, readyMark, &ready):
		return &ready, nil
	}
	if i := bytes.Index(log, []byte(panicMark)); i >= 0 {
		line, _, _ := strings.Cut(string(log[i:]), "\n")
		return nil, fmt.Errorf("the guest's kernel stopped: %s", strings.TrimSpace(line))
	}
	return nil, nil
}

// lastState is the newest state of the box's status page in a serial log, "" before there is one.
func lastState(log []byte) (state string) {
	for line := range bytes.Lines(log) {
		if label, value, ok := bytes.Cut(bytes.TrimSpace(escapes.ReplaceAll(line, nil)), []byte("  ")); ok && string(label) == "State" && bytes.HasSuffix(line, []byte("\n")) {
			state = strings.Map(func(r rune) rune {
				if unicode.IsPrint(r) {
					return r
				}
				return -1 // the line goes to somebody's terminal
			}, string(bytes.TrimSpace(value)))
		}
	}
	return state
}

// findMessage decodes the first whole document that follows mark at the start of a line, which ends
// with its brace. Elsewhere in a line it is text the box shows for somebody else.
func findMessage(log []byte, mark string, into any) bool {
	for line := range bytes.Lines(log) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			return false
		}
		rest, ok := bytes.CutPrefix(escapes.ReplaceAll(line, nil), []byte(mark[:len(mark)-1]))
		if ok && bytes.HasPrefix(rest, []byte("{")) && json.NewDecoder(bytes.NewReader(rest)).Decode(into) == nil {
			return true
		}
	}
	return false
}

// escapes are the terminal control sequences firmware and status page use.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?=]*[A-Za-z]|[()][A-Za-z0-9]|[=>78c])`)

// tail returns the last lines of a log for an error message, or "" for an empty one.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	clean := escapes.ReplaceAll(data, nil)
	var lines []string
	for _, line := range strings.FieldsFunc(string(clean), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	lines = lines[max(0, len(lines)-15):]
	return "\n  " + strings.Join(lines, "\n  ")
}
