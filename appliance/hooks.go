package appliance

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"signet.internal/appliance/audit"
	"signet.internal/appliance/challenge"
	"signet.internal/appliance/challenge/compliance"
	"signet.internal/appliance/challenge/intune"
	"signet.internal/appliance/enroll"
	"signet.internal/appliance/keys"
	"signet.internal/appliance/pki"
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// complianceHook asks a profile's webhook. Its key is entered while the box runs and kept by the key
// holder.
type complianceHook struct {
	config compliance.Config
	hook   atomic.Pointer[compliance.Hook] // nil: the site's URL cannot be used
	hasOne atomic.Bool                     // the key was there; it is never removed
}

func complianceSecret(profile string) string {
	return "secret/" + webui.SecretCompliance + "/" + profile
}

func newComplianceHook(holder *keys.Client, profile string, c *provision.Compliance, roots *x509.CertPool) *complianceHook {
	h := &complianceHook{config: compliance.Config{URL: c.URL, Timeout: c.Timeout, Key: func() ([]byte, error) {
		key, err := holder.Secret(complianceSecret(profile))
		if errors.Is(err, keys.ErrNoKey) {
			return nil, errors.New("it was not entered yet")
		}
		return key, err
	}}}
	// The URL was checked with the site; what New refuses all the same is told with every question.
	_ = h.trust(roots)
	return h
}

// hasKey reports whether the key was entered.
func (h *complianceHook) hasKey() bool {
	if !h.hasOne.Load() {
		key, err := h.config.Key()
		clear(key)
		h.hasOne.Store(err == nil)
	}
	return h.hasOne.Load()
}

// trust exchanges whom the webhook's own certificate has to chain to.
func (h *complianceHook) trust(roots *x509.CertPool) error {
	c := h.config
	c.Roots = roots
	hook, err := compliance.New(c)
	if err != nil {
		return err
	}
	h.hook.Store(hook)
	return nil
}

// notCompliant is a refusal of the webhook, or none of its verdicts, as the counters of signed challenges
// want to see it.
type notCompliant struct{ error }

func (e notCompliant) Unwrap() []error {
	return []error{e.error, &challenge.Refused{Kind: challenge.KindSigned, Label: challenge.ComplianceFailed, Detail: e.Error()}}
}

// Check implements enroll.Profile.Compliance.
func (h *complianceHook) Check(ctx context.Context, r enroll.Request) error {
	hook := h.hook.Load()
	if hook == nil {
		return notCompliant{errors.New("the compliance webhook's URL cannot be used, run signet check on the site")}
	}
	question := compliance.Request{
		Profile: r.Profile, Protocol: r.Protocol, Transaction: r.TransactionID, Identity: r.CSR.Identity(), Subject: pki.FormatDN(r.CSR.RawSubject), SID: r.CSR.SID, Source: r.Source,
		Renewal: r.Renewal, CSR: r.CSRSum,
	}
	for _, n := range r.CSR.SAN {
		question.SANs = append(question.SANs, strings.ToUpper(string(n.Kind))+":"+n.Value)
	}
	if err := hook.Check(ctx, question); err != nil {
		return notCompliant{err}
	}
	return nil
}

// putSecret keeps a secret that is needed in clear, sealed; its name is kind/profile.
func (a *Appliance) putSecret(name string, value []byte, actor string) error {
	kind, profile, _ := strings.Cut(name, "/")
	s, err := a.settingsOf(profile)
	if err != nil || profile == "" {
		return webui.ErrNoProfile
	}
	if kind != webui.SecretCompliance || s.hook == nil {
		return &webui.ConflictError{What: "the profile needs no such secret", Mend: "enter those that the profile's settings show"}
	}
	key, err := webhookKey(value)
	if err != nil {
		return &webui.OrderError{Err: err}
	}
	defer clear(key)
	// The key holder has no part in the store's batches: who entered something stands in the log first.
	record := a.settingRecord(audit.SecretEntered, s, actor, "key of the compliance webhook")
	record.Identity, record.Outcome = name, audit.OutcomeBegun
	if err := a.store.Append(record); err != nil {
		return err
	}
	err = a.config.Keys.PutSecret(complianceSecret(profile), key)
	record.Time, record.Outcome = a.config.Now(), audit.OutcomeSuccess
	if err != nil {
		record.Outcome = audit.OutcomeFailed
	} else {
		s.hook.hasOne.Store(true)
	}
	return errors.Join(ordered(err), a.store.Append(record))
}

// webhookKey reads a key as Standard Webhooks writes it: "whsec_" and base64 of 32 to 64 bytes.
func webhookKey(value []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(bytes.TrimSpace(value), []byte("whsec_"))
	key, err := base64.StdEncoding.AppendDecode(nil, text)
	if !ok || err != nil || len(key) < 32 || len(key) > 64 {
		clear(key)
		return nil, errors.New(`the key is not "whsec_" and the base64 of 32 to 64 random bytes, as the webhook's library makes it`)
	}
	return key, nil
}

// Microsoft is where Microsoft's services answer, in place of the public cloud's URLs.
type Microsoft struct{ Authority, Graph string }

// intuneService asks Microsoft's validation service for one profile. Its credential is a key of the key
// holder's, with a certificate that the tenant's administrator registers with Entra; until it was
// made, nothing is validated.
//
// Who can change the certificates in the store can keep the box from asking, not ask in its name.
type intuneService struct {
	config   intune.Config
	override string // name of the certificates in the store
	keyName  string
	keys     *keys.Client

	// Certificates over the key, oldest first: the first that has not ended is used, so that there is time
	// to register its successor.
	certificates atomic.Pointer[[]*x509.Certificate]

	mu     sync.Mutex // also taken to make certificates
	client *intune.Client
	used   *x509.Certificate // the client's
}

// errNoCredential: nobody asked for the credential of Intune's service yet.
var errNoCredential = errors.New("the box has no credential for Intune's service yet, fetch its certificate from the profile's settings and register it with Entra")

const (
	credentialValidity = 2 * 365 * 24 * time.Hour
	credentialDue      = 60 * 24 * time.Hour // before its end, from when on its successor can be fetched
)

// isDue says that a credential needs its successor.
func isDue(c *x509.Certificate, now time.Time) bool { return now.After(c.NotAfter.Add(-credentialDue)) }

func (a *Appliance) newIntune(profile string, i *provision.Intune, roots *x509.CertPool, overrides map[string]store.Override) *intuneService {
	s := &intuneService{
		config: intune.Config{
			Tenant: i.Tenant, ClientID: i.ClientID, Caller: "Signet " + a.config.Site.Version, Algorithm: i.Algorithm,
			Authority: a.config.Microsoft.Authority, Graph: a.config.Microsoft.Graph,
			Roots: roots, Now: a.config.Now, Log: a.config.Log.With(slog.String("profile", profile)),
		},
		override: "intune/" + profile, keyName: "intune/" + profile, keys: a.config.Keys,
	}
	// What cannot be read is as good as none: another is made over the same key when somebody fetches it.
	certificates, err := x509.ParseCertificates(overrides[s.override].Value)
	if err != nil {
		a.config.Log.Error("reading the certificate of the credential for Intune's service", "profile", profile, "err", err)
	}
	s.certificates.Store(&certificates)
	return s
}

// newest is the certificate made last, nil if there is none.
func (s *intuneService) newest() *x509.Certificate {
	all := *s.certificates.Load()
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// current is the certificate in use now, nil if there is none.
func (s *intuneService) current(now time.Time) *x509.Certificate {
	for _, c := range *s.certificates.Load() {
		if !now.After(c.NotAfter) {
			return c
		}
	}
	return s.newest()
}

// trust exchanges whom Microsoft's servers have to chain to.
func (s *intuneService) trust(roots *x509.CertPool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Roots = roots
	s.drop()
}

func (s *intuneService) drop() {
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
}

func (s *intuneService) use() (*intune.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cert := s.current(s.config.Now())
	if cert == nil {
		return nil, errNoCredential
	}
	if s.client != nil && s.used == cert {
		return s.client, nil
	}
	key, err := s.keys.Key(s.keyName)
	if err != nil {
		return nil, fmt.Errorf("credential of Intune's service: %w", err)
	}
	c := s.config
	c.Certificate, c.Key = cert, key
	client, err := intune.New(c)
	if err != nil {
		return nil, err
	}
	s.drop()
	s.client, s.used = client, cert
	return client, nil
}

// Validate implements challenge.Config.Intune.
func (s *intuneService) Validate(ctx context.Context, r challenge.Request) error {
	client, err := s.use()
	if err != nil {
		return err
	}
	err = client.ValidateRequest(ctx, intune.Transaction{ID: r.TransactionID, CSR: r.CSR.Raw})
	var no *intune.Rejected
	if errors.As(err, &no) {
		return &challenge.Refused{Kind: challenge.KindIntune, Label: labelOf(no), Detail: "Intune says " + string(no.Code)}
	}
	return err
}

// labelOf says in the words of the other kinds of challenge why Intune refused one.
func labelOf(no *intune.Rejected) challenge.Label {
	for _, class := range []struct {
		err   error
		label challenge.Label
	}{
		{intune.ErrExpired, challenge.Expired},
		{intune.ErrMismatch, challenge.ClaimMismatch},
		{intune.ErrMalformed, challenge.Malformed},
	} {
		if errors.Is(no, class.err) {
			return class.label
		}
	}
	return challenge.SignatureInvalid
}

// Succeeded implements enroll.Intune.
func (s *intuneService) Succeeded(ctx context.Context, transaction string, csr, certificate []byte) error {
	client, err := s.use()
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return err
	}
	return client.NotifySuccess(ctx, intune.Transaction{ID: transaction, CSR: csr}, cert)
}

// Failed implements enroll.Intune. Where the webhook gave no verdict nothing is told: the device's next
// attempt may end in a certificate, which Intune takes no more after a failure.
func (s *intuneService) Failed(ctx context.Context, transaction string, csr []byte, why error) error {
	if errors.Is(why, compliance.ErrUnavailable) {
		return nil
	}
	client, err := s.use()
	if err != nil {
		return err
	}
	description := why.Error()
	if errors.Is(why, enroll.ErrCompliance) { // the webhook's words are for the box's log alone
		description = enroll.ErrCompliance.Error()
	}
	return client.NotifyFailure(ctx, intune.Transaction{ID: transaction, CSR: csr}, intune.AccessDenied, description)
}

// intuneCertificate is the certificate, PEM, to register for the profile's credential for Intune's service:
// the newest. Key and certificate are made the first time, and its successor when the end is near.
func (a *Appliance) intuneCertificate(s *settings, actor string) ([]byte, error) {
	if s.intune == nil {
		return nil, &webui.ConflictError{What: "the profile does not ask Intune", Mend: "add challenges: {intune: …} to the profile and bake the site again"}
	}
	s.intune.mu.Lock()
	defer s.intune.mu.Unlock()
	cert := s.intune.newest()
	if cert == nil || isDue(cert, a.config.Now()) {
		var err error
		if cert, err = a.newCredential(s, actor); err != nil {
			return nil, ordered(err)
		}
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), nil
}

// newCredential makes a certificate, and the key where there is none. The caller holds intune.mu.
func (a *Appliance) newCredential(s *settings, actor string) (*x509.Certificate, error) {
	key, err := a.config.Keys.Create(keys.Spec{Name: s.intune.keyName, Algorithm: "rsa-2048", Protection: keys.Resident})
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := a.config.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Signet " + a.config.Site.Name + " Intune " + s.profile.Name},
		NotBefore: now.Add(-10 * time.Minute), NotAfter: now.Add(credentialValidity), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	if before := s.intune.current(now); before != nil && !now.After(before.NotAfter) {
		all = append(all, before)
	}
	all = append(all, cert)
	var value []byte
	for _, c := range all {
		value = append(value, c.Raw...)
	}
	sum := sha256.Sum256(der)
	record := a.settingRecord(audit.SecretEntered, s, actor, fmt.Sprintf("a certificate for Intune's service was made, SHA-256 %x", sum))
	record.Identity = s.intune.keyName
	if _, err = a.put(s.intune.override, value, record); err != nil {
		return nil, err
	}
	s.intune.certificates.Store(&all)
	return cert, nil
}
