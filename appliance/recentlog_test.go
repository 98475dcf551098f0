package appliance

import (
	"fmt"
	"strings"
	"testing"
)

// TestRecentLog: the newest lines stay, whole, and no more of them than fit.
func TestRecentLog(t *testing.T) {
	l := &recentLog{most: 100}
	for i := range 50 {
		fmt.Fprintf(l, "line %02d\n", i)
	}
	text := string(l.text())
	if len(text) > 100 || len(text) < 80 || !strings.HasPrefix(text, "line ") || !strings.HasSuffix(text, "line 49\n") {
		t.Errorf("%d bytes: %q", len(text), text)
	}
	fmt.Fprintf(l, "%s\n", strings.Repeat("x", 300))
	if got := l.text(); len(got) != 301 || len(l.lines) != 1 {
		t.Errorf("after a long line: %d bytes in %d lines", len(got), len(l.lines))
	}
}
