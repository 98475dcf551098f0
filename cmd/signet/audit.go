package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"signet.internal/appliance/audit"
)

// newAudit groups what is done with the audit log.
func newAudit(t *terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "export a box's audit log, and verify an export or the proof of a record offline",
		Args: func(_ *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usage(fmt.Errorf("unknown command %q", "audit "+a[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAuditExport(t), newAuditVerify(t))
	return cmd
}

// exported is what signet audit export prints.
type exported struct {
	File    string `json:"file"`
	Records uint64 `json:"records"` // in the file
	Root    string `json:"root"`    // base64
	Key     string `json:"key"`     // as the box says; see signet audit verify
}

func newAuditExport(t *terminal) *cobra.Command {
	var (
		api apiFlags
		out string
	)
	cmd := &cobra.Command{
		Use:   "export URL -o FILE",
		Short: "write a box's whole audit log to a file that can be verified",
		Long: `Writes the audit log of a box to FILE, a record a line and its signed checkpoint last, while the box goes on
serving, and verifies it with the key that the box itself shows. What it prints as the key is to be written down once, at the
box's first start: an export proves something to those alone who know the key from elsewhere.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if out == "" {
				return usageHint(errors.New("-o is needed"), "name the file to write: -o audit.ndjson")
			}
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			key, err := client.auditKey(cmd.Context())
			if err != nil {
				return err
			}
			report, err := client.export(cmd.Context(), out, key)
			if err != nil {
				return err
			}
			t.notef("verify it anywhere with: signet audit verify %s --key '%s'", out, key)
			e := exported{out, report.Records - report.Gone(), report.RootText, key}
			return t.result(e, fmt.Sprintf("%s  %d records\n", e.File, e.Records))
		},
	}
	api.register(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "`file` to write; replaced once the export is whole")
	return cmd
}

// download sends a GET whose reply is not JSON. The body is the caller's to close; nothing but ctx ends it,
// for it may be long.
func (c *apiClient) download(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("making request: %w", err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	patient := *c.http
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, c.unreachable(err)
	}
	return nil, c.refused(resp, reply)
}

// auditKey is the text of the key that the box says verifies its log.
func (c *apiClient) auditKey(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	body, err := c.download(ctx, "/api/v1/audit/key")
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxReply))
	if err != nil {
		return "", c.unreachable(err)
	}
	key := strings.TrimSuffix(string(text), "\n")
	if _, err := audit.NewVerifier(key); err != nil {
		return "", refuse(fmt.Errorf("%s does not answer like a Signet box: %w", c.base, err), "check that the address is the box's console")
	}
	return key, nil
}

// stalled is how long a box may send nothing of an export.
const stalled = time.Minute

// export writes the log beside the file out, verifies what was written, and puts it there.
func (c *apiClient) export(ctx context.Context, out, key string) (audit.Report, error) {
	verifier, err := audit.NewVerifier(key)
	if err != nil {
		return audit.Report{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(stalled, cancel)
	defer watchdog.Stop()
	body, err := c.download(ctx, "/api/v1/audit/export")
	if err != nil {
		return audit.Report{}, err
	}
	defer body.Close()
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".*.part")
	if err != nil {
		return audit.Report{}, refuse(fmt.Errorf("writing export: %w", err), "name a file in a directory that can be written")
	}
	defer os.Remove(f.Name()) // nothing is there once it has its name
	defer f.Close()
	w := bufio.NewWriterSize(f, 256<<10)
	if _, err := io.Copy(w, &fed{body, watchdog}); err != nil {
		return audit.Report{}, refuse(fmt.Errorf("the export was broken off: %w", err), "try again; the box's log says why if it was the box")
	}
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return audit.Report{}, refuse(fmt.Errorf("writing export: %w", err), "free or add space")
	}
	report, err := audit.Verify(f, verifier)
	var bad *audit.BadRecord
	switch {
	case errors.As(err, &bad): // it is evidence: the file is kept
		if err := os.Rename(f.Name(), out); err != nil {
			return audit.Report{}, refuse(fmt.Errorf("writing export: %w", err), "name a file that can be written")
		}
		return audit.Report{}, refuse(fmt.Errorf("the box's audit log does not verify: %w", bad), "keep "+out+" and the box's disk as they are, and find out who changed it")
	case err != nil:
		return audit.Report{}, refuse(fmt.Errorf("the box's export does not verify: %w", err), "try again; if it stays so, the box or the way to it is not to be trusted")
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return audit.Report{}, refuse(fmt.Errorf("writing export: %w", err), "name a file that can be written")
	}
	return report, nil
}

// fed keeps a watchdog from ending a body that still gives something.
type fed struct {
	body     io.Reader
	watchdog *time.Timer
}

func (f *fed) Read(b []byte) (int, error) {
	n, err := f.body.Read(b)
	f.watchdog.Reset(stalled)
	return n, err
}

func newAuditVerify(t *terminal) *cobra.Command {
	var key, since string
	cmd := &cobra.Command{
		Use:   "verify FILE --key VKEY",
		Short: "verify an export of the audit log, or the proof of one record, offline",
		Long: `Verifies that FILE is what a box wrote: every record, in its place, none missing, under a checkpoint that the
box's audit key signed, and under every earlier checkpoint that the box had kept; or names the first bad record. Records that
the site's retention removed are named; that they were there is proven, what they said is gone.

FILE may also be the proof of one record, as the console's page of the record gives it: then it is verified that the log has
this record, in its place, under the checkpoint in the proof.

--since OLD proves besides that the log in FILE continues what it was: OLD is what you kept of it, an older export, a signed
checkpoint or a proof. A log that was cut, or that went on from another disk, is told from its continuation by this alone.

Works offline. VKEY is the audit key as signet audit export printed it, best when the box was new: NAME+HASH+BASE64.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if key == "" {
				return usageHint(errors.New("--key is needed"), "give the box's audit key, which signet audit export printed: --key 'NAME+HASH+BASE64'")
			}
			verifier, err := audit.NewVerifier(strings.TrimSpace(key))
			if err != nil {
				return usageHint(err, "copy the key whole, in quotes, as signet audit export printed it")
			}
			f, err := os.Open(a[0])
			if err != nil {
				return refuse(err, "name a file that signet audit export wrote, or the proof of a record")
			}
			defer f.Close()
			proof, err := audit.ReadProof(f)
			switch {
			case err == nil && since != "":
				return usageHint(errors.New("the proof of a record does not show that the log continues another"), "name an export: only that has the hashes of all records")
			case err == nil:
				proven, err := proof.Verify(verifier)
				if err != nil {
					return refuse(fmt.Errorf("%s does not verify: %w", a[0], err), mendOf(err))
				}
				return t.result(proven, provenText(a[0], proven))
			case !errors.Is(err, audit.ErrNoProof):
				return refuse(err, "name a file that can be read")
			}
			report, err := verifyExport(f, since, verifier)
			if err != nil {
				return err
			}
			return t.result(report, reportText(a[0], report))
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "audit `key` of the box: NAME+HASH+BASE64")
	cmd.Flags().StringVar(&since, "since", "", "older export or checkpoint `file` that the log has to continue")
	return cmd
}

// verifyExport verifies an export, and that it continues what is in the file since; "": nothing.
func verifyExport(f *os.File, since string, key note.Verifier) (audit.Report, error) {
	report, err := audit.Verify(f, key)
	if err != nil {
		return audit.Report{}, refuse(fmt.Errorf("%s does not verify: %w", f.Name(), err), mendOf(err))
	}
	if since == "" {
		return report, nil
	}
	kept, err := os.Open(since)
	if err != nil {
		return audit.Report{}, refuse(err, "name an older export or checkpoint of the same box")
	}
	defer kept.Close()
	older, err := audit.OpenOlder(kept, key)
	if err != nil {
		return audit.Report{}, refuse(fmt.Errorf("%s, the older one, does not verify: %w", since, err), "name an export, a checkpoint or a proof that was kept of the same box; "+mendOf(err))
	}
	report, err = audit.VerifySince(f, key, older)
	if err != nil {
		return audit.Report{}, refuse(fmt.Errorf("%s does not continue %s: %w", f.Name(), since, err), partedMend(err))
	}
	return report, nil
}

// partedMend says what to do about a log that does not continue an older one; each verifies by itself.
func partedMend(err error) string {
	switch {
	case errors.Is(err, audit.ErrShrunk):
		return "if the file given to --since is the newer of the two, change their places; else records are gone: keep both files, and find out who put an older disk into the box"
	case errors.Is(err, audit.ErrForked):
		return "keep both files: the same key signed both. Of two exports the first line that differs is where they part"
	}
	return mendOf(err)
}

// reportText says what a verified export proves.
func reportText(file string, report audit.Report) string {
	text := fmt.Sprintf("%s\n%d records, signed by %s, none changed, missing or out of place\n", file, report.Records-report.Gone(), report.Origin)
	if r := report.Removed; r != nil {
		text += fmt.Sprintf("records 0 to %d are not in it: the box's retention removed them on %s, as record %d says (%s); their hashes fit\n",
			r.Before-1, r.At.Format(time.RFC3339), r.Record, r.Reason)
	}
	if report.Records > 0 {
		text += fmt.Sprintf("from %s to %s\n", report.First.Format(time.RFC3339), report.Last.Format(time.RFC3339))
	}
	if report.Continues != nil {
		text += fmt.Sprintf("it continues the older log of %d records: they are its first, unchanged\n", *report.Continues)
	}
	if report.Checkpoints > 0 {
		text += fmt.Sprintf("%d earlier checkpoints fit\n", report.Checkpoints)
	}
	if report.Anchor > 0 {
		text += fmt.Sprintf("the counter in the box's TPM was at %d, and never fell: no later export of this box says less\n", report.Anchor)
	}
	return text
}

// provenText says what a verified proof of a record shows. What devices wrote is quoted: it may be anything.
func provenText(file string, p audit.Proven) string {
	text := fmt.Sprintf("%s\nrecord %d is in the audit log, among the %d under a checkpoint signed by %s\n", file, p.Index, p.Records, p.Origin)
	r := p.Record
	if r == nil {
		return text + fmt.Sprintf("the box's retention had removed it: proven is its hash %s, and so a copy that has this hash\n", p.LeafHash)
	}
	text += fmt.Sprintf("%s  %s  %s\n", r.Time.Format(time.RFC3339), r.Action, r.Outcome)
	for _, f := range []struct{ name, value string }{{"actor", r.Actor}, {"source", r.Source}, {"profile", r.Profile}, {"identity", r.Identity}, {"serial", r.Serial}, {"reason", r.Reason}} {
		if f.value != "" {
			text += fmt.Sprintf("%s %q\n", f.name, f.value)
		}
	}
	return text
}

// mendOf says what to do about an export that does not verify.
func mendOf(err error) string {
	var bad *audit.BadRecord
	switch {
	case errors.As(err, &bad):
		return "the records before it are the box's; compare the file with another copy or export the log again"
	case errors.Is(err, audit.ErrNoExport):
		return "name a file that signet audit export wrote, or the proof of a record"
	case errors.Is(err, audit.ErrProof), errors.Is(err, audit.ErrCheckpoint):
		return "download the proof again from the page of the record; if it stays so, export the log and verify that"
	case errors.Is(err, audit.ErrTruncated):
		return "copy or export it again; nothing of it is proven without its end"
	case errors.Is(err, audit.ErrRolledBack):
		return "find out who put an older disk into the box, and hold the file against an export kept elsewhere"
	case errors.Is(err, audit.ErrSignature):
		return "use the audit key of the box that wrote it"
	}
	return "export the log again, and name a file that signet audit export wrote"
}
