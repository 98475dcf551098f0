package appliance

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"slices"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/authority"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/scep"
	"signet.internal/appliance/store"
	"signet.internal/appliance/validation"
)

// identity is the box's authorities and its own certificates, as each protocol wants to see them.
type identity struct {
	*authority.Set
	views map[string]*atomic.Pointer[view] // by authority; the map never changes
}

// view is one snapshot of an authority.
type view struct {
	snapshot *authority.Snapshot
	issuers  enroll.Issuers
	scep     *scep.Authority

	// caCerts are what EST's cacerts answers (RFC 7030 §4.1.3), DER: the CA that issues and those above it, then
	// those before and after it with the links between them.
	caCerts   [][]byte
	published []validation.Generation // oldest first
}

// openIdentity loads the box's certificates, and makes them in a provisioning boot. While isOlder, it does not
// look after those that devices get.
func openIdentity(c Config, st *store.Store, isOlder func() bool) (*identity, error) {
	if !st.Initialised() && c.Boot.Provisioning && c.Boot.Kind == handover.KindBox {
		awaitAddress()
	}
	set, err := authority.Open(authority.Config{
		Site: c.Site, Store: st, Keys: c.Keys, Now: c.Now, TimeSource: c.Boot.TimeSource, Log: c.Log,
		Locations: c.locations, Older: isOlder,
	}, c.Boot.Provisioning)
	if err != nil {
		return nil, err
	}
	id := &identity{Set: set, views: map[string]*atomic.Pointer[view]{}}
	for _, a := range c.Site.Authorities {
		id.views[a.Name] = new(atomic.Pointer[view])
	}
	return id, nil
}

// awaitAddress gives a box on its first boot some seconds to get an address, so that its first TLS
// certificate carries it and the fingerprint on the screen does not change a minute later.
func awaitAddress() {
	for range 30 {
		if len(authority.IPv4(authority.InterfaceAddresses())) > 0 {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// view is an authority as it is now. It is made once for each snapshot, so that what is built on it can
// be kept while nothing changes.
func (id *identity) view(name string) *view {
	snapshot := id.Snapshot(name)
	if v := id.views[name].Load(); v != nil && v.snapshot == snapshot {
		return v
	}
	v := &view{snapshot: snapshot, scep: &scep.Authority{}}
	if active := snapshot.Active; active != nil {
		v.issuers.Active = active.Issuer
		v.scep.CA, v.scep.Chain = active.Issuer.Certificate(), active.Chain
	}
	for _, g := range snapshot.Earlier {
		v.issuers.Earlier = append(v.issuers.Earlier, g.Issuer)
	}
	v.scep.Earlier = v.issuers.Earlier
	for _, ra := range snapshot.RAs {
		v.scep.RAs = append(v.scep.RAs, scep.RA{Certificate: ra.Certificate, Signer: ra.Key, Decrypter: ra.Key})
	}
	if next := snapshot.Next; next != nil {
		v.scep.Next = &scep.Next{CA: next.Issuer.Certificate(), Chain: next.Chain}
	}
	v.publish()
	id.views[name].Store(v)
	return v
}

// publish fills in what relying parties and EST devices fetch.
func (v *view) publish() {
	generations := slices.Clone(v.snapshot.Earlier)
	slices.Reverse(generations)
	if v.snapshot.Active != nil {
		generations = append(generations, v.snapshot.Active)
	}
	if v.snapshot.Next != nil {
		generations = append(generations, v.snapshot.Next)
	}
	add := func(certificates ...*x509.Certificate) {
		for _, c := range certificates {
			if c != nil && !slices.ContainsFunc(v.caCerts, func(der []byte) bool { return bytes.Equal(der, c.Raw) }) {
				v.caCerts = append(v.caCerts, c.Raw)
			}
		}
	}
	if active := v.snapshot.Active; active != nil {
		add(active.Issuer.Certificate())
		add(active.Chain...)
		for _, g := range generations {
			add(g.Issuer.Certificate())
			add(g.Chain...)
			add(g.NewWithOld, g.OldWithNew)
		}
	}
	for _, g := range generations {
		p := validation.Generation{Number: g.Number, Issuer: g.Issuer, Own: g.Own}
		if g.Responder != nil {
			// What does not fit was refused when the certificate was made; then there is no OCSP.
			p.Responder, _ = pki.NewResponder(g.Issuer.Certificate(), g.Responder.Certificate, g.Responder.Key)
		}
		v.published = append(v.published, p)
	}
}

// signer is the newest RA, nil before there is any.
func (v *view) signer() (*x509.Certificate, crypto.Signer) {
	if len(v.snapshot.RAs) == 0 {
		return nil, nil
	}
	return v.snapshot.RAs[0].Certificate, v.snapshot.RAs[0].Key
}

// record is the audit record of something the box did for itself.
func (a *Appliance) record(action audit.Action) audit.Record {
	return audit.Record{Action: action, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess, Time: a.config.Now(), TimeSource: a.config.Boot.TimeSource}
}
