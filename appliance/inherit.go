package appliance

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
)

// descriptors are what a supervisor passed by LISTEN_FDS, by name.
type descriptors struct {
	listeners map[string]net.Listener
	files     map[string]*os.File
}

// inheritDescriptors takes the descriptors of LISTEN_FDS; none is not an error.
func inheritDescriptors() (*descriptors, error) {
	d := &descriptors{listeners: map[string]net.Listener{}, files: map[string]*os.File{}}
	for _, f := range activation.Files(true) {
		switch f.Name() {
		case handover.FDKeys, handover.FDBoot:
			d.files[f.Name()] = f
		default:
			l, err := net.FileListener(f)
			if err != nil {
				return nil, fmt.Errorf("inherited descriptor %q is not a listener: %w", f.Name(), err)
			}
			f.Close()
			d.listeners[f.Name()] = l
		}
	}
	return d, nil
}

// fromBox is the key holder's client and the boot report a box passes.
func (d *descriptors) fromBox() (*keys.Client, handover.Boot, error) {
	keysFile, bootFile := d.files[handover.FDKeys], d.files[handover.FDBoot]
	if keysFile == nil || bootFile == nil {
		return nil, handover.Boot{}, &mendable{errors.New("no TPM named and no key holder inherited"), "outside a box give --tpm swtpm:SOCKET or --tpm DEVICE"}
	}
	defer keysFile.Close()
	defer bootFile.Close()
	conn, err := net.FileConn(keysFile)
	if err != nil {
		return nil, handover.Boot{}, fmt.Errorf("inherited key holder's socket: %w", err)
	}
	boot, err := handover.ReadBoot(bootFile)
	if err != nil {
		return nil, handover.Boot{}, errors.Join(err, conn.Close())
	}
	return keys.NewClient(conn), boot, nil
}
