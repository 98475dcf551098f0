package webui

import (
	"net/http"
	"strings"
)

// route is one line of the table that routing, roles, the OpenAPI document and the tests share.
type route struct {
	method  string
	pattern string // as http.ServeMux takes it
	role    role   // the least that may call it
	op      *operation
	serve   func(c *console, w http.ResponseWriter, r *http.Request, who principal) error
}

// operation describes a route of the API; pages have none.
type operation struct {
	id        string
	summary   string
	query     []parameter
	request   any // value of the body's type, nil without body
	responses []response
	refusals  []int // statuses of problem details beyond those any such route has
}

type parameter struct {
	name        string
	description string
	schema      map[string]any
}

type response struct {
	status      int
	description string
	mediaType   string
	body        any // value of the body's type; nil where it is text
}

const (
	mediaJSON    = "application/json"
	mediaProblem = "application/problem+json"
	mediaPEM     = "application/x-pem-file"
	apiPrefix    = "/api/v1/"
)

// routeTable lists everything the console listener answers.
func routeTable() []route {
	get, post := http.MethodGet, http.MethodPost
	return []route{
		{get, "/{$}", anonymous, nil, (*console).statusPage},
		{post, "/claim", anonymous, nil, (*console).claimForm},
		{post, "/sign-in", anonymous, nil, (*console).signInForm},
		{post, "/sign-out", anonymous, nil, (*console).signOutForm},
		{get, "/static/{file}", anonymous, nil, (*console).staticFile},
		{get, "/openapi.json", anonymous, &operation{
			id: "openapi", summary: "This document",
			responses: []response{{http.StatusOK, "an OpenAPI 3.1 document", mediaJSON, map[string]any{}}},
		}, (*console).openAPIDocument},
		{get, apiPrefix + "health", anonymous, &operation{
			id: "health", summary: "Whether the box serves and whether it needs a person",
			responses: []response{
				{http.StatusOK, "the box serves", mediaJSON, Health{}},
				{http.StatusServiceUnavailable, "the box cannot issue certificates now", mediaJSON, Health{}},
			},
		}, (*console).apiHealth},
		{get, apiPrefix + "ca-bundle", anonymous, &operation{
			id: "caBundle", summary: "The root of the box's TLS certificates and of every active authority",
			responses: []response{{http.StatusOK, "PEM certificates", mediaPEM, nil}},
		}, (*console).apiCABundle},
		{post, apiPrefix + "claim", anonymous, &operation{
			id: "claim", summary: "Create the first administrator with the code on the box's screen",
			request:   ClaimRequest{},
			responses: []response{{http.StatusOK, "claimed; token and password are shown this once", mediaJSON, ClaimResponse{}}},
			refusals:  []int{http.StatusForbidden, http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable},
		}, (*console).apiClaim},
		{get, apiPrefix + "status", auditor, &operation{
			id: "status", summary: "Identity, TPM, clock, certificates, profiles and what needs a person",
			responses: []response{{http.StatusOK, "the status page's contents", mediaJSON, Status{}}},
		}, (*console).apiStatus},
		{get, apiPrefix + "audit", auditor, &operation{
			id: "audit", summary: "Records of the audit log, newest first",
			query: []parameter{
				{"before", "only records with a smaller index; 0 or absent starts at the newest", map[string]any{"type": "integer", "minimum": 0, "default": 0}},
				{"limit", "records at most", map[string]any{"type": "integer", "minimum": 1, "maximum": maxAuditPage, "default": auditPage}},
			},
			responses: []response{{http.StatusOK, "records", mediaJSON, AuditPage{}}},
			refusals:  []int{http.StatusUnprocessableEntity},
		}, (*console).apiAudit},
	}
}

// isAPI tells whether a program or a browser reads the answer to r.
func isAPI(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/openapi.json"
}
