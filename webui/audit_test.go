package webui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

func (b *testBox) appendRecords(n int) {
	b.t.Helper()
	var batch []audit.Record
	for i := range n {
		batch = append(batch, audit.Record{Time: b.clock.Now(), TimeSource: "rtc", Action: audit.BoxStarted, Outcome: audit.OutcomeSuccess, Identity: fmt.Sprint("number ", i)})
	}
	if err := b.store.Append(batch...); err != nil {
		b.t.Fatal(err)
	}
}

// An auditor takes the log out while the box writes on, and proves what is in it with the key alone.
func TestAuditIsProvable(t *testing.T) {
	box := newBox(t)
	token := bearer(box.claimAs(auditor, auditor))
	text := string(box.send("GET", "/api/v1/audit/key", nil, token).body)
	key, err := audit.NewVerifier(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	checkpoint := func() audit.Checkpoint {
		t.Helper()
		got := box.send("GET", "/api/v1/audit/checkpoint", nil, token)
		c, err := audit.OpenCheckpoint(got.body, key)
		if err != nil || got.StatusCode != 200 {
			t.Fatalf("status %d, %v: %s", got.StatusCode, err, got.body)
		}
		return c
	}
	first := checkpoint()
	box.appendRecords(1300)
	box.clock.pass(30 * time.Minute)
	second := checkpoint()
	if first.Size != 1 || second.Size != 1301 {
		t.Fatalf("checkpoints over %d and %d records", first.Size, second.Size)
	}
	box.clock.pass(29 * time.Minute)
	box.appendRecords(1) // so that the export's own checkpoint is another one

	// Exports run while records are written, and each is whole.
	var all sync.WaitGroup
	all.Go(func() {
		for range 20 {
			box.appendRecords(10)
		}
	})
	got := box.send("GET", "/api/v1/audit/export", nil, token)
	report, err := audit.Verify(bytes.NewReader(got.body), key)
	if err != nil || report.Records < second.Size || report.Checkpoints == 0 {
		t.Errorf("export: %+v, %v", report, err)
	}
	all.Wait()
	if got := box.send("HEAD", "/api/v1/audit/export", nil, token); got.StatusCode != 200 || len(got.body) != 0 {
		t.Errorf("HEAD: %d with %d bytes", got.StatusCode, len(got.body))
	}

	var in InclusionProof
	leaf, _, _ := bytes.Cut(got.body, []byte("\n"))
	box.decode("/api/v1/audit/proof/inclusion?index=0&size=1301", &in, token)
	h := audit.LeafHash(leaf)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, 0, 1301, h[:], in.Hashes, second.Root[:]); err != nil || !bytes.Equal(in.LeafHash, h[:]) {
		t.Errorf("inclusion: %v", err)
	}
	var grown ConsistencyProof
	box.decode("/api/v1/audit/proof/consistency?from=1&to=1301", &grown, token)
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, 1, 1301, grown.Hashes, first.Root[:], second.Root[:]); err != nil {
		t.Errorf("consistency: %v", err)
	}
	for path, status := range map[string]int{
		"inclusion": 422, "inclusion?index=x": 422, "inclusion?index=1301&size=1301": 404, "inclusion?index=0&size=999999": 404,
		"consistency": 422, "consistency?from=0": 422, "consistency?from=5&to=4": 404, "consistency?from=1&to=999999": 404,
	} {
		if got := box.send("GET", "/api/v1/audit/proof/"+path, nil, token); got.StatusCode != status {
			t.Errorf("%s: status %d, want %d: %s", path, got.StatusCode, status, got.body)
		}
	}
	for range maxExports {
		box.console.exports <- struct{}{}
	}
	box.send("GET", "/api/v1/audit/export", nil, token).checkProblem(t, 503, "busy-exports")
}

func (b *testBox) decode(path string, v any, change ...func(*http.Request)) {
	b.t.Helper()
	got := b.send("GET", path, nil, change...)
	if err := json.Unmarshal(got.body, v); err != nil || got.StatusCode != 200 {
		b.t.Fatalf("%s: status %d, %v: %s", path, got.StatusCode, err, got.body)
	}
}

// An export of a log whose first records are gone verifies and says so; what follows are the checkpoint
// and the hashes of all.
func TestExportAfterRetention(t *testing.T) {
	box := newBox(t)
	box.clock.pass(-40 * 24 * time.Hour)
	box.appendRecords(1300)
	box.clock.pass(40 * 24 * time.Hour)
	token := bearer(box.claimAs(auditor, auditor))
	key, err := audit.NewVerifier(strings.TrimSpace(string(box.send("GET", "/api/v1/audit/key", nil, token).body)))
	if err != nil {
		t.Fatal(err)
	}
	box.appendRecords(700)
	rec := audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.RecordsRemoved, Outcome: audit.OutcomeSuccess, Reason: "kept for 30d"}
	removed, err := box.store.RemoveRecords(store.Retention{Now: box.clock.Now(), Keep: store.MinRetention, Aged: store.Everyone, Delivered: store.Everyone}, rec)
	if err != nil || removed != 1300 {
		t.Fatalf("%d records removed, %v", removed, err)
	}
	got := box.send("GET", "/api/v1/audit/export", nil, token)
	report, err := audit.Verify(bytes.NewReader(got.body), key)
	if err != nil || report.Removed == nil || report.Removed.Before != 1300 || report.Records != 2002 {
		t.Fatalf("export: %+v, %v", report, err)
	}
	if !bytes.HasPrefix(got.body, []byte("{\"removed_before\":1300}\n{\"index\":1300,")) {
		t.Errorf("it begins with %.60q", got.body)
	}
	var in InclusionProof
	box.decode("/api/v1/audit/proof/inclusion?index=3", &in, token)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, 3, report.Records, in.LeafHash, in.Hashes, report.Root[:]); err != nil {
		t.Errorf("a removed record is not proven any more: %v", err)
	}
}
