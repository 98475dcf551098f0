package store

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"signet.internal/appliance/audit"
)

func adminRecord(a audit.Action) audit.Record { return record(a, audit.OutcomeSuccess, "") }

// claimed is a store whose administrator is alice, with one token.
func claimed(t *testing.T, fs vfs.FS) *Store {
	t.Helper()
	s := open(t, fs)
	must(t, s.Claim(User{Name: "alice", Role: Administrator, Created: epoch},
		Token{Hash: sha256.Sum256([]byte("claim")), Name: "claim", User: "alice", Role: Administrator}, adminRecord(audit.AdminClaimed)))
	return s
}

func countRecords(t *testing.T, s *Store, a audit.Action) (n int) {
	t.Helper()
	all, err := s.Records(0, 1000)
	must(t, err)
	return countOf(all, func(r audit.Record) bool { return r.Action == a })
}

// TestUsers walks a user's life, and reads everything back after a restart.
func TestUsers(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	wantIs(t, "user of an unclaimed box", s.CreateUser(User{Name: "bob", Role: "auditor"}, adminRecord(audit.UserCreated)), ErrNoUser)
	if s.Claimed() {
		t.Error("creating a user claimed the box")
	}
	closeStore(t, s)
	s = claimed(t, fs)
	must(t, s.CreateUser(User{Name: "bob", Role: "auditor", Created: epoch}, adminRecord(audit.UserCreated)))
	wantIs(t, "bob again", s.CreateUser(User{Name: "bob", Role: Administrator}, adminRecord(audit.UserCreated)), ErrUserExists)
	if err := s.CreateUser(User{}, adminRecord(audit.UserCreated)); err == nil {
		t.Error("a user without a name was created")
	}

	role, hash, off := "operator", "$argon2id$new", true
	must(t, s.ChangeUser("bob", UserChange{Role: &role, PasswordHash: &hash}, adminRecord(audit.UserChanged), adminRecord(audit.PasswordChanged)))
	must(t, s.ChangeUser("bob", UserChange{Off: &off}, adminRecord(audit.UserChanged)))
	wantIs(t, "changing nobody", s.ChangeUser("mallory", UserChange{Role: &role}, adminRecord(audit.UserChanged)), ErrNoUser)
	wantIs(t, "signing in who is switched off", s.SignIn("bob", netip.MustParsePrefix("192.0.2.1/32"), adminRecord(audit.SignedIn)), ErrNoUser)
	for range 2 {
		all, err := s.Users()
		must(t, err)
		if len(all) != 2 || all[1].Name != "bob" || all[1].Role != role || all[1].PasswordHash != hash || !all[1].Off {
			t.Errorf("users %+v", all)
		}
		checkStore(t, s)
		closeStore(t, s)
		s = open(t, fs)
	}
	if n := countRecords(t, s, audit.UserChanged); n != 2 {
		t.Errorf("%d records of changes, want one for each of two", n)
	}

	must(t, s.CreateToken(Token{Hash: [32]byte{1}, User: "bob", Name: "scripts"}, adminRecord(audit.TokenCreated)))
	must(t, s.AddPasskey(Passkey{ID: []byte{1}, User: "bob"}, []byte("handle"), adminRecord(audit.PasskeyAdded)))
	must(t, s.RemoveUser("bob", adminRecord(audit.UserRemoved)))
	_, err := s.User("bob")
	wantIs(t, "removed user", err, ErrNotFound)
	_, err = s.TokenByHash([32]byte{1})
	wantIs(t, "their token", err, ErrNotFound)
	_, err = s.Passkey([]byte{1})
	wantIs(t, "their passkey", err, ErrNoPasskey)
	if _, err := s.TokenByHash(sha256.Sum256([]byte("claim"))); err != nil {
		t.Errorf("removing bob took alice's token: %v", err)
	}
	closeStore(t, s)
}

// TestLastAdministrator: whatever is tried, and however much of it at once, somebody is left.
func TestLastAdministrator(t *testing.T) {
	s := claimed(t, vfs.NewMem())
	defer closeStore(t, s)
	auditor, off, on := "auditor", true, false
	orders := map[string]func(name string) error{
		"demote": func(n string) error {
			return s.ChangeUser(n, UserChange{Role: &auditor}, adminRecord(audit.UserChanged))
		},
		"off":    func(n string) error { return s.ChangeUser(n, UserChange{Off: &off}, adminRecord(audit.UserChanged)) },
		"remove": func(n string) error { return s.RemoveUser(n, adminRecord(audit.UserRemoved)) },
	}
	must(t, s.CreateUser(User{Name: "bob", Role: Administrator, Off: true}, adminRecord(audit.UserCreated)))
	before := countRecords(t, s, audit.UserChanged)
	for what, order := range orders {
		wantIs(t, what+" the only one who is not switched off", order("alice"), ErrLastAdministrator)
	}
	if n := countRecords(t, s, audit.UserChanged); n != before {
		t.Error("a refused change is in the log as if it had happened")
	}
	must(t, s.ChangeUser("bob", UserChange{Role: &auditor}, adminRecord(audit.UserChanged))) // was switched off: nothing is lost
	must(t, s.ChangeUser("bob", UserChange{Off: &on}, adminRecord(audit.UserChanged)))
	for what, order := range orders {
		wantIs(t, what+" the only one of that role", order("alice"), ErrLastAdministrator)
	}
	must(t, s.ChangeUser("alice", UserChange{PasswordHash: &auditor}, adminRecord(audit.PasswordChanged)))

	for i := range 8 {
		must(t, s.CreateUser(User{Name: fmt.Sprint("admin", i), Role: Administrator}, adminRecord(audit.UserCreated)))
	}
	var wg sync.WaitGroup
	for i := range 8 { // in one group, each sees the ones before it
		wg.Go(func() { _ = orders["remove"](fmt.Sprint("admin", i)) })
		wg.Go(func() { _ = orders["demote"](fmt.Sprint("admin", i)) })
	}
	wg.Go(func() { _ = orders["off"]("alice") })
	wg.Wait()
	all, err := s.Users()
	must(t, err)
	if n := countOf(all, func(u User) bool { return u.Role == Administrator && !u.Off }); n != 1 {
		t.Errorf("%d administrators are left, want one", n)
	}
}

func TestTokens(t *testing.T) {
	s := claimed(t, vfs.NewMem())
	defer closeStore(t, s)
	hash := [32]byte{7}
	revoked := func(Token) audit.Record { return adminRecord(audit.TokenRevoked) }
	wantIs(t, "token of nobody", s.CreateToken(Token{Hash: hash, User: "mallory"}, adminRecord(audit.TokenCreated)), ErrNoUser)
	must(t, s.CreateToken(Token{Hash: hash, Name: "jamf", User: "alice", Role: "operator", Profiles: []string{"iot"}, Expires: epoch}, adminRecord(audit.TokenCreated)))
	must(t, s.TokenUsed(hash, epoch))
	all, err := s.Tokens()
	must(t, err)
	if len(all) != 2 || all[0].Hash != hash || all[0].Used != "2026-05-04" || len(all[0].Profiles) != 1 || all[0].Role != "operator" {
		t.Errorf("tokens %+v", all)
	}
	must(t, s.CreateToken(Token{Hash: [32]byte{9}, User: "alice", Maker: hash[:]}, adminRecord(audit.TokenCreated)))
	must(t, s.RemoveToken(hash, revoked))
	_, err = s.TokenByHash([32]byte{9})
	wantIs(t, "token made with it", err, ErrNotFound)
	wantIs(t, "token made with what is gone", s.CreateToken(Token{Hash: [32]byte{9}, User: "alice", Maker: hash[:]}, adminRecord(audit.TokenCreated)), ErrNoToken)
	_, err = s.TokenByHash(hash)
	wantIs(t, "removed token", err, ErrNotFound)
	wantIs(t, "removing it again", s.RemoveToken(hash, revoked), ErrNoToken)
	wantIs(t, "using it", s.TokenUsed(hash, epoch), ErrNoToken)
	for i := range maxTokens - 1 {
		must(t, s.CreateToken(Token{Hash: [32]byte{8, byte(i)}, User: "alice"}, adminRecord(audit.TokenCreated)))
	}
	wantIs(t, "one too many", s.CreateToken(Token{Hash: hash, User: "alice"}, adminRecord(audit.TokenCreated)), ErrTooMany)
}

// TestSeenSources: the newest first, each once, and not more than are kept.
func TestSeenSources(t *testing.T) {
	s := claimed(t, vfs.NewMem())
	defer closeStore(t, s)
	from := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32) }
	for i := range maxSeen + 3 {
		must(t, s.SignIn("alice", from(i), adminRecord(audit.SignedIn)))
	}
	must(t, s.SignIn("alice", from(5), adminRecord(audit.SignedIn)))
	u, err := s.User("alice")
	must(t, err)
	if len(u.Sources) != maxSeen || u.Sources[0].Source != from(5) || u.Sources[1].Source != from(maxSeen+2) || !u.Sources[0].At.Equal(epoch) {
		t.Errorf("sources %+v", u.Sources)
	}
	if n := countOf(u.Sources, func(s Seen) bool { return s.Source == from(5) }); n != 1 {
		t.Errorf("a source is there %d times", n)
	}
}

// TestPasskeys: a sign count that does not go on makes a passkey suspect, for good and on the disk.
func TestPasskeys(t *testing.T) {
	fs := vfs.NewMem()
	s := claimed(t, fs)
	must(t, s.CreateUser(User{Name: "bob", Role: "auditor"}, adminRecord(audit.UserCreated)))
	from := netip.MustParsePrefix("192.0.2.1/32")
	id := []byte("credential")
	add := func(p Passkey, handle string) error {
		return s.AddPasskey(p, []byte(handle), adminRecord(audit.PasskeyAdded))
	}
	wantIs(t, "passkey of nobody", add(Passkey{ID: id, User: "mallory"}, "m"), ErrNoUser)
	wantIs(t, "passkey without a handle", add(Passkey{ID: id, User: "alice"}, ""), ErrConflict)
	must(t, add(Passkey{ID: id, User: "alice", Name: "key ring", SignCount: 3, Created: epoch}, "a"))
	wantIs(t, "the same again", add(Passkey{ID: id, User: "alice"}, "a"), ErrPasskeyExists)
	wantIs(t, "the same for another", add(Passkey{ID: id, User: "bob"}, "b"), ErrPasskeyExists)
	wantIs(t, "another handle", add(Passkey{ID: []byte("2"), User: "alice"}, "other"), ErrConflict)
	must(t, add(Passkey{ID: []byte("no count"), User: "alice", Created: epoch.Add(time.Second)}, "a"))

	signIn := func(id []byte, count uint32) error {
		return s.SignInByPasskey(id, count, true, from, adminRecord(audit.SignedIn), adminRecord(audit.PasskeySuspected))
	}
	must(t, signIn(id, 4))
	must(t, signIn([]byte("no count"), 0))
	must(t, signIn([]byte("no count"), 0))
	wantIs(t, "unknown passkey", signIn([]byte("?"), 1), ErrNoPasskey)
	p, err := s.Passkey(id)
	must(t, err)
	if p.SignCount != 4 || !p.BackedUp || !p.Used.Equal(epoch) {
		t.Errorf("after use %+v", p)
	}
	wantIs(t, "count that stays", signIn(id, 4), ErrSuspect)
	closeStore(t, s)
	s = open(t, fs)
	defer closeStore(t, s)
	wantIs(t, "suspect passkey with a good count", signIn(id, 9), ErrSuspect)
	if n, m := countRecords(t, s, audit.PasskeySuspected), countRecords(t, s, audit.SignedIn); n != 1 || m != 3 {
		t.Errorf("%d suspicions and %d sign-ins recorded, want 1 and 3", n, m)
	}
	all, err := s.Passkeys("alice")
	must(t, err)
	if len(all) != 2 || all[0].Name != "key ring" || !all[0].Suspect || all[1].Suspect {
		t.Errorf("passkeys %+v", all)
	}
	off := true
	must(t, s.CreateUser(User{Name: "carol", Role: Administrator}, adminRecord(audit.UserCreated)))
	must(t, s.ChangeUser("alice", UserChange{Off: &off}, adminRecord(audit.UserChanged)))
	wantIs(t, "passkey of who is switched off", signIn([]byte("no count"), 0), ErrNoUser)

	wantIs(t, "removing another's", s.RemovePasskey("bob", id, adminRecord(audit.PasskeyRemoved)), ErrNoPasskey)
	must(t, s.RemovePasskey("alice", id, adminRecord(audit.PasskeyRemoved)))
	_, err = s.Passkey(id)
	wantIs(t, "removed passkey", err, ErrNoPasskey)
}
