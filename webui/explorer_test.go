package webui

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// TestActionWords: every action of the log has words, once, and no other has.
func TestActionWords(t *testing.T) {
	var named []audit.Action
	for _, g := range actionGroups() {
		for _, w := range g.Actions {
			if w.Name == "" || !strings.HasSuffix(w.Meaning, ".") {
				t.Errorf("%s is called %q: %q", w.Action, w.Name, w.Meaning)
			}
			named = append(named, w.Action)
		}
		if _, ok := actionsOf(string(g.Key)); !ok || slices.Contains(audit.Actions(), audit.Action(g.Key)) {
			t.Errorf("group %s cannot be asked for", g.Key)
		}
	}
	want := slices.Sorted(slices.Values(audit.Actions()))
	slices.Sort(named)
	if !slices.Equal(named, want) {
		t.Errorf("actions with words %v, want %v", named, want)
	}
}

// TestExplorer: filters, their combination, and going on where a page ended.
func TestExplorer(t *testing.T) {
	box := newBox(t)
	box.enroll(100)
	who := bearer(box.claimAs(auditor, auditor))
	ask := func(q url.Values) reply { return box.get("/audit?"+q.Encode(), who) }
	page := box.get("/audit", who)
	page.says(t, 200, "&lt;script&gt;alert(1)&lt;/script&gt;", `cam-north\u202egnp.exe`, "SCEP enrollment", "Box claimed", "Issuance begun", `rel="next"`)
	page.saysNot(t, "<script>", "\u202e")
	refused := ask(url.Values{"action": {"scep_refused"}})
	refused.says(t, 200, "SCEP refused", "the challenge is wrong")
	refused.saysNot(t, `<td role="cell" class="action">Issuance begun`, "Box claimed</td>", `rel="next"`)
	ask(url.Values{"action": {"people"}}).says(t, 200, "Box claimed<", `value="people" selected`)
	ask(url.Values{"outcome": {"failed"}, "q": {"PLC-LINE"}}).says(t, 200, "plc-line-07", "did not sign in time")
	ask(url.Values{"q": {"no such thing"}}).says(t, 200, "No record matches", `value="no such thing"`)
	ask(url.Values{"q": {`"><script>x`}}).saysNot(t, "<script>x")
	ask(url.Values{"protocol": {"est"}}).says(t, 200, "No record matches")
	ask(url.Values{"since": {"yesterday"}}).says(t, 422, "The beginning is not a time.")
	ask(url.Values{"until": {"2026-13-01"}}).says(t, 422, "The end is not a time.")
	ask(url.Values{"action": {"nothing"}}).says(t, 422, "There is no such action.")
	ask(url.Values{"outcome": {"good"}}).says(t, 422, "There is no such outcome.")
	box.get("/audit?before=x", who).says(t, 422, "whole number")

	// By time, to the minute: the 12th record of enrollments is 7 minutes before the 13th.
	at := start.Add(-70 * time.Minute)
	minute := ask(url.Values{"since": {at.Format("2006-01-02T15:04")}, "until": {at.Add(2 * time.Minute).Format("2006-01-02T15:04")}})
	minute.says(t, 200, at.Format("15:04:05"))
	minute.saysNot(t, at.Add(7*time.Minute).Format("15:04:05"), at.Add(-7*time.Minute).Format("15:04:05"))
	ask(url.Values{"until": {start.AddDate(0, 0, -1).Format(time.DateOnly)}}).says(t, 200, "No record matches")

	// All pages of a search together are everything that matches.
	seen, next := map[string]int{}, "/audit?q=printer"
	for next != "" {
		got := box.get(next, who)
		got.says(t, 200)
		for _, part := range strings.Split(string(got.body), `<a class="minor" href="/audit/`)[1:] {
			index, _, _ := strings.Cut(part, `"`)
			seen[index]++
		}
		_, rest, more := strings.Cut(string(got.body), `<nav class="paging"`)
		if next = ""; more && strings.Contains(rest, `rel="next"`) {
			link := rest[:strings.Index(rest, `" rel="next"`)]
			next = strings.ReplaceAll(link[strings.LastIndex(link, `href="`)+6:], "&amp;", "&")
		}
	}
	want := 0
	for _, r := range box.records() {
		if strings.HasPrefix(r.Identity, "printer") {
			want++
			if n := seen[fmt.Sprint(r.Index)]; n != 1 {
				t.Errorf("record %d is listed %d times", r.Index, n)
			}
		}
	}
	if len(seen) != want || want == 0 {
		t.Errorf("%d records listed, want %d", len(seen), want)
	}
}

// TestRecordPage: one record in words, and its proof, for every record of logs of many sizes.
func TestRecordPage(t *testing.T) {
	box := newBox(t)
	box.enroll(7)
	who := bearer(box.claimAs(auditor, auditor))
	box.clock.pass(time.Minute)
	size := uint64(len(box.records()))
	page := box.get(fmt.Sprintf("/audit/%d", size-1), who)
	page.says(t, 200, "Box claimed", "The first administrator was created", "admin_claimed", "alice")
	page.saysNot(t, "Newer →", "The log has this record")
	box.get("/audit/0", who).saysNot(t, "← Older")
	box.get(fmt.Sprintf("/audit/%d", size), who).says(t, 404)
	box.get("/audit/-1", who).says(t, 422, "index is not a number")
	for index := range size {
		box.get(fmt.Sprintf("/audit/%d?do=verify", index), who).says(t, 200, "The log has this record, exactly as shown")
	}
}

// TestProofs: a proof as it is downloaded holds for those who verify it offline, with this code or another.
func TestProofs(t *testing.T) {
	box := newBox(t)
	who := bearer(box.claimAs(auditor, auditor))
	for range 37 {
		box.enroll(1)
		box.clock.pass(2 * time.Second)
		size := uint64(len(box.records()))
		for index := range size {
			got := box.get(fmt.Sprintf("/audit/%d/proof.json", index), who)
			p, err := audit.ReadProof(bytes.NewReader(got.body))
			if err != nil || got.StatusCode != 200 {
				t.Fatalf("status %d: %v: %s", got.StatusCode, err, got.body)
			}
			key, err := audit.NewVerifier(p.Key)
			if err != nil {
				t.Fatal(err)
			}
			head, err := audit.OpenCheckpoint([]byte(p.Checkpoint), key)
			if err != nil || head.Size != p.Size {
				t.Fatalf("checkpoint over %d records, proof over %d: %v", head.Size, p.Size, err)
			}
			leaf := sha256.Sum256(append([]byte{0}, p.Leaf...))
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, p.Size, leaf[:], p.Hashes, head.Root[:]); err != nil {
				t.Fatalf("record %d of %d: %v", index, p.Size, err)
			}
			if _, err := p.Verify(key); err != nil {
				t.Errorf("record %d of %d: %v", index, p.Size, err)
			}
		}
	}
}

// TestRecordRemoved: a record that retention removed says so, and its hash is proven still.
func TestRecordRemoved(t *testing.T) {
	box := newBox(t)
	box.enroll(20)
	box.clock.pass(store.MinRetention + time.Hour)
	now := box.clock.Now()
	rec := audit.Record{Time: now, TimeSource: "rtc", Action: audit.RecordsRemoved, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess}
	removed, err := box.store.RemoveRecords(store.Retention{Now: now, Keep: store.MinRetention, Aged: store.Everyone, Delivered: store.Everyone}, rec)
	if err != nil || removed == 0 {
		t.Fatalf("%d records removed: %v", removed, err)
	}
	who := bearer(box.claimUntil(auditor, now.Add(time.Hour)))
	box.get("/audit", who).says(t, 200, fmt.Sprintf("those before record %d", removed), "Records removed")
	box.get("/audit/0", who).says(t, 200, "removed this record")
	box.get("/audit/0?do=verify", who).says(t, 200, "this is the hash that the tree keeps of it", "The log has this record")
}

// claimUntil is claimAs with a token that is good until then.
func (b *testBox) claimUntil(role role, until time.Time) string {
	b.t.Helper()
	token, hash := newToken()
	err := b.store.Claim(store.User{Name: "alice", Role: role.String(), Created: start},
		store.Token{Hash: hash, Name: "test", User: "alice", Role: role.String(), Created: start, Expires: until},
		audit.Record{Time: b.clock.Now(), TimeSource: "rtc", Action: audit.AdminClaimed, Actor: "alice", Outcome: audit.OutcomeSuccess})
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}
