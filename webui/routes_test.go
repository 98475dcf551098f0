package webui

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// pathOf makes a request path of a pattern.
func pathOf(rt route) string {
	return strings.NewReplacer("{$}", "", "{file}", "console.css", "{id}", "0123456789abcdef", "{serial}", "2a", "{index}", "0",
		"authorities/{name}", "authorities/devices", "{name}", "corp", "{bundle}", "est", "{user}", "device", "{kind}", "compliance", "{profile}", "iot",
		"{account}", "alice", "{token}", "0123456789abcdef", "{passkey}", "AAAA", "{session}", "0123456789abcdef").Replace(rt.pattern)
}

// claimAs stores a first user of userRole with a token of tokenRole, and returns the token.
func (b *testBox) claimAs(userRole, tokenRole role) string {
	b.t.Helper()
	token, hash := newToken()
	err := b.store.Claim(
		store.User{Name: "alice", Role: userRole.String(), Created: start},
		store.Token{Hash: hash, Name: "test", User: "alice", Role: tokenRole.String(), Created: start, Expires: start.Add(time.Hour)},
		audit.Record{Time: start, TimeSource: "rtc", Action: audit.AdminClaimed, Actor: "alice", Outcome: audit.OutcomeSuccess})
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

// TestRoles calls every route as everyone. Allowed means that the route itself answered, whatever
// it thought of an empty request.
func TestRoles(t *testing.T) {
	type caller struct {
		name   string
		role   role
		status int // of a route above the caller's role
		kind   string
		as     func(*testing.T) (*testBox, []func(*http.Request))
	}
	signed := func(user, token role) func(*testing.T) (*testBox, []func(*http.Request)) {
		return func(t *testing.T) (*testBox, []func(*http.Request)) {
			box := newBox(t, allIssue)
			return box, []func(*http.Request){bearer(box.claimAs(user, token))}
		}
	}
	with := func(change ...func(*http.Request)) func(*testing.T) (*testBox, []func(*http.Request)) {
		return func(t *testing.T) (*testBox, []func(*http.Request)) {
			box := newBox(t, allIssue)
			box.claimAs(administrator, administrator)
			return box, change
		}
	}
	unknown, _ := newToken()
	callers := []caller{
		{"nobody", anonymous, 401, "unauthenticated", with()},
		{"garbage token", anonymous, 401, "bad-credential", with(bearer("sgt_garbage"))},
		{"unknown token", anonymous, 401, "bad-credential", with(bearer(unknown))},
		{"empty token", anonymous, 401, "bad-credential", with(bearer(""))},
		{"basic", anonymous, 401, "bad-credential", with(func(r *http.Request) { r.SetBasicAuth("alice", "x") })},
		{"garbage cookie", anonymous, 401, "bad-credential", with(header("Cookie", sessionCookie+"=garbage"))},
		{"expired token", anonymous, 401, "bad-credential", func(t *testing.T) (*testBox, []func(*http.Request)) {
			box := newBox(t, allIssue)
			token := box.claimAs(administrator, administrator)
			box.clock.pass(time.Hour)
			return box, []func(*http.Request){bearer(token)}
		}},
		{"auditor", auditor, 403, "role", signed(auditor, auditor)},
		{"operator", operator, 403, "role", signed(operator, operator)},
		{"administrator", administrator, 403, "role", signed(administrator, administrator)},
		{"administrator with an auditor's token", auditor, 403, "role", signed(administrator, auditor)},
		{"auditor with an old administrator's token", auditor, 403, "role", signed(auditor, administrator)},
	}
	for _, who := range callers {
		t.Run(who.name, func(t *testing.T) {
			box, change := who.as(t)
			routes := append(routeTable(),
				route{http.MethodGet, "/test/operator", operator, nil, answer},
				route{http.MethodGet, "/test/administrator", administrator, nil, answer})
			box.console.routes = routes
			box.Config.Handler = box.console.handler()
			for _, rt := range routes {
				got := box.send(rt.method, pathOf(rt), nil, change...)
				if strings.HasSuffix(rt.pattern, "/passkey-options") && who.role > anonymous {
					got.checkProblem(t, 403, "token-passkey") // whatever its role, a token adds none
					continue
				}
				name := rt.method + " " + rt.pattern
				sent := got.StatusCode == 303 && strings.HasPrefix(got.Header.Get("Location"), "/sign-in?next=") // a stranger at a page
				denied := got.StatusCode == 401 || got.StatusCode == 403 || sent
				// A token below its user's role takes nothing away that opens the account.
				isLimited := who.name == "administrator with an auditor's token" && rt.method == http.MethodDelete &&
					(strings.HasPrefix(rt.pattern, "/api/v1/account/") || strings.HasPrefix(rt.pattern, "/api/v1/tokens/"))
				if allowed := who.role >= rt.role && !isLimited; allowed == denied {
					t.Errorf("%s: status %d, want allowed: %v", name, got.StatusCode, allowed)
				}
				if isStray(got) || got.StatusCode == 405 || got.StatusCode >= 500 {
					t.Errorf("%s: status %d, the route did not answer: %s", name, got.StatusCode, got.body)
				}
				if denied && got.StatusCode != who.status && !(sent && who.role == anonymous) {
					t.Errorf("%s: status %d, want %d", name, got.StatusCode, who.status)
				}
				if denied && rt.op != nil {
					got.checkProblem(t, who.status, who.kind)
				}
				if last := box.records()[0]; denied && got.Request.Header.Get("Authorization") != "" && got.StatusCode == 401 && last.Action != audit.LoginRefused {
					t.Errorf("%s: a bad token is not in the audit log; its newest record is %+v", name, last)
				}
				if got.StatusCode == 401 && !strings.HasPrefix(got.Header.Get("WWW-Authenticate"), "Bearer ") {
					t.Errorf("%s: 401 without challenge (RFC 9110 §15.5.2)", name)
				}
			}
		})
	}
}

// isStray says whether nothing is at the address of a request. A route of its own may well say that
// there is no such certificate.
func isStray(r reply) bool {
	var p Problem
	return r.StatusCode == 404 && (json.Unmarshal(r.body, &p) != nil && strings.Contains(string(r.body), "There is nothing at this address") || p.Type == problemType("not-found"))
}

func answer(_ *console, w http.ResponseWriter, _ *http.Request, _ principal) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// TestRouteRoles pins who may do what, so that a role in the table changes only on purpose.
func TestRouteRoles(t *testing.T) {
	want := map[string]string{
		"GET /scep": "auditor", "GET /scep/intune": "auditor", "POST /scep/reload-trust": "administrator",
		"GET /est": "auditor", "POST /est/reload-trust": "administrator",
		"GET /api/v1/admin/est/profiles": "administrator", "POST /api/v1/admin/est/reload-trust": "administrator",
		"GET /connect": "auditor", "GET /connect/{profile}": "auditor", "POST /connect/{profile}": "operator", "POST /connect/{profile}/challenge": "operator",
		"GET /connect/{profile}/mobileconfig": "auditor", "POST /connect/{profile}/mobileconfig": "operator",
		"GET /{$}":              "anonymous",
		"POST /claim":           "anonymous",
		"GET /sign-in":          "anonymous",
		"POST /sign-in":         "anonymous",
		"POST /sign-out":        "anonymous",
		"GET /static/{file}":    "anonymous",
		"GET /openapi.json":     "anonymous",
		"GET /api/v1/health":    "anonymous",
		"GET /api/v1/ca-bundle": "anonymous",
		"POST /api/v1/claim":    "anonymous",
		"GET /api/v1/status":    "auditor",
		"GET /api/v1/audit":     "auditor",
		"GET /metrics":          "auditor",

		"GET /events":                       "auditor",
		"GET /box":                          "auditor",
		"GET /api/v1/clock":                 "auditor",
		"GET /api/v1/support-bundle":        "administrator",
		"POST /box/acknowledge":             "administrator",
		"POST /api/v1/rollback/acknowledge": "administrator",

		"POST /api/v1/sign-in/passkey/options":            "anonymous",
		"POST /api/v1/sign-in/passkey":                    "anonymous",
		"GET /account":                                    "auditor",
		"POST /account/password":                          "auditor",
		"POST /account/tokens":                            "auditor",
		"POST /account/tokens/{token}/revoke":             "auditor",
		"POST /account/passkeys/{passkey}/remove":         "auditor",
		"POST /account/sessions/{session}/end":            "auditor",
		"POST /account/sessions/end":                      "auditor",
		"GET /api/v1/account":                             "auditor",
		"POST /api/v1/account/password":                   "auditor",
		"POST /api/v1/account/passkey-options":            "auditor",
		"POST /api/v1/account/passkeys":                   "auditor",
		"DELETE /api/v1/account/passkeys/{passkey}":       "auditor",
		"DELETE /api/v1/account/sessions/{session}":       "auditor",
		"GET /api/v1/tokens":                              "auditor",
		"POST /api/v1/tokens":                             "auditor",
		"DELETE /api/v1/tokens/{token}":                   "auditor",
		"GET /users":                                      "administrator",
		"POST /users":                                     "administrator",
		"GET /users/{account}":                            "administrator",
		"POST /users/{account}/role":                      "administrator",
		"POST /users/{account}/password":                  "administrator",
		"POST /users/{account}/switch":                    "administrator",
		"POST /users/{account}/remove":                    "administrator",
		"POST /users/{account}/sessions/end":              "administrator",
		"POST /users/{account}/passkeys/{passkey}/remove": "administrator",
		"POST /users/{account}/tokens/{token}/revoke":     "administrator",
		"GET /api/v1/users":                               "administrator",
		"POST /api/v1/users":                              "administrator",
		"GET /api/v1/users/{account}":                     "administrator",
		"PATCH /api/v1/users/{account}":                   "administrator",
		"DELETE /api/v1/users/{account}":                  "administrator",
		"DELETE /api/v1/users/{account}/sessions":         "administrator",

		"GET /api/v1/audit/checkpoint":        "auditor",
		"GET /api/v1/audit/key":               "auditor",
		"GET /api/v1/audit/export":            "auditor",
		"GET /api/v1/audit/proof/inclusion":   "auditor",
		"GET /api/v1/audit/proof/consistency": "auditor",

		"GET /certsrv/mscep_admin":     "operator",
		"GET /certsrv/mscep_admin/{$}": "operator",

		"GET /audit": "auditor", "GET /audit/{index}": "auditor", "GET /audit/{index}/proof.json": "auditor",
		"GET /certificates": "auditor", "GET /certificates/{serial}": "auditor",
		"GET /certificates/{serial}/certificate.pem": "auditor", "GET /certificates/{serial}/certificate.der": "auditor", "GET /certificates/{serial}/chain.pem": "auditor",
		"POST /certificates/{serial}/revoke": "operator", "POST /certificates/{serial}/hold": "operator", "POST /certificates/{serial}/release": "operator",
		"GET /pending": "auditor", "GET /pending/{id}": "auditor",
		"POST /pending/{id}/approve":                "operator",
		"POST /pending/{id}/deny":                   "operator",
		"GET /api/v1/pending":                       "auditor",
		"POST /api/v1/pending/{id}/approve":         "operator",
		"POST /api/v1/pending/{id}/deny":            "operator",
		"GET /api/v1/certificates/{serial}":         "auditor",
		"POST /api/v1/certificates/{serial}/revoke": "operator",
		"POST /api/v1/challenges":                   "operator",
		"POST /api/v1/jamf/{profile}":               "operator",
		"GET /api/v1/certificates":                  "auditor",

		"GET /authorities":                       "auditor",
		"POST /ra/rotate":                        "administrator",
		"GET /authorities/{name}":                "auditor",
		"GET /authorities/{name}/request.pem":    "auditor",
		"GET /authorities/{name}/ceremony.zip":   "auditor",
		"GET /authorities/{name}/chain.pem":      "auditor",
		"POST /authorities/{name}/chain":         "administrator",
		"POST /authorities/{name}/next":          "administrator",
		"POST /authorities/{name}/next/activate": "administrator",
		"POST /authorities/{name}/next/cancel":   "administrator",
		"POST /profiles/{name}/off":              "administrator",
		"POST /profiles/{name}/on":               "administrator",
		"GET /profiles":                          "auditor",
		"GET /profiles/{name}":                   "auditor",
		"POST /profiles/{name}/bundle":           "administrator",
		"POST /profiles/{name}/bundle/baked":     "administrator",
		"POST /profiles/{name}/challenge":        "administrator",
		"POST /profiles/{name}/challenge/baked":  "administrator",
		"POST /profiles/{name}/password":         "administrator",
		"POST /profiles/{name}/password/baked":   "administrator",
		"POST /profiles/{name}/secret":           "administrator",
		"GET /profiles/{name}/intune.pem":        "administrator",
		"GET /tls":                               "auditor",
		"GET /tls/ecdsa.csr.pem":                 "auditor",
		"GET /tls/rsa.csr.pem":                   "auditor",
		"POST /tls/chain":                        "administrator",
		"POST /tls/own":                          "administrator",
		"GET /setup":                             "auditor",
		"POST /setup":                            "operator",

		"GET /api/v1/authorities":                       "auditor",
		"GET /api/v1/authorities/{name}":                "auditor",
		"GET /api/v1/authorities/{name}/request":        "auditor",
		"PUT /api/v1/authorities/{name}/chain":          "administrator",
		"POST /api/v1/authorities/{name}/next":          "administrator",
		"POST /api/v1/authorities/{name}/next/activate": "administrator",
		"DELETE /api/v1/authorities/{name}/next":        "administrator",
		"POST /api/v1/ra/rotate":                        "administrator",
		"GET /api/v1/tls/request":                       "auditor",
		"PUT /api/v1/tls/chain":                         "administrator",
		"DELETE /api/v1/tls/chain":                      "administrator",

		"GET /api/v1/profiles":                            "auditor",
		"GET /api/v1/profiles/{name}":                     "auditor",
		"POST /api/v1/profiles/{name}/off":                "administrator",
		"POST /api/v1/profiles/{name}/on":                 "administrator",
		"PUT /api/v1/profiles/{name}/bundles/{bundle}":    "administrator",
		"DELETE /api/v1/profiles/{name}/bundles/{bundle}": "administrator",
		"PUT /api/v1/profiles/{name}/challenge":           "administrator",
		"DELETE /api/v1/profiles/{name}/challenge":        "administrator",
		"PUT /api/v1/profiles/{name}/passwords/{user}":    "administrator",
		"DELETE /api/v1/profiles/{name}/passwords/{user}": "administrator",
		"PUT /api/v1/profiles/{name}/secrets/{kind}":      "administrator",
		"GET /api/v1/profiles/{name}/intune/certificate":  "administrator",

		"GET /api/v1/admin/scep/profiles":             "administrator",
		"GET /api/v1/admin/scep/intune/stats":         "administrator",
		"POST /api/v1/admin/scep/intune/reload-trust": "administrator",
	}
	got := map[string]string{}
	for _, rt := range routeTable() {
		got[rt.method+" "+rt.pattern] = rt.role.String()
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("roles (-want +got):\n%s", d)
	}
}

// openAPIDoc is as much of the document as the tests read.
type openAPIDoc struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Role        string `json:"x-signet-role"`
		Security    []map[string][]string
		RequestBody *struct {
			Content map[string]struct{ Schema schema }
		}
		Responses map[string]struct {
			Content map[string]struct{ Schema schema }
		}
	}
	Components struct {
		Schemas         map[string]schema
		SecuritySchemes map[string]any
	}
}

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 string
	Format               string
	Properties           map[string]schema
	Required             []string
	Items                *schema
	AdditionalProperties *bool `json:"additionalProperties"`
}

func (b *testBox) openAPI() openAPIDoc {
	b.t.Helper()
	got := b.get("/openapi.json")
	var doc openAPIDoc
	if err := json.Unmarshal(got.body, &doc); err != nil || got.StatusCode != 200 {
		b.t.Fatalf("status %d: %v", got.StatusCode, err)
	}
	return doc
}

// TestOpenAPI holds the served document against the router, both ways.
func TestOpenAPI(t *testing.T) {
	box := newBox(t)
	doc := box.openAPI()
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("OpenAPI version %q", doc.OpenAPI)
	}

	var routed, described []string
	roles := map[string]string{}
	for _, rt := range box.console.routes {
		if strings.HasPrefix(rt.pattern, "/api/") && rt.op == nil {
			t.Errorf("%s %s is not described", rt.method, rt.pattern)
		}
		if rt.op != nil {
			routed = append(routed, strings.ToLower(rt.method)+" "+rt.pattern)
			roles[strings.ToLower(rt.method)+" "+rt.pattern] = rt.role.String()
		}
	}
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			name := method + " " + path
			described = append(described, name)
			if op.Role != roles[name] {
				t.Errorf("%s: role %q described, %q checked", name, op.Role, roles[name])
			}
			if (len(op.Security) == 0) != (op.Role == "anonymous") {
				t.Errorf("%s: role %s with security %v", name, op.Role, op.Security)
			}
			if ids[op.OperationID] || op.OperationID == "" {
				t.Errorf("%s: operationId %q is empty or used twice", name, op.OperationID)
			}
			ids[op.OperationID] = true
			// The router knows it: neither "not found" nor "method not allowed".
			if got := box.send(strings.ToUpper(method), pathOf(route{pattern: path}), nil); got.StatusCode == 404 || got.StatusCode == 405 {
				t.Errorf("%s is described but answers %d", name, got.StatusCode)
			}
			for status, response := range op.Responses {
				for mediaType, content := range response.Content {
					doc.checkSchema(t, name+" "+status+" "+mediaType, content.Schema)
				}
			}
		}
	}
	slices.Sort(routed)
	slices.Sort(described)
	if d := cmp.Diff(routed, described); d != "" {
		t.Errorf("routes (-) and OpenAPI document (+) differ:\n%s", d)
	}
}

// checkSchema follows every reference.
func (d openAPIDoc) checkSchema(t *testing.T, where string, s schema) {
	t.Helper()
	if s.Ref != "" {
		name := strings.TrimPrefix(s.Ref, "#/components/schemas/")
		target, ok := d.Components.Schemas[name]
		if !ok {
			t.Errorf("%s: %s is not there", where, s.Ref)
			return
		}
		d.checkSchema(t, where+"/"+name, target)
		return
	}
	if s.Type == "" {
		t.Errorf("%s: no type", where)
	}
	for name, p := range s.Properties {
		d.checkSchema(t, where+"/"+name, p)
	}
	if s.Items != nil {
		d.checkSchema(t, where+"[]", *s.Items)
	}
}

// conform says where v, decoded JSON, is not what s describes.
func (d openAPIDoc) conform(where string, s schema, v any) []string {
	if s.Ref != "" {
		return d.conform(where, d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")], v)
	}
	wrong := func(want string) []string { return []string{fmt.Sprintf("%s is %T, want %s", where, v, want)} }
	switch s.Type {
	case "string":
		text, ok := v.(string)
		if !ok {
			return wrong("string")
		}
		if _, err := time.Parse(time.RFC3339, text); s.Format == "date-time" && err != nil {
			return []string{where + ": " + err.Error()}
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return wrong("boolean")
		}
	case "integer":
		if n, ok := v.(float64); !ok || n != float64(int64(n)) {
			return wrong("integer")
		}
	case "array":
		items, ok := v.([]any)
		if !ok {
			return wrong("array")
		}
		var bad []string
		for i, item := range items {
			bad = append(bad, d.conform(fmt.Sprintf("%s[%d]", where, i), *s.Items, item)...)
		}
		return bad
	case "object":
		members, ok := v.(map[string]any)
		if !ok {
			return wrong("object")
		}
		var bad []string
		for name, member := range members {
			p, known := s.Properties[name]
			if known {
				bad = append(bad, d.conform(where+"."+name, p, member)...)
			} else if s.AdditionalProperties != nil && !*s.AdditionalProperties {
				bad = append(bad, where+"."+name+" is not described")
			}
		}
		for _, name := range s.Required {
			if _, ok := members[name]; !ok {
				bad = append(bad, where+"."+name+" is missing")
			}
		}
		return bad
	default:
		return []string{where + ": type " + s.Type}
	}
	return nil
}

// matches says whether a path has the form of a pattern.
func matches(pattern, path string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	return slices.EqualFunc(want, got, func(w, g string) bool { return w == g || strings.HasPrefix(w, "{") && w != "{$}" })
}

// TestRepliesConform provokes replies and refusals of the API and holds each against the document:
// the status is described, and so is the body.
func TestRepliesConform(t *testing.T) {
	box := newBox(t)
	box.enroll(5)
	doc := box.openAPI()
	check := func(got reply) {
		t.Helper()
		path, method := got.Request.URL.Path, strings.ToLower(got.Request.Method)
		for _, rt := range routeTable() { // the document names patterns
			if strings.ToLower(rt.method) == method && matches(rt.pattern, path) {
				path = rt.pattern
				break
			}
		}
		name := fmt.Sprintf("%s %s %d", method, path, got.StatusCode)
		response, ok := doc.Paths[path][method].Responses[fmt.Sprint(got.StatusCode)]
		if !ok {
			t.Errorf("%s: status is not described; body %s", name, got.body)
			return
		}
		content, ok := response.Content[got.Header.Get("Content-Type")]
		if !ok {
			t.Errorf("%s: Content-Type %q is not described", name, got.Header.Get("Content-Type"))
			return
		}
		if content.Schema.Type == "string" {
			return // not JSON
		}
		var v any
		if err := json.Unmarshal(got.body, &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, bad := range doc.conform(name, content.Schema, v) {
			t.Error(bad)
		}
	}
	check(box.get("/api/v1/health"))
	check(box.get("/api/v1/ca-bundle"))
	check(box.get("/openapi.json"))
	check(box.get("/api/v1/status"))
	check(box.get("/api/v1/audit", bearer("sgt_wrong")))
	check(box.send("POST", "/api/v1/claim", strings.NewReader("{}")))
	check(box.send("POST", "/api/v1/claim", strings.NewReader("{"), header("Content-Type", mediaJSON)))
	check(box.send("POST", "/api/v1/claim", strings.NewReader(`{"code":"`+strings.Repeat("A", maxBody)+`"}`), header("Content-Type", mediaJSON)))
	check(box.post("/api/v1/claim", ClaimRequest{Code: claimCode}))
	check(box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "alice"}, header("Sec-Fetch-Site", "cross-site")))
	for range 6 {
		check(box.post("/api/v1/claim", ClaimRequest{Code: "wrong", User: "alice"}))
	}
	box.clock.pass(time.Minute)
	claimed := box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "alice"})
	check(claimed)
	check(box.post("/api/v1/claim", ClaimRequest{Code: claimCode, User: "alice"}))
	var out ClaimResponse
	claimed.decode(t, &out)
	check(box.get("/api/v1/status", bearer(out.Token)))
	check(box.get("/api/v1/audit", bearer(out.Token)))
	check(box.get("/api/v1/audit?limit=2&before=3", bearer(out.Token)))
	check(box.get("/api/v1/audit?limit=501", bearer(out.Token)))
	check(box.get("/metrics", bearer(out.Token)))
	check(box.get("/metrics"))
	check(box.get("/api/v1/pending", bearer(out.Token)))
	check(box.post("/api/v1/pending/0123456789abcdef/approve", nil, bearer(out.Token)))
	check(box.post("/api/v1/pending/0123456789abcdef/deny", DenyRequest{Reason: "no"}, bearer(out.Token)))
	check(box.post("/api/v1/pending/0123456789abcdef/deny", DenyRequest{}, bearer(out.Token)))
	check(box.get("/api/v1/certificates/2a", bearer(out.Token)))
	check(box.post("/api/v1/certificates/2a/revoke", RevokeRequest{Reason: "keyCompromise"}, bearer(out.Token)))
	check(box.post("/api/v1/certificates/2a/revoke", RevokeRequest{}, bearer(out.Token)))
	box.request("lamp")
	token := bearer(out.Token)
	check(box.get("/api/v1/certificates?q=lamp", token))
	check(box.get("/api/v1/certificates?state=tired", token))
	for _, rt := range authorityRoutes() { // each in a state it is made for, or refused
		check(box.send(rt.method, pathOf(rt), nil, token))
	}
	for _, name := range []string{"devices", "plant"} {
		check(box.get("/api/v1/authorities/"+name, token))
		check(box.get("/api/v1/authorities/"+name+"/request", token))
	}
	certificate := pemOf(box.fake.authorities[0].Generations[0].Certificate)
	check(box.put("/api/v1/authorities/plant/chain", certificate, token))
	check(box.put("/api/v1/authorities/plant/chain", certificate, token, header("Content-Type", mediaJSON)))
	check(box.post("/api/v1/authorities/devices/next", nil, token))
	check(box.post("/api/v1/authorities/devices/next/activate", nil, token))
	check(box.get("/api/v1/authorities/devices", token))
	box.fake.failNext(ErrKeysBusy)
	check(box.post("/api/v1/ra/rotate", nil, token))
	check(box.put("/api/v1/tls/chain", certificate, token))
	check(box.get("/api/v1/profiles", token))
	check(box.post("/api/v1/profiles/corp/off", OffRequest{Reason: "a leak"}, token))
	check(box.put("/api/v1/profiles/corp/bundles/est", certificate, token))
	check(box.put("/api/v1/profiles/corp/bundles/signed", certificate, token))
	check(box.putJSON("/api/v1/profiles/corp/challenge", HashRequest{Generate: true}, token))
	check(box.putJSON("/api/v1/profiles/corp/passwords/device", HashRequest{}, token))
	check(box.putJSON("/api/v1/profiles/corp/secrets/compliance", SecretRequest{Value: "x"}, token))
	check(box.get("/api/v1/profiles/corp", token))
	for _, rt := range settingsRoutes() {
		check(box.send(rt.method, strings.Replace(pathOf(rt), "corp", "nobody", 1), nil, token))
	}
	check(box.post("/api/v1/jamf/iot", map[string]any{"webhook": map[string]any{"webhookEvent": "SCEPChallenge"}, "event": map[string]any{"targetDevice": map[string]any{"serialNumber": "S1"}}}, token))
	check(box.post("/api/v1/jamf/iot", map[string]any{}, token))
	for _, profile := range []string{"iot", "corp", "nobody"} {
		check(box.post("/api/v1/challenges", ChallengeRequest{Profile: profile, CN: "x", TTL: "1h"}, bearer(out.Token)))
	}
	check(box.post("/api/v1/challenges", ChallengeRequest{Profile: "iot"}, bearer(out.Token)))
	check(box.get("/api/v1/admin/scep/profiles", bearer(out.Token)))
	check(box.get("/api/v1/admin/scep/intune/stats", bearer(out.Token)))
	for _, profile := range []string{"intune", "corp", "nobody", "broken"} {
		check(box.post("/api/v1/admin/scep/intune/reload-trust", ReloadRequest{PathID: profile}, bearer(out.Token)))
	}
	checkAccounts(box, check, token)
	box.clock.pass(11 * 365 * 24 * time.Hour)
	check(box.get("/api/v1/health")) // everything has expired: 503
}
