package box

import (
	"encoding/binary"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A struct input_event on 64-bit Linux: 16 bytes of time, then type, code and value
// (linux/input.h).
const (
	inputEventSize = 24
	inputEventKey  = 1
	keyPower       = 116
)

// inputPoll is how often new input devices are looked for: the button's driver may come late.
const inputPoll = 2 * time.Second

// watchPower calls off when somebody presses the power button or Ctrl-Alt-Del, or when the process
// is told to end; every press calls it.
func (m *Machine) watchPower(off func()) {
	// With this the kernel sends SIGINT to PID 1 instead of rebooting at once.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for range signals {
			off()
		}
	}()
	watched := map[string]bool{}
	for {
		nodes, _ := filepath.Glob(m.path("/dev/input/event*"))
		for _, node := range nodes {
			if f, err := os.Open(node); err == nil && !watched[node] {
				watched[node] = true
				go watchKeys(f, off)
			} else if err == nil {
				f.Close()
			}
		}
		time.Sleep(inputPoll)
	}
}

// watchKeys calls off for every press of a power key on an input device, until the device goes.
func watchKeys(device io.ReadCloser, off func()) {
	defer device.Close()
	event := make([]byte, inputEventSize)
	for {
		if _, err := io.ReadFull(device, event); err != nil {
			return
		}
		kind, code := binary.NativeEndian.Uint16(event[16:]), binary.NativeEndian.Uint16(event[18:])
		if value := binary.NativeEndian.Uint32(event[20:]); kind == inputEventKey && code == keyPower && value == 1 {
			off()
		}
	}
}
