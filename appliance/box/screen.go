package box

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Screen shows one status page on the monitor and on every serial console. Monitors are redrawn in
// place; a serial line gets the page once per change, one line where only the state changed, and
// machine-readable lines between pages.
//
// Every output has a goroutine of its own: a serial port held by flow control must not hold PID 1.
type Screen struct {
	mu      sync.Mutex
	page    Page
	shown   string // text of the page shown last
	rest    string // the same without its state
	outputs []*output
}

// output is one terminal. Of several pages waiting only the last is written; lines are all written.
type output struct {
	w       io.Writer
	redraw  bool // the terminal understands ANSI sequences and shows only the page
	mu      sync.Mutex
	changed *sync.Cond
	page    []string
	lines   []string
	writing bool
}

// maxLines bounds the machine lines waiting for a terminal that takes none.
const maxLines = 64

// addOutput starts showing pages on w; the monitor is redrawn, a serial line appended to.
func (s *Screen) addOutput(w io.Writer, redraw bool) {
	o := &output{w: w, redraw: redraw}
	o.changed = sync.NewCond(&o.mu)
	s.mu.Lock()
	s.outputs = append(s.outputs, o)
	s.mu.Unlock()
	go o.run()
}

// Update changes the page and shows it where it reads differently now.
func (s *Screen) Update(change func(*Page)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.page)
	lines := s.page.text()
	text := strings.Join(lines, "\n")
	if text == s.shown {
		return
	}
	stateless := s.page
	stateless.State = ""
	rest := strings.Join(stateless.text(), "\n")
	for _, o := range s.outputs {
		if o.redraw || rest != s.rest {
			o.showPage(lines)
		} else {
			o.addLine(field("State", s.page.State)[0])
		}
	}
	s.shown, s.rest = text, rest
}

// machineLine writes "signet: <word> <JSON of v>" on the serial consoles.
func (s *Screen) machineLine(word string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte("{}")
	}
	s.serialLine(fmt.Sprintf("signet: %s %s", word, b))
}

// serialLine writes a line of text on the serial consoles.
func (s *Screen) serialLine(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outputs {
		if !o.redraw {
			o.addLine(line)
		}
	}
}

func (o *output) showPage(lines []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.page = lines
	o.changed.Signal()
}

func (o *output) addLine(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.lines) < maxLines {
		o.lines = append(o.lines, line)
		o.changed.Signal()
	}
}

// run writes what is waiting, forever. A terminal that fails is tried again with the next change.
func (o *output) run() {
	for {
		o.mu.Lock()
		for o.page == nil && len(o.lines) == 0 {
			o.changed.Wait()
		}
		page, lines := o.page, o.lines
		o.page, o.lines, o.writing = nil, nil, true
		o.mu.Unlock()
		io.WriteString(o.w, o.render(page, lines))
		o.mu.Lock()
		o.writing = false
		o.mu.Unlock()
	}
}

// drain waits until every terminal has what it was to show, at most patience.
func (s *Screen) drain(patience time.Duration) {
	s.mu.Lock()
	outputs := slices.Clone(s.outputs)
	s.mu.Unlock()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(outputs, (*output).waiting) {
			return
		}
	}
}

func (o *output) waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.writing || o.page != nil || len(o.lines) > 0
}

// render is the bytes for one terminal.
func (o *output) render(page, lines []string) string {
	var b strings.Builder
	if page != nil {
		if o.redraw {
			b.WriteString(drawPage(page))
		} else {
			b.WriteString("\n" + strings.Join(page, "\n") + "\n" + strings.Repeat("-", pageWidth) + "\n")
		}
	}
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// drawPage draws on an ANSI terminal without flicker: home, every line with its rest cleared, then
// what is below. The cursor is hidden and blanking off (console_codes(4)).
func drawPage(lines []string) string {
	var b strings.Builder
	b.WriteString("\x1b[?25l\x1b[9;0]\x1b[H")
	for i, l := range lines {
		switch {
		case i == 0, strings.Contains(l, "Claim code"), strings.Contains(l, "THE BOX HAS STOPPED"), strings.Contains(l, "! Attention"):
			l = "\x1b[1m" + l + "\x1b[0m"
		}
		b.WriteString(l + "\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// openScreen finds the terminals: the first virtual console, and every serial port the kernel was
// told to use as a console.
func (m *Machine) openScreen() {
	if f, err := openTerminal(m.path("/dev/tty1")); err == nil {
		m.screen.addOutput(f, true)
	}
	active, err := os.ReadFile(m.path("/sys/class/tty/console/active"))
	names := strings.Fields(string(active))
	if err != nil || len(names) == 0 {
		names = []string{"ttyS0"}
	}
	for _, name := range slices.Compact(names) {
		if strings.HasPrefix(name, "tty") && len(name) > 3 && name[3] >= '0' && name[3] <= '9' {
			continue // a virtual console
		}
		if f, err := openTerminal(m.path("/dev/" + name)); err == nil {
			m.screen.addOutput(f, false)
		}
	}
}

// openTerminal opens a terminal without making it the controlling one of PID 1.
func openTerminal(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
}
