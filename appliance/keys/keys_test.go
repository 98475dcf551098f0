// What a green run does not prove: that a hardware TPM bears the load or keeps its NV through a real
// power cut, that the firmware measures what the signatures were made for, or that locked memory stays
// out of reach of root. Power is cut between writes and commands, never inside swtpm's own file write.

package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// fakeSite is a site's policy key and the image it approved.
type fakeSite struct {
	key     *rsa.PrivateKey
	binding Binding
}

func extend(value []byte, event string) []byte {
	e := sha256.Sum256([]byte(event))
	sum := sha256.Sum256(append(bytes.Clone(value), e[:]...))
	return sum[:]
}

const (
	enterInitrd = "enter-initrd"
	leaveInitrd = "leave-initrd"
)

func newSite(t testing.TB) *fakeSite {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	enter := extend(make([]byte, 32), enterInitrd)
	leave := extend(enter, leaveInitrd)
	s := &fakeSite{key: key, binding: Binding{Kind: KindBox, PolicyKey: &key.PublicKey, Epoch: 3}}
	for ref, value := range map[string][]byte{"epoch:2": enter, "epoch:3": enter, "use": leave} {
		policy := tpm.PCRPolicyDigest(tpm.BootPCR, value)
		sig, err := tpm.SignPolicy(key, policy, ref)
		if err != nil {
			t.Fatal(err)
		}
		s.binding.Signatures = append(s.binding.Signatures, tpm.PolicySignature{Ref: ref, Policy: policy, Signature: sig})
	}
	return s
}

// fewKeys are quick to make.
var fewKeys = []Spec{
	{"authority/modern", "ecdsa-p256", Resident},
	{"tls", "ecdsa-p256", Sealed},
}

var allKeys = []Spec{
	{"authority/devices", "rsa-2048", Resident},
	{"authority/modern", "ecdsa-p256", Resident},
	{"audit", "ecdsa-p256", Resident},
	{"attestation", "ecdsa-p256", Resident},
	{"tls-ca", "ecdsa-p256", Resident},
	{"ra", "rsa-2048", Sealed},
	{"tls", "ecdsa-p256", Sealed},
}

// boot opens the TPM of a machine that has just come up, in phase enter-initrd.
func boot(t testing.TB, spec string) *tpm.Device {
	t.Helper()
	dev, err := tpm.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	phase(t, dev, enterInitrd)
	return dev
}

func phase(t testing.TB, dev *tpm.Device, word string) {
	t.Helper()
	if err := dev.ExtendPCR(tpm.BootPCR, word); err != nil {
		t.Fatal(err)
	}
}

func provision(t testing.TB, dev *tpm.Device, st Storage, specs []Spec, b Binding) *Vault {
	t.Helper()
	if _, err := Open(dev, st, "demo", specs, b); !errors.Is(err, ErrNotProvisioned) {
		t.Fatalf("opening a blank machine: %v", err)
	}
	v, err := Provision(dev, st, "demo", specs, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// hold serves the vault's keys in this process and returns a client.
func hold(t testing.TB, dev *tpm.Device, v *Vault) *Client {
	t.Helper()
	return newClient(t, newHolder(t, dev, v))
}

func newHolder(t testing.TB, dev *tpm.Device, v *Vault) *Holder {
	t.Helper()
	handover, err := v.Handover()
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	recorded := make(chan error, 1)
	go func() { recorded <- v.ServeRecords(theirs) }()
	t.Cleanup(func() {
		ours.Close()
		if err := <-recorded; err != nil {
			t.Errorf("recording: %v", err)
		}
	})
	h, err := NewHolder(dev, handover, ours)
	if err != nil {
		t.Fatal(err)
	}
	clear(handover) // as callers do: the holder must not depend on it
	return h
}

func newClient(t testing.TB, h *Holder) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- h.Serve(theirs) }()
	c := NewClient(ours)
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return c
}

func getKey(t testing.TB, c *Client, name string) *Key {
	t.Helper()
	k, err := c.Key(name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// checkSigns has a key sign and verifies with the standard library.
func checkSigns(t testing.TB, k *Key) {
	t.Helper()
	digest := sha256.Sum256([]byte("message for " + k.info.Name))
	sig, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Errorf("%s: %v", k.info.Name, err)
		return
	}
	ok := false
	switch pub := k.Public().(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest[:], sig)
	}
	if !ok {
		t.Errorf("%s: signature does not verify", k.info.Name)
	}
}

// wantError checks for an *Error with that What, and a mend.
func wantError(t testing.TB, err error, what string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.What, what) || e.Mend == "" {
		t.Errorf("error %v, want one that says %q", err, what)
	}
}

func TestProvisionAndOpen(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, allKeys, site.binding)
	diskKey := v.DiskKey()
	client := hold(t, dev, v)

	// Before leave-initrd nothing resident can be used, and what is sealed can.
	digest := sha256.Sum256(nil)
	if _, err := getKey(t, client, "authority/modern").Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Error("a resident key signs before leave-initrd")
	}
	phase(t, dev, leaveInitrd)

	first, err := client.List()
	if err != nil {
		t.Fatal(err)
	}
	check := func(client *Client) {
		t.Helper()
		infos, err := client.List()
		if err != nil || len(infos) != len(allKeys) {
			t.Fatalf("list: %v, %v", infos, err)
		}
		if diff := cmp.Diff(first, infos, cmp.Comparer(func(a, b *rsa.PublicKey) bool { return a.Equal(b) }), cmp.Comparer(func(a, b *ecdsa.PublicKey) bool { return a.Equal(b) })); diff != "" {
			t.Errorf("keys changed: %s", diff)
		}
		for _, info := range infos {
			if info.Name == NameAttestation {
				if _, err := getKey(t, client, info.Name).Sign(nil, digest[:], crypto.SHA256); err == nil {
					t.Error("the attestation key signs anything")
				}
				continue
			}
			checkSigns(t, getKey(t, client, info.Name))
		}
		if _, err := client.Key("nobody"); !errors.Is(err, ErrNoKey) {
			t.Errorf("unknown key: %v", err)
		}
	}
	check(client)
	if v.Initialised() {
		t.Error("initialised before MarkInitialised")
	}
	if err := v.MarkInitialised(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dev, st, "demo", allKeys, site.binding); err == nil {
		t.Error("the root secret opens after leave-initrd")
	} else {
		wantError(t, err, "not approved to open its keys")
	}
	if _, err := Provision(dev, st, "demo", allKeys, site.binding); err == nil {
		t.Error("provisioned twice")
	} else {
		wantError(t, err, "provisioned already")
	}

	dev.Close()
	m.Reboot()
	dev = boot(t, m.Spec())
	v, err = Open(dev, st, "demo", allKeys, site.binding)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if !v.Initialised() || v.Repaired() || !bytes.Equal(v.DiskKey(), diskKey) {
		t.Errorf("after a reboot: initialised %v, repaired %v", v.Initialised(), v.Repaired())
	}
	client = hold(t, dev, v)
	phase(t, dev, leaveInitrd)
	check(client)
	if info, err := dev.Info(); err != nil || info.LockoutCounter != 0 {
		t.Errorf("lockout counter %d, %v", info.LockoutCounter, err)
	}
}

func TestNoSecretInKEYS(t *testing.T) {
	site, st := newSite(t), newMemory()
	v := provision(t, boot(t, tpmtest.Start(t)), st, fewKeys, site.binding)
	for name, secret := range map[string][]byte{"disk key": v.diskKey, "MAC key": v.macKey, "creation secret": v.creation, "tls": v.openings["tls"], "auth": v.openings["authority/modern"]} {
		if len(secret) == 0 || bytes.Contains(st.medium, secret[:16]) {
			t.Errorf("%s is in KEYS", name)
		}
	}
}

func TestForeignTPMIsNamedAndNothingWritten(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, site.binding)
	dev.Close()
	before := bytes.Clone(st.medium)

	blank := boot(t, tpmtest.Start(t))
	_, err := Open(blank, st, "demo", fewKeys, site.binding)
	wantError(t, err, "this TPM does not hold this box's keys")
	if marker, err := blank.ReadMarker(); marker != nil || err != nil {
		t.Errorf("marker written to the foreign TPM: %x, %v", marker, err)
	}

	otherStorage := newMemory()
	other := boot(t, tpmtest.Start(t))
	provision(t, other, otherStorage, fewKeys, site.binding)
	_, err = Open(other, st, "demo", fewKeys, site.binding)
	wantError(t, err, "this TPM does not hold this box's keys")
	if !bytes.Equal(before, st.medium) {
		t.Error("the disk was written to in a foreign machine")
	}

	m.Reboot()
	if _, err := Open(boot(t, m.Spec()), st, "demo", fewKeys, site.binding); err != nil {
		t.Errorf("moved back: %v", err)
	}
}

func TestNamedRefusals(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, site.binding)
	before := bytes.Clone(st.medium)
	with := func(change func(*Binding)) Binding {
		b := site.binding
		change(&b)
		return b
	}
	damage := func(offsets ...int64) *memory {
		d := &memory{medium: bytes.Clone(st.medium)}
		for _, o := range offsets {
			d.medium[o] ^= 1
		}
		return d
	}
	const payload0, payload1 = payloadOffset + 20, generationSize + payloadOffset + 20
	for _, c := range []struct {
		name  string
		st    *memory
		site  string
		specs []Spec
		b     Binding
		want  string
	}{
		{"marker without KEYS", newMemory(), "demo", fewKeys, site.binding, "the disk holds no keys"},
		{"both generations damaged", damage(payload0, payload1), "demo", fewKeys, site.binding, "damaged in both"},
		{"both headers damaged", damage(10, generationSize+10), "demo", fewKeys, site.binding, "damaged in both"},
		{"site renamed", st, "other", fewKeys, site.binding, `provisioned for site "demo"`},
		{"key added", st, "demo", append([]Spec{{"audit", "ecdsa-p256", Resident}}, fewKeys...), site.binding, `key "audit" (ecdsa-p256, resident) is new`},
		{"key removed", st, "demo", fewKeys[:1], site.binding, `key "tls" (ecdsa-p256, sealed) is no longer asked for`},
		{"key changed", st, "demo", []Spec{{"authority/modern", "ecdsa-p384", Resident}, fewKeys[1]}, site.binding, `was "authority/modern" (ecdsa-p256, resident)`},
		{"box's keys on a host", st, "demo", fewKeys, Binding{Kind: KindHost}, "these keys were made on a box, and this is a host"},
		{"other policy key", st, "demo", fewKeys, newSite(t).binding, "not protected by this site's boot policy"},
		{"older epoch", st, "demo", fewKeys, with(func(b *Binding) { b.Epoch = 2 }), "need at least epoch 3"},
		{"no approval to use", st, "demo", fewKeys, with(func(b *Binding) { b.Signatures = b.Signatures[:0] }), "no signed measurements"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(dev, c.st, c.site, c.specs, c.b)
			wantError(t, err, c.want)
			if errors.Is(err, ErrNotProvisioned) {
				t.Error("offers to provision over it")
			}
			if _, err := Provision(dev, c.st, c.site, c.specs, c.b); err == nil {
				t.Error("Provision goes over it")
			}
		})
	}
	if !bytes.Equal(before, st.medium) {
		t.Error("a refusal wrote to the disk")
	}
	if _, err := Open(dev, st, "demo", fewKeys, with(func(b *Binding) { b.Epoch = 4 })); err != nil {
		t.Errorf("newer image that still approves the old epoch: %v", err)
	}
}

func TestKEYSWithoutMarker(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, site.binding)
	dev.Close()
	m.UndefineNV(uint32(tpm.MarkerHandle))
	m.Reboot()
	dev = boot(t, m.Spec())
	_, err := Open(dev, st, "demo", fewKeys, site.binding)
	wantError(t, err, "lost the mark that it was provisioned")
	_, err = Provision(dev, st, "demo", fewKeys, site.binding)
	wantError(t, err, "provisioned already")
}

// A damaged generation is rebuilt from the other, and no news is lost with it.
func TestOneGenerationDamaged(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	if err := v.MarkInitialised(); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{0, payloadOffset, generationSize, generationSize + payloadOffset + 100} {
		st.medium[offset] ^= 0xff
		for _, repaired := range []bool{true, false} {
			v, err := Open(dev, st, "demo", fewKeys, site.binding)
			if err != nil {
				t.Fatalf("damage at %#x: %v", offset, err)
			}
			if v.Repaired() != repaired || !v.Initialised() {
				t.Errorf("damage at %#x: repaired %v, initialised %v", offset, v.Repaired(), v.Initialised())
			}
		}
	}
}

// Whoever holds the disk before the first service was ready cannot keep the box from remembering that
// it was, by giving an old generation the last sequence there is: the box says that it cannot record it.
func TestSequenceRunsOut(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, site.binding).Close()
	c, err := readContainer(st)
	if err != nil {
		t.Fatal(err)
	}
	payload := c.newest().payload
	for index, sequence := range []uint64{math.MaxUint64 - 1, math.MaxUint64} {
		if err := writeGeneration(st, int64(index), sequence, payload); err != nil {
			t.Fatal(err)
		}
	}
	v, err := Open(dev, st, "demo", fewKeys, site.binding)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	wantError(t, v.MarkInitialised(), "cannot be written any more")
	if v.Initialised() {
		t.Error("recorded in memory only")
	}
}

func TestTamperedContents(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	v := provision(t, dev, st, fewKeys, site.binding)
	// rewrite stores changed contents with right checksums, and a MAC by someone who knows their own
	// root secret and not the box's.
	ownSecret := bytes.Repeat([]byte{7}, 32)
	ownMAC, err := derive(ownSecret, labelMAC)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(change func(*contents)) *memory {
		t.Helper()
		c, err := decodeContents(v.container.newest().payload)
		if err != nil {
			t.Fatal(err)
		}
		change(c)
		payload, err := c.encode(ownMAC)
		if err != nil {
			t.Fatal(err)
		}
		out := newMemory()
		if err := (&container{st: out}).putBoth(payload); err != nil {
			t.Fatal(err)
		}
		return out
	}
	srk, err := dev.OpenSRK(v.SRKName())
	if err != nil {
		t.Fatal(err)
	}
	hostRoot, err := srk.Seal(ownSecret, Binding{Kind: KindHost}.rootPolicy(0))
	if err != nil {
		t.Fatal(err)
	}
	ownRoot, err := srk.Seal(ownSecret, site.binding.rootPolicy(3))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*contents)
		want   string
	}{
		"flag set":                        {func(c *contents) { c.Initialised = true }, "changed by something other"},
		"sealed key of another name":      {func(c *contents) { c.Keys[1].Wrapped[0] ^= 1 }, "changed by something other"},
		"root secret without boot policy": {func(c *contents) { c.Root = hostRoot }, "not protected by this site's boot policy"},
		"root secret of the attacker's":   {func(c *contents) { c.Root = ownRoot }, "changed by something other"},
		"that, with its commitment": {func(c *contents) {
			c.Root = ownRoot
			c.Commitment, _ = derive(ownSecret, labelCommitment)
		}, "not those that this machine's TPM was provisioned with"},
		"authority key replaced":              {func(c *contents) { c.Keys[0].Blob = ownRoot }, "not those that this machine's TPM was provisioned with"},
		"back to before the marker was there": {func(c *contents) { c.State = stateProvisioning }, "changed by something other"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(dev, rewrite(c.change), "demo", fewKeys, site.binding)
			wantError(t, err, c.want)
		})
	}
}

func TestChangedImageDoesNotOpenOrProvision(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	dev := boot(t, m.Spec())
	provision(t, dev, st, fewKeys, site.binding)
	dev.Close()
	m.Reboot()
	dev, err := tpm.Open(m.Spec())
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	phase(t, dev, "one byte of overlay")
	phase(t, dev, enterInitrd)
	before := bytes.Clone(st.medium)
	_, err = Open(dev, st, "demo", fewKeys, site.binding)
	wantError(t, err, "not approved to open its keys")
	if !bytes.Equal(before, st.medium) {
		t.Error("the disk was written to")
	}

	other, fresh := boot(t, tpmtest.Start(t)), newMemory()
	phase(t, other, "something else")
	_, err = Provision(other, fresh, "demo", fewKeys, site.binding)
	wantError(t, err, "not approved to open its keys")
	if !bytes.Equal(fresh.medium, newMemory().medium) {
		t.Error("keys that cannot be opened again were stored")
	}
}

func TestHostKeys(t *testing.T) {
	m, site, st := tpmtest.New(t), newSite(t), newMemory()
	host := Binding{Kind: KindHost}
	dev, err := tpm.Open(m.Spec())
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	v := provision(t, dev, st, fewKeys, host)
	checkSigns(t, getKey(t, hold(t, dev, v), "authority/modern"))
	v, err = Open(dev, st, "demo", fewKeys, host)
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, getKey(t, hold(t, dev, v), "authority/modern"))

	phase(t, dev, enterInitrd)
	_, err = Open(dev, st, "demo", fewKeys, site.binding)
	wantError(t, err, "these keys were made on a host, and this is a box")
	// Relabelling the container is not enough: the policies differ.
	f, err := find(dev, st)
	if err != nil {
		t.Fatal(err)
	}
	f.contents.Kind = KindBox
	srk, err := dev.OpenSRK(f.contents.SRKName)
	if err != nil {
		t.Fatal(err)
	}
	relabelled := &Vault{contents: f.contents, binding: site.binding}
	wantError(t, explain(relabelled.open(srk, f.payload)), "not protected by this site's boot policy")
}
