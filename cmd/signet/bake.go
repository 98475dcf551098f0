package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"signet.internal/image"
	"signet.internal/image/format"
	"signet.internal/provision"
)

// bakeOptions is how `signet bake` was called.
type bakeOptions struct{ dir, out, base string }

func newBake(t *terminal) *cobra.Command {
	var o bakeOptions
	cmd := &cobra.Command{
		Use:   "bake DIR -o OUT",
		Short: "turn a site into a bootable image",
		Long: `Checks the site in DIR and writes OUT/signet.img (GPT disk), OUT/signet.efi (signed unified kernel image)
and OUT/manifest.json (hashes, version, expected PCR 11 per phase, bill of materials). It signs with the keys
in DIR/secrets and needs no Go toolchain. The same inputs give the same bytes. With --json it prints the manifest.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			o.dir = a[0]
			if o.out == "" {
				return usage(errors.New("bake needs -o OUT, the directory to write"))
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return bake(ctx, t, o)
		},
	}
	cmd.Flags().StringVarP(&o.out, "output", "o", "", "`directory` to write")
	cmd.Flags().StringVar(&o.base, "base", "", "prebuilt base `directory` (default: base beside this program, or build/base)")
	return cmd
}

func bake(ctx context.Context, t *terminal, o bakeOptions) error {
	if info, err := os.Stat(o.dir); err != nil || !info.IsDir() {
		return refuse(fmt.Errorf("%s is not a directory with a site", o.dir), "`signet init DIR` writes a site")
	}
	if o.base == "" {
		base, err := findBase()
		if err != nil {
			return err
		}
		o.base = base
	}
	secrets := filepath.Join(o.dir, secretsDir)
	keys, err := image.LoadSigningKeys(secrets)
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(secrets); errors.Is(statErr, fs.ErrNotExist) {
			return refuse(fmt.Errorf("no signing keys: %s does not exist", secrets),
				fmt.Sprintf("restore this site's keys from their backup; `signet init --keys-only %s` makes new ones for a site that has no boxes yet", o.dir))
		}
		return refuse(fmt.Errorf("signing keys are incomplete: %w", err), "restore "+secrets+" from its backup")
	} else if err != nil {
		return refuse(fmt.Errorf("signing keys: %w", err), "restore "+secrets+" from its backup")
	}
	p := t.progress()
	m, err := image.Bake(ctx, image.Options{
		Site: os.DirFS(o.dir), Keys: keys, Base: o.base, Out: o.out, Progress: p.next,
	})
	p.done()
	var problems provision.Problems
	switch {
	case errors.As(err, &problems):
		return refuse(fmt.Errorf("the site has problems:\n%s", inDir(o.dir, problems)), fmt.Sprintf("mend what is listed; `signet check %s` checks again", o.dir))
	case errors.Is(err, image.ErrNoBase):
		return refuse(err, "`make build` builds the base; --base names where it is")
	case errors.Is(err, context.Canceled):
		return refuse(errors.New("interrupted; nothing of an earlier image was lost"), "run it again")
	case err != nil:
		return refuse(err, "mend that and bake again; `make build` makes a damaged or older base anew")
	}
	return t.result(m, describeImage(o.out, m))
}

// findBase looks for a base beside the program, as it is shipped, then where make puts it.
func findBase() (string, error) {
	candidates := []string{filepath.Join("build", "base")}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		candidates = append([]string{filepath.Join(dir, "base"), filepath.Join(dir, "..", "build", "base")}, candidates...)
	}
	for _, dir := range candidates {
		if _, err := image.ReadBase(dir); err == nil {
			return dir, nil
		} else if !errors.Is(err, image.ErrNoBase) {
			return "", refuse(err, "`make build` builds the base anew")
		}
	}
	return "", refuse(fmt.Errorf("no base to bake on: looked in %s", strings.Join(candidates, ", ")),
		"`make build` builds it; --base names where it is")
}

// inDir lists problems with paths a person can open from here.
func inDir(dir string, problems provision.Problems) string {
	lines := make([]string, len(problems))
	for i, p := range problems {
		p.File = filepath.Join(dir, filepath.FromSlash(p.File))
		lines[i] = "  " + p.String()
	}
	return strings.Join(lines, "\n")
}

// describeImage says what a bake made.
func describeImage(out string, m *image.Manifest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, epoch %d, on kernel %s\n", m.Name, m.Version, m.Epoch, m.Kernel)
	for _, name := range []string{image.DiskFile, image.UKIFile} {
		fmt.Fprintf(&b, "  %-28s %6.1f MiB  sha256 %s\n", filepath.Join(out, name), float64(m.Files[name].Size)/format.MiB, m.Files[name].SHA256)
	}
	for _, phase := range []string{format.PhaseEnterInitrd, format.PhaseLeaveInitrd} {
		fmt.Fprintf(&b, "  PCR 11 at %-12s  %s\n", phase, m.PCR11[phase])
	}
	fmt.Fprintf(&b, "next: `signet run %s` boots it here\n", out)
	return b.String()
}
