package authority

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// authorityKey is the name of the key of an authority's generation.
func authorityKey(name string, generation int) string {
	if generation == 1 {
		return provision.KeyAuthorityPrefix + name
	}
	return provision.KeyAuthorityPrefix + name + "." + strconv.Itoa(generation)
}

// raKey is the name of the RA key of that number.
func raKey(number int) string {
	if number == 1 {
		return provision.KeyRA
	}
	return provision.KeyRA + "." + strconv.Itoa(number)
}

// numbered is an identity in which every authority has generations: see [store.AuthorityCerts].
func numbered(saved store.Identity) store.Identity {
	id := clone(saved)
	id.RANumber = max(id.RANumber, 1)
	for name, a := range id.Authorities {
		if a.CA == nil {
			continue
		}
		id.Authorities[name] = store.AuthorityCerts{
			Generations: []store.GenerationCerts{{Number: 1, State: store.GenerationActive, Chain: [][]byte{a.CA}}},
			Numbered:    1,
			RAs:         []store.RACert{{Number: 1, Certificate: a.RA}},
		}
	}
	return id
}

// clone copies what a transition may change. The certificates are shared: nobody writes into them.
func clone(id store.Identity) store.Identity {
	id.Authorities = maps.Clone(id.Authorities)
	if id.Authorities == nil {
		id.Authorities = map[string]store.AuthorityCerts{}
	}
	for name, a := range id.Authorities {
		a.Generations = slices.Clone(a.Generations)
		a.RAs = slices.Clone(a.RAs)
		id.Authorities[name] = a
	}
	id.TLSUploaded = maps.Clone(id.TLSUploaded)
	return id
}

// built is what readers are to see of an identity. What is nil or absent is as before.
type built struct {
	snapshots map[string]*Snapshot
	tls       *tlsState
}

// build binds the certificates of an identity, where they differ from those before, to the holder's
// keys; a certificate of another key means that disk and TPM do not belong together. The caller holds mu.
func (s *Set) build(before, id store.Identity) (built, error) {
	b := built{snapshots: map[string]*Snapshot{}}
	for _, a := range s.cfg.Site.Authorities {
		certs, ok := id.Authorities[a.Name]
		if !ok {
			return built{}, &mendable{fmt.Errorf("authority %s is in the site but was not created when the box was provisioned", a.Name), "take it out of the site, or provision a new box with it"}
		}
		if old, ok := before.Authorities[a.Name]; ok && reflect.DeepEqual(old, certs) {
			continue
		}
		snapshot, err := s.snapshot(a, certs)
		if err != nil {
			return built{}, fmt.Errorf("authority %s: %w", a.Name, err)
		}
		b.snapshots[a.Name] = snapshot
	}
	if !bytes.Equal(before.TLSRoot, id.TLSRoot) || !bytes.Equal(before.TLS, id.TLS) || !bytes.Equal(before.TLSRSA, id.TLSRSA) ||
		!reflect.DeepEqual(before.TLSUploaded, id.TLSUploaded) {
		var err error
		if b.tls, err = s.buildTLS(id); err != nil {
			return built{}, err
		}
	}
	return b, nil
}

func (s *Set) publish(b built) {
	for name, snapshot := range b.snapshots {
		s.snapshots[name].Store(snapshot)
	}
	if b.tls != nil {
		s.tls.Store(b.tls)
	}
}

// snapshot makes what readers see of one authority.
func (s *Set) snapshot(a provision.Authority, certs store.AuthorityCerts) (*Snapshot, error) {
	out := &Snapshot{Name: a.Name}
	for _, r := range certs.RAs {
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("RA certificate: %w", err)
		}
		key, err := s.keyOf(raKey(r.Number), cert)
		if err != nil {
			return nil, fmt.Errorf("RA certificate: %w", err)
		}
		out.RAs = append(out.RAs, RA{Number: r.Number, Certificate: cert, Key: key, Replaced: r.Replaced})
	}
	for _, g := range slices.Backward(certs.Generations) {
		if g.State == store.GenerationWaiting {
			out.Waiting = g.Number
			continue
		}
		generation, err := s.generation(a.Name, g)
		if err != nil {
			return nil, fmt.Errorf("generation %d: %w", g.Number, err)
		}
		if r := generation.Responder; r != nil {
			generation.Own = append(generation.Own, r.Certificate)
		}
		for _, r := range out.RAs {
			if r.Certificate.CheckSignatureFrom(generation.Issuer.Certificate()) == nil {
				generation.Own = append(generation.Own, r.Certificate)
			}
		}
		switch g.State {
		case store.GenerationNext:
			out.Next = generation
		case store.GenerationActive:
			out.Active = generation
		case store.GenerationEarlier:
			out.Earlier = append(out.Earlier, generation)
		default:
			return nil, fmt.Errorf("%w: generation %d is %.20q", store.ErrDamaged, g.Number, g.State)
		}
	}
	if out.Active != nil && len(out.RAs) == 0 {
		return nil, fmt.Errorf("%w: no RA certificate", store.ErrDamaged)
	}
	return out, nil
}

func (s *Set) generation(name string, g store.GenerationCerts) (*Generation, error) {
	if len(g.Chain) == 0 {
		return nil, fmt.Errorf("%w: no certificate", store.ErrDamaged)
	}
	out := &Generation{Number: g.Number, Superseded: g.Superseded}
	var chain []*x509.Certificate
	for _, der := range g.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	out.Chain = chain[1:]
	var err error
	if out.Key, err = s.keyOf(authorityKey(name, g.Number), chain[0]); err != nil {
		return nil, err
	}
	if out.Issuer, err = s.issuer(name, g.Number, chain, out.Key); err != nil {
		return nil, err
	}
	if out.NewWithOld, err = parseOptional(g.NewWithOld); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if out.OldWithNew, err = parseOptional(g.OldWithNew); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if g.Responder != nil {
		cert, err := x509.ParseCertificate(g.Responder)
		if err != nil {
			return nil, fmt.Errorf("responder certificate: %w", err)
		}
		key, err := s.keyOf(provision.KeyOCSP, cert)
		if err != nil {
			return nil, fmt.Errorf("responder certificate: %w", err)
		}
		out.Responder = &Responder{Certificate: cert, Key: key}
	}
	return out, nil
}

func parseOptional(der []byte) (*x509.Certificate, error) {
	if der == nil {
		return nil, nil
	}
	return x509.ParseCertificate(der)
}

// issuer binds a CA certificate, the first of its chain, to its key, to what the chain allows it, and to where
// it publishes.
func (s *Set) issuer(name string, generation int, chain []*x509.Certificate, key *keys.Key) (*pki.Issuer, error) {
	issuer, err := pki.NewIssuer(chain[0], key)
	if err == nil {
		issuer, err = issuer.Under(chain[1:])
	}
	if err != nil || s.cfg.Locations == nil {
		return issuer, err
	}
	return issuer.Publishing(s.cfg.Locations(name, generation)), nil
}

// key is the holder's key of that name.
func (s *Set) key(name string) (*keys.Key, error) {
	if k := s.held[name]; k != nil {
		return k, nil
	}
	k, err := s.cfg.Keys.Key(name)
	if errors.Is(err, keys.ErrNoKey) {
		return nil, &mendable{fmt.Errorf("the state names a key that the key holder does not have: %w", err), "the disk's state is older than the keys, or of another box: put the disk back that was last used with this TPM"}
	}
	if err != nil {
		return nil, err
	}
	s.held[name] = k
	return k, nil
}

// keyOf is the holder's key of that name, which has to be cert's.
func (s *Set) keyOf(name string, cert *x509.Certificate) (*keys.Key, error) {
	k, err := s.key(name)
	if err != nil {
		return nil, err
	}
	if !samePublic(cert.PublicKey, k.Public()) {
		return nil, fmt.Errorf("key %q is not the certificate's: disk and TPM do not belong together", name)
	}
	return k, nil
}

// created is the key of that name and spec, made if there is none. One that an attempt cut short left,
// and that is of another spec because the site has changed since, is replaced: nothing names it.
func (s *Set) created(spec keys.Spec) (*keys.Key, error) {
	delete(s.held, spec.Name)
	k, err := s.cfg.Keys.Create(spec)
	if errors.Is(err, keys.ErrExists) {
		if err := s.cfg.Keys.Delete(spec.Name); err != nil {
			return nil, err
		}
		k, err = s.cfg.Keys.Create(spec)
	}
	if err != nil {
		return nil, err
	}
	s.held[spec.Name] = k
	return k, nil
}
