package appliance_test

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

// That state was made is recorded before anybody is answered, and a service that cannot record it
// answers nobody.
func TestNobodyIsServedBeforeStateIsRecorded(t *testing.T) {
	site, err := provision.Load(os.DirFS(demoSite))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	storage, err := os.Create(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	var specs []keys.Spec
	for _, k := range site.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	host, err := keys.OpenHost(tpmtest.Start(t), storage, site.Name, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("the disk is full")
	a, err := appliance.New(appliance.Config{
		Site: site, StateDir: dir, Keys: host.Client, Now: time.Now,
		Boot:      handover.Boot{Kind: handover.KindHost, Provisioning: true, TimeSource: "host"},
		Listeners: map[string]net.Listener{"plain": plain},
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
		Initialised: func() error {
			client := http.Client{Timeout: 500 * time.Millisecond}
			if r, err := client.Get("http://" + plain.Addr().String() + "/scep?operation=GetCACaps"); err == nil {
				r.Body.Close()
				t.Errorf("answered %s before anything was recorded", r.Status)
			}
			return full
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(t.Context()); !errors.Is(err, full) {
		t.Errorf("serving: %v", err)
	}
}
