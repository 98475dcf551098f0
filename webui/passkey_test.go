package webui

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-webauthn/webauthn/protocol/webauthncbor"

	"signet.internal/appliance/audit"
)

// softKey is an authenticator with one passkey, which signs whatever it is told to, also what no honest one would.
type softKey struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	id     []byte
	handle []byte
	count  uint32
	flags  byte   // UP 1, UV 4, BE 8, BS 16 (WebAuthn Level 3 §6.1)
	rpID   string // that it signs for
	origin string // that its browser is at
}

func newSoftKey(t *testing.T, origin string) *softKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &softKey{t: t, key: key, id: []byte("credential of " + t.Name()), flags: 1 | 4, count: 1, rpID: "localhost", origin: origin}
}

func (k *softKey) authData(attested []byte, flags byte) []byte {
	sum := sha256.Sum256([]byte(k.rpID))
	return append(binary.BigEndian.AppendUint32(append(sum[:], k.flags|flags), k.count), attested...)
}

func (k *softKey) clientData(kind, challenge string) []byte {
	text, err := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": k.origin, "crossOrigin": false})
	if err != nil {
		k.t.Fatal(err)
	}
	return text
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (k *softKey) credential(response map[string]any) map[string]any {
	return map[string]any{"id": b64(k.id), "rawId": b64(k.id), "type": "public-key", "response": response, "clientExtensionResults": map[string]any{}}
}

// create answers options as navigator.credentials.create does.
func (k *softKey) create(options map[string]any) map[string]any {
	k.t.Helper()
	handle, err := base64.RawURLEncoding.DecodeString(options["user"].(map[string]any)["id"].(string))
	if err != nil {
		k.t.Fatal(err)
	}
	k.handle = handle
	public, err := k.key.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		k.t.Fatal(err)
	}
	cose, err := webauthncbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: public[1:33], -3: public[33:]})
	if err != nil {
		k.t.Fatal(err)
	}
	attested := append(binary.BigEndian.AppendUint16(make([]byte, 16), uint16(len(k.id))), append(k.id, cose...)...)
	object, err := webauthncbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": k.authData(attested, 64)})
	if err != nil {
		k.t.Fatal(err)
	}
	return k.credential(map[string]any{"clientDataJSON": b64(k.clientData("webauthn.create", options["challenge"].(string))), "attestationObject": b64(object), "transports": []string{"internal"}})
}

// get answers options as navigator.credentials.get does.
func (k *softKey) get(options map[string]any) map[string]any {
	k.t.Helper()
	data, client := k.authData(nil, 0), k.clientData("webauthn.get", options["challenge"].(string))
	sum := sha256.Sum256(client)
	digest := sha256.Sum256(append(data, sum[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, k.key, digest[:])
	if err != nil {
		k.t.Fatal(err)
	}
	return k.credential(map[string]any{"clientDataJSON": b64(client), "authenticatorData": b64(k.authData(nil, 0)), "signature": b64(signature), "userHandle": b64(k.handle)})
}

// atLocalhost has a request come to the name of the box instead of its address.
func atLocalhost(r *http.Request) { r.Host = "localhost" }

// begin asks for options, and returns them with the ceremony's cookie.
func (b *testBox) beginPasskey(path string, change ...func(*http.Request)) (map[string]any, *http.Cookie) {
	b.t.Helper()
	got := b.post(path, nil, append(change, atLocalhost)...)
	var out PasskeyOptions
	got.decode(b.t, &out)
	for _, c := range got.Cookies() {
		if c.Name == ceremonyCookie {
			if !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" {
				b.t.Errorf("ceremony's cookie %+v", c)
			}
			return out.Options, c
		}
	}
	b.t.Fatalf("%s: status %d without a ceremony: %s", path, got.StatusCode, got.body)
	return nil, nil
}

// addPasskey adds one of key for whoever who is.
func (b *testBox) addPasskey(key *softKey, who func(*http.Request)) reply {
	b.t.Helper()
	options, cookie := b.beginPasskey("/api/v1/account/passkey-options", who)
	return b.post("/api/v1/account/passkeys", PasskeyRequest{Name: "work laptop", Credential: key.create(options)}, who, withCookie(cookie), atLocalhost)
}

// byPasskey signs in with what answer makes of options.
func (b *testBox) byPasskey(answer func(map[string]any) map[string]any) reply {
	b.t.Helper()
	options, cookie := b.beginPasskey("/api/v1/sign-in/passkey/options")
	return b.post("/api/v1/sign-in/passkey", PasskeySignIn{answer(options)}, withCookie(cookie), atLocalhost)
}

// TestPasskeyAnswers: only what the right passkey signed, for this box, this browser and this once, with its
// user verified, signs anybody in.
func TestPasskeyAnswers(t *testing.T) {
	box := newBox(t)
	claimed := box.mustClaim()
	admin, alice := bearer(claimed.Token), withCookie(box.signedIn("alice", claimed.Password))
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, admin)
	cookie := box.signedIn("bob", "correct horse battery")
	bob := withCookie(cookie)
	key := newSoftKey(t, "https://localhost")

	spoilt := *key
	spoilt.flags = 1
	box.addPasskey(&spoilt, bob).checkProblem(t, 403, "passkey") // made without a finger or PIN
	spoilt = *key
	spoilt.origin = "https://evil.example"
	box.addPasskey(&spoilt, bob).checkProblem(t, 403, "passkey")
	options, ceremony := box.beginPasskey("/api/v1/account/passkey-options", bob)
	made := key.create(options)
	box.post("/api/v1/account/passkeys", PasskeyRequest{Name: "x", Credential: made}, alice, withCookie(ceremony), atLocalhost).checkProblem(t, 403, "passkey") // begun by bob
	if want, got := "required", options["authenticatorSelection"].(map[string]any); got["residentKey"] != want || got["userVerification"] != want || options["attestation"] != nil && options["attestation"] != "none" {
		t.Errorf("options %v", options)
	}
	var account AccountDetails
	box.addPasskey(key, bob).decode(t, &account)
	if len(account.Passkeys) != 1 || account.Passkeys[0].Name != "work laptop" || account.Passkeys[0].Host != "localhost" {
		t.Fatalf("account %+v", account)
	}
	box.addPasskey(key, bob).checkProblem(t, 409, "passkey-known")

	for name, spoil := range map[string]func(*softKey){
		"another box":         func(k *softKey) { k.rpID = "signet.example" },
		"another site":        func(k *softKey) { k.origin = "https://evil.example" },
		"another port":        func(k *softKey) { k.origin = "https://localhost:8443" },
		"user not verified":   func(k *softKey) { k.flags = 1 },
		"user not there":      func(k *softKey) { k.flags = 4 },
		"another key":         func(k *softKey) { k.key = newSoftKey(t, "").key },
		"another user's name": func(k *softKey) { k.handle = []byte("alice") },
		"unknown passkey":     func(k *softKey) { k.id = []byte("?") },
		"no user":             func(k *softKey) { k.handle = nil },
	} {
		bad := *key
		bad.count++
		spoil(&bad)
		got := box.byPasskey(bad.get)
		if got.StatusCode != 403 {
			t.Errorf("%s: status %d: %s", name, got.StatusCode, got.body)
		}
	}

	key.count++
	options, ceremony = box.beginPasskey("/api/v1/sign-in/passkey/options")
	answer := PasskeySignIn{key.get(options)}
	if options["allowCredentials"] != nil || options["userVerification"] != "required" {
		t.Errorf("options %v", options)
	}
	other, _ := box.beginPasskey("/api/v1/sign-in/passkey/options")
	box.post("/api/v1/sign-in/passkey", answer, atLocalhost).checkProblem(t, 403, "passkey")                                                                // another browser
	box.post("/api/v1/sign-in/passkey", PasskeySignIn{key.get(other)}, withCookie(ceremony), atLocalhost).checkProblem(t, 403, "passkey")                   // another ceremony
	box.post("/api/v1/sign-in/passkey", answer, withCookie(&http.Cookie{Name: ceremonyCookie, Value: "AAAA"}), atLocalhost).checkProblem(t, 403, "passkey") // made up
	planted := &http.Cookie{Name: sessionCookie, Value: "planted"}
	in := box.post("/api/v1/sign-in/passkey", answer, withCookie(ceremony), withCookie(planted), atLocalhost)
	var who SignedIn
	in.decode(t, &who)
	session := in.cookie(t)
	if who.User != "bob" || who.Role != "operator" || session.Value == planted.Value || !session.HttpOnly || !session.Secure {
		t.Errorf("signed in as %+v with %+v", who, session)
	}
	if got := box.get("/api/v1/account", withCookie(session)); got.StatusCode != 200 {
		t.Errorf("the session opens nothing: %d", got.StatusCode)
	}
	key.count++
	box.post("/api/v1/sign-in/passkey", answer, withCookie(ceremony), atLocalhost).checkProblem(t, 403, "passkey") // once more
	options, ceremony = box.beginPasskey("/api/v1/sign-in/passkey/options")
	box.clock.pass(ceremonyLife)
	box.post("/api/v1/sign-in/passkey", PasskeySignIn{key.get(options)}, withCookie(ceremony), atLocalhost).checkProblem(t, 403, "passkey") // too late

	box.submit("/account/passkeys/"+account.Passkeys[0].ID+"/remove", nil, bob).says(t, http.StatusSeeOther)
	box.byPasskey(key.get).checkProblem(t, 403, "passkey")
	box.get("/api/v1/account", withCookie(session)).checkProblem(t, 401, "bad-credential")
	if got := box.get("/api/v1/account", bob); got.StatusCode != 200 {
		t.Errorf("the session that removed the passkey ended: %d", got.StatusCode)
	}
	refused := 0
	for _, r := range box.records() {
		if r.Action == audit.LoginRefused && r.Identity == "bob" {
			refused++
		}
	}
	if refused < 6 {
		t.Errorf("%d refusals are in the audit log", refused)
	}
}

// TestFirstPasskeysAtOnce: who begins to add their first passkey in two browsers is told that the second was not taken,
// and adds it by trying again.
func TestFirstPasskeysAtOnce(t *testing.T) {
	box := newBox(t)
	alice := withCookie(box.signedIn("alice", box.mustClaim().Password))
	laptop, phone := newSoftKey(t, "https://localhost"), newSoftKey(t, "https://localhost")
	phone.id = []byte("the other credential")
	options, cookie := box.beginPasskey("/api/v1/account/passkey-options", alice)
	box.addPasskey(laptop, alice).decode(t, &AccountDetails{})
	box.post("/api/v1/account/passkeys", PasskeyRequest{Name: "phone", Credential: phone.create(options)}, alice, withCookie(cookie), atLocalhost).checkProblem(t, 403, "passkey")
	box.addPasskey(phone, alice).decode(t, &AccountDetails{})
}

// TestCopiedPasskey: of two that share one passkey, the one that is behind is found out, and it signs nobody in
// any more; the password still does.
func TestCopiedPasskey(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	who := withCookie(box.signedIn("alice", out.Password))
	key := newSoftKey(t, "https://localhost")
	box.addPasskey(key, who)
	thief := *key
	key.count = 5
	in := box.byPasskey(key.get)
	if in.StatusCode != 200 {
		t.Fatalf("status %d: %s", in.StatusCode, in.body)
	}
	thief.count = 5
	box.byPasskey(thief.get).checkProblem(t, 403, "passkey-suspect")
	key.count = 6
	box.byPasskey(key.get).checkProblem(t, 403, "passkey-suspect")
	if r := box.records()[1]; r.Action != audit.PasskeySuspected || r.Identity != "alice" || r.Outcome != audit.OutcomeRefused {
		t.Errorf("the audit log has %+v", r)
	}
	if r := box.records()[0]; r.Action != audit.SessionEnded || r.Actor != audit.ActorBox || r.Identity != "alice" {
		t.Errorf("the audit log ends with %+v", r)
	}
	box.get("/api/v1/account", withCookie(in.cookie(t))).checkProblem(t, 401, "bad-credential") // whose of the two it was, nobody knows
	box.get("/account", who).says(t, 200)
	box.get("/account", withCookie(box.signedIn("alice", out.Password))).says(t, 200, "there may be a copy")
}

// TestPasskeysAreNotLockedOut: guesses at a password keep nobody out who has a passkey.
func TestPasskeysAreNotLockedOut(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	key := newSoftKey(t, "https://localhost")
	box.addPasskey(key, withCookie(box.signedIn("alice", out.Password)))
	for range 5 {
		box.submit("/sign-in", map[string][]string{"user": {"alice"}, "password": {"guess"}}).says(t, 403)
	}
	box.submit("/sign-in", map[string][]string{"user": {"alice"}, "password": {out.Password}}).says(t, 429)
	key.count++
	if got := box.byPasskey(key.get); got.StatusCode != 200 {
		t.Errorf("status %d: %s", got.StatusCode, got.body)
	}
	bad := *key
	bad.id = []byte("?")
	for range 20 {
		box.byPasskey(bad.get).checkProblem(t, 403, "passkey")
	}
	box.byPasskey(bad.get).checkProblem(t, 429, "too-many-guesses")
	box.clock.pass(time.Minute)
	key.count++
	if got := box.byPasskey(key.get); got.StatusCode != 200 {
		t.Errorf("a minute later: status %d: %s", got.StatusCode, got.body)
	}
}

// TestPasskeyHost: passkeys belong to a name; at an address or another name there are none, and the page says so.
func TestPasskeyHost(t *testing.T) {
	box := newBox(t, func(c *Config) {
		c.Site = func() Site { s := demoSite(); s.PublicHost = "Box.example.com"; return s }
	})
	out := box.mustClaim()
	alice := withCookie(box.signedIn("alice", out.Password))
	for host, works := range map[string]bool{"box.example.com": true, "BOX.example.com:8443": true, "localhost:8443": true, "127.0.0.1:8443": false, "[::1]:8443": false, "evil.example": false, "x.box.example.com": false} {
		got := box.post("/api/v1/account/passkey-options", nil, alice, func(r *http.Request) { r.Host = host })
		if (got.StatusCode == 200) != works {
			t.Errorf("%s: status %d: %s", host, got.StatusCode, got.body)
		}
		page := box.get("/account", alice, func(r *http.Request) { r.Host = host })
		if strings.Contains(string(page.body), "passkey.js") != works || strings.Contains(string(page.body), "Open the console at https://box.example.com") == works {
			t.Errorf("%s: the page does not say whether there are passkeys", host)
		}
	}
	unnamed := newBox(t, func(c *Config) {
		c.Site = func() Site { s := demoSite(); s.PublicHost = "192.0.2.1"; return s }
	})
	p := unnamed.post("/api/v1/sign-in/passkey/options", nil, func(r *http.Request) { r.Host = "192.0.2.1" }).checkProblem(t, 409, "conflict")
	if !strings.Contains(p.Mend, "public_host") {
		t.Errorf("mend %q", p.Mend)
	}
}

// TestPasskeyBrowser: a person adds a passkey, signs in with it without a name, and sees what goes wrong.
func TestPasskeyBrowser(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	tb := newTab(t, box)
	verified := tb.Authenticator()
	tb.See("sign-in", "/account", "#user")
	tb.Write("#user", "alice")
	tb.Write("#password", out.Password)
	tb.Enter("#password", "#passkey-name")
	verified(false)
	tb.Write("#passkey-name", "work laptop")
	tb.Click("#passkey-add button")
	tb.Reads("#passkey-add [role=alert]", "No passkey was made")
	tb.Look("passkey-refused")
	verified(true)
	tb.Press("#passkey-add button", ".done")
	tb.Look("passkey-added")
	tb.Reads(".done", "passkey is added")
	tb.Press("header button", "#passkey-sign-in button")
	tb.Open("/sign-in?next=/account", "#passkey-sign-in button")
	tb.Press("#passkey-sign-in button", "#passkey-name")
	tb.Look("signed-in-by-passkey")
	if r := box.records()[0]; r.Action != audit.SignedIn || r.Actor != "alice" || r.Reason != "by passkey work laptop" {
		t.Errorf("the audit log ends with %+v", r)
	}

	// Somebody copied the passkey and used the copy: this one is behind now.
	all, err := box.store.Passkeys("alice")
	if err != nil || len(all) != 1 {
		t.Fatalf("passkeys %+v, %v", all, err)
	}
	rec := audit.Record{Time: start, TimeSource: "rtc", Action: audit.SignedIn, Outcome: audit.OutcomeSuccess}
	if err := box.store.SignInByPasskey(all[0].ID, all[0].SignCount+100, false, sourceKey(addr("192.0.2.1")), rec, rec); err != nil {
		t.Fatal(err)
	}
	tb.Press("header button", "#passkey-sign-in button")
	tb.Click("#passkey-sign-in button")
	tb.Reads("#passkey-sign-in [role=alert]", "may be a copy")
	tb.Look("passkey-copied")
	if p, err := box.store.Passkey(all[0].ID); err != nil || !p.Suspect {
		t.Errorf("passkey %+v, %v", p, err)
	}
}

// TestAccountBrowser looks at every page and dialog of users and accounts.
func TestAccountBrowser(t *testing.T) {
	box := newBox(t)
	out := box.mustClaim()
	admin := bearer(out.Token)
	box.post("/api/v1/users", UserRequest{Name: "bob", Role: "operator", Password: "correct horse battery"}, admin)
	box.post("/api/v1/tokens", TokenRequest{Name: "Prometheus", Role: "auditor"}, admin)
	tb := newTab(t, box)
	box.addPasskey(newSoftKey(t, "https://localhost"), withCookie(box.signedIn("alice", out.Password)))
	tb.enter("alice")
	tb.See("account", "/account", "#sessions")
	var d AccountDetails
	box.get("/api/v1/account", admin).decode(t, &d)
	for name, query := range map[string]string{"password": "do=password", "token": "do=token", "revoke": "do=revoke&id=" + d.Tokens[0].ID, "passkey": "do=passkey&id=" + d.Passkeys[0].ID} {
		tb.See("account-"+name, "/account?"+query, "dialog")
	}
	tb.See("account-password-again", "/account?do=password", "dialog")
	tb.Write("#current", "wrong wrong wrong")
	tb.Write("#new", "correct horse battery")
	tb.Write("#again", "correct horse battery")
	tb.Enter("#again", "#password-problem")
	tb.Look("account-password-wrong")
	tb.See("users", "/users", "#people")
	tb.See("users-add", "/users?do=add", "dialog")
	tb.Write("#add-user", "bob")
	tb.Enter("#add-user", "#add-problem")
	tb.Look("users-add-refused")
	tb.See("user", "/users/bob", "#user")
	for _, dialog := range []string{"role", "password", "switch", "remove"} {
		tb.See("user-"+dialog, "/users/bob?do="+dialog, "dialog")
	}
	tb.See("user-last-administrator", "/users/alice?do=remove", "dialog")
	tb.Press("dialog button.danger", "#remove-problem")
	tb.Look("user-last-administrator-kept")
}
