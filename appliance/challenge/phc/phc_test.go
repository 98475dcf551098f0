package phc

import (
	"errors"
	"strings"
	"testing"
)

func TestMakeAndParse(t *testing.T) {
	text := Make([]byte("secret"))
	if !strings.HasPrefix(text, "$argon2id$v=19$m=65536,t=3,p=1$") {
		t.Errorf("made %q", text)
	}
	hash, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if !hash.Matches([]byte("secret")) {
		t.Error("the right secret does not match")
	}
	for _, wrong := range []string{"", "secre", "secret ", "Secret"} {
		if hash.Matches([]byte(wrong)) {
			t.Errorf("%q matches", wrong)
		}
	}
	if (Hash{}).Matches(nil) {
		t.Error("the zero Hash matches")
	}
}

func TestParseRefuses(t *testing.T) {
	good := Make([]byte("secret"))
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%q has no %q", good, old)
		}
		return strings.Replace(good, old, new, 1)
	}
	parts := strings.Split(good, "$")
	tests := map[string]string{
		"empty":              "",
		"in clear":           "secret",
		"argon2i":            replace("argon2id", "argon2i"),
		"bcrypt":             "$2a$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
		"other version":      replace("v=19", "v=16"),
		"little memory":      replace("m=65536", "m=8192"),
		"too much memory":    replace("m=65536", "m=65537"),
		"memory overflow":    replace("m=65536", "m=4294967297"),
		"one pass":           replace("t=3", "t=1"),
		"too many passes":    replace("t=3", "t=11"),
		"no lane":            replace("p=1", "p=0"),
		"too many lanes":     replace("p=1", "p=5"),
		"lanes that wrap":    replace("p=1", "p=257"),
		"leading zero":       replace("t=3", "t=03"),
		"sign":               replace("t=3", "t=+3"),
		"other order":        replace("m=65536,t=3", "t=3,m=65536"),
		"more costs":         replace("p=1", "p=1,x=1"),
		"short salt":         strings.Join([]string{"", parts[1], parts[2], parts[3], "AAAA", parts[5]}, "$"),
		"short hash":         strings.Join([]string{"", parts[1], parts[2], parts[3], parts[4], "AAAA"}, "$"),
		"long hash":          good + strings.Repeat("AAAA", 20),
		"padding":            good + "=",
		"missing hash":       strings.Join(parts[:5], "$"),
		"one field more":     good + "$",
		"longer than a hash": good + strings.Repeat("A", 1000),
		"line end":           good + "\n",
	}
	for name, text := range tests {
		if _, err := Parse(text); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
