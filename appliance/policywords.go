package appliance

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"signet.internal/appliance/pki"
	"signet.internal/provision"
	"signet.internal/webui"
)

// TLS implements webui.Box.
func (o orders) TLS() []webui.TLSInfo {
	var all []webui.TLSInfo
	for _, served := range o.a.identity.Served() {
		all = append(all, webui.TLSInfo{Certificate: served.Certificate, Uploaded: served.Uploaded})
	}
	return all
}

// Policy implements webui.Box.
func (o orders) Policy(profile string) ([]webui.Rule, error) {
	s, err := o.a.settingsOf(profile)
	if err != nil {
		return nil, err
	}
	return policyInWords(&s.profile, o.a.config.Site.Listeners), nil
}

// policyInWords says for people what a site says of a profile. What can be replaced while the box runs, such
// as the certificates of a bundle, is named by its file here, and shown elsewhere as it is now.
func policyInWords(p *provision.Profile, on provision.Listeners) []webui.Rule {
	w := &policyWords{}
	w.group = "Who gets a certificate"
	w.enrollment(p)
	w.group = "What is in a certificate"
	w.contents(p.Rules(), p.UniqueKey)
	w.group = "Renewal"
	w.renewal(p)
	w.group = "How devices reach it"
	w.protocols(p, on)
	return w.rules
}

// policyWords collects rules.
type policyWords struct {
	group string
	rules []webui.Rule
}

// say adds a rule that says something; without words there is none.
func (w *policyWords) say(about string, says ...string) {
	if len(says) > 0 {
		w.rules = append(w.rules, webui.Rule{Group: w.group, About: about, Says: says})
	}
}

func (w *policyWords) enrollment(p *provision.Profile) {
	if p.SCEP.On {
		w.say("Over SCEP a device shows", challengeWords(p.SCEP.Challenges)...)
	}
	if p.EST != nil {
		w.say("Over EST a device shows", estWords(p.EST)...)
	}
	switch {
	case p.Approval.Manual:
		w.say("Approval", "An operator approves or denies every request")
	case len(p.Approval.CNSuffix) > 0:
		w.say("Approval", "Issued at once, unless the common name ends in "+anyOf(p.Approval.CNSuffix)+": then an operator decides")
	default:
		w.say("Approval", "Issued at once")
	}
	if c := p.Compliance; c != nil {
		w.say("Compliance", fmt.Sprintf("%s is asked before each certificate is issued and has %s to answer; its server’s certificate has to be from %s", c.URL, words(c.Timeout), c.File))
	}
	w.say("Limits", limitWords(p)...)
}

func challengeWords(c provision.Challenges) []string {
	var says []string
	if c.StaticHash != "" {
		says = append(says, "A challenge that all devices share")
	}
	if c.OneTime != nil {
		says = append(says, fmt.Sprintf("A challenge that an operator made for this one device, good once, for %s at most", words(c.OneTime.TTL)))
	}
	if s := c.Signed; s != nil {
		one := fmt.Sprintf("A challenge that %s signed for %s with a certificate in %s, %s old at most", s.Issuer, s.Audience, s.File, words(s.Validity))
		if s.PerDevice24h > 0 {
			one += fmt.Sprintf("; %s for one device within 24 hours", counted(s.PerDevice24h, "certificate", "certificates"))
		}
		says = append(says, one)
	}
	if i := c.Intune; i != nil {
		says = append(says, "A challenge that Microsoft Intune vouches for (tenant "+i.Tenant+")")
	}
	return says
}

func estWords(e *provision.EST) []string {
	var says []string
	if len(e.Basic) > 0 {
		says = append(says, "A user name and a password")
	}
	if e.Challenge {
		says = append(says, "A one-time challenge as its password")
	}
	if e.Bundle != nil {
		says = append(says, "A certificate from an authority in "+e.File)
	}
	if e.Issued {
		says = append(says, "For its next certificate: the one it has from here")
	}
	return says
}

func limitWords(p *provision.Profile) []string {
	var says []string
	if n := p.Limits.PerSource; n > 0 {
		says = append(says, counted(n, "certificate", "certificates")+" an hour to one network address")
	}
	if n := p.Limits.PerProfile; n > 0 {
		says = append(says, counted(n, "certificate", "certificates")+" an hour altogether")
	}
	if p.MaxActive > 0 {
		says = append(says, counted(p.MaxActive, "valid certificate", "valid certificates")+" at a time for one device")
	}
	if says == nil {
		return []string{"None"}
	}
	return says
}

func (w *policyWords) contents(c pki.ProfileConfig, unique bool) {
	var keys []string
	if c.Keys.RSA != nil {
		keys = append(keys, fmt.Sprintf("RSA of at least %d bits", c.Keys.RSA.MinBits))
	}
	if len(c.Keys.ECDSA) > 0 {
		curves := strings.NewReplacer("p", "P-").Replace(anyOf(c.Keys.ECDSA))
		keys = append(keys, "ECDSA on "+curves)
	}
	if unique {
		keys = append(keys, "A key that has a certificate gets none for another device")
	}
	w.say("Keys", keys...)

	subject := []string{"Empty"}
	if len(c.Subject.Allow) > 0 {
		subject = []string{"May hold " + strings.Join(c.Subject.Allow, ", ") + ", in the order the device writes them"}
	}
	if c.Subject.Template != "" {
		subject = append(subject, "Is written anew as "+c.Subject.Template)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Subject.Match)) {
		subject = append(subject, name+" has to be like "+patterns(c.Subject.Match[name]))
	}
	w.say("Subject", subject...)

	var names []string
	for _, kind := range []struct {
		what string
		like []string
	}{{"DNS names", c.SAN.DNS}, {"Addresses", c.SAN.IP}, {"E-mail addresses", c.SAN.Email}, {"User principal names", c.SAN.UPN}, {"URIs", c.SAN.URI}} {
		if len(kind.like) > 0 {
			names = append(names, kind.what+": "+patterns(kind.like))
		}
	}
	if names == nil {
		names = []string{"None"}
	}
	w.say("Other names", names...)
	w.say("Key usage", c.Usage.Key...)
	w.say("Extended key usage", c.Usage.Extended...)
	w.say("Validity", words(c.Validity)+", and never past the authority’s own end")
	var extra []string
	if c.MustStaple {
		extra = append(extra, "Servers have to staple an OCSP response (must-staple)")
	}
	if c.ADSID {
		extra = append(extra, "Keeps the Active Directory SID that the request names")
	}
	w.say("Extensions", extra...)
}

func (w *policyWords) renewal(p *provision.Profile) {
	proof := "The certificate that ends is enough"
	if p.Renewal.Challenge {
		proof = "Needs a challenge or password besides the certificate that ends"
	}
	window := "Any time"
	if p.Renewal.Window < p.Rules().Validity {
		window = "In the last " + words(p.Renewal.Window)
	}
	if p.Renewal.Grace > 0 {
		window += ", and for " + words(p.Renewal.Grace) + " after the end"
	}
	w.say("When", window)
	w.say("With", proof)
	if from := p.Renewal.From; from != nil {
		w.say("Taken over", "Certificates from authorities in "+from.File+" can be renewed here too")
	}
	if p.RevokeOnReplace {
		w.say("Afterwards", "The certificate before is revoked")
	}
}

func (w *policyWords) protocols(p *provision.Profile, listeners provision.Listeners) {
	on := func(is bool, text string) []string {
		if is {
			return []string{text}
		}
		return nil
	}
	if s := p.SCEP; s.On {
		says := on(listeners.SCEP, "Over TLS 1.3")
		says = append(says, on(s.LegacyTLS, "Over TLS 1.2 on the legacy listener")...)
		says = append(says, on(s.PlainHTTP, "Over plain HTTP; messages are encrypted and signed by themselves")...)
		if s.MTLS != nil {
			must := "can"
			if s.MTLS.Required {
				must = "must"
			}
			says = append(says, "A device "+must+" show a certificate from an authority in "+s.MTLS.File+" in TLS as well")
		}
		w.say("SCEP", says...)
	} else {
		w.say("SCEP", "Off")
	}
	if e := p.EST; e != nil {
		says := slices.Concat(on(listeners.EST, "Over TLS 1.3"), on(e.LegacyTLS, "Over TLS 1.2 on the legacy listener"))
		switch e.ChannelBinding {
		case "optional":
			says = append(says, "Requests can be bound to their TLS connection")
		case "required":
			says = append(says, "Requests have to be bound to their TLS connection")
		}
		says = append(says, on(e.ServerKeyGen != "", "The box makes keys for devices that ask: "+e.ServerKeyGen)...)
		w.say("EST", says...)
	} else {
		w.say("EST", "Off")
	}
	if !p.SCEP.On {
		return
	}
	l := p.SCEP.Legacy
	weak := slices.Concat(on(l.SHA1, "SHA-1 digests and signatures"), on(l.DES3, "Triple DES, both ways"),
		on(l.DESDecrypt, "Single DES in requests"), on(l.MD5, "MD5 digests in requests"),
		on(p.SCEP.RawCSR, "Requests that are signed and not encrypted, over TLS alone"))
	w.say("Old cryptography", weak...)
	if len(weak) > 0 {
		w.rules[len(w.rules)-1].Weak = true
	}
}

// patterns writes patterns of names for people.
func patterns(like []string) string {
	if slices.Contains(like, "*") || slices.Contains(like, "0.0.0.0/0") && slices.Contains(like, "::/0") {
		return "any"
	}
	return anyOf(like)
}

// anyOf lists texts with an or.
func anyOf(texts []string) string {
	if len(texts) < 2 {
		return strings.Join(texts, "")
	}
	return strings.Join(texts[:len(texts)-1], ", ") + " or " + texts[len(texts)-1]
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// words writes a duration exactly, in the largest unit that fits.
func words(d time.Duration) string {
	for _, u := range []struct {
		size      time.Duration
		one, many string
	}{{24 * time.Hour, "day", "days"}, {time.Hour, "hour", "hours"}, {time.Minute, "minute", "minutes"}, {time.Second, "second", "seconds"}} {
		if d >= u.size && d%u.size == 0 {
			return counted(int(d/u.size), u.one, u.many)
		}
	}
	return d.String()
}
