package keys

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Create makes a key at run time and returns it once KEYS has it in both generations. The name is one of
// "authority/NAME.N", "ra.N" and "intune/PROFILE", N from 2. Where a key of this very spec was made before,
// Create returns that one; ErrExists if another key has the name. A key in the TPM takes seconds to
// minutes, in which every other resident key waits; ErrBusy while another is being made. After an error
// other than these the key is there after the next boot, or not, but no half of it.
func (c *Client) Create(s Spec) (*Key, error) {
	info, err := c.askInfo(opCreate, s.Name, s.Algorithm, s.Protection)
	if err != nil {
		return nil, fmt.Errorf("making key %v: %w", s, err)
	}
	return &Key{c: c, info: info}, nil
}

// Delete removes a key that Create made from KEYS and from the holder; it can never be used again.
// ErrNoKey if there is none.
func (c *Client) Delete(name string) error {
	if _, err := c.ask(opDelete, nil, name); err != nil {
		return fmt.Errorf("removing key %q: %w", name, err)
	}
	return nil
}

// PutSecret keeps a value of 1 to MaxSecret bytes as "secret/LABEL" or "secret/LABEL/LABEL", sealed like a key, in place of
// what the name had before. Whoever can use the keys can read it back.
func (c *Client) PutSecret(name string, value []byte) error {
	if _, err := c.ask(opPutSecret, value, name); err != nil {
		return fmt.Errorf("keeping %q: %w", name, err)
	}
	return nil
}

// Secret returns what PutSecret kept; ErrNoKey if there is nothing of that name.
func (c *Client) Secret(name string) ([]byte, error) {
	value, err := c.ask(opSecret, nil, name)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	return value, nil
}

// DeleteSecret removes what PutSecret kept; ErrNoKey if there is nothing of that name.
func (c *Client) DeleteSecret(name string) error {
	if _, err := c.ask(opDeleteSecret, nil, name); err != nil {
		return fmt.Errorf("removing %q: %w", name, err)
	}
	return nil
}

// Certification is a TPM's statement about one of its resident keys (TPM 2.0 Part 3 §18.2), by which
// somebody who trusts the attestation key sees that the other lives in the same TPM and cannot leave it.
type Certification struct {
	Attest         []byte // TPMS_ATTEST of type TPM_ST_ATTEST_CERTIFY over the nonce and the key's Name
	Signature      []byte // by the attestation key over SHA-256 of Attest: ASN.1, as crypto.Signer gives it
	Public         []byte // TPMT_PUBLIC of the key, of which the Name is made
	AttestationKey []byte // SubjectPublicKeyInfo
}

// maxNonce bounds the nonce of a certification: TPM2B_DATA takes no more than the largest digest.
const maxNonce = 32

// Certify has the attestation key state that the key of that name is resident, over a nonce of 1 to 32
// bytes of whoever asks.
func (c *Client) Certify(name string, nonce []byte) (Certification, error) {
	body, err := c.ask(opCertify, nonce, name)
	if err != nil {
		return Certification{}, fmt.Errorf("certifying key %q: %w", name, err)
	}
	var out Certification
	s := cryptobyte.String(body)
	if !readBytes(&s, &out.Attest) || !readBytes(&s, &out.Signature) || !readBytes(&s, &out.Public) || !readBytes(&s, &out.AttestationKey) || !s.Empty() {
		return Certification{}, fmt.Errorf("certifying key %q: %w", name, errFrame)
	}
	return out, nil
}

// ask makes the request that manageRequest describes and returns the body of the answer.
func (c *Client) ask(op uint8, value []byte, names ...string) ([]byte, error) {
	for _, name := range names {
		if len(name) > maxName {
			return nil, fmt.Errorf("name of %d bytes, at most %d fit", len(name), maxName)
		}
	}
	body, err := manageRequest{names: names, value: value}.encode()
	if err != nil {
		return nil, err
	}
	f, err := c.call(op, body)
	return f.body, err
}

func (c *Client) askInfo(op uint8, names ...string) (Info, error) {
	body, err := c.ask(op, nil, names...)
	if err != nil {
		return Info{}, err
	}
	s := cryptobyte.String(body)
	return readInfo(&s)
}
