package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// newChallenge mints a one-time challenge.
func newChallenge(t *terminal) *cobra.Command {
	var (
		api apiFlags
		in  webui.ChallengeRequest
	)
	cmd := &cobra.Command{
		Use:   "challenge URL --profile P --cn NAME",
		Short: "make a challenge that is good once, for one device",
		Long: `Makes a challenge for the one device whose request has the common name NAME, and prints it. It is
good once, until it expires, and is never shown again. The profile has to take one-time challenges.

Without --san the device may ask for NAME itself and for DNS names that begin with it; with --san for
exactly those names.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if in.Profile == "" || in.CN == "" {
				return usageHint(errors.New("--profile and --cn are both needed"), "the profiles are on the console's status page; the name is what the device will ask for")
			}
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			var out webui.ChallengeResponse
			if err := client.call(cmd.Context(), http.MethodPost, "/api/v1/challenges", in, &out); err != nil {
				return err
			}
			t.notef("good once for %s at profile %s, until %s; it is not shown again", out.CN, out.Profile, out.Expires.Format("2006-01-02 15:04:05 MST"))
			return t.result(out, out.Challenge+"\n")
		},
	}
	api.register(cmd)
	cmd.Flags().StringVar(&in.Profile, "profile", "", "`name` of a profile that takes one-time challenges")
	cmd.Flags().StringVar(&in.CN, "cn", "", "common `name` the device will ask for")
	cmd.Flags().StringArrayVar(&in.SANs, "san", nil, "a `name` the device will ask for, as dns:…, email:…, ip:…, uri:…, upn:… or sid:… (the Windows account, where the profile keeps it); may be given several times")
	cmd.Flags().StringVar(&in.TTL, "ttl", "", "how long it is good, such as 30m; at most the profile's `time`, which is meant otherwise")
	return cmd
}

// newPending lists the requests that wait for a person.
func newPending(t *terminal) *cobra.Command {
	var api apiFlags
	cmd := &cobra.Command{
		Use:   "pending URL",
		Short: "list the requests that wait for a person",
		Long: `Lists the requests that wait for approval, oldest first, one a line: id, profile, since when, from where,
for whom. signet approve and signet deny take the id.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			var out webui.PendingList
			if err := client.call(cmd.Context(), http.MethodGet, "/api/v1/pending", nil, &out); err != nil {
				return err
			}
			text := ""
			for _, p := range out.Pending {
				// Identity, subject and names are what a device wrote: quoted, they cannot steer the terminal.
				text += fmt.Sprintf("%s  %s  %s  %s  %+q", p.ID, p.Profile, p.Since.Format("2006-01-02T15:04:05Z"), p.Source, p.Identity)
				if p.Subject != "CN="+p.Identity {
					text += fmt.Sprintf("  %+q", p.Subject)
				}
				if p.Names != "" {
					text += fmt.Sprintf("  %+q", p.Names)
				}
				if p.Renews != "" {
					text += "  renews " + p.Renews
				}
				text += "\n"
			}
			if text == "" {
				t.notef("nothing waits for approval")
			}
			return t.result(out, text)
		},
	}
	api.register(cmd)
	return cmd
}
