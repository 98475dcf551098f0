package webui

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"unicode/utf8"

	"signet.internal/appliance/challenge/phc"
)

// nobodysHash stands for a user who does not exist: verifying it costs what verifying any other
// costs, and no password derives to all zeros.
const nobodysHash = "$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

const (
	minPassword = 12  // characters
	maxPassword = 256 // bytes
	maxWaiting  = 8   // sign-ins of a kind that may wait for the hasher
)

// hasher runs argon2id one at a time: each run takes 64 MiB, and a small box has 512. Strangers wait apart
// from people the box knows, so that many guesses at once do not turn those away.
type hasher struct {
	running   chan struct{}
	known     chan struct{}
	strangers chan struct{}
}

func newHasher() *hasher {
	return &hasher{running: make(chan struct{}, 1), known: make(chan struct{}, maxWaiting), strangers: make(chan struct{}, maxWaiting)}
}

// run calls f when its turn comes, waiting among known or strangers. It returns errBusy when too many wait already, or the context's
// error.
func (h *hasher) run(ctx context.Context, waiting chan struct{}, f func()) error {
	select {
	case waiting <- struct{}{}:
		defer func() { <-waiting }()
	default:
		return errBusy
	}
	select {
	case h.running <- struct{}{}:
		defer func() { <-h.running }()
	case <-ctx.Done():
		return ctx.Err()
	}
	f()
	return nil
}

// hash returns the hash of password under a fresh salt.
func (h *hasher) hash(ctx context.Context, password string) (text string, err error) {
	err = h.run(ctx, h.known, func() { text = phc.Make([]byte(password)) })
	return text, err
}

// verify returns nil for the right password and errWrongPassword for any other. It waits among waiting.
func (h *hasher) verify(ctx context.Context, waiting chan struct{}, text, password string) error {
	hash, err := phc.Parse(text)
	if err != nil {
		return fmt.Errorf("stored password hash: %w", err)
	}
	var right bool
	if err := h.run(ctx, waiting, func() { right = hash.Matches([]byte(password)) }); err != nil {
		return err
	}
	if !right {
		return errWrongPassword
	}
	return nil
}

// checkPassword refuses what is too short to withstand guessing or too long to be a password.
func checkPassword(p string) error {
	switch {
	case !utf8.ValidString(p) || len(p) > maxPassword:
		return &inputError{"password", fmt.Sprintf("the password is longer than %d bytes or not UTF-8", maxPassword), "choose a shorter one, or leave it empty and the box makes one"}
	case utf8.RuneCountInString(p) < minPassword:
		return &inputError{"password", fmt.Sprintf("the password has fewer than %d characters", minPassword), "choose a longer one, or leave it empty and the box makes one"}
	}
	return nil
}

// makePassword returns 140 random bits as seven groups of four lower-case letters and digits.
func makePassword() string {
	text := strings.ToLower(rand.Text() + rand.Text()) // base32, 26 characters each
	groups := make([]string, 7)
	for i := range groups {
		groups[i] = text[4*i : 4*i+4]
	}
	return strings.Join(groups, "-")
}
