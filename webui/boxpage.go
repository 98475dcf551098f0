package webui

import (
	"encoding/hex"
	"net/http"
	"strings"

	"signet.internal/appliance/handover"
)

// boxView is the page about the machine.
type boxView struct {
	frame
	Status     Status
	Machine    Machine
	SecureBoot plainState
	TPM        plainState
	ClockWorth string // what the clock's source is worth
	Records    uint64 // of the audit log
	Root       string // of the audit log's tree, lower-case hex
	Listeners  []listenerRow
	Rollback   *Rollback // nil: the disk is the newest
}

// plainState is a state in plain words.
type plainState struct {
	Tone  string
	State string
	Means string
}

// listenerRow is a listener and what it is for.
type listenerRow struct {
	Listener
	For string
}

// boxPage shows what booted and how the machine is doing.
func (c *console) boxPage(w http.ResponseWriter, r *http.Request, who principal) error {
	v, err := c.boxView(r, who)
	if err != nil {
		return err
	}
	return c.page(w, "box", v)
}

// acknowledgeForm takes a disk that was put back for the newest.
func (c *console) acknowledgeForm(w http.ResponseWriter, r *http.Request, who principal) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	refusal := c.cfg.Box.AcknowledgeRollback(who.user)
	if refusal == nil {
		return c.done(w, r, "/box", "rollback-acknowledged")
	}
	again, known := attempted(r, "acknowledge", refusal)
	if !known {
		return refusal
	}
	v, err := c.boxView(r, who)
	if err != nil {
		return err
	}
	v.Do, v.Attempt = "acknowledge", again
	return c.page(w, "box", v)
}

func (c *console) apiAcknowledge(w http.ResponseWriter, _ *http.Request, who principal) error {
	if err := c.cfg.Box.AcknowledgeRollback(who.user); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, mediaJSON, Acknowledged{who.user})
	return nil
}

func (c *console) boxView(r *http.Request, who principal) (*boxView, error) {
	s, err := c.status()
	if err != nil {
		return nil, err
	}
	v := &boxView{frame: c.frame(r, who, "/box", "This box"), Status: s, Machine: c.cfg.Machine(),
		SecureBoot: secureBootInWords(s), TPM: tpmInWords(s), ClockWorth: bySourceText(s.Clock.Source), Rollback: c.cfg.Box.Rollback()}
	size, root, err := c.cfg.Store.LogHead()
	if err != nil {
		return nil, err
	}
	v.Records, v.Root = size, hex.EncodeToString(root[:])
	for _, l := range v.Machine.Listeners {
		v.Listeners = append(v.Listeners, listenerRow{l, listenerPurpose(l.Name)})
	}
	return v, nil
}

// listenerPurpose says who comes to a listener of the site's table.
func listenerPurpose(name string) string {
	switch name {
	case "est":
		return "Devices that enroll over EST, or over SCEP with a certificate they have"
	case "scep":
		return "Devices that enroll over SCEP"
	case "console":
		return "This console, the admin API and metrics"
	case "plain":
		return "Revocation lists, OCSP, CA certificates, and SCEP of profiles that allow it without TLS"
	case "legacy":
		return "As est, for devices that only know TLS 1.2"
	case "legacy_scep":
		return "As scep, for devices that only know TLS 1.2"
	}
	return ""
}

// secureBootInWords says what the boot report's words about Secure Boot are worth.
func secureBootInWords(s Status) plainState {
	if s.Kind == handover.KindHost {
		return plainState{"plain", "Does not apply", "This is a development host: the operating system started it, not its firmware. Any program of the same user can use its keys."}
	}
	switch state, _, _ := strings.Cut(s.SecureBoot, ":"); {
	case strings.HasPrefix(state, "on, but"):
		return plainState{"warn", "On, but not relied on", "The firmware checks signatures, with keys that are not this site’s. Keys are not protected against a changed disk: whoever holds such a key can start software that passes for this image. Bake the site with its own Secure Boot keys to close this."}
	case state == "on":
		return plainState{"good", "On, with this site’s keys", "The firmware starts nothing but images that this site signed."}
	case strings.HasPrefix(state, "off"):
		return plainState{"warn", "Off", "The firmware starts whatever is on the disk. Keys are not protected against a changed disk: software made for it can pass for this image. They are protected where only the disk is stolen. Bake the site with its own Secure Boot keys to close this."}
	}
	return plainState{"warn", "Not known", "This firmware does not say whether it checks what it starts. Treat it as if it did not: look into its set-up."}
}

// tpmInWords says how the TPM is.
func tpmInWords(s Status) plainState {
	if s.TPM.LockoutCounter > 0 {
		return plainState{"warn", "Somebody tried wrong passwords", "The TPM counted failed authorisations of objects that are not this box’s: the box’s own never count. Look who else has access to the machine."}
	}
	return plainState{"good", "In order", "No failed authorisation is counted. Keys that were made in it cannot leave it."}
}
