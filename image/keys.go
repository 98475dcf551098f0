package image

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Files of a site's secrets directory. Who has db.key can boot any program on the site's boxes, who
// has policy.key can approve a boot state that opens their TPM keys, who has update.key can feed
// them an update. None of them ever enters an image.
const (
	DBKeyFile     = "db.key"     // RSA-2048, PKCS #8 PEM: Authenticode signatures, the site's Secure Boot db
	DBCertFile    = "db.crt"     // its self-signed certificate, PEM
	PolicyKeyFile = "policy.key" // RSA-2048, PKCS #8 PEM: TPM policies over predicted PCR 11 values
	UpdateKeyFile = "update.key" // Ed25519, PKCS #8 PEM: update bundles
)

// ErrKeysExist is returned instead of ever replacing signing keys: boxes in the field are bound to them.
var ErrKeysExist = errors.New("signing keys exist already and are never replaced")

// dbCertValidity is long on purpose: UEFI firmware does not look at validity dates.
const dbCertValidity = 30 * 365 * 24 * time.Hour

// WriteSigningKeys makes a site's db, policy and update keys in dir, the site's secrets directory,
// which must be absent or empty. All files are written (0600 in a 0700 directory, synced) or none.
// A .gitignore beside them keeps the whole directory out of version control.
func WriteSigningKeys(dir, site string) error {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s: %w", dir, ErrKeysExist)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making signing keys: %w", err)
	}
	files, err := newSigningKeys(site)
	if err != nil {
		return fmt.Errorf("making signing keys: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making signing keys: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".secrets-*") // 0700
	if err != nil {
		return fmt.Errorf("making signing keys: %w", err)
	}
	defer os.RemoveAll(tmp)
	for name, data := range files {
		if err := writeNew(filepath.Join(tmp, name), data); err != nil {
			return fmt.Errorf("making signing keys: %w", err)
		}
	}
	// Renaming over a directory succeeds only while that one is empty, so two concurrent calls
	// cannot replace each other's keys.
	if err := os.Rename(tmp, dir); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s: %w", dir, ErrKeysExist)
		}
		return fmt.Errorf("making signing keys: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

// newSigningKeys returns the contents of a fresh secrets directory by file name.
func newSigningKeys(site string) (map[string][]byte, error) {
	db, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	policy, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	_, update, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40
	now := time.Now().UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: site + " Secure Boot db"},
		NotBefore:             now.Add(-24 * time.Hour),
		NotAfter:              now.Add(dbCertValidity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &db.PublicKey, db)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		DBCertFile:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		".gitignore": []byte("*\n"),
	}
	for name, key := range map[string]crypto.Signer{DBKeyFile: db, PolicyKeyFile: policy, UpdateKeyFile: update} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	return files, nil
}

// SigningKeys are what a bake signs with.
type SigningKeys struct {
	DB     *rsa.PrivateKey   // Authenticode: UEFI firmware takes RSA-2048 only
	DBCert *x509.Certificate // certificate of DB
	Policy *rsa.PrivateKey   // TPM policies: RSA-2048, the size every TPM 2.0 verifies
}

// LoadSigningKeys reads the keys WriteSigningKeys made from a site's secrets directory. The error
// is fs.ErrNotExist where the directory or one of its files is missing.
func LoadSigningKeys(dir string) (*SigningKeys, error) {
	db, err := loadRSA(filepath.Join(dir, DBKeyFile))
	if err != nil {
		return nil, err
	}
	policy, err := loadRSA(filepath.Join(dir, PolicyKeyFile))
	if err != nil {
		return nil, err
	}
	certPath := filepath.Join(dir, DBCertFile)
	block, err := loadPEM(certPath, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certPath, err)
	}
	if !db.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the certificate of %s", certPath, DBKeyFile)
	}
	return &SigningKeys{DB: db, DBCert: cert, Policy: policy}, nil
}

func loadRSA(path string) (*rsa.PrivateKey, error) {
	der, err := loadPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s holds no readable private key", path)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || key.N.BitLen() != 2048 {
		return nil, fmt.Errorf("%s is not an RSA-2048 key, the only kind UEFI and every TPM accept", path)
	}
	return key, nil
}

func loadPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no PEM block %q", path, kind)
	}
	return block.Bytes, nil
}

// keyFingerprint is the SHA-256 of a public key in PKIX form.
func keyFingerprint(pub *rsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// writeNew creates a file 0600 that must not exist, and syncs it.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
