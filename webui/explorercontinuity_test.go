package webui

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/store"
)

// TestContinuity: whoever kept a checkpoint is told whether the log continues it, and of everything else what it is.
func TestContinuity(t *testing.T) {
	key := newAuditKey(t)
	box := newBox(t, func(c *Config) {
		var err error
		if c.Audit, err = store.NewLogSigner(c.Store, "plant-7", key, c.Now); err != nil {
			t.Fatal(err)
		}
	})
	box.enroll(5)
	who := bearer(box.claimAs(auditor, auditor))
	early := string(box.get("/api/v1/audit/checkpoint", who).body)
	box.enroll(9)
	box.clock.pass(time.Minute)
	now := string(box.get("/api/v1/audit/checkpoint", who).body)
	head, err := audit.PeekCheckpoint([]byte(now))
	if err != nil {
		t.Fatal(err)
	}
	name, err := audit.Origin("plant-7", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := audit.NewSigner(name, key)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(change func(c *audit.Checkpoint)) string {
		c := head
		change(&c)
		note, err := audit.SignCheckpoint(c, signer)
		if err != nil {
			t.Fatal(err)
		}
		return string(note)
	}
	ask := func(text string) reply {
		return box.get("/audit?"+url.Values{"checkpoint": {text}}.Encode(), who)
	}
	const yes, no = "Yes: the log continues this checkpoint", "<strong>No: "
	box.get("/audit", who).saysNot(t, yes, no)
	for name, test := range map[string]struct {
		text   string
		status int
		says   string
	}{
		"an hour ago":         {early, 200, yes},
		"through a form":      {strings.ReplaceAll(early, "\n", "\r\n"), 200, yes},
		"the very last":       {now, 200, yes},
		"other records":       {signed(func(c *audit.Checkpoint) { c.Size--; c.Root[3] ^= 1 }), 200, "this log is not the continuation of that checkpoint"},
		"as many others":      {signed(func(c *audit.Checkpoint) { c.Root[3] ^= 1 }), 200, "this log is not the continuation of that checkpoint"},
		"other than none":     {signed(func(c *audit.Checkpoint) { c.Size = 0 }), 200, "this log is not the continuation of that checkpoint"},
		"more records":        {signed(func(c *audit.Checkpoint) { c.Size++ }), 200, "No: records are gone"},
		"as many as there be": {signed(func(c *audit.Checkpoint) { c.Size = 1<<64 - 1 }), 200, "No: records are gone"},
		"edited":              {strings.Replace(early, "\n"+strings.Split(early, "\n")[1]+"\n", "\n2\n", 1), 422, "did not sign this checkpoint"},
		"something else":      {`</textarea><script>x</script>`, 422, "This is no signed checkpoint."},
	} {
		t.Run(name, func(t *testing.T) {
			got := ask(test.text)
			got.says(t, test.status, test.says, "Box claimed") // the log is listed all the same
			if test.says != yes {
				got.saysNot(t, yes)
			}
			got.saysNot(t, "<script>x")
		})
	}

	// The counter in the TPM at an older checkpoint was higher than at the newest.
	if err := box.store.ResetAnchor(3, audit.Record{Time: box.clock.Now(), TimeSource: "rtc", Action: audit.BoxAnchored, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess}); err != nil {
		t.Fatal(err)
	}
	box.clock.pass(time.Minute)
	ask(signed(func(c *audit.Checkpoint) { c.Anchor = 4 })).says(t, 200, "stood at 4 at this checkpoint and the log now says 3")
	ask(signed(func(c *audit.Checkpoint) { c.Anchor = 3 })).says(t, 200, yes)
}
