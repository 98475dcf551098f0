// Command signet is the operator's tool: it makes, checks, bakes, runs and administers a site.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of every command.
const (
	exitOK      = 0
	exitRefused = 1 // refused, or problems found
	exitUsage   = 2
	exitMissing = 3 // a part of this machine is missing
)

// terminal is what a command talks to: results on stdout (JSON with --json), messages on stderr.
type terminal struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	json   bool
}

// result prints text, or v as one JSON document with --json.
func (t *terminal) result(v any, text string) error {
	if !t.json {
		_, err := io.WriteString(t.stdout, text)
		return err
	}
	enc := json.NewEncoder(t.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// notef writes one line of progress or advice for a person.
func (t *terminal) notef(format string, args ...any) {
	fmt.Fprintf(t.stderr, format+"\n", args...)
}

// refusal is an error with the action that mends it and the exit code to end with.
type refusal struct {
	err  error
	mend string
	code int
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// refuse ends a command with exit code 1 and a hint.
func refuse(err error, mend string) error { return &refusal{err, mend, exitRefused} }

// missing ends a command with exit code 3: this machine lacks a part.
func missing(err error, mend string) error { return &refusal{err, mend, exitMissing} }

// usage ends a command with exit code 2; run says how it is called.
func usage(err error) error { return &refusal{err, "", exitUsage} }

func newRoot(t *terminal) *cobra.Command {
	root := &cobra.Command{
		Use:           "signet",
		Short:         "make, bake, run and administer a Signet box",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
					return usageHint(fmt.Errorf("unknown command %q", args[0]), "did you mean "+strings.Join(near, " or ")+"?")
				}
				return usageHint(fmt.Errorf("unknown command %q", args[0]), "signet help lists the commands")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	root.SetIn(t.stdin)
	root.SetOut(t.stdout)
	root.SetErr(t.stderr)
	root.SuggestionsMinimumDistance = 2
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().BoolVar(&t.json, "json", false, "print the result as one JSON document")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(commands(t)...)
	return root
}

// commands lists the subcommands, one constructor a file.
func commands(t *terminal) []*cobra.Command {
	return []*cobra.Command{
		newInit(t),
		newCheck(t),
		newHash(t),
		newBake(t),
		newRun(t),
		newStop(t),
		newClaim(t),
		newChallenge(t),
		newPending(t),
		newApprove(t),
		newDeny(t),
		newRevoke(t),
		newCertificates(t),
		newAuthority(t),
		newRotateRA(t),
		newProfile(t),
		newAudit(t),
	}
}

// args wraps a cobra argument check so that a miscall ends with the usage exit code.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usage(err)
		}
		return nil
	}
}

func run(t *terminal, argv []string) int {
	root := newRoot(t)
	root.SetArgs(argv)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(t.stderr, "signet: %v\n", err)
	var r *refusal
	if !errors.As(err, &r) {
		return exitRefused
	}
	if r.mend == "" && r.code == exitUsage {
		r.mend = "it is called so: " + strings.TrimSuffix(cmd.UseLine(), " [flags]") + "; " + cmd.CommandPath() + " --help says more"
	}
	if r.mend != "" {
		fmt.Fprintf(t.stderr, "  → %s\n", r.mend)
	}
	return r.code
}

func main() {
	os.Exit(run(&terminal{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}, os.Args[1:]))
}
