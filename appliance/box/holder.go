package box

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/confine"
	"signet.internal/appliance/keys"
	"signet.internal/tpm"
)

// The key holder gets what it needs by inheritance and opens nothing: these are its descriptors.
const (
	holderListener = 3 + iota // listening unix socket; every connection is one client
	holderSecrets             // pipe with the opened keys, read to its end once
	holderStatus              // pipe for "ready" or the reason why not
	holderTPM                 // /dev/tpmrm0
	holderRecords             // connected unix socket to boxinit, which writes KEYS: keys.Vault.ServeRecords
)

// holderReady is the word on the status pipe.
const holderReady = "ready"

// holderStart bounds the start of the key holder, with a slow TPM.
const holderStart = 2 * time.Minute

// holder is the running key holder. It holds its own listening socket, whose path only root can
// reach: boxinit connects and hands the connected end to each start of signetd, so that a signetd
// that was restarted is served without anything being opened again and without a protocol to pass
// descriptors. Closing a connection ends what that client had in flight and nothing else.
type holder struct {
	cmd      *exec.Cmd
	socket   string
	ended    chan struct{} // closed when the process is gone
	err      error         // why, after ended
	recorded chan struct{} // closed when no more is written to KEYS
}

// holderConfig is what a key holder is started with.
type holderConfig struct {
	box     sandbox
	socket  string   // where it listens; what is there is removed
	device  *os.File // the open TPM
	log     io.Writer
	secrets []byte                    // what the vault hands over; wiped
	record  func(conn net.Conn) error // writes to KEYS what the holder asks for, until conn ends
}

// startHolder starts the key holder and passes it the secrets.
func startHolder(c holderConfig) (*holder, error) {
	defer clear(c.secrets)
	if err := os.Remove(c.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the key holder's socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	listenerFile, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer listenerFile.Close()
	secretsEnd, secretsIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer secretsEnd.Close()
	defer secretsIn.Close()
	statusOut, statusEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer statusOut.Close()
	defer statusEnd.Close()
	records, recordsEnd, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer recordsEnd.Close()

	h := &holder{cmd: c.box.command(selfPath, modeHolder), socket: c.socket, ended: make(chan struct{}), recorded: make(chan struct{})}
	h.cmd.ExtraFiles = []*os.File{listenerFile, secretsEnd, statusEnd, c.device, recordsEnd}
	h.cmd.Env = []string{}
	h.cmd.Stdout, h.cmd.Stderr = c.log, c.log
	if err := h.cmd.Start(); err != nil {
		records.Close()
		return nil, fmt.Errorf("starting the key holder: %w", err)
	}
	go func() {
		h.err = h.cmd.Wait()
		close(h.ended)
	}()
	go h.keepRecords(c, records)
	secretsEnd.Close()
	statusEnd.Close()
	if err := h.handOver(secretsIn, c.secrets, statusOut); err != nil {
		h.stop(time.Second)
		return nil, fmt.Errorf("starting the key holder: %w (%s)", err, exitWords(h.err))
	}
	return h, nil
}

// keepRecords writes what the holder asks for until one of them ends. An end before the holder's leaves
// the box with the keys it has.
func (h *holder) keepRecords(c holderConfig, conn net.Conn) {
	defer close(h.recorded)
	defer conn.Close()
	if err := guard(func() error { return c.record(conn) }); err != nil {
		fmt.Fprintf(c.log, "boxinit: %v\n", err)
	}
}

// socketPair is a connected pair of unix stream sockets: this process's end, and a child's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	return conn, theirs, nil
}

// handOver writes the secrets and waits for the holder's word.
func (h *holder) handOver(secretsIn *os.File, secrets []byte, status *os.File) error {
	deadline := time.Now().Add(holderStart)
	secretsIn.SetDeadline(deadline)
	status.SetDeadline(deadline)
	_, err := secretsIn.Write(secrets)
	if err = errors.Join(err, secretsIn.Close()); err != nil {
		return fmt.Errorf("handing over the keys: %w", err)
	}
	word, err := bufio.NewReader(io.LimitReader(status, 4<<10)).ReadString('\n')
	if err != nil && word == "" {
		return fmt.Errorf("it ended without a word: %w", err)
	}
	if word = strings.TrimSpace(word); word != holderReady {
		return errors.New(word)
	}
	return nil
}

// dial connects to the key holder; the file is signetd's end.
func (h *holder) dial() (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("reaching the key holder: %w", err)
	}
	defer conn.Close()
	return conn.File()
}

// stop ends the key holder and waits for it.
func (h *holder) stop(patience time.Duration) {
	h.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(patience):
		h.cmd.Process.Kill()
		<-h.ended
	}
	<-h.recorded
}

// runHolder is the key holder's process: it takes what it inherits and serves until it is told to
// end. Its memory is locked and cannot be dumped or read by another process of the same user.
func runHolder() error {
	status := os.NewFile(holderStatus, "status")
	serve, err := openHolder()
	if err != nil {
		fmt.Fprintln(status, strings.ReplaceAll(err.Error(), "\n", " "))
		return err
	}
	fmt.Fprintln(status, holderReady)
	status.Close()
	return serve()
}

// openHolder opens the keys and returns what serves them.
func openHolder() (serve func() error, err error) {
	if err := keys.HardenProcess(); err != nil {
		return nil, err
	}
	if err := enclose(confine.KeyHolder()); err != nil {
		return nil, err
	}
	device, err := tpm.OpenFile(os.NewFile(holderTPM, "/dev/tpmrm0"))
	if err != nil {
		return nil, fmt.Errorf("taking over the TPM: %w", err)
	}
	pipe := os.NewFile(holderSecrets, "keys")
	secrets, err := keys.ReadHandover(pipe)
	defer clear(secrets)
	if err = errors.Join(err, pipe.Close()); err != nil {
		return nil, fmt.Errorf("taking over the keys: %w", err)
	}
	file := os.NewFile(holderRecords, "records")
	records, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("taking over the connection to boxinit: %w", err)
	}
	held, err := keys.NewHolder(device, secrets, records)
	if err != nil {
		return nil, err
	}
	file = os.NewFile(holderListener, "listener")
	listener, err := net.FileListener(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("taking over the socket: %w", err)
	}
	return func() error { return serveClients(held, listener) }, nil
}

// serveClients serves every connection until the listener fails.
func serveClients(held *keys.Holder, listener net.Listener) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		clients.Go(func() {
			defer conn.Close()
			if err := held.Serve(conn); err != nil {
				fmt.Fprintf(os.Stderr, "keyholder: client: %v\n", err)
			}
		})
	}
}
