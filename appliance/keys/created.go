package keys

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what is made at run time. Whoever takes the enrollment service over can ask for keys and
// hand in secrets; together with what was provisioned, all of them fit KEYS.
const (
	MaxCreated = 64      // keys
	MaxSecrets = 64      // secrets
	MaxSecret  = 4 << 10 // bytes of a secret
)

// Prefixes of names given at run time.
const (
	IntunePrefix = "intune/" // + profile
	SecretPrefix = "secret/" // + label, or label/label

	raPrefix = NameRA + "." // + number
)

var (
	// ErrExists says that the name belongs to another key: one of another algorithm or protection, or
	// one that was provisioned.
	ErrExists = errors.New("another key has that name")
	// ErrNotRecorded says that what keeps KEYS has stopped answering, so that this boot makes and removes no
	// more keys and secrets. Those there are stay usable.
	ErrNotRecorded = errors.New("keys and secrets cannot be stored any more until the next boot; switch the box off and on")
)

// isLabel says whether s is a name as sites give them: up to 32 lower-case letters, digits and hyphens,
// no hyphen first or last.
func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 32 && s[0] != '-' && s[len(s)-1] != '-'
}

// isGeneration says whether s counts a key after the provisioned one, which is the first: 2 to 999999.
func isGeneration(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= 2 && n <= 999999 && strconv.Itoa(n) == s
}

// isRA says whether the key of that name decrypts: the provisioned RA key and those that follow it.
func isRA(name string) bool {
	n, ok := strings.CutPrefix(name, raPrefix)
	return name == NameRA || ok && isGeneration(n)
}

var algorithms = []string{"rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384"}

// checkCreated says what keeps a key from being made at run time, whatever keys there are.
func checkCreated(s Spec) error {
	ok := isRA(s.Name) && s.Name != NameRA
	if rest, found := strings.CutPrefix(s.Name, AuthorityPrefix); found {
		label, n, _ := strings.Cut(rest, ".")
		ok = isLabel(label) && isGeneration(n)
	}
	if label, found := strings.CutPrefix(s.Name, IntunePrefix); found {
		ok = isLabel(label)
	}
	switch {
	case !ok:
		return fmt.Errorf("no key may be made with the name %q; use authority/NAME.N, ra.N or intune/PROFILE, with N from 2", s.Name)
	case !slices.Contains(algorithms, s.Algorithm):
		return fmt.Errorf("key algorithm %q is not supported; use %s", s.Algorithm, strings.Join(algorithms, ", "))
	case isRA(s.Name) && !strings.HasPrefix(s.Algorithm, "rsa-"):
		return fmt.Errorf("a key of %s does not decrypt, and that of an RA has to; use rsa-2048, rsa-3072 or rsa-4096", s.Algorithm)
	case s.Protection != Resident && s.Protection != Sealed:
		return fmt.Errorf("unknown protection %q; use %s or %s", s.Protection, Resident, Sealed)
	}
	return nil
}

// checkSecretName says what is wrong with the name of a secret.
func checkSecretName(name string) error {
	rest, ok := strings.CutPrefix(name, SecretPrefix)
	first, second, two := strings.Cut(rest, "/")
	if !ok || !isLabel(first) || two && !isLabel(second) {
		return fmt.Errorf("no secret may have the name %q; use secret/LABEL or secret/LABEL/LABEL", name)
	}
	return nil
}
