package main

import (
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// documents are the tree's texts for people, by path from its root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.ToSlash(file), "../../")
		if d.IsDir() && (name == "build" || name == "bin" || d.Name() == ".git" || d.Name() == "secrets") {
			return fs.SkipDir
		}
		if strings.HasSuffix(name, ".md") {
			text, err := os.ReadFile(file)
			all[name] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 8 || all["README.md"] == "" {
		t.Fatalf("%d documents found", len(all))
	}
	return all
}

// TestDocumentsNameTests: every test that a document names is there, in the package it is said to be of.
func TestDocumentsNameTests(t *testing.T) {
	there := map[string][]string{} // packages by test
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir("../..", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		source, err := os.ReadFile(file)
		for _, m := range function.FindAllSubmatch(source, -1) {
			there[string(m[1])] = append(there[string(m[1])], path.Dir(strings.TrimPrefix(filepath.ToSlash(file), "../../")))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// In the tables of SCEP and EST a word before a test or several is their package; no word is the table's own.
	named := regexp.MustCompile("(?:([a-z]+): )?((?:`(?:Test|Fuzz|Benchmark)[A-Z]\\w*`(?:, | and )?)+)")
	one := regexp.MustCompile("`(\\w+)`")
	found := map[string]int{}
	for name, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			for _, test := range one.FindAllStringSubmatch(m[2], -1) {
				found[name]++
				packages := there[test[1]]
				if len(packages) == 0 {
					t.Errorf("%s names %s, which is not there", name, test[1])
				}
				if name != "appliance/scep/README.md" && name != "appliance/est/README.md" || len(packages) == 0 {
					continue
				}
				of := path.Dir(name)
				if m[1] == "appliance" {
					of = m[1]
				} else if slices.Contains([]string{"cms", "pki", "enroll", "challenge"}, m[1]) {
					of = "appliance/" + m[1]
				}
				if !slices.Contains(packages, of) {
					t.Errorf("%s says that %s is of %s; it is of %s", name, test[1], of, packages)
				}
			}
		}
	}
	for name, least := range map[string]int{"README.md": 3, "appliance/README.md": 5, "appliance/scep/README.md": 50, "appliance/est/README.md": 30} {
		if found[name] < least {
			t.Errorf("%s names %d tests", name, found[name])
		}
	}
}

// TestDocumentsNameFiles: every link, every path below a directory of the tree, and every make target that a document names is there.
func TestDocumentsNameFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	inTree := regexp.MustCompile("`((?:appliance|cmd|configs|image|provision|tpm|webui)(?:/[\\w.-]+)*)/?`")
	target := regexp.MustCompile("(?m)(?:^|`)make ([a-z-]+)")
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	paths, targets := 0, 0
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			paths++
			if _, err := os.Stat(filepath.Join("../..", path.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
		for _, m := range inTree.FindAllStringSubmatch(text, -1) {
			paths++
			if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", name, m[1], err)
			}
		}
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			targets++
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s names make %s, which is no target", name, m[1])
			}
		}
	}
	if paths < 30 || targets < 3 {
		t.Errorf("%d paths and %d make targets are named", paths, targets)
	}
}

// TestDocumentsNameCommands: every command of signet that a document or a command's help names, and every flag it
// gives it, is there.
func TestDocumentsNameCommands(t *testing.T) {
	root := newRoot(&terminal{})
	texts := documents(t)
	var help func(*cobra.Command)
	help = func(c *cobra.Command) {
		texts[c.CommandPath()+" --help"] = c.Use + "\n" + c.Long
		for _, sub := range c.Commands() {
			help(sub)
		}
	}
	help(root)
	call := regexp.MustCompile("(?m)(?:^|[`(]|bin/)signet ([a-z][a-z-]*)(?: ([a-z]+))?([^`\n#]*)")
	flag := regexp.MustCompile(`(?:^|\s)(--?[a-z][a-z-]*)`)
	calls := 0
	for name, text := range texts {
		for _, m := range call.FindAllStringSubmatch(text, -1) {
			calls++
			c, _, err := root.Find([]string{m[1]})
			if err != nil || c == root {
				t.Errorf("%s names signet %s, which is no command", name, m[1])
				continue
			}
			if c.HasSubCommands() && m[2] != "" {
				sub, _, err := c.Find([]string{m[2]})
				if err != nil || sub == c {
					t.Errorf("%s names signet %s %s, which is no command", name, m[1], m[2])
					continue
				}
				c = sub
			}
			c.InitDefaultHelpFlag()
			for _, f := range flag.FindAllStringSubmatch(m[3], -1) {
				long := strings.TrimPrefix(f[1], "--")
				if long == f[1] && c.Flags().ShorthandLookup(f[1][1:]) == nil || long != f[1] && c.Flag(long) == nil {
					t.Errorf("%s gives signet %s the flag %s, which it has not", name, c.Name(), f[1])
				}
			}
		}
	}
	if calls < 20 {
		t.Errorf("%d calls are named", calls)
	}
}

// TestDocumentsNameRoutes: every route of the API that a document names is one.
func TestDocumentsNameRoutes(t *testing.T) {
	box := newTestConsole(t)
	client, err := (&apiFlags{caBundle: box.bundle}).dial(box.url)
	if err != nil {
		t.Fatal(err)
	}
	var api struct{ Paths map[string]any }
	if err := client.call(t.Context(), http.MethodGet, "/openapi.json", nil, &api); err != nil {
		t.Fatal(err)
	}
	parameter, named := regexp.MustCompile(`\\{\w+\\}`), 0
	for name, text := range documents(t) {
		for _, said := range regexp.MustCompile(`/api/v1/[\w/-]+`).FindAllString(text, -1) {
			named++
			there := false
			for route := range api.Paths {
				form := "^" + parameter.ReplaceAllString(regexp.QuoteMeta(route), `[^/]+`) + "$"
				there = there || strings.HasSuffix(said, "/") && strings.HasPrefix(route, said) || regexp.MustCompile(form).MatchString(said)
			}
			if !there {
				t.Errorf("%s names %s, which is no route", name, said)
			}
		}
	}
	if named < 5 {
		t.Errorf("%d routes are named", named)
	}
}
