package webui

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/enroll"
)

// setupRoutes are the page that leads from a claimed box to the first device.
func setupRoutes() []route {
	return []route{
		{http.MethodGet, "/setup", auditor, nil, (*console).setupPage},
		{http.MethodPost, "/setup", operator, nil, (*console).setupForm},
	}
}

// setupView is the guided set-up.
type setupView struct {
	frame
	Profiles  []profileView
	Chosen    *profileView
	Authority string // of the chosen profile
	OneTime   bool   // the chosen profile takes challenges made for one device
	Known     string // the challenge that all devices share, where it is public
	Fresh     bool   // no device has a certificate of the profile: replacing a secret harms nobody
	Made      *madeSecret
	Guides    []guide // that take what was made; none while there is nothing to enroll at
	Arrivals  arrivals
}

// arrivals is what devices did at a profile lately.
type arrivals struct {
	Profile string
	Devices []CertificateRow // that got a certificate, the newest first
	Held    []PendingRequest
	Refused *audit.Record // the newest refusal, where it is newer than the newest certificate
}

const (
	arrivalsShown   = 3
	arrivalsScanned = 200              // records of the audit log that are looked at for a refusal
	arrivalsSince   = 30 * time.Minute // how old a refusal can be and still be of this set-up
)

// HasSecret says whether there is anything to make for the profile.
func (v *setupView) HasSecret() bool {
	s := v.Chosen.Settings
	return s.Challenge != nil || v.OneTime || len(s.Passwords) > 0
}

func (c *console) setupPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view, err := c.setupView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "setup", view)
}

func (c *console) setupView(r *http.Request, who principal) (*setupView, error) {
	view := &setupView{frame: c.frame(r, who, "/", "Set up")}
	var err error
	if view.Profiles, err = c.profileViews(); err != nil {
		return nil, err
	}
	asked := r.URL.Query().Get("profile")
	for i, p := range view.Profiles {
		if p.Name == asked || asked == "" && p.Default {
			view.Chosen = &view.Profiles[i]
		}
	}
	if view.Chosen == nil {
		return nil, ErrNoProfile
	}
	name := view.Chosen.Name
	for _, p := range c.cfg.SCEP() {
		if p.Name == name {
			view.OneTime = p.OneTime
		}
	}
	if challenge := view.Chosen.Settings.Challenge; challenge != nil {
		view.Known = challenge.Public
	}
	if view.Arrivals, err = c.arrivals(name); err != nil {
		return nil, err
	}
	view.Fresh = len(view.Arrivals.Devices) == 0
	return view, nil
}

// arrivals looks at what devices did at a profile lately.
func (c *console) arrivals(profile string) (arrivals, error) {
	now, out := c.cfg.Now(), arrivals{Profile: profile}
	issued, _, err := c.cfg.Enroll.Certificates(enroll.Query{Profile: profile, State: "all", Limit: arrivalsShown})
	if err != nil {
		return arrivals{}, err
	}
	for _, info := range issued {
		out.Devices = append(out.Devices, rowOf(info, now))
	}
	held, err := c.pending()
	if err != nil {
		return arrivals{}, err
	}
	out.Held = slices.DeleteFunc(held, func(p PendingRequest) bool { return p.Profile != profile })
	records, err := c.cfg.Store.Records(0, arrivalsScanned)
	if err != nil {
		return arrivals{}, err
	}
	for _, rec := range records {
		if now.Sub(rec.Time) > arrivalsSince || len(out.Devices) > 0 && rec.Time.Before(out.Devices[0].Issued) {
			break
		}
		if rec.Protocol != "" && rec.Profile == profile && (rec.Outcome == audit.OutcomeRefused || rec.Outcome == audit.OutcomeFailed) {
			out.Refused = &rec
			break
		}
	}
	return out, nil
}

// setupForm makes what the first device proves itself with. What replaces a baked secret is an
// administrator's, as elsewhere, and here only while it takes nothing from a device.
func (c *console) setupForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	view, err := c.setupView(r, who)
	if err != nil {
		return err
	}
	form := r.PostForm.Get("make")
	var made *madeSecret
	err = c.once(r, who, func() (err error) {
		made, err = c.makeFirst(r, who, view, form)
		return err
	})
	if err == nil {
		if view, err = c.setupView(r, who); err != nil {
			return err
		}
		view.Made = made
		if view.Guides, err = c.guidesFor(r, view.Chosen.Name, made); err != nil {
			return err
		}
		return c.page(w, "setup", view)
	}
	a, isRefusal := attempted(r, form, err)
	if !isRefusal {
		return err
	}
	view.Attempt = a
	return c.page(w, "setup", view)
}

// makeFirst makes a secret: a "one-time" challenge, the "challenge" that all devices share or the
// "password" of a user.
func (c *console) makeFirst(r *http.Request, who principal, view *setupView, kind string) (*madeSecret, error) {
	profile := view.Chosen.Name
	if kind == kindOneTime {
		cn := strings.TrimSpace(r.PostForm.Get("cn"))
		if cn == "" || len(cn) > maxName {
			return nil, &inputError{"cn", "the name is empty or longer than 256 bytes", "write the common name that the device will ask for"}
		}
		secret, expires, err := c.mint(who, Mint{Profile: profile, CN: cn, Actor: who.user, Source: c.cfg.Source(r).String()})
		if err != nil {
			return nil, err
		}
		return &madeSecret{Kind: kind, Secret: secret, CN: cn, Expires: expires.UTC()}, nil
	}
	if who.role < administrator {
		return nil, errRole
	}
	if !view.Fresh {
		return nil, &ConflictError{"devices have certificates of this profile already, and may hold the present secret", "replace it on the profile’s page, which says what that means"}
	}
	user := r.PostForm.Get("user")
	var err error
	switch kind {
	case kindShared:
		err = c.hasChallenge(profile)
	case kindPassword:
		err = c.hasUser(profile, user)
	default:
		err = &inputError{"make", "it is not said what to make", "press one of the buttons of the page"}
	}
	if err != nil {
		return nil, err
	}
	hash, secret, err := c.hashOf(r.Context(), HashRequest{Generate: true})
	if err != nil {
		return nil, err
	}
	if kind == kindPassword {
		return &madeSecret{Kind: kind, Secret: secret, User: user}, c.replacePassword(profile, user, hash, who)
	}
	return &madeSecret{Kind: kind, Secret: secret}, c.replaceChallenge(profile, hash, who)
}
