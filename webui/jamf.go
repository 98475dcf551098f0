package webui

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// jamfPrefix is where Jamf Pro asks for challenges.
const jamfPrefix = apiPrefix + "jamf/"

// jamfWebhook is what Jamf Pro posts as its webhook SCEPChallenge, in JSON, each time it is about to send
// a device a SCEP payload: https://developer.jamf.com/jamf-pro/docs/webhooks-1#scepchallenge, and
// targetDevice as Pixar's chook names it. Only what is read here is listed; Jamf sends more.
type jamfWebhook struct {
	Webhook struct {
		Event string `json:"webhookEvent"`
	} `json:"webhook"`
	Event struct {
		TargetDevice map[string]any `json:"targetDevice"` // as Jamf knows it: serialNumber, udid, deviceName, username and others
	} `json:"event"`
}

func jamfRoute() route {
	return route{http.MethodPost, jamfPrefix + "{profile}", operator, &operation{
		id: "jamfChallenge", summary: "Jamf Pro's webhook SCEPChallenge: a challenge that is good once, for the device it names",
		basic:     true,
		query:     []parameter{{"cn", "member of targetDevice that is the common name in Jamf's SCEP payload", map[string]any{"type": "string", "default": jamfCN}}},
		request:   map[string]any{}, // others define it, and add to it
		responses: []response{{http.StatusOK, "the challenge, which Jamf puts into the device's payload", mediaText, nil}},
		refusals:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
	}, (*console).apiJamf}
}

const (
	jamfCN    = "serialNumber" // as Jamf's $SERIALNUMBER
	mediaText = "text/plain; charset=utf-8"
)

// apiJamf answers the challenge alone, as text, which is what Jamf Pro takes from a webhook of this kind.
// Jamf asks by HTTP Basic. Which member of the device is its common name is the query's to say: Jamf does
// not tell what the subject of its payload will be.
func (c *console) apiJamf(w http.ResponseWriter, r *http.Request, who principal) error {
	var in jamfWebhook
	if err := readForeignJSON(w, r, &in); err != nil {
		return err
	}
	if in.Webhook.Event != "SCEPChallenge" {
		return &inputError{"webhookEvent", "this is not Jamf's webhook SCEPChallenge", "choose the event SCEPChallenge for the webhook in Jamf Pro"}
	}
	member := r.URL.Query().Get("cn")
	if member == "" {
		member = jamfCN
	}
	cn, _ := in.Event.TargetDevice[member].(string)
	if cn = strings.TrimSpace(cn); cn == "" || len(cn) > maxName {
		return &inputError{"targetDevice", fmt.Sprintf("Jamf names no %q of the device", visible(member[:min(len(member), maxName)])),
			"write ?cn=serialNumber, udid, deviceName or username at the end of the webhook's URL, whichever is the common name in the SCEP payload"}
	}
	secret, _, err := c.mint(who, Mint{Profile: r.PathValue("profile"), CN: cn, Actor: who.user, Source: c.cfg.Source(r).String()})
	if err != nil {
		return err
	}
	write(w, http.StatusOK, mediaText, []byte(secret))
	return nil
}

// readForeignJSON decodes what others define, and may add to.
func readForeignJSON(w http.ResponseWriter, r *http.Request, v any) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != mediaJSON {
		return errMediaType
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
		return unreadable(err)
	}
	return nil
}
