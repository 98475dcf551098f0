package enroll

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
)

// check refuses a profile whose fields contradict each other.
func (p Profile) check() error {
	if p.Challenges == nil {
		return errors.New("challenges are required; a set without any kind refuses all")
	}
	switch p.Renewal.Proof {
	case "":
		if p.Renewal.Window != 0 || p.Renewal.Grace != 0 {
			return errors.New("a renewal window needs a proof")
		}
	case ProofCertificate, ProofCertificateChallenge:
		if p.Renewal.Window <= 0 || p.Renewal.Grace < 0 {
			return errors.New("renewal needs a window above 0 and no negative grace")
		}
	default:
		return errors.New("renewal proof is neither certificate nor certificate+challenge")
	}
	if err := p.checkEST(); err != nil {
		return err
	}
	if p.Intune != nil && (p.Approval.Manual || len(p.Approval.ManualIf) > 0) {
		return errors.New("requests that Intune validated cannot wait for approval")
	}
	if p.RenewFrom != nil && p.Renewal.Proof == "" {
		return errors.New("certificates to renew from need a renewal proof")
	}
	if p.MaxActive < 0 || p.HeldFor < 0 {
		return errors.New("the number of active certificates or the time to wait for approval is negative")
	}
	if p.Limits.PerSource < 0 || p.Limits.PerProfile < 0 {
		return errors.New("a limit is negative")
	}
	for _, suffix := range p.Approval.ManualIf {
		if strings.TrimSpace(suffix) == "" {
			return errors.New("an empty suffix would hold every request, write manual for that")
		}
	}
	return nil
}

func (p Profile) checkEST() error {
	takesAny := p.EST.Basic != nil || p.EST.Challenge || p.EST.Issued || p.EST.Bundle != nil
	switch {
	case p.EST.On != takesAny:
		return errors.New("EST needs a proof to take, and a proof needs EST")
	case p.EST.Issued && p.Renewal.Proof == "":
		return errors.New("EST by issued certificates needs a renewal proof")
	}
	return nil
}

// isOff reports whether an administrator switched the profile off.
func (p Profile) isOff() bool { return p.Off != nil && p.Off() }

// holds reports whether a person has to look at a request. A suffix is looked for in DNS names too,
// which people and software take for the name of a device as well.
func (a Approval) holds(csr *pki.Request) bool {
	if a.Manual {
		return true
	}
	for _, suffix := range a.ManualIf {
		if csr.EndsWith(suffix) {
			return true
		}
	}
	return false
}

// guards are what the intent of x has to take: its challenge's, and a slot of each limit.
func (x *attempt) guards() []store.Guard {
	guards := slices.Clone(x.verdict.Guards)
	limits := x.profile.Limits
	if limits.PerProfile > 0 {
		guards = append(guards, hourly(limits.PerProfile, "profile", x.Profile))
	}
	if limits.PerSource > 0 {
		guards = append(guards, hourly(limits.PerSource, "source", x.Profile, sourceKey(x.Source).String()))
	}
	return guards
}

// hourly admits n transactions an hour. What is more than one entry of the store holds is admitted at
// the same rate within a shorter time.
func hourly(n int, name ...string) store.Guard {
	fields := make([][]byte, len(name))
	for i, text := range name {
		fields[i] = []byte(text)
	}
	g := store.Guard{Kind: store.GuardRate, Key: hashFields("limit", fields...), Max: n, Window: time.Hour}
	if n > store.MaxRate {
		g.Max, g.Window = store.MaxRate, time.Duration(float64(time.Hour)*store.MaxRate/float64(n))
	}
	return g
}

// sourceKey is what counts as one source: an IPv4 address, or the /64 one IPv6 host chooses freely in.
func sourceKey(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return addr
}
