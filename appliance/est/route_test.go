package est

import "testing"

func TestLocate(t *testing.T) {
	corp, iot := &profile{Profile: Profile{Name: "corp"}}, &profile{Profile: Profile{Name: "iot"}}
	s := &Server{profiles: map[string]*profile{"corp": corp, "iot": iot}, fallback: corp}
	for path, want := range map[string]struct {
		profile   *profile
		operation string
	}{
		"/.well-known/est/cacerts":             {corp, "cacerts"},
		"/.well-known/est/simpleenroll":        {corp, "simpleenroll"},
		"/.well-known/est/fullcmc":             {corp, "fullcmc"},
		"/.well-known/est/iot/cacerts":         {iot, "cacerts"},
		"/.well-known/est/iot/simplereenroll/": {iot, "simplereenroll"},
		"//.well-known//est//iot//csrattrs":    {iot, "csrattrs"},
		"/.well-known/est/corp/serverkeygen":   {corp, "serverkeygen"},
		"/.well-known/est":                     {},
		"/.well-known/est/":                    {},
		"/.well-known/est/iot":                 {},
		"/.well-known/est/other/cacerts":       {},
		"/.well-known/est/IOT/cacerts":         {},
		"/.well-known/est/iot/CACERTS":         {},
		"/.well-known/est/cacerts/cacerts":     {}, // no label, but that operation with something behind it
		"/.well-known/est/simpleenroll/iot":    {},
		"/.well-known/est/iot/cacerts/more":    {},
		"/.well-known/est/iot/../corp/cacerts": {},
		"/.well-known/brski/cacerts":           {},
		"/est/cacerts":                         {},
		"/prefix/.well-known/est/cacerts":      {},
		"/":                                    {},
		"":                                     {},
	} {
		p, operation, reason := s.locate(path)
		if p != want.profile || operation != want.operation {
			t.Errorf("%s: %v, %q", path, p, operation)
		}
		if (p == nil) != (reason != "") {
			t.Errorf("%s: profile %v and reason %q", path, p, reason)
		}
	}
	s.fallback = nil
	if p, _, reason := s.locate("/.well-known/est/cacerts"); p != nil || reason == "" {
		t.Error("a default profile where there is none")
	}
}
