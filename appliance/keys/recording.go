package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Between holder and vault go frames of the key protocol, one request at a time, answered by a status.
// Who speaks as the holder can use up the room for created keys and secrets, and remove them.
const (
	recordKey    = 1 // JSON of a record
	removeKey    = 2 // name
	recordSecret = 3 // JSON of a secret
	removeSecret = 4 // name
)

// Bounds of what is recorded, generous for the largest key (rsa-4096): with all the room used up, a
// generation of KEYS still holds everything.
const (
	maxBlob    = 2 << 10
	maxWrapped = 4 << 10
	sealing    = 12 + 16 // nonce and tag, which wrap adds
)

// ServeRecords writes to KEYS what a Holder asks for at the other end of conn, until it closes conn, and
// closes it too. It goes on after Forget and fails every request after Close.
func (v *Vault) ServeRecords(conn net.Conn) error {
	defer conn.Close()
	for {
		request, err := readFrame(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("recording keys: %w", err)
		}
		answer := frame{id: request.id}
		if err := v.record(request); errors.Is(err, errFrame) {
			return fmt.Errorf("recording keys: %w", err)
		} else if err != nil {
			answer.code, answer.body = status(err)
		}
		b, err := answer.encode()
		if err == nil {
			_, err = conn.Write(b)
		}
		if err != nil {
			return fmt.Errorf("recording keys: %w", err)
		}
	}
}

// record does what a request asks for; errFrame if it makes no sense.
func (v *Vault) record(request frame) error {
	switch request.code {
	case recordKey:
		var r record
		if err := decodeStrictly(request.body, &r); err != nil {
			return err
		}
		return v.change(func(c *contents) error { return c.addKey(r) })
	case recordSecret:
		var s secret
		if err := decodeStrictly(request.body, &s); err != nil {
			return err
		}
		return v.change(func(c *contents) error { return c.putSecret(s) })
	case removeKey:
		return v.change(func(c *contents) error { return c.removeKey(string(request.body)) })
	case removeSecret:
		return v.change(func(c *contents) error { return c.removeSecret(string(request.body)) })
	}
	return fmt.Errorf("%w: operation %d", errFrame, request.code)
}

func decodeStrictly(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", errFrame, err)
	}
	return nil
}

func (c *contents) keyIndex(name string) (int, bool) {
	return slices.BinarySearchFunc(c.Keys, name, func(r record, name string) int { return strings.Compare(r.Name, name) })
}

func (c *contents) secretIndex(name string) (int, bool) {
	return slices.BinarySearchFunc(c.Secrets, name, func(s secret, name string) int { return strings.Compare(s.Name, name) })
}

func (c *contents) created() (n int) {
	for _, r := range c.Keys {
		if r.Created {
			n++
		}
	}
	return n
}

// addKey adds a key made at run time. It replaces none.
func (c *contents) addKey(r record) error {
	if err := checkCreated(r.spec()); err != nil {
		return refused(err.Error())
	}
	fits := len(r.Wrapped) > sealing && len(r.Wrapped) <= maxWrapped && len(r.Blob.Public)+len(r.Blob.Private) == 0
	if r.Protection == Resident {
		_, err := r.Blob.Name()
		fits = err == nil && len(r.Blob.Private) > 0 && len(r.Blob.Public)+len(r.Blob.Private) <= maxBlob && len(r.Wrapped) == 0
	}
	if !r.Created || !fits {
		return refused("that is no record of a key made at run time")
	}
	i, found := c.keyIndex(r.Name)
	if found {
		return ErrExists
	}
	if c.created() >= MaxCreated {
		return errTooManyKeys
	}
	c.Keys = slices.Insert(slices.Clone(c.Keys), i, r)
	return nil
}

func (c *contents) removeKey(name string) error {
	i, found := c.keyIndex(name)
	if !found {
		return ErrNoKey
	}
	if !c.Keys[i].Created {
		return errProvisioned
	}
	c.Keys = slices.Delete(slices.Clone(c.Keys), i, i+1)
	return nil
}

// putSecret adds a secret or replaces it.
func (c *contents) putSecret(s secret) error {
	if err := checkSecretName(s.Name); err != nil {
		return refused(err.Error())
	}
	if len(s.Wrapped) <= sealing || len(s.Wrapped) > sealing+MaxSecret {
		return errSecretSize
	}
	i, found := c.secretIndex(s.Name)
	c.Secrets = slices.Clone(c.Secrets)
	switch {
	case found:
		c.Secrets[i] = s
	case len(c.Secrets) >= MaxSecrets:
		return errTooManySecrets
	default:
		c.Secrets = slices.Insert(c.Secrets, i, s)
	}
	return nil
}

func (c *contents) removeSecret(name string) error {
	i, found := c.secretIndex(name)
	if !found {
		return ErrNoKey
	}
	c.Secrets = slices.Delete(slices.Clone(c.Secrets), i, i+1)
	return nil
}

// Refusals that holder and vault share.
var (
	errTooManyKeys    = refused(fmt.Sprintf("%d keys were made since the box was provisioned, and no more fit; remove one that is no longer used", MaxCreated))
	errTooManySecrets = refused(fmt.Sprintf("%d secrets are kept, and no more fit; remove one that is no longer used", MaxSecrets))
	errSecretSize     = refused(fmt.Sprintf("a secret has 1 to %d bytes", MaxSecret))
	errProvisioned    = refused("the key was made when the box was provisioned; only keys made later can be removed")
)

// recordPatience bounds one request to the vault: two generations on a slow disk.
const recordPatience = time.Minute

// recorder is the holder's end of the connection to its vault. It is for one goroutine at a time.
type recorder struct {
	conn net.Conn // nil: there is no vault
	id   uint32
	err  error // why there will be no more answers
}

// ask waits until the vault has done what a request says. After ErrNotRecorded it is unknown whether it
// has, and every later request fails in the same way: an answer that came late would be taken for that of
// the next one.
func (r *recorder) ask(op uint8, body []byte) error {
	if r.conn == nil {
		return ErrNotRecorded
	}
	if r.err != nil {
		return r.err
	}
	r.id++
	answer, err := r.exchange(frame{code: op, id: r.id, body: body})
	if err == nil && answer.id != r.id {
		err = errFrame
	}
	if err != nil {
		r.err = fmt.Errorf("%w (%v)", ErrNotRecorded, err)
		r.conn.Close()
		return r.err
	}
	switch answer.code {
	case statusOK:
		return nil
	case statusNoKey:
		return ErrNoKey
	case statusExists:
		return ErrExists
	case statusRefused:
		return refused(string(answer.body))
	}
	return fmt.Errorf("writing KEYS: %s", answer.body)
}

func (r *recorder) exchange(request frame) (frame, error) {
	b, err := request.encode()
	if err != nil {
		return frame{}, err
	}
	if err := r.conn.SetDeadline(time.Now().Add(recordPatience)); err != nil {
		return frame{}, err
	}
	if _, err := r.conn.Write(b); err != nil {
		return frame{}, err
	}
	return readFrame(r.conn)
}

// askJSON is ask with a record or a secret.
func (r *recorder) askJSON(op uint8, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding a record: %w", err)
	}
	return r.ask(op, body)
}
