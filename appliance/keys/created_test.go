package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

var (
	attestedKeys = []Spec{{"attestation", "ecdsa-p256", Resident}, {"authority/modern", "ecdsa-p256", Resident}, {"tls", "ecdsa-p256", Sealed}}

	nextAuthority = Spec{"authority/modern.2", "ecdsa-p256", Resident}
	nextRA        = Spec{"ra.2", "rsa-2048", Sealed}
)

// rebooted opens the keys again as the next boot does.
func rebooted(t *testing.T, m *tpmtest.Machine, dev *tpm.Device, st *memory, specs []Spec, site *fakeSite) (*tpm.Device, *Vault) {
	t.Helper()
	dev.Close()
	m.Reboot()
	dev = boot(t, m.Spec())
	v, err := Open(dev, st.restart(false), "demo", specs, site.binding)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return dev, v
}

func samePublic(a, b *Key) bool {
	return a.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(b.Public())
}

// A box makes keys of both kinds after leave-initrd, uses them, has them after a reboot and loses them by
// Delete alone.
func TestCreate(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, attestedKeys, site.binding)
	marker, err := dev.ReadMarker()
	if err != nil {
		t.Fatal(err)
	}
	holder := newHolder(t, dev, v)
	client := newClient(t, holder)
	v.Forget()
	phase(t, dev, leaveInitrd)
	made := map[string]*Key{}
	for _, s := range []Spec{nextAuthority, nextRA, {"ra.3", "rsa-2048", Resident}, {"intune/laptops", "ecdsa-p384", Sealed}} {
		k, err := client.Create(s)
		if err != nil {
			t.Fatal(err)
		}
		if k.Info().spec() != s {
			t.Errorf("made %+v", k.Info())
		}
		checkSigns(t, k)
		again, err := client.Create(s)
		if err != nil || !samePublic(k, again) {
			t.Errorf("%v: asked for again: %v", s, err)
		}
		other := s
		other.Algorithm = "rsa-3072"
		if _, err := client.Create(other); !errors.Is(err, ErrExists) {
			t.Errorf("%v over %v: %v", other, s, err)
		}
		made[s.Name] = k
	}
	for _, name := range []string{"ra.2", "ra.3"} {
		checkDecrypts(t, made[name])
	}
	if _, err := made[nextAuthority.Name].Decrypt(nil, nil, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 16}); err == nil {
		t.Error("an authority's key decrypts")
	}
	if infos, err := newClient(t, holder).List(); err != nil || len(infos) != len(attestedKeys)+len(made) {
		t.Errorf("another client sees %v, %v", infos, err)
	}

	dev, v = rebooted(t, m, dev, st, attestedKeys, site)
	if after, err := dev.ReadMarker(); err != nil || !bytes.Equal(after, marker) {
		t.Errorf("the marker changed: %x, %v", after, err)
	}
	if v.Repaired() {
		t.Error("the generations of KEYS differ")
	}
	client = hold(t, dev, v)
	phase(t, dev, leaveInitrd)
	for name, k := range made {
		again := getKey(t, client, name)
		checkSigns(t, again)
		if !samePublic(k, again) {
			t.Errorf("%s is another key after a reboot", name)
		}
	}
	checkDecrypts(t, getKey(t, client, "ra.3"))
	if err := client.Delete("ra.2"); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := (&Key{c: client, info: made["ra.2"].info}).Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, ErrNoKey) {
		t.Errorf("a removed key: %v", err)
	}
	if err := client.Delete("ra.2"); !errors.Is(err, ErrNoKey) {
		t.Errorf("removed twice: %v", err)
	}
	for _, name := range []string{"tls", "authority/modern", "attestation"} {
		if err := client.Delete(name); err == nil || !strings.Contains(err.Error(), "provisioned") {
			t.Errorf("removing %s: %v", name, err)
		}
	}

	dev, v = rebooted(t, m, dev, v.container.st.(*memory), attestedKeys, site)
	client = hold(t, dev, v)
	if _, err := client.Key("ra.2"); !errors.Is(err, ErrNoKey) {
		t.Errorf("a removed key after a reboot: %v", err)
	}
	getKey(t, client, "ra.3")
}

func checkDecrypts(t *testing.T, k *Key) {
	t.Helper()
	sent := []byte("0123456789abcdef")
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, k.Public().(*rsa.PublicKey), sent)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Decrypt(nil, ciphertext, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: len(sent)}); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s: %x, %v", k.info.Name, got, err)
	}
}

func TestNamesOfRunTime(t *testing.T) {
	for name, want := range map[string]bool{
		"authority/a.2": true, "authority/modern-ca.999999": true, "ra.2": true, "ra.17": true, "intune/corp": true,
		"authority/a": false, "authority/a.1": false, "authority/a.02": false, "authority/a.1000000": false, "authority/a.+2": false,
		"authority/.2": false, "authority/A.2": false, "authority/-a.2": false, "authority/a/b.2": false, "authority/a.2.2": false,
		"authority/a.2 ": false, "ra": false, "ra.1": false, "ra.": false, "ra.x": false, "rb.2": false, "intune/": false, "intune/a.b": false,
		"intune/" + strings.Repeat("a", 33): false, "tls": false, "tls.2": false, "audit": false, "attestation": false, "attestation.2": false,
		"secret/a": false, "": false, "authority/\xff.2": false, strings.Repeat("a", 300): false,
	} {
		if err := checkCreated(Spec{name, "rsa-2048", Sealed}); (err == nil) != want {
			t.Errorf("key %q: %v", name, err)
		}
	}
	for _, s := range []Spec{{"ra.2", "ecdsa-p256", Sealed}, {"authority/a.2", "rsa-1024", Sealed}, {"authority/a.2", "rsa-2048", "paper"}, {"authority/a.2", "", ""}} {
		if checkCreated(s) == nil {
			t.Errorf("%v is taken", s)
		}
	}
	for name, want := range map[string]bool{
		"secret/a": true, "secret/webhook/corp": true, "secret/": false, "secret/a/": false, "secret/a/b/c": false, "secret//a": false,
		"secret/A": false, "secret": false, "a": false, "": false, "secret/a\n": false,
	} {
		if err := checkSecretName(name); (err == nil) != want {
			t.Errorf("secret %q: %v", name, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	client := hold(t, dev, v)
	if _, err := client.Secret("secret/a"); !errors.Is(err, ErrNoKey) {
		t.Errorf("before there is one: %v", err)
	}
	long := bytes.Repeat([]byte("long "), MaxSecret)[:MaxSecret]
	for name, value := range map[string][]byte{"secret/a": []byte("old value"), "secret/a/b": long, "secret/c": {0}} {
		if err := client.PutSecret(name, value); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := client.PutSecret("secret/a", []byte("new value")); err != nil {
		t.Error(err)
	}
	for name, value := range map[string][]byte{"secret/a": {}, "secret/b": append(long, 'x'), "tls": []byte("value")} {
		if err := client.PutSecret(name, value); err == nil {
			t.Errorf("%d bytes as %s are taken", len(value), name)
		}
	}
	if err := client.DeleteSecret("secret/c"); err != nil {
		t.Error(err)
	}
	if err := client.DeleteSecret("secret/c"); !errors.Is(err, ErrNoKey) {
		t.Errorf("removed twice: %v", err)
	}
	check := func(client *Client) {
		t.Helper()
		for name, want := range map[string][]byte{"secret/a": []byte("new value"), "secret/a/b": long} {
			if got, err := client.Secret(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %.20q, %v", name, got, err)
			}
		}
		for _, name := range []string{"secret/b", "secret/c", "tls"} {
			if _, err := client.Secret(name); !errors.Is(err, ErrNoKey) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	check(client)
	if bytes.Contains(st.medium, []byte("new value")) || bytes.Contains(st.medium, long[:100]) {
		t.Error("a secret is in KEYS")
	}
	dev, v = rebooted(t, m, dev, st, fewKeys, site)
	check(hold(t, dev, v))
}

// A service taken over asks for as much as it can: the room ends, KEYS holds all of it, and room comes back
// by removing.
func TestRoomEnds(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), fewKeys)
	holder := newHolder(t, dev, v)
	client := newClient(t, holder)
	spec := func(i int) Spec {
		return Spec{fmt.Sprintf("authority/%s.%d", strings.Repeat("a", 32), i+2), "ecdsa-p256", Sealed}
	}
	secret := func(i int) string { return fmt.Sprintf("secret/%s/%032d", strings.Repeat("a", 32), i) }
	for i := range MaxCreated {
		if _, err := client.Create(spec(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range MaxSecrets {
		if err := client.PutSecret(secret(i), make([]byte, MaxSecret)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Create(spec(MaxCreated)); err == nil || !strings.Contains(err.Error(), "no more fit") {
		t.Errorf("one more key: %v", err)
	}
	if err := client.PutSecret(secret(MaxSecrets), []byte("x")); err == nil || !strings.Contains(err.Error(), "no more fit") {
		t.Errorf("one more secret: %v", err)
	}
	if err := client.PutSecret(secret(0), []byte("x")); err != nil {
		t.Errorf("in place of another: %v", err)
	}
	if infos, err := client.List(); err != nil || len(infos) != MaxCreated+len(fewKeys) {
		t.Errorf("%d keys listed, %v", len(infos), err)
	}
	if _, err := v.Handover(); err != nil {
		t.Error(err)
	}
	if err := client.Delete(spec(0).Name); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Create(spec(MaxCreated)); err != nil {
		t.Errorf("in the room of a removed one: %v", err)
	}
	client.DeleteSecret(secret(0))
	if err := client.PutSecret(secret(MaxSecrets), []byte("x")); err != nil {
		t.Errorf("in the room of a removed one: %v", err)
	}
}

// As many of the largest records as there may be fit a generation, and a handover as many keys.
func TestLargestContentsFit(t *testing.T) {
	c := &contents{Format: contentsFormat, State: stateProvisioned, Kind: KindBox}
	blob := tpm.Blob{Public: make([]byte, maxBlob/2), Private: make([]byte, maxBlob/2)}
	for i := range 32 { // of the site
		c.Keys = append(c.Keys, record{Name: fmt.Sprint("site", i), Blob: blob, Wrapped: make([]byte, maxWrapped)})
	}
	v := &Vault{contents: c, binding: Binding{Kind: KindHost}, openings: map[string][]byte{}, values: map[string][]byte{}}
	for i := range MaxCreated {
		r := record{Name: fmt.Sprintf("authority/%s.%d", strings.Repeat("a", 32), i+2), Algorithm: "rsa-4096", Protection: Sealed, Created: true, Wrapped: make([]byte, maxWrapped)}
		if err := c.addKey(r); err != nil {
			t.Fatal(err)
		}
		v.openings[r.Name] = r.Wrapped
	}
	for i := range MaxSecrets {
		s := secret{Name: fmt.Sprintf("secret/%s/%032d", strings.Repeat("a", 32), i), Wrapped: make([]byte, sealing+MaxSecret)}
		if err := c.putSecret(s); err != nil {
			t.Fatal(err)
		}
		v.values[s.Name] = make([]byte, MaxSecret)
	}
	// The vault counts for itself: a holder may not.
	if err := c.addKey(record{Name: "ra.2", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: make([]byte, maxWrapped)}); !errors.Is(err, errTooManyKeys) {
		t.Errorf("one more key: %v", err)
	}
	if err := c.putSecret(secret{Name: "secret/a", Wrapped: make([]byte, sealing+1)}); !errors.Is(err, errTooManySecrets) {
		t.Errorf("one more secret: %v", err)
	}
	payload, err := c.encode(nil)
	if err != nil || len(payload) > maxPayload {
		t.Errorf("%d bytes of %d, %v", len(payload), maxPayload, err)
	}
	if _, err := v.Handover(); err != nil {
		t.Error(err)
	}
}

// Somebody who speaks as the holder cannot touch what was provisioned, nor have anything written that is no
// record of run time.
func TestVaultRefusesWhatNoHolderAsks(t *testing.T) {
	st := newMemory()
	dev, err := tpm.Open(tpmtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	v := provision(t, dev, st, fewKeys, Binding{Kind: KindHost})
	before := bytes.Clone(st.medium)
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- v.ServeRecords(theirs) }()
	link := recorder{conn: ours}
	resident := v.contents.Keys[0]
	good := record{Name: "ra.2", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: make([]byte, 100)}
	with := func(change func(*record)) record {
		r := good
		change(&r)
		return r
	}
	for name, r := range map[string]record{
		"not created":          with(func(r *record) { r.Created = false }),
		"provisioned":          with(func(r *record) { r.Name = "tls" }),
		"authority":            with(func(r *record) { r.Name = "authority/modern" }),
		"no key in it":         with(func(r *record) { r.Wrapped = nil }),
		"too long":             with(func(r *record) { r.Wrapped = make([]byte, maxWrapped+1) }),
		"both kinds":           with(func(r *record) { r.Blob = resident.Blob }),
		"sealed as resident":   with(func(r *record) { r.Protection = Resident }),
		"resident and wrapped": with(func(r *record) { r.Protection, r.Blob = Resident, resident.Blob }),
		"garbage as resident": with(func(r *record) {
			r.Protection, r.Wrapped, r.Blob = Resident, nil, tpm.Blob{Public: []byte("x"), Private: []byte("x")}
		}),
	} {
		if err := link.askJSON(recordKey, r); err == nil || errors.Is(err, ErrNotRecorded) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []secret{{"tls", make([]byte, 100)}, {"secret/a", make([]byte, sealing)}, {"secret/a", make([]byte, sealing+MaxSecret+1)}} {
		if err := link.askJSON(recordSecret, s); err == nil || errors.Is(err, ErrNotRecorded) {
			t.Errorf("secret %q of %d bytes: %v", s.Name, len(s.Wrapped), err)
		}
	}
	for _, name := range []string{"tls", "authority/modern"} {
		if err := link.ask(removeKey, []byte(name)); err == nil || !strings.Contains(err.Error(), "provisioned") {
			t.Errorf("removing %s: %v", name, err)
		}
	}
	if err := link.ask(removeKey, []byte("nobody")); !errors.Is(err, ErrNoKey) {
		t.Errorf("removing nothing: %v", err)
	}
	if !bytes.Equal(before, st.medium) {
		t.Error("a refusal wrote to KEYS")
	}
	if err := link.askJSON(recordKey, good); err != nil {
		t.Error(err)
	}
	if err := link.askJSON(recordKey, good); !errors.Is(err, ErrExists) {
		t.Errorf("over another: %v", err)
	}
	if err := link.ask(99, nil); !errors.Is(err, ErrNotRecorded) {
		t.Errorf("an operation that there is not: %v", err)
	}
	if err := <-served; !errors.Is(err, errFrame) {
		t.Errorf("serving: %v", err)
	}
}

// A vault that is closed, and one that answers nonsense, make nothing; what there is stays.
func TestWithoutAVault(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), fewKeys)
	client := hold(t, dev, v)
	if err := client.PutSecret("secret/a", []byte("value")); err != nil {
		t.Fatal(err)
	}
	v.Close()
	if _, err := client.Create(nextRA); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("closed: %v", err)
	}
	if err := client.DeleteSecret("secret/a"); err == nil {
		t.Error("a closed vault removes")
	}
	if value, err := client.Secret("secret/a"); err != nil || string(value) != "value" {
		t.Errorf("%q, %v", value, err)
	}
	checkSigns(t, getKey(t, client, "tls"))
}

// What an attacker with an old copy of the disk has is that copy: a key made later is not there, and the
// box starts.
func TestOldGenerationReplayed(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	old := bytes.Clone(st.medium)
	client := hold(t, dev, v)
	k, err := client.Create(nextRA)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.PutSecret("secret/a", []byte("value")); err != nil {
		t.Fatal(err)
	}
	dev, v = rebooted(t, m, dev, &memory{medium: old}, fewKeys, site)
	client = hold(t, dev, v)
	if _, err := client.Key(nextRA.Name); !errors.Is(err, ErrNoKey) {
		t.Errorf("%v", err)
	}
	if _, err := client.Secret("secret/a"); !errors.Is(err, ErrNoKey) {
		t.Errorf("%v", err)
	}
	checkServed(t, client, "tls")
	again, err := client.Create(nextRA)
	if err != nil || samePublic(k, again) {
		t.Errorf("made again: %v", err)
	}
}

// A site that asks for a key of a name the box has given does not get that key.
func TestCreatedNameInTheSite(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	if _, err := hold(t, dev, v).Create(nextRA); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dev, st, "demo", append([]Spec{nextRA}, fewKeys...), site.binding)
	wantError(t, err, `key "ra.2" (rsa-2048, sealed) has the name of one that the box made by itself`)
}

// A record that says it was made at run time without the key of the MAC is no way around the marker.
func TestCreatedFlagIsAuthenticated(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	c := *v.contents
	c.Keys = append([]record{{Name: "authority/a.2", Algorithm: "ecdsa-p256", Protection: Resident, Created: true, Blob: c.Keys[0].Blob}}, c.Keys...)
	payload, err := c.encode([]byte("another key"))
	if err != nil {
		t.Fatal(err)
	}
	forged := newMemory()
	if err := (&container{st: forged}).putBoth(payload); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dev, forged, "demo", fewKeys, site.binding)
	wantError(t, err, "changed by something other")
}

func TestCertify(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), attestedKeys)
	client := hold(t, dev, v)
	made, err := client.Create(nextAuthority)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("nonce")
	for _, k := range []*Key{made, getKey(t, client, "authority/modern")} {
		c, err := client.Certify(k.info.Name, nonce)
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.ParsePKIXPublicKey(c.AttestationKey)
		if err != nil || !getKey(t, client, NameAttestation).Public().(*ecdsa.PublicKey).Equal(public) {
			t.Errorf("attestation key: %v", err)
		}
		digest := sha256.Sum256(c.Attest)
		if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], c.Signature) || !bytes.Contains(c.Attest, nonce) {
			t.Error("the statement does not verify")
		}
		name, err := tpm.Blob{Public: c.Public}.Name()
		if err != nil || !bytes.Contains(c.Attest, name) {
			t.Errorf("the statement is of another key: %v", err)
		}
		if x := k.Public().(*ecdsa.PublicKey).X.Bytes(); !bytes.Contains(c.Public, x) {
			t.Error("the public area is another key's")
		}
	}
	for name, nonce := range map[string][]byte{"tls": nonce, "authority/modern": {}, "audit": nonce, "attestation": make([]byte, 33)} {
		if _, err := client.Certify(name, nonce); err == nil {
			t.Errorf("%s is certified over %d bytes", name, len(nonce))
		}
	}
}

// While one key is made in the TPM another has to wait, and what is sealed goes on.
func TestOneKeyAtATime(t *testing.T) {
	m := tpmtest.New(t)
	const create = 0x153
	var holdNext atomic.Bool
	started, release := make(chan struct{}), make(chan struct{})
	dev, v := hostVault(t, m.Through(func(code uint32) tpmtest.Fault {
		if code == create && holdNext.CompareAndSwap(true, false) {
			close(started)
			<-release
		}
		return tpmtest.Pass
	}), fewKeys)
	client := hold(t, dev, v)
	holdNext.Store(true)
	made := make(chan error, 1)
	go func() {
		_, err := client.Create(nextAuthority)
		made <- err
	}()
	<-started
	if _, err := client.Create(nextRA); !errors.Is(err, ErrBusy) {
		t.Errorf("a second one: %v", err)
	}
	checkSigns(t, getKey(t, client, "tls"))
	close(release)
	if err := <-made; err != nil {
		t.Error(err)
	}
}

// Whoever takes the holder over has one boot: what it leaves in KEYS keeps no provisioned key closed in
// the next, and its names can be used again.
func TestRecordsThatDoNotOpen(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	noKey, err := createdFrom(v.creation).seal(keyContext(Spec{Name: "ra.4", Algorithm: "rsa-2048"}), []byte("no PKCS #8"))
	if err != nil {
		t.Fatal(err)
	}
	good := hold(t, dev, v)
	if _, err := good.Create(nextRA); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	go v.ServeRecords(theirs)
	link := recorder{conn: ours}
	for _, r := range []record{
		{Name: "ra.3", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: make([]byte, 100)},
		{Name: "ra.4", Algorithm: "rsa-2048", Protection: Sealed, Created: true, Wrapped: noKey},
		{Name: "authority/modern.2", Algorithm: "rsa-2048", Protection: Resident, Created: true, Blob: tpm.Blob{Public: v.contents.Root.Public, Private: []byte("x")}},
	} {
		if err := link.askJSON(recordKey, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := link.askJSON(recordSecret, secret{Name: "secret/a", Wrapped: make([]byte, 100)}); err != nil {
		t.Fatal(err)
	}
	dev, v = rebooted(t, m, dev, st, fewKeys, site)
	client := hold(t, dev, v)
	checkServed(t, client, "tls")
	checkServed(t, client, nextRA.Name)
	for _, name := range []string{"ra.3", "ra.4", "authority/modern.2"} {
		if _, err := client.Key(name); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", name, err)
		}
		if err := client.Delete(name); err != nil {
			t.Errorf("removing %s: %v", name, err)
		}
	}
	if err := client.Delete("tls"); err == nil {
		t.Error("a provisioned key was removed")
	}
	if _, err := client.Secret("secret/a"); !errors.Is(err, ErrNoKey) {
		t.Errorf("secret: %v", err)
	}
	if err := client.DeleteSecret("secret/a"); err != nil {
		t.Errorf("removing the secret: %v", err)
	}
	spec := nextRA
	spec.Name = "ra.3"
	if _, err := client.Create(spec); err != nil {
		t.Errorf("making it: %v", err)
	}
}

// A sealed key opens as what it was sealed as: under no other name, as no other kind, and a secret as no key.
func TestSealedAsWhatItIs(t *testing.T) {
	m := createdFrom(make([]byte, 32))
	spec := Spec{Name: "ra.2", Algorithm: "rsa-2048", Protection: Sealed}
	sealed, err := m.seal(keyContext(spec), []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := m.unseal(keyContext(spec), sealed); err != nil || string(opened) != "key" {
		t.Fatalf("%q, %v", opened, err)
	}
	for name, context := range map[string][]byte{
		"another name":      keyContext(Spec{Name: "authority/modern.2", Algorithm: "rsa-2048"}),
		"another algorithm": keyContext(Spec{Name: "ra.2", Algorithm: "rsa-3072"}),
		"a secret":          secretContext("ra.2"),
	} {
		if _, err := m.unseal(context, sealed); err == nil {
			t.Errorf("it opens as %s", name)
		}
	}
	if _, err := provisionedFrom(make([]byte, 32)).unseal(keyContext(spec), sealed); err == nil {
		t.Error("a key of run time opens as one of the site's")
	}
}

// What boxinit keeps for the boot opens nothing: Forget wipes the bytes, not only what points to them.
func TestForgetWipes(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	v.values["secret/a"] = []byte("value")
	secrets := map[string][]byte{"disk key": v.diskKey, "creation secret": v.creation, "secret": v.values["secret/a"]}
	for name, opening := range v.openings {
		secrets[name] = opening
	}
	v.Forget()
	for name, b := range secrets {
		if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("%s: %d bytes, not all of them wiped", name, len(b))
		}
	}
	macKey := v.macKey
	v.Close()
	if !bytes.Equal(macKey, make([]byte, len(macKey))) {
		t.Error("Close leaves the key of the MAC")
	}
}
