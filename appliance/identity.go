package appliance

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
)

// Lifetimes of what the box certifies for itself.
const (
	rootValidity = 10 * 365 * 24 * time.Hour
	tlsValidity  = 90 * 24 * time.Hour
	// tlsRenewBefore and raRenewBefore are how long before expiry a new certificate is made.
	tlsRenewBefore = 30 * 24 * time.Hour
	raRenewBefore  = 30 * 24 * time.Hour
)

// errStateLost: the keys have served before, and what they certified is gone. Going on would make a
// new CA under the old keys.
var errStateLost = errors.New("the keys were provisioned earlier, but the state they belong to is gone: the disk's state was lost or replaced")

const stateLostMend = "put the original disk back; to start over as a new box, clear the TPM in the firmware setup and flash the disk again"

// authority is one CA of the box, ready to issue.
type authority struct {
	name   string
	issuer *pki.Issuer
	ra     *x509.Certificate
}

// identity is every certificate the box has for itself, and the keys behind them.
type identity struct {
	site       *provision.Site
	store      *store.Store
	now        func() time.Time
	timeSource string // of now, for audit records

	authorities map[string]authority
	raKey       *keys.Key
	tlsCA       *pki.Issuer
	tlsKey      *keys.Key

	mu      sync.Mutex // serialises renewal of the TLS certificate
	tlsCert atomic.Pointer[tls.Certificate]
}

// openIdentity loads the box's certificates. In a provisioning boot, and only then, it makes them
// first; anywhere else a store without them is refused, so that a lost disk never turns into a new
// CA unnoticed.
func openIdentity(c Config, st *store.Store) (*identity, error) {
	id := &identity{site: c.Site, store: st, now: c.Now, timeSource: c.Boot.TimeSource, authorities: map[string]authority{}}
	if err := id.loadKeys(c.Keys); err != nil {
		return nil, err
	}
	if !st.Initialised() {
		if !c.Boot.Provisioning {
			return nil, &mendable{errStateLost, stateLostMend}
		}
		if err := id.initialise(c.Keys); err != nil {
			return nil, fmt.Errorf("creating the box's authorities: %w", err)
		}
	}
	saved, err := st.Identity()
	if err != nil {
		return nil, fmt.Errorf("reading the box's certificates: %w", err)
	}
	if saved.TLS == nil && c.Boot.Kind == handover.KindBox {
		awaitAddress()
	}
	if err := id.load(saved, c.Keys); err != nil {
		return nil, err
	}
	return id, nil
}

// awaitAddress gives a box on its first boot some seconds to get an address, so that its first TLS
// certificate carries it and the fingerprint on the screen does not change a minute later.
func awaitAddress() {
	for range 30 {
		if len(ownAddresses()) > 0 {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func (id *identity) loadKeys(holder *keys.Client) error {
	var err error
	if id.raKey, err = holder.Key(provision.KeyRA); err != nil {
		return fmt.Errorf("key of the RA: %w", err)
	}
	if id.tlsKey, err = holder.Key(provision.KeyTLS); err != nil {
		return fmt.Errorf("key of the TLS server: %w", err)
	}
	return nil
}

// initialise makes the root certificate of every authority and of TLS, and the RA certificates, and
// stores them in one batch.
func (id *identity) initialise(holder *keys.Client) error {
	now := id.now()
	made := store.Identity{Authorities: map[string]store.AuthorityCerts{}}
	for _, a := range id.site.Authorities {
		issuer, err := newRoot(holder, provision.KeyAuthorityPrefix+a.Name, a.Subject, now)
		if err != nil {
			return fmt.Errorf("authority %s: %w", a.Name, err)
		}
		ra, err := issuer.IssueRA(id.raKey.Public(), now, id.site.RA.Validity)
		if err != nil {
			return fmt.Errorf("RA certificate of authority %s: %w", a.Name, err)
		}
		made.Authorities[a.Name] = store.AuthorityCerts{CA: issuer.Certificate().Raw, RA: ra}
	}
	subject, err := pki.ParseDN("CN=" + id.site.Name + " TLS root,O=Signet box")
	if err != nil {
		return err
	}
	root, err := newRoot(holder, provision.KeyTLSCA, subject, now)
	if err != nil {
		return fmt.Errorf("TLS root: %w", err)
	}
	made.TLSRoot = root.Certificate().Raw
	record := id.record(audit.BoxInitialised)
	record.Identity = id.site.Name
	return id.store.Initialise(made, record)
}

// record is the audit record of something the box did for itself.
func (id *identity) record(action audit.Action) audit.Record {
	return audit.Record{Action: action, Actor: audit.ActorBox, Outcome: audit.OutcomeSuccess, Time: id.now(), TimeSource: id.timeSource}
}

func newRoot(holder *keys.Client, keyName string, subject []byte, now time.Time) (*pki.Issuer, error) {
	key, err := holder.Key(keyName)
	if err != nil {
		return nil, err
	}
	der, err := pki.NewRoot(subject, key, now, rootValidity)
	if err != nil {
		return nil, err
	}
	return issuerOf(der, key)
}

func issuerOf(der []byte, key crypto.Signer) (*pki.Issuer, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return pki.NewIssuer(cert, key)
}

// load binds the stored certificates to the holder's keys; a certificate of another key means that
// disk and TPM do not belong together.
func (id *identity) load(saved store.Identity, holder *keys.Client) error {
	renewed := false
	for _, a := range id.site.Authorities {
		certs, ok := saved.Authorities[a.Name]
		if !ok {
			return &mendable{fmt.Errorf("authority %s is in the site but was not created when the box was provisioned", a.Name), "take it out of the site, or provision a new box with it"}
		}
		key, err := holder.Key(provision.KeyAuthorityPrefix + a.Name)
		if err != nil {
			return fmt.Errorf("key of authority %s: %w", a.Name, err)
		}
		issuer, err := issuerOf(certs.CA, key)
		if err != nil {
			return fmt.Errorf("authority %s: %w", a.Name, err)
		}
		ra, err := x509.ParseCertificate(certs.RA)
		if err != nil {
			return fmt.Errorf("RA certificate of authority %s: %w", a.Name, err)
		}
		if id.now().After(ra.NotAfter.Add(-raRenewBefore)) {
			der, err := issuer.IssueRA(id.raKey.Public(), id.now(), id.site.RA.Validity)
			if err != nil {
				return fmt.Errorf("renewing the RA certificate of authority %s: %w", a.Name, err)
			}
			if ra, err = x509.ParseCertificate(der); err != nil {
				return err
			}
			saved.Authorities[a.Name] = store.AuthorityCerts{CA: certs.CA, RA: der}
			renewed = true
		}
		id.authorities[a.Name] = authority{name: a.Name, issuer: issuer, ra: ra}
	}
	key, err := holder.Key(provision.KeyTLSCA)
	if err != nil {
		return fmt.Errorf("key of the TLS root: %w", err)
	}
	if id.tlsCA, err = issuerOf(saved.TLSRoot, key); err != nil {
		return fmt.Errorf("TLS root: %w", err)
	}
	if renewed {
		if err := id.store.UpdateIdentity(saved, id.record(audit.RARenewed)); err != nil {
			return err
		}
	}
	return id.refreshTLS()
}

// refreshTLS makes a new TLS certificate where there is none, it ends soon, or the box's names or
// addresses have changed; otherwise the stored one is used, so that its fingerprint stays.
func (id *identity) refreshTLS() error {
	id.mu.Lock()
	defer id.mu.Unlock()
	names, addresses := id.tlsNames()
	if c := id.tlsCert.Load(); c != nil && id.tlsFits(c.Leaf, names, addresses) {
		return nil
	}
	saved, err := id.store.Identity()
	if err != nil {
		return err
	}
	if leaf, err := x509.ParseCertificate(saved.TLS); err == nil && id.tlsFits(leaf, names, addresses) {
		id.useTLS(leaf)
		return nil
	}
	der, err := id.tlsCA.IssueServer(id.tlsKey.Public(), names, addresses, id.now(), tlsValidity)
	if err != nil {
		return fmt.Errorf("issuing the TLS certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	saved.TLS = der
	record := id.record(audit.TLSRenewed)
	record.Serial = fmt.Sprintf("%x", leaf.SerialNumber)
	if err := id.store.UpdateIdentity(saved, record); err != nil {
		return err
	}
	id.useTLS(leaf)
	return nil
}

func (id *identity) useTLS(leaf *x509.Certificate) {
	id.tlsCert.Store(&tls.Certificate{Certificate: [][]byte{leaf.Raw, id.tlsCA.Certificate().Raw}, PrivateKey: id.tlsKey, Leaf: leaf})
}

// tlsFits says whether leaf is ours, still good and carries these names and addresses. Addresses the
// box had earlier may be in it too: they come back, and each new certificate is a new fingerprint on
// the screen.
func (id *identity) tlsFits(leaf *x509.Certificate, names []string, addresses []net.IP) bool {
	return leaf.CheckSignatureFrom(id.tlsCA.Certificate()) == nil &&
		samePublic(leaf.PublicKey, id.tlsKey.Public()) &&
		id.now().Before(leaf.NotAfter.Add(-tlsRenewBefore)) && id.now().After(leaf.NotBefore) &&
		!slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(leaf.DNSNames, n) }) &&
		!slices.ContainsFunc(addresses, func(a net.IP) bool { return !slices.ContainsFunc(leaf.IPAddresses, a.Equal) })
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// tlsNames are the DNS names and addresses the box's TLS certificate carries: the public host,
// localhost, the loopback addresses and ownAddresses.
func (id *identity) tlsNames() ([]string, []net.IP) {
	names := []string{"localhost"}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if ip := net.ParseIP(id.site.PublicHost); ip != nil {
		addresses = append(addresses, ip)
	} else if id.site.PublicHost != "localhost" {
		names = append([]string{id.site.PublicHost}, names...)
	}
	for _, ip := range ownAddresses() {
		if !slices.ContainsFunc(addresses, ip.Equal) {
			addresses = append(addresses, ip)
		}
	}
	return names, addresses
}

// ownNames are the names and addresses that lead others to the box: those in its TLS certificate, and
// the addresses it has now. Those of the loopback are everyone's own.
func (id *identity) ownNames() []string {
	leaf := id.tlsCert.Load().Leaf
	var own []string
	for _, name := range leaf.DNSNames {
		if name != "localhost" {
			own = append(own, name)
		}
	}
	for _, ip := range append(addressesNow(), leaf.IPAddresses...) {
		if !ip.IsLoopback() && !slices.Contains(own, ip.String()) {
			own = append(own, ip.String())
		}
	}
	return own
}

// ownAddresses are the IPv4 addresses of the interfaces that are up, loopback and link-local ones
// aside. A box gets IPv6 addresses from whatever router advertises, at any time: a name reaches it
// by those, and a certificate that followed them would change its fingerprint again and again.
func ownAddresses() []net.IP {
	return slices.DeleteFunc(addressesNow(), func(ip net.IP) bool { return ip.To4() == nil })
}

// addressesNow are the addresses of the interfaces that are up, sorted, without loopback and link-local ones.
func addressesNow() []net.IP {
	interfaces, _ := net.InterfaceAddrs() // none found leaves the fixed names
	var own []net.IP
	for _, a := range interfaces {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback() {
			own = append(own, n.IP)
		}
	}
	slices.SortFunc(own, func(a, b net.IP) int { return bytes.Compare(a.To16(), b.To16()) })
	return own
}

// certificate answers crypto/tls with the current certificate.
func (id *identity) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return id.tlsCert.Load(), nil
}

// bundle is the PEM of every root a client of this box may need: TLS first, then the authorities.
func (id *identity) bundle() []byte {
	roots := []*x509.Certificate{id.tlsCA.Certificate()}
	for _, a := range id.site.Authorities {
		roots = append(roots, id.authorities[a.Name].issuer.Certificate())
	}
	var b bytes.Buffer
	for _, c := range roots {
		fmt.Fprintf(&b, "# %s\n", c.Subject)
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.Bytes()
}
