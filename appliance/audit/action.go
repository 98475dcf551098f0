package audit

// Action names what a record is about. The names are part of the log's format: they are never
// renamed or reused with another meaning.
type Action string

const (
	// IssuanceBegun: serial and template are fixed and durable; from here on a signature may exist.
	IssuanceBegun Action = "issuance_begun"
	// SCEPPKCSReq: a SCEP PKCSReq was decided; one record per certificate issued (or failed) by it.
	SCEPPKCSReq Action = "scep_pkcsreq"
	// SCEPRenewalReq: as SCEPPKCSReq, for a request signed by a certificate of this box.
	SCEPRenewalReq Action = "scep_renewalreq"
	// SCEPPKCSReqIntune: as SCEPPKCSReq, for a request with a device manager's challenge: one it signed, or Intune's own.
	SCEPPKCSReqIntune Action = "scep_pkcsreq_intune"
	// SCEPRenewalReqIntune: as SCEPRenewalReq, for a request with such a challenge.
	SCEPRenewalReqIntune Action = "scep_renewalreq_intune"
	// SCEPRefused: a SCEP message was refused; the reason says why, and how many more of the same
	// kind came from that source within the minute where they were counted instead of written.
	SCEPRefused Action = "scep_refused"
	// ESTSimpleEnroll: an EST simpleenroll was decided; one record per certificate issued (or failed) by it.
	ESTSimpleEnroll Action = "est_simpleenroll"
	// ESTSimpleReenroll: as ESTSimpleEnroll, for simplereenroll.
	ESTSimpleReenroll Action = "est_simplereenroll"
	// ESTServerKeyGen: as ESTSimpleEnroll, for serverkeygen.
	ESTServerKeyGen Action = "est_serverkeygen"
	// ESTRefused: as SCEPRefused, for a request of EST.
	ESTRefused Action = "est_refused"
	// TransactionLost: a begun issuance was never finished (crash, signer error). Its serial is burnt.
	TransactionLost Action = "transaction_lost"
	// RequestHeld: a request waits for a person; its reason says what else it asks for.
	RequestHeld Action = "request_held"
	// RequestApproved: a user approved a held request; its issuance begins with the next record.
	RequestApproved Action = "request_approved"
	// RequestDenied: a user denied a held request.
	RequestDenied Action = "request_denied"
	// RequestExpired: nobody decided on a held request in time; it counts as denied.
	RequestExpired Action = "request_expired"
	// CertificateDelivered: the device manager knows of a certificate that was held back until then.
	CertificateDelivered Action = "certificate_delivered"
	// CertificateRevoked: a certificate was revoked by a user, put on hold, or revoked by the box because it
	// was renewed.
	CertificateRevoked Action = "certificate_revoked"
	// CertificateReleased: a user took a certificate off hold.
	CertificateReleased Action = "certificate_released"
	// CRLSigned: an authority's revocation list was signed; the reason says its number and length.
	CRLSigned Action = "crl_signed"
	// ChallengeMinted: a user had a one-time challenge made for the device of that identity.
	ChallengeMinted Action = "challenge_minted"
	// TrustReplaced: a trust bundle or challenge of a profile was replaced, or the attempt refused.
	TrustReplaced Action = "trust_replaced"
	// SecretEntered: a user entered a secret that is kept sealed; the identity names it.
	SecretEntered Action = "secret_entered"
	// ProfileSwitched: a user switched a profile off, or on again; the reason says which and why.
	ProfileSwitched Action = "profile_switched"
	// BoxInitialised: the state was created and the authorities' certificates recorded.
	BoxInitialised Action = "box_initialised"
	// AuthorityPrepared: the key of an authority's next generation was made.
	AuthorityPrepared Action = "authority_prepared"
	// AuthorityInstalled: a user uploaded the chain of certificates above an authority's key.
	AuthorityInstalled Action = "authority_installed"
	// AuthorityActivated: a generation of an authority issues certificates from here on.
	AuthorityActivated Action = "authority_activated"
	// AuthorityCancelled: a user gave an authority's next generation up.
	AuthorityCancelled Action = "authority_cancelled"
	// AuthorityRetired: every certificate of an authority's earlier generation has ended.
	AuthorityRetired Action = "authority_retired"
	// RARenewed: the RA's key was replaced by a new one, which the authorities certified.
	RARenewed Action = "ra_renewed"
	// RARetired: replaced RA certificates are no longer answered.
	RARetired Action = "ra_retired"
	// ResponderRenewed: the certificate of an authority's OCSP responder was replaced.
	ResponderRenewed Action = "responder_renewed"
	// TLSRenewed: the certificate of the box's own listeners was replaced.
	TLSRenewed Action = "tls_renewed"
	// TLSInstalled: a user uploaded a certificate for the box's listeners, or took it back.
	TLSInstalled Action = "tls_installed"
	// BoxStarted: the service started on existing state.
	BoxStarted Action = "box_started"
	// BoxAnchored: the counter in the TPM by which an older disk shows that was put back begins to count for
	// this state; the reason says where.
	BoxAnchored Action = "box_anchored"
	// BoxRollbackFound: the service started on state older than what the TPM's counter says; nothing is issued.
	BoxRollbackFound Action = "box_rollback_found"
	// BoxRollbackAcknowledged: a user took the older state for the box's from here on.
	BoxRollbackAcknowledged Action = "box_rollback_acknowledged"
	// RecordsRemoved: the site's retention removed the first records of this log, all before the one that the
	// identity names; their hashes stay in its tree.
	RecordsRemoved Action = "records_removed"
	// AdminClaimed: the first administrator was created with the code from the screen.
	AdminClaimed Action = "admin_claimed"
	// ClaimRefused: a claim was refused: wrong code, or the box already has an administrator.
	ClaimRefused Action = "claim_refused"
	// LoginRefused: an API or console request carried a token or password that is not valid.
	LoginRefused Action = "login_refused"
	// SignedIn: a person signed in to the console by password or passkey, or by claiming the box there.
	SignedIn Action = "signed_in"
	// SignedOut: a person ended their session; one that ran out or died with a restart has no record.
	SignedOut Action = "signed_out"
	// SessionEnded: a user ended a session from a list, theirs or, as an administrator, another's; or a changed
	// password, role or switch ended all of a user's. The identity is whose it was.
	SessionEnded Action = "session_ended"
	// UserCreated: an administrator created a user; the identity is their name, the reason says their role.
	UserCreated Action = "user_created"
	// UserChanged: an administrator changed a user's role, or switched them off or on; the reason says which.
	UserChanged Action = "user_changed"
	// UserRemoved: an administrator removed a user with their tokens and passkeys.
	UserRemoved Action = "user_removed"
	// PasswordChanged: the password of the user that the identity names was replaced, by them or an administrator.
	PasswordChanged Action = "password_changed"
	// TokenCreated: an API token was made for the user that the identity names; the reason says what it may do.
	TokenCreated Action = "token_created"
	// TokenRevoked: an API token of the user that the identity names is taken no more.
	TokenRevoked Action = "token_revoked"
	// PasskeyAdded: a user added a passkey to what they sign in with.
	PasskeyAdded Action = "passkey_added"
	// PasskeyRemoved: a passkey of the user that the identity names was removed.
	PasskeyRemoved Action = "passkey_removed"
	// PasskeySuspected: a passkey's sign count went back, so there may be a copy of it; it signs nobody in any more.
	PasskeySuspected Action = "passkey_suspected"
)

// Actions lists every action the box writes, in the order of their declaration.
func Actions() []Action {
	return []Action{
		IssuanceBegun, SCEPPKCSReq, SCEPRenewalReq, SCEPPKCSReqIntune, SCEPRenewalReqIntune, SCEPRefused,
		ESTSimpleEnroll, ESTSimpleReenroll, ESTServerKeyGen, ESTRefused, TransactionLost,
		RequestHeld, RequestApproved, RequestDenied, RequestExpired, CertificateDelivered, CertificateRevoked, CertificateReleased, CRLSigned,
		ChallengeMinted, TrustReplaced, SecretEntered, ProfileSwitched, BoxInitialised,
		AuthorityPrepared, AuthorityInstalled, AuthorityActivated, AuthorityCancelled, AuthorityRetired,
		RARenewed, RARetired, ResponderRenewed, TLSRenewed, TLSInstalled, BoxStarted, BoxAnchored, BoxRollbackFound, BoxRollbackAcknowledged,
		RecordsRemoved,
		AdminClaimed, ClaimRefused, LoginRefused, SignedIn, SignedOut, SessionEnded,
		UserCreated, UserChanged, UserRemoved, PasswordChanged, TokenCreated, TokenRevoked, PasskeyAdded, PasskeyRemoved, PasskeySuspected,
	}
}

// Actors that are not users.
const (
	ActorDevice = "device" // whoever enrolls
	ActorBox    = "box"    // the box itself
)
