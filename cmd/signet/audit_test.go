package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"signet.internal/appliance/audit"
)

// TestAudit runs testdata/audit.txtar with the real main against a console with a few records: $URL, $CA
// and $SIGNET_TOKEN lead to it, $KEY verifies its log, $OTHER another box's. proof.json is what the
// console gives of record 1. Of the logs that $MADE verifies there are five.ndjson, three.txt, which is a
// checkpoint of it, and forked.ndjson, whose third record is another.
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
	files := map[string][]byte{"proof.json": proof}
	signer, made := newLogKey(t)
	files["five.ndjson"], _ = makeExport(t, signer, "lamp", "door", "pump", "gate", "fan")
	_, files["three.txt"] = makeExport(t, signer, "lamp", "door", "pump")
	files["forked.ndjson"], _ = makeExport(t, signer, "lamp", "door", "forged", "gate")
	variables := map[string]string{tokenVariable: token, "MADE": made, "URL": o.url, "CA": o.bundle, "KEY": out.Key, "OTHER": other}
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/audit.txtar"},
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"exits": cmdExits},
		Setup: func(e *testscript.Env) error {
			for name, value := range variables {
				e.Setenv(name, value)
			}
			for name, content := range files {
				if err := os.WriteFile(filepath.Join(e.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// newLogKey is an audit key, and its text for those who verify.
func newLogKey(t *testing.T) (note.Signer, string) {
	t.Helper()
	key := newECKey(t)
	name, err := audit.Origin("made", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(name, key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := audit.VerifierKey(name, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer, text
}

// makeExport is the export of a log with a record for each identity, and its signed checkpoint.
func makeExport(t *testing.T, signer note.Signer, identities ...string) (export, checkpoint []byte) {
	t.Helper()
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	var hashes [][32]byte
	for i, identity := range identities {
		leaf := audit.Leaf(audit.Record{Index: uint64(i), Time: time.Unix(1e9, 0), TimeSource: "rtc", Action: audit.SCEPPKCSReq, Outcome: audit.OutcomeSuccess, Identity: identity})
		h := audit.LeafHash(leaf)
		if err := tree.Append(h[:], nil); err != nil {
			t.Fatal(err)
		}
		export, hashes = append(append(export, leaf...), '\n'), append(hashes, h)
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, err = audit.SignCheckpoint(audit.Checkpoint{Origin: signer.Name(), Size: uint64(len(hashes)), Root: [32]byte(root)}, signer)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(export, audit.HashesLine(hashes), audit.CheckpointLine(checkpoint)), checkpoint
}
