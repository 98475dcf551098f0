package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"signet.internal/configs"
	"signet.internal/image"
	"signet.internal/provision"
)

// secretsDir holds a site's signing keys; it is never committed and never baked.
const secretsDir = "secrets"

// initOptions is how `signet init` was called.
type initOptions struct {
	dir        string
	name       string
	publicHost string
	keysOnly   bool
}

// initResult is what `signet init --json` prints.
type initResult struct {
	Dir       string   `json:"dir"`
	Name      string   `json:"name"`
	Profile   string   `json:"profile,omitempty"`
	Challenge string   `json:"challenge,omitempty"` // the profile's; stored nowhere
	Files     []string `json:"files"`               // written, relative to dir
	User      string   `json:"user,omitempty"`      // of EST
	Password  string   `json:"password,omitempty"`  // the user's; stored nowhere
}

func newInit(t *terminal) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "write a new site with fresh signing keys",
		Long: `Writes a commented site into DIR, which must be empty or absent: site.yaml, a profile with a fresh
challenge and EST password (printed once), and signing keys in DIR/secrets. With --keys-only it adds signing keys to a site
that has none, and leaves one that has them alone.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error {
			o.dir = a[0]
			if o.keysOnly {
				return initKeys(t, o)
			}
			return initSite(t, o)
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "name of the site (default: the directory's)")
	cmd.Flags().StringVar(&o.publicHost, "public-host", "signet.local", "DNS name or address devices reach the box by")
	cmd.Flags().BoolVar(&o.keysOnly, "keys-only", false, "only add missing signing keys to an existing site")
	return cmd
}

// initKeys adds signing keys to an existing site. Keys that are there are never touched: boxes in
// the field are bound to them.
func initKeys(t *terminal, o initOptions) error {
	site, err := provision.Load(os.DirFS(o.dir))
	if err != nil {
		return refuse(fmt.Errorf("%s is not a sound site:\n%w", o.dir, err), "mend it first; `signet check` lists what is wrong")
	}
	result := initResult{Dir: o.dir, Name: site.Name, Files: []string{}}
	err = image.WriteSigningKeys(filepath.Join(o.dir, secretsDir), site.Name)
	if errors.Is(err, image.ErrKeysExist) {
		return t.result(result, fmt.Sprintf("%s has signing keys already\n", o.dir))
	}
	if err != nil {
		return err
	}
	result.Files = append(result.Files, secretsDir)
	return t.result(result, fmt.Sprintf("signing keys of site %s written to %s\n", site.Name, filepath.Join(o.dir, secretsDir)))
}

// initSite writes a new site.
func initSite(t *terminal, o initOptions) error {
	if err := checkEmpty(o.dir); err != nil {
		return err
	}
	if o.name == "" {
		name, err := nameFrom(o.dir)
		if err != nil {
			return err
		}
		o.name = name
	}
	if o.name == provision.DemoName {
		return refuse(fmt.Errorf("%q is the name of the demo site, whose boxes say they are not for production", o.name), "choose another with --name")
	}
	v := o.values()
	challenge, password := newSecret(), newSecret()
	for secret, hash := range map[string]*string{challenge: &v.ChallengeHash, password: &v.PasswordHash} {
		var err error
		if *hash, err = provision.HashSecret([]byte(secret)); err != nil {
			return fmt.Errorf("hashing secret: %w", err)
		}
	}
	files, err := renderSite(v)
	if err != nil {
		return err
	}
	written, err := writeSite(o, files)
	if err != nil {
		return err
	}
	result := initResult{Dir: o.dir, Name: o.name, Profile: "corp", Challenge: challenge, Files: written, User: "device", Password: password}
	text := fmt.Sprintf("site %s written to %s\nchallenge of profile corp: %s\nEST password of user device: %s\n", o.name, o.dir, challenge, password)
	if err := t.result(result, text); err != nil {
		return err
	}
	t.notef("challenge and password are shown this once: the site holds only their hashes")
	t.notef("%s signs every image of this site's boxes: back it up, never commit it", filepath.Join(o.dir, secretsDir))
	t.notef("next: edit %s, then `signet check %s`, then `signet bake %s -o OUT`", filepath.Join(o.dir, "site.yaml"), o.dir, o.dir)
	return nil
}

// checkEmpty refuses a directory that holds anything but version control.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return refuse(fmt.Errorf("%s cannot be listed: %w", dir, err), "name a directory that is empty or absent")
	}
	for _, entry := range entries {
		if entry.Name() != ".git" {
			return refuse(fmt.Errorf("%s is not empty", dir), "name a directory that is empty or absent; --keys-only adds signing keys to an existing site")
		}
	}
	return nil
}

// nameFrom makes a site's name from its directory's.
func nameFrom(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("naming the site: %w", err)
	}
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(filepath.Base(abs)), "-")
	name = strings.Trim(name, "-")
	if len(name) > 32 {
		name = strings.Trim(name[:32], "-")
	}
	if name == "" {
		return "", refuse(fmt.Errorf("%q does not make a name for a site", filepath.Base(abs)), "name it with --name")
	}
	return name, nil
}

// siteValues are what the template of a site is executed with.
type siteValues struct {
	Name, PublicHost, Subject string
	DNSPattern                string // in quotes; "" for none
	ChallengeHash             string // of profile corp
	PasswordHash              string // of its EST user
}

// values are o's, without hashes.
func (o initOptions) values() siteValues {
	v := siteValues{Name: o.name, PublicHost: o.publicHost, Subject: "CN=" + o.name + " Devices CA"}
	if _, domain, ok := strings.Cut(o.publicHost, "."); ok && strings.ContainsFunc(domain, isLetter) {
		v.DNSPattern = fmt.Sprintf("%q", "*."+domain)
	}
	return v
}

// renderSite executes the embedded template; the paths are relative to the site.
func renderSite(values siteValues) (map[string][]byte, error) {
	const suffix = ".tmpl"
	files := map[string][]byte{".gitignore": []byte("/" + secretsDir + "/\n")}
	err := fs.WalkDir(configs.Template, "template", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(configs.Template, path)
		if err != nil {
			return err
		}
		tmpl, err := template.New(path).Option("missingkey=error").Parse(string(content))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := tmpl.Execute(&b, values); err != nil {
			return err
		}
		files[strings.TrimSuffix(strings.TrimPrefix(path, "template/"), suffix)] = b.Bytes()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("rendering the site: %w", err)
	}
	return files, nil
}

func isLetter(c rune) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// writeSite writes the files, checks the site they make and adds the signing keys. Where anything
// fails it removes what it wrote.
func writeSite(o initOptions, files map[string][]byte) (written []string, err error) {
	_, statErr := os.Stat(o.dir)
	defer func() {
		if err == nil {
			return
		}
		// Best effort after an error; Remove leaves directories that hold anything.
		for _, name := range written {
			path := filepath.Join(o.dir, filepath.FromSlash(name))
			os.Remove(path)
			if parent := filepath.Dir(path); parent != filepath.Clean(o.dir) {
				os.Remove(parent)
			}
		}
		if errors.Is(statErr, fs.ErrNotExist) {
			os.Remove(o.dir)
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(o.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return written, fmt.Errorf("writing site: %w", err)
		}
		written = append(written, name)
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return written, fmt.Errorf("writing site: %w", err)
		}
	}
	if _, err := provision.Load(os.DirFS(o.dir)); err != nil {
		return written, refuse(fmt.Errorf("the site would not be sound:\n%w", err), "choose another --name or --public-host")
	}
	if err := image.WriteSigningKeys(filepath.Join(o.dir, secretsDir), o.name); err != nil {
		return written, err
	}
	return append(written, secretsDir), nil
}
