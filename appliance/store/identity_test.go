package store

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"signet.internal/appliance/audit"
)

// The last end is found among more transactions than are read at once, and only of those begun in time.
func TestLastNotAfter(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	if last, err := s.LastNotAfter(epoch); err != nil || !last.IsZero() {
		t.Errorf("an empty store: %s, %v", last, err)
	}
	for n := range 2*scanChunk + 10 {
		i := intent("device", n)
		i.Key[0], i.Key[1], i.Replay = byte(n>>8), byte(n), ReplayKey{} // each a transaction of its own
		i.Begun, i.NotAfter = epoch.Add(time.Duration(n)*time.Second), epoch.AddDate(0, 0, n)
		must(t, begin(s, i))
		must(t, finish(s, i.Serial))
	}
	for _, begun := range []int{0, 1, scanChunk, 2*scanChunk + 10} {
		want := time.Time{}
		if begun > 0 {
			want = epoch.AddDate(0, 0, begun-1)
		}
		last, err := s.LastNotAfter(epoch.Add(time.Duration(begun) * time.Second))
		if err != nil || !last.Equal(want) {
			t.Errorf("of the first %d: %s, %v, want %s", begun, last, err, want)
		}
	}
}

// A change of the identity has a record, or is none.
func TestIdentityChangesWithRecords(t *testing.T) {
	s := recovered(t, vfs.NewMem())
	defer closeStore(t, s)
	rec := record(audit.BoxInitialised, audit.OutcomeSuccess, "")
	must(t, s.Initialise(Identity{RANumber: 1}, rec))
	if err := s.UpdateIdentity(Identity{RANumber: 2}); err == nil {
		t.Error("an identity changed without a record")
	}
	if id, err := s.Identity(); err != nil || id.RANumber != 1 {
		t.Errorf("after a refused change: %+v, %v", id, err)
	}
	want := Identity{
		Authorities: map[string]AuthorityCerts{"devices": {
			Generations: []GenerationCerts{{Number: 2, State: GenerationEarlier, Chain: [][]byte{{1}, {2}}, Responder: []byte{3}, Superseded: epoch}},
			Numbered:    3,
			RAs:         []RACert{{Number: 2, Certificate: []byte{4}, Replaced: epoch}},
		}},
		RANumber: 2, TLSRoot: []byte{5}, TLS: []byte{6}, TLSRSA: []byte{7}, TLSUploaded: map[string][][]byte{"tls": {{8}}},
	}
	renewed := record(audit.RARenewed, audit.OutcomeSuccess, "")
	must(t, s.UpdateIdentity(want, renewed, renewed))
	got, err := s.Identity()
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if s.head.next != 3 {
		t.Errorf("%d records of three", s.head.next)
	}
}
