package appliance_test

// Enrollments by the whole service on a host, in a process of its own: HTTP, store on a real disk, CA keys
// in a software TPM, against a peer whose CA key is a file. Requests are made beforehand, but devices
// share the processors with the service, and so does whatever else the machine does: enrollments per
// second compare within one run at best. The processor time of each process says more: the service's
// (its key holder is in it), the software TPM's, and the devices'. Nothing here says how fast a hardware
// TPM signs.

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/sys/unix"

	"signet.internal/appliance/cms"
	"signet.internal/tpm/tpmtest"
)

func BenchmarkEnrollment(b *testing.B) {
	swtpm := tpmtest.New(b)
	s, pid := startApart(b, swtpm.Spec())
	s.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 32
	who := map[string]int{"service": pid, "tpm": swtpm.PID()}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	// corp is of an RSA-2048 authority, modern of an ECDSA P-256 one.
	for name, profile := range map[string]string{"rsa2048": "corp", "p256": "modern"} {
		scep := &scepBench{url: s.ready.SCEPPlain + "/scep/" + profile, client: s.client, key: key, challenge: profile + "-demo-challenge", who: who}
		b.Run("SCEP/signet-"+name, scep.run)
		est := &estBench{url: s.ready.EST + "/.well-known/est/" + profile + "/simpleenroll", client: s.client, password: profile + "-demo-password", who: who}
		b.Run("EST/signet-"+name, est.run)
	}
	b.Run("SCEP/micromdm-rsa2048-file", func(b *testing.B) {
		url, pid := startMicromdm(b)
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
		(&scepBench{url: url, client: client, key: key, challenge: "bench", who: map[string]int{"service": pid}}).run(b)
	})
}

// devices is which device comes next, over all benchmarks: none enrolls twice.
type devices struct{ n atomic.Int64 }

func (d *devices) next() string { return fmt.Sprintf("device-%d.example.com", d.n.Add(1)) }

// startApart runs the demo site in a process of its own.
func startApart(b *testing.B, spec string) (s *service, pid int) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	ready := filepath.Join(b.TempDir(), "ready.json")
	cmd := exec.Command(self, "host", b.TempDir(), spec, "127.0.0.1:0", ready)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			said, _ := os.ReadFile(log.Name())
			b.Errorf("the service: %v\n%s", err, said)
		}
		log.Close()
	})
	s = &service{}
	s.awaitReady(b, ready, ended)
	return s, cmd.Process.Pid
}

// processorTime is what all threads of a process used so far.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil { // clock_getcpuclockid(3), CPUCLOCK_SCHED
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// inParallel has 1 and then 32 devices at a time enroll. make prepares one device's request, outside
// of what is measured; send has it enrolled. The processor time of this process, which is the devices',
// and of those in who is reported.
func inParallel(b *testing.B, who map[string]int, make func(cn string) ([]byte, error), send func([]byte) error) {
	who = maps.Clone(who)
	who["devices"] = os.Getpid()
	var all devices
	for _, workers := range []int{1, 32} {
		b.Run(fmt.Sprintf("parallel=%d", workers), func(b *testing.B) {
			prepare := func(n int) chan []byte {
				work := newQueue(n)
				for range n {
					request, err := make(all.next())
					if err != nil {
						b.Fatal(err)
					}
					work <- request
				}
				close(work)
				return work
			}
			enroll := func(work chan []byte) (refused int64) {
				var group sync.WaitGroup
				var count atomic.Int64
				for range workers {
					group.Go(func() {
						for request := range work {
							n, err := untilEnrolled(request, send)
							count.Add(n)
							if err != nil {
								b.Error(err)
							}
						}
					})
				}
				group.Wait()
				return count.Load()
			}
			enroll(prepare(workers)) // connections are open and the secret is known from here on
			work := prepare(b.N)
			before := map[string]time.Duration{}
			for name, pid := range who {
				before[name] = processorTime(b, pid)
			}
			b.ResetTimer()
			refused := enroll(work)
			b.StopTimer()
			for name, pid := range who {
				used := processorTime(b, pid) - before[name]
				b.ReportMetric(float64(used.Microseconds())/1000/float64(b.N), name+"-ms/op")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "enrollments/s")
			b.ReportMetric(float64(refused)/float64(b.N), "refused/op")
		})
	}
}

func newQueue(n int) chan []byte { return make(chan []byte, n) }

// untilEnrolled sends a request again, later each time, where it was refused: a server may be busy.
func untilEnrolled(request []byte, send func([]byte) error) (refused int64, err error) {
	pause := 10 * time.Millisecond
	for range 300 {
		if err = send(request); err == nil {
			return refused, nil
		}
		refused++
		time.Sleep(pause)
		pause = min(pause*5/4, 200*time.Millisecond)
	}
	return refused, err
}

// exchange posts a request and returns the answer, which must be 200.
func exchange(client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("HTTP %d: %s", resp.StatusCode, body)
	}
	return body, err
}

// estBench enrolls by EST with a password.
type estBench struct {
	url, password string
	client        *http.Client
	who           map[string]int
}

func (e *estBench) run(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	inParallel(b, e.who, func(cn string) ([]byte, error) {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn}}, key)
		return base64.StdEncoding.AppendEncode(nil, csr), err
	}, func(request []byte) error {
		req, err := http.NewRequest(http.MethodPost, e.url, bytes.NewReader(request))
		if err != nil {
			return err
		}
		req.SetBasicAuth("device", e.password)
		req.Header.Set("Content-Type", "application/pkcs10")
		_, err = exchange(e.client, req)
		return err
	})
}

// scepBench enrolls by SCEP with a challenge, as smallstep/pkcs7 writes messages.
type scepBench struct {
	url, challenge string
	client         *http.Client
	key            *rsa.PrivateKey
	who            map[string]int
}

func (s *scepBench) run(b *testing.B) {
	ra, err := s.recipient()
	if err != nil {
		b.Fatal(err)
	}
	self, err := s.selfSigned()
	if err != nil {
		b.Fatal(err)
	}
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	inParallel(b, s.who, func(cn string) ([]byte, error) { return s.message(cn, ra, self) }, s.send)
}

// selfSigned is the certificate a device without one signs messages by (RFC 8894 §2.3).
func (s *scepBench) selfSigned() (*x509.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// recipient is whom requests are encrypted to: the RA, or the CA where there is none.
func (s *scepBench) recipient() (*x509.Certificate, error) {
	req, err := http.NewRequest(http.MethodGet, s.url+"?operation=GetCACert", nil)
	if err != nil {
		return nil, err
	}
	body, err := exchange(s.client, req)
	if err != nil {
		return nil, err
	}
	if cert, err := x509.ParseCertificate(body); err == nil {
		return cert, nil
	}
	p7, err := pkcs7.Parse(body)
	if err != nil {
		return nil, err
	}
	for _, cert := range p7.Certificates {
		if !cert.IsCA {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("no RA among %d certificates", len(p7.Certificates))
}

// message is a PKCSReq for cn (RFC 8894 §3.3.1).
func (s *scepBench) message(cn string, ra, self *x509.Certificate) ([]byte, error) {
	csr, err := s.request(cn)
	if err != nil {
		return nil, err
	}
	envelope, err := pkcs7.Encrypt(csr, []*x509.Certificate{ra})
	if err != nil {
		return nil, err
	}
	signed, err := pkcs7.NewSignedData(envelope)
	if err != nil {
		return nil, err
	}
	signed.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	attribute := func(last int, value any) pkcs7.Attribute {
		return pkcs7.Attribute{Type: asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, last}, Value: value}
	}
	err = signed.AddSigner(self, s.key, pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{
		attribute(7, cn), attribute(2, "19"), attribute(5, []byte("0123456789abcdef")),
	}})
	if err != nil {
		return nil, err
	}
	return signed.Finish()
}

// request is a PKCS#10 request with the challenge, which crypto/x509 cannot write.
func (s *scepBench) request(cn string) ([]byte, error) {
	subject, err := asn1.Marshal(pkix.Name{CommonName: cn}.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(public)
		b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}) // challengePassword
				b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(casn1.PrintableString, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s.challenge)) })
				})
			})
		})
	})
	info, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(info)
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, err
	}
	var csr cryptobyte.Builder
	csr.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}) // sha256WithRSAEncryption
			b.AddASN1NULL()
		})
		b.AddASN1BitString(signature)
	})
	return csr.Bytes()
}

// send posts a message; the answer must hold a certificate.
func (s *scepBench) send(message []byte) error {
	req, err := http.NewRequest(http.MethodPost, s.url+"?operation=PKIOperation", bytes.NewReader(message))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-pki-message")
	answer, err := exchange(s.client, req)
	if err != nil {
		return err
	}
	p7, err := pkcs7.Parse(answer)
	if err != nil {
		return err
	}
	var status string
	if err := p7.UnmarshalSignedAttribute(asn1.ObjectIdentifier{2, 16, 840, 1, 113733, 1, 9, 3}, &status); err != nil || status != "0" {
		return fmt.Errorf("pkiStatus %q, %v", status, err)
	}
	return nil
}

// startMicromdm runs scepserver of Debian's package scep with a CA of its own. It listens on every
// address of the computer, for as long as the benchmark runs.
func startMicromdm(b *testing.B) (url string, pid int) {
	b.Helper()
	program, err := exec.LookPath("scepserver")
	if err != nil {
		b.Skip("scepserver is missing: apt-get install scep")
	}
	depot := filepath.Join(b.TempDir(), "depot")
	if out, err := exec.Command(program, "ca", "-init", "-keySize", "2048", "-depot", depot).CombinedOutput(); err != nil {
		b.Fatalf("scepserver ca: %v\n%s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	cmd := exec.Command(program, "-depot", depot, "-port", strconv.Itoa(port), "-challenge", "bench", "-allowrenew", "0")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	url = fmt.Sprintf("http://127.0.0.1:%d/scep", port)
	for range 200 {
		if resp, err := http.Get(url + "?operation=GetCACaps"); err == nil {
			resp.Body.Close()
			return url, cmd.Process.Pid
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatal("scepserver does not answer")
	return "", 0
}

// BenchmarkMessage opens a PKCSReq, as a service does before it looks at what is asked for.
func BenchmarkMessage(b *testing.B) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	s := &scepBench{key: key, challenge: "bench"}
	self, err := s.selfSigned()
	if err != nil {
		b.Fatal(err)
	}
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	message, err := s.message("device-1.example.com", self, self)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("signet", func(b *testing.B) {
		for b.Loop() {
			signed, err := cms.ParseSignedData(message)
			if err == nil {
				_, err = signed.Verify(cms.DefaultPolicy())
			}
			if err != nil {
				b.Fatal(err)
			}
			envelope, err := cms.ParseEnvelopedData(signed.Content)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := envelope.Decrypt(self, key, cms.DefaultPolicy()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("smallstep", func(b *testing.B) {
		for b.Loop() {
			signed, err := pkcs7.Parse(message)
			if err == nil {
				err = signed.Verify()
			}
			if err != nil {
				b.Fatal(err)
			}
			envelope, err := pkcs7.Parse(signed.Content)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := envelope.Decrypt(self, key); err != nil {
				b.Fatal(err)
			}
		}
	})
}
