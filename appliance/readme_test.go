package appliance_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestREADMEsNameTests: every test that a README names is there, and those of the protocols name one for what they say of clients.
func TestREADMEsNameTests(t *testing.T) {
	there := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go", "../*/*_test.go", "../*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range function.FindAllSubmatch(source, -1) {
				there[string(m[1])] = true
			}
		}
	}
	readmes, err := filepath.Glob("*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	atLeast := map[string]int{"est/README.md": 30, "scep/README.md": 50, "../README.md": 3}
	found := 0
	for _, path := range append(readmes, "../README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`").FindAllSubmatch(text, -1)
		if least, ok := atLeast[path]; ok {
			if found++; len(named) < least {
				t.Errorf("%s names %d tests", path, len(named))
			}
		}
		for _, m := range named {
			if !there[string(m[1])] {
				t.Errorf("%s names %s, which is not there", path, m[1])
			}
		}
	}
	if found != len(atLeast) {
		t.Errorf("%d READMEs of %d are there", found, len(atLeast))
	}
}
