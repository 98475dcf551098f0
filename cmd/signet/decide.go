package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// newApprove has a held request issued.
func newApprove(t *terminal) *cobra.Command {
	var api apiFlags
	cmd := &cobra.Command{
		Use:   "approve URL ID",
		Short: "issue what a held request asks for",
		Long:  `Issues what the held request ID asks for; the device gets it when it asks again. signet pending lists ids.`,
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			return decide(cmd, t, api, a[0], "/api/v1/pending/"+url.PathEscape(a[1])+"/approve", nil)
		},
	}
	api.register(cmd)
	return cmd
}

// newDeny refuses a held request.
func newDeny(t *terminal) *cobra.Command {
	var (
		api apiFlags
		in  webui.DenyRequest
	)
	cmd := &cobra.Command{
		Use:   "deny URL ID --reason R",
		Short: "refuse a held request for good",
		Long:  `Refuses the held request ID for good. The reason is written down and told to the device.`,
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if in.Reason == "" {
				return usageHint(errors.New("--reason is needed"), "say in a few words why; the device's log shows it")
			}
			return decide(cmd, t, api, a[0], "/api/v1/pending/"+url.PathEscape(a[1])+"/deny", in)
		},
	}
	api.register(cmd)
	cmd.Flags().StringVar(&in.Reason, "reason", "", "`why`, in a few words")
	return cmd
}

// newRevoke revokes a certificate.
func newRevoke(t *terminal) *cobra.Command {
	var (
		api    apiFlags
		in     webui.RevokeRequest
		serial string
	)
	cmd := &cobra.Command{
		Use:   "revoke URL --serial HEX --reason R",
		Short: "revoke a certificate",
		Long: `Revokes the certificate with the serial HEX: it renews nothing from then on, OCSP says so at once, and the next
revocation list names it. R is a reason of RFC 5280 §5.3.1: unspecified, keyCompromise, affiliationChanged,
superseded, cessationOfOperation, privilegeWithdrawn, or certificateHold, which removeFromCRL takes back.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if serial == "" || in.Reason == "" {
				return usageHint(errors.New("--serial and --reason are both needed"), "the serial is in the audit log, and openssl x509 -serial prints it")
			}
			return decide(cmd, t, api, a[0], "/api/v1/certificates/"+url.PathEscape(serial)+"/revoke", in)
		},
	}
	api.register(cmd)
	cmd.Flags().StringVar(&serial, "serial", "", "serial of the certificate, in `hex`")
	cmd.Flags().StringVar(&in.Reason, "reason", "", "`reason` of RFC 5280, such as keyCompromise")
	return cmd
}

// decide sends an operator's decision and says what came of it.
func decide(cmd *cobra.Command, t *terminal, api apiFlags, target, path string, in any) error {
	client, err := api.dial(target)
	if err != nil {
		return err
	}
	var out webui.Decision
	if err := client.call(cmd.Context(), http.MethodPost, path, in, &out); err != nil {
		return err
	}
	return t.result(out, fmt.Sprintf("%s %s\n", out.Outcome, out.ID+out.Serial))
}
