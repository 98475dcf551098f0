package webui

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/audit"
)

// buildOpenAPI writes the OpenAPI 3.1 document of every route that has an operation. Schemas come
// from the Go types that are really sent, so the document cannot drift from them.
func buildOpenAPI(routes []route) ([]byte, error) {
	schemas := schemaSet{}
	paths := map[string]map[string]any{}
	for _, rt := range routes {
		if rt.op == nil {
			continue
		}
		if paths[rt.pattern] == nil {
			paths[rt.pattern] = map[string]any{}
		}
		paths[rt.pattern][strings.ToLower(rt.method)] = describeOperation(rt, schemas)
	}
	return json.MarshalIndent(map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title":       "Signet admin API",
			"version":     "1",
			"description": "Administration of one Signet box. Refusals are RFC 9457 problem details whose \"mend\" member says what to do.",
		},
		"servers": []any{map[string]any{"url": "/"}},
		"paths":   paths,
		"components": map[string]any{
			"schemas": schemas,
			"securitySchemes": map[string]any{
				"bearer":  map[string]any{"type": "http", "scheme": "bearer", "description": "token printed by signet claim"},
				"basic":   map[string]any{"type": "http", "scheme": "basic", "description": "name of a user, and a token of theirs as the password"},
				"session": map[string]any{"type": "apiKey", "in": "cookie", "name": sessionCookie, "description": "set by the console's sign-in"},
			},
		},
	}, "", "  ")
}

func describeOperation(rt route, schemas schemaSet) map[string]any {
	op := rt.op
	responses := map[string]any{}
	for _, one := range op.responses {
		schema := map[string]any{"type": "string"}
		if one.body != nil {
			schema = schemas.of(reflect.TypeOf(one.body))
		}
		responses[strconv.Itoa(one.status)] = map[string]any{
			"description": one.description,
			"content":     map[string]any{one.mediaType: map[string]any{"schema": schema}},
		}
	}
	for _, status := range refusalStatuses(rt) {
		refusal := map[string]any{
			"description": http.StatusText(status),
			"content":     map[string]any{mediaProblem: map[string]any{"schema": schemas.of(reflect.TypeOf(Problem{}))}},
		}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			refusal["headers"] = map[string]any{"Retry-After": map[string]any{"description": "seconds", "schema": map[string]any{"type": "integer"}}}
		}
		responses[strconv.Itoa(status)] = refusal
	}
	out := map[string]any{
		"operationId":   op.id,
		"summary":       op.summary,
		"responses":     responses,
		"security":      []any{},
		"x-signet-role": rt.role.String(),
	}
	if rt.role > anonymous {
		security := []any{map[string]any{"bearer": []any{}}, map[string]any{"session": []any{}}}
		if op.basic {
			security = append(security, map[string]any{"basic": []any{}})
		}
		out["security"] = security
	}
	if op.pem {
		text := map[string]any{"schema": map[string]any{"type": "string"}}
		out["requestBody"] = map[string]any{"required": true, "content": map[string]any{mediaPEM: text, mediaChain: text}}
	}
	if op.request != nil {
		out["requestBody"] = map[string]any{
			"required": true,
			"content":  map[string]any{mediaJSON: map[string]any{"schema": schemas.of(reflect.TypeOf(op.request))}},
		}
	}
	var parameters []any
	for _, name := range pathParameters(rt.pattern) {
		parameters = append(parameters, map[string]any{"name": name, "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
	}
	for _, p := range op.query {
		parameters = append(parameters, map[string]any{"name": p.name, "in": "query", "description": p.description, "schema": p.schema})
	}
	if parameters != nil {
		out["parameters"] = parameters
	}
	return out
}

// pathParameters are the names in braces of a pattern.
func pathParameters(pattern string) []string {
	var names []string
	for _, segment := range strings.Split(pattern, "/") {
		if name, ok := strings.CutPrefix(segment, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

// refusalStatuses are the statuses of problem details a route can answer with.
func refusalStatuses(rt route) []int {
	statuses := append([]int{http.StatusInternalServerError}, rt.op.refusals...)
	if rt.role > anonymous {
		statuses = append(statuses, http.StatusUnauthorized, http.StatusForbidden)
	}
	if rt.op.request != nil || rt.op.pem {
		statuses = append(statuses, http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity)
	}
	if rt.method != http.MethodGet {
		statuses = append(statuses, http.StatusInsufficientStorage)
	}
	slices.Sort(statuses)
	return slices.Compact(statuses)
}

// schemaSet collects the named schemas (JSON Schema 2020-12) of Go types.
type schemaSet map[string]any

// of returns the schema of t, a reference where t is a struct. Only what the API's types are made
// of is known; anything else is a mistake in this package.
func (s schemaSet) of(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[audit.Record]():
		return s.auditRecord()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.of(t.Elem())
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return map[string]any{"type": "integer"}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "contentEncoding": "base64"}
		}
		return map[string]any{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object"}
	case reflect.Struct:
		if _, known := s[t.Name()]; !known {
			s[t.Name()] = s.object(t)
		}
		return map[string]any{"$ref": "#/components/schemas/" + t.Name()}
	}
	panic(fmt.Sprintf("no schema for %v", t))
}

func (s schemaSet) object(t reflect.Type) map[string]any {
	properties := map[string]any{}
	required := []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		schema := s.of(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			schema["description"] = doc
		}
		properties[name] = schema
		if options != "omitempty" {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
}

// auditRecord follows the log's canonical encoding, whose keys are always all present.
func (s schemaSet) auditRecord() map[string]any {
	const name = "AuditRecord"
	if _, known := s[name]; !known {
		var keys map[string]any
		if err := json.Unmarshal(audit.Leaf(audit.Record{}), &keys); err != nil {
			panic(err) // a constant
		}
		properties := map[string]any{}
		required := []string{}
		for key, value := range keys {
			schema := map[string]any{"type": "string"}
			if _, ok := value.(float64); ok {
				schema["type"] = "integer"
			}
			properties[key] = schema
			required = append(required, key)
		}
		slices.Sort(required)
		s[name] = map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	}
	return map[string]any{"$ref": "#/components/schemas/" + name}
}
