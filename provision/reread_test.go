package provision

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestReadSigners: a file that is replaced while the box runs is held to what Load holds it to.
func TestReadSigners(t *testing.T) {
	now := time.Now()
	valid := certificatePEM(t, now.Add(time.Hour))
	for _, c := range []struct{ name, content, want string }{
		{"two", valid + certificatePEM(t, now.Add(time.Hour)), ""},
		{"absent", "", "cannot be read"},
		{"one expired", valid + certificatePEM(t, now.Add(-time.Minute)), "expired on"},
		{"garbage", "garbage", "no certificate"},
		{"half", valid[:len(valid)/2], "cannot be read"},
		{"unusable key", certificateOn(t, elliptic.P224(), now.Add(time.Hour)), "P-224"},
	} {
		f := files{}
		if c.content != "" {
			f["trust/x.pem"] = c.content
		}
		certificates, err := ReadSigners(f.fs(), "trust/x.pem", now)
		if c.want == "" {
			if err != nil || len(certificates) != 2 {
				t.Errorf("%s: %d certificates, %v", c.name, len(certificates), err)
			}
			continue
		}
		var problems Problems
		if !errors.As(err, &problems) || len(certificates) != 0 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d certificates, error %v, want %q", c.name, len(certificates), err, c.want)
		}
	}
}

// everywhere is a site that names files of trust/ wherever one can be named.
func everywhere(t *testing.T) files {
	t.Helper()
	f := good()
	for _, name := range []string{"proxies", "old", "hook", "mtls", "connector", "microsoft", "est"} {
		f["trust/"+name+".pem"] = certificatePEM(t, time.Now().Add(time.Hour))
	}
	f["site.yaml"] = strings.Replace(goodSite, "authorities:", "trusted_proxies: {enabled: true, networks: [192.0.2.0/28], bundle: trust/proxies.pem}\nauthorities:", 1)
	f["profiles/corp.yaml"] = strings.NewReplacer(
		"validity: 90d\n", "validity: 90d\nrenewal: {from: trust/old.pem}\ncompliance: {url: \"https://192.0.2.9/\", roots: trust/hook.pem}\n",
		"  reply:", "  mtls: {mode: optional, bundle: trust/mtls.pem}\n  reply:",
		"    static:", "    signed: {certificates: trust/connector.pem, issuer: me, audience: you}\n    "+strings.Replace(testIntune, "ca.pem", "microsoft.pem", 1)+"\n    static:").Replace(goodProfile) +
		"est: {auth: {certificate: [{bundle: trust/est.pem}], basic: [{user: device, hash: \"" + testHash + "\", for: [pump-7]}]}}\n"
	return f
}

// TestBundles: every file of trust/ that something believes is listed, and can be read again.
func TestBundles(t *testing.T) {
	f := everywhere(t)
	site, err := Load(f.fs())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, use := range site.Bundles() {
		got = append(got, use.Profile+" "+use.Field+" "+use.File)
		again, err := ReadBundle(f.fs(), use.File, time.Now())
		if err != nil || len(again) != 1 || len(use.Certificates) != 1 || !again[0].Equal(use.Certificates[0]) {
			t.Errorf("%s: %d certificates, read again %d, %v", use.Field, len(use.Certificates), len(again), err)
		}
	}
	want := []string{
		" trusted_proxies.bundle trust/proxies.pem",
		"corp renewal.from trust/old.pem",
		"corp compliance.roots trust/hook.pem",
		"corp scep.mtls.bundle trust/mtls.pem",
		"corp scep.challenges.signed.certificates trust/connector.pem",
		"corp scep.challenges.intune.roots trust/microsoft.pem",
		"corp est.auth.certificate trust/est.pem",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReadBundle: what Load refuses at first is refused later too.
func TestReadBundle(t *testing.T) {
	now := time.Now()
	valid := certificateOn(t, elliptic.P224(), now.Add(time.Hour)) // signs no challenge, and is not asked to
	for _, c := range []struct{ name, content, want string }{
		{"one", valid, ""},
		{"absent", "", "x.pem: cannot be read"},
		{"one of two expired", valid + certificatePEM(t, now.Add(-time.Minute)), fmt.Sprintf("x.pem:%d: certificate CN=Trusted expired on", strings.Count(valid, "\n")+1)},
		{"a key", valid + pemBlock("PRIVATE KEY", []byte("x")), "a private key"},
		{"huge", valid + strings.Repeat("#", maxFile), "larger than 1 MiB"},
	} {
		f := files{}
		if c.content != "" {
			f["trust/x.pem"] = c.content
		}
		certificates, err := ReadBundle(f.fs(), "trust/x.pem", now)
		if c.want == "" {
			if err != nil || len(certificates) != 1 {
				t.Errorf("%s: %d certificates, %v", c.name, len(certificates), err)
			}
			continue
		}
		var problems Problems
		if !errors.As(err, &problems) || len(certificates) != 0 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d certificates, error %v, want %q", c.name, len(certificates), err, c.want)
		}
	}
}

// TestReadHashes: a profile's hashes are read again without the rest of the site having to be sound.
func TestReadHashes(t *testing.T) {
	const other = "$argon2id$v=19$m=65536,t=3,p=1$OZcFlWSRrB+9KDEniyNiLA$YbbxlEmAqduQvJ79nF2hbs5Bmjz2uK3gAiu54JgP8HE"
	change := func(old, new string) files {
		f := everywhere(t)
		if !strings.Contains(f["profiles/corp.yaml"], old) {
			t.Fatalf("the profile has no %q", old)
		}
		f["profiles/corp.yaml"] = strings.Replace(f["profiles/corp.yaml"], old, new, 1)
		return f
	}
	beside := func(name, content string) files {
		f := change("static: {hash: \""+testHash, "static: {hash: \""+other)
		f[name] = content
		return f
	}
	want := Hashes{Static: other, Basic: []BasicUser{{User: "device", Hash: testHash, For: []string{"pump-7"}}}}
	for _, c := range []struct {
		name string
		site files
		want string // of the error; "" for the hashes
	}{
		{"a new hash", beside("README.md", ""), ""},
		{"beside a broken profile", beside("profiles/a.yaml", "]"), ""},
		{"beside an expired bundle", beside("trust/mtls.pem", certificatePEM(t, time.Now().Add(-time.Hour))), ""},
		{"in clear", change(testHash, "sesame"), "profiles/corp.yaml:18: scep.challenges.static.hash: not an argon2id hash"},
		{"of a user, in clear", change("device, hash: \""+testHash, "device, hash: \"sesame"), "est.auth.basic[0].hash: not an argon2id hash"},
		{"with an unknown field", change("for: ", "fro: "), "unknown field est.auth.basic[0].fro"},
		{"without the profile", change("name: corp", "name: crop"), "no file is about profile \"corp\""},
		{"of a file that is no YAML", change("name: corp", "name: [corp"), "not YAML"},
		{"without a site", func() files { f := good(); delete(f, "site.yaml"); return f }(), "there is no site.yaml"},
	} {
		hashes, err := ReadHashes(c.site.fs(), "corp")
		if c.want == "" {
			if diff := cmp.Diff(want, hashes); diff != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
			}
			continue
		}
		var problems Problems
		if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
		if diff := cmp.Diff(Hashes{}, hashes); diff != "" {
			t.Errorf("%s: hashes beside an error:\n%s", c.name, diff)
		}
	}
}
