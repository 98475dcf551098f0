package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// newAuthority groups what is ordered of authorities.
func newAuthority(t *terminal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "authority URL list|request|install|next|activate|cancel [NAME]",
		Short: "list authorities, have one signed, or change one over to its next key",
		Long: `Lists authorities and their keys, or orders something of the authority NAME.

  list        every authority with its keys, one key a line
  request     the request to have a subordinate's certificate signed, with the TPM's word for its key
  install     gives a subordinate its certificate and those above it up to the root (--chain FILE)
  next        makes the next key and publishes it; it issues nothing yet
  activate    has the next key issue from now on; this cannot be taken back (--yes)
  cancel      takes the next key back before it is active

request prints the request, or writes it to the file of -o and what the TPM says of its key beside it, to
FILE.certification.json.`,
	}
	var (
		api           apiFlags
		output, chain string
		isConfirmed   bool
	)
	cmd.Args = args(cobra.RangeArgs(2, 3))
	cmd.RunE = func(cmd *cobra.Command, a []string) error {
		verb, name := a[1], ""
		if len(a) == 3 {
			name = a[2]
		}
		if err := checkAuthorityCall(verb, name, chain, isConfirmed); err != nil {
			return err
		}
		client, err := api.dial(a[0])
		if err != nil {
			return err
		}
		path := "/api/v1/authorities/" + url.PathEscape(name)
		switch verb {
		case "list":
			return listAuthorities(cmd.Context(), t, client)
		case "request":
			return requestAuthority(cmd.Context(), t, client, path, output)
		case "install":
			return installChain(cmd.Context(), t, client, path, chain)
		case "next":
			return orderAuthority(cmd.Context(), t, client, http.MethodPost, path+"/next")
		case "activate":
			return orderAuthority(cmd.Context(), t, client, http.MethodPost, path+"/next/activate")
		}
		return orderAuthority(cmd.Context(), t, client, http.MethodDelete, path+"/next")
	}
	api.register(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` for the request")
	cmd.Flags().StringVar(&chain, "chain", "", "PEM `file` with the certificate and those above it, in any order")
	cmd.Flags().BoolVar(&isConfirmed, "yes", false, "activate: devices had time to fetch the next key, and it shall issue from now on")
	return cmd
}

// checkAuthorityCall says what a call lacks, before anything is sent.
func checkAuthorityCall(verb, name, chain string, isConfirmed bool) error {
	switch verb {
	case "list":
		if name != "" {
			return usageHint(errors.New("list takes no name"), "it lists every authority")
		}
		return nil
	case "request", "install", "next", "activate", "cancel":
	default:
		return usageHint(fmt.Errorf("%q is nothing to order of an authority", verb), "write list, request, install, next, activate or cancel")
	}
	switch {
	case name == "":
		return usageHint(fmt.Errorf("%s needs the name of an authority", verb), "signet authority URL list shows the names")
	case verb == "install" && chain == "":
		return usageHint(errors.New("--chain is needed"), "name the PEM file with the signed certificate and those above it up to the root")
	case verb == "activate" && !isConfirmed:
		return usageHint(errors.New("activating cannot be taken back"), "say --yes once devices had time to fetch the next key")
	}
	return nil
}

func listAuthorities(ctx context.Context, t *terminal, client *apiClient) error {
	var out webui.AuthorityList
	if err := client.call(ctx, http.MethodGet, "/api/v1/authorities", nil, &out); err != nil {
		return err
	}
	text := ""
	for _, a := range out.Authorities {
		text += describeAuthority(a)
	}
	return t.result(out, text)
}

// describeAuthority is a line for each key: name, mode, generation, state, until when, SHA-256, subject.
func describeAuthority(a webui.AuthorityDetails) string {
	var b strings.Builder
	for _, g := range a.Generations {
		fmt.Fprintf(&b, "%s  %s  %d  %s", a.Name, a.Mode, g.Number, g.State)
		if c := g.Certificate; c != nil {
			fmt.Fprintf(&b, "  %s  %s  %+q", c.NotAfter.Format("2006-01-02"), c.SHA256, c.Subject)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func requestAuthority(ctx context.Context, t *terminal, client *apiClient, path, output string) error {
	var out webui.AuthorityCSR
	if err := client.call(ctx, http.MethodGet, path+"/request", nil, &out); err != nil {
		return err
	}
	if output == "" {
		if out.Certification == nil {
			t.notef("the key is not kept in the TPM: nothing but the site says where it is")
		}
		return t.result(out, out.CSR)
	}
	if err := writeNew(output, []byte(out.CSR)); err != nil {
		return err
	}
	written := filepath.Base(output)
	if out.Certification != nil {
		beside, err := json.MarshalIndent(out.Certification, "", "  ")
		if err != nil {
			return fmt.Errorf("encoding the certification: %w", err)
		}
		if err := writeNew(output+".certification.json", append(beside, '\n')); err != nil {
			return err
		}
		written += " and " + filepath.Base(output) + ".certification.json"
	}
	t.notef("have it signed as a CA certificate, then upload it with those above it: signet authority URL install NAME --chain FILE")
	return t.result(out, "wrote "+written+"\n")
}

// writeNew writes a file that must not be there yet: what was signed elsewhere is easily lost.
func writeNew(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return refuse(fmt.Errorf("%s is there already", name), "name another file, or remove it first")
	}
	if err != nil {
		return refuse(fmt.Errorf("writing %s: %w", name, err), "name a file in a directory you can write to")
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return refuse(fmt.Errorf("writing %s: %w", name, err), "make room on the disk")
	}
	if err := f.Close(); err != nil {
		return refuse(fmt.Errorf("writing %s: %w", name, err), "make room on the disk")
	}
	return nil
}

func installChain(ctx context.Context, t *terminal, client *apiClient, path, chain string) error {
	content, err := os.ReadFile(chain)
	if err != nil {
		return refuse(fmt.Errorf("reading the chain: %w", err), "name the PEM file with the signed certificate and those above it up to the root")
	}
	var out webui.AuthorityDetails
	if err := client.send(ctx, http.MethodPut, path+"/chain", "application/pem-certificate-chain", content, &out); err != nil {
		return err
	}
	return t.result(out, describeAuthority(out))
}

func orderAuthority(ctx context.Context, t *terminal, client *apiClient, method, path string) error {
	var out webui.AuthorityDetails
	if err := client.call(ctx, method, path, nil, &out); err != nil {
		return err
	}
	return t.result(out, describeAuthority(out))
}

// newRotateRA makes a new RA key.
func newRotateRA(t *terminal) *cobra.Command {
	var api apiFlags
	cmd := &cobra.Command{
		Use:   "rotate-ra URL",
		Short: "make a new RA key",
		Long: `Makes a new RA key, with a certificate of every authority. The one before decrypts what devices
still encrypt to it for the site's overlap, then it is destroyed.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			var out webui.AuthorityList
			if err := client.call(cmd.Context(), http.MethodPost, "/api/v1/ra/rotate", nil, &out); err != nil {
				return err
			}
			text := ""
			for _, authority := range out.Authorities {
				if len(authority.RAs) > 0 {
					c := authority.RAs[0].Certificate
					text += fmt.Sprintf("%s  %s  %s  %+q\n", authority.Name, c.NotAfter.Format("2006-01-02"), c.SHA256, c.Subject)
				}
			}
			return t.result(out, text)
		},
	}
	api.register(cmd)
	return cmd
}
