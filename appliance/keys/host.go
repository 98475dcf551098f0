package keys

import (
	"errors"
	"net"

	"signet.internal/tpm"
)

// Host is all of it in one process, for a development host: TPM, vault, holder and a client of it.
// Its keys are tied to the TPM but to no measured boot, and a box refuses them.
type Host struct {
	Client *Client
	Vault  *Vault
	Info   tpm.Info

	dev      *tpm.Device
	vault    net.Conn // the holder's end
	served   chan error
	recorded chan error
}

// OpenHost opens the keys of a host in the TPM that spec names (see tpm.Open), or makes them if TPM
// and st are both blank. The caller closes st after the Host.
func OpenHost(spec string, st Storage, site string, specs []Spec) (*Host, error) {
	dev, err := tpm.Open(spec)
	if err != nil {
		return nil, &Error{
			What: "the TPM cannot be opened",
			Mend: "start swtpm or name a TPM device that this user may open, and have no other program hold it",
			Err:  err,
		}
	}
	h := &Host{dev: dev, served: make(chan error, 1), recorded: make(chan error, 1)}
	if err := h.open(st, site, specs); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return h, nil
}

func (h *Host) open(st Storage, site string, specs []Spec) error {
	var err error
	if h.Info, err = h.dev.Info(); err != nil {
		return explain(err)
	}
	binding := Binding{Kind: KindHost}
	h.Vault, err = Open(h.dev, st, site, specs, binding)
	if errors.Is(err, ErrNotProvisioned) {
		h.Vault, err = Provision(h.dev, st, site, specs, binding)
	}
	if err != nil {
		return err
	}
	handover, err := h.Vault.Handover()
	if err != nil {
		h.Vault.Close()
		return err
	}
	defer clear(handover)
	h.Vault.Forget()
	holderEnd, vaultEnd := net.Pipe()
	holder, err := NewHolder(h.dev, handover, holderEnd)
	if err != nil {
		h.Vault.Close()
		return err
	}
	h.vault = holderEnd
	go func() { h.recorded <- h.Vault.ServeRecords(vaultEnd) }()
	ours, theirs := net.Pipe()
	go func() { h.served <- holder.Serve(theirs) }()
	h.Client = NewClient(ours)
	return nil
}

// Close ends holder and client, forgets the secrets and closes the TPM.
func (h *Host) Close() error {
	h.Client.Close()
	err := <-h.served
	err = errors.Join(err, h.vault.Close(), <-h.recorded)
	h.Vault.Close()
	return errors.Join(err, h.dev.Close())
}
