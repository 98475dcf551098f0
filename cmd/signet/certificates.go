package main

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// maxPages ends a listing that goes on and on: 100 certificates a page.
const maxPages = 1000

// newCertificates lists what the box issued.
func newCertificates(t *terminal) *cobra.Command {
	var (
		api               apiFlags
		q, profile, state string
	)
	cmd := &cobra.Command{
		Use:   "certificates URL",
		Short: "list certificates the box issued",
		Long: `Lists certificates the box issued, one a line: serial, state, profile, end, for whom. With --q those whose
serial begins so (at least 6 hex digits), or else those whose identity does.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			asked := url.Values{"limit": {"100"}}
			for name, value := range map[string]string{"q": q, "profile": profile, "state": state} {
				if value != "" {
					asked.Set(name, value)
				}
			}
			all := webui.CertificateList{Certificates: []webui.CertificateRow{}}
			for range maxPages {
				var page webui.CertificateList
				if err := client.call(cmd.Context(), http.MethodGet, "/api/v1/certificates?"+asked.Encode(), nil, &page); err != nil {
					return err
				}
				all.Certificates, all.Next = append(all.Certificates, page.Certificates...), page.Next
				if page.Next == "" {
					break
				}
				asked.Set("after", page.Next)
			}
			if all.Next != "" {
				t.notef("there are more: name what to look for with --q, --profile or --state")
			}
			if len(all.Certificates) == 0 {
				t.notef("no certificate matches")
			}
			text := ""
			for _, c := range all.Certificates {
				// The identity is what a device wrote: quoted, it cannot steer the terminal.
				text += fmt.Sprintf("%s  %s  %s  %s  %+q", c.Serial, c.State, c.Profile, c.NotAfter.Format("2006-01-02T15:04:05Z"), c.Identity)
				if c.Reason != "" {
					text += "  " + c.Reason
				}
				text += "\n"
			}
			return t.result(all, text)
		},
	}
	api.register(cmd)
	cmd.Flags().StringVar(&q, "q", "", "beginning of a `serial or identity`")
	cmd.Flags().StringVar(&profile, "profile", "", "only of the profile `name`")
	cmd.Flags().StringVar(&state, "state", "", "only in the `state` active, revoked or expired")
	return cmd
}
