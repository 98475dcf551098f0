package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows what is being done: on a terminal one line that moves while a step takes its time,
// elsewhere one line per step.
type progress struct {
	out      io.Writer
	terminal bool

	mu      sync.Mutex // guards what follows
	step    string     // "" between steps
	began   time.Time
	stop    chan struct{} // closed by done
	running sync.WaitGroup
}

// progress starts a display that done ends.
func (t *terminal) progress() *progress {
	p := &progress{out: t.stderr, stop: make(chan struct{})}
	if f, ok := t.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		p.running.Go(p.spin)
	}
	return p
}

// next begins a step, in a few words.
func (p *progress) next(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
	p.step, p.began = step, time.Now()
	if !p.terminal {
		fmt.Fprintln(p.out, step)
	}
}

// done ends the display; what follows begins on a line of its own.
func (p *progress) done() {
	close(p.stop)
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish()
}

// finish leaves the line of a step behind. The caller holds mu.
func (p *progress) finish() {
	if p.terminal && p.step != "" {
		fmt.Fprintf(p.out, "\r\x1b[K  %s (%s)\n", p.step, time.Since(p.began).Round(100*time.Millisecond))
	}
	p.step = ""
}

func (p *progress) spin() {
	frames := []rune(`|/-\`)
	tick := time.NewTicker(120 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		p.mu.Lock()
		if p.step != "" {
			fmt.Fprintf(p.out, "\r\x1b[K%c %s %ds", frames[i%len(frames)], p.step, int(time.Since(p.began).Seconds()))
		}
		p.mu.Unlock()
	}
}
