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

	"github.com/goccy/go-yaml/ast"

	"signet.internal/appliance/pki"
)

const (
	siteFile    = "site.yaml"
	profilesDir = "profiles"
	trustDir    = "trust"

	maxFile  = 1 << 20 // bytes of one file
	maxFiles = 256     // in one directory
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

func load(fsys fs.FS, now time.Time) (*Site, error) {
	l := &loader{fsys: fsys, now: now}
	l.site.Listeners = Listeners{SCEP: true, Console: true, Plain: true}
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
	if len(content) > maxFile {
		l.failf(name, "make it smaller", "larger than %d MiB", maxFile>>20)
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
	o := d.object(body, "", "name", "version", "epoch", "public_host", "secure_boot", "network", "listeners", "authorities", "ra")
	o.require("name", "write a short name such as plant-7")
	o.require("version", "write a version such as 0.1.0")
	o.require("epoch", "write epoch: 1")
	o.require("public_host", "write the DNS name or address devices reach the box by")
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
		if _, err := netip.ParseAddr(host); err != nil && pki.CheckDNSName(host) != nil {
			o.failf("public_host", "write a DNS name or an IP address, without scheme or port", "%q is neither", host)
		}
		l.site.PublicHost = host
	}
	l.site.SecureBoot = o.choice("secure_boot", "none")
	l.readNetwork(o.object("network", "dhcp", "address", "gateway", "dns"))
	l.readListeners(o.object("listeners", "est", "scep", "console", "plain"))
	l.readAuthorities(o)
	l.readRA(o.object("ra", "algorithm", "protection", "validity"))
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

func (l *loader) readNetwork(o *object) {
	if o == nil {
		return
	}
	n := &l.site.Network
	n.DHCP, _ = o.bool("dhcp")
	if n.DHCP {
		for _, field := range []string{"address", "gateway", "dns"} {
			if o.has(field) {
				o.failf(field, "remove it, or write dhcp: false", "means nothing while dhcp is true")
			}
		}
		return
	}
	o.require("address", "write the box's address with its network's length, such as 192.0.2.10/24, or dhcp: true")
	o.require("gateway", "write the router's address")
	if text, ok := o.text("address"); ok {
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			o.failf("address", "write it with its network's length, such as 192.0.2.10/24", "%q is not an address with a length", text)
		case !usableAddress(prefix.Addr()) || prefix.Bits() < prefix.Addr().BitLen()-1 && prefix.Masked().Addr() == prefix.Addr():
			o.failf("address", "write the box's own address, such as 192.0.2.10/24", "%s is not a host's address", text)
		default:
			n.Address = prefix
		}
	}
	if text, ok := o.text("gateway"); ok {
		n.Gateway = address(o, "gateway", text)
		if n.Gateway.IsValid() && n.Address.IsValid() && (!n.Address.Contains(n.Gateway) || n.Gateway == n.Address.Addr()) {
			o.failf("gateway", "write the address of the router on the box's own network", "%s is not another address in %s", text, n.Address.Masked())
		}
	}
	for i, text := range o.texts("dns") {
		if text != "" {
			n.DNS = append(n.DNS, address(o, fmt.Sprintf("dns[%d]", i), text))
		}
	}
}

func usableAddress(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a.Zone() == ""
}

func address(o *object, field, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !usableAddress(a) {
		o.failf(field, "write a host's address such as 192.0.2.1", "%q is not a host's address", text)
		return netip.Addr{}
	}
	return a
}

// readListeners reads what is written; est is off otherwise, every other listener on.
func (l *loader) readListeners(o *object) {
	for name, on := range map[string]*bool{"est": &l.site.Listeners.EST, "scep": &l.site.Listeners.SCEP, "console": &l.site.Listeners.Console, "plain": &l.site.Listeners.Plain} {
		listener := o.object(name, "on")
		listener.require("on", "write on: true or on: false")
		if b, ok := listener.bool("on"); ok {
			*on = b
		}
	}
	if o != nil && !l.site.Listeners.SCEP && !l.site.Listeners.Plain {
		o.d.failf(o.line, "write scep: {on: true}", "no listener is on that a device can enroll at")
	}
	if !l.site.Listeners.Console {
		o.failf("console", "write console: {on: true}", "without it nobody can claim the box or see its state")
	}
}

func keyAlgorithms() []string {
	return []string{"rsa-2048", "rsa-3072", "rsa-4096", "ecdsa-p256", "ecdsa-p384"}
}

func (l *loader) readAuthorities(o *object) {
	nodes := o.list("authorities")
	if list, ok := o.value("authorities").(*ast.SequenceNode); ok && len(list.Values) == 0 {
		o.failf("authorities", "write at least one authority", "the list is empty")
	}
	seen := map[string]bool{}
	for i, n := range nodes {
		a := o.d.object(n, o.element("authorities", i), "name", "mode", "subject", "key")
		a.require("name", "write a short name such as devices")
		a.require("mode", "write mode: root")
		a.require("subject", `write a subject such as "CN=Plant 7 Devices CA,O=Example"`)
		a.require("key", "write key: {algorithm: rsa-2048, protection: resident}")
		var authority Authority
		authority.Name, _ = a.text("name")
		if authority.Name != "" {
			checkLabel(a, "name", authority.Name)
			if seen[authority.Name] {
				a.failf("name", "give each authority a name of its own", "authority %s is there twice", authority.Name)
			}
			seen[authority.Name] = true
		}
		a.choice("mode", "root")
		if text, ok := a.text("subject"); ok {
			raw, err := pki.ParseDN(text)
			if err != nil {
				a.failf("subject", `write a subject such as "CN=Plant 7 Devices CA,O=Example"`, "%v", err)
			}
			authority.Subject, authority.SubjectText = raw, text
			for _, other := range l.site.Authorities {
				if err == nil && bytes.Equal(other.Subject, raw) {
					a.failf("subject", "give each authority a subject of its own: devices tell them apart by it", "authorities %s and %s have the same", other.Name, authority.Name)
				}
			}
		}
		key := a.object("key", "algorithm", "protection")
		key.require("algorithm", "write algorithm: rsa-2048 or ecdsa-p256")
		authority.Algorithm = key.choice("algorithm", keyAlgorithms()...)
		authority.Protection = protection(key, resident)
		l.site.Authorities = append(l.site.Authorities, authority)
	}
}

// protection reads how a key is kept, with what is meant where it is not written.
func protection(o *object, otherwise string) string {
	if !o.has("protection") {
		return otherwise
	}
	return o.choice("protection", resident, sealed)
}

func (l *loader) readRA(o *object) {
	o.require("algorithm", "write algorithm: rsa-2048")
	o.require("validity", "write validity: 365d")
	l.site.RA.Algorithm = o.choice("algorithm", "rsa-2048", "rsa-3072", "rsa-4096")
	l.site.RA.Protection = protection(o, sealed)
	if d, ok := o.duration("validity"); ok {
		if d < 24*time.Hour || d > 3650*24*time.Hour {
			o.failf("validity", "write a duration from 1d to 3650d, such as 365d", "%s is not a usable validity", d)
		}
		l.site.RA.Validity = d
	}
}

// readProfiles reads every file in profiles/.
func (l *loader) readProfiles() {
	for _, entry := range l.readDir(profilesDir) {
		name := path.Join(profilesDir, entry.Name())
		if entry.IsDir() || path.Ext(name) != ".yaml" {
			l.failf(name, "remove it, or name it *.yaml if it is a profile", "only files named *.yaml belong in %s/", profilesDir)
			continue
		}
		if content := l.readFile(name); content != nil {
			l.readProfile(name, content)
		}
	}
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
