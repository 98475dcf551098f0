package authority

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// Condition is something wrong or to be done, in plain words.
type Condition struct {
	What string // one sentence, what is wrong
	Mend string // one sentence, what to do
}

// How long before a certificate's end a person is told: time to have an offline root opened. At most a
// fifth of the certificate's validity.
const (
	warnAuthority = 90 * 24 * time.Hour
	warnTLS       = 21 * 24 * time.Hour  // of the box's own: later than they are renewed
	warnTLSRoot   = 365 * 24 * time.Hour // whoever trusts it has to be given another root by hand
)

// Conditions tells what a person has to do about the box's certificates, the worst first.
func (s *Set) Conditions(now time.Time) []Condition {
	var ended, soon, waiting []Condition
	// expiry sorts a certificate near its end among them.
	expiry := func(c *x509.Certificate, before time.Duration, what, mend string) {
		switch date := c.NotAfter.UTC().Format(time.DateOnly); {
		case !now.Before(c.NotAfter):
			ended = append(ended, Condition{fmt.Sprintf("%s ended on %s.", what, date), mend})
		case now.After(c.NotAfter.Add(-min(before, c.NotAfter.Sub(c.NotBefore)/5))):
			soon = append(soon, Condition{fmt.Sprintf("%s ends on %s.", what, date), mend})
		}
	}
	for _, a := range s.cfg.Site.Authorities {
		snapshot := s.Snapshot(a.Name)
		switch {
		case snapshot.Active == nil:
			ended = append(ended, Condition{
				fmt.Sprintf("Authority %s has no certificate yet and issues nothing.", a.Name),
				"Download its request in the console, have it signed by the authority above, and upload the chain.",
			})
			continue
		case snapshot.Waiting != 0:
			waiting = append(waiting, Condition{
				fmt.Sprintf("The next generation of authority %s waits for its certificate.", a.Name),
				"Download its request in the console, have it signed by the authority above, and upload the chain, or cancel the next generation.",
			})
		case snapshot.Next != nil:
			waiting = append(waiting, Condition{
				fmt.Sprintf("The next generation of authority %s is published and not active.", a.Name),
				"Activate it once devices had time to fetch it, or cancel it.",
			})
		}
		expiry(snapshot.Active.Issuer.Certificate(), warnAuthority, "The certificate of authority "+a.Name, s.mendAuthority(snapshot))
		for _, c := range snapshot.Active.Chain {
			expiry(c, warnAuthority, "A certificate above authority "+a.Name, "Have the authority above renewed, then upload the new chain.")
		}
		if ra := snapshot.RAs[0].Certificate; ra.NotAfter.Before(snapshot.Active.Issuer.Certificate().NotAfter.Add(-worthRenewing)) {
			expiry(ra, min(raRenewBefore, s.cfg.Site.RA.Validity/3)/2, "The RA certificate of authority "+a.Name,
				"It is renewed by itself: if this stays for a day, look at the log for why it is not, and rotate the RA key.")
		}
		if r := snapshot.Active.Responder; r != nil && r.Certificate.NotAfter.Before(snapshot.Active.Issuer.Certificate().NotAfter.Add(-worthRenewing)) {
			expiry(r.Certificate, responderValidity/5, "The OCSP responder's certificate of authority "+a.Name,
				"It is renewed by itself: if this stays for a day, look at the log for why it is not, and restart the box.")
		}
	}
	s.tlsConditions(expiry)
	return append(append(ended, soon...), waiting...)
}

// mendAuthority says how an authority goes on after its certificate.
func (s *Set) mendAuthority(snapshot *Snapshot) string {
	switch {
	case snapshot.Next != nil:
		return "Activate the next generation."
	case len(snapshot.Active.Chain) > 0:
		return "Download its request in the console, have it signed again and upload the chain, or prepare the next generation."
	}
	return "Prepare the next generation, and activate it once devices had time to fetch it."
}

func (s *Set) tlsConditions(expiry func(c *x509.Certificate, before time.Duration, what, mend string)) {
	state := s.tls.Load()
	root := state.root.Certificate()
	uploaded := 0
	for _, leaf := range []struct {
		what   string
		served *tls.Certificate
	}{{"The ECDSA certificate of the box's listeners", state.ecdsa}, {"The RSA certificate of the box's listeners", state.rsa}} {
		what, served := leaf.what, leaf.served
		switch {
		case served == nil:
		case served.Leaf.CheckSignatureFrom(root) != nil:
			uploaded++
			expiry(served.Leaf, warnAuthority/3, what, "Have a new request signed and upload the chain, or go back to the box's own certificate.")
		case served.Leaf.NotAfter.Before(root.NotAfter.Add(-worthRenewing)):
			expiry(served.Leaf, warnTLS, what, "It is renewed by itself: if this stays for a day, look at the log for why it is not, and restart the box.")
		}
	}
	if uploaded < len(tlsKeys()) {
		expiry(root, warnTLSRoot, "The root of the box's TLS certificates",
			"It is not renewed: upload TLS certificates of another authority for both keys of the box's listeners, and give its root to everything that trusts this one.")
	}
}
