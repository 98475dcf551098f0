package box

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/handover"
)

// notice is one sd_notify(3) datagram and the process the kernel says it came from.
type notice struct {
	pid  int
	vars map[string]string
}

// notifySocket is the receiving end of sd_notify.
type notifySocket struct {
	conn *net.UnixConn
	path string
}

// maxNotice is the longest datagram read; a longer one is dropped whole.
const maxNotice = 8 << 10

// listenNotify makes the socket at path, writable by uid alone (0: by the caller).
func listenNotify(path string, uid int) (*notifySocket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("opening notify socket: %w", err)
	}
	err = os.Chmod(path, 0o600)
	if err == nil && uid != 0 {
		err = os.Chown(path, uid, uid)
	}
	if err == nil {
		err = passCredentials(conn)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing notify socket: %w", err), conn.Close())
	}
	return &notifySocket{conn: conn, path: path}, nil
}

func passCredentials(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	return errors.Join(err, optErr)
}

// receive hands on datagrams until the socket is closed. The buffer for control messages has room
// for the sender's credentials only, so descriptors somebody sends along never arrive.
func (n *notifySocket) receive(to chan<- notice) {
	data := make([]byte, maxNotice)
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		size, controlSize, flags, _, err := n.conn.ReadMsgUnix(data, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || flags&unix.MSG_TRUNC != 0 {
			continue
		}
		pid, err := senderPID(control[:controlSize])
		if err != nil {
			continue
		}
		to <- notice{pid: pid, vars: parseNotice(string(data[:size]))}
	}
}

func senderPID(control []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, err
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return int(cred.Pid), nil
		}
	}
	return 0, errors.New("no credentials")
}

func parseNotice(s string) map[string]string {
	vars := map[string]string{}
	for line := range strings.SplitSeq(s, "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			vars[name] = value
		}
	}
	return vars
}

// maxStatus bounds the words of the service about itself: they share the screen with the box's own.
const maxStatus = 60

// Report is what the service said about itself.
type Report struct {
	Status    string              // sd_notify STATUS=, free text
	TLSSHA256 string              // 64 hex digits, or ""
	Claimed   bool                // an administrator exists
	Condition *handover.Condition // needs a person; nil: nothing
}

// apply takes what vars say about the service; what is malformed changes nothing.
func (r *Report) apply(vars map[string]string) {
	if s, ok := vars["STATUS"]; ok {
		r.Status = s[:min(len(s), maxStatus)]
	}
	if s, ok := vars[handover.NotifyTLSSHA256]; ok {
		if b, err := hex.DecodeString(s); err == nil && len(b) == 32 {
			r.TLSSHA256 = strings.ToLower(s)
		}
	}
	switch vars[handover.NotifyClaimed] {
	case "1":
		r.Claimed = true
	case "0":
		r.Claimed = false
	}
	if s, ok := vars[handover.NotifyCondition]; ok {
		var c handover.Condition
		if s == "" {
			r.Condition = nil
		} else if err := json.Unmarshal([]byte(s), &c); err == nil && c.What != "" {
			r.Condition = &c
		}
	}
}
