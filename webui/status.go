package webui

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"signet.internal/appliance/handover"
)

// Status is the body of GET /api/v1/status and what the status page shows.
type Status struct {
	Name        string               `json:"name" doc:"of the site"`
	Version     string               `json:"version" doc:"of the site"`
	PublicHost  string               `json:"public_host"`
	Demo        bool                 `json:"demo" doc:"keys and challenges of this site are public"`
	Claimed     bool                 `json:"claimed"`
	Ready       bool                 `json:"ready" doc:"every authority can issue"`
	Kind        string               `json:"kind" doc:"\"box\" or \"host\""`
	Epoch       uint32               `json:"epoch"`
	Debug       bool                 `json:"debug" doc:"a debug image with a shell"`
	SecureBoot  string               `json:"secure_boot" doc:"in plain words"`
	PCR11       string               `json:"pcr11" doc:"lower-case hex, after leave-initrd; empty on a host"`
	TPM         handover.TPM         `json:"tpm"`
	Clock       Clock                `json:"clock"`
	Authorities []AuthorityStatus    `json:"authorities"`
	Profiles    []ProfileStatus      `json:"profiles"`
	Conditions  []handover.Condition `json:"conditions" doc:"what needs a person"`
}

// Clock is the box's time and where it comes from.
type Clock struct {
	Now     time.Time `json:"now"`
	Source  string    `json:"source"`
	Floor   time.Time `json:"floor" doc:"nothing is signed while the clock is before this"`
	Started time.Time `json:"started" doc:"when this service started"`
	Trusted bool      `json:"trusted" doc:"false: nothing is issued before the clock is set"`
}

// AuthorityStatus is one CA and its registration authority.
type AuthorityStatus struct {
	Name        string             `json:"name"`
	Mode        string             `json:"mode" doc:"\"root\", or \"subordinate\" to an authority outside of the box"`
	Protection  string             `json:"protection" doc:"of the CA key: \"resident\" in the TPM, or \"sealed\" by it"`
	CA          *Certificate       `json:"ca,omitempty" doc:"of the active generation; absent for a subordinate that waits for its first chain"`
	RA          *Certificate       `json:"ra,omitempty" doc:"the current one; absent with it"`
	Generations []GenerationStatus `json:"generations" doc:"by number, the oldest first"`
}

// GenerationStatus is one key of an authority.
type GenerationStatus struct {
	Number     int        `json:"number"`
	State      string     `json:"state" doc:"\"active\", \"next\", \"waiting\" for its chain, or \"earlier\""`
	Superseded *time.Time `json:"superseded,omitempty" doc:"since when it is an earlier one"`
}

// Generation is the number of the active generation, 0 for none.
func (a AuthorityStatus) Generation() int { return a.numberOf(GenerationActive) }

// Next is the number of the generation that is published or waits for its chain, 0 for none.
func (a AuthorityStatus) Next() int {
	return max(a.numberOf(GenerationNext), a.numberOf(GenerationWaiting))
}

func (a AuthorityStatus) numberOf(state string) int {
	for _, g := range a.Generations {
		if g.State == state {
			return g.Number
		}
	}
	return 0
}

// ProfileStatus is one enrollment profile.
type ProfileStatus struct {
	Name      string       `json:"name"`
	Default   bool         `json:"default"`
	Authority string       `json:"authority"`
	SCEP      []string     `json:"scep" doc:"URLs"`
	EST       []string     `json:"est" doc:"URLs"`
	Off       *SwitchedOff `json:"off,omitempty" doc:"absent while it issues"`
	NotBaked  bool         `json:"not_baked" doc:"a bundle, the challenge or a password was replaced while the box runs"`
}

// Certificate is what people compare of a certificate.
type Certificate struct {
	Subject   string    `json:"subject" doc:"in the order of the encoding, as openssl prints it"`
	Issuer    string    `json:"issuer" doc:"in the order of the encoding, as openssl prints it"`
	Serial    string    `json:"serial" doc:"lower-case hex"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Key       string    `json:"key" doc:"algorithm and size in words"`
	SHA256    string    `json:"sha256" doc:"of the DER, lower-case hex"`
}

// What is left of a certificate when the console starts to worry.
const (
	warnBefore = 30 * 24 * time.Hour
	badBefore  = 7 * 24 * time.Hour
)

// status gathers the current state; it fails only when the store does.
func (c *console) status() (Status, error) {
	site, boot, now := c.cfg.Site(), c.cfg.Boot, c.cfg.Now()
	s := Status{
		Name: site.Name, Version: site.Version, PublicHost: site.PublicHost, Demo: site.Demo,
		Claimed: c.cfg.Store.Claimed(),
		Kind:    boot.Kind, Epoch: boot.Epoch, Debug: boot.Debug, SecureBoot: boot.SecureBoot, PCR11: boot.PCR11, TPM: boot.TPM,
		Clock:       c.clock(),
		Authorities: []AuthorityStatus{},
		Profiles:    []ProfileStatus{},
		Conditions:  append([]handover.Condition{}, boot.Conditions...),
		Ready:       !site.Stopped && !now.Before(boot.TimeFloor),
	}
	for _, condition := range site.Conditions {
		if !slices.Contains(s.Conditions, condition) {
			s.Conditions = append(s.Conditions, condition)
		}
	}
	for _, a := range c.cfg.Box.Authorities() {
		as, usable, err := authorityStatus(a, now)
		if err != nil {
			return Status{}, err
		}
		s.Authorities = append(s.Authorities, as)
		s.Ready = s.Ready && usable
		if as.CA != nil && (now.Before(as.CA.NotBefore) || now.Before(as.RA.NotBefore)) {
			s.Conditions = append(s.Conditions, handover.Condition{
				What: fmt.Sprintf("It is %s by the box's clock: the certificates of authority %s are not valid yet.", stamp(now), a.Name), Mend: "Set the clock."})
		}
	}
	s.Ready = s.Ready && len(s.Authorities) > 0
	for _, p := range site.Profiles {
		s.Profiles = append(s.Profiles, ProfileStatus{Name: p.Name, Default: p.Default, Authority: p.Authority, SCEP: append([]string{}, p.SCEP...), EST: append([]string{}, p.EST...)})
	}
	return s, nil
}

// authorityStatus describes an authority, and says whether it can issue now.
func authorityStatus(a AuthorityInfo, now time.Time) (out AuthorityStatus, usable bool, err error) {
	out = AuthorityStatus{Name: a.Name, Mode: a.Mode, Protection: a.Protection, Generations: []GenerationStatus{}}
	for _, g := range a.Generations {
		out.Generations = append(out.Generations, GenerationStatus{Number: g.Number, State: g.State, Superseded: timeOf(g.Superseded)})
		if g.State != GenerationActive || len(a.RAs) == 0 {
			continue
		}
		ra := a.RAs[0].Certificate
		if out.CA, err = describe(g.Certificate); err != nil {
			return AuthorityStatus{}, false, fmt.Errorf("authority %s: %w", a.Name, err)
		}
		if out.RA, err = describe(ra); err != nil {
			return AuthorityStatus{}, false, fmt.Errorf("authority %s: RA: %w", a.Name, err)
		}
		usable = isValid(g.Certificate, now) && isValid(ra, now)
	}
	return out, usable, nil
}

func isValid(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(cert.NotBefore) && now.Before(cert.NotAfter)
}

// addSettings adds what was changed of the profiles: for people signed in.
func (c *console) addSettings(s *Status) error {
	for i := range s.Profiles {
		set, err := c.cfg.Box.Settings(s.Profiles[i].Name)
		if err != nil {
			return fmt.Errorf("profile %s: %w", s.Profiles[i].Name, err)
		}
		s.Profiles[i].Off, s.Profiles[i].NotBaked = set.Off.details(), set.NotBaked()
	}
	return nil
}

func describe(cert *x509.Certificate) (*Certificate, error) {
	subject, err := nameText(cert.RawSubject)
	if err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	issuer, err := nameText(cert.RawIssuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	sum := sha256.Sum256(cert.Raw)
	return &Certificate{
		Subject: subject, Issuer: issuer, Serial: hex.EncodeToString(cert.SerialNumber.Bytes()),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		Key: keyText(cert.PublicKey), SHA256: hex.EncodeToString(sum[:]),
	}, nil
}

// nameText writes a name in the order of its encoding, which is the order the site gives it in and
// the one openssl prints; pkix.Name would lose it, and RFC 4514 turns it around.
func nameText(raw []byte) (string, error) {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(raw, &name); err != nil {
		return "", err
	}
	slices.Reverse(name)
	return name.String(), nil
}

func keyText(public any) string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	}
	return "unknown kind of key"
}

// stamp is how the console writes a time for people.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
