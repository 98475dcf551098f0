package box

import (
	"bytes"
	"fmt"
	"os"

	"signet.internal/image/format"
)

// checkCmdline refuses a kernel command line that is not the measured one. Without Secure Boot an
// entry file on the ESP can replace the command line and only PCR 12 moves, so PCR 11 alone would
// open the keys to, say, an init= or a debugging console of somebody else's choice.
func (m *Machine) checkCmdline() error {
	want, err := os.ReadFile(m.path(format.CmdlineFile))
	if err != nil {
		return &Problem{What: "the image does not say which command line it was built for", Mend: "bake the image again and flash it", Err: err}
	}
	got, err := os.ReadFile(m.path("/proc/cmdline"))
	if err != nil {
		return fmt.Errorf("reading kernel command line: %w", err)
	}
	return compareCmdline(string(trimNewline(got)), string(trimNewline(want)))
}

func compareCmdline(got, want string) error {
	if got == want {
		return nil
	}
	return &Problem{
		What: "the kernel was started with another command line than the image's, so no keys are opened",
		Mend: "remove files below loader/entries on the ESP (or flash the image again) and start the box without editing the boot entry",
		Err:  fmt.Errorf("started with %q, built for %q", got, want),
	}
}

func trimNewline(b []byte) []byte { return bytes.TrimSuffix(b, []byte("\n")) }
