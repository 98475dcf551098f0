package keys

import (
	"fmt"

	"signet.internal/tpm"
)

// material is the secret that keys are made from and opened with: the root secret for those of the site,
// the creation secret, which comes from it, for those of run time. The second is in the holder for the
// whole boot; nothing leads from it to the first.
type material struct {
	secret    []byte
	wrapLabel string
	authLabel string
}

func provisionedFrom(root []byte) material { return material{root, labelWrap, labelAuth} }

func createdFrom(creation []byte) material {
	return material{creation, labelCreatedWrap, labelCreatedAuth}
}

// make makes a key under p and returns its record, and what opens it as open does.
func (m material) make(srk *tpm.SRK, s Spec, p tpm.Policy) (r record, opening []byte, err error) {
	r = record{Name: s.Name, Algorithm: s.Algorithm, Protection: s.Protection}
	if s.Protection == Resident {
		if opening, err = deriveAuth(m.secret, m.authLabel+s.Name); err != nil {
			return record{}, nil, err
		}
		r.Blob, err = srk.CreateKey(s.Algorithm, s.usage(), p, opening)
	} else {
		if opening, err = generate(s.Algorithm); err != nil {
			return record{}, nil, err
		}
		r.Wrapped, err = m.seal(keyContext(s), opening)
	}
	if err != nil {
		clear(opening)
		return record{}, nil, err
	}
	return r, opening, nil
}

// open returns the authorisation value of a resident key, or PKCS #8 of a sealed one.
func (m material) open(r record) ([]byte, error) {
	if r.Protection == Resident {
		return deriveAuth(m.secret, m.authLabel+r.Name)
	}
	pkcs8, err := m.unseal(keyContext(r.spec()), r.Wrapped)
	if err != nil {
		return nil, fmt.Errorf("opening sealed key %q: %w", r.Name, err)
	}
	return pkcs8, nil
}

func (m material) seal(context, plain []byte) ([]byte, error) {
	key, err := derive(m.secret, m.wrapLabel)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return wrap(key, context, plain)
}

func (m material) unseal(context, wrapped []byte) ([]byte, error) {
	key, err := derive(m.secret, m.wrapLabel)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return unwrap(key, context, wrapped)
}
