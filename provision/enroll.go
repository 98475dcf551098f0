package provision

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// What a profile means where it does not say: generous for a factory's first day behind one router,
// and an end to what a stolen challenge is good for.
const (
	limitPerSource  = 100 // an hour
	limitPerProfile = 500 // an hour
	maxLimit        = 500 // as many as the store remembers of one limit

	signedValidity = time.Hour
	signedSkew     = time.Minute
	signedPerDay   = 3
	maxSkew        = 15 * time.Minute
	maxSigners     = 32

	maxActive            = 100 // certificates of one identity
	complianceTimeout    = 5 * time.Second
	maxComplianceTimeout = 30 * time.Second // devices wait for it
)

// renewalShare is the last part of a certificate's validity it can be renewed in where a profile
// says nothing: a third.
const renewalShare = 3

func readApproval(o *object) Approval {
	var a Approval
	approval := o.object("approval", "default", "manual_if")
	approval.require("default", "write default: auto or default: manual")
	a.Manual = approval.choice("default", "auto", "manual") == "manual"
	if a.Manual && approval.has("manual_if") {
		approval.failf("manual_if", "remove it, or write default: auto", "means nothing while every request waits for approval")
		return a
	}
	manualIf := approval.object("manual_if", "cn_suffix")
	manualIf.require("cn_suffix", "write cn_suffix: [.approve.example.com]")
	a.CNSuffix = manualIf.texts("cn_suffix")
	if manualIf.value("cn_suffix") != nil && len(a.CNSuffix) == 0 {
		manualIf.failf("cn_suffix", "write the ends of common names that wait for approval, or remove manual_if", "no suffix in it")
	}
	for i, suffix := range a.CNSuffix {
		if strings.TrimSpace(suffix) == "" {
			manualIf.failf(fmt.Sprintf("cn_suffix[%d]", i), "write the end of a common name such as .approve.example.com, or default: manual for all", "empty")
		}
	}
	return a
}

// readRenewal reads how p's certificates are renewed. Devices that enroll with signed challenges or
// Intune's can get one again, so they have to.
func (l *loader) readRenewal(o *object, p *Profile) {
	validity, c := p.config.Validity, p.SCEP.Challenges
	r := Renewal{Challenge: c.Signed != nil || c.Intune != nil, Window: validity / renewalShare}
	renewal := o.object("renewal", "proof", "window", "grace", "from", "revoke_replaced")
	if renewal.has("proof") {
		r.Challenge = renewal.choice("proof", "certificate", "certificate+challenge") == "certificate+challenge"
	}
	if d, ok := renewal.duration("window"); ok {
		if d <= 0 || validity > 0 && d > validity {
			renewal.failf("window", "write how long before its end a certificate can be renewed, at most its validity", "%s is not between nothing and validity", renewal.written("window"))
		}
		r.Window = d
	}
	if d, ok := renewal.duration("grace"); ok {
		if validity > 0 && d > validity {
			renewal.failf("grace", "write how long after its end a certificate can still be renewed, at most its validity", "%s is longer than validity", renewal.written("grace"))
		}
		r.Grace = d
	}
	if file, ok := renewal.text("from"); ok {
		r.From = &Bundle{File: file, Certificates: l.bundle(renewal, "from", file, "put the CA certificates whose devices can renew here there")}
	}
	p.RevokeOnReplace, _ = renewal.bool("revoke_replaced")
	p.Renewal = r
}

// checkHeld refuses requests that would wait for an operator where the protocol cannot wait.
func checkHeld(o *object, p Profile) {
	if !p.Approval.Manual && len(p.Approval.CNSuffix) == 0 {
		return
	}
	if p.SCEP.Challenges.Intune != nil {
		o.failf("approval", "write approval: {default: auto}", "Intune takes no certificate that comes later, so no request with its challenges can wait for an operator")
	}
	if p.EST != nil && p.EST.ServerKeyGen != "" && p.Approval.Manual {
		o.failf("approval", "write approval: {default: auto}, or remove est.server_key", "a key made for a device is not kept, so no request for one can wait for an operator")
	}
}

// readCompliance reads which webhook is asked before a certificate is issued; nil is none.
func (l *loader) readCompliance(o *object) *Compliance {
	if o == nil {
		return nil
	}
	c := &Compliance{Timeout: complianceTimeout}
	o.require("url", "write the address of the webhook, such as url: https://compliance.example.com/signet")
	o.require("roots", "write roots: trust/compliance.pem, a file with the CA certificate the webhook's server chains to: the box has none of its own")
	if text, ok := o.text("url"); ok {
		u, err := url.Parse(text) // not in the message: it may hold a password
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
			o.failf("url", "write https://HOST/PATH, without user, password or fragment", "not the address of an HTTPS webhook")
		} else if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			l.needDNS(o, "url")
		}
		c.URL = text
	}
	if file, ok := o.text("roots"); ok {
		c.File, c.Roots = file, l.bundle(o, "roots", file, "put the CA certificate the webhook's server chains to there")
	}
	if d, ok := o.duration("timeout"); ok {
		if d < time.Second || d > maxComplianceTimeout {
			o.failf("timeout", "write a duration from 1s to 30s, such as 5s", "%s is not a usable time", o.written("timeout"))
		}
		c.Timeout = d
	}
	return c
}

// written is a text field as it stands in the file.
func (o *object) written(name string) string {
	s, _ := o.text(name)
	return s
}

func readLimits(o *object, p *Profile) {
	limits := Limits{PerSource: limitPerSource, PerProfile: limitPerProfile}
	if n, ok := o.number("per_source", 0, maxLimit); ok {
		limits.PerSource = int(n)
	}
	if n, ok := o.number("per_profile", 0, maxLimit); ok {
		limits.PerProfile = int(n)
	}
	active, _ := o.number("max_active", 0, maxActive)
	p.Limits, p.MaxActive = limits, int(active)
}
