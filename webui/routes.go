package webui

import (
	"net/http"
	"slices"
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

// isPage tells whether people look at what a GET of the route answers.
func (rt route) isPage() bool { return rt.op == nil }

// operation describes a route of the API; pages have none.
type operation struct {
	id        string
	summary   string
	query     []parameter
	request   any  // value of the body's type, nil without body
	pem       bool // the request is certificates in PEM
	basic     bool // HTTP Basic is taken, see takesBasic
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
	mediaChain   = "application/pem-certificate-chain"                              // RFC 8555 §9.1
	mediaMetrics = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores" // as promhttp sends it to those who ask for nothing else
	apiPrefix    = "/api/v1/"
)

// routeTable lists everything the console listener answers.
func routeTable() []route {
	get, post := http.MethodGet, http.MethodPost
	routes := []route{
		{get, "/{$}", anonymous, nil, (*console).statusPage},
		{post, "/pending/{id}/approve", operator, nil, (*console).approveForm},
		{post, "/pending/{id}/deny", operator, nil, (*console).denyForm},
		{get, mscepPath, operator, nil, (*console).mscepPage},
		{get, mscepPath + "/{$}", operator, nil, (*console).mscepPage},
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
		{get, "/metrics", auditor, &operation{
			id: "metrics", summary: "Counters in Prometheus' text format",
			responses: []response{{http.StatusOK, "metrics", mediaMetrics, nil}},
		}, (*console).apiMetrics},
	}
	return slices.Concat(routes, healthRoutes(), accountRoutes(), enrollmentRoutes(), authorityRoutes(), settingsRoutes(), authorityPageRoutes(), profileRoutes(), tlsRoutes(), setupRoutes(), auditRoutes(), []route{certificatesRoute(), jamfRoute()},
		scepRoutes(), estRoutes(), connectRoutes(),
		explorerRoutes(), certificatePageRoutes(), pendingRoutes())
}

// enrollmentRoutes are what operators decide and administrators see of enrollment.
func enrollmentRoutes() []route {
	get, post := http.MethodGet, http.MethodPost
	decided := []response{{http.StatusOK, "decided and recorded", mediaJSON, Decision{}}}
	return []route{
		{get, apiPrefix + "pending", auditor, &operation{
			id: "pending", summary: "Requests that wait for a person",
			responses: []response{{http.StatusOK, "requests", mediaJSON, PendingList{}}},
		}, (*console).apiPending},
		{post, apiPrefix + "pending/{id}/approve", operator, &operation{
			id: "approve", summary: "Issue what a held request asks for; the device gets it when it asks again",
			responses: decided,
			refusals:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiApprove},
		{post, apiPrefix + "pending/{id}/deny", operator, &operation{
			id: "deny", summary: "Refuse a held request for good",
			request:   DenyRequest{},
			responses: decided,
			refusals:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiDeny},
		{get, apiPrefix + "certificates/{serial}", auditor, &operation{
			id: "certificate", summary: "A certificate by its serial, and what became of it",
			responses: []response{{http.StatusOK, "the certificate", mediaJSON, IssuedCertificate{}}},
			refusals:  []int{http.StatusNotFound, http.StatusUnprocessableEntity},
		}, (*console).apiCertificate},
		{post, apiPrefix + "certificates/{serial}/revoke", operator, &operation{
			id: "revoke", summary: "Revoke a certificate; it renews nothing from then on",
			request:   RevokeRequest{},
			responses: decided,
			refusals:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiRevoke},
		{post, apiPrefix + "challenges", operator, &operation{
			id: "mintChallenge", summary: "Make a challenge that is good once, for one common name",
			request:   ChallengeRequest{},
			responses: []response{{http.StatusOK, "made; it is shown this once", mediaJSON, ChallengeResponse{}}},
			refusals:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		}, (*console).apiMint},
		{get, apiPrefix + "admin/scep/profiles", administrator, &operation{
			id: "listSCEPProfiles", summary: "SCEP side of every profile: RA certificate, challenges, trust",
			responses: []response{{http.StatusOK, "profiles", mediaJSON, SCEPProfiles{}}},
		}, (*console).apiSCEPProfiles},
		{get, apiPrefix + "admin/scep/intune/stats", administrator, &operation{
			id: "intuneStats", summary: "How signed challenges fare in every profile",
			responses: []response{{http.StatusOK, "profiles", mediaJSON, IntuneStats{}}},
		}, (*console).apiIntuneStats},
		{post, apiPrefix + "admin/scep/intune/reload-trust", administrator, &operation{
			id: "reloadTrust", summary: "Read the certificates again that signed challenges are verified with; a bad file changes nothing",
			request:   ReloadRequest{},
			responses: []response{{http.StatusOK, "read again, and in use unless an administrator replaced the certificates", mediaJSON, ReloadResponse{}}},
			refusals:  []int{http.StatusNotFound, http.StatusConflict},
		}, (*console).apiReloadTrust},
	}
}

// isAPI tells whether a program or a browser reads the answer to r.
func isAPI(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/openapi.json" || r.URL.Path == "/metrics" || r.URL.Path == "/events"
}
