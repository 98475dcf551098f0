package main

import (
	"errors"

	"github.com/spf13/cobra"

	"signet.internal/image/vm"
)

// stopResult is what `signet stop --json` prints.
type stopResult struct {
	Stopped bool `json:"stopped"` // false: nothing was running
}

func newStop(t *terminal) *cobra.Command {
	return &cobra.Command{
		Use:   "stop OUT",
		Short: "shut down the virtual machine of an image",
		Long:  `Presses the power button of the machine 'signet run OUT' started and waits until it is off.`,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error {
			machine, err := vm.Load(a[0])
			if errors.Is(err, vm.ErrNotRunning) {
				return t.result(stopResult{}, a[0]+": no machine is running\n")
			} else if err != nil {
				return err
			}
			if err := shutdown(t, machine); err != nil {
				return err
			}
			return t.result(stopResult{Stopped: true}, a[0]+": shut down\n")
		},
	}
}
