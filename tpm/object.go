package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Blob is an object as it is kept outside the TPM: only the TPM whose SRK it was made under can load
// it. Whoever can change a Blob can exchange it for another object of that TPM; what is loaded is
// therefore compared with what is expected first.
type Blob struct {
	Public  []byte `json:"public"`  // TPMT_PUBLIC
	Private []byte `json:"private"` // contents of TPM2B_PRIVATE, encrypted by the SRK
}

// Name is the object's TPM Name, 34 bytes: it stands for its public area, policy and attributes
// included.
func (b Blob) Name() ([]byte, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return nil, fmt.Errorf("parsing a TPM object: %w", err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, fmt.Errorf("naming a TPM object: %w", err)
	}
	return name.Buffer, nil
}

// create makes an object under the SRK. auth and data travel encrypted.
func (s *SRK) create(t transport.TPM, template tpm2.TPMTPublic, auth, data []byte) (Blob, error) {
	s.d.unload(t)
	sensitive := tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}}
	if data != nil {
		sensitive.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data})
	}
	rsp, err := tpm2.Create{
		ParentHandle: s.use(encryptInOut),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &sensitive},
		InPublic:     tpm2.New2B(template),
	}.Execute(t)
	if err != nil {
		return Blob{}, err
	}
	return Blob{Public: rsp.OutPublic.Bytes(), Private: rsp.OutPrivate.Buffer}, nil
}

// checkPublic compares an object's public area with the template it was made from. Everything but
// the key itself has to be the same, bit by bit: attributes, algorithm, scheme and policy.
func checkPublic(b Blob, template tpm2.TPMTPublic) (*tpm2.TPMTPublic, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrPolicy, err)
	}
	template.Unique = pub.Unique
	if pub.Type != template.Type || !bytes.Equal(tpm2.Marshal(template), b.Public) {
		return nil, fmt.Errorf("%w: attributes, algorithm or policy differ", ErrPolicy)
	}
	return pub, nil
}

// A raw TPM has three slots for loaded objects, and so has each client of the kernel's resource
// manager; a persistent object needs one while it is used. Two keys stay loaded, and one slot is
// free for the SRK or the policy key. What needs both calls unload first.
const maxLoaded = 2

type loadedKey struct {
	name   string
	handle tpm2.TPMHandle
}

// load returns the handle of a key, loading it where it is not among the latest used.
func (d *Device) load(t transport.TPM, s *SRK, b Blob, name tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	for i, k := range d.loaded {
		if k.name == string(name.Buffer) {
			d.loaded = append(append(d.loaded[:i:i], d.loaded[i+1:]...), k)
			return k.handle, nil
		}
	}
	for len(d.loaded) >= maxLoaded {
		flush(t, d.loaded[0].handle)
		d.loaded = d.loaded[1:]
	}
	h, err := s.load(t, b, name)
	if err != nil {
		return 0, err
	}
	d.loaded = append(d.loaded, loadedKey{string(name.Buffer), h})
	return h, nil
}

// unload flushes every loaded key, and the session that is kept.
func (d *Device) unload(t transport.TPM) {
	d.endSession(t)
	for _, k := range d.loaded {
		flush(t, k.handle)
	}
	d.loaded = nil
}

func (s *SRK) load(t transport.TPM, b Blob, name tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	rsp, err := tpm2.Load{
		ParentHandle: s.use(encryptIn),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](b.Public),
	}.Execute(t)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return 0, fmt.Errorf("%w: the object was not made by it: %v", ErrForeignTPM, err)
	}
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(rsp.Name.Buffer, name.Buffer) {
		flush(t, rsp.ObjectHandle)
		return 0, fmt.Errorf("%w: the TPM loaded another object", ErrPolicy)
	}
	return rsp.ObjectHandle, nil
}

// authorised runs use with the approval that p needs, which is verified once and kept: verifying is
// most of the cost of a signature. What is kept goes stale when the PCR changes.
func (d *Device) authorised(t transport.TPM, p Policy, digest []byte, use func(*approval) error) error {
	if p.Key == nil {
		return use(nil)
	}
	if a := d.approvals[string(digest)]; a != nil && p.holds(a) {
		if err := use(a); !errors.Is(err, ErrMeasurement) {
			return err
		}
		delete(d.approvals, string(digest))
	}
	a, err := p.approve(t)
	if err != nil {
		return err
	}
	if d.approvals == nil {
		d.approvals = make(map[string]*approval)
	}
	d.approvals[string(digest)] = a
	return use(a)
}

// sealTemplate is a sealed secret: usable by policy only, in this TPM only.
func sealTemplate(policy []byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
	}
}

// Seal keeps a secret of at most 128 bytes under p. Its authorisation value is empty: with p.Auth
// alone whoever has the Blob and the TPM opens it.
func (s *SRK) Seal(secret []byte, p Policy) (Blob, error) {
	digest, err := p.Digest()
	if err != nil {
		return Blob{}, err
	}
	b, err := get(s.d, func(t transport.TPM) (Blob, error) { return s.create(t, sealTemplate(digest), nil, secret) })
	if err != nil {
		return Blob{}, fmt.Errorf("sealing: %w", err)
	}
	return b, nil
}

// Unseal opens what Seal made under the same policy. ErrPolicy if b is under another,
// ErrMeasurement if what is measured now is not approved, ErrForeignTPM if b is of another TPM.
func (s *SRK) Unseal(b Blob, p Policy) ([]byte, error) {
	digest, err := p.Digest()
	if err != nil {
		return nil, err
	}
	pub, err := checkPublic(b, sealTemplate(digest))
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	secret, err := get(s.d, func(t transport.TPM) (secret []byte, err error) {
		s.d.unload(t)
		h, err := s.load(t, b, *name)
		if err != nil {
			return nil, err
		}
		defer flush(t, h)
		err = s.d.authorised(t, p, digest, func(a *approval) error {
			rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
				Handle: h, Name: *name, Auth: s.policySession(p, a, nil, encryptOut),
			}}.Execute(t)
			if err != nil {
				return explain(err)
			}
			secret = rsp.OutData.Buffer
			return nil
		})
		return secret, err
	})
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return secret, nil
}
