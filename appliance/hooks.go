package appliance

import (
	"bytes"
	"context"
	"crypto/rand"
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
	"signet.internal/appliance/store"
	"signet.internal/provision"
	"signet.internal/webui"
)

// complianceHook asks a profile's webhook. Its key is entered while the box runs and kept by the key
// holder.
type complianceHook struct {
	config compliance.Config
	hook   atomic.Pointer[compliance.Hook] // nil: the roots in use make none
}

func complianceSecret(profile string) string {
	return "secret/" + webui.SecretCompliance + "/" + profile
}

func newComplianceHook(holder *keys.Client, profile string, c *provision.Compliance) *complianceHook {
	roots := newTrusted(c.Roots, nil)
	h := &complianceHook{config: compliance.Config{URL: c.URL, Timeout: c.Timeout, Key: func() ([]byte, error) {
		key, err := holder.Secret(complianceSecret(profile))
		if errors.Is(err, keys.ErrNoKey) {
			return nil, errors.New("the webhook's key was not entered yet")
		}
		return key, err
	}}}
	// The URL was checked with the site; what New refuses all the same is told with every question.
	_ = h.trust(roots.pool)
	return h
}

func (h *complianceHook) key() ([]byte, error) { return h.config.Key() }

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

// Check implements enroll.Profile.Compliance.
func (h *complianceHook) Check(ctx context.Context, r enroll.Request) error {
	hook := h.hook.Load()
	if hook == nil {
		return errors.New("the compliance webhook's settings cannot be used, run signet check on the site")
	}
	question := compliance.Request{
		Profile: r.Profile, Protocol: r.Protocol, Transaction: r.TransactionID, Identity: r.CSR.Identity(), Source: r.Source,
		Renewal: r.Renewal, CSR: r.CSRSum,
	}
	for _, n := range r.CSR.SAN {
		question.SANs = append(question.SANs, strings.ToUpper(string(n.Kind))+":"+n.Value)
	}
	return hook.Check(ctx, question)
}

// putSecret keeps a secret that is needed in clear, sealed; its name is kind/profile.
func (a *Appliance) putSecret(name string, value []byte, actor string) error {
	kind, profile, _ := strings.Cut(name, "/")
	s, err := a.settingsOf(profile)
	if err != nil || profile == "" {
		return webui.ErrNoProfile
	}
	if kind != webui.SecretCompliance || s.hook == nil {
		return &webui.ConflictError{What: "the profile needs no such secret", Mend: "Enter those that the profile's settings show."}
	}
	key, err := webhookKey(value)
	if err != nil {
		return &webui.OrderError{Err: err}
	}
	defer clear(key)
	if err := a.config.Keys.PutSecret(complianceSecret(profile), key); err != nil {
		return ordered(err)
	}
	record := a.settingRecord(audit.SecretEntered, s, actor, "key of the compliance webhook")
	return a.store.Append(record)
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

// intuneService asks Microsoft's validation service for one profile. Its credential is a key of the key
// holder's, with a certificate that the tenant's administrator registers with Entra; until it was
// made, nothing is validated.
type intuneService struct {
	config   intune.Config
	override string // name of the certificate in the store
	keyName  string
	store    *store.Store
	keys     *keys.Client

	mu     sync.Mutex
	client *intune.Client // nil: none was made yet under the roots in use
}

// errNoCredential: nobody asked for the credential of Intune's service yet.
var errNoCredential = errors.New("the box has no credential for Intune's service yet, fetch its certificate from the profile's settings and register it with Entra")

// credentialValidity is how long an administrator has before the certificate has to be registered anew.
const credentialValidity = 2 * 365 * 24 * time.Hour

func (a *Appliance) newIntune(profile string, i *provision.Intune) *intuneService {
	return &intuneService{
		config: intune.Config{
			Tenant: i.Tenant, ClientID: i.ClientID, Caller: "Signet " + a.config.Boot.Version, Algorithm: i.Algorithm,
			Roots: newTrusted(i.Roots, nil).pool, Now: a.config.Now, Log: a.config.Log.With(slog.String("profile", profile)),
		},
		override: "intune/" + profile, keyName: "intune/" + profile, store: a.store, keys: a.config.Keys,
	}
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
	if s.client != nil {
		return s.client, nil
	}
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	key, err := s.keys.Key(s.keyName)
	if err != nil {
		return nil, fmt.Errorf("credential of Intune's service: %w", err)
	}
	c := s.config
	c.Certificate, c.Key = cert, key
	s.client, err = intune.New(c)
	return s.client, err
}

// certificate is the registered one, or errNoCredential.
func (s *intuneService) certificate() (*x509.Certificate, error) {
	overrides, err := s.store.Overrides()
	if err != nil {
		return nil, err
	}
	o, ok := overrides[s.override]
	if !ok {
		return nil, errNoCredential
	}
	return x509.ParseCertificate(o.Value)
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
		return &challenge.Refused{Kind: challenge.KindIntune, Detail: "Intune says " + string(no.Code)}
	}
	return err
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

// Failed implements enroll.Intune.
func (s *intuneService) Failed(ctx context.Context, transaction string, csr []byte, why error) error {
	client, err := s.use()
	if err != nil {
		return err
	}
	result := intune.AccessDenied
	if errors.Is(why, enroll.ErrUnavailable) || errors.Is(why, enroll.ErrBusy) {
		result = intune.Unexpected
	}
	return client.NotifyFailure(ctx, intune.Transaction{ID: transaction, CSR: csr}, result, why.Error())
}

// intuneCertificate is the certificate, PEM, over the profile's credential for Intune's service; key and
// certificate are made the first time.
func (a *Appliance) intuneCertificate(s *settings, actor string) ([]byte, error) {
	if s.intune == nil {
		return nil, &webui.ConflictError{What: "the profile does not ask Intune", Mend: "Add challenges: {intune: …} to the profile and bake the site again."}
	}
	s.intune.mu.Lock()
	defer s.intune.mu.Unlock()
	cert, err := s.intune.certificate()
	if errors.Is(err, errNoCredential) {
		cert, err = a.newCredential(s, actor)
	}
	if err != nil {
		return nil, ordered(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), nil
}

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
	_, err = a.put(s.intune.override, der, a.settingRecord(audit.SecretEntered, s, actor, "a credential for Intune's service was made"))
	return cert, err
}
