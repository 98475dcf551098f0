package webui

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// UserList is the body of GET /api/v1/users.
type UserList struct {
	Users []UserDetails `json:"users" doc:"by name"`
}

// UserDetails is a person who may use this box.
type UserDetails struct {
	Name       string     `json:"name"`
	Role       string     `json:"role"`
	Off        bool       `json:"off" doc:"may not sign in, and their tokens are not taken"`
	Created    time.Time  `json:"created"`
	LastSignIn *time.Time `json:"last_sign_in,omitempty" doc:"to the console"`
	Passkeys   int        `json:"passkeys"`
	Tokens     int        `json:"tokens" doc:"that have not expired"`
	Sessions   int        `json:"sessions" doc:"browsers signed in now"`
}

// UserRequest is the body of POST /api/v1/users.
type UserRequest struct {
	Name     string `json:"name" doc:"1 to 64 letters, digits and . _ - @"`
	Role     string `json:"role" doc:"auditor, operator or administrator"`
	Password string `json:"password,omitempty" doc:"at least 12 characters; absent lets the box make one"`
}

// UserPatch is the body of PATCH /api/v1/users/{account}; what is absent stays.
type UserPatch struct {
	Role     *string `json:"role,omitempty" doc:"auditor, operator or administrator"`
	Off      *bool   `json:"off,omitempty" doc:"true: may not sign in, and their tokens are not taken"`
	Password *string `json:"password,omitempty" doc:"at least 12 characters; \"\" lets the box make one"`
}

// UserResponse answers orders about a user.
type UserResponse struct {
	User     UserDetails `json:"user"`
	Password string      `json:"password,omitempty" doc:"only where the box made it; it is shown this once"`
}

func (c *console) users() ([]UserDetails, error) {
	all, err := c.cfg.Store.Users()
	if err != nil {
		return nil, err
	}
	out := []UserDetails{}
	for _, u := range all {
		d, err := c.userDetails(u)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (c *console) userDetails(u store.User) (UserDetails, error) {
	d := UserDetails{Name: u.Name, Role: u.Role, Off: u.Off, Created: u.Created.UTC(), Sessions: len(c.sessions.of(u.Name))}
	if len(u.Sources) > 0 {
		at := u.Sources[0].At.UTC()
		d.LastSignIn = &at
	}
	passkeys, err := c.cfg.Store.Passkeys(u.Name)
	if err != nil {
		return d, err
	}
	d.Passkeys = len(passkeys)
	tokens, err := c.tokens(u.Name)
	if err != nil {
		return d, err
	}
	for _, t := range tokens {
		if !t.Expired {
			d.Tokens++
		}
	}
	return d, nil
}

func (c *console) user(name string) (UserDetails, error) {
	u, err := c.cfg.Store.User(name)
	if errors.Is(err, store.ErrNotFound) {
		return UserDetails{}, store.ErrNoUser
	}
	if err != nil {
		return UserDetails{}, err
	}
	return c.userDetails(u)
}

// newPassword checks the password that somebody is given, or makes one for "", which it returns too.
func (c *console) newPassword(r *http.Request, given string) (hash, made string, err error) {
	if given == "" {
		made = makePassword()
		given = made
	} else if err := checkPassword(given); err != nil {
		return "", "", err
	}
	hash, err = c.hasher.hash(r.Context(), given)
	return hash, made, err
}

func checkRole(name string) error {
	if _, err := parseRole(name); err != nil {
		return &inputError{"role", "the role is unknown", "choose auditor, operator or administrator"}
	}
	return nil
}

func (c *console) createUser(r *http.Request, in UserRequest, who principal) (UserResponse, error) {
	if err := c.fresh(who); err != nil {
		return UserResponse{}, err
	}
	if err := checkUser(in.Name); err != nil {
		return UserResponse{}, err
	}
	if err := checkRole(in.Role); err != nil {
		return UserResponse{}, err
	}
	hash, made, err := c.newPassword(r, in.Password)
	if err != nil {
		return UserResponse{}, err
	}
	rec := c.orderRecord(r, audit.UserCreated, who, in.Name)
	rec.Reason = "role " + in.Role
	u := store.User{Name: in.Name, Role: in.Role, PasswordHash: hash, Created: c.cfg.Now().UTC()}
	if err := c.cfg.Store.CreateUser(u, rec); err != nil {
		return UserResponse{}, err
	}
	d, err := c.userDetails(u)
	return UserResponse{d, made}, err
}

// changeUser changes a user and ends their sessions. An administrator who changes their own role, switch or
// password here is signed out as well: to stay signed in they change their password in their account.
func (c *console) changeUser(r *http.Request, name string, in UserPatch, who principal) (UserResponse, error) {
	if err := c.fresh(who); err != nil {
		return UserResponse{}, err
	}
	var (
		to   store.UserChange
		recs []audit.Record
		made string
		why  string
	)
	record := func(action audit.Action, reason string) {
		rec := c.orderRecord(r, action, who, name)
		rec.Reason = reason
		recs = append(recs, rec)
	}
	if _, err := c.user(name); err != nil { // before a password is hashed for nobody
		return UserResponse{}, err
	}
	if in.Role != nil {
		if err := checkRole(*in.Role); err != nil {
			return UserResponse{}, err
		}
		to.Role, why = in.Role, "their role changed"
		record(audit.UserChanged, "role "+*in.Role)
	}
	if in.Off != nil {
		to.Off, why = in.Off, "they were switched off or on"
		record(audit.UserChanged, map[bool]string{true: "switched off", false: "switched on"}[*in.Off])
	}
	if in.Password != nil {
		hash, password, err := c.newPassword(r, *in.Password)
		if err != nil {
			return UserResponse{}, err
		}
		to.PasswordHash, made, why = &hash, password, "their password changed"
		record(audit.PasswordChanged, "")
	}
	if recs == nil {
		return UserResponse{}, &inputError{"role", "nothing is to change", "say role, off or password"}
	}
	if err := c.cfg.Store.ChangeUser(name, to, recs...); err != nil {
		return UserResponse{}, err
	}
	if in.Password != nil {
		c.guessed.forget(name)
	}
	if err := c.endSessions(r, name, why, who); err != nil {
		return UserResponse{}, err
	}
	d, err := c.user(name)
	return UserResponse{d, made}, err
}

func (c *console) removeUser(r *http.Request, name string, who principal) (UserResponse, error) {
	d, err := c.user(name)
	if err != nil {
		return UserResponse{}, err
	}
	rec := c.orderRecord(r, audit.UserRemoved, who, name)
	rec.Reason = fmt.Sprintf("role %s, with %d tokens and %d passkeys", d.Role, d.Tokens, d.Passkeys)
	if err := c.cfg.Store.RemoveUser(name, rec); err != nil {
		return UserResponse{}, err
	}
	return UserResponse{User: d}, c.endSessions(r, name, "the user was removed", who)
}

func (c *console) apiUsers(w http.ResponseWriter, r *http.Request, _ principal) error {
	all, err := c.users()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, UserList{all})
	return nil
}

// answerUser sends what became of an order about a user.
func answerUser(w http.ResponseWriter, out UserResponse, err error) error {
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) apiUser(w http.ResponseWriter, r *http.Request, _ principal) error {
	d, err := c.user(r.PathValue("account"))
	return answerUser(w, UserResponse{User: d}, err)
}

func (c *console) apiCreateUser(w http.ResponseWriter, r *http.Request, who principal) error {
	var in UserRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	out, err := c.createUser(r, in, who)
	return answerUser(w, out, err)
}

func (c *console) apiChangeUser(w http.ResponseWriter, r *http.Request, who principal) error {
	var in UserPatch
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	out, err := c.changeUser(r, r.PathValue("account"), in, who)
	return answerUser(w, out, err)
}

func (c *console) apiRemoveUser(w http.ResponseWriter, r *http.Request, who principal) error {
	out, err := c.removeUser(r, r.PathValue("account"), who)
	return answerUser(w, out, err)
}

func (c *console) apiEndSessions(w http.ResponseWriter, r *http.Request, who principal) error {
	d, err := c.user(r.PathValue("account"))
	if err != nil {
		return err
	}
	if err := c.endSessions(r, d.Name, "an administrator ended them", who); err != nil {
		return err
	}
	d, err = c.user(d.Name)
	return answerUser(w, UserResponse{User: d}, err)
}
