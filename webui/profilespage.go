package webui

import (
	"net/http"
	"slices"
	"time"
)

// profileRoutes are the pages of profiles and the orders given there.
func profileRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	const one = "/profiles/{name}"
	return []route{
		{get, "/profiles", auditor, nil, (*console).profilesPage},
		{get, one, auditor, nil, (*console).profilePage},
		{post, one + "/off", administrator, nil, (*console).offForm},
		{post, one + "/on", administrator, nil, (*console).onForm},
		{post, one + "/bundle", administrator, nil, (*console).bundleForm},
		{post, one + "/bundle/baked", administrator, nil, (*console).bakedBundleForm},
		{post, one + "/challenge", administrator, nil, (*console).challengeForm},
		{post, one + "/challenge/baked", administrator, nil, (*console).bakedChallengeForm},
		{post, one + "/password", administrator, nil, (*console).passwordForm},
		{post, one + "/password/baked", administrator, nil, (*console).bakedPasswordForm},
		{post, one + "/secret", administrator, nil, (*console).secretForm},
		{get, one + "/intune.pem", administrator, nil, (*console).apiIntuneCertificate},
	}
}

// profilesView is the page of all profiles.
type profilesView struct {
	frame
	Profiles []profileView
}

// profileView is what pages show of a profile.
type profileView struct {
	Profile
	Settings ProfileDetails
	Issues   bool // its authority can
}

// profilePageView is the page of one profile.
type profilePageView struct {
	frame
	profileView
	Now    time.Time
	Rules  []ruleGroup
	Target string // the bundle, EST user or kind of secret that the dialog is about; "" for none
	Made   *madeSecret
}

// ruleGroup is what the site says of one side of a profile.
type ruleGroup struct {
	Name  string
	Rules []Rule
}

// HasTarget says whether the dialog is about something that the profile has.
func (v *profilePageView) HasTarget() bool {
	switch s := v.Settings; v.Do {
	case "bundle", "bundle-baked":
		return v.Bundle() != nil
	case "password", "password-baked":
		return slices.ContainsFunc(s.Passwords, func(p PasswordDetails) bool { return p.User == v.Target })
	case "secret":
		return slices.ContainsFunc(s.Secrets, func(one SecretDetails) bool { return one.Kind == v.Target })
	case "challenge", "challenge-baked":
		return s.Challenge != nil
	}
	return true
}

// Bundle is the one that the dialog is about, nil for none.
func (v *profilePageView) Bundle() *BundleDetails {
	for i, b := range v.Settings.Bundles {
		if b.Bundle == v.Target {
			return &v.Settings.Bundles[i]
		}
	}
	return nil
}

func (c *console) profileViews() ([]profileView, error) {
	issues := map[string]bool{}
	for _, a := range c.cfg.Box.Authorities() {
		issues[a.Name] = slices.ContainsFunc(a.Generations, func(g GenerationInfo) bool { return g.State == GenerationActive })
	}
	var all []profileView
	for _, p := range c.cfg.Site().Profiles {
		d, err := c.profile(p.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, profileView{p, d, issues[p.Authority]})
	}
	return all, nil
}

func (c *console) profilesPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view := profilesView{frame: c.frame(r, who, "/profiles", "Profiles")}
	var err error
	if view.Profiles, err = c.profileViews(); err != nil {
		return err
	}
	return c.page(w, "profiles", &view)
}

func (c *console) profilePage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.profilePageView(r, who)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	view.Target = query.Get("of")
	return c.page(w, "profile", view)
}

func (c *console) profilePageView(r *http.Request, who principal) (*profilePageView, error) {
	name := r.PathValue("name")
	all, err := c.profileViews()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(p profileView) bool { return p.Name == name })
	if i < 0 {
		return nil, ErrNoProfile
	}
	view := &profilePageView{frame: c.frame(r, who, "/profiles", "Profile "+name), profileView: all[i], Now: c.cfg.Now()}
	rules, err := c.cfg.Box.Policy(name)
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		if n := len(view.Rules); n == 0 || view.Rules[n-1].Name != rule.Group {
			view.Rules = append(view.Rules, ruleGroup{Name: rule.Group})
		}
		group := &view.Rules[len(view.Rules)-1]
		group.Rules = append(group.Rules, rule)
	}
	return view, nil
}

// profileOrder takes an order that a dialog on a profile's page gives.
func (c *console) profileOrder(w http.ResponseWriter, r *http.Request, who principal, form, done string, do func(profile string) error) error {
	name := r.PathValue("name")
	return c.take(w, r, order{form: form, done: done, path: "/profiles/" + name, secrets: []string{"value", "hash"},
		do:    func() error { return do(name) },
		again: func(a *attempt) error { return c.showProfileAgain(w, r, who, a) },
	})
}

func (c *console) showProfileAgain(w http.ResponseWriter, r *http.Request, who principal, a *attempt) error {
	view, err := c.profilePageView(r, who)
	if err != nil {
		return err
	}
	view.Attempt, view.Do, view.Target = a, a.Form, a.Values.Get("of")
	if !view.HasTarget() { // the dialog has nothing to be about
		return a.refusal
	}
	return c.page(w, "profile", view)
}

func (c *console) offForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "off", "profile-off", func(profile string) error {
		return c.switchOff(profile, r.PostForm.Get("reason"), who)
	})
}

func (c *console) onForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "on", "profile-on", func(profile string) error {
		return c.cfg.Box.SwitchProfile(profile, false, "", who.user)
	})
}

func (c *console) bundleForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "bundle", "bundle-replaced", func(profile string) error {
		bundle, err := c.bundleNamed(profile, r.PostForm.Get("of"))
		if err != nil {
			return err
		}
		certificates, err := uploaded(r)
		if err != nil {
			return err
		}
		return c.replaceBundle(profile, bundle, certificates, who)
	})
}

func (c *console) bakedBundleForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "bundle-baked", "baked-again", func(profile string) error {
		bundle, err := c.bundleNamed(profile, r.PostForm.Get("of"))
		if err != nil {
			return err
		}
		return c.replaceBundle(profile, bundle, nil, who)
	})
}

// secretOrder replaces the hash of a secret by what the form says. A secret that the box makes is shown on
// the page that answers, which nothing else can bring back.
func (c *console) secretOrder(w http.ResponseWriter, r *http.Request, who principal, o order, replace func(hash string) error) error {
	var made string
	do := o.do
	o.do = func() error {
		if err := do(); err != nil {
			return err
		}
		hash, secret, err := c.hashOf(r.Context(), HashRequest{Hash: r.PostForm.Get("hash"), Generate: r.PostForm.Get("generate") != ""})
		if err != nil {
			return err
		}
		made = secret
		return c.once(r, who, func() error { return replace(hash) })
	}
	o.shown = func() error {
		if made == "" {
			return c.done(w, r, o.path, o.done)
		}
		view, err := c.profilePageView(r, who)
		if err != nil {
			return err
		}
		view.Do, view.Made = "", &madeSecret{Secret: made, User: r.PostForm.Get("of")}
		return c.page(w, "profile", view)
	}
	return c.take(w, r, o)
}

func (c *console) challengeForm(w http.ResponseWriter, r *http.Request, who principal) error {
	name := r.PathValue("name")
	return c.secretOrder(w, r, who, order{form: "challenge", done: "challenge-replaced", path: "/profiles/" + name, secrets: []string{"hash"},
		do:    func() error { return c.hasChallenge(name) },
		again: func(a *attempt) error { return c.showProfileAgain(w, r, who, a) },
	}, func(hash string) error { return c.replaceChallenge(name, hash, who) })
}

func (c *console) bakedChallengeForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "challenge-baked", "baked-again", func(profile string) error {
		if err := c.hasChallenge(profile); err != nil {
			return err
		}
		return c.replaceChallenge(profile, "", who)
	})
}

func (c *console) passwordForm(w http.ResponseWriter, r *http.Request, who principal) error {
	name := r.PathValue("name")
	return c.secretOrder(w, r, who, order{form: "password", done: "password-replaced", path: "/profiles/" + name, secrets: []string{"hash"},
		do:    func() error { return c.hasUser(name, r.PostForm.Get("of")) },
		again: func(a *attempt) error { return c.showProfileAgain(w, r, who, a) },
	}, func(hash string) error { return c.replacePassword(name, r.PostForm.Get("of"), hash, who) })
}

func (c *console) bakedPasswordForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "password-baked", "baked-again", func(profile string) error {
		user := r.PostForm.Get("of")
		if err := c.hasUser(profile, user); err != nil {
			return err
		}
		return c.replacePassword(profile, user, "", who)
	})
}

func (c *console) secretForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return c.profileOrder(w, r, who, "secret", "secret-kept", func(profile string) error {
		return c.keepSecret(profile, r.PostForm.Get("of"), r.PostForm.Get("value"), who)
	})
}
