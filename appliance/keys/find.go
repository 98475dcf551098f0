package keys

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"signet.internal/tpm"
)

// found is what TPM and KEYS say, before any secret is opened.
type found struct {
	marker    []byte // nil: none
	container *container
	payload   []byte    // of the newest generation
	contents  *contents // nil: KEYS is empty
}

// Mends that several states share.
const (
	mendMove = "put the disk back into the machine it came from, or, to give this machine new keys, flash the disk again and clear this machine's TPM in the firmware setup"
	mendOver = "restore the disk from a copy of this very machine; to start over with new keys, flash the disk again and clear the TPM in the firmware setup, which destroys the old keys"
)

// find reads the marker and KEYS.
func find(dev *tpm.Device, st Storage) (*found, error) {
	var f found
	var err error
	if f.container, err = readContainer(st); err != nil {
		return nil, explain(err)
	}
	if f.marker, err = dev.ReadMarker(); err != nil {
		return nil, explain(err)
	}
	if f.container.newer() {
		return nil, &Error{
			What: "the KEYS partition was written by newer firmware",
			Mend: "boot the newer image",
		}
	}
	newest := f.container.newest()
	if newest == nil {
		if f.container.empty() {
			return &f, nil
		}
		return nil, &Error{
			What: "the KEYS partition is damaged in both its generations",
			Mend: mendOver,
		}
	}
	f.payload = newest.payload
	if f.contents, err = decodeContents(newest.payload); err != nil {
		return nil, &Error{
			What: "the KEYS partition holds nothing that this firmware understands",
			Mend: "boot the image that wrote it, or " + mendOver,
			Err:  err,
		}
	}
	return &f, nil
}

// blank says that no key of this machine can ever have been used.
func (f *found) blank() bool {
	return f.marker == nil && (f.contents == nil || f.contents.State == stateProvisioning)
}

// check finds out whether keys and TPM belong together and to this site, and names what does not fit.
func (f *found) check(dev *tpm.Device, site string, specs []Spec, b Binding) (*tpm.SRK, error) {
	c := f.contents
	if c == nil {
		return nil, &Error{
			What: "this machine's TPM was provisioned, but the disk holds no keys",
			Mend: "put the disk of this machine back; to start over with new keys, clear the TPM in the firmware setup, which destroys the old ones",
		}
	}
	if c.Kind != b.Kind {
		return nil, &Error{
			What: fmt.Sprintf("these keys were made on a %s, and this is a %s", c.Kind, b.Kind),
			Mend: "use the keys where they were made; keys of a host are tied to no measured boot and never become a box's",
		}
	}
	srk, err := dev.OpenSRK(c.SRKName)
	if errors.Is(err, tpm.ErrForeignTPM) {
		return nil, &Error{What: "this TPM does not hold this box's keys", Mend: mendMove, Err: err}
	}
	if err != nil {
		return nil, explain(err)
	}
	if f.marker == nil {
		return nil, &Error{
			What: "the disk holds keys, but this machine's TPM has lost the mark that it was provisioned",
			Mend: "find out who removed it from the TPM; " + mendOver,
		}
	}
	if c.Site != site {
		return nil, &Error{
			What: fmt.Sprintf("this box was provisioned for site %q, and the image is for site %q", c.Site, site),
			Mend: fmt.Sprintf("install an image of site %q: the name of a site cannot change", c.Site),
		}
	}
	marker, err := c.marker()
	if err != nil || !bytes.Equal(marker, f.marker) {
		return nil, &Error{
			What: "the disk's keys are not those that this machine's TPM was provisioned with",
			Mend: "put back the disk that belongs to this machine; " + mendOver,
			Err:  err,
		}
	}
	if d := c.differences(specs); len(d) > 0 {
		return nil, &Error{
			What: "the site asks for other keys than this box was provisioned with: " + strings.Join(d, ", "),
			Mend: "install an image of the site with the keys the box has, or provision another box",
		}
	}
	if b.Kind == KindBox && c.Epoch > b.Epoch {
		return nil, &Error{
			What: fmt.Sprintf("this image is of epoch %d, and the keys need at least epoch %d", b.Epoch, c.Epoch),
			Mend: "boot a newer image",
		}
	}
	return srk, nil
}

// explain turns what the TPM or the storage said into an *Error with a mend.
func explain(err error) error {
	var known *Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, tpm.ErrMeasurement):
		return &Error{
			What: "what this machine booted is not approved to open its keys",
			Mend: "boot the image as it was baked, from its own boot entry and with its own command line; after an update that fails like this, boot the image before it",
			Err:  err,
		}
	case errors.Is(err, tpm.ErrPolicy):
		return &Error{
			What: "the keys are not protected by this site's boot policy",
			Mend: "install an image signed with the policy key this box was provisioned with; if it is, the KEYS partition was tampered with: treat the disk as attacked",
			Err:  err,
		}
	case errors.Is(err, tpm.ErrForeignTPM), errors.Is(err, tpm.ErrAuth):
		return &Error{What: "this TPM does not hold this box's keys", Mend: mendMove, Err: err}
	case errors.Is(err, tpm.ErrHandleTaken):
		return &Error{
			What: "something else sits in the TPM where this box keeps its own",
			Mend: "remove what was put there; if nothing in this machine's TPM is still needed, clear it in the firmware setup",
			Err:  err,
		}
	case errors.Is(err, tpm.ErrAlgorithm):
		return &Error{
			What: "this TPM cannot hold a key that the site asks for",
			Mend: "choose rsa-2048 or ecdsa-p256 for that key in site.yaml, or another machine",
			Err:  err,
		}
	case errors.Is(err, tpm.ErrUnreachable), errors.Is(err, tpm.ErrBusy), errors.Is(err, tpm.ErrClosed):
		return &Error{
			What: "the TPM does not answer",
			Mend: "switch the machine off and on again; if it stays like this, replace the machine",
			Err:  err,
		}
	}
	return &Error{
		What: "keys could not be opened or stored",
		Mend: "switch the machine off and on again; if it stays like this, look at the detail: a disk or a TPM is failing",
		Err:  err,
	}
}
