package appliance

import (
	"errors"
	"fmt"

	"signet.internal/appliance/authority"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/webui"
)

// orders is what administrators order of the box, as the console wants it.
type orders struct{ a *Appliance }

var _ webui.Box = orders{}

// Authorities implements webui.Box.
func (o orders) Authorities() []webui.AuthorityInfo {
	var all []webui.AuthorityInfo
	for _, site := range o.a.config.Site.Authorities {
		now := o.a.identity.Snapshot(site.Name)
		info := webui.AuthorityInfo{Name: site.Name, Mode: site.Mode, Protection: site.Protection, Subject: site.SubjectText, Algorithm: site.Algorithm}
		if site.PathLen != nil {
			info.PathLen = *site.PathLen
		}
		for i := len(now.Earlier) - 1; i >= 0; i-- {
			info.Generations = append(info.Generations, o.generationInfo(site.Name, now.Earlier[i], webui.GenerationEarlier))
		}
		if now.Active != nil {
			info.Generations = append(info.Generations, o.generationInfo(site.Name, now.Active, webui.GenerationActive))
		}
		if now.Next != nil {
			info.Generations = append(info.Generations, o.generationInfo(site.Name, now.Next, webui.GenerationNext))
		}
		if now.Waiting != 0 {
			info.Generations = append(info.Generations, webui.GenerationInfo{Number: now.Waiting, State: webui.GenerationWaiting})
		}
		for _, ra := range now.RAs {
			info.RAs = append(info.RAs, webui.RAInfo{Certificate: ra.Certificate, Replaced: ra.Replaced})
		}
		all = append(all, info)
	}
	return all
}

func (o orders) generationInfo(name string, g *authority.Generation, state string) webui.GenerationInfo {
	info := webui.GenerationInfo{Number: g.Number, State: state, Certificate: g.Issuer.Certificate(), Chain: g.Chain, Superseded: g.Superseded}
	if g.Responder != nil {
		info.Responder = g.Responder.Certificate
	}
	info.Published = o.a.config.locations(name, g.Number)
	var err error
	if info.CRL, err = o.a.store.LastCRL(g.Issuer.ID()); err != nil && !errors.Is(err, store.ErrNotFound) {
		o.a.config.Log.Error("reading what was published", "authority", name, "err", err)
	}
	return info
}

// AuthorityRequest implements webui.Box.
func (o orders) AuthorityRequest(name string) (webui.AuthorityRequest, error) {
	r, err := o.a.identity.CSR(name)
	if err != nil {
		return webui.AuthorityRequest{}, ordered(err)
	}
	out := webui.AuthorityRequest{Generation: r.Generation, PEM: r.PEM}
	if c := r.Certification; c != nil {
		out.Certification = &webui.Certification{Attest: c.Attest, Signature: c.Signature, Public: c.Public, AttestationKey: c.AttestationKey}
	}
	return out, nil
}

// InstallChain implements webui.Box.
func (o orders) InstallChain(name string, pem []byte, actor string) error {
	return o.changed(o.a.identity.InstallChain(name, pem, actor))
}

// PrepareNext implements webui.Box.
func (o orders) PrepareNext(name, actor string) error {
	return o.changed(o.a.identity.PrepareNext(name, actor))
}

// ActivateNext implements webui.Box.
func (o orders) ActivateNext(name, actor string) error {
	return o.changed(o.a.identity.ActivateNext(name, actor))
}

// CancelNext implements webui.Box.
func (o orders) CancelNext(name, actor string) error {
	return o.changed(o.a.identity.CancelNext(name, actor))
}

// RotateRA implements webui.Box.
func (o orders) RotateRA(actor string) error { return o.changed(o.a.identity.RotateRA(actor)) }

// TLSRequest implements webui.Box.
func (o orders) TLSRequest() ([]byte, error) {
	pem, err := o.a.identity.TLSCSR()
	return pem, ordered(err)
}

// InstallTLS implements webui.Box.
func (o orders) InstallTLS(pem []byte, actor string) error {
	return o.changed(o.a.identity.InstallTLS(pem, actor))
}

// DropTLS implements webui.Box.
func (o orders) DropTLS(actor string) error { return o.changed(o.a.identity.UseOwnTLS(actor)) }

// changed tells everybody who shows the box's certificates that they changed.
func (o orders) changed(err error) error {
	if err != nil {
		return ordered(err)
	}
	o.a.refreshHints()
	if err := o.a.writeReadyFile(); err != nil {
		o.a.config.Log.Error("rewriting the ready file", "err", err)
	}
	o.a.notify("STATUS=certificates changed")
	return nil
}

// ordered says what an error means to whoever gave the order.
func ordered(err error) error {
	conflict := func(mend string) error { return &webui.ConflictError{What: err.Error(), Mend: mend} }
	switch {
	case errors.Is(err, authority.ErrUnknown):
		return webui.ErrNoAuthority
	case errors.Is(err, authority.ErrPrepared):
		return conflict("activate or cancel the generation that is there")
	case errors.Is(err, authority.ErrOlder):
		return conflict("put the newest disk back, or acknowledge on the page of the box that there is none")
	case errors.Is(err, authority.ErrOverlap):
		return conflict("wait until the overlap of one is over")
	case errors.Is(err, authority.ErrNotPrepared):
		return conflict("prepare the next generation first")
	case errors.Is(err, authority.ErrWaiting):
		return conflict("have the authority's request signed and upload the chain")
	case errors.Is(err, authority.ErrRoot):
		return conflict("this authority signs itself; only subordinates take a chain")
	case errors.Is(err, pki.ErrChain):
		return &webui.OrderError{Err: err}
	case errors.Is(err, keys.ErrBusy):
		return fmt.Errorf("%w: %w", webui.ErrKeysBusy, err)
	}
	return err
}

// Settings implements webui.Box.
func (o orders) Settings(profile string) (webui.ProfileSettings, error) {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return webui.ProfileSettings{}, err
	}
	return s.describe(), nil
}

// SwitchProfile implements webui.Box.
func (o orders) SwitchProfile(profile string, off bool, reason, actor string) error {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return err
	}
	return o.a.switchProfile(s, off, reason, actor)
}

// ReplaceBundle implements webui.Box.
func (o orders) ReplaceBundle(profile, name string, pem []byte, actor string) error {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return err
	}
	return o.a.replaceBundle(s, name, pem, actor)
}

// ReplaceChallenge implements webui.Box.
func (o orders) ReplaceChallenge(profile, hash, actor string) error {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return err
	}
	return o.a.replaceChallenge(s, hash, actor)
}

// ReplacePassword implements webui.Box.
func (o orders) ReplacePassword(profile, user, hash, actor string) error {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return err
	}
	return o.a.replacePassword(s, user, hash, actor)
}

// PutSecret implements webui.Box.
func (o orders) PutSecret(name string, value []byte, actor string) error {
	return o.a.putSecret(name, value, actor)
}

// IntuneRequest implements webui.Box.
func (o orders) IntuneRequest(profile, actor string) ([]byte, error) {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return nil, err
	}
	return o.a.intuneCertificate(s, actor)
}
