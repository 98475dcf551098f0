package appliance

import (
	"os"
	"testing"

	"signet.internal/provision"
)

// A service that asks nobody is confined to asking nobody.
func TestAsksOthers(t *testing.T) {
	site, err := provision.Load(os.DirFS("../configs/demo"))
	if err != nil {
		t.Fatal(err)
	}
	if asksOthers(site) {
		t.Error("the demo site asks a service elsewhere")
	}
	last := &site.Profiles[len(site.Profiles)-1]
	last.Compliance = &provision.Compliance{URL: "https://hook.test"}
	if !asksOthers(site) {
		t.Error("a webhook is not reached")
	}
	last.Compliance, last.SCEP.Challenges.Intune = nil, &provision.Intune{Tenant: "t"}
	if !asksOthers(site) {
		t.Error("Intune is not reached")
	}
	last.SCEP.Challenges.Intune, site.Audit.Syslog = nil, &provision.Syslog{Address: "log.test:6514"}
	if !asksOthers(site) {
		t.Error("the audit log's receiver is not reached")
	}
}
