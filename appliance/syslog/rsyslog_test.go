package syslog

// A green run shows that a receiver nobody here wrote takes the messages apart as they were meant, over TLS
// with its OpenSSL, and that what it has after it was killed and started again is the whole log.

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"signet.internal/appliance/needtest"
)

// needRsyslog returns rsyslogd's path; without it or its TLS driver the test fails under CI and is skipped
// elsewhere.
func needRsyslog(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("rsyslogd")
	if err != nil {
		path = "/usr/sbin/rsyslogd"
		_, err = os.Stat(path)
	}
	if drivers, _ := filepath.Glob("/usr/lib/*/rsyslog/lmnsd_ossl.so"); err == nil && len(drivers) == 0 {
		err = os.ErrNotExist
	}
	if err != nil {
		needtest.Missing(t, "rsyslog is missing: apt-get install rsyslog rsyslog-openssl")
	}
	return path
}

// rsyslog is a receiver in a directory, that writes what it understood of a message on a line.
type rsyslog struct {
	t       *testing.T
	dir     string
	address string
	process *exec.Cmd
}

const rsyslogConfig = `
global(workDirectory="%[1]s" maxMessageSize="64k" defaultNetstreamDriver="ossl"
  defaultNetstreamDriverCAFile="%[1]s/ca.pem" defaultNetstreamDriverCertFile="%[1]s/server.pem" defaultNetstreamDriverKeyFile="%[1]s/server.key")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imtcp" address="127.0.0.1" port="%[2]d")
template(name="parts" type="string" string="%%syslogfacility%% %%syslogseverity%% %%hostname%% %%app-name%% %%msgid%% %%structured-data%% %%msg%%\n")
action(type="omfile" file="%[1]s/log" template="parts")
`

func newRsyslog(t *testing.T, ca *authority) *rsyslog {
	t.Helper()
	// Not one of those that the kernel gives to whoever asks for any, while rsyslog is dead.
	port := 0
	for port == 0 {
		some := 20000 + rand.IntN(12000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", some)); err == nil {
			must(t, l.Close())
			port = some
		}
	}
	r := &rsyslog{t: t, dir: t.TempDir(), address: fmt.Sprintf("127.0.0.1:%d", port)}
	server := ca.issue(t, x509.ExtKeyUsageServerAuth)
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	must(t, err)
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: ca.cert.Raw}, "server.pem": {Type: "CERTIFICATE", Bytes: server.Certificate[0]}, "server.key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		must(t, os.WriteFile(filepath.Join(r.dir, name), pem.EncodeToMemory(block), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(r.dir, "rsyslog.conf"), fmt.Appendf(nil, rsyslogConfig, r.dir, port), 0o600))
	return r
}

func (r *rsyslog) start(program string) {
	r.t.Helper()
	r.process = exec.Command(program, "-n", "-f", filepath.Join(r.dir, "rsyslog.conf"), "-i", filepath.Join(r.dir, "pid"))
	r.process.Stdout, r.process.Stderr = r.t.Output(), r.t.Output()
	must(r.t, r.process.Start())
	r.t.Cleanup(r.kill)
	until(r.t, "rsyslog listens", func() bool {
		conn, err := net.Dial("tcp", r.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// kill ends it at once, with what it has in memory. What it had begun to write of a line is taken out of its
// file.
func (r *rsyslog) kill() {
	_ = r.process.Process.Kill()
	_ = r.process.Wait()
	_ = os.Remove(filepath.Join(r.dir, "pid"))
	if b, err := os.ReadFile(filepath.Join(r.dir, "log")); err == nil {
		must(r.t, os.WriteFile(filepath.Join(r.dir, "log"), b[:bytes.LastIndexByte(b, '\n')+1], 0o600))
	}
}

// lines are the whole lines it wrote.
func (r *rsyslog) lines() []string {
	b, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil {
		return nil
	}
	lines := strings.Split(string(b), "\n")
	return lines[:len(lines)-1]
}

func TestRsyslogHasEverything(t *testing.T) {
	program := needRsyslog(t)
	ca := newAuthority(t)
	b := newBox(t, ca.pool())
	shown := ca.issue(t, x509.ExtKeyUsageClientAuth)
	b.config.Certificate = func() (*tls.Certificate, error) { return shown, nil }
	b.config.settle = 0 // the box's own ten seconds: what rsyslog had in memory is then on its disk
	r := newRsyslog(t, ca)
	b.write(3000)
	r.start(program)
	s, _ := b.stream(r.address)
	for range 3 { // in the middle of a backlog, and of what is being written
		before := len(r.lines())
		until(t, "something arrives", func() bool { return len(r.lines()) > before })
		b.write(300)
		r.kill()
		b.write(300)
		until(t, "the stream notices", func() bool { return s.Status().Err != nil })
		r.start(program)
	}
	b.write(300)
	until(t, "all is delivered", func() bool { return s.Status().Lag == 0 })
	lines := r.lines()
	b.checkCopy(bodies(lines))
	size, _, err := b.store.LogHead()
	must(t, err)
	t.Logf("%d records, %d messages", size, len(lines))
	const first = `13 6 pki.example.com signet scep_pkcsreq [origin software="signet" swVersion="1.2.3"][signet@32473 site="plant-7" index="0" action="scep_pkcsreq" outcome="success"] {"index":0,`
	if !strings.HasPrefix(strings.Replace(lines[0], "]  {", "] {", 1), first) {
		t.Errorf("the first message was understood as %.250s", lines[0])
	}
}
