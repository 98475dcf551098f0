package appliance

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/provision"
)

// keysFile is the KEYS region of a host, in the state directory. Whoever can change it can make the
// service refuse to start, not sign: what is in it is wrapped by the TPM.
const keysFile = "keys.img"

// hostKeys is the key holder of a development host and what stands in for a box's boot report.
type hostKeys struct {
	*keys.Host
	file *os.File
	boot handover.Boot
}

// openHostKeys opens the keys of a host; they are created when the TPM and the state directory are
// both new.
func openHostKeys(spec, stateDir string, site *provision.Site) (*hostKeys, error) {
	file, err := os.OpenFile(filepath.Join(stateDir, keysFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	var specs []keys.Spec
	for _, k := range site.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	host, err := keys.OpenHost(spec, file, site.Name, specs)
	if err != nil {
		var e *keys.Error
		if errors.As(err, &e) {
			err = &mendable{errors.New(e.What), e.Mend}
			if e.Err != nil {
				err = &mendable{fmt.Errorf("%s: %w", e.What, e.Err), e.Mend}
			}
		}
		return nil, errors.Join(err, file.Close())
	}
	return &hostKeys{Host: host, file: file, boot: handover.Boot{
		Kind:         handover.KindHost,
		Provisioning: !host.Vault.Initialised(),
		ClaimCode:    newClaimCode(),
		TimeSource:   "host",
		Version:      site.Version,
		Epoch:        site.Epoch,
		SecureBoot:   "not a box: keys are in this host's TPM, but any program of this user can use them",
		TPM: handover.TPM{
			Manufacturer:   host.Info.Manufacturer,
			Firmware:       host.Info.Firmware,
			SRKName:        fmt.Sprintf("%x", host.Vault.SRKName()),
			LockoutCounter: host.Info.LockoutCounter,
		},
	}}, nil
}

// Close ends the holder and closes TPM and file.
func (h *hostKeys) Close() error { return errors.Join(h.Host.Close(), h.file.Close()) }

// newClaimCode is 8 characters without look-alikes, 40 bits, in two groups.
func newClaimCode() string {
	const alphabet = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
	var b [8]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = alphabet[b[i]%byte(len(alphabet))]
	}
	return string(b[:4]) + "-" + string(b[4:])
}
