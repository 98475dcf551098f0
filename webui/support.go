package webui

import (
	"archive/zip"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"

	"signet.internal/appliance/audit"
)

const (
	mediaZIP = "application/zip"
	// bundleRecords is how many audit records go into a support bundle: what happened of late.
	bundleRecords = 500
)

// bundleReadme says what is in a support bundle, to whoever hands it on and to whoever gets it.
const bundleReadme = `Signet support bundle
=====================

What somebody needs who helps with this box from afar. Look at it before you hand it on.

status.json         what booted, TPM, clock, certificates, profiles and what needs a person
health.json         storage, TPM queue, listeners, watchdog, length of the audit log
settings.json       what of the profiles was replaced while the box runs, by whom and when
certificates.pem    certificates of the authorities and of the box, which are public
metrics.txt         the counters of /metrics
audit.ndjson        the newest %d records of the audit log; who asked is written under a made-up name
log.txt             the newest lines of the box's own log, where it keeps them

Not in it: private keys, challenges, passwords, tokens, claim codes, and hashes of any of them.

In audit.ndjson identities, transactions, network addresses and people are pseudonyms: the same
name stands for the same thing in this bundle, and for nothing in another. Serials and request hashes are as
they are. Reasons can quote what a device asked for. log.txt has network addresses and the names of profiles and devices.
`

// apiSupportBundle sends everything in one piece; one is made at a time.
func (c *console) apiSupportBundle(w http.ResponseWriter, r *http.Request, _ principal) error {
	select {
	case c.bundling <- struct{}{}:
		defer func() { <-c.bundling }()
	default:
		return errBundles
	}
	archive, err := c.supportBundle(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="signet-support-%s.zip"`, c.cfg.Now().UTC().Format("20060102-150405")))
	write(w, http.StatusOK, mediaZIP, archive)
	return nil
}

// supportBundle is a ZIP archive of what bundleReadme lists.
func (c *console) supportBundle(r *http.Request) ([]byte, error) {
	status, err := c.status()
	if err != nil {
		return nil, err
	}
	if err := c.addSettings(&status); err != nil {
		return nil, err
	}
	health, err := c.healthDetails(status)
	if err != nil {
		return nil, err
	}
	settings, err := c.bundleSettings(status)
	if err != nil {
		return nil, err
	}
	records, err := c.bundleRecords()
	if err != nil {
		return nil, err
	}
	files := []struct {
		name string
		body []byte
	}{
		{"README.txt", fmt.Appendf(nil, bundleReadme, bundleRecords)},
		{"status.json", indented(status)},
		{"health.json", indented(health)},
		{"settings.json", indented(settings)},
		{"certificates.pem", c.bundleCertificates()},
		{"metrics.txt", c.bundleMetrics(r)},
		{"audit.ndjson", records},
		{"log.txt", nil},
	}
	if c.cfg.RecentLog != nil {
		files[len(files)-1].body = c.cfg.RecentLog()
	}
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, f := range files {
		to, err := archive.CreateHeader(&zip.FileHeader{Name: "signet-support/" + f.name, Method: zip.Deflate, Modified: c.cfg.Now().UTC()})
		if err == nil {
			_, err = to.Write(f.body)
		}
		if err != nil { // memory only
			return nil, fmt.Errorf("packing %s: %w", f.name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return nil, fmt.Errorf("packing the support bundle: %w", err)
	}
	return out.Bytes(), nil
}

// bundleSettings is what the API says of the profiles: of challenges, passwords and secrets that they are set.
func (c *console) bundleSettings(s Status) ([]ProfileDetails, error) {
	var all []ProfileDetails
	for _, p := range s.Profiles {
		one, err := c.profile(p.Name)
		if err != nil {
			return nil, fmt.Errorf("profile %s: %w", p.Name, err)
		}
		if one.Challenge != nil {
			one.Challenge.Public = ""
		}
		all = append(all, one)
	}
	return all, nil
}

func (c *console) bundleCertificates() []byte {
	out := c.cfg.CABundle()
	out = append([]byte{}, out...)
	add := func(label string, der []byte) {
		out = append(out, "# "+label+"\n"...)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	for _, a := range c.cfg.Box.Authorities() {
		for _, g := range a.Generations {
			if g.Certificate != nil {
				add(fmt.Sprintf("%s generation %d, %s", a.Name, g.Number, g.State), g.Certificate.Raw)
			}
			for _, above := range g.Chain {
				add(fmt.Sprintf("above %s generation %d", a.Name, g.Number), above.Raw)
			}
		}
		for _, ra := range a.RAs {
			add(a.Name+" RA", ra.Certificate.Raw)
		}
	}
	return out
}

// bundleMetrics asks for the metrics as a scraper would.
func (c *console) bundleMetrics(r *http.Request) []byte {
	w := &kept{header: http.Header{}}
	scrape := r.Clone(r.Context())
	scrape.Header = http.Header{}
	scrape.Method = http.MethodGet
	c.cfg.Metrics.ServeHTTP(w, scrape)
	return w.body.Bytes()
}

// kept is an answer that goes nowhere.
type kept struct {
	header http.Header
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) Write(p []byte) (int, error) { return k.body.Write(p) }
func (k *kept) WriteHeader(int)             {}

// bundleRecords are the newest audit records, oldest first, without who it was about.
func (c *console) bundleRecords() ([]byte, error) {
	page, err := c.auditPage(0, bundleRecords)
	if err != nil {
		return nil, err
	}
	names := newPseudonyms()
	var out []byte
	for i := len(page.Records) - 1; i >= 0; i-- {
		out = append(out, audit.Leaf(names.hide(page.Records[i]))...)
		out = append(out, '\n')
	}
	return out, nil
}

// pseudonyms stand for names under a key that nobody keeps.
type pseudonyms struct{ key [32]byte }

func newPseudonyms() *pseudonyms {
	p := &pseudonyms{}
	rand.Read(p.key[:])
	return p
}

func (p *pseudonyms) of(kind, name string) string {
	if name == "" {
		return ""
	}
	mac := hmac.New(sha256.New, p.key[:])
	mac.Write([]byte(kind + "\x00" + name))
	return kind + "-" + hex.EncodeToString(mac.Sum(nil)[:5])
}

// hide writes pseudonyms in place of who a record is about, in its reason too.
func (p *pseudonyms) hide(r audit.Record) audit.Record {
	hidden := r
	hidden.Identity = p.of("identity", r.Identity)
	hidden.Transaction = p.of("transaction", r.Transaction)
	hidden.Source = p.of("address", r.Source)
	if r.Actor != audit.ActorBox && r.Actor != audit.ActorDevice {
		hidden.Actor = p.of("person", r.Actor)
	}
	for _, name := range []struct{ was, is string }{{r.Identity, hidden.Identity}, {r.Transaction, hidden.Transaction}, {r.Source, hidden.Source}, {r.Actor, hidden.Actor}} {
		if len(name.was) > 2 && name.was != name.is {
			hidden.Reason = strings.ReplaceAll(hidden.Reason, name.was, name.is)
		}
	}
	return hidden
}

func indented(v any) []byte {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil { // only values of this package come here
		panic(err)
	}
	return append(body, '\n')
}
