package webui

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

const (
	maxBody      = 64 << 10
	auditPage    = 50
	maxAuditPage = 500
)

// ClaimRequest is the body of POST /api/v1/claim.
type ClaimRequest struct {
	Code     string `json:"code" doc:"claim code on the box's screen; case, dashes and spaces do not matter"`
	User     string `json:"user" doc:"name of the first administrator: 1 to 64 letters, digits and . _ - @"`
	Password string `json:"password,omitempty" doc:"at least 12 characters; absent lets the box make one"`
}

// ClaimResponse answers a claim. Token and Password are nowhere else and never shown again.
type ClaimResponse struct {
	Token    string `json:"token" doc:"bearer token of the new administrator, valid for one year"`
	User     string `json:"user"`
	Role     string `json:"role"`
	Password string `json:"password,omitempty" doc:"only when the box made it"`
}

// AuditPage is the body of GET /api/v1/audit.
type AuditPage struct {
	Records []audit.Record `json:"records"`
	Next    uint64         `json:"next,omitempty" doc:"value of before for the next older page; absent on the last"`
	Damaged []uint64       `json:"damaged,omitempty" doc:"indices of records that are not what was written, and not among records; an export names the first bad one"`
}

func (c *console) apiCABundle(w http.ResponseWriter, r *http.Request, _ principal) error {
	w.Header().Set("Content-Disposition", `attachment; filename="signet-ca-bundle.pem"`)
	write(w, http.StatusOK, mediaPEM, c.cfg.CABundle())
	return nil
}

func (c *console) openAPIDocument(w http.ResponseWriter, r *http.Request, _ principal) error {
	write(w, http.StatusOK, mediaJSON, c.openAPI)
	return nil
}

func (c *console) apiClaim(w http.ResponseWriter, r *http.Request, _ principal) error {
	var in ClaimRequest
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	out, err := c.claim(r, in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, out)
	return nil
}

func (c *console) apiStatus(w http.ResponseWriter, r *http.Request, _ principal) error {
	s, err := c.status()
	if err != nil {
		return err
	}
	if err := c.addSettings(&s); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, s)
	return nil
}

func (c *console) apiAudit(w http.ResponseWriter, r *http.Request, _ principal) error {
	before, err := queryUint(r, "before", 0, 0, 1<<63)
	if err != nil {
		return err
	}
	limit, err := queryUint(r, "limit", auditPage, 1, maxAuditPage)
	if err != nil {
		return err
	}
	page, err := c.auditPage(before, int(limit))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, page)
	return nil
}

// auditPage reads up to limit records older than before, newest first.
func (c *console) auditPage(before uint64, limit int) (AuditPage, error) {
	found, err := c.cfg.Store.FindRecords(store.RecordQuery{Before: before, Limit: limit})
	if err != nil {
		return AuditPage{}, fmt.Errorf("reading the audit log: %w", err)
	}
	page := AuditPage{Records: found.Records, Next: found.Next, Damaged: found.Damaged}
	if page.Records == nil {
		page.Records = []audit.Record{}
	}
	return page, nil
}

// queryUint reads an optional query parameter between least and most.
func queryUint(r *http.Request, name string, absent, least, most uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, &inputError{name, fmt.Sprintf("%s is not a whole number from %d to %d", name, least, most), "correct it or leave it out"}
	}
	return n, nil
}

// readJSON decodes exactly one JSON object of known members into v.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != mediaJSON {
		return errMediaType
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return unreadable(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		if err == nil {
			err = errors.New("more follows the JSON object")
		}
		return unreadable(err)
	}
	return nil
}

// unreadable hides nothing a sender does not know: the decoder quotes names and types, and values
// only of numbers.
func unreadable(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return errTooLarge
	}
	return fmt.Errorf("%w: %v", errUnreadable, err)
}

// refuse answers with problem details or, to a browser, a page saying the same.
func (c *console) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p, known := problemOf(err)
	p.ID = w.Header().Get("X-Request-Id")
	if !known {
		c.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "console request went wrong", slog.String("id", p.ID), slog.Any("err", err))
	}
	refusalHeaders(w, err, p)
	if p.Status == http.StatusUnauthorized && takesBasic(r) {
		w.Header().Add("WWW-Authenticate", `Basic realm="signet", charset="UTF-8"`)
	}
	if isAPI(r) {
		writeJSON(w, p.Status, mediaProblem, p)
		return
	}
	c.refusalPage(w, r, p)
}
