package appliance_test

// What administrators and SIGHUP change while the service runs, as devices see it.

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"signet.internal/appliance/challenge/phc"
	"signet.internal/tpm/tpmtest"
)

// changing is a service on a copy of the demo that can be started again, with SIGHUP at hand.
type changing struct {
	*service
	t      *testing.T
	site   string
	tpm    string
	reload chan os.Signal
	token  string

	sources int                // requests so far, each from an address or for a name of its own
	devices map[string]*device // by profile
}

func startChanging(t *testing.T, site string) *changing {
	t.Helper()
	c := &changing{t: t, devices: map[string]*device{}, site: site, tpm: tpmtest.Start(t), reload: make(chan os.Signal)}
	c.service = startSite(t, site, c.tpm, t.TempDir(), c.reload)
	c.token = c.claim(t)
	return c
}

func (c *changing) restart() {
	c.t.Helper()
	if err := c.stop(); err != nil {
		c.t.Fatal(err)
	}
	c.service = startSite(c.t, c.site, c.tpm, c.state, c.reload)
}

// hangUp returns once the signal's work is done: the second is taken after the first was answered.
func (c *changing) hangUp() { c.reload <- syscall.SIGHUP; c.reload <- syscall.SIGHUP }

func (c *changing) write(path, content string) {
	c.t.Helper()
	writeFile(c.t, filepath.Join(c.site, path), []byte(content))
}

// want sends an order and wants that status.
func (c *changing) want(status int, method, path string, in, out any) {
	c.t.Helper()
	if code := c.api(c.t, method, "/api/v1/profiles/"+path, c.token, in, out); code != status {
		c.t.Errorf("%s %s: HTTP %d, want %d", method, path, code, status)
	}
}

// est enrolls a new key by password or client certificate and returns the status and the answer. Each comes
// from an address of its own, so that no wrong password counts against another.
func (c *changing) est(profile, password string, client *tls.Certificate) (int, string) {
	c.t.Helper()
	c.sources++
	body := base64.StdEncoding.EncodeToString(newRequest(c.t, "d.example.com").der)
	req, err := http.NewRequest("POST", c.ready.EST+"/.well-known/est/"+profile+"/simpleenroll", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	if password != "" {
		req.SetBasicAuth("device", password)
	}
	resp, err := c.as(client, net.IPv4(127, 2, byte(c.sources>>8), byte(c.sources))).Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// as is a client with a certificate, whoever the listener hints at, for one request from an address.
func (s *service) as(client *tls.Certificate, from net.IP) *http.Client {
	config := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	if client != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return client, nil }
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}).DialContext}}
}

func TestSettings(t *testing.T) {
	c := startChanging(t, variant(t, nil))
	t.Run("hashes", c.hashes)
	t.Run("bundles", c.bundles)
	t.Run("switch", c.switched)
}

// scep has strongSwan enroll and returns what it said on refusal. It has the certificates it needs, and a
// key, from its first time at a profile.
func (c *changing) scep(t *testing.T, profile, challenge string) error {
	t.Helper()
	url := "/scep/" + profile
	d := c.devices[profile]
	if d == nil {
		d = newDevice(c.t, c.ready.SCEPPlain+url)
		d.newKey("k")
		c.devices[profile] = d
	}
	c.sources++
	d.t, d.url = t, c.ready.SCEPPlain+url
	return d.request(fmt.Sprintf("d%d.example.com", c.sources), "k", "crt", "--password", challenge)
}

func (c *changing) hashes(t *testing.T) {
	takes := func(when, challenge, password string) {
		t.Helper()
		for _, one := range []string{"corp-demo-challenge", "from the file", "by an administrator"} {
			if err := c.scep(t, "corp", one); (err == nil) != (one == challenge) {
				t.Errorf("%s: challenge %q: %v", when, one, err)
			}
		}
		for _, one := range []string{"corp-demo-password", "from the file", "by an administrator"} {
			if code, body := c.est("corp", one, nil); (code == 200) != (one == password) || code != 200 && code != 401 {
				t.Errorf("%s: password %q: HTTP %d %s", when, one, code, body)
			}
		}
	}
	takes("at first", "corp-demo-challenge", "corp-demo-password")
	baked := string(readFile(t, filepath.Join(c.site, "profiles/corp.yaml")))
	hashes := strings.Split(baked, `"$argon2id`)
	if len(hashes) != 3 {
		t.Fatalf("corp.yaml has %d hashes", len(hashes)-1)
	}
	put := func(i int, secret string) {
		_, rest, _ := strings.Cut(hashes[i], `"`)
		hashes[i] = strings.TrimPrefix(phc.Make([]byte(secret)), "$argon2id") + `"` + rest
		c.write("profiles/corp.yaml", strings.Join(hashes, `"$argon2id`))
	}
	put(1, "from the file")
	put(2, "from the file")
	c.hangUp()
	takes("SIGHUP after other hashes", "from the file", "from the file")
	c.write("profiles/corp.yaml", strings.Replace(baked, "m=65536", "m=8", 1))
	c.hangUp()
	takes("SIGHUP after a bad file", "from the file", "from the file")
	c.write("profiles/corp.yaml", strings.Join(hashes, `"$argon2id`))

	hash := map[string]string{"hash": phc.Make([]byte("by an administrator"))}
	c.want(200, "PUT", "corp/challenge", hash, nil)
	takes("after an order", "by an administrator", "from the file")
	c.want(200, "PUT", "corp/passwords/device", hash, nil)
	c.want(422, "PUT", "corp/challenge", map[string]string{"hash": "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"}, nil)
	c.want(409, "PUT", "corp/passwords/nobody", hash, nil)
	c.hangUp()
	takes("SIGHUP after orders", "by an administrator", "by an administrator")
	c.restart()
	takes("a restart after orders", "by an administrator", "by an administrator")
	var shown struct {
		NotBaked  bool `json:"not_baked"`
		Challenge struct{ Replaced struct{ By string } }
	}
	if c.want(200, "GET", "corp", nil, &shown); !shown.NotBaked || shown.Challenge.Replaced.By != "ada" {
		t.Errorf("shown as %+v", shown)
	}
	c.want(200, "DELETE", "corp/challenge", nil, nil)
	c.want(409, "DELETE", "corp/challenge", nil, nil)
	takes("the file's challenge again", "from the file", "by an administrator")
	c.want(200, "DELETE", "corp/passwords/device", nil, nil)
	c.write("profiles/corp.yaml", baked)
	c.restart()
	takes("the baked ones again", "corp-demo-challenge", "corp-demo-password")
}

// hints are the names of the authorities whose certificates listener est says it takes.
func (c *changing) hints(t *testing.T) (names [][]byte) {
	t.Helper()
	config := c.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		names = info.AcceptableCAs
		return &tls.Certificate{}, nil
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.ready.EST, "https://"), config)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	return names
}

func (c *changing) bundles(t *testing.T) {
	baked := demoPointer(t, "bootstrap-ca")
	file, put := newAuthority(t, "From the file"), newAuthority(t, "By an administrator")
	takes := func(when string, trusted *tls.Certificate) {
		t.Helper()
		hints := c.hints(t)
		for _, ca := range []*tls.Certificate{baked, file, put} {
			if hinted := slices.ContainsFunc(hints, func(name []byte) bool { return bytes.Equal(name, ca.Leaf.RawSubject) }); hinted != (ca == trusted) {
				t.Errorf("%s: that certificates of %s are taken is said: %v", when, ca.Leaf.Subject, hinted)
			}
			want := http.StatusUnauthorized
			if ca == trusted {
				want = http.StatusOK
			}
			device := madeBy(t, "made in the factory", ca)
			if code, body := c.est("iot", "", device); code != want {
				t.Errorf("%s: %s over EST: HTTP %d %s", when, ca.Leaf.Subject, code, body)
			}
			resp, err := c.as(device, net.IPv4(127, 0, 0, 1)).Get(c.ready.EST + "/scep-mtls/iot?operation=GetCACaps")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: %s at /scep-mtls: HTTP %d", when, ca.Leaf.Subject, resp.StatusCode)
			}
		}
	}
	of := func(ca *tls.Certificate) []byte { return pemOf("CERTIFICATE", ca.Certificate[0]) }
	takes("at first", baked)
	c.write("trust/bootstrap.pem", string(of(file)))
	c.hangUp()
	takes("SIGHUP after another file", file)
	c.write("trust/bootstrap.pem", string(of(baked))+"-----BEGIN CERTIFICATE-----\n")
	c.hangUp()
	takes("SIGHUP after half a file", file)
	for _, name := range []string{"est", "scep-mtls"} {
		if code, answer := c.upload(t, "/api/v1/profiles/iot/bundles/"+name, c.token, of(put)); code != 200 {
			t.Fatalf("replacing %s: HTTP %d %s", name, code, answer)
		}
	}
	if code, answer := c.upload(t, "/api/v1/profiles/iot/bundles/est", c.token, append(of(put), "-----BEGIN CERTIFICATE-----\nMII"...)); code != 422 {
		t.Errorf("half a bundle: HTTP %d %s", code, answer)
	}
	takes("after an order", put)
	c.write("trust/bootstrap.pem", string(of(file)))
	c.hangUp()
	takes("SIGHUP after an order", put)
	c.restart()
	takes("a restart after an order", put)
	c.want(200, "DELETE", "iot/bundles/est", nil, nil)
	c.want(200, "DELETE", "iot/bundles/scep-mtls", nil, nil)
	takes("the file again", file)
	c.write("trust/bootstrap.pem", string(of(baked)))
	c.restart()
	takes("the baked one again", baked)
}

func (c *changing) switched(t *testing.T) {
	off := func(when string) {
		t.Helper()
		if err := c.scep(t, "corp", "corp-demo-challenge"); err == nil {
			t.Errorf("%s: SCEP still issues", when)
		}
		resp, err := http.Get(c.ready.SCEPPlain + "/scep/corp?operation=GetCACert")
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || !strings.Contains(string(answer), "switched off") {
			t.Errorf("%s: SCEP answers %d %s", when, resp.StatusCode, answer)
		}
		if code, body := c.est("corp", "corp-demo-password", nil); code != http.StatusServiceUnavailable || !strings.Contains(body, "switched off") {
			t.Errorf("%s: EST answers %d %s", when, code, body)
		}
		if err := c.scep(t, "modern", "modern-demo-challenge"); err != nil {
			t.Errorf("%s: another profile: %v", when, err)
		}
		if status := c.get(t, "/api/v1/status", c.token); !strings.Contains(status, "Profile corp was switched off by ada: a challenge leaked.") {
			t.Errorf("%s: the status says nothing of it: %s", when, status)
		}
	}
	c.want(409, "POST", "corp/on", nil, nil)
	c.want(422, "POST", "corp/off", map[string]string{"reason": " "}, nil)
	c.want(200, "POST", "corp/off", map[string]string{"reason": "a challenge leaked"}, nil)
	off("switched off")
	c.restart()
	off("after a restart")
	c.want(200, "POST", "corp/on", nil, nil)
	if err := c.scep(t, "corp", "corp-demo-challenge"); err != nil {
		t.Errorf("switched on: %v", err)
	}
	if code, body := c.est("corp", "corp-demo-password", nil); code != 200 {
		t.Errorf("switched on: EST answers %d %s", code, body)
	}
	if status := c.get(t, "/api/v1/status", c.token); strings.Contains(status, "switched off") {
		t.Errorf("the status still says it: %s", status)
	}
	c.restart()
	if err := c.scep(t, "corp", "corp-demo-challenge"); err != nil {
		t.Errorf("on, after a restart: %v", err)
	}
}
