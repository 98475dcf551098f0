package appliance

import (
	"crypto"
	"fmt"
	"io"

	"signet.internal/appliance/keys"
	"signet.internal/appliance/store"
)

// newLogSigner signs the audit log with the box's audit key, which never leaves its TPM.
func (a *Appliance) newLogSigner() (*store.LogSigner, error) {
	key, err := a.config.Keys.Key(keys.NameAudit)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	return store.NewLogSigner(a.store, a.config.Site.Name, auditKey{key}, a.config.Now)
}

// auditKey has the console say it where the key holder has no time.
type auditKey struct{ *keys.Key }

func (k auditKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Key.Sign(rand, digest, opts)
	return signature, ordered(err)
}

// signLog makes the checkpoint of the audit log that is due. One that cannot be made now is made a
// minute later; the box serves meanwhile, and what is recorded is signed then.
func (a *Appliance) signLog() {
	if err := a.logSigner.Upkeep(); err != nil {
		a.config.Log.Error("signing the audit log", "err", err)
	}
}
