package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// newProfile switches a profile off or on.
func newProfile(t *terminal) *cobra.Command {
	var (
		api apiFlags
		in  webui.OffRequest
	)
	cmd := &cobra.Command{
		Use:   "profile URL off|on NAME",
		Short: "have a profile issue nothing, or issue again",
		Long: `Switches the profile NAME off, for a reason that the console shows, or on again. A profile that is off
issues and renews nothing; certificates it issued before stay good.`,
		Args: args(cobra.ExactArgs(3)),
		RunE: func(cmd *cobra.Command, a []string) error {
			verb, path := a[1], "/api/v1/profiles/"+url.PathEscape(a[2])
			var body any
			switch {
			case verb == "off" && in.Reason == "":
				return usageHint(errors.New("--reason is needed"), "say in a few words why; the console shows it")
			case verb == "off":
				body = in
			case verb == "on" && in.Reason != "":
				return usageHint(errors.New("on takes no --reason"), "leave --reason out")
			case verb != "on":
				return usageHint(fmt.Errorf("%q is nothing to order of a profile", verb), "write off or on")
			}
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			var out webui.ProfileDetails
			if err := client.call(cmd.Context(), http.MethodPost, path+"/"+verb, body, &out); err != nil {
				return err
			}
			return t.result(out, fmt.Sprintf("%s is %s\n", out.Name, verb))
		},
	}
	api.register(cmd)
	cmd.Flags().StringVar(&in.Reason, "reason", "", "`why`, in a few words")
	return cmd
}
