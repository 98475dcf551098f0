package keys

import (
	"errors"
	"net"

	"signet.internal/tpm"
)

// Host is a key holder inside the calling process, for a development host: the same code as on the
// box, without a boot policy on the keys.
type Host struct {
	Vault  *Vault
	Client *Client
	Info   tpm.Info

	device *tpm.Device
}

// OpenHost opens the TPM named by spec (see tpm.Open) and the keys in st, and makes the keys first
// when TPM and st are both new.
func OpenHost(spec string, st Storage, site string, specs []Spec) (*Host, error) {
	dev, err := tpm.Open(spec)
	if err != nil {
		return nil, err
	}
	h, err := openHost(dev, st, site, specs)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return h, nil
}

func openHost(dev *tpm.Device, st Storage, site string, specs []Spec) (*Host, error) {
	if found := dev.Preflight(); len(found) > 0 {
		return nil, &Error{What: found[0].What, Mend: found[0].Mend}
	}
	binding := Binding{Kind: KindHost}
	vault, err := Open(dev, st, site, specs, binding)
	if errors.Is(err, ErrNotProvisioned) {
		vault, err = Provision(dev, st, site, specs, binding)
	}
	if err != nil {
		return nil, err
	}
	secret, err := vault.Handover()
	if err != nil {
		return nil, err
	}
	holder, err := NewHolder(dev, secret)
	clear(secret)
	if err != nil {
		return nil, err
	}
	info, err := dev.Info()
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	go holder.Serve(theirs)
	return &Host{Vault: vault, Client: NewClient(ours), Info: info, device: dev}, nil
}

// Close ends the holder and closes the TPM.
func (h *Host) Close() error {
	return errors.Join(h.Client.Close(), h.device.Close())
}
