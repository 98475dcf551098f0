package appliance_test

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/provision"
	"signet.internal/tpm/tpmtest"
)

// watched tells of the first that is accepted.
type watched struct {
	net.Listener
	accepts chan struct{}
	first   sync.Once
}

func (w *watched) Accept() (net.Conn, error) {
	w.first.Do(func() { close(w.accepts) })
	return w.Listener.Accept()
}

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
	served := &watched{Listener: plain, accepts: make(chan struct{})}
	full := errors.New("the disk is full")
	a, err := appliance.New(appliance.Config{
		Site: site, StateDir: dir, Keys: host.Client, Now: time.Now,
		Boot:      handover.Boot{Kind: handover.KindHost, Provisioning: true, TimeSource: "host"},
		Listeners: map[string]net.Listener{"plain": served},
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
		Initialised: func() error {
			select { // whoever serves already has the time to show it
			case <-served.accepts:
			case <-time.After(500 * time.Millisecond):
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
	select {
	case <-served.accepts:
		t.Error("connections were accepted although nothing was recorded")
	default:
	}
}
