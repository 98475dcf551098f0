package webui

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"signet.internal/appliance/challenge/phc"
)

// ProfileList is the body of GET /api/v1/profiles.
type ProfileList struct {
	Profiles []ProfileDetails `json:"profiles" doc:"in the site's order"`
}

// ProfileDetails is what of a profile can be changed while the box runs, and what was. What says that it
// was replaced is not baked: it is in the box's state alone.
type ProfileDetails struct {
	Name      string            `json:"name"`
	Authority string            `json:"authority"`
	Off       *SwitchedOff      `json:"off,omitempty" doc:"absent while it issues"`
	NotBaked  bool              `json:"not_baked" doc:"something below was replaced"`
	Bundles   []BundleDetails   `json:"bundles"`
	Challenge *ChallengeDetails `json:"challenge,omitempty" doc:"that all devices share; absent where it takes none"`
	Passwords []PasswordDetails `json:"passwords" doc:"of EST"`
	Secrets   []SecretDetails   `json:"secrets" doc:"that the box needs in clear"`
	Intune    bool              `json:"intune" doc:"it asks Intune about each request"`
}

// SwitchedOff says who switched a profile off.
type SwitchedOff struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// ReplacedBy says who replaced a value of the site.
type ReplacedBy struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// BundleDetails is a trust bundle.
type BundleDetails struct {
	Bundle       string        `json:"bundle" doc:"what it is for: signed, scep-mtls, est, renew-from, compliance or intune"`
	File         string        `json:"file" doc:"of the site"`
	Certificates []TrustAnchor `json:"certificates" doc:"in use"`
	Replaced     *ReplacedBy   `json:"replaced,omitempty" doc:"absent while the baked one is in use"`
}

// ChallengeDetails is the challenge that all devices of a profile share.
type ChallengeDetails struct {
	Public   string      `json:"public,omitempty" doc:"the challenge itself, where it is published: the demo's"`
	Replaced *ReplacedBy `json:"replaced,omitempty" doc:"absent while the baked one is in use"`
}

// PasswordDetails is an EST user.
type PasswordDetails struct {
	User     string      `json:"user"`
	For      []string    `json:"for,omitempty" doc:"names it enrolls; absent: any the profile allows"`
	Replaced *ReplacedBy `json:"replaced,omitempty" doc:"absent while the baked one is in use"`
}

// SecretDetails is a secret of the box. Its value never comes back.
type SecretDetails struct {
	Kind string `json:"kind"`
	Set  bool   `json:"set"`
}

// OffRequest is the body of POST /api/v1/profiles/{name}/off.
type OffRequest struct {
	Reason string `json:"reason" doc:"written down and shown; at most 200 characters"`
}

// HashRequest is the body of PUT …/challenge and …/passwords/{user}: one of the two.
type HashRequest struct {
	Hash     string `json:"hash,omitempty" doc:"as signet hash prints it"`
	Generate bool   `json:"generate,omitempty" doc:"the box makes a secret and shows it this once"`
}

// HashResponse answers it.
type HashResponse struct {
	Profile string `json:"profile"`
	User    string `json:"user,omitempty"`
	Secret  string `json:"secret,omitempty" doc:"only where the box made it; it is shown this once"`
}

// SecretRequest is the body of PUT /api/v1/profiles/{name}/secrets/{kind}.
type SecretRequest struct {
	Value string `json:"value" doc:"kept sealed, at most 4096 bytes"`
}

const maxSecret = 4096 // bytes; what the key holder takes

// settingsRoutes are what administrators change of profiles while the box runs.
func settingsRoutes() []route {
	get, put, post, del := http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
	const one = apiPrefix + "profiles/{name}"
	shown := []response{{http.StatusOK, "the profile as it is now", mediaJSON, ProfileDetails{}}}
	replaced := []response{{http.StatusOK, "replaced and recorded", mediaJSON, HashResponse{}}}
	refusals := []int{http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusServiceUnavailable}
	return []route{
		{get, apiPrefix + "profiles", auditor, &operation{
			id: "profiles", summary: "What of every profile can be changed, and what was",
			responses: []response{{http.StatusOK, "profiles", mediaJSON, ProfileList{}}},
		}, (*console).apiProfiles},
		{get, one, auditor, &operation{
			id: "profile", summary: "What of one profile can be changed, and what was",
			responses: shown, refusals: []int{http.StatusNotFound},
		}, (*console).apiProfile},
		{post, one + "/off", administrator, &operation{
			id: "profileOff", summary: "Have a profile issue nothing",
			request: OffRequest{}, responses: shown, refusals: refusals,
		}, (*console).apiProfileOff},
		{post, one + "/on", administrator, &operation{
			id: "profileOn", summary: "Have a profile issue again",
			responses: shown, refusals: refusals,
		}, (*console).apiProfileOn},
		{put, one + "/bundles/{bundle}", administrator, &operation{
			id: "replaceBundle", summary: "Put certificates in place of a baked trust bundle",
			pem: true, responses: shown, refusals: refusals,
		}, (*console).apiReplaceBundle},
		{del, one + "/bundles/{bundle}", administrator, &operation{
			id: "restoreBundle", summary: "Go back to the baked trust bundle",
			responses: shown, refusals: refusals,
		}, (*console).apiRestoreBundle},
		{put, one + "/challenge", administrator, &operation{
			id: "replaceChallenge", summary: "Replace the challenge that all devices share",
			request: HashRequest{}, responses: replaced, refusals: refusals,
		}, (*console).apiReplaceChallenge},
		{del, one + "/challenge", administrator, &operation{
			id: "restoreChallenge", summary: "Go back to the baked challenge",
			responses: shown, refusals: refusals,
		}, (*console).apiRestoreChallenge},
		{put, one + "/passwords/{user}", administrator, &operation{
			id: "replacePassword", summary: "Replace the password of an EST user",
			request: HashRequest{}, responses: replaced, refusals: refusals,
		}, (*console).apiReplacePassword},
		{del, one + "/passwords/{user}", administrator, &operation{
			id: "restorePassword", summary: "Go back to the baked password of an EST user",
			responses: shown, refusals: refusals,
		}, (*console).apiRestorePassword},
		{put, one + "/secrets/{kind}", administrator, &operation{
			id: "putSecret", summary: "Give the box a secret it needs in clear; it never comes back",
			request: SecretRequest{}, responses: shown, refusals: refusals,
		}, (*console).apiPutSecret},
		{get, one + "/intune/certificate", administrator, &operation{
			id: "intuneCertificate", summary: "The certificate to register with Entra for a profile that asks Intune",
			responses: []response{{http.StatusOK, "a PEM certificate", mediaPEM, nil}},
			refusals:  refusals,
		}, (*console).apiIntuneCertificate},
	}
}

func (s ProfileSettings) details(now time.Time) (ProfileDetails, error) {
	d := ProfileDetails{Name: s.Profile, Authority: s.Authority, Off: s.Off.details(), NotBaked: s.NotBaked(), Intune: s.Intune,
		Bundles: []BundleDetails{}, Passwords: []PasswordDetails{}, Secrets: []SecretDetails{}}
	for _, b := range s.Bundles {
		anchors, err := rowsOf(b.Certificates, now, anchorOf)
		if err != nil {
			return ProfileDetails{}, err
		}
		d.Bundles = append(d.Bundles, BundleDetails{Bundle: b.Bundle, File: b.File, Certificates: anchors, Replaced: b.Replaced.details()})
	}
	if s.Challenge != nil {
		d.Challenge = &ChallengeDetails{Public: s.Challenge.Public, Replaced: s.Challenge.Replaced.details()}
	}
	for _, p := range s.Passwords {
		d.Passwords = append(d.Passwords, PasswordDetails{User: p.User, For: p.For, Replaced: p.Replaced.details()})
	}
	for _, secret := range s.Secrets {
		d.Secrets = append(d.Secrets, SecretDetails{Kind: secret.Kind, Set: secret.Set})
	}
	return d, nil
}

func (s *Switch) details() *SwitchedOff {
	if s == nil {
		return nil
	}
	return &SwitchedOff{Reason: s.Reason, By: s.By, At: s.At.UTC()}
}

func (c *Change) details() *ReplacedBy {
	if c == nil {
		return nil
	}
	return &ReplacedBy{By: c.By, At: c.At.UTC()}
}

func (c *console) apiProfiles(w http.ResponseWriter, r *http.Request, _ principal) error {
	out := ProfileList{Profiles: []ProfileDetails{}}
	for _, p := range c.cfg.Site().Profiles {
		d, err := c.profile(p.Name)
		if err != nil {
			return err
		}
		out.Profiles = append(out.Profiles, d)
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) profile(name string) (ProfileDetails, error) {
	s, err := c.cfg.Box.Settings(name)
	if err != nil {
		return ProfileDetails{}, err
	}
	return s.details(c.cfg.Now())
}

func (c *console) apiProfile(w http.ResponseWriter, r *http.Request, _ principal) error {
	return c.showProfile(w, r)
}

// showProfile answers with the profile in the path as it is now: what an order made of it.
func (c *console) showProfile(w http.ResponseWriter, r *http.Request) error {
	d, err := c.profile(r.PathValue("name"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, d)
	return nil
}

func (c *console) apiProfileOff(w http.ResponseWriter, r *http.Request, who principal) error {
	var in OffRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := c.switchOff(r.PathValue("name"), in.Reason, who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

func (c *console) switchOff(profile, reason string, who principal) error {
	reason = strings.TrimSpace(reason)
	if reason == "" || utf8.RuneCountInString(reason) > maxReason {
		return &inputError{"reason", "the reason is empty or longer than 200 characters", "say in a few words why; the console shows it"}
	}
	return c.cfg.Box.SwitchProfile(profile, true, reason, who.user)
}

func (c *console) apiProfileOn(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := c.cfg.Box.SwitchProfile(r.PathValue("name"), false, "", who.user); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

// bundleOf is the bundle in the path, if the profile in the path has it.
func (c *console) bundleOf(r *http.Request) (profile, bundle string, err error) {
	profile = r.PathValue("name")
	bundle, err = c.bundleNamed(profile, r.PathValue("bundle"))
	return profile, bundle, err
}

// bundleNamed refuses bundles that the profile does not have.
func (c *console) bundleNamed(profile, bundle string) (string, error) {
	s, err := c.cfg.Box.Settings(profile)
	if err != nil {
		return "", err
	}
	var has []string
	for _, b := range s.Bundles {
		if b.Bundle == bundle {
			return bundle, nil
		}
		has = append(has, b.Bundle)
	}
	return "", missingPart("trust bundle of that name", has)
}

// missingPart refuses an order for something that the profile does not have; has is what it has.
func missingPart(what string, has []string) error {
	mend := "only what is baked can be replaced: add it to the profile and bake the site again"
	if len(has) > 0 {
		mend = "it has " + strings.Join(has, ", ") + "; " + mend
	}
	return &ConflictError{"the profile has no " + what, mend}
}

func (c *console) apiReplaceBundle(w http.ResponseWriter, r *http.Request, who principal) error {
	profile, bundle, err := c.bundleOf(r)
	if err != nil {
		return err
	}
	certificates, err := readPEM(w, r)
	if err != nil {
		return err
	}
	if err := c.replaceBundle(profile, bundle, certificates, who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

func (c *console) apiRestoreBundle(w http.ResponseWriter, r *http.Request, who principal) error {
	profile, bundle, err := c.bundleOf(r)
	if err != nil {
		return err
	}
	if err := c.replaceBundle(profile, bundle, nil, who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

// hasChallenge refuses profiles without a challenge to replace.
func (c *console) hasChallenge(profile string) error {
	s, err := c.cfg.Box.Settings(profile)
	if err == nil && s.Challenge == nil {
		err = missingPart("challenge that all devices share", nil)
	}
	return err
}

// hasUser refuses profiles without that EST user.
func (c *console) hasUser(profile, user string) error {
	s, err := c.cfg.Box.Settings(profile)
	if err != nil {
		return err
	}
	var has []string
	for _, p := range s.Passwords {
		if p.User == user {
			return nil
		}
		has = append(has, p.User)
	}
	return missingPart("EST user of that name", has)
}

// readHash reads the hash a person wants, or makes a secret and its hash.
func (c *console) readHash(w http.ResponseWriter, r *http.Request) (hash, secret string, err error) {
	var in HashRequest
	if err := readJSON(w, r, &in); err != nil {
		return "", "", err
	}
	return c.hashOf(r.Context(), in)
}

// hashOf is the hash a person wants; secret is "" but where the box makes one.
func (c *console) hashOf(ctx context.Context, in HashRequest) (hash, secret string, err error) {
	if in.Generate == (in.Hash != "") {
		return "", "", &inputError{"hash", "neither a hash nor generate is given, or both are", "send what signet hash printed as hash, or generate: true and the box makes a secret"}
	}
	if !in.Generate {
		if _, err := phc.Parse(in.Hash); err != nil {
			return "", "", &inputError{"hash", err.Error(), "send the hash that signet hash printed"}
		}
		return in.Hash, "", nil
	}
	secret = strings.ToLower(rand.Text()) // 128 bits and a little more, in letters and digits easy to type on a device
	hash, err = c.hasher.hash(ctx, secret)
	return hash, secret, err
}

func (c *console) apiReplaceChallenge(w http.ResponseWriter, r *http.Request, who principal) error {
	profile := r.PathValue("name")
	if err := c.hasChallenge(profile); err != nil {
		return err
	}
	hash, secret, err := c.readHash(w, r)
	if err != nil {
		return err
	}
	if err := c.replaceChallenge(profile, hash, who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, HashResponse{Profile: profile, Secret: secret})
	return nil
}

func (c *console) apiRestoreChallenge(w http.ResponseWriter, r *http.Request, who principal) error {
	profile := r.PathValue("name")
	if err := c.hasChallenge(profile); err != nil {
		return err
	}
	if err := c.replaceChallenge(profile, "", who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

func (c *console) apiReplacePassword(w http.ResponseWriter, r *http.Request, who principal) error {
	profile, user := r.PathValue("name"), r.PathValue("user")
	if err := c.hasUser(profile, user); err != nil {
		return err
	}
	hash, secret, err := c.readHash(w, r)
	if err != nil {
		return err
	}
	if err := c.replacePassword(profile, user, hash, who); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, HashResponse{Profile: profile, User: user, Secret: secret})
	return nil
}

func (c *console) apiRestorePassword(w http.ResponseWriter, r *http.Request, who principal) error {
	profile, user := r.PathValue("name"), r.PathValue("user")
	if err := c.hasUser(profile, user); err != nil {
		return err
	}
	if err := c.replacePassword(profile, user, "", who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

func (c *console) apiPutSecret(w http.ResponseWriter, r *http.Request, who principal) error {
	var in SecretRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := c.keepSecret(r.PathValue("name"), r.PathValue("kind"), in.Value, who); err != nil {
		return err
	}
	return c.showProfile(w, r)
}

// keepSecret gives the box a secret that the profile needs in clear.
func (c *console) keepSecret(profile, kind, value string, who principal) error {
	s, err := c.cfg.Box.Settings(profile)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(s.Secrets, func(one SecretSetting) bool { return one.Kind == kind }) {
		var has []string
		for _, one := range s.Secrets {
			has = append(has, one.Kind)
		}
		return missingPart("use for such a secret", has)
	}
	if value == "" || len(value) > maxSecret {
		return &inputError{"value", fmt.Sprintf("the value is empty or longer than %d bytes", maxSecret), "send the secret itself, without line breaks around it"}
	}
	return c.putSecret(kind+"/"+profile, []byte(value), who)
}

func (c *console) apiIntuneCertificate(w http.ResponseWriter, r *http.Request, who principal) error {
	s, err := c.cfg.Box.Settings(r.PathValue("name"))
	if err != nil {
		return err
	}
	if isLed(r) { // the first time the key and certificate are made
		return errCrossOrigin
	}
	if !s.Intune {
		return missingPart("challenges that Intune is asked about", nil)
	}
	certificate, err := c.cfg.Box.IntuneRequest(s.Profile, who.user)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", `attachment; filename="signet-intune.pem"`)
	write(w, http.StatusOK, mediaPEM, certificate)
	return nil
}
