package provision

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"signet.internal/appliance/pki"
)

const (
	siteFile    = "site.yaml"
	profilesDir = "profiles"
	trustDir    = "trust"

	maxFile  = 1 << 20   // bytes of one file
	maxYAML  = 256 << 10 // of site.yaml or a profile: a hostile one of 1 MiB keeps the parser busy for minutes
	maxFiles = 256       // in one directory
)

// Load reads and checks a site, with its certificates as of now; the error is [Problems] with
// everything found. secrets/ and what else lies beside the site's own files is not looked at.
func Load(site fs.FS) (*Site, error) { return load(site, time.Now()) }

// LoadBaked reads a site that passed [Load] before it was baked. It is the same but for the clock:
// a certificate that has expired since, or a clock that is wrong, does not stop a box.
func LoadBaked(site fs.FS) (*Site, error) { return load(site, time.Time{}) }

// loader collects a site and its problems.
type loader struct {
	fsys     fs.FS
	now      time.Time // zero: certificates may have expired
	site     Site
	problems Problems
}

func newLoader(fsys fs.FS, now time.Time) *loader {
	l := &loader{fsys: fsys, now: now}
	// Until a site.yaml that can be read says otherwise: its profiles are not blamed for what is wrong with it.
	l.site.Listeners = Listeners{EST: true, SCEP: true, Console: true, Plain: true, Legacy: true, LegacySCEP: true}
	return l
}

func load(fsys fs.FS, now time.Time) (*Site, error) {
	l := newLoader(fsys, now)
	l.readSite()
	l.readProfiles()
	l.readTrust()
	l.checkTogether()
	if len(l.problems) > 0 {
		return nil, l.problems.sorted()
	}
	slices.Sort(l.site.Files)
	return &l.site, nil
}

func (l *loader) failf(file, mend, format string, args ...any) {
	l.problems = append(l.problems, Problem{File: file, What: fmt.Sprintf(format, args...), Mend: mend})
}

// readFile returns a file's content, nil where that is a problem.
func (l *loader) readFile(name string) []byte {
	f, err := l.fsys.Open(name)
	if err != nil {
		l.failf(name, "make the file readable", "cannot be opened: %v", pathCause(err))
		return nil
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		l.failf(name, "make it a readable file", "cannot be read: %v", pathCause(err))
		return nil
	}
	most := maxFile
	if path.Ext(name) == ".yaml" {
		most = maxYAML
	}
	if len(content) > most {
		l.failf(name, "make it smaller", "larger than %d KiB", most>>10)
		return nil
	}
	l.site.Files = append(l.site.Files, name)
	return content
}

// pathCause drops the operation and path a problem states already.
func pathCause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// readDir lists a directory of the site; an absent one is empty.
func (l *loader) readDir(dir string) []fs.DirEntry {
	entries, err := fs.ReadDir(l.fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		l.failf(dir, "make it a readable directory", "cannot be listed: %v", pathCause(err))
		return nil
	}
	if len(entries) > maxFiles {
		l.failf(dir, "remove what does not belong there", "more than %d files", maxFiles)
		return entries[:maxFiles]
	}
	return entries
}

// readSite reads site.yaml.
func (l *loader) readSite() {
	if _, err := fs.Stat(l.fsys, siteFile); errors.Is(err, fs.ErrNotExist) {
		l.failf(siteFile, "`signet init DIR` writes a site", "there is no site.yaml")
		return
	}
	content := l.readFile(siteFile)
	if content == nil {
		return
	}
	d, body := parseDocument(siteFile, content)
	defer func() { l.problems = append(l.problems, d.problems...) }()
	o := d.object(body, "", "name", "version", "epoch", "public_host", "secure_boot", "network", "listeners", "trusted_proxies", "authorities", "ra", "audit")
	if o == nil {
		return
	}
	o.require("name", "write a short name such as plant-7")
	o.require("version", "write a version such as 0.1.0")
	o.require("epoch", "write epoch: 1")
	o.require("secure_boot", "write secure_boot: none")
	o.require("network", "write network: {dhcp: true}, or address, gateway and dns")
	o.require("authorities", "write a list with at least one authority")
	o.require("ra", "write ra: {algorithm: rsa-2048, protection: sealed, validity: 365d}")

	if l.site.Name, _ = o.text("name"); o.has("name") {
		checkLabel(o, "name", l.site.Name)
	}
	if v, ok := o.text("version"); ok {
		if !versionForm().MatchString(v) {
			o.failf("version", "write MAJOR.MINOR.PATCH such as 0.1.0", "%q is not a version", v)
		}
		l.site.Version = v
	}
	epoch, _ := o.number("epoch", 1, 1<<20)
	l.site.Epoch = uint32(epoch)
	if host, ok := o.text("public_host"); ok {
		const mend = "write a DNS name or an IP address, without scheme or port"
		if a, err := netip.ParseAddr(host); err != nil && pki.CheckDNSName(host) != nil {
			o.failf("public_host", mend, "%q is neither", host)
		} else if err == nil && (a.IsUnspecified() || a.IsMulticast() || a.Zone() != "") {
			o.failf("public_host", mend, "%s is an address no device reaches the box by", host)
		}
		l.site.PublicHost = host
	}
	l.site.SecureBoot = o.choice("secure_boot", "none")
	l.readNetwork(o.object("network", "dhcp", "address", "gateway", "dns"))
	l.readListeners(o.object("listeners", "est", "scep", "console", "plain", "legacy", "legacy_scep"))
	if l.site.Listeners.Plain {
		o.require("public_host", "write the DNS name or address devices reach the box by: certificates say it where their CRL and OCSP are, on listener plain")
	}
	l.readTrustedProxies(o.object("trusted_proxies", "enabled", "networks", "bundle"))
	l.readAuthorities(o)
	l.readAudit(o.object("audit", "retention", "syslog"))
	l.readRA(o.object("ra", "algorithm", "protection", "validity", "overlap"))
}

func versionForm() *regexp.Regexp {
	return regexp.MustCompile(`^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})$`)
}

// checkLabel checks a name of a site, an authority or a profile: it goes into URLs and key names.
func checkLabel(o *object, field, s string) {
	form := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	if s != "" && !form.MatchString(s) {
		o.failf(field, "write up to 32 lower-case letters, digits and inner hyphens", "%q cannot be a name", s)
	}
}

// readProfiles reads every file in profiles/.
func (l *loader) readProfiles() {
	for _, name := range l.profileFiles() {
		if content := l.readFile(name); content != nil {
			l.readProfile(name, content)
		}
	}
}

// profileFiles lists the files in profiles/, in order.
func (l *loader) profileFiles() []string {
	var names []string
	for _, entry := range l.readDir(profilesDir) {
		name := path.Join(profilesDir, entry.Name())
		if entry.IsDir() || path.Ext(name) != ".yaml" {
			l.failf(name, "remove it, or name it *.yaml if it is a profile", "only files named *.yaml belong in %s/", profilesDir)
			continue
		}
		names = append(names, name)
	}
	return names
}

// checkTogether checks what no file can say alone. It waits for profiles that can be read.
func (l *loader) checkTogether() {
	if l.hasProblemIn(profilesDir) {
		return
	}
	if len(l.site.Profiles) == 0 {
		l.failf(profilesDir, "write profiles/corp.yaml, or take the one `signet init` writes", "there is no profile")
		return
	}
	if !slices.ContainsFunc(l.site.Profiles, func(p Profile) bool { return p.Default }) {
		l.failf(profilesDir, "write default: true in the one that devices without a profile in their URL get", "no profile is the default")
	}
}

// hasProblemIn reports whether a file of a directory, or the directory, has a problem already.
func (l *loader) hasProblemIn(dir string) bool {
	return slices.ContainsFunc(l.problems, func(p Problem) bool {
		return p.File == dir || strings.HasPrefix(p.File, dir+"/")
	})
}

// lineNumber is the 1-based line at an offset.
func lineNumber(content []byte, offset int) int {
	return 1 + bytes.Count(content[:offset], []byte{'\n'})
}
