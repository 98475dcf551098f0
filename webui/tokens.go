package webui

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// TokenList is the body of GET /api/v1/tokens.
type TokenList struct {
	Tokens []TokenDetails `json:"tokens" doc:"the newest first"`
}

// TokenDetails is what can be known of an API token after it was made.
type TokenDetails struct {
	ID       string     `json:"id" doc:"names it in orders; of no use as a token"`
	Name     string     `json:"name"`
	User     string     `json:"user"`
	Role     string     `json:"role" doc:"the most it may do; never more than its user may"`
	Profiles []string   `json:"profiles,omitempty" doc:"it only mints challenges, for these; absent: it does what its role allows"`
	Created  time.Time  `json:"created"`
	Expires  *time.Time `json:"expires,omitempty"`
	LastUsed string     `json:"last_used,omitempty" doc:"day, in UTC; absent before the first use"`
	Expired  bool       `json:"expired"`
}

// TokenRequest is the body of POST /api/v1/tokens.
type TokenRequest struct {
	Name     string   `json:"name" doc:"what it is for: 1 to 64 characters"`
	Role     string   `json:"role,omitempty" doc:"auditor, operator or administrator, no more than yours; absent: yours"`
	Days     int      `json:"days,omitempty" doc:"until it expires: 1 to 3650; absent: 90"`
	Profiles []string `json:"profiles,omitempty" doc:"limits it to minting challenges for these; its role has to be operator or more"`
}

// TokenResponse answers it.
type TokenResponse struct {
	Token   string       `json:"token" doc:"the bearer token; shown this once"`
	Details TokenDetails `json:"details"`
}

const (
	defaultTokenDays = 90
	maxTokenDays     = 3650
	maxLabel         = 64 // characters of what people call tokens and passkeys
	maxScope         = 64 // profiles of one token
)

// mints tells whether r asks for nothing but a challenge: what tokens with profiles are for.
func mints(r *http.Request) bool {
	return takesBasic(r) || r.Method == http.MethodPost && r.URL.Path == apiPrefix+"challenges"
}

// mint has a challenge made, if the token that asks may mint for the profile.
func (c *console) mint(who principal, m Mint) (secret string, expires time.Time, err error) {
	if who.profiles != nil && !slices.Contains(who.profiles, m.Profile) {
		return "", time.Time{}, errScope
	}
	return c.cfg.Mint(m)
}

// tokenUsed remembers the day; what goes wrong with that is no reason to refuse a request.
func (c *console) tokenUsed(r *http.Request, t store.Token) {
	now := c.cfg.Now()
	if t.Used == now.UTC().Format(time.DateOnly) {
		return
	}
	if err := c.cfg.Store.TokenUsed(t.Hash, now); err != nil {
		c.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "remembering the use of a token", slog.Any("err", err))
	}
}

// tokenID names a token in lists and orders. It is part of a hash that nobody can search.
func tokenID(t store.Token) string { return hex.EncodeToString(t.Hash[:8]) }

func (c *console) tokenDetails(t store.Token) TokenDetails {
	d := TokenDetails{ID: tokenID(t), Name: t.Name, User: t.User, Role: t.Role, Profiles: t.Profiles, Created: t.Created.UTC(), LastUsed: t.Used}
	if !t.Expires.IsZero() {
		at := t.Expires.UTC()
		d.Expires, d.Expired = &at, !c.cfg.Now().Before(at)
	}
	return d
}

// tokens lists those of a user, everybody's for "".
func (c *console) tokens(user string) ([]TokenDetails, error) {
	all, err := c.cfg.Store.Tokens()
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	out := []TokenDetails{}
	for _, t := range all {
		if user == "" || t.User == user {
			out = append(out, c.tokenDetails(t))
		}
	}
	slices.SortFunc(out, func(a, b TokenDetails) int {
		if by := b.Created.Compare(a.Created); by != 0 {
			return by
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// checkLabel accepts what people call a token or passkey.
func checkLabel(field, label string) (string, error) {
	label = strings.TrimSpace(label)
	if label == "" || len([]rune(label)) > maxLabel || visible(label) != label {
		return "", &inputError{field, "the name is empty, longer than 64 characters, or has characters that cannot be seen", "say in a few words what it is for"}
	}
	return label, nil
}

// createToken makes a token of the caller. A token makes none that outlives it: neither its end nor its being revoked.
func (c *console) createToken(r *http.Request, in TokenRequest, who principal) (TokenResponse, error) {
	if err := c.fresh(who); err != nil {
		return TokenResponse{}, err
	}
	label, err := checkLabel("name", in.Name)
	if err != nil {
		return TokenResponse{}, err
	}
	if in.Role == "" {
		in.Role = who.role.String()
	}
	limit, err := parseRole(in.Role)
	if err != nil || limit > who.role {
		return TokenResponse{}, &inputError{"role", "the role is unknown or above your own", "write auditor, operator or administrator, and no more than you are"}
	}
	if err := c.checkScope(in.Profiles, limit); err != nil {
		return TokenResponse{}, err
	}
	if in.Days == 0 {
		in.Days = defaultTokenDays
	}
	if in.Days < 1 || in.Days > maxTokenDays {
		return TokenResponse{}, &inputError{"days", "a token is good for 1 to 3650 days", "choose how many days"}
	}
	now := c.cfg.Now().UTC()
	expires := now.Add(time.Duration(in.Days) * 24 * time.Hour)
	if who.via != viaSession && !who.expires.IsZero() && expires.After(who.expires) {
		return TokenResponse{}, &inputError{"days", "a token makes none that outlives it", "choose fewer days, or sign in to the console and make it there"}
	}
	out := TokenResponse{}
	t := store.Token{Name: label, User: who.user, Role: in.Role, Created: now, Expires: expires, Profiles: in.Profiles, Maker: who.token}
	out.Token, t.Hash = newToken()
	rec := c.orderRecord(r, audit.TokenCreated, who, who.user)
	rec.Reason = fmt.Sprintf("%s, id %s, role %s, until %s", label, tokenID(t), t.Role, expires.Format(time.DateOnly))
	if t.Profiles != nil {
		rec.Reason += ", only minting for " + strings.Join(t.Profiles, ", ")
	}
	if err := c.cfg.Store.CreateToken(t, rec); err != nil {
		return TokenResponse{}, err
	}
	out.Details = c.tokenDetails(t)
	return out, nil
}

func (c *console) checkScope(profiles []string, limit role) error {
	if profiles == nil {
		return nil
	}
	if len(profiles) == 0 || len(profiles) > maxScope {
		return &inputError{"profiles", "profiles names none, or too many", "name the profiles, or leave it out"}
	}
	if limit < operator {
		return &inputError{"role", "an auditor mints no challenges", "choose operator, or name no profile"}
	}
	has := c.cfg.Site().Profiles
	for _, name := range profiles {
		if !slices.ContainsFunc(has, func(p Profile) bool { return p.Name == name }) {
			return &inputError{"profiles", "the site has no profile of that name", "write the name of a profile as the status page shows it"}
		}
	}
	return nil
}

// orderRecord starts the record of what a person ordered about a user.
func (c *console) orderRecord(r *http.Request, action audit.Action, who principal, about string) audit.Record {
	rec := c.record(r, action, audit.OutcomeSuccess)
	rec.Actor, rec.Identity = who.user, about
	return rec
}

// revokeToken revokes a token of the caller or, for administrators, anybody's, and those that were made with it.
func (c *console) revokeToken(r *http.Request, id string, who principal) (TokenDetails, error) {
	if err := whole(who); err != nil {
		return TokenDetails{}, err
	}
	all, err := c.cfg.Store.Tokens()
	if err != nil {
		return TokenDetails{}, fmt.Errorf("looking for a token: %w", err)
	}
	for _, t := range all {
		if tokenID(t) != id || t.User != who.user && who.role < administrator {
			continue
		}
		return c.tokenDetails(t), c.cfg.Store.RemoveToken(t.Hash, func(gone store.Token) audit.Record {
			rec := c.orderRecord(r, audit.TokenRevoked, who, gone.User)
			rec.Reason = fmt.Sprintf("%s, id %s", gone.Name, tokenID(gone))
			return rec
		})
	}
	return TokenDetails{}, store.ErrNoToken
}

func (c *console) apiTokens(w http.ResponseWriter, r *http.Request, who principal) error {
	user := who.user
	if who.role >= administrator {
		user = ""
	}
	all, err := c.tokens(user)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, TokenList{all})
	return nil
}

func (c *console) apiCreateToken(w http.ResponseWriter, r *http.Request, who principal) error {
	var in TokenRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	out, err := c.createToken(r, in, who)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) apiRevokeToken(w http.ResponseWriter, r *http.Request, who principal) error {
	d, err := c.revokeToken(r, r.PathValue("token"), who)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, d)
	return nil
}
