package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"signet.internal/webui"
)

// newClaim makes the first administrator of a box.
func newClaim(t *terminal) *cobra.Command {
	var (
		api           apiFlags
		in            webui.ClaimRequest
		passwordStdin bool
	)
	cmd := &cobra.Command{
		Use:   "claim URL --code CODE --user NAME",
		Short: "create the first administrator of a box",
		Long: `Creates the first administrator of a box with the claim code on the box's own screen.

URL is the console's, such as https://192.0.2.7:9443. Prints one JSON object with the new
administrator's API token and, unless --password-stdin gave one, the password the box made.
Neither is ever shown again.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if in.Code == "" || in.User == "" {
				return usageHint(errors.New("--code and --user are both needed"), "the code is on the box's own screen; the name is yours to choose")
			}
			client, err := api.dial(a[0])
			if err != nil {
				return err
			}
			client.token = "" // one in the environment is for another box
			if passwordStdin {
				if in.Password, err = readPassword(t.stdin); err != nil {
					return err
				}
			}
			var out webui.ClaimResponse
			if err := client.call(cmd.Context(), http.MethodPost, "/api/v1/claim", in, &out); err != nil {
				return err
			}
			t.notef("%s is now the administrator of %s; keep what follows, it is not shown again", out.User, client.base)
			text, err := json.MarshalIndent(out, "", "  ")
			if err != nil {
				return fmt.Errorf("encoding result: %w", err)
			}
			return t.result(out, string(text)+"\n")
		},
	}
	api.registerTrust(cmd)
	cmd.Flags().StringVar(&in.Code, "code", "", "claim `code` on the box's screen")
	cmd.Flags().StringVar(&in.User, "user", "", "`name` of the first administrator")
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from the first line of stdin instead of having the box make one")
	return cmd
}

// readPassword takes the first line of r, without its end.
func readPassword(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading password from stdin: %w", err)
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", refuse(errors.New("stdin holds no password"), "write it to stdin, or leave out --password-stdin and the box makes one")
	}
	return line, nil
}
