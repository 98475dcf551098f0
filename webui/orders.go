package webui

import (
	"encoding/pem"
	"net/http"
	"strings"
)

// orderRoutes are the status page's forms for administrators: the API's orders, answered with the page.
func orderRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	const authority, profile = "/authorities/{name}", "/profiles/{name}"
	return []route{
		{get, authority + "/request.pem", auditor, nil, (*console).requestFile},
		{post, authority + "/chain", administrator, nil, (*console).chainForm},
		{post, authority + "/next", administrator, nil, (*console).prepareForm},
		{post, authority + "/next/activate", administrator, nil, (*console).activateForm},
		{post, authority + "/next/cancel", administrator, nil, (*console).cancelForm},
		{post, profile + "/off", administrator, nil, (*console).offForm},
		{post, profile + "/on", administrator, nil, (*console).onForm},
	}
}

// requestFile is a subordinate's request as a file to carry to the authority above.
func (c *console) requestFile(w http.ResponseWriter, r *http.Request, _ principal) error {
	name := r.PathValue("name")
	request, err := c.cfg.Box.AuthorityRequest(name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`.csr.pem"`)
	write(w, http.StatusOK, mediaPEM, request.PEM)
	return nil
}

// formOrder does what a form orders and shows the page again at the section it came from.
func formOrder(w http.ResponseWriter, r *http.Request, section string, order func() error) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	if err := order(); err != nil {
		return err
	}
	http.Redirect(w, r, "/#"+section, http.StatusSeeOther)
	return nil
}

func (c *console) chainForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "authorities", func() error {
		chain := []byte(strings.ReplaceAll(r.PostForm.Get("chain"), "\r\n", "\n"))
		if block, _ := pem.Decode(chain); block == nil || block.Type != "CERTIFICATE" {
			return &inputError{"chain", "this does not begin with a PEM certificate", "paste the signed certificate and those above it, each from BEGIN to END"}
		}
		return c.cfg.Box.InstallChain(r.PathValue("name"), chain, who.user)
	})
}

func (c *console) prepareForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "authorities", func() error { return c.cfg.Box.PrepareNext(r.PathValue("name"), who.user) })
}

func (c *console) activateForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "authorities", func() error {
		if r.PostForm.Get("sure") == "" {
			return &inputError{"sure", "activating cannot be taken back, and the box beside the button is not ticked", "tick it once devices had time to fetch the next generation"}
		}
		return c.cfg.Box.ActivateNext(r.PathValue("name"), who.user)
	})
}

func (c *console) cancelForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "authorities", func() error { return c.cfg.Box.CancelNext(r.PathValue("name"), who.user) })
}

func (c *console) offForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "profiles", func() error { return c.switchOff(r.PathValue("name"), r.PostForm.Get("reason"), who) })
}

func (c *console) onForm(w http.ResponseWriter, r *http.Request, who principal) error {
	return formOrder(w, r, "profiles", func() error { return c.cfg.Box.SwitchProfile(r.PathValue("name"), false, "", who.user) })
}
