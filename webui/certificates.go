package webui

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/enroll"
	"signet.internal/appliance/pki"
)

// CertificateList is the body of GET /api/v1/certificates.
type CertificateList struct {
	Certificates []CertificateRow `json:"certificates" doc:"newest first; one page may hold fewer than there are, or none, and still name a next"`
	Next         string           `json:"next,omitempty" doc:"value of after for the next page; absent on the last"`
}

// CertificateRow is a certificate in a list.
type CertificateRow struct {
	Serial    string     `json:"serial" doc:"lower-case hex"`
	Identity  string     `json:"identity" doc:"as the device wrote it"`
	Profile   string     `json:"profile"`
	Protocol  string     `json:"protocol"`
	State     string     `json:"state" doc:"\"active\", \"revoked\" or \"expired\""`
	Issued    time.Time  `json:"issued"`
	NotAfter  time.Time  `json:"not_after"`
	Revoked   *time.Time `json:"revoked_at,omitempty"`
	Reason    string     `json:"reason,omitempty" doc:"of the revocation, by its name in RFC 5280 §5.3.1"`
	Renews    string     `json:"renews,omitempty" doc:"serial of the certificate it renews"`
	RenewedBy string     `json:"renewed_by,omitempty" doc:"serial of the one that renewed it last"`
	Withheld  bool       `json:"withheld,omitempty" doc:"issued and not handed out: Intune was not told yet"`
}

const (
	certificatePage    = 50
	maxCertificatePage = 100
	// minSerialSearch is from how many hex digits on a search looks for a serial: fewer are likelier a name.
	minSerialSearch = 6
	// stateDue lists what should have been renewed.
	stateDue = "due"
)

func certificatesRoute() route {
	return route{http.MethodGet, apiPrefix + "certificates", auditor, &operation{
		id: "certificates", summary: "Certificates the box issued, newest first",
		query: []parameter{
			{"q", "beginning of a serial in hex, at least 6 digits, where any begins so; else beginning of an identity, in any case", map[string]any{"type": "string"}},
			{"profile", "only of this profile", map[string]any{"type": "string"}},
			{"state", "only in this state; hold: of the revoked ones those that can be released; due: near the end of its time and not renewed, the first to end first (q then narrows each page)", map[string]any{"type": "string", "enum": []string{"all", "active", "due", "revoked", "hold", "expired"}, "default": "all"}},
			{"after", "next of the page before, of the same search", map[string]any{"type": "string"}},
			{"limit", "certificates at most", map[string]any{"type": "integer", "minimum": 1, "maximum": maxCertificatePage, "default": certificatePage}},
		},
		responses: []response{{http.StatusOK, "certificates", mediaJSON, CertificateList{}}},
		refusals:  []int{http.StatusUnprocessableEntity, http.StatusServiceUnavailable},
	}, (*console).apiCertificates}
}

func (c *console) apiCertificates(w http.ResponseWriter, r *http.Request, _ principal) error {
	limit, err := queryUint(r, "limit", certificatePage, 1, maxCertificatePage)
	if err != nil {
		return err
	}
	asked := r.URL.Query()
	found, next, err := c.search(asked.Get("q"), enroll.Query{
		Profile: asked.Get("profile"), State: asked.Get("state"), After: asked.Get("after"), Limit: int(limit),
	})
	if err != nil {
		return err
	}
	now := c.cfg.Now()
	list := CertificateList{Certificates: []CertificateRow{}, Next: next}
	for _, info := range found {
		list.Certificates = append(list.Certificates, rowOf(info, now))
	}
	writeJSON(w, http.StatusOK, mediaJSON, list)
	return nil
}

// search lists by serial where text can be the beginning of one and any begins so, else by identity. A
// place to go on at belongs to one of the two lists, and the engine refuses it for the other.
func (c *console) search(text string, q enroll.Query) ([]enroll.CertInfo, string, error) {
	if q.State == stateDue {
		return c.searchDue(text, q)
	}
	serial := strings.ToLower(strings.ReplaceAll(text, ":", ""))
	if len(serial) >= minSerialSearch && strings.Trim(serial, "0123456789abcdef") == "" {
		bySerial := q
		bySerial.Serial = serial
		found, next, err := c.cfg.Enroll.Certificates(bySerial)
		switch isOther := q.After != "" && errors.Is(err, enroll.ErrQuery); {
		case err != nil && !isOther:
			return nil, "", err
		case err == nil && (len(found) > 0 || next != "" || q.After != ""):
			return found, next, nil
		}
	}
	q.Identity = text
	return c.cfg.Enroll.Certificates(q)
}

// searchDue lists what is due, and leaves out of each page what does not begin as text does.
func (c *console) searchDue(text string, q enroll.Query) ([]enroll.CertInfo, string, error) {
	found, next, err := c.cfg.Enroll.Due(q.Profile, q.After, q.Limit)
	text = strings.ToLower(text)
	serial := strings.ReplaceAll(text, ":", "")
	found = slices.DeleteFunc(found, func(i enroll.CertInfo) bool {
		return !strings.HasPrefix(strings.ToLower(i.Identity), text) && (len(serial) < minSerialSearch || !strings.HasPrefix(i.Serial, serial))
	})
	return found, next, err
}

func rowOf(info enroll.CertInfo, now time.Time) CertificateRow {
	row := CertificateRow{
		Serial: info.Serial, Identity: info.Identity, Profile: info.Profile, Protocol: info.Protocol, State: "active",
		Issued: info.Issued.UTC(), NotAfter: info.NotAfter.UTC(), Renews: info.Renews, RenewedBy: info.RenewedBy, Withheld: info.Withheld,
	}
	switch {
	case !info.RevokedAt.IsZero():
		row.State, row.Revoked, row.Reason = "revoked", timeOf(info.RevokedAt), reasonName(info.Reason)
	case !now.Before(info.NotAfter):
		row.State = "expired"
	}
	return row
}

// reasonName is the name of a CRLReason; "" for none that RFC 5280 knows.
func reasonName(code int) string {
	for name, known := range pki.Reasons() {
		if known == code {
			return name
		}
	}
	return ""
}
