package webui

import (
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// AccountDetails is the body of GET /api/v1/account: who the caller is, and what opens their account.
type AccountDetails struct {
	User     string           `json:"user"`
	Role     string           `json:"role"`
	Passkeys []PasskeyDetails `json:"passkeys" doc:"the oldest first"`
	Sessions []SessionDetails `json:"sessions" doc:"browsers signed in, the newest first"`
	Tokens   []TokenDetails   `json:"tokens" doc:"the newest first"`
}

// SessionDetails is a browser signed in.
type SessionDetails struct {
	ID      string    `json:"id"`
	Begun   time.Time `json:"begun"`
	Seen    time.Time `json:"seen" doc:"the last request that a person made"`
	Ends    time.Time `json:"ends" doc:"at the latest"`
	Source  string    `json:"source"`
	Browser string    `json:"browser" doc:"as it calls itself"`
	By      string    `json:"by" doc:"password, passkey or claim"`
	Current bool      `json:"current" doc:"this request came by it"`
}

// PasswordRequest is the body of POST /api/v1/account/password.
type PasswordRequest struct {
	Current string `json:"current"`
	New     string `json:"new" doc:"at least 12 characters"`
}

// accountRoutes are how people sign in, what opens their accounts, and who they are.
func accountRoutes() []route {
	get, post, patch, del := http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete
	const own, users, one = apiPrefix + "account", apiPrefix + "users", apiPrefix + "users/{account}"
	shown := []response{{http.StatusOK, "the account as it is now", mediaJSON, AccountDetails{}}}
	user := []response{{http.StatusOK, "the user as it is now", mediaJSON, UserResponse{}}}
	const notFound, conflict, input, limited, busy = http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable
	return []route{
		{post, "/claim", anonymous, nil, (*console).claimForm},
		{get, "/sign-in", anonymous, nil, (*console).signInPage},
		{post, "/sign-in", anonymous, nil, (*console).signInForm},
		{post, "/sign-out", anonymous, nil, (*console).signOutForm},
		{get, "/account", auditor, nil, (*console).accountPage},
		{post, "/account/password", auditor, nil, (*console).ownPasswordForm},
		{post, "/account/tokens", auditor, nil, (*console).tokenForm},
		{post, "/account/tokens/{token}/revoke", auditor, nil, (*console).revokeTokenForm},
		{post, "/account/passkeys/{passkey}/remove", auditor, nil, (*console).removePasskeyForm},
		{post, "/account/sessions/{session}/end", auditor, nil, (*console).endSessionForm},
		{post, "/account/sessions/end", auditor, nil, (*console).endOtherSessionsForm},
		{get, "/users", administrator, nil, (*console).usersPage},
		{post, "/users", administrator, nil, (*console).createUserForm},
		{get, "/users/{account}", administrator, nil, (*console).userPage},
		{post, "/users/{account}/role", administrator, nil, (*console).roleForm},
		{post, "/users/{account}/password", administrator, nil, (*console).resetPasswordForm},
		{post, "/users/{account}/switch", administrator, nil, (*console).switchUserForm},
		{post, "/users/{account}/remove", administrator, nil, (*console).removeUserForm},
		{post, "/users/{account}/sessions/end", administrator, nil, (*console).endUserSessionsForm},
		{post, "/users/{account}/passkeys/{passkey}/remove", administrator, nil, (*console).removeUserPasskeyForm},
		{post, "/users/{account}/tokens/{token}/revoke", administrator, nil, (*console).revokeUserTokenForm},

		{post, apiPrefix + "sign-in/passkey/options", anonymous, &operation{
			id: "passkeySignInOptions", summary: "Begin to sign in to the console by passkey; sets a cookie",
			responses: []response{{http.StatusOK, "for navigator.credentials.get", mediaJSON, PasskeyOptions{}}},
			refusals:  []int{conflict, http.StatusForbidden},
		}, (*console).apiPasskeySignInOptions},
		{post, apiPrefix + "sign-in/passkey", anonymous, &operation{
			id: "passkeySignIn", summary: "Sign in to the console by passkey; sets the session's cookie",
			request:   PasskeySignIn{},
			responses: []response{{http.StatusOK, "signed in", mediaJSON, SignedIn{}}},
			refusals:  []int{limited},
		}, (*console).apiPasskeySignIn},
		{get, own, auditor, &operation{
			id: "account", summary: "Who you are, and what opens your account",
			responses: shown,
		}, (*console).apiAccount},
		{post, own + "/password", auditor, &operation{
			id: "changePassword", summary: "Change your password; your other sessions end",
			request: PasswordRequest{}, responses: shown, refusals: []int{limited, busy},
		}, (*console).apiPassword},
		{post, own + "/passkey-options", auditor, &operation{
			id: "passkeyOptions", summary: "Begin to add a passkey; sets a cookie",
			responses: []response{{http.StatusOK, "for navigator.credentials.create", mediaJSON, PasskeyOptions{}}},
			refusals:  []int{conflict},
		}, (*console).apiPasskeyOptions},
		{post, own + "/passkeys", auditor, &operation{
			id: "addPasskey", summary: "Add the passkey that the browser made",
			request: PasskeyRequest{}, responses: shown, refusals: []int{conflict},
		}, (*console).apiAddPasskey},
		{del, own + "/passkeys/{passkey}", auditor, &operation{
			id: "removePasskey", summary: "Remove a passkey of yours",
			responses: shown, refusals: []int{notFound},
		}, (*console).apiRemovePasskey},
		{del, own + "/sessions/{session}", auditor, &operation{
			id: "endSession", summary: "Sign a browser of yours out",
			responses: shown, refusals: []int{notFound},
		}, (*console).apiEndSession},
		{get, apiPrefix + "tokens", auditor, &operation{
			id: "tokens", summary: "Your API tokens; everybody's for administrators",
			responses: []response{{http.StatusOK, "tokens", mediaJSON, TokenList{}}},
		}, (*console).apiTokens},
		{post, apiPrefix + "tokens", auditor, &operation{
			id: "createToken", summary: "Make an API token of yours",
			request:   TokenRequest{},
			responses: []response{{http.StatusOK, "made; the token is shown this once", mediaJSON, TokenResponse{}}},
			refusals:  []int{conflict},
		}, (*console).apiCreateToken},
		{del, apiPrefix + "tokens/{token}", auditor, &operation{
			id: "revokeToken", summary: "Have a token, and those that were made with it, be taken no more: one of yours, anybody's for administrators",
			responses: []response{{http.StatusOK, "revoked; what it was", mediaJSON, TokenDetails{}}},
			refusals:  []int{notFound},
		}, (*console).apiRevokeToken},
		{get, users, administrator, &operation{
			id: "users", summary: "Everyone who may use this box",
			responses: []response{{http.StatusOK, "users", mediaJSON, UserList{}}},
		}, (*console).apiUsers},
		{post, users, administrator, &operation{
			id: "createUser", summary: "Add a user",
			request: UserRequest{}, responses: user, refusals: []int{conflict, busy},
		}, (*console).apiCreateUser},
		{get, one, administrator, &operation{
			id: "user", summary: "A user by name",
			responses: user, refusals: []int{notFound},
		}, (*console).apiUser},
		{patch, one, administrator, &operation{
			id: "changeUser", summary: "Change a user's role or password, or switch them off or on; their sessions end",
			request: UserPatch{}, responses: user, refusals: []int{notFound, conflict, busy},
		}, (*console).apiChangeUser},
		{del, one, administrator, &operation{
			id: "removeUser", summary: "Remove a user with their tokens and passkeys",
			responses: user, refusals: []int{notFound, conflict, input},
		}, (*console).apiRemoveUser},
		{del, one + "/sessions", administrator, &operation{
			id: "endSessions", summary: "Sign a user out everywhere",
			responses: user, refusals: []int{notFound},
		}, (*console).apiEndSessions},
	}
}

func (c *console) account(who principal) (AccountDetails, error) {
	passkeys, err := c.passkeysOf(who.user)
	if err != nil {
		return AccountDetails{}, err
	}
	tokens, err := c.tokens(who.user)
	if err != nil {
		return AccountDetails{}, err
	}
	return AccountDetails{User: who.user, Role: who.role.String(), Passkeys: passkeys, Tokens: tokens, Sessions: c.sessionsOf(who.user, who)}, nil
}

// sessionsOf lists the sessions of a user, for who asks.
func (c *console) sessionsOf(user string, who principal) []SessionDetails {
	out := []SessionDetails{}
	for _, s := range c.sessions.of(user) {
		ends := s.begun.Add(sessionLife)
		if idle := s.seen.Add(sessionIdle); idle.Before(ends) {
			ends = idle
		}
		out = append(out, SessionDetails{ID: s.name, Begun: s.begun.UTC(), Seen: s.seen.UTC(), Ends: ends.UTC(), Source: s.source,
			Browser: visible(s.agent), By: s.how, Current: who.via == viaSession && s.name == who.session.name})
	}
	return out
}

func (c *console) apiAccount(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.showAccount(w, r, who)
}

// showAccount answers with the caller's account as it is now: what an order made of it.
func (c *console) showAccount(w http.ResponseWriter, _ *http.Request, who principal) error {
	d, err := c.account(who)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, d)
	return nil
}

// changePassword has the caller's password replaced, ends their sessions, and returns the caller as it left them.
// The old password is a guess as at sign-in, so that a browser left open is no place to guess it.
func (c *console) changePassword(r *http.Request, in PasswordRequest, who principal) (store.User, error) {
	if err := checkPassword(in.New); err != nil {
		return store.User{}, err
	}
	user, err := c.cfg.Store.User(who.user)
	if err != nil {
		return user, fmt.Errorf("looking up user: %w", err)
	}
	key := "password of " + who.user
	if retry, ok := c.signIns.take(key); !ok {
		return user, &limitedError{"too many wrong passwords", retry}
	}
	if len(in.Current) > maxPassword {
		in.Current = ""
	}
	err = c.hasher.verify(r.Context(), c.hasher.known, user.PasswordHash, in.Current)
	if errors.Is(err, errWrongPassword) {
		c.noteOf(r, audit.LoginRefused, "wrong password in order to change it", who.user)
		return user, &inputError{"current", "the current password is wrong", "type it again; an administrator can set another"}
	}
	c.signIns.giveBack(key)
	if err != nil {
		return user, err
	}
	hash, err := c.hasher.hash(r.Context(), in.New)
	if err != nil {
		return user, err
	}
	to := store.UserChange{PasswordHash: &hash, Knew: &user.PasswordHash} // an administrator may have set another meanwhile
	if err := c.cfg.Store.ChangeUser(who.user, to, c.orderRecord(r, audit.PasswordChanged, who, who.user)); err != nil {
		if errors.Is(err, store.ErrConflict) {
			err = errChanged
		}
		return user, err
	}
	user.PasswordHash = hash
	return user, c.endSessions(r, who.user, "their password changed", who)
}

// endSessions ends every session of a user, and records it where there was one.
func (c *console) endSessions(r *http.Request, user, why string, who principal) error {
	n := c.sessions.endWhere(user, everySession)
	if n == 0 {
		return nil
	}
	rec := c.orderRecord(r, audit.SessionEnded, who, user)
	rec.Reason = strconv.Itoa(n) + " sessions, because " + why
	if n == 1 {
		rec.Reason = "one session, because " + why
	}
	if err := c.cfg.Store.Append(rec); err != nil {
		return fmt.Errorf("recording the end of sessions: %w", err)
	}
	return nil
}

func (c *console) apiPassword(w http.ResponseWriter, r *http.Request, who principal) error {
	var in PasswordRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	user, err := c.changePassword(r, in, who)
	if err != nil {
		return err
	}
	if err := c.goOn(w, r, who, user); err != nil {
		return err
	}
	return c.showAccount(w, r, who)
}

// goOn gives a browser whose sessions have ended with others a fresh one, as if it had just signed in as it did.
func (c *console) goOn(w http.ResponseWriter, r *http.Request, who principal, user store.User) error {
	if who.via != viaSession {
		return nil
	}
	id, err := c.openSession(r, user, session{how: who.session.how, passkey: who.session.passkey})
	if err != nil {
		return err
	}
	setSession(w, id)
	return nil
}

// endSession ends one of the caller's sessions.
func (c *console) endSession(r *http.Request, name string, who principal) error {
	if err := whole(who); err != nil {
		return err
	}
	if c.sessions.endWhere(who.user, func(s session) bool { return s.name == name }) == 0 {
		return errNoSession
	}
	rec := c.orderRecord(r, audit.SessionEnded, who, who.user)
	rec.Reason = "session " + name + ", from their list"
	return c.cfg.Store.Append(rec)
}

func (c *console) apiEndSession(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.endSession(r, r.PathValue("session"), who); err != nil {
		return err
	}
	return c.showAccount(w, r, who)
}

// accountView is the page of the person signed in.
type accountView struct {
	frame
	Account    AccountDetails
	Now        time.Time
	NoPasskeys *Problem // why there can be none at this address
	One        string   // id of what the open dialog is about
	Roles      []string // a token can have
	Profiles   []string // a token can be limited to
	Made       *TokenResponse
}

// OneToken, OnePasskey and OneSession are what the open dialog is about; nil where there is no such thing.
func (v *accountView) OneToken() *TokenDetails {
	return find(v.Account.Tokens, func(t TokenDetails) bool { return t.ID == v.One })
}

// OnePasskey: see OneToken.
func (v *accountView) OnePasskey() *PasskeyDetails {
	return find(v.Account.Passkeys, func(p PasskeyDetails) bool { return p.ID == v.One })
}

// OneSession: see OneToken.
func (v *accountView) OneSession() *SessionDetails {
	return find(v.Account.Sessions, func(s SessionDetails) bool { return s.ID == v.One })
}

func find[T any](all []T, is func(T) bool) *T {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return &all[i]
	}
	return nil
}

func (c *console) accountView(r *http.Request, who principal) (accountView, error) {
	d, err := c.account(who)
	if err != nil {
		return accountView{}, err
	}
	v := accountView{frame: c.frame(r, who, "/account", "Your account"), Account: d, Now: c.cfg.Now(), One: r.URL.Query().Get("id")}
	if _, _, err := c.passkeyHost(r); err != nil {
		p, _ := problemOf(err)
		v.NoPasskeys = &p
	}
	for role := auditor; role <= who.role; role++ {
		v.Roles = append(v.Roles, role.String())
	}
	v.Profiles = c.minting()
	return v, nil
}

// minting are the profiles that take one-time challenges.
func (c *console) minting() []string {
	scep, est := c.cfg.SCEP(), c.cfg.EST()
	var names []string
	for _, p := range c.cfg.Site().Profiles {
		if slices.ContainsFunc(scep, func(s SCEPProfile) bool { return s.Name == p.Name && s.OneTime }) ||
			slices.ContainsFunc(est, func(e ESTProfile) bool { return e.Name == p.Name && e.OneTime }) {
			names = append(names, p.Name)
		}
	}
	return names
}

func (c *console) accountPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.accountView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "account", &v)
}

// accountAgain shows the page with a refused form, whose dialog is open.
func (c *console) accountAgain(w http.ResponseWriter, r *http.Request, who principal, form string, refusal error, secrets ...string) error {
	a, ok := attempted(r, form, refusal, secrets...)
	if !ok {
		return refusal
	}
	v, err := c.accountView(r, who)
	if err != nil {
		return err
	}
	v.Do, v.Attempt = form, a
	return c.page(w, "account", &v)
}

func (c *console) ownPasswordForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	in := PasswordRequest{Current: r.PostForm.Get("current"), New: r.PostForm.Get("new")}
	if in.New != r.PostForm.Get("again") {
		return c.accountAgain(w, r, who, "password", &inputError{"again", "the two new passwords differ", "type the same one twice"}, "current", "new", "again")
	}
	user, err := c.changePassword(r, in, who)
	if err != nil {
		return c.accountAgain(w, r, who, "password", err, "current", "new", "again")
	}
	if err := c.goOn(w, r, who, user); err != nil {
		return err
	}
	return c.done(w, r, "/account", "password-changed")
}

func (c *console) tokenForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	days, err := strconv.Atoi(r.PostForm.Get("days"))
	if err != nil || days < 1 {
		days = -1 // refused below, in words
	}
	in := TokenRequest{Name: r.PostForm.Get("name"), Role: r.PostForm.Get("role"), Days: days, Profiles: r.PostForm["profile"]}
	if in.Profiles != nil { // the form says so
		in.Role = operator.String()
	}
	var out TokenResponse
	err = c.once(r, who, func() (err error) {
		out, err = c.createToken(r, in, who)
		return err
	})
	if err != nil {
		return c.accountAgain(w, r, who, "token", err)
	}
	v, err := c.accountView(r, who)
	if err != nil {
		return err
	}
	v.Made, v.Do = &out, ""
	return c.page(w, "account", &v)
}

// accountOrder does what a form without fields of its own asks for.
func (c *console) accountOrder(w http.ResponseWriter, r *http.Request, notice string, order func() error) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if err := order(); err != nil {
		return err
	}
	return c.done(w, r, "/account", notice)
}

func (c *console) revokeTokenForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.accountOrder(w, r, "token-revoked", func() error {
		_, err := c.revokeToken(r, r.PathValue("token"), who)
		return err
	})
}

func (c *console) removePasskeyForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.accountOrder(w, r, "passkey-removed", func() error { return c.removePasskey(r, who.user, r.PathValue("passkey"), who) })
}

func (c *console) endSessionForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.accountOrder(w, r, "session-ended", func() error { return c.endSession(r, r.PathValue("session"), who) })
}

func (c *console) endOtherSessionsForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.accountOrder(w, r, "sessions-ended", func() error {
		for _, s := range c.sessionsOf(who.user, who) {
			if s.Current {
				continue
			}
			if err := c.endSession(r, s.ID, who); err != nil && !errors.Is(err, errNoSession) {
				return err
			}
		}
		return nil
	})
}

// Had tells whether this box of a form was ticked.
func (a *attempt) Had(form, field, value string) bool {
	return a.Is(form) && slices.Contains(a.Values[field], value)
}

// rows are a table's, with the page that its orders are dialogs of.
type rows[T any] struct {
	Rows  []T
	Path  string
	Users bool // of more than one user, whose names are shown
}

// accountFuncs are what the templates of accounts are written with.
func accountFuncs() template.FuncMap {
	return template.FuncMap{
		"passkeyRows": func(all []PasskeyDetails, path string) rows[PasskeyDetails] {
			return rows[PasskeyDetails]{Rows: all, Path: path}
		},
		"sessionRows": func(all []SessionDetails, path string) rows[SessionDetails] {
			return rows[SessionDetails]{Rows: all, Path: path}
		},
		"tokenRows": func(all []TokenDetails, path string, users bool) rows[TokenDetails] {
			return rows[TokenDetails]{Rows: all, Path: path, Users: users}
		},
		"roleChoice": func(all []roleWords, chosen string) roleChoice { return roleChoice{all, chosen} },
	}
}
