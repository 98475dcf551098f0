package scep

import (
	"context"
	"syscall"
	"time"
)

// unopenedTime is how long after decryption everything that is answered with unopened is answered: longer than any
// request takes to parse and verify, so that the time does not tell what the text does not tell.
const unopenedTime = 25 * time.Millisecond

// waitUntil returns at t or when ctx ends. A timer of the runtime is as coarse as the milliseconds of epoll_wait counted
// from its start, so what went before would show; the end is left to the kernel's clock.
func waitUntil(ctx context.Context, t time.Time) {
	const coarse = 3 * time.Millisecond
	timer := time.NewTimer(time.Until(t) - coarse)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	for left := time.Until(t); left > 0; left = time.Until(t) {
		spec := syscall.NsecToTimespec(left.Nanoseconds())
		syscall.Nanosleep(&spec, nil) // returns early on a signal
	}
}
