package confine_test

// Each test starts this binary again as a process that confines itself and does what it has to do, or
// what it must not. A green run shows the lists on this machine's kernel, which knows newer rights of
// Landlock than a box's. That each list is wide enough for its whole process is shown by the tests of
// packages box and appliance, and by a booted box.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/confine"
	"signet.internal/appliance/confine/confinetest"
	"signet.internal/appliance/store"
	"signet.internal/tpm/tpmtest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "confined" {
		if err := confined(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process is how a process of the box is confined and what it does here.
type process struct {
	list  confine.List
	paths confine.Paths
	work  func(dir string) error
}

func processNamed(name, dir string) process {
	return map[string]process{
		"signetd":   {confine.Signetd(false), confine.Paths{Write: []string{dir}}, workSignetd},
		"outgoing":  {confine.Signetd(true), confine.Paths{Read: []string{"/etc"}, Write: []string{dir}}, workOutgoing},
		"keyholder": {confine.KeyHolder(), confine.Paths{}, workHolder},
		"dhcp":      {confine.DHCP(), confine.Paths{}, workDHCP},
	}[name]
}

// start makes the command of a process, "free" for one that is not confined: what is "work", "trespass"
// or "again", dir the directory open to it.
func start(t *testing.T, name, what, dir string) *exec.Cmd {
	t.Helper()
	confinetest.Need(t)
	cmd := exec.Command("/proc/self/exe", "confined", name, what, dir)
	cmd.Env = []string{}
	cmd.Stderr = t.Output()
	return cmd
}

// confined is the process.
func confined(name, what, dir string) error {
	var threads sync.WaitGroup
	for range 8 { // which no longer know the one that confines them
		threads.Go(func() {
			runtime.LockOSThread()
			time.Sleep(20 * time.Millisecond)
			runtime.UnlockOSThread()
		})
	}
	threads.Wait()
	p := processNamed(name, dir)
	if name != "free" {
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		if abi, err := confine.Landlock(p.paths); err != nil || abi < 1 {
			return fmt.Errorf("landlock: ABI %d, %w", abi, err)
		}
		if err := confine.Seccomp(p.list); err != nil {
			return err
		}
		runtime.UnlockOSThread()
	}
	if what == "again" { // the kernel refuses both
		if _, err := confine.Landlock(p.paths); err == nil {
			return errors.New("nothing was confined to files, and that was no error")
		}
		if err := confine.Seccomp(p.list); err == nil {
			return errors.New("nothing was confined to a list, and that was no error")
		}
		return nil
	}
	if what == "trespass" {
		return json.NewEncoder(os.Stdout).Encode(trespass(dir))
	}
	if err := workRuntime(); err != nil {
		return err
	}
	return p.work(dir)
}

// workRuntime is what any Go program does without knowing.
func workRuntime() error {
	var all sync.WaitGroup
	var mu sync.Mutex
	kept := map[int][]byte{}
	for i := range 200 {
		all.Go(func() {
			time.Sleep(time.Duration(i%7) * time.Millisecond)
			b := make([]byte, 64<<10)
			_, _ = rand.Read(b)
			mu.Lock()
			kept[i%10] = b
			mu.Unlock()
			if i%50 == 0 {
				runtime.GC()
			}
		})
	}
	for range 20 {
		all.Go(func() { // more threads
			runtime.LockOSThread()
			time.Sleep(10 * time.Millisecond)
		})
	}
	all.Wait()
	debug.FreeOSMemory()
	if len(kept) != 10 {
		return errors.New("lost memory")
	}
	return nil
}

// workSignetd keeps a store and serves HTTP over TLS on the listener inherited as descriptor 3 until
// standard input ends.
func workSignetd(dir string) error {
	storeDir := filepath.Join(dir, "store")
	for i := range 3 {
		s, err := store.Open(store.Options{Dir: storeDir, MustExist: i > 0})
		if err != nil {
			return err
		}
		for range 50 {
			if err := s.Append(audit.Record{Action: audit.BoxStarted, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess, Time: time.Now(), TimeSource: "rtc"}); err != nil {
				return err
			}
		}
		if err := s.Close(); err != nil {
			return err
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil || len(addresses) == 0 {
		return fmt.Errorf("own addresses: %v, %w", addresses, err)
	}
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})}
	go server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}}))
	if sent, err := daemon.SdNotify(false, daemon.SdNotifyReady); !sent || err != nil {
		return fmt.Errorf("sd_notify: %v, %w", sent, err)
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return server.Close()
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// workHolder answers one client of the listener inherited as descriptor 3 by what it sends.
func workHolder(string) error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	_, err = io.CopyN(conn, conn, 4)
	return errors.Join(err, conn.Close())
}

// workOutgoing gets "hello" from hook.test, at a port on loopback and by a name server there, and is
// refused where nobody listens.
func workOutgoing(string) error {
	// In place of resolv.conf, which on many hosts is a link to elsewhere.
	if _, err := os.ReadFile("/etc/passwd"); err != nil {
		return err
	}
	name, web := os.Getenv("DNS"), os.Getenv("WEB")
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, name)
	}}
	dialer := &net.Dialer{Resolver: resolver}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	response, err := client.Get("http://hook.test:" + web)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "hello" {
		return fmt.Errorf("got %q, %w", body, err)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+web)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	// Whether what was sent is there, as the audit log's stream asks.
	controlErr := raw.Control(func(fd uintptr) { _, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	if _, err := client.Get("http://hook.test:1"); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("where nobody listens: %w", err)
	}
	return nil
}

// workDHCP sends a packet to itself by the socket the DHCP client uses.
func workDHCP(string) error {
	const port = 68
	conn, err := nclient4.NewRawUDPConn("lo", port)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return err
	}
	if _, err := conn.WriteTo([]byte("ping"), &net.UDPAddr{IP: net.IPv4bcast, Port: port}); err != nil {
		return err
	}
	if _, _, err := conn.ReadFrom(make([]byte, 64)); err != nil {
		return err
	}
	return conn.Close()
}

// attempts are what no confined process may do, one for each kind of harm.
var attempts = map[string]func(dir string) error{
	"execve": func(string) error { return unix.Exec("/nowhere", []string{"nowhere"}, nil) },
	"fork": func(string) error {
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		return asError(errno)
	},
	"clone3":           raw(unix.SYS_CLONE3),
	"ptrace":           raw(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1<<30), // nobody: whoever traces itself is stopped
	"process_vm_readv": raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid())),
	"kill":             raw(unix.SYS_KILL, uintptr(os.Getpid()), 0),
	"mount":            raw(unix.SYS_MOUNT),
	"unshare":          raw(unix.SYS_UNSHARE),
	"userfaultfd":      raw(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1), // UFFD_USER_MODE_ONLY
	"keyctl":           raw(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID),
	"bpf":              raw(unix.SYS_BPF, 999),
	"io_uring_setup":   raw(unix.SYS_IO_URING_SETUP),
	"perf_event_open":  raw(unix.SYS_PERF_EVENT_OPEN),
	"memfd_create":     raw(unix.SYS_MEMFD_CREATE),
	"personality":      raw(unix.SYS_PERSONALITY, 0xffffffff),
	"ioctl":            raw(unix.SYS_IOCTL, 1, unix.TIOCSTI),
	"prctl":            raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1),
	"mmap exec": func(string) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	},
	"mprotect exec": func(string) error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil // which fails the test
		}
		return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
	},
	"listen": func(string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Listen(fd, 1)
	},
	"TCP":          socket(unix.AF_INET, unix.SOCK_STREAM, 0),
	"UDP":          socket(unix.AF_INET6, unix.SOCK_DGRAM, 0),
	"unix stream":  socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
	"vsock":        socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"MPTCP":        socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
	"raw IP":       socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
	"packet raw":   socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
	"packet":       socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0),
	"audit":        socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
	"netfilter":    socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
	"read outside": func(string) error { _, err := os.ReadFile("/proc/self/maps"); return err },
	"list outside": func(string) error { _, err := os.ReadDir("/"); return err },
	"make outside": func(dir string) error { return os.WriteFile(dir+"-outside", nil, 0o600) },
	"link inside":  func(dir string) error { return os.Symlink("/", filepath.Join(dir, "link")) },
	"run inside":   func(dir string) error { return unix.Fchmodat(unix.AT_FDCWD, dir, 0o777, 0) },
}

func raw(call uintptr, args ...uintptr) func(string) error {
	var a [6]uintptr
	copy(a[:], args)
	return func(string) error {
		_, _, errno := unix.Syscall6(call, a[0], a[1], a[2], a[3], a[4], a[5])
		return asError(errno)
	}
}

func socket(domain, kind, protocol int) func(string) error {
	return func(string) error {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// trespass tries what must not be, on a thread started later, and returns the errno of each attempt.
func trespass(dir string) map[string]syscall.Errno {
	got := map[string]syscall.Errno{}
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		for name, attempt := range attempts {
			var errno syscall.Errno
			errors.As(attempt(dir), &errno)
			got[name] = errno
		}
	}()
	<-done
	return got
}

var refusals = map[syscall.Errno]bool{unix.EPERM: true, unix.EACCES: true, unix.ENOSYS: true}

// attemptsOf runs a process that trespasses.
func attemptsOf(t *testing.T, name string) map[string]syscall.Errno {
	t.Helper()
	out, err := start(t, name, "trespass", t.TempDir()).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out) // also where an attempt ended the process
	}
	got := map[string]syscall.Errno{}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(got) != len(attempts) {
		t.Errorf("%d of %d attempts made", len(got), len(attempts))
	}
	return got
}

func TestConfinedProcessesCannotTrespass(t *testing.T) {
	free := attemptsOf(t, "free")
	for attempt, errno := range free {
		if refusals[errno] {
			t.Logf("%s is refused here to anybody: %v", attempt, errno)
		}
	}
	for _, attempt := range []string{"execve", "fork", "mmap exec", "mprotect exec", "prctl", "TCP", "UDP", "unix stream", "read outside", "list outside", "make outside", "link inside"} {
		if refusals[free[attempt]] {
			t.Errorf("%s is refused without confinement too: %v", attempt, free[attempt])
		}
	}
	for name, may := range map[string][]string{"signetd": nil, "outgoing": {"TCP", "UDP"}, "keyholder": nil, "dhcp": {"packet"}} {
		t.Run(name, func(t *testing.T) {
			got := attemptsOf(t, name)
			for attempt, errno := range got {
				if !refusals[errno] && !slices.Contains(may, attempt) {
					t.Errorf("%s: errno %d (%v)", attempt, errno, errno)
				}
			}
			if got["clone3"] != unix.ENOSYS {
				t.Errorf("clone3: %v, from which nobody falls back", got["clone3"])
			}
		})
	}
}

func TestWhatCannotBeConfinedIsAnError(t *testing.T) {
	if out, err := start(t, "keyholder", "again", t.TempDir()).Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestSignetdWorks(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dir := t.TempDir()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(tpmtest.SocketDir(t), "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd := start(t, "signetd", "work", dir)
	cmd.Env = []string{"NOTIFY_SOCKET=" + notify.LocalAddr().String()}
	ended := run(t, cmd, listener.(*net.TCPListener))
	go func() {
		defer notify.Close()
		<-ended.done
	}()
	stdin := ended.stdin
	if _, err := notify.Read(make([]byte, 64)); err != nil {
		t.Fatalf("the process never was ready: %v; %s", err, ended.wait())
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			sent := strings.Repeat("x", 100<<10)
			response, err := client.Post("https://"+listener.Addr().String(), "text/plain", strings.NewReader(sent))
			if err != nil {
				t.Error(err)
				return
			}
			defer response.Body.Close()
			if got, err := io.ReadAll(response.Body); err != nil || string(got) != sent {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
	all.Wait()
	client.CloseIdleConnections()
	stdin.Close()
	if wrong := ended.wait(); wrong != "" {
		t.Error(wrong)
	}
}

// running is a process started by run.
type running struct {
	stdin io.Closer
	done  chan struct{}
	wrong string // after done
}

// wait returns what went wrong, "" where nothing did.
func (r *running) wait() string {
	<-r.done
	return r.wrong
}

// run starts cmd, which inherits a listener as descriptor 3.
func run(t *testing.T, cmd *exec.Cmd, listener interface{ File() (*os.File, error) }) *running {
	t.Helper()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout = &said
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &running{stdin: stdin, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := cmd.Wait(); err != nil {
			r.wrong = fmt.Sprintf("%v: %s", err, said.String())
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		<-r.done
	})
	return r
}

func TestKeyHolderWorks(t *testing.T) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(tpmtest.SocketDir(t), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ended := run(t, start(t, "keyholder", "work", t.TempDir()), listener)
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() { // no answer comes from a process that is gone
		<-ended.done
		conn.Close()
	}()
	got := make([]byte, 4)
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("%q, %v", got, err)
	}
	if wrong := ended.wait(); wrong != "" {
		t.Error(wrong)
	}
}

// nameServer answers every question for an IPv4 address with loopback's, until the test ends.
func nameServer(t *testing.T) (address string) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 1<<10)
		for {
			n, from, err := conn.ReadFromUDP(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(b[:n]); err != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			if answer, err := m.Pack(); err == nil {
				conn.WriteToUDP(answer, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

func TestOutgoingWorks(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer web.Close()
	_, port, err := net.SplitHostPort(web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, "outgoing", "work", t.TempDir())
	cmd.Env = []string{"DNS=" + nameServer(t), "WEB=" + port}
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestDHCPWorks(t *testing.T) {
	if err := workDHCP(""); errors.Is(err, os.ErrPermission) {
		t.Skip("packet sockets take CAP_NET_RAW")
	} else if err != nil {
		t.Fatal(err)
	}
	if out, err := start(t, "dhcp", "work", t.TempDir()).Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
