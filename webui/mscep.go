package webui

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// mscepPath is where Microsoft's NDES makes challenges, and where scripts look for them.
const mscepPath = "/certsrv/mscep_admin"

// takesBasic says whether HTTP Basic, with a token as the password, is taken for r: where callers know
// nothing else.
func takesBasic(r *http.Request) bool {
	return r.URL.Path == mscepPath || r.URL.Path == mscepPath+"/" || strings.HasPrefix(r.URL.Path, jamfPrefix)
}

// byBasic says who sent r by HTTP Basic: the user's name, also written DOMAIN\name, and a token of theirs.
func (c *console) byBasic(r *http.Request) (principal, error) {
	user, token, _ := r.BasicAuth()
	who, err := c.byToken(r, token)
	if err != nil {
		return principal{}, err
	}
	if user[strings.LastIndexByte(user, '\\')+1:] != who.user {
		return principal{}, errBadCredential
	}
	return who, nil
}

// mscepView is the page that looks to scripts like that of NDES.
type mscepView struct {
	frame
	Profiles   []string // that take one-time challenges
	Profile    string   // the one chosen
	Made       *ChallengeResponse
	Thumbprint string // SHA-256 of the profile's CA certificate, upper-case hex in groups
	Minutes    int    // the challenge is good for
}

// mscepPage makes a challenge where the query names a device. Unlike NDES it needs the name: no
// challenge is good for just anybody.
func (c *console) mscepPage(w http.ResponseWriter, r *http.Request, who principal) error {
	view := mscepView{frame: c.frame(r, who, "/connect", "Enrollment challenges"), Profile: r.URL.Query().Get("profile")}
	var chosen SCEPProfile
	for _, p := range c.cfg.SCEP() {
		if !p.OneTime {
			continue
		}
		view.Profiles = append(view.Profiles, p.Name)
		if p.Name == view.Profile || view.Profile == "" {
			chosen, view.Profile = p, p.Name
		}
	}
	cn := r.URL.Query().Get("cn")
	if cn == "" {
		return c.render(w, http.StatusOK, "mscep", &view)
	}
	if isLed(r) { // a GET that makes something, because its callers send no other
		return errCrossOrigin
	}
	if len(cn) > maxName {
		return &inputError{"cn", "the common name is longer than 256 bytes", "write the common name the device will ask for"}
	}
	secret, expires, err := c.mint(who, Mint{Profile: view.Profile, CN: cn, Actor: who.user, Source: c.cfg.Source(r).String()})
	if err != nil {
		return err
	}
	view.Made = &ChallengeResponse{Challenge: secret, Profile: view.Profile, CN: cn, Expires: expires}
	view.Minutes = int(expires.Sub(c.cfg.Now()) / time.Minute)
	for _, a := range c.cfg.Box.Authorities() {
		for _, g := range a.Generations {
			if a.Name == chosen.Authority && g.State == GenerationActive {
				view.Thumbprint = thumbprint(g.Certificate.Raw)
			}
		}
	}
	return c.render(w, http.StatusOK, "mscep", &view)
}

// isLed tells whether a page of another origin sent a browser here. Of another site it would bring no session; one
// beside the box, under the same domain, it does.
func isLed(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "same-origin" && site != "none"
}

func thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	var groups []string
	for i := 0; i < len(sum); i += 4 {
		groups = append(groups, fmt.Sprintf("%X", sum[i:i+4]))
	}
	return strings.Join(groups, " ")
}
