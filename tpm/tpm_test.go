// What a green run does not prove: that a hardware TPM has these algorithms, answers in bearable
// time or keeps NV through a real power cut, that the kernel's resource manager is happy with the
// number of objects held, or that anything on the bus between CPU and TPM is really encrypted.

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
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

func TestPreflightFindings(t *testing.T) {
	setAuth := func(h tpm2.TPMHandle) func(transport.TPM) error {
		return func(tp transport.TPM) error {
			_, err := tpm2.HierarchyChangeAuth{AuthHandle: h, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("foreign")}}.Execute(tp)
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func(transport.TPM) error
		want string
	}{
		{"owner password", setAuth(tpm2.TPMRHOwner), "the TPM has an owner password that this box does not know"},
		{"lockout password", setAuth(tpm2.TPMRHLockout), "the TPM has a lockout password that this box does not know"},
		{"SRK handle", persistOther, "another key sits where this box keeps its storage root key (TPM handle 0x81005347)"},
		{"NV index", func(tp transport.TPM) error {
			pub := markerPublic()
			pub.DataSize = 8
			_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(pub)}.Execute(tp)
			return err
		}, "other data sits where this box keeps its marker (TPM NV index 0x1815347)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, tpmtest.Start(t))
			if err := d.do(c.do); err != nil {
				t.Fatal(err)
			}
			found := d.Preflight()
			if len(found) != 1 || found[0].What != c.want || found[0].Mend == "" {
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
	if len(found) != 1 || found[0].What != want || found[0].Mend == "" {
		t.Errorf("findings %+v, want: %s", found, want)
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Errorf("signing while locked: %v", err)
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
		for first, most := range map[tpm2.TPMHandle]int{0x80000000: len(d.loaded), 0x02000000: 0, 0x03000000: 0} {
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

func usePolicy(t testing.TB, d *Device, key *rsa.PrivateKey) Policy {
	return Policy{Key: &key.PublicKey, PCR: testPCR, Ref: "use", Signatures: []PolicySignature{approveNow(t, d, key, "use")}, Auth: true}
}

func makeKey(t testing.TB, srk *SRK, algorithm string, usage Usage, p Policy) (*Key, Blob) {
	t.Helper()
	blob, err := srk.CreateKey(algorithm, usage, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	key, err := srk.Key(blob, algorithm, usage, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	return key, blob
}

func TestKeysSign(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	d256, d384 := sha256.Sum256([]byte("message")), sha512.Sum384([]byte("message"))
	for _, algorithm := range []string{"rsa-2048", "rsa-3072", "ecdsa-p256", "ecdsa-p384"} {
		t.Run(algorithm, func(t *testing.T) {
			key, _ := makeKey(t, srk, algorithm, UsageSign, p)
			switch pub := key.Public().(type) {
			case *rsa.PublicKey:
				sig, err := key.Sign(d256[:], crypto.SHA256, SchemePKCS1v15)
				if err != nil || rsa.VerifyPKCS1v15(pub, crypto.SHA256, d256[:], sig) != nil {
					t.Errorf("PKCS #1 v1.5: %v", err)
				}
				sig, err = key.Sign(d384[:], crypto.SHA384, SchemePSS)
				if err != nil || rsa.VerifyPSS(pub, crypto.SHA384, d384[:], sig, nil) != nil {
					t.Errorf("PSS: %v", err)
				}
				if _, err := key.DecryptRaw(make([]byte, pub.Size())); !errors.Is(err, ErrAlgorithm) {
					t.Errorf("a signing key decrypts: %v", err)
				}
			case *ecdsa.PublicKey:
				digest, hash := d256[:], crypto.SHA256
				if algorithm == "ecdsa-p384" {
					digest, hash = d384[:], crypto.SHA384
				}
				sig, err := key.Sign(digest, hash, SchemeECDSA)
				if err != nil || !ecdsa.VerifyASN1(pub, digest, sig) {
					t.Errorf("ECDSA: %v", err)
				}
				if _, err := key.Sign(digest, hash, SchemePKCS1v15); !errors.Is(err, ErrAlgorithm) {
					t.Errorf("RSA scheme with an ECDSA key: %v", err)
				}
			}
			checkTidy(t, d)
		})
	}
	if _, err := srk.CreateKey("rsa-4096", UsageSign, p, testAuth); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("rsa-4096, which libtpms lacks: %v", err)
	}
	if _, err := srk.CreateKey("ecdsa-p256", UsageSign, p, []byte{0: 1, 31: 0}); err == nil {
		t.Error("binary authorisation value accepted")
	}
}

func TestKeysNeedApprovalAndAuth(t *testing.T) {
	m := tpmtest.New(t)
	d := open(t, m.Spec())
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	key, blob := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	digest := sha256.Sum256([]byte("message"))
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Fatal(err)
	}
	wrong, err := srk.Key(blob, "ecdsa-p256", UsageSign, p, bytes.Repeat([]byte("f"), 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrAuth) {
		t.Errorf("wrong authorisation value: %v", err)
	}

	// Password and policy without the authorisation value do not do it, in the TPM's own opinion.
	err = key.with(func(tp transport.TPM, session func(tpm2.AuthOption) tpm2.AuthHandle) error {
		handle := session(encryptIn)
		handle.Auth = tpm2.PasswordAuth(testAuth)
		_, err := tpm2.Sign{
			KeyHandle: handle, Digest: tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(tp)
		return err
	})
	if !errors.Is(err, ErrPolicy) {
		t.Errorf("password only: %v", err)
	}
	noAuth := *key
	noAuth.policy.Auth = false
	if _, err := noAuth.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrPolicy) {
		t.Errorf("policy without authorisation value: %v", err)
	}

	if err := d.ExtendPCR(testPCR, "another image"); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrMeasurement) {
		t.Errorf("after the PCR moved: %v", err)
	}
	resetPCR(t, d)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); err != nil {
		t.Errorf("back in the approved state: %v", err)
	}
	checkTidy(t, d)
	d.Close()
	m.Reboot()
	checkTidy(t, open(t, m.Spec()))
}

func TestImplantedKeysAreRefused(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	p := usePolicy(t, d, policyKey(t))
	_, honest := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	digest, err := p.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"usable by password":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true },
		"exportable":           func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false },
		"imported":             func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"counts for lockout":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false },
		"another policy":       func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = bytes.Repeat([]byte{1}, 32) },
		"decrypts too":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"an attestation key":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true },
		"admin role by policy": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.AdminWithPolicy = true },
	} {
		pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](honest.Public)
		if err != nil {
			t.Fatal(err)
		}
		change(pub)
		b := Blob{Public: tpm2.Marshal(pub), Private: honest.Private}
		if _, err := srk.Key(b, "ecdsa-p256", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string]Blob{"empty": {}, "garbage": {Public: []byte("garbage")}, "trailing": {Public: append(bytes.Clone(honest.Public), 0)}} {
		if _, err := srk.Key(b, "ecdsa-p256", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := srk.Key(honest, "rsa-2048", UsageSign, p, testAuth); !errors.Is(err, ErrPolicy) {
		t.Errorf("another algorithm: %v", err)
	}
	// A public area that is as it should be, with another key's private part, does not load.
	_, second := makeKey(t, srk, "ecdsa-p256", UsageSign, p)
	mixed, err := srk.Key(Blob{Public: honest.Public, Private: second.Private}, "ecdsa-p256", UsageSign, p, testAuth)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mixed.Sign(digest, crypto.SHA256, SchemeECDSA); err == nil {
		t.Error("mixed halves sign")
	}
}

func TestDecryptRaw(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key, _ := makeKey(t, srk, "rsa-2048", UsageSignDecrypt, usePolicy(t, d, policyKey(t)))
	pub := key.Public().(*rsa.PublicKey)
	ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, pub, []byte("content key"))
	if err != nil {
		t.Fatal(err)
	}
	padded, err := key.DecryptRaw(ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	if len(padded) != 256 || padded[0] != 0 || padded[1] != 2 || !bytes.HasSuffix(padded, []byte("\x00content key")) {
		t.Errorf("padded message %x", padded)
	}
	digest := sha256.Sum256(nil)
	sig, err := key.Sign(digest[:], crypto.SHA256, SchemePKCS1v15)
	if err != nil || rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) != nil {
		t.Errorf("signing with it: %v", err)
	}
}

// An attestation key refuses digests of others and signs a quote.
func TestAttestationKeyQuotes(t *testing.T) {
	d := open(t, tpmtest.Start(t))
	srk := makeSRK(t, d)
	key, _ := makeKey(t, srk, "ecdsa-p256", UsageAttest, usePolicy(t, d, policyKey(t)))
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(digest[:], crypto.SHA256, SchemeECDSA); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("signs a foreign digest: %v", err)
	}
	var quote *tpm2.QuoteResponse
	err := key.with(func(tp transport.TPM, session func(tpm2.AuthOption) tpm2.AuthHandle) (err error) {
		quote, err = tpm2.Quote{
			SignHandle: session(encryptIn), QualifyingData: tpm2.TPM2BData{Buffer: []byte("nonce")},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selectPCR(testPCR),
		}.Execute(tp)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := encodeSignature(quote.Signature)
	sum := sha256.Sum256(quote.Quoted.Bytes())
	if err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), sum[:], sig) {
		t.Errorf("quote does not verify: %v", err)
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

func BenchmarkSign(b *testing.B) {
	d := open(b, tpmtest.Start(b))
	srk := makeSRK(b, d)
	p := usePolicy(b, d, policyKey(b))
	digest := sha256.Sum256([]byte("message"))
	for algorithm, scheme := range map[string]Scheme{"rsa-2048": SchemePKCS1v15, "rsa-3072": SchemePKCS1v15, "ecdsa-p256": SchemeECDSA} {
		key, _ := makeKey(b, srk, algorithm, UsageSign, p)
		b.Run(algorithm, func(b *testing.B) {
			for b.Loop() {
				if _, err := key.Sign(digest[:], crypto.SHA256, scheme); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
