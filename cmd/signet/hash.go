package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"signet.internal/provision"
)

const (
	maxHashedSecret = 1 << 10 // bytes; longer ones are never accepted by a box
	shortSecret     = 12      // characters below which a person chose something guessable
)

// hashResult is what `signet hash --json` prints.
type hashResult struct {
	Secret string `json:"secret,omitempty"` // only where it was made here
	Hash   string `json:"hash"`             // for static: {hash: "…"}
}

func newHash(t *terminal) *cobra.Command {
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "hash",
		Short: "make a challenge or password and its hash, or hash one read from stdin",
		Long: `Makes a random secret of 128 bits and prints it with its argon2id hash, or reads one line from stdin
(with --stdin, or where stdin is a pipe or a file) and prints its hash. The hash goes into a profile; the
secret goes to the devices and is stored nowhere.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return hashSecret(t, fromStdin) },
	}
	cmd.Flags().BoolVar(&fromStdin, "stdin", false, "read the secret, one line, from stdin")
	return cmd
}

func hashSecret(t *terminal, fromStdin bool) error {
	var secret []byte
	if fromStdin || isPiped(t.stdin) {
		line, err := readSecret(t.stdin)
		if err != nil {
			return err
		}
		if len(line) == 0 && fromStdin {
			return refuse(errors.New("stdin holds no secret"), "give it one line, or leave --stdin out to have a secret made")
		}
		secret = line
	}
	var result hashResult
	text := "hash:   %[2]s\n"
	if len(secret) == 0 {
		result.Secret = newSecret()
		secret = []byte(result.Secret)
		text = "secret: %[1]s\nhash:   %[2]s\n"
	} else if len(secret) < shortSecret {
		t.notef("a secret of %d characters can be guessed; `signet hash` without stdin makes one of 128 bits", len(secret))
	}
	var err error
	if result.Hash, err = provision.HashSecret(secret); err != nil {
		return fmt.Errorf("hashing secret: %w", err)
	}
	return t.result(result, fmt.Sprintf(text, result.Secret, result.Hash))
}

// isPiped reports whether somebody feeds stdin: it is a pipe or a file, not a terminal or /dev/null.
func isPiped(stdin io.Reader) bool {
	f, ok := stdin.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && (info.Mode()&os.ModeNamedPipe != 0 || info.Mode().IsRegular())
}

// readSecret reads one line, without its end.
func readSecret(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxHashedSecret+3))
	if err != nil {
		return nil, fmt.Errorf("reading secret: %w", err)
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(content, []byte("\n")), []byte("\r"))
	if bytes.ContainsAny(line, "\r\n\x00") {
		return nil, refuse(errors.New("stdin holds more than one line"), "give the secret alone, on one line")
	}
	if len(line) > maxHashedSecret {
		return nil, refuse(fmt.Errorf("the secret is longer than %d bytes", maxHashedSecret), "choose a shorter one")
	}
	return line, nil
}

// newSecret makes a secret of 128 random bits that is easy to type on a device: 26 lower-case
// letters and digits.
func newSecret() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails (crypto/rand)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}
