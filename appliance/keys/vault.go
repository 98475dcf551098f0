package keys

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"

	"signet.internal/tpm"
)

// Vault is the open KEYS of a box. It may be used from any goroutine; Forget and Close forget its secrets.
type Vault struct {
	binding  Binding
	repaired bool

	mu        sync.Mutex
	container *container
	contents  *contents
	forgot    bool
	closed    bool

	macKey []byte // kept until Close: by it KEYS is written

	// Until Forget.
	diskKey  []byte
	creation []byte            // what keys and secrets of run time are made from: see material
	openings map[string][]byte // by key: see material.open
	values   map[string][]byte // of secrets, by name
}

// What a boot finds, by what the TPM's marker and KEYS say. Provision goes from the first line to the
// last; a power cut leaves one of them:
//
//	marker   KEYS          after                            then
//	none     empty         nothing, the SRK or the anchor   ErrNotProvisioned
//	none     provisioning  KEYS written                     ErrNotProvisioned: no key can have been used
//	fits     provisioning  marker written (define + write)  Open goes on, and commits
//	fits     provisioned   KEYS committed, both generations Open
//
// An index that is defined but not written counts as no marker. A first generation whose header was
// not written counts as empty. Everything else is an *Error: keys that may have been used are never
// replaced.

// Provision makes the keys that specs ask for and keeps them in dev's TPM and in st, if neither has
// any: only after ErrNotProvisioned from Open, which it asks again by itself. On a box it needs the
// boot phase in which the root secret opens, and proves that it does before anything is written to st.
func Provision(dev *tpm.Device, st Storage, site string, specs []Spec, b Binding) (*Vault, error) {
	if err := checkSpecs(specs); err != nil {
		return nil, fmt.Errorf("provisioning: %w", err)
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	f, err := find(dev, st)
	if err != nil {
		return nil, err
	}
	if !f.blank() {
		return nil, &Error{
			What: "this machine is provisioned already",
			Mend: "boot it as it is; to start over with new keys, clear the TPM in the firmware setup and flash the disk again, which destroys the old keys",
		}
	}
	if findings := dev.Preflight(); len(findings) > 0 {
		var what, mend []string
		for _, f := range findings {
			what, mend = append(what, f.What), append(mend, f.Mend)
		}
		return nil, &Error{What: strings.Join(what, ", and "), Mend: strings.Join(mend, "; ")}
	}
	srk, err := dev.MakeSRK()
	if err != nil {
		return nil, explain(err)
	}
	root := make([]byte, 32)
	defer clear(root)
	if _, err := rand.Read(root); err != nil {
		return nil, fmt.Errorf("provisioning: making the root secret: %w", err)
	}
	v := &Vault{container: f.container, binding: b}
	if err := v.create(srk, root, site, specs); err != nil {
		v.Close()
		return nil, explain(err)
	}
	if err := v.makeAnchor(srk); err != nil {
		v.Close()
		return nil, explain(err)
	}
	if err := v.install(dev); err != nil {
		v.Close()
		return nil, explain(err)
	}
	return v, nil
}

// create makes root secret and keys in memory.
func (v *Vault) create(srk *tpm.SRK, root []byte, site string, specs []Spec) error {
	policy := v.binding.rootPolicy(v.binding.Epoch)
	blob, err := srk.Seal(root, policy)
	if err != nil {
		return err
	}
	again, err := srk.Unseal(blob, policy)
	if err != nil {
		return err
	}
	defer clear(again)
	if !bytes.Equal(again, root) {
		return errors.New("the TPM returned another root secret than it was given")
	}
	v.contents = &contents{
		Format: contentsFormat, State: stateProvisioning, Kind: v.binding.Kind, Site: site,
		SRKName: srk.Name(), Epoch: v.binding.Epoch, Root: blob,
	}
	if err := v.derive(root); err != nil {
		return err
	}
	if v.contents.Commitment, err = derive(root, labelCommitment); err != nil {
		return err
	}
	for _, s := range sortedSpecs(specs) {
		r, opening, err := provisionedFrom(root).make(srk, s, v.binding.usePolicy())
		if err != nil {
			return fmt.Errorf("key %q: %w", s.Name, err)
		}
		v.openings[s.Name] = opening
		v.contents.Keys = append(v.contents.Keys, r)
	}
	return nil
}

// makeAnchor makes the state-rollback counter. One that is there is of an attempt that was cut short, or
// of a box whose keys are gone: nothing counts on it.
func (v *Vault) makeAnchor(srk *tpm.SRK) error {
	counter, err := anchorCounter(srk, v.creation)
	if err != nil {
		return err
	}
	v.contents.Anchor, err = counter.Remake()
	return err
}

// derive fills in what the root secret gives for the whole boot.
func (v *Vault) derive(root []byte) (err error) {
	v.openings, v.values = make(map[string][]byte), make(map[string][]byte)
	if v.diskKey, err = derive(root, labelDisk); err != nil {
		return err
	}
	if v.macKey, err = derive(root, labelMAC); err != nil {
		return err
	}
	v.creation, err = derive(root, labelCreation)
	return err
}

// install writes what create made, in the order above.
func (v *Vault) install(dev *tpm.Device) error {
	payload, err := v.contents.encode(v.macKey)
	if err != nil {
		return err
	}
	if err := v.container.put(payload); err != nil {
		return err
	}
	marker, err := v.contents.marker()
	if err != nil {
		return err
	}
	if err := dev.WriteMarker(marker); err != nil {
		return err
	}
	return v.commit()
}

// commit makes both generations say provisioned.
func (v *Vault) commit() error {
	v.contents.State = stateProvisioned
	payload, err := v.contents.encode(v.macKey)
	if err != nil {
		return err
	}
	return v.container.putBoth(payload)
}

// Open opens the keys of an earlier Provision. On a box it needs the boot phase in which the root
// secret opens. ErrNotProvisioned if there never was one; every other reason is an *Error. Nothing is
// written before the keys are known to be this box's.
func Open(dev *tpm.Device, st Storage, site string, specs []Spec, b Binding) (*Vault, error) {
	if err := checkSpecs(specs); err != nil {
		return nil, fmt.Errorf("opening keys: %w", err)
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	f, err := find(dev, st)
	if err != nil {
		return nil, err
	}
	if f.blank() {
		return nil, ErrNotProvisioned
	}
	srk, err := f.check(dev, site, specs, b)
	if err != nil {
		return nil, err
	}
	v := &Vault{container: f.container, contents: f.contents, binding: b}
	if err := v.open(srk, f.payload); err != nil {
		v.Close()
		return nil, explain(err)
	}
	if v.contents.State == stateProvisioning {
		err = v.commit()
	} else if !v.container.same() {
		v.repaired = true
		err = v.container.put(f.payload)
	}
	if err != nil {
		v.Close()
		return nil, explain(err)
	}
	return v, nil
}

// open unseals the root secret, checks KEYS by it and opens the sealed keys. What a holder has recorded at
// run time and does not open is passed over: it is of no use to anybody, and no reason to keep what was
// provisioned closed.
func (v *Vault) open(srk *tpm.SRK, payload []byte) error {
	root, err := srk.Unseal(v.contents.Root, v.binding.rootPolicy(v.contents.Epoch))
	if err != nil {
		return err
	}
	defer clear(root)
	if err := v.derive(root); err != nil {
		return err
	}
	commitment, err := derive(root, labelCommitment)
	if err != nil {
		return err
	}
	if !bytes.Equal(commitment, v.contents.Commitment) || !authentic(payload, v.macKey) {
		return &Error{
			What: "the KEYS partition was changed by something other than this box",
			Mend: "write back the disk as it was; if nobody changed it on purpose, treat the disk as attacked",
		}
	}
	for _, r := range v.contents.Keys {
		m := provisionedFrom(root)
		if r.Created {
			m = createdFrom(v.creation)
		}
		opening, err := m.open(r)
		if err == nil && r.Protection == Resident {
			_, err = srk.Key(r.Blob, r.Algorithm, r.spec().usage(), v.binding.usePolicy(), opening)
		}
		switch {
		case err == nil:
			v.openings[r.Name] = opening
		case !r.Created:
			return fmt.Errorf("key %q: %w", r.Name, err)
		}
	}
	for _, s := range v.contents.Secrets {
		if value, err := createdFrom(v.creation).unseal(secretContext(s.Name), s.Wrapped); err == nil {
			v.values[s.Name] = value
		}
	}
	return nil
}

// DiskKey is the 32-byte key of the state partition; nothing after Forget. The caller wipes it.
func (v *Vault) DiskKey() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.diskKey)
}

// SRKName is the TPM Name of the storage root key the keys hang from.
func (v *Vault) SRKName() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return bytes.Clone(v.contents.SRKName)
}

// Repaired says that one generation of KEYS was damaged or old and was written anew from the other.
// After a power cut that is normal; on a box that lost no power the disk is failing.
func (v *Vault) Repaired() bool { return v.repaired }

// Initialised says that the state directory was initialised in an earlier boot: state that is missing
// now is lost, not new.
func (v *Vault) Initialised() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.contents.Initialised
}

// MarkInitialised records that the state directory is initialised, once the service was ready for the
// first time. A power cut during it leaves the flag as it was, or set.
func (v *Vault) MarkInitialised() error {
	if v.Initialised() {
		return nil
	}
	return v.change(func(c *contents) error {
		c.Initialised = true
		return nil
	})
}

// change writes contents with what edit makes of them to both generations. edit replaces slices and does
// not write to them. After an error the vault stays at the old contents, and KEYS may hold either.
func (v *Vault) change(edit func(*contents) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return errClosed
	}
	changed := *v.contents
	if err := edit(&changed); err != nil {
		return err
	}
	payload, err := changed.encode(v.macKey)
	if err != nil {
		return err
	}
	if err := v.container.putBoth(payload); err != nil {
		return explain(err)
	}
	v.contents = &changed
	return nil
}

var errClosed = errors.New("the vault is closed")

// Forget wipes what Handover passed on. What stays is enough to write KEYS and opens nothing.
func (v *Vault) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget()
}

func (v *Vault) forget() {
	v.forgot = true
	clear(v.diskKey)
	clear(v.creation)
	v.diskKey, v.creation = nil, nil
	for _, m := range []map[string][]byte{v.openings, v.values} {
		for _, secret := range m {
			clear(secret)
		}
	}
	v.openings, v.values = nil, nil
}

// Close forgets every secret. What was handed over stays usable, and nothing is written any more.
func (v *Vault) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	v.forget()
	clear(v.macKey)
}
