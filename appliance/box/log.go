package box

import (
	"bytes"
	"io"
	"sync"
)

// logBuffer keeps the last lines of what children say and passes each on whole where somebody listens. It never holds
// more than logLines lines of logLine bytes.
type logBuffer struct {
	mu    sync.Mutex
	rest  []byte // of the line not ended yet
	lines []string
	next  func(line string) // set by forward; may be nil
}

const (
	logLines = 60
	logLine  = 1 << 10
)

var _ io.Writer = (*logBuffer)(nil)

// Write takes any part of the stream; it never fails.
func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		part, after, whole := bytes.Cut(p, []byte("\n"))
		p = after
		if room := logLine - len(l.rest); room > 0 {
			l.rest = append(l.rest, part[:min(room, len(part))]...)
		}
		if !whole {
			break
		}
		l.add(string(l.rest))
		l.rest = l.rest[:0]
	}
	return n, nil
}

func (l *logBuffer) add(line string) {
	if l.lines = append(l.lines, line); len(l.lines) > logLines {
		l.lines = l.lines[len(l.lines)-logLines:]
	}
	if l.next != nil {
		l.next(line)
	}
}

// forward passes every line from now on to next as well.
func (l *logBuffer) forward(next func(line string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = next
}

// take returns the lines kept and forgets them, and says whether somebody got them already.
func (l *logBuffer) take() (lines []string, forwarded bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines, l.lines = l.lines, nil
	return lines, l.next != nil
}
