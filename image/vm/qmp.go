package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
)

// qmpReply is any message of QEMU's monitor protocol (QEMU docs/interop/qmp-spec): an answer,
// or else the greeting or an event, which are passed over.
type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Description string `json:"desc"`
	} `json:"error"`
}

// qmp runs one command without arguments on the machine's monitor.
func (m *Machine) qmp(ctx context.Context, command string) error {
	_, err := qmpCommand(ctx, filepath.Join(m.state.Sockets, "qmp"), command, nil)
	return err
}

// Screenshot writes the machine's screen as a PPM image.
func (m *Machine) Screenshot(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	_, err = qmpCommand(ctx, filepath.Join(m.state.Sockets, "qmp"), "screendump", map[string]any{"filename": path})
	return err
}

func qmpCommand(ctx context.Context, socket, command string, arguments map[string]any) (json.RawMessage, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("asking QEMU to %s: %w", command, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	dec, enc := json.NewDecoder(conn), json.NewEncoder(conn)
	answer := func() (json.RawMessage, error) {
		for {
			var r qmpReply
			if err := dec.Decode(&r); err != nil {
				return nil, errors.Join(err, ctx.Err())
			}
			switch {
			case r.Error != nil:
				return nil, errors.New(r.Error.Description)
			case r.Return != nil:
				return r.Return, nil
			}
		}
	}
	type request struct {
		Execute   string         `json:"execute"`
		Arguments map[string]any `json:"arguments,omitempty"`
	}
	var result json.RawMessage
	for _, r := range []request{{Execute: "qmp_capabilities"}, {command, arguments}} {
		if err := enc.Encode(r); err != nil {
			return nil, fmt.Errorf("asking QEMU to %s: %w", command, err)
		}
		if result, err = answer(); err != nil {
			return nil, fmt.Errorf("asking QEMU to %s: %w", command, err)
		}
	}
	return result, nil
}
