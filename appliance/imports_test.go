package appliance_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "signet.internal/"

// allowed is the import table: for each package, the packages of this module it may import
// (tests are outside it). A package that is not listed here fails the test.
var allowed = map[string]string{
	"configs":                        "",
	"tpm":                            "",
	"image/format":                   "",
	"image/vm":                       "",
	"appliance/cms":                  "",
	"appliance/pki":                  "",
	"appliance/audit":                "",
	"appliance/handover":             "",
	"appliance/confine":              "",
	"appliance/exchange":             "",
	"appliance/challenge/phc":        "",
	"appliance/challenge/compliance": "",
	"appliance/challenge/intune":     "",
	"appliance/store":                "appliance/audit",
	"appliance/keys":                 "tpm",
	"appliance/challenge":            "appliance/pki appliance/store appliance/challenge/phc",
	"appliance/enroll":               "appliance/pki appliance/store appliance/audit appliance/challenge",
	"appliance/scep":                 "appliance/cms appliance/pki appliance/enroll appliance/exchange",
	"appliance/est":                  "appliance/cms appliance/pki appliance/enroll appliance/exchange",
	"appliance/syslog":               "appliance/store appliance/audit",
	"appliance/validation":           "appliance/pki appliance/enroll appliance/exchange",
	"appliance/metrics":              "appliance/store appliance/audit appliance/keys",
	"appliance/authority":            "appliance/pki appliance/store appliance/audit appliance/keys provision",
	"webui":                          "appliance/pki appliance/challenge appliance/enroll appliance/store appliance/audit appliance/handover appliance/challenge/phc",
	"provision":                      "appliance/pki appliance/challenge/phc",
	"image":                          "image/format provision tpm appliance/cms",
	"image/mkbase":                   "image image/format",
	"appliance/box":                  "image/format provision tpm appliance/keys appliance/handover appliance/confine",
	"appliance": "appliance/cms appliance/keys appliance/pki appliance/challenge appliance/challenge/phc appliance/challenge/compliance appliance/challenge/intune " +
		"appliance/store appliance/audit appliance/authority appliance/enroll appliance/scep appliance/est appliance/validation " +
		"appliance/metrics appliance/handover appliance/confine appliance/exchange appliance/syslog webui provision",
	"cmd/boxinit": "appliance/box",
	"cmd/signetd": "appliance",
	"cmd/signet":  "image image/format image/vm provision configs tpm appliance/audit webui",
	// Helpers of tests only.
	"tpm/tpmtest":                   "appliance/needtest",
	"appliance/logtest":             "",
	"appliance/needtest":            "",
	"appliance/confine/confinetest": "appliance/needtest",
	"webui/browsertest":             "",
}

// owners names modules that one package alone may import.
var owners = map[string][]string{
	"github.com/cockroachdb/pebble/v2": {"appliance/store"},
	"github.com/google/go-tpm":         {"tpm"},
	"github.com/google/go-tpm-tools":   {"tpm"},
	"github.com/u-root/mkuimage":       {"image/mkbase"},
	module + "configs":                 {"cmd/signet"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	packages := listPackages(t)
	if len(packages) < 20 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module)
		edges, listed := allowed[name]
		if !listed {
			t.Errorf("package %s is not in the import table", name)
			continue
		}
		may := strings.Fields(edges)
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s, which the table does not allow", name, ours)
			}
			for owned, by := range owners {
				if (imp == owned || strings.HasPrefix(imp, owned+"/")) && !slices.Contains(by, name) && !strings.HasPrefix(owned, module+name) {
					t.Errorf("%s imports %s, which only %v may", name, imp, by)
				}
			}
		}
	}
}

// TestWhatShipsLinksNoBuilder holds the programs of the image and the operator's tool free of the
// image builder's toolchain driver.
func TestWhatShipsLinksNoBuilder(t *testing.T) {
	for _, p := range listPackages(t) {
		if !strings.HasPrefix(p.ImportPath, module+"cmd/") {
			continue
		}
		for _, dep := range p.Deps {
			if strings.HasPrefix(dep, "github.com/u-root/mkuimage") || strings.HasPrefix(dep, "github.com/u-root/gobusybox") {
				t.Errorf("%s links %s", p.ImportPath, dep)
			}
			if p.ImportPath == module+"cmd/signetd" && strings.HasPrefix(dep, module+"image") {
				t.Errorf("signetd links the image builder: %s", dep)
			}
		}
	}
}
