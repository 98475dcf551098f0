package webui

import (
	"slices"

	"signet.internal/appliance/audit"
)

// actionWords is what people are told of an action.
type actionWords struct {
	Action  audit.Action
	Name    string // on lists
	Meaning string // a sentence
}

// actionGroup is actions that people look for together.
type actionGroup struct {
	Key     string // in addresses
	Label   string
	Actions []actionWords
}

// actionGroups names every action of the audit log, each once.
func actionGroups() []actionGroup {
	return []actionGroup{
		{"enrollment", "Enrollment", []actionWords{
			{audit.SCEPPKCSReq, "SCEP enrollment", "A device asked for its first certificate by SCEP, and the box decided."},
			{audit.SCEPRenewalReq, "SCEP renewal", "A device asked by SCEP to renew a certificate of this box, and the box decided."},
			{audit.SCEPPKCSReqIntune, "SCEP enrollment, Intune", "A device asked for its first certificate by SCEP with a challenge of its device manager, and the box decided."},
			{audit.SCEPRenewalReqIntune, "SCEP renewal, Intune", "A device asked by SCEP to renew its certificate with a challenge of its device manager, and the box decided."},
			{audit.SCEPRefused, "SCEP refused", "A SCEP message was refused. The reason says why, and how many more of the same kind came from that address within the minute."},
			{audit.ESTSimpleEnroll, "EST enrollment", "A device asked for a certificate by EST, and the box decided."},
			{audit.ESTSimpleReenroll, "EST renewal", "A device asked by EST to renew a certificate of this box, and the box decided."},
			{audit.ESTServerKeyGen, "EST key generation", "A device asked by EST for a key and a certificate, and the box decided. The key was never stored."},
			{audit.ESTRefused, "EST refused", "A request of EST was refused. The reason says why, and how many more of the same kind came from that address within the minute."},
			{audit.IssuanceBegun, "Issuance begun", "Serial number and contents of a certificate were fixed. From here on a signature may exist; another record says how it ended."},
			{audit.TransactionLost, "Issuance lost", "A certificate was begun and never finished. Its serial number is on the revocation list, because a signature may exist."},
			{audit.CertificateDelivered, "Certificate delivered", "The device manager was told of a certificate that was held back until then."},
		}},
		{"approvals", "Approvals", []actionWords{
			{audit.RequestHeld, "Request held", "A request waits for a person to decide on it."},
			{audit.RequestApproved, "Request approved", "A person approved a request that waited. Its issuance begins with the next record."},
			{audit.RequestDenied, "Request denied", "A person refused a request that waited. The device is told the reason when it asks again."},
			{audit.RequestExpired, "Request expired", "Nobody decided on a request in time, so it counts as denied."},
		}},
		{"revocation", "Revocation", []actionWords{
			{audit.CertificateRevoked, "Certificate revoked", "A certificate was revoked or put on hold, by a person, or by the box because it was renewed."},
			{audit.CertificateReleased, "Certificate released", "A person took a certificate off hold: it is good again."},
			{audit.CRLSigned, "Revocation list signed", "An authority’s revocation list was signed. The reason says its number and length."},
		}},
		{"settings", "Challenges and settings", []actionWords{
			{audit.ChallengeMinted, "Challenge made", "A person had a one-time challenge made for one device."},
			{audit.TrustReplaced, "Trust replaced", "Certificates that a profile believes, a challenge or a password were replaced, or the attempt was refused."},
			{audit.SecretEntered, "Secret entered", "A person entered a secret, which is kept sealed by the TPM. The identity names it."},
			{audit.ProfileSwitched, "Profile switched", "A person switched a profile off, or on again."},
		}},
		{"authorities", "Authorities and keys", []actionWords{
			{audit.AuthorityPrepared, "Authority prepared", "The key of an authority’s next generation was made. It issues nothing yet."},
			{audit.AuthorityInstalled, "Chain installed", "A person uploaded the certificates above an authority’s key."},
			{audit.AuthorityActivated, "Authority activated", "A generation of an authority issues certificates from here on."},
			{audit.AuthorityCancelled, "Authority cancelled", "A person gave up an authority’s next generation."},
			{audit.AuthorityRetired, "Authority retired", "Every certificate of an authority’s earlier generation has ended."},
			{audit.RARenewed, "RA key replaced", "The key that SCEP devices encrypt to was replaced by a new one."},
			{audit.RARetired, "RA keys retired", "RA keys that were replaced before decrypt no longer."},
			{audit.ResponderRenewed, "OCSP certificate renewed", "The certificate of an authority’s OCSP responder was replaced."},
			{audit.TLSRenewed, "TLS certificate renewed", "The certificate of the box’s own listeners was replaced."},
			{audit.TLSInstalled, "TLS certificate uploaded", "A person uploaded a certificate for the box’s listeners, or took it back."},
		}},
		{"box", "The box", []actionWords{
			{audit.BoxInitialised, "Box initialised", "The box made its state and recorded the certificates of its authorities. A log begins with this."},
			{audit.BoxStarted, "Box started", "The service started on the state that was there."},
			{audit.BoxAnchored, "Rollback counter begun", "The counter in the TPM that shows an older disk put back begins to count for this state."},
			{audit.BoxRollbackFound, "Older state found", "The disk is older than the TPM’s counter says. Nothing is issued until a person acknowledges it."},
			{audit.BoxRollbackAcknowledged, "Older state acknowledged", "A person took the older state for the box’s own from here on."},
			{audit.RecordsRemoved, "Records removed", "The site’s retention removed the oldest records of this log. Their hashes stay, so that the log remains provable."},
		}},
		{"people", "People and access", []actionWords{
			{audit.AdminClaimed, "Box claimed", "The first administrator was created with the code on the box’s screen."},
			{audit.ClaimRefused, "Claim refused", "Somebody tried to claim the box with a wrong code, or after it was claimed."},
			{audit.LoginRefused, "Sign-in refused", "A password, passkey or token was not good."},
			{audit.SignedIn, "Signed in", "A person signed in to the console."},
			{audit.SignedOut, "Signed out", "A person ended their session."},
			{audit.SessionEnded, "Session ended", "Somebody ended a session from a list, or a change of password, role or switch ended it. The identity says whose."},
			{audit.UserCreated, "User added", "An administrator added a user. The reason says their role."},
			{audit.UserChanged, "User changed", "An administrator changed a user’s role, or switched them off or on."},
			{audit.UserRemoved, "User removed", "An administrator removed a user with their tokens and passkeys."},
			{audit.PasswordChanged, "Password changed", "The password of the user that the identity names was replaced."},
			{audit.TokenCreated, "Token made", "An API token was made for the user that the identity names. The reason says what it may do."},
			{audit.TokenRevoked, "Token revoked", "An API token of the user that the identity names is taken no more."},
			{audit.PasskeyAdded, "Passkey added", "A user added a passkey to what they sign in with."},
			{audit.PasskeyRemoved, "Passkey removed", "A passkey of the user that the identity names was removed."},
			{audit.PasskeySuspected, "Passkey suspected", "A passkey’s counter went back, so there may be a copy of it. It signs nobody in any more."},
		}},
	}
}

// wordsOf finds the words of an action; one from a later version of the box is called by its own name.
func wordsOf(a audit.Action) actionWords {
	for _, g := range actionGroups() {
		if i := slices.IndexFunc(g.Actions, func(w actionWords) bool { return w.Action == a }); i >= 0 {
			return g.Actions[i]
		}
	}
	return actionWords{a, string(a), "This version of the box does not know this action."}
}

// actionsOf are the actions that a filter names: one, or a group's. isKnown is false for a name of neither.
func actionsOf(filter string) (actions []audit.Action, isKnown bool) {
	if filter == "" {
		return nil, true
	}
	for _, g := range actionGroups() {
		for _, w := range g.Actions {
			if g.Key == filter {
				actions = append(actions, w.Action)
			} else if string(w.Action) == filter {
				return []audit.Action{w.Action}, true
			}
		}
	}
	return actions, len(actions) > 0
}

// outcomeWords are the outcomes with what they mean.
func outcomeWords() []struct {
	Outcome audit.Outcome
	Meaning string
} {
	return []struct {
		Outcome audit.Outcome
		Meaning string
	}{
		{audit.OutcomeSuccess, "It took effect."},
		{audit.OutcomeRefused, "The box decided against it."},
		{audit.OutcomePending, "A person has to decide."},
		{audit.OutcomeFailed, "The box could not do it. No signature exists."},
		{audit.OutcomeLost, "The box could not finish it. A signature may exist, so the serial number is revoked."},
		{audit.OutcomeBegun, "It is intended; nothing is signed yet."},
	}
}
