package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/cryptobyte"
)

var (
	// ErrNoKey says that the holder has no key of that name.
	ErrNoKey = errors.New("no such key")
	// ErrBusy says that more is waiting for the keys than they can do in seconds; try again then.
	ErrBusy = errors.New("the key holder is busy")
)

// Client speaks to a Holder. It may be used from any goroutine; requests of several are in flight
// together.
type Client struct {
	conn  net.Conn
	usage usage

	writing sync.Mutex

	mu      sync.Mutex
	pending map[uint32]chan frame
	nextID  uint32
	err     error // set once the connection is of no more use
}

// NewClient takes conn over.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, pending: make(map[uint32]chan frame)}
	go c.receive()
	return c
}

// Close ends the connection; requests in flight fail.
func (c *Client) Close() error {
	c.fail(net.ErrClosed)
	return nil
}

// fail ends the connection for a reason, which every later call returns. The first one stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("connection to the key holder lost: %w", err)
	for id, ch := range c.pending {
		delete(c.pending, id)
		close(ch)
	}
	c.conn.Close()
}

func (c *Client) receive() {
	for {
		f, err := readFrame(c.conn)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			c.fail(err)
			return
		}
		c.mu.Lock()
		ch := c.pending[f.id]
		delete(c.pending, f.id)
		c.mu.Unlock()
		if ch == nil {
			c.fail(fmt.Errorf("%w: response to nothing", errFrame))
			return
		}
		ch <- f
	}
}

// call sends a request and waits for its response.
func (c *Client) call(op uint8, body []byte) (frame, error) {
	ch := make(chan frame, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return frame{}, c.err
	}
	id := c.nextID
	c.nextID++
	c.pending[id] = ch
	c.mu.Unlock()

	b, err := frame{code: op, id: id, body: body}.encode()
	if err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		return frame{}, err
	}
	c.writing.Lock()
	_, err = c.conn.Write(b)
	c.writing.Unlock()
	if err != nil {
		c.fail(err)
	}
	f, ok := <-ch
	if !ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		return frame{}, c.err
	}
	return f, statusError(f)
}

func statusError(f frame) error {
	switch f.code {
	case statusOK:
		return nil
	case statusBusy:
		return ErrBusy
	case statusNoKey:
		return ErrNoKey
	case statusDecryption:
		return rsa.ErrDecryption
	case statusExists:
		return ErrExists
	case statusUnrecorded:
		return ErrNotRecorded
	case statusSoon:
		return ErrAnchorSoon
	case statusMoved:
		return ErrAnchorMoved
	case statusRefused, statusFailed:
		return fmt.Errorf("key holder: %s", f.body)
	}
	return fmt.Errorf("key holder: unknown status %d", f.code)
}

// List describes every key, sorted by name.
func (c *Client) List() ([]Info, error) {
	f, err := c.call(opList, nil)
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	s := cryptobyte.String(f.body)
	var count uint16
	if !s.ReadUint16(&count) {
		return nil, fmt.Errorf("listing keys: %w", errFrame)
	}
	infos := make([]Info, 0, count)
	for range count {
		info, err := readInfo(&s)
		if err != nil {
			return nil, fmt.Errorf("listing keys: %w", err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func readInfo(s *cryptobyte.String) (Info, error) {
	var info Info
	var spki []byte
	if !readString(s, &info.Name) || !readString(s, &info.Algorithm) || !readString(s, &info.Protection) || !readBytes(s, &spki) {
		return Info{}, errFrame
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return Info{}, fmt.Errorf("parsing public key %q: %w", info.Name, err)
	}
	info.Public = public
	return info, nil
}

// Key returns the key of that name; ErrNoKey if there is none.
func (c *Client) Key(name string) (*Key, error) {
	if len(name) > maxName {
		return nil, fmt.Errorf("key %q: %w", name, ErrNoKey)
	}
	var b cryptobyte.Builder
	addString(&b, name)
	body, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", name, err)
	}
	f, err := c.call(opPublic, body)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", name, err)
	}
	s := cryptobyte.String(f.body)
	info, err := readInfo(&s)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", name, err)
	}
	return &Key{c: c, info: info}, nil
}

// Key is a key of the holder's: a crypto.Signer, and an RA's a crypto.Decrypter too. It may be used
// from any goroutine; its methods return ErrBusy when the holder has too much to do.
type Key struct {
	c    *Client
	info Info
}

var (
	_ crypto.Signer    = (*Key)(nil)
	_ crypto.Decrypter = (*Key)(nil)
)

// Info describes the key.
func (k *Key) Info() Info { return k.info }

// Public is the public key, *rsa.PublicKey or *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.info.Public }

// Sign signs a SHA-256, SHA-384 or SHA-512 digest: ECDSA with ECDSA keys, PKCS #1 v1.5 with RSA keys,
// or PSS if opts are *rsa.PSSOptions (with resident keys of PSSSaltLengthAuto only). A resident P-256
// key signs SHA-256 only, a P-384 key SHA-384. Randomness is the holder's own.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	r := signRequest{name: k.info.Name, digest: digest}
	var err error
	if r.hash, err = hashCode(opts.HashFunc()); err != nil {
		return nil, fmt.Errorf("signing with key %q: %w", k.info.Name, err)
	}
	pss, isPSS := opts.(*rsa.PSSOptions)
	_, isECDSA := k.info.Public.(*ecdsa.PublicKey)
	switch {
	case isECDSA:
		r.scheme = schemeECDSA
	case isPSS:
		r.scheme, r.salt = schemePSS, int32(pss.SaltLength)
	default:
		r.scheme = schemePKCS1v15
	}
	body, err := r.encode()
	if err != nil {
		return nil, fmt.Errorf("signing with key %q: %w", k.info.Name, err)
	}
	f, err := k.timed(opSign, body)
	if err != nil {
		return nil, fmt.Errorf("signing with key %q: %w", k.info.Name, err)
	}
	return f.body, nil
}

// Decrypt decrypts with a key named "ra" or "ra.N". opts are *rsa.OAEPOptions or *rsa.PKCS1v15DecryptOptions, the
// latter with SessionKeyLen: a ciphertext that is not rightly padded gives a random key of that
// length and no error, as does one that carries a key of another length, so that nobody learns which.
// rsa.ErrDecryption is for OAEP, and for ciphertexts that fit no key at all.
func (k *Key) Decrypt(_ io.Reader, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	r := decryptRequest{name: k.info.Name, ciphertext: ciphertext}
	var err error
	switch o := opts.(type) {
	case *rsa.PKCS1v15DecryptOptions:
		if o.SessionKeyLen < 1 || o.SessionKeyLen > 1<<10 {
			return nil, fmt.Errorf("decrypting with key %q: set SessionKeyLen to the length of the wrapped key: without, bad padding could be told from good", k.info.Name)
		}
		r.scheme, r.keyLength = schemePKCS1v15, uint16(o.SessionKeyLen)
	case *rsa.OAEPOptions:
		r.scheme, r.label = schemeOAEP, o.Label
		if r.hash, err = hashCode(o.Hash); err != nil {
			return nil, fmt.Errorf("decrypting with key %q: %w", k.info.Name, err)
		}
		r.mgfHash = r.hash
		if o.MGFHash != 0 {
			if r.mgfHash, err = hashCode(o.MGFHash); err != nil {
				return nil, fmt.Errorf("decrypting with key %q: %w", k.info.Name, err)
			}
		}
	default:
		return nil, fmt.Errorf("decrypting with key %q: options of type %T; use *rsa.PKCS1v15DecryptOptions with SessionKeyLen, or *rsa.OAEPOptions", k.info.Name, opts)
	}
	body, err := r.encode()
	if err != nil {
		return nil, fmt.Errorf("decrypting with key %q: %w", k.info.Name, err)
	}
	f, err := k.timed(opDecrypt, body)
	if err != nil {
		return nil, fmt.Errorf("decrypting with key %q: %w", k.info.Name, err)
	}
	return f.body, nil
}
