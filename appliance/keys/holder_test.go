// What a green run does not prove: that decryption takes the same time for good and bad padding (the
// code has no branch on it, which no test here measures), nor anything of a hardware TPM.

package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"signet.internal/tpm"
	"signet.internal/tpm/tpmtest"
)

// hostVault provisions a host's keys: no boot phases, everything else the same.
func hostVault(t testing.TB, spec string, specs []Spec) (*tpm.Device, *Vault) {
	t.Helper()
	dev, err := tpm.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev, provision(t, dev, newMemory(), specs, Binding{Kind: KindHost})
}

// The RA's key decrypts alike whether it is resident or sealed.
func TestDecrypt(t *testing.T) {
	for _, protection := range []string{Resident, Sealed} {
		t.Run(protection, func(t *testing.T) {
			dev, v := hostVault(t, tpmtest.Start(t), []Spec{{NameRA, "rsa-2048", protection}, {"tls", "rsa-2048", Sealed}, {"audit", "ecdsa-p256", Resident}})
			client := hold(t, dev, v)
			ra := getKey(t, client, NameRA)
			pub := ra.Public().(*rsa.PublicKey)
			checkSigns(t, ra)

			sessionKey := []byte("0123456789abcdef")
			good, err := rsa.EncryptPKCS1v15(rand.Reader, pub, sessionKey)
			if err != nil {
				t.Fatal(err)
			}
			opts := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 16}
			got, err := ra.Decrypt(nil, good, opts)
			if err != nil || !bytes.Equal(got, sessionKey) {
				t.Errorf("session key: %x, %v", got, err)
			}

			// Whatever is wrong inside gives a fresh random key of the right length.
			flipped := bytes.Clone(good)
			flipped[100] ^= 1
			longer, err := rsa.EncryptPKCS1v15(rand.Reader, pub, append(sessionKey, 'x'))
			if err != nil {
				t.Fatal(err)
			}
			for name, bad := range map[string][]byte{"flipped bit": flipped, "another key length": longer, "number one": append(make([]byte, 255), 1)} {
				one, err1 := ra.Decrypt(nil, bad, opts)
				two, err2 := ra.Decrypt(nil, bad, opts)
				if err1 != nil || err2 != nil || len(one) != 16 || len(two) != 16 || bytes.Equal(one, two) || bytes.Equal(one, sessionKey) {
					t.Errorf("%s: %x and %x, %v and %v", name, one, two, err1, err2)
				}
			}
			for name, bad := range map[string][]byte{"empty": {}, "short": good[:255], "long": append(bytes.Clone(good), 0), "above the modulus": bytes.Repeat([]byte{0xff}, 256)} {
				if _, err := ra.Decrypt(nil, bad, opts); !errors.Is(err, rsa.ErrDecryption) {
					t.Errorf("%s: %v", name, err)
				}
			}
			for name, o := range map[string]crypto.DecrypterOpts{"no options": nil, "no session key length": &rsa.PKCS1v15DecryptOptions{}, "more than fits": &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 246}, "other options": crypto.SHA256} {
				if _, err := ra.Decrypt(nil, good, o); err == nil {
					t.Errorf("%s: decrypted", name)
				}
			}
			checkOAEP(t, ra)

			// Only the sealed RA key signs SHA-1, for replies to old clients.
			sha1Digest := bytes.Repeat([]byte{7}, 20)
			signature, err := ra.Sign(nil, sha1Digest, crypto.SHA1)
			if isSealed := protection == Sealed; isSealed != (err == nil) {
				t.Errorf("SHA-1 signature of a key that is %s: %v", protection, err)
			} else if isSealed && rsa.VerifyPKCS1v15(pub, crypto.SHA1, sha1Digest, signature) != nil {
				t.Error("the SHA-1 signature does not verify")
			}
			for _, name := range []string{"tls", "audit"} {
				if _, err := getKey(t, client, name).Sign(nil, sha1Digest, crypto.SHA1); err == nil {
					t.Errorf("%s signs SHA-1", name)
				}
			}

			// Only the RA's key decrypts, even where another one could.
			for _, name := range []string{"tls", "audit"} {
				if _, err := getKey(t, client, name).Decrypt(nil, good, opts); err == nil || errors.Is(err, rsa.ErrDecryption) {
					t.Errorf("%s decrypts: %v", name, err)
				}
			}
		})
	}
}

func checkOAEP(t *testing.T, ra *Key) {
	t.Helper()
	pub := ra.Public().(*rsa.PublicKey)
	for _, o := range []*rsa.OAEPOptions{
		{Hash: crypto.SHA1}, {Hash: crypto.SHA256}, {Hash: crypto.SHA256, MGFHash: crypto.SHA1},
		{Hash: crypto.SHA384, Label: []byte("label")}, {Hash: crypto.SHA512, Label: bytes.Repeat([]byte("long label "), 100)},
	} {
		message := []byte("message\x00\x01with anything in it")
		ciphertext, err := rsa.EncryptOAEPWithOptions(rand.Reader, pub, message, o)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ra.Decrypt(nil, ciphertext, o); err != nil || !bytes.Equal(got, message) {
			t.Errorf("OAEP %v/%v: %q, %v", o.Hash, o.MGFHash, got, err)
		}
		wrong := *o
		wrong.Label = []byte("another")
		if _, err := ra.Decrypt(nil, ciphertext, &wrong); !errors.Is(err, rsa.ErrDecryption) {
			t.Errorf("OAEP with another label: %v", err)
		}
		ciphertext[17] ^= 1
		if _, err := ra.Decrypt(nil, ciphertext, o); !errors.Is(err, rsa.ErrDecryption) {
			t.Errorf("OAEP of a changed ciphertext: %v", err)
		}
	}
}

// The two unpaddings against the standard library, over every length and many messages.
func TestUnpaddingAgainstStandardLibrary(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	raw := func(ciphertext []byte) []byte {
		return new(big.Int).Exp(new(big.Int).SetBytes(ciphertext), key.D, key.N).FillBytes(make([]byte, key.Size()))
	}
	for length := 1; length <= key.Size()-11; length++ {
		message := make([]byte, length)
		rand.Read(message)
		ciphertext, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, message)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unpadSessionKey(raw(ciphertext), length); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("session key of %d bytes: %x, %v", length, got, err)
		}
		if length > 8 { // a random key that is shorter may be right
			if got, err := unpadSessionKey(raw(ciphertext), length-1); err != nil || bytes.Equal(got, message[1:]) {
				t.Fatalf("session key of %d bytes read as one shorter: %x, %v", length, got, err)
			}
		}
		if length > key.Size()-2*sha256.Size-2 {
			continue
		}
		if ciphertext, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, message, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := unpadOAEP(raw(ciphertext), crypto.SHA256, crypto.SHA256, nil); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("OAEP message of %d bytes: %x, %v", length, got, err)
		}
	}
	for i := range 10 { // the first bytes are fixed, and at least eight of padding follow
		em := append([]byte{0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 0}, "key"...)
		em[i] ^= 3
		if i >= 2 {
			em[i] = 0
		}
		if got, err := unpadSessionKey(em, 3); err != nil || string(got) == "key" {
			t.Errorf("byte %d wrong: %q, %v", i, got, err)
		}
	}
}

func TestConcurrentClients(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), []Spec{
		{"authority/a", "ecdsa-p256", Resident}, {"authority/b", "ecdsa-p256", Resident}, {"authority/c", "ecdsa-p256", Resident}, {"tls", "ecdsa-p256", Sealed},
	})
	holder := newHolder(t, dev, v)
	var wg sync.WaitGroup
	for range 3 {
		client := newClient(t, holder)
		for _, name := range []string{"authority/a", "authority/b", "authority/c", "tls"} {
			key := getKey(t, client, name)
			wg.Go(func() {
				for range 5 {
					checkSigns(t, key)
				}
			})
		}
	}
	wg.Wait()
}

// A TPM that does not move makes the holder say busy, not wait for ever.
func TestBusy(t *testing.T) {
	m := tpmtest.New(t)
	const sign = 0x15d
	release := make(chan struct{})
	var once sync.Once
	dev, v := hostVault(t, m.Through(func(code uint32) tpmtest.Fault {
		if code == sign {
			<-release
		}
		return tpmtest.Pass
	}), fewKeys)
	client := hold(t, dev, v)
	defer once.Do(func() { close(release) })
	key := getKey(t, client, "authority/modern")
	digest := sha256.Sum256(nil)
	results := make(chan error, 2*maxInFlight)
	for range cap(results) {
		go func() {
			_, err := key.Sign(nil, digest[:], crypto.SHA256)
			results <- err
		}()
	}
	// More is asked for than queue and slots hold, so the first answer is busy.
	if err := <-results; !errors.Is(err, ErrBusy) {
		t.Fatalf("first answer of a stuck TPM: %v", err)
	}
	once.Do(func() { close(release) })
	signed := 0
	for range cap(results) - 1 {
		if err := <-results; err == nil {
			signed++
		} else if !errors.Is(err, ErrBusy) {
			t.Errorf("%v", err)
		}
	}
	if signed == 0 {
		t.Error("nothing was signed in the end")
	}
	checkSigns(t, key)
}

func TestMalformedClientsAreCutOff(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), fewKeys)
	holder := newHolder(t, dev, v)
	length := func(n uint32, b ...byte) []byte { return append(binary.BigEndian.AppendUint32(nil, n), b...) }
	for name, b := range map[string][]byte{
		"too short":         length(5, 1, opList, 0, 0, 0),
		"too long":          length(maxFrame+1, 1, opList),
		"cut off":           length(20, 1, opList, 0, 0),
		"other version":     length(6, 9, opList, 0, 0, 0, 0),
		"unknown operation": length(6, 1, 99, 0, 0, 0, 0),
		"list with body":    length(7, 1, opList, 0, 0, 0, 0, 0),
		"empty public":      length(6, 1, opPublic, 0, 0, 0, 0),
		"short sign":        length(9, 1, opSign, 0, 0, 0, 0, 1, 'x', 2),
		"short create":      length(6+2+2, 1, opCreate, 0, 0, 0, 0, 1, 'x', 1, 'x'),
		"create with value": length(6+6+4, 1, opCreate, 0, 0, 0, 0, 1, 'x', 1, 'x', 1, 'x', 0, 0, 1, 'x'),
		"delete with value": length(6+2+4, 1, opDelete, 0, 0, 0, 0, 1, 'x', 0, 0, 1, 'x'),
		"trailing certify":  length(6+2+3+1, 1, opCertify, 0, 0, 0, 0, 1, 'x', 0, 0, 0, 0),
		"trailing decrypt":  length(6+1+1+3+2+3+3+1, append([]byte{1, opDecrypt, 0, 0, 0, 0, 1, 'x'}, make([]byte, 12)...)...),
	} {
		ours, theirs := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- holder.Serve(theirs) }()
		go func() {
			ours.Write(b)
			ours.Close()
		}()
		if err := <-served; !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	checkSigns(t, getKey(t, newClient(t, holder), "authority/modern"))
}

// The keys are in one buffer, which the caller can wipe.
func TestReadHandover(t *testing.T) {
	for _, n := range []int{0, 1, 5000, maxHandover} {
		want := bytes.Repeat([]byte{7}, n)
		got, err := ReadHandover(iotest.HalfReader(bytes.NewReader(want)))
		if err != nil || !bytes.Equal(got, want) || cap(got) != maxHandover+1 {
			t.Errorf("%d bytes: got %d of %d, %v", n, len(got), cap(got), err)
		}
	}
	if _, err := ReadHandover(bytes.NewReader(make([]byte, maxHandover+1))); !errors.Is(err, errHandover) {
		t.Errorf("too long: %v", err)
	}
	broken := errors.New("broken")
	got, err := ReadHandover(io.MultiReader(strings.NewReader("secret"), iotest.ErrReader(broken)))
	if string(got) != "secret" || !errors.Is(err, broken) {
		t.Errorf("broken off: %q, %v", got, err)
	}
}

// The holder answers for a whole boot: no request may make it run out of memory or end.
func TestRequestsThatWouldEndTheHolder(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), []Spec{{"authority/devices", "rsa-2048", Resident}, {"ra", "rsa-2048", Sealed}})
	client := hold(t, dev, v)
	digest := sha256.Sum256(nil)
	for _, name := range []string{"authority/devices", "ra"} {
		key := getKey(t, client, name)
		for _, salt := range []int{math.MaxInt32, 1 << 20, 33, -2, math.MinInt32} {
			if _, err := key.Sign(nil, digest[:], &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256}); err == nil || !strings.Contains(err.Error(), "PSS salt") {
				t.Errorf("%s: salt of %d bytes: %v", name, salt, err)
			}
		}
	}
	if _, err := getKey(t, client, "ra").Sign(nil, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}); err != nil {
		t.Errorf("salt of the hash's length: %v", err)
	}
	if body, err := recovered(func() ([]byte, error) { panic("x") }); body != nil || err == nil {
		t.Errorf("a panic gives %x, %v", body, err)
	}
}

// A client that asks and never reads is held back, and the others are served.
func TestClientThatNeverReads(t *testing.T) {
	dev, v := hostVault(t, tpmtest.Start(t), fewKeys)
	holder := newHolder(t, dev, v)
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- holder.Serve(theirs) }()
	request, err := frame{code: opList}.encode()
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan int)
	go func() {
		n := 0
		for ; n < 10*maxUnanswered; n++ {
			if _, err := ours.Write(request); err != nil {
				break
			}
		}
		written <- n
	}()
	client := newClient(t, holder)
	for range 100 {
		checkServed(t, client, "tls")
	}
	checkServed(t, client, "authority/modern")
	ours.Close()
	// One frame may be read ahead, and as many be answered as busy as slots were taken: none here.
	if n := <-written; n > maxUnanswered+1 {
		t.Errorf("%d requests were read from a client that takes no answers", n)
	}
	<-served
}

// checkServed has a key sign. While another client's requests come in they take slots, so that this one
// may be told to come back, but not for ever.
func checkServed(t *testing.T, c *Client, name string) {
	t.Helper()
	digest := sha256.Sum256([]byte(name))
	var err error
	for range 10_000 {
		var k *Key
		if k, err = c.Key(name); err == nil {
			_, err = k.Sign(nil, digest[:], crypto.SHA256)
		}
		if !errors.Is(err, ErrBusy) {
			break
		}
	}
	if err != nil {
		t.Fatalf("key %q: %v", name, err)
	}
}

func TestClientWithoutHolder(t *testing.T) {
	for name, answer := range map[string][]byte{
		"closes":                 nil,
		"garbage":                []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"response to nothing":    {0, 0, 0, 6, 1, 0, 9, 9, 9, 9},
		"a list that ends early": {0, 0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 1},
	} {
		ours, theirs := net.Pipe()
		go func() {
			if _, err := readFrame(theirs); err != nil {
				t.Error(err)
			}
			theirs.Write(answer)
			theirs.Close()
		}()
		c := NewClient(ours)
		if _, err := c.List(); err == nil {
			t.Errorf("%s: no error", name)
		}
		c.Close()
		if _, err := c.Key("tls"); err == nil {
			t.Errorf("%s: a closed client works", name)
		}
	}
}

// The holder as a process of its own, with nothing but inherited descriptors: this test runs itself.
const holderProcess = "SIGNET_TEST_HOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holderProcess) != "" {
		if err := serveInherited(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveInherited() error {
	if err := HardenProcess(); err != nil {
		return err
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); dumpable != 0 || err != nil {
		return fmt.Errorf("process is dumpable: %d, %v", dumpable, err)
	}
	dev, err := tpm.OpenFile(os.NewFile(3, "tpm"))
	if err != nil {
		return err
	}
	defer dev.Close()
	secrets, err := ReadHandover(os.NewFile(5, "handover"))
	if err != nil {
		return err
	}
	holder, err := NewHolder(dev, secrets, nil)
	if err != nil {
		return err
	}
	conn, err := net.FileConn(os.NewFile(4, "client"))
	if err != nil {
		return err
	}
	return holder.Serve(conn)
}

func TestHolderInItsOwnProcess(t *testing.T) {
	m := tpmtest.New(t)
	dev, v := hostVault(t, m.Spec(), fewKeys)
	handover, err := v.Handover()
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
	// swtpm's socket stands in for /dev/tpmrm0: both take a command by write and answer by read.
	device, err := net.Dial("unix", strings.TrimPrefix(m.Spec(), "swtpm:"))
	if err != nil {
		t.Fatal(err)
	}
	deviceFile, err := device.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	device.Close()
	l, err := net.Listen("unix", filepath.Join(tpmtest.SocketDir(t), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	theirsFile, err := theirs.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderProcess+"=1")
	cmd.ExtraFiles = []*os.File{deviceFile, theirsFile, r}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if _, err := w.Write(handover); err != nil {
		t.Fatal(err)
	}
	w.Close()
	client := NewClient(ours)
	for _, s := range fewKeys {
		checkSigns(t, getKey(t, client, s.Name))
	}
	client.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("holder process: %v", err)
	}
}

func TestOpenHost(t *testing.T) {
	m, path := tpmtest.New(t), filepath.Join(t.TempDir(), "keys.img")
	open := func() (*Host, *os.File) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		host, err := OpenHost(m.Spec(), file, "demo", fewKeys)
		if err != nil {
			t.Fatal(err)
		}
		return host, file
	}
	host, file := open()
	first := getKey(t, host.Client, "authority/modern")
	checkSigns(t, first)
	if host.Info.Manufacturer != "IBM" || host.Vault.Initialised() {
		t.Errorf("info %+v, initialised %v", host.Info, host.Vault.Initialised())
	}
	if err := host.Vault.MarkInitialised(); err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	m.Reboot()
	host, file = open()
	defer file.Close()
	defer host.Close()
	again := getKey(t, host.Client, "authority/modern")
	checkSigns(t, again)
	if !first.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(again.Public()) || !host.Vault.Initialised() {
		t.Error("the second start found other keys")
	}
}

func TestClosedVault(t *testing.T) {
	_, v := hostVault(t, tpmtest.Start(t), fewKeys)
	v.Close()
	if err := v.MarkInitialised(); !errors.Is(err, errClosed) {
		t.Errorf("MarkInitialised: %v", err)
	}
	if _, err := v.Handover(); !errors.Is(err, errClosed) {
		t.Errorf("Handover: %v", err)
	}
	if v.DiskKey() != nil {
		t.Error("a closed vault has a disk key")
	}
}

func BenchmarkSign(b *testing.B) {
	dev, v := hostVault(b, tpmtest.Start(b), allKeys)
	client := hold(b, dev, v)
	digest := sha256.Sum256(nil)
	for _, name := range []string{"authority/devices", "authority/modern", "ra", "tls"} {
		k := getKey(b, client, name)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := k.Sign(nil, digest[:], crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
