package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"signet.internal/appliance/audit"
)

// TestAudit runs testdata/audit.txtar with the real main against a console with a few records: $URL, $CA
// and $SIGNET_TOKEN lead to it, $KEY verifies its log, $OTHER another box's.
func TestAudit(t *testing.T) {
	t.Setenv(tokenVariable, "")
	o := newOperated(t)
	code, stdout, stderr := signet("", "claim", o.url, "--code", testClaimCode, "--user", "ada", "--ca-bundle", o.bundle, "--json")
	if code != exitOK {
		t.Fatalf("claim: exit %d: %s", code, stderr)
	}
	o.request(t, "lamp")
	token := tokenOf(t, stdout)
	code, stdout, stderr = signet("", "audit", "export", o.url, "-o", t.TempDir()+"/x", "--ca-bundle", o.bundle, "--token", token, "--json")
	var out exported
	if err := json.Unmarshal([]byte(stdout), &out); code != exitOK || err != nil || out.Records < 3 {
		t.Fatalf("export: exit %d: %v in %q: %s", code, err, stdout, stderr)
	}
	if _, err := base64.StdEncoding.DecodeString(out.Root); err != nil {
		t.Errorf("root %q", out.Root)
	}
	name, _, _ := strings.Cut(out.Key, "+")
	other, err := audit.VerifierKey(name, newECKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	client, err := (&apiFlags{token: token, caBundle: o.bundle}).dial(o.url)
	if err != nil {
		t.Fatal(err)
	}
	body, err := client.download(t.Context(), "/audit/1/proof.json")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	proof, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{tokenVariable: token, "URL": o.url, "CA": o.bundle, "KEY": out.Key, "OTHER": other}
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/audit.txtar"},
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": cmdExits},
		Setup: func(e *testscript.Env) error {
			for name, value := range variables {
				e.Setenv(name, value)
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "proof.json"), proof, 0o600)
		},
	})
}
