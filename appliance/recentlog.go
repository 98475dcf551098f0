package appliance

import (
	"bytes"
	"sync"
)

// recentBytes is how much of the log is kept in memory: on a box there is nowhere else to read it after the
// screen moved on.
const recentBytes = 512 << 10

// recentLog keeps the newest lines of the log. What is in it was logged, so there is no secret in it.
type recentLog struct {
	most int // bytes

	mu    sync.Mutex
	lines [][]byte // oldest first
	size  int
}

// Write keeps one line, which a slog handler writes in one piece.
func (l *recentLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, bytes.Clone(line))
	for l.size += len(line); l.size > l.most && len(l.lines) > 1; l.lines = l.lines[1:] {
		l.size -= len(l.lines[0])
	}
	return len(line), nil
}

// text is what is kept.
func (l *recentLog) text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Join(l.lines, nil)
}
