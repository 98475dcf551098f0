package appliance

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Ready is what --ready-file holds: where the service answers. Values are scheme://host:port; a
// listener that is off has no key.
type Ready struct {
	EST        string `json:"est,omitempty"`
	SCEP       string `json:"scep,omitempty"`
	Console    string `json:"console,omitempty"`
	SCEPPlain  string `json:"scep_plain,omitempty"`
	PKI        string `json:"pki,omitempty"`
	OCSP       string `json:"ocsp,omitempty"`
	Legacy     string `json:"legacy,omitempty"`
	LegacySCEP string `json:"legacy_scep,omitempty"`
	ClaimCode  string `json:"claim_code"` // "" once claimed
	TLSSHA256  string `json:"tls_sha256"` // lower-case hex SHA-256 of the console leaf's DER
	CABundle   string `json:"ca_bundle"`  // path of a PEM file
}

// writeReady writes r whole, readable by its owner only.
func writeReady(path string, r Ready) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(path, append(b, '\n'), 0o600)
}

// writeWhole replaces path by rename, so that a reader sees the old file or the new one.
func writeWhole(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".signet-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// listenerURL is scheme://host:port of an open listener as a local client reaches it.
func listenerURL(scheme string, l net.Listener) string {
	addr := l.Addr().(*net.TCPAddr)
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, fmt.Sprint(addr.Port))
}
