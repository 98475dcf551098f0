// What a green run does not prove: that a hardware TPM has these algorithms, answers in bearable
// time or keeps NV through a real power cut, that the kernel's resource manager is happy with the
// number of objects held, or that anything on the bus between CPU and TPM is really encrypted.

package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"signet.internal/tpm/tpmtest"
)

// testPCR can be reset without a reboot.
const testPCR = 16

var testAuth = []byte("0123456789abcdef0123456789abcdef")

func open(t testing.TB, spec string) *Device {
	t.Helper()
	d, err := Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func makeSRK(t testing.TB, d *Device) *SRK {
	t.Helper()
	srk, err := d.MakeSRK()
	if err != nil {
		t.Fatal(err)
	}
	return srk
}

func policyKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// approveNow approves the present value of testPCR for ref.
func approveNow(t testing.TB, d *Device, key crypto.Signer, ref string) PolicySignature {
	t.Helper()
	value, err := d.ReadPCR(testPCR)
	if err != nil {
		t.Fatal(err)
	}
	policy := PCRPolicyDigest(testPCR, value)
	sig, err := SignPolicy(key, policy, ref)
	if err != nil {
		t.Fatal(err)
	}
	return PolicySignature{Ref: ref, Policy: policy, Signature: sig}
}

func resetPCR(t testing.TB, d *Device) {
	t.Helper()
	err := d.do(func(tp transport.TPM) error {
		_, err := tpm2.PCRReset{PCRHandle: tpm2.TPMHandle(testPCR)}.Execute(tp)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInfoAndPreflightOfFreshTPM(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	info, err := d.Info()
	if err != nil {
		t.Fatal(err)
	}
	if info.Family != "2.0" || info.Manufacturer != "IBM" || !info.SHA256Bank || info.InLockout || info.OwnerAuthSet || info.LockoutAuthSet || info.MaxAuthFail == 0 {
		t.Errorf("info of a fresh swtpm: %+v", info)
	}
	if found := d.Preflight(); len(found) != 0 {
		t.Errorf("preflight of a fresh TPM: %+v", found)
	}
	makeSRK(t, d)
	if err := d.WriteMarker(make([]byte, MarkerSize)); err != nil {
		t.Fatal(err)
	}
	if found := d.Preflight(); len(found) != 0 {
		t.Errorf("preflight of a provisioned TPM: %+v", found)
	}
}

// An answer that this package or go-tpm stumbles over is an error, and the next job is done.
func TestPanicInAJob(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	if err := d.do(func(transport.TPM) error { panic("index out of range") }); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if _, err := d.ReadPCR(testPCR); err != nil {
		t.Error(err)
	}
}

func TestPreflightFindings(t *testing.T) {
	setAuth := func(h tpm2.TPMHandle) func(transport.TPM) error {
		return func(tp transport.TPM) error {
			_, err := tpm2.HierarchyChangeAuth{AuthHandle: h, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("foreign")}}.Execute(tp)
			return err
		}
	}
	for _, c := range []struct {
		name        string
		do          func(transport.TPM) error
		newKeysOnly bool
		want        string
	}{
		{"owner password", setAuth(tpm2.TPMRHOwner), true, "the TPM has an owner password that this box does not know"},
		{"lockout password", setAuth(tpm2.TPMRHLockout), true, "the TPM has a lockout password that this box does not know"},
		{"SRK handle", persistOther, false, "another key sits where this box keeps its storage root key (TPM handle 0x81005347)"},
		{"NV index", func(tp transport.TPM) error {
			pub := markerPublic()
			pub.DataSize = 8
			_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(pub)}.Execute(tp)
			return err
		}, false, "other data sits where this box keeps its marker (TPM NV index 0x1815347)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, tpmtest.Start(t))
			if err := d.do(c.do); err != nil {
				t.Fatal(err)
			}
			found := d.Preflight()
			if len(found) != 1 || found[0].What != c.want || found[0].Mend == "" || found[0].NewKeysOnly != c.newKeysOnly {
				t.Errorf("findings %+v, want one: %s", found, c.want)
			}
		})
	}
}

// A TPM that others' wrong passwords have locked is a finding, and the keys here work all the same.
func TestLockedTPM(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key, _ := makeKey(t, srk, "ecdsa-p256", UsageSign, Policy{Auth: true})
	template := sealTemplate(nil)
	template.ObjectAttributes.NoDA, template.ObjectAttributes.UserWithAuth = false, true
	info, err := d.Info()
	if err != nil {
		t.Fatal(err)
	}
	err = d.do(func(tp transport.TPM) error {
		b, err := srk.create(tp, template, []byte("right"), []byte("secret"))
		if err != nil {
			return err
		}
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
		if err != nil {
			return err
		}
		name, err := tpm2.ObjectName(pub)
		if err != nil {
			return err
		}
		h, err := srk.load(tp, b, *name)
		if err != nil {
			return err
		}
		defer flush(tp, h)
		for range info.MaxAuthFail {
			_, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: h, Name: *name, Auth: tpm2.PasswordAuth([]byte("wrong"))}}.Execute(tp)
			if !errors.Is(err, tpm2.TPMRCAuthFail) {
				return fmt.Errorf("wrong password: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := d.Preflight()
	want := fmt.Sprintf("the TPM is locked after %d wrong passwords", info.MaxAuthFail)
	if len(found) != 1 || found[0].What != want || found[0].Mend == "" || !found[0].NewKeysOnly {
		t.Errorf("findings %+v, want: %s", found, want)
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Errorf("signing while locked: %v", err)
	}
}

// Passwords that somebody set after provisioning keep no key from being found and used.
func TestForeignPasswordsAfterProvisioning(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	policy := Policy{Auth: true}
	key, _ := makeKey(t, srk, "ecdsa-p256", UsageSign, policy)
	sealed, err := srk.Seal([]byte("secret"), policy)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteMarker(make([]byte, MarkerSize)); err != nil {
		t.Fatal(err)
	}
	err = d.do(func(tp transport.TPM) error {
		for _, h := range []tpm2.TPMHandle{tpm2.TPMRHOwner, tpm2.TPMRHLockout, tpm2.TPMRHEndorsement} {
			if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: h, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("foreign")}}).Execute(tp); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := d.Preflight()
	for _, f := range found {
		if !f.NewKeysOnly {
			t.Errorf("stops the box: %s", f.What)
		}
	}
	if len(found) != 2 {
		t.Errorf("findings %+v", found)
	}
	if marker, err := d.ReadMarker(); err != nil || marker == nil {
		t.Errorf("marker: %x, %v", marker, err)
	}
	again, err := d.OpenSRK(srk.Name())
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := again.Unseal(sealed, policy); err != nil || string(secret) != "secret" {
		t.Errorf("unsealing: %q, %v", secret, err)
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Errorf("signing: %v", err)
	}
}

// persistOther puts a key made with another template at SRKHandle.
func persistOther(tp transport.TPM) error {
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.RSASRKTemplate)}.Execute(tp)
	if err != nil {
		return err
	}
	defer flush(tp, rsp.ObjectHandle)
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, PersistentHandle: SRKHandle,
	}.Execute(tp)
	return err
}

func evictSRK(tp transport.TPM) error {
	pub, err := tpm2.ReadPublic{ObjectHandle: SRKHandle}.Execute(tp)
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: SRKHandle, Name: pub.Name}, PersistentHandle: SRKHandle,
	}.Execute(tp)
	return err
}

func TestStorageRootKeyIsTheRecordedOne(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	name := makeSRK(t, d).Name()
	if again := makeSRK(t, d).Name(); !bytes.Equal(again, name) {
		t.Errorf("second MakeSRK: %x, first %x", again, name)
	}
	if _, err := d.OpenSRK(name); err != nil {
		t.Errorf("recorded key: %v", err)
	}

	// Gone from its handle, it is derived again, to the same Name.
	if err := d.do(evictSRK); err != nil {
		t.Fatal(err)
	}
	if srk, err := d.OpenSRK(name); err != nil || !bytes.Equal(srk.Name(), name) {
		t.Errorf("evicted key: %v", err)
	}

	// An impostor at its handle is refused, both against the record and at provisioning.
	if err := d.do(evictSRK); err != nil {
		t.Fatal(err)
	}
	if err := d.do(persistOther); err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenSRK(name); !errors.Is(err, ErrHandleTaken) {
		t.Errorf("impostor: %v", err)
	}
	if _, err := d.MakeSRK(); !errors.Is(err, ErrHandleTaken) {
		t.Errorf("provisioning over an impostor: %v", err)
	}

	// Another TPM is named as such and stays as it was.
	other := open(t, tpmtest.Start(t))
	if _, err := other.OpenSRK(name); !errors.Is(err, ErrForeignTPM) {
		t.Errorf("foreign TPM: %v", err)
	}
	handles, err := get(other, func(tp transport.TPM) ([]tpm2.TPMHandle, error) { return listHandles(tp, 0x81000000) })
	if err != nil || len(handles) != 0 {
		t.Errorf("foreign TPM has persistent handles %x, %v", handles, err)
	}
}

func TestUnsealOnlyWhereApproved(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key := policyKey(t)
	extend := func(event string) {
		t.Helper()
		if err := d.ExtendPCR(testPCR, event); err != nil {
			t.Fatal(err)
		}
	}
	resetPCR(t, d)
	extend("good image")
	good := approveNow(t, d, key, "epoch:1")
	p := Policy{Key: &key.PublicKey, PCR: testPCR, Ref: "epoch:1", Signatures: []PolicySignature{good}}
	secret := []byte("thirty-two bytes of root secret.")
	blob, err := srk.Seal(secret, p)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, p Policy, want error) {
		t.Helper()
		got, err := srk.Unseal(blob, p)
		if !errors.Is(err, want) || (want == nil) != bytes.Equal(got, secret) {
			t.Errorf("%s: %q, %v; want %v", what, got, err, want)
		}
	}
	check("approved", p, nil)
	check("approved, from the kept ticket", p, nil)

	extend("next phase")
	check("after the phase moved on", p, ErrMeasurement)
	resetPCR(t, d)
	extend("evil image")
	check("another image", p, ErrMeasurement)

	// An update is another value approved for the same ref.
	resetPCR(t, d)
	extend("newer image")
	update := p
	update.Signatures = []PolicySignature{good, approveNow(t, d, key, "epoch:1")}
	check("newer image without approval", p, ErrMeasurement)
	check("newer image with approval", update, nil)

	wrongRef := p
	wrongRef.Signatures = []PolicySignature{approveNow(t, d, key, "use")}
	check("approved for something else", wrongRef, ErrMeasurement)
	relabelled := p
	relabelled.Signatures = []PolicySignature{approveNow(t, d, key, "use")}
	relabelled.Signatures[0].Ref = "epoch:1"
	check("approval with its ref rewritten", relabelled, ErrMeasurement)
	other := policyKey(t)
	forged := p
	forged.Signatures = []PolicySignature{approveNow(t, d, other, "epoch:1")}
	check("approved by another key", forged, ErrMeasurement)

	// The object's own policy is compared before the TPM is asked.
	check("other policy key", Policy{Key: &other.PublicKey, PCR: testPCR, Ref: "epoch:1", Signatures: forged.Signatures}, ErrPolicy)
	check("other ref", Policy{Key: &key.PublicKey, PCR: testPCR, Ref: "epoch:2", Signatures: []PolicySignature{approveNow(t, d, key, "epoch:2")}}, ErrPolicy)
	check("host policy", Policy{Auth: true}, ErrPolicy)
	hostBlob, err := srk.Seal(secret, Policy{Auth: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := srk.Unseal(hostBlob, Policy{Auth: true}); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("host blob: %v", err)
	}
	if _, err := srk.Unseal(hostBlob, update); !errors.Is(err, ErrPolicy) {
		t.Errorf("host blob under a box's policy: %v", err)
	}
	checkTidy(t, d)
}

// checkTidy checks that no session is left, that nothing but the keys kept loaded is, and that
// nothing counted against the lockout.
func checkTidy(t testing.TB, d *Device) {
	t.Helper()
	err := d.do(func(tp transport.TPM) error {
		kept := 0
		if d.kept != nil {
			kept = 1
		}
		for first, most := range map[tpm2.TPMHandle]int{0x80000000: len(d.loaded), 0x02000000: kept, 0x03000000: 0} {
			handles, err := listHandles(tp, first)
			if err != nil {
				return err
			}
			if len(handles) > most {
				return fmt.Errorf("%d handles from %#x on are loaded, want %d", len(handles), uint32(first), most)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	info, err := d.Info()
	if err != nil || info.LockoutCounter != 0 {
		t.Errorf("lockout counter %d, %v", info.LockoutCounter, err)
	}
}

func TestMarkerIsWrittenOnce(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	if marker, err := d.ReadMarker(); marker != nil || err != nil {
		t.Fatalf("fresh TPM: %x, %v", marker, err)
	}
	want := bytes.Repeat([]byte{0xa5}, MarkerSize)
	if err := d.WriteMarker(want); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteMarker(make([]byte, MarkerSize)); !errors.Is(err, ErrMarkerWritten) {
		t.Errorf("second write: %v", err)
	}
	d.Close()
	m.Reboot()
	d = open(t, m.Spec())
	if got, err := d.ReadMarker(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a power cut: %x, %v", got, err)
	}
}

// scripted answers each command with the next response code, then with success.
type scripted struct {
	codes []tpm2.TPMRC
	sent  int
}

func (s *scripted) Send([]byte) ([]byte, error) {
	s.sent++
	code := tpm2.TPMRCSuccess
	if len(s.codes) > 0 {
		code, s.codes = s.codes[0], s.codes[1:]
	}
	return []byte{0x80, 0x01, 0, 0, 0, 10, byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code)}, nil
}

func (s *scripted) Close() error { return nil }

func TestPutOffCommandsAreRepeated(t *testing.T) {
	s := &scripted{codes: []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}}
	d := newDevice(s)
	defer d.Close()
	err := d.do(func(tp transport.TPM) error {
		_, err := tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}.Execute(tp)
		return err
	})
	if err != nil || s.sent != 5 {
		t.Errorf("%d commands sent, %v", s.sent, err)
	}
	s.codes, s.sent = []tpm2.TPMRC{tpm2.TPMRCFailure}, 0
	err = d.do(func(tp transport.TPM) error {
		_, err := tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}.Execute(tp)
		return err
	})
	if !errors.Is(err, tpm2.TPMRCFailure) || s.sent != 1 {
		t.Errorf("a failure is repeated: %d commands sent, %v", s.sent, err)
	}
}

func TestFullQueueIsBusy(t *testing.T) {
	d := newDevice(&scripted{})
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_ = d.do(func(transport.TPM) error { close(started); <-release; return nil })
	}()
	<-started
	for range queueLength {
		d.jobs <- job{run: func(transport.TPM) error { return nil }, errc: make(chan error, 1)}
	}
	if err := d.do(func(transport.TPM) error { return nil }); !errors.Is(err, ErrBusy) {
		t.Errorf("full queue: %v", err)
	}
	close(release)
	wg.Wait()
	d.Close()
	if err := d.do(func(transport.TPM) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("closed device: %v", err)
	}
}
