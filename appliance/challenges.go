package appliance

import (
	"fmt"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/store"
	"signet.internal/webui"
)

// conditionTime is how conditions write a time: as the console does.
const conditionTime = "2006-01-02 15:04:05 UTC"

// conditions are what about the box's certificates and the profiles' trust needs a person.
func (a *Appliance) conditions() []handover.Condition {
	var all []handover.Condition
	now := a.config.Now()
	for _, c := range a.identity.Conditions(now) {
		all = append(all, handover.Condition(c))
	}
	all = append(all, a.spaceConditions()...)
	all = append(all, a.streaming.conditions(now)...)
	all = append(all, a.anchor.conditions(now)...)
	all = append(all, a.proxies.conditions(now)...)
	for _, s := range a.settings {
		all = append(all, s.conditions(now)...)
	}
	return all
}

func (s *settings) conditions(now time.Time) []handover.Condition {
	var all []handover.Condition
	add := func(mend, what string, args ...any) {
		all = append(all, handover.Condition{What: "Profile " + s.profile.Name + " " + fmt.Sprintf(what, args...), Mend: mend})
	}
	if stopped := s.stopped(now); stopped != nil {
		all = append(all, *stopped)
	}
	if o := s.off.Load(); o != nil {
		add("Switch it on again when the reason is gone.", "was switched off by %s: %s.", o.By, strings.TrimSuffix(string(o.Value), "."))
	}
	if s.hook != nil && !s.hook.hasKey() {
		add("Enter the webhook's key on the profile's page (or PUT /api/v1/profiles/"+s.profile.Name+"/secrets/compliance).", "issues nothing: the compliance webhook's key was not entered yet.")
	}
	if s.intune != nil {
		mend := "Download the certificate on the profile's page (or GET /api/v1/profiles/" + s.profile.Name + "/intune/certificate) and register it with Entra."
		switch last := s.intune.newest(); {
		case last == nil:
			add(mend, "cannot ask Intune: the box has no credential for it yet.")
		case now.After(last.NotAfter):
			add(mend, "cannot ask Intune: the credential expired on %s.", last.NotAfter.UTC().Format(time.DateOnly))
		case isDue(last, now):
			add(mend, "asks Intune with a credential that expires on %s.", last.NotAfter.UTC().Format(time.DateOnly))
		}
	}
	return all
}

// mint makes a one-time challenge, recorded with who ordered it before it is returned.
func (a *Appliance) mint(m webui.Mint) (secret string, expires time.Time, err error) {
	s, err := a.settingsOf(m.Profile)
	if err != nil || m.Profile == "" {
		return "", time.Time{}, webui.ErrNoProfile
	}
	if s.oneTime == nil {
		return "", time.Time{}, webui.ErrNoOneTime
	}
	record := a.record(audit.ChallengeMinted)
	record.Actor, record.Source, record.Profile, record.Identity = m.Actor, m.Source, m.Profile, m.CN
	var failed error
	secret, expires, err = s.oneTime.Mint(m.CN, m.SANs, m.TTL, a.config.Now(), func(g store.Guard) error {
		record.Reason = mintedFor(m, g.Until)
		failed = a.store.Mint(g, record)
		return failed
	})
	if err != nil && failed == nil { // the order itself is wrong
		err = &webui.OrderError{Err: err}
	}
	return secret, expires, err
}

// mintedFor says in the log what a challenge is good for besides its common name.
func mintedFor(m webui.Mint, until time.Time) string {
	text := "good until " + until.Format(time.RFC3339)
	if len(m.SANs) > 0 {
		text += fmt.Sprintf(", for %d names: %s", len(m.SANs), strings.Join(m.SANs, ", "))
	}
	return text
}
