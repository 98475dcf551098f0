package webui

import (
	"net/http"
	"time"
)

// usersView is the page of everyone who may use the box.
type usersView struct {
	frame
	Users  []UserDetails
	Tokens []TokenDetails // everybody's
	Roles  []roleWords
	Now    time.Time
	Made   *UserResponse
}

// roleWords says what a role may do.
type roleWords struct {
	Name string
	May  string
}

// roleChoice are the roles to choose from, and the one chosen so far.
type roleChoice struct {
	Roles  []roleWords
	Chosen string
}

func rolesInWords() []roleWords {
	return []roleWords{
		{auditor.String(), "reads everything"},
		{operator.String(), "also approves requests, revokes certificates and makes challenges"},
		{administrator.String(), "does everything, users and authorities too"},
	}
}

func (c *console) usersView(r *http.Request, who principal) (usersView, error) {
	all, err := c.users()
	if err != nil {
		return usersView{}, err
	}
	tokens, err := c.tokens("")
	if err != nil {
		return usersView{}, err
	}
	return usersView{frame: c.frame(r, who, "/users", "Users and tokens"), Users: all, Tokens: tokens, Roles: rolesInWords(), Now: c.cfg.Now()}, nil
}

func (c *console) usersPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.usersView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "users", &v)
}

func (c *console) createUserForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	var out UserResponse
	refusal := c.once(r, who, func() (err error) {
		out, err = c.createUser(r, UserRequest{Name: r.PostForm.Get("user"), Role: r.PostForm.Get("role"), Password: r.PostForm.Get("password")}, who)
		return err
	})
	if refusal == nil && out.Password == "" {
		return c.done(w, r, "/users", "user-created")
	}
	a, ok := (*attempt)(nil), true
	if refusal != nil {
		a, ok = attempted(r, "add", refusal, "password")
	}
	if !ok {
		return refusal
	}
	v, err := c.usersView(r, who)
	if err != nil {
		return err
	}
	if v.Attempt = a; a != nil {
		v.Do = "add"
	} else {
		v.Made = &out // the only copy of the password
	}
	return c.page(w, "users", &v)
}

// userView is the page of one user.
type userView struct {
	frame
	User     UserDetails
	Own      bool // the visitor is that user
	Roles    []roleWords
	Passkeys []PasskeyDetails
	Tokens   []TokenDetails
	Sessions []SessionDetails
	Now      time.Time
	One      string // id of what the open dialog is about
	Made     *UserResponse
}

// OnePasskey is what the open dialog is about; nil where there is no such thing.
func (v *userView) OnePasskey() *PasskeyDetails {
	return find(v.Passkeys, func(p PasskeyDetails) bool { return p.ID == v.One })
}

// OneToken: see OnePasskey.
func (v *userView) OneToken() *TokenDetails {
	return find(v.Tokens, func(t TokenDetails) bool { return t.ID == v.One })
}

func (c *console) userView(r *http.Request, who principal) (userView, error) {
	d, err := c.user(r.PathValue("account"))
	if err != nil {
		return userView{}, err
	}
	v := userView{frame: c.frame(r, who, "/users", d.Name), User: d, Own: d.Name == who.user, Roles: rolesInWords(), Now: c.cfg.Now(),
		Sessions: c.sessionsOf(d.Name, who), One: r.URL.Query().Get("id")}
	if v.Passkeys, err = c.passkeysOf(d.Name); err != nil {
		return userView{}, err
	}
	v.Tokens, err = c.tokens(d.Name)
	return v, err
}

func (c *console) userPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.userView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "user", &v)
}

// userForm changes the user in the path; a refused form is shown again, in its dialog.
func (c *console) userForm(w http.ResponseWriter, r *http.Request, who principal, form, notice string, patch UserPatch) error {
	name := r.PathValue("account")
	var out UserResponse
	refusal := c.once(r, who, func() (err error) {
		out, err = c.changeUser(r, name, patch, who)
		return err
	})
	if refusal == nil && out.Password == "" {
		return c.done(w, r, "/users/"+name, notice)
	}
	a, ok := (*attempt)(nil), true
	if refusal != nil {
		a, ok = attempted(r, form, refusal, "password")
	}
	if !ok {
		return refusal
	}
	v, err := c.userView(r, who)
	if err != nil {
		return refusal
	}
	if v.Attempt = a; a != nil {
		v.Do = form
	} else {
		v.Made = &out
	}
	return c.page(w, "user", &v)
}

func (c *console) roleForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	role := r.PostForm.Get("role")
	return c.userForm(w, r, who, "role", "role-changed", UserPatch{Role: &role})
}

func (c *console) resetPasswordForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	password := r.PostForm.Get("password")
	return c.userForm(w, r, who, "password", "password-set", UserPatch{Password: &password})
}

func (c *console) switchUserForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	to := r.PostForm.Get("to")
	off, notice := to == "off", "user-"+to
	if !off && to != "on" {
		return &inputError{"to", "a user is switched on or off", "press the button on the user's page"}
	}
	return c.userForm(w, r, who, "switch", notice, UserPatch{Off: &off})
}

func (c *console) removeUserForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if _, refusal := c.removeUser(r, r.PathValue("account"), who); refusal != nil {
		a, ok := attempted(r, "remove", refusal)
		if !ok {
			return refusal
		}
		v, err := c.userView(r, who)
		if err != nil {
			return refusal
		}
		v.Do, v.Attempt = "remove", a
		return c.page(w, "user", &v)
	}
	return c.done(w, r, "/users", "user-removed")
}

func (c *console) endUserSessionsForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.userOrder(w, r, "sessions-ended", func(name string) error { return c.endSessions(r, name, "an administrator ended them", who) })
}

func (c *console) removeUserPasskeyForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.userOrder(w, r, "passkey-removed", func(name string) error { return c.removePasskey(r, name, r.PathValue("passkey"), who) })
}

func (c *console) revokeUserTokenForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.userOrder(w, r, "token-revoked", func(string) error {
		_, err := c.revokeToken(r, r.PathValue("token"), who)
		return err
	})
}

// userOrder does what a form without fields of its own asks for, about the user in the path.
func (c *console) userOrder(w http.ResponseWriter, r *http.Request, notice string, order func(name string) error) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	d, err := c.user(r.PathValue("account"))
	if err != nil {
		return err
	}
	if err := order(d.Name); err != nil {
		return err
	}
	return c.done(w, r, "/users/"+d.Name, notice)
}
