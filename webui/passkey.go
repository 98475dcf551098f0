package webui

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// PasskeyOptions is what a browser needs to use or make a passkey.
type PasskeyOptions struct {
	Options map[string]any `json:"options" doc:"PublicKeyCredentialRequestOptionsJSON or PublicKeyCredentialCreationOptionsJSON (WebAuthn Level 3 §5.1.8, §5.1.9)"`
}

// PasskeyRequest is the body of POST /api/v1/account/passkeys.
type PasskeyRequest struct {
	Name       string         `json:"name" doc:"what you call it: 1 to 64 characters"`
	Credential map[string]any `json:"credential" doc:"RegistrationResponseJSON (WebAuthn Level 3 §5.1)"`
}

// PasskeySignIn is the body of POST /api/v1/sign-in/passkey.
type PasskeySignIn struct {
	Credential map[string]any `json:"credential" doc:"AuthenticationResponseJSON (WebAuthn Level 3 §5.1)"`
}

// SignedIn answers it, with the session's cookie.
type SignedIn struct {
	User string `json:"user"`
	Role string `json:"role"`
}

// PasskeyDetails is a passkey of a user.
type PasskeyDetails struct {
	ID       string     `json:"id" doc:"its credential id, base64url"`
	Name     string     `json:"name"`
	Host     string     `json:"host" doc:"it works at this address of the box alone"`
	Created  time.Time  `json:"created"`
	LastUsed *time.Time `json:"last_used,omitempty"`
	BackedUp bool       `json:"backed_up" doc:"its maker says that it is kept elsewhere too"`
	Suspect  bool       `json:"suspect" doc:"there may be a copy of it: it signs nobody in any more"`
}

// The ceremony under way travels sealed in a cookie, so that strangers who begin many cost the box no memory.
// It names the challenge, is bound to the browser by being there, and opens nothing without a signature.
const (
	ceremonyCookie = "__Host-signet-passkey"
	ceremonyLife   = 5 * time.Minute
)

// passkeys seals ceremonies and remembers those that were used.
type passkeys struct {
	now   func() time.Time
	seal  cipher.AEAD
	wrong *limiter // answers that were not accepted, per source
	mu    sync.Mutex
	used  map[string]time.Time // challenges that signed somebody in, until their ceremony is over
}

func newPasskeys(now func() time.Time) *passkeys {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // of 32 bytes
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return &passkeys{now: now, seal: seal, wrong: newLimiter(20, time.Minute, now), used: map[string]time.Time{}}
}

// passkeyCeremony is what has to be known when the browser answers.
type passkeyCeremony struct {
	Session webauthn.SessionData
	Origin  string
	User    string // who adds a passkey; "" where somebody signs in
	Until   time.Time
}

// begin makes the browser keep a ceremony.
func (p *passkeys) begin(w http.ResponseWriter, one passkeyCeremony) error {
	one.Until = p.now().Add(ceremonyLife)
	text, err := json.Marshal(one)
	if err != nil {
		return fmt.Errorf("encoding a ceremony: %w", err)
	}
	http.SetCookie(w, &http.Cookie{Name: ceremonyCookie, Value: base64.RawURLEncoding.EncodeToString(p.seal.Seal(nil, nil, text, nil)), Path: "/",
		MaxAge: int(ceremonyLife / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	return nil
}

// resume opens the ceremony that a browser brought back, which is over with that. user is who adds a passkey,
// "" where somebody signs in: none stands for the other.
func (p *passkeys) resume(w http.ResponseWriter, r *http.Request, user string) (passkeyCeremony, error) {
	http.SetCookie(w, &http.Cookie{Name: ceremonyCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	var one passkeyCeremony
	cookie, err := r.Cookie(ceremonyCookie)
	if err != nil {
		return one, errPasskey
	}
	sealed, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return one, errPasskey
	}
	text, err := p.seal.Open(nil, nil, sealed, nil)
	if err != nil {
		return one, errPasskey
	}
	if err := json.Unmarshal(text, &one); err != nil {
		return one, fmt.Errorf("decoding a ceremony: %w", err)
	}
	if left := one.Until.Sub(p.now()); left <= 0 || left > ceremonyLife || one.User != user {
		return one, errPasskey
	}
	return one, nil
}

// use marks the challenge of a ceremony that signed somebody in: a second answer to it does not.
func (p *passkeys) use(one passkeyCeremony) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for challenge, until := range p.used {
		if !now.Before(until) {
			delete(p.used, challenge)
		}
	}
	if _, again := p.used[one.Session.Challenge]; again {
		return errPasskey
	}
	p.used[one.Session.Challenge] = one.Until
	return nil
}

// passkeyHost is the host that passkeys are for at the address the browser is at, or why there are none.
func (c *console) passkeyHost(r *http.Request) (host, origin string, err error) {
	address := strings.ToLower(r.Host)
	host = address
	port := ""
	if h, p, err := net.SplitHostPort(address); err == nil {
		host, port = h, ":"+p
	}
	public := strings.ToLower(c.cfg.Site().PublicHost)
	if _, err := netip.ParseAddr(public); err == nil {
		public = "" // the site names no host
	}
	if host != "localhost" && (host != public || host == "") {
		mend := "the site names no host of its own: set public_host and bake it again; until then use the password"
		if public != "" {
			mend = "open the console at https://" + public + port + " and try there, or use the password"
		}
		return "", "", &ConflictError{"passkeys belong to a name, and this is not the box's", mend}
	}
	return host, "https://" + address, nil
}

// relyingParty is the box towards authenticators. It wants no attestation: which make of authenticator people
// use is theirs to choose.
func (c *console) relyingParty(host, origin string) (*webauthn.WebAuthn, error) {
	timeout := webauthn.TimeoutConfig{Timeout: ceremonyLife, TimeoutUVD: ceremonyLife}
	w, err := webauthn.New(&webauthn.Config{
		RPID: host, RPDisplayName: "Signet " + c.cfg.Site().Name, RPOrigins: []string{origin},
		AttestationPreference:  protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(), UserVerification: protocol.VerificationRequired},
		Timeouts:               webauthn.TimeoutsConfig{Login: timeout, Registration: timeout},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing for passkeys: %w", err)
	}
	return w, nil
}

// passkeyUser is a user as the WebAuthn library sees one.
type passkeyUser struct {
	name        string
	handle      []byte
	credentials []webauthn.Credential
}

func (u passkeyUser) WebAuthnID() []byte                         { return u.handle }
func (u passkeyUser) WebAuthnName() string                       { return u.name }
func (u passkeyUser) WebAuthnDisplayName() string                { return u.name }
func (u passkeyUser) WebAuthnCredentials() []webauthn.Credential { return u.credentials }

// credentialOf is a stored passkey as the library sees one.
func credentialOf(p store.Passkey) webauthn.Credential {
	out := webauthn.Credential{ID: p.ID, PublicKey: p.PublicKey, Authenticator: webauthn.Authenticator{SignCount: p.SignCount},
		Flags: webauthn.CredentialFlags{UserPresent: true, UserVerified: true, BackupEligible: p.BackupEligible, BackupState: p.BackedUp}}
	for _, t := range p.Transports {
		out.Transport = append(out.Transport, protocol.AuthenticatorTransport(t))
	}
	return out
}

// optionsOf is what the page's script passes on to the browser.
func optionsOf(v any) (PasskeyOptions, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return PasskeyOptions{}, fmt.Errorf("encoding options: %w", err)
	}
	var out PasskeyOptions
	return out, json.Unmarshal(text, &out.Options)
}

// apiPasskeySignInOptions begins a sign-in without a user name: the authenticator knows whose passkey it has.
func (c *console) apiPasskeySignInOptions(w http.ResponseWriter, r *http.Request, _ principal) error {
	host, origin, err := c.passkeyHost(r)
	if err != nil {
		return err
	}
	rp, err := c.relyingParty(host, origin)
	if err != nil {
		return err
	}
	assertion, state, err := rp.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return fmt.Errorf("beginning a sign-in by passkey: %w", err)
	}
	if err := c.passkeys.begin(w, passkeyCeremony{Session: *state, Origin: origin}); err != nil {
		return err
	}
	out, err := optionsOf(assertion.Response)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) apiPasskeySignIn(w http.ResponseWriter, r *http.Request, _ principal) error {
	var in PasskeySignIn
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	source := sourceKey(c.cfg.Source(r))
	if retry, ok := c.passkeys.wrong.take(source); !ok {
		return &limitedError{"too many passkeys from your address in the last minute that were not accepted", retry}
	}
	id, user, err := c.passkeySignIn(w, r, in)
	if err != nil {
		if !errors.Is(err, errPasskey) {
			c.passkeys.wrong.giveBack(source)
		}
		return err
	}
	c.passkeys.wrong.giveBack(source)
	c.endBrowser(r)
	setSession(w, id)
	writeJSON(w, http.StatusOK, mediaJSON, SignedIn{User: user.Name, Role: user.Role})
	return nil
}

// passkeySignIn checks what an authenticator signed and begins a session, whose identifier it returns.
func (c *console) passkeySignIn(w http.ResponseWriter, r *http.Request, in PasskeySignIn) (string, store.User, error) {
	refuse := func(reason, name string) (string, store.User, error) {
		c.noteOf(r, audit.LoginRefused, reason, name)
		return "", store.User{}, errPasskey
	}
	one, err := c.passkeys.resume(w, r, "")
	if err != nil {
		return "", store.User{}, err
	}
	answer, err := json.Marshal(in.Credential)
	if err != nil {
		return "", store.User{}, errUnreadable
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(answer)
	if err != nil {
		return "", store.User{}, fmt.Errorf("%w: the credential is not an AuthenticationResponseJSON", errUnreadable)
	}
	known, err := c.cfg.Store.Passkey(parsed.RawID)
	if errors.Is(err, store.ErrNoPasskey) {
		return refuse("unknown passkey", "")
	}
	if err != nil {
		return "", store.User{}, fmt.Errorf("looking for a passkey: %w", err)
	}
	user, err := c.cfg.Store.User(known.User)
	if err != nil {
		return "", store.User{}, fmt.Errorf("looking up the passkey's user: %w", err)
	}
	rp, err := c.relyingParty(one.Session.RelyingPartyID, one.Origin)
	if err != nil {
		return "", store.User{}, err
	}
	if known.Host != one.Session.RelyingPartyID {
		return refuse("passkey of another address of the box", user.Name)
	}
	find := func(_, _ []byte) (webauthn.User, error) {
		return passkeyUser{user.Name, user.Handle, []webauthn.Credential{credentialOf(known)}}, nil
	}
	if _, _, err := rp.ValidatePasskeyLogin(find, one.Session, parsed); err != nil {
		return refuse("the passkey's answer is not right", user.Name)
	}
	if user.Off {
		c.noteOf(r, audit.LoginRefused, "the user is switched off", user.Name)
		return "", store.User{}, errSwitchedOff
	}
	if err := c.passkeys.use(one); err != nil {
		return refuse("the passkey's answer was used before", user.Name)
	}
	rec := c.record(r, audit.SignedIn, audit.OutcomeSuccess)
	rec.Actor, rec.Reason = user.Name, "by passkey "+known.Name
	suspect := c.record(r, audit.PasskeySuspected, audit.OutcomeRefused)
	suspect.Actor, suspect.Identity, suspect.Reason = audit.ActorBox, user.Name, "the sign count of passkey "+known.Name+" went back"
	data := parsed.Response.AuthenticatorData
	if err := c.cfg.Store.SignInByPasskey(known.ID, data.Counter, data.Flags.HasBackupState(), sourceKey(c.cfg.Source(r)), rec, suspect); err != nil {
		if errors.Is(err, store.ErrSuspect) { // somebody with the copy may have signed in before its owner did
			err = errors.Join(err, c.endSessionsOf(r, user.Name, known, principal{user: audit.ActorBox}))
		}
		return "", store.User{}, err
	}
	id, err := c.openSession(r, user, session{how: howPasskey, passkey: string(known.ID)})
	return id, user, err
}

// addsPasskey refuses whoever is not freshly signed in, tokens above all: whoever signs in by the passkey may do all that
// the user may, also where the token could only read, or has ended.
func (c *console) addsPasskey(who principal) error {
	if who.via != viaSession {
		return errTokenPasskey
	}
	return c.fresh(who)
}

// apiPasskeyOptions begins the registration of a passkey for whoever is signed in.
func (c *console) apiPasskeyOptions(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.addsPasskey(who); err != nil {
		return err
	}
	host, origin, err := c.passkeyHost(r)
	if err != nil {
		return err
	}
	user, err := c.cfg.Store.User(who.user)
	if err != nil {
		return fmt.Errorf("looking up user: %w", err)
	}
	has, err := c.cfg.Store.Passkeys(who.user)
	if err != nil {
		return err
	}
	subject := passkeyUser{name: user.Name, handle: user.Handle}
	if subject.handle == nil {
		subject.handle = make([]byte, 32)
		rand.Read(subject.handle)
	}
	var exclude []protocol.CredentialDescriptor
	for _, p := range has {
		if p.Host == host {
			one := credentialOf(p)
			exclude = append(exclude, one.Descriptor())
		}
	}
	rp, err := c.relyingParty(host, origin)
	if err != nil {
		return err
	}
	creation, state, err := rp.BeginRegistration(subject, webauthn.WithExclusions(exclude))
	if err != nil {
		return fmt.Errorf("beginning to add a passkey: %w", err)
	}
	if err := c.passkeys.begin(w, passkeyCeremony{Session: *state, Origin: origin, User: who.user}); err != nil {
		return err
	}
	out, err := optionsOf(creation.Response)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) apiAddPasskey(w http.ResponseWriter, r *http.Request, who principal) error {
	var in PasskeyRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := c.addsPasskey(who); err != nil {
		return err
	}
	label, err := checkLabel("name", in.Name)
	if err != nil {
		return err
	}
	one, err := c.passkeys.resume(w, r, who.user)
	if err != nil {
		return err
	}
	answer, err := json.Marshal(in.Credential)
	if err != nil {
		return errUnreadable
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(answer)
	if err != nil {
		return fmt.Errorf("%w: the credential is not a RegistrationResponseJSON", errUnreadable)
	}
	rp, err := c.relyingParty(one.Session.RelyingPartyID, one.Origin)
	if err != nil {
		return err
	}
	made, err := rp.CreateCredential(passkeyUser{name: who.user, handle: one.Session.UserID}, one.Session, parsed)
	if err != nil {
		return errPasskey
	}
	p := store.Passkey{ID: made.ID, User: who.user, Name: label, Host: one.Session.RelyingPartyID, PublicKey: made.PublicKey,
		SignCount: made.Authenticator.SignCount, BackupEligible: made.Flags.BackupEligible, BackedUp: made.Flags.BackupState, Created: c.cfg.Now().UTC()}
	for _, t := range made.Transport {
		p.Transports = append(p.Transports, string(t))
	}
	rec := c.orderRecord(r, audit.PasskeyAdded, who, who.user)
	rec.Reason = label + " for " + p.Host
	if err := c.cfg.Store.AddPasskey(p, one.Session.UserID, rec); errors.Is(err, store.ErrConflict) {
		return errPasskey // another browser added their first meanwhile, by another handle
	} else if err != nil {
		return err
	}
	return c.showAccount(w, r, who)
}

func passkeyDetails(p store.Passkey) PasskeyDetails {
	d := PasskeyDetails{ID: base64.RawURLEncoding.EncodeToString(p.ID), Name: p.Name, Host: p.Host, Created: p.Created.UTC(), BackedUp: p.BackedUp, Suspect: p.Suspect}
	if !p.Used.IsZero() {
		at := p.Used.UTC()
		d.LastUsed = &at
	}
	return d
}

func (c *console) passkeysOf(user string) ([]PasskeyDetails, error) {
	all, err := c.cfg.Store.Passkeys(user)
	if err != nil {
		return nil, err
	}
	out := []PasskeyDetails{}
	for _, p := range all {
		out = append(out, passkeyDetails(p))
	}
	return out, nil
}

// removePasskey removes a passkey of user, which is the caller or somebody an administrator helps.
func (c *console) removePasskey(r *http.Request, user, id string, who principal) error {
	if err := whole(who); err != nil {
		return err
	}
	raw, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		return store.ErrNoPasskey
	}
	p, err := c.cfg.Store.Passkey(raw)
	if err != nil {
		return err
	}
	rec := c.orderRecord(r, audit.PasskeyRemoved, who, user)
	rec.Reason = p.Name + " for " + p.Host
	if err := c.cfg.Store.RemovePasskey(user, raw, rec); err != nil {
		return err
	}
	return c.endSessionsOf(r, user, p, who)
}

// endSessionsOf ends the sessions that began with a passkey that is gone or of which there may be a copy, but for
// the one that who is in: whoever has that device or copy may sit at one of them.
func (c *console) endSessionsOf(r *http.Request, user string, p store.Passkey, who principal) error {
	n := c.sessions.endWhere(user, func(s session) bool { return s.passkey == string(p.ID) && s.name != who.session.name })
	if n == 0 {
		return nil
	}
	rec := c.orderRecord(r, audit.SessionEnded, who, user)
	rec.Reason = fmt.Sprintf("sessions that began with passkey %s: %d", p.Name, n)
	return c.cfg.Store.Append(rec)
}

func (c *console) apiRemovePasskey(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.removePasskey(r, who.user, r.PathValue("passkey"), who); err != nil {
		return err
	}
	return c.showAccount(w, r, who)
}
