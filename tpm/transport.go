package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	headerSize  = 10 // TPM 2.0 Part 1 §18: tag, size, command or response code
	maxResponse = 4096

	// firstAnswer bounds the first command on a socket: swtpm leaves a second client waiting
	// forever. commandLimit bounds any later one; making an RSA key can take a minute.
	firstAnswer  = 10 * time.Second
	commandLimit = 5 * time.Minute
)

// fileTransport is a TPM character device, opened blocking: write runs the command, read fetches
// the whole response.
type fileTransport struct{ f *os.File }

func (ft *fileTransport) Send(cmd []byte) ([]byte, error) {
	if _, err := ft.f.Write(cmd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	buf := make([]byte, maxResponse)
	n, err := ft.f.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if n < headerSize {
		return nil, fmt.Errorf("%w: response of %d bytes", ErrUnreachable, n)
	}
	return buf[:n], nil
}

func (ft *fileTransport) Close() error { return ft.f.Close() }

// socketTransport is swtpm's data channel: responses framed by the size in their header. It is held
// open, because swtpm serves one client at a time and would take another in between.
type socketTransport struct {
	conn  net.Conn
	limit time.Duration
}

func dialSocket(path string) (*socketTransport, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	st := &socketTransport{conn: conn, limit: firstAnswer}
	// With --flags startup-clear the TPM is started already and says TPM_RC_INITIALIZE.
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(st); err != nil && !errors.Is(err, tpm2.TPMRCInitialize) {
		conn.Close()
		return nil, err
	}
	st.limit = commandLimit
	// There is no resource manager: what a client that went away left behind fills the few slots.
	for _, first := range []tpm2.TPMHandle{0x80000000, 0x02000000, 0x03000000} { // transient, HMAC, policy
		handles, err := listHandles(st, first)
		if err != nil {
			conn.Close()
			return nil, err
		}
		for _, h := range handles {
			flush(st, h)
		}
	}
	return st, nil
}

func (st *socketTransport) Send(cmd []byte) ([]byte, error) {
	if err := st.conn.SetDeadline(time.Now().Add(st.limit)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if _, err := st.conn.Write(cmd); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	rsp := make([]byte, headerSize, 512)
	if _, err := io.ReadFull(st.conn, rsp); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	size := binary.BigEndian.Uint32(rsp[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("%w: response claims %d bytes", ErrUnreachable, size)
	}
	rsp = append(rsp, make([]byte, size-headerSize)...)
	if _, err := io.ReadFull(st.conn, rsp[headerSize:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return rsp, nil
}

func (st *socketTransport) Close() error { return st.conn.Close() }

// retrying repeats commands the TPM put off without starting them (TPM 2.0 Part 2 §6.6.3). The same
// bytes are right: no nonce has rolled.
type retrying struct{ transport.TPMCloser }

const (
	retries    = 12
	firstDelay = 5 * time.Millisecond
	maxDelay   = time.Second
)

func (r retrying) Send(cmd []byte) ([]byte, error) {
	delay := firstDelay
	for range retries {
		rsp, err := r.TPMCloser.Send(cmd)
		if err != nil || !putOff(rsp) {
			return rsp, err
		}
		time.Sleep(delay)
		delay = min(2*delay, maxDelay)
	}
	return r.TPMCloser.Send(cmd)
}

func putOff(rsp []byte) bool {
	if len(rsp) < headerSize {
		return false
	}
	switch tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}
