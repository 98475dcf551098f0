package appliance_test

// What of EST no command line client can do: channel bindings, encrypted keys and the window of retries, against the running service. As in
// service_test.go: on swtpm.

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"signet.internal/appliance"
	"signet.internal/appliance/needtest"
	"signet.internal/tpm/tpmtest"
)

// classPath compiles a program of package est against Bouncy Castle and returns the class path to run it with.
func classPath(t *testing.T, source string, jars ...string) string {
	t.Helper()
	needtest.Program(t, "java", "default-jdk-headless")
	path := []string{t.TempDir()}
	for _, name := range append([]string{"bcpkix", "bcprov", "bcutil"}, jars...) {
		jar := "/usr/share/java/" + name + ".jar"
		if !fileExists(jar) {
			needtest.Program(t, jar, "libbcpkix-java libbctls-java")
		}
		path = append(path, jar)
	}
	joined := strings.Join(path, ":")
	mustRun(t, ".", needtest.Program(t, "javac", "default-jdk-headless"), "-cp", joined, "-d", path[0], "est/testdata/"+source)
	return joined
}

// TestESTOfLibraries: Bouncy Castle binds requests to their connection, by tls-unique under TLS 1.2 and tls-exporter under TLS 1.3, and has
// keys made; openssl opens one that is encrypted; a device that repeats its request gets the same certificate for ten minutes.
func TestESTOfLibraries(t *testing.T) {
	corp := []string{"default: true", "default: false"}
	keyed := demo(t, "profiles/corp.yaml", append(corp, "name: corp", "name: keys", "est:\n", "est:\n  server_key: ecdsa-p256\n")...)
	bound := demo(t, "profiles/corp.yaml", append(corp, "name: corp", "name: bound", "est:\n", "est:\n  server_key: ecdsa-p256\n  channel_binding: required\n",
		"validity: 90d ", "must_staple: true\nvalidity: 90d ", "must_staple: false", "# must_staple")...)
	site := variant(t, map[string]string{
		"profiles/corp.yaml":  cheap(demo(t, "profiles/corp.yaml"), "corp-demo-password"),
		"profiles/keys.yaml":  cheap(keyed, "corp-demo-password"),
		"profiles/bound.yaml": cheap(bound, "corp-demo-password"),
	})
	var ahead atomic.Int64 // of the box's clock
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := startWith(t, site, tpmtest.Start(t), t.TempDir(), []string{"est", "scep", "console", "plain", "legacy", "legacy_scep"}, func(c *appliance.Config) { c.Now = now })
	token := s.claim(t)
	root := tlsRoot(t, s)
	x := newShell(t, s, root)
	x.run("C $EST/cacerts | read_certs > ca.pem; request own own.example.com; openssl base64 -in own.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > own.crt")

	t.Run("Bouncy Castle", func(t *testing.T) {
		path := classPath(t, "Bind.java", "bctls")
		out := mustRun(t, x.dir, "java", "-cp", path, "Bind", strings.TrimPrefix(s.ready.Legacy, "https://"), root, "device", "corp-demo-password", "own.crt", "sealed.der")
		for _, said := range []string{
			"asked to bind: true", "not asked: false", "bound: CN=bound", "not bound: refused 400", "bound elsewhere: refused 400",
			"key made: CN=made with its new key", "key made for nobody's signature: CN=unsigned with its new key", "key made, not bound: refused 400",
			"nobody's signature: refused 400", "nobody's signature, bound: refused 400",
		} {
			if !strings.Contains(out, said+"\n") {
				t.Errorf("it does not say %q:\n%s", said, out)
			}
		}
		for _, name := range []string{"loose", "relayed", "made-loose"} {
			if s.has(t, token, "est_simpleenroll", "success", name) || s.has(t, token, "est_serverkeygen", "success", name) {
				t.Errorf("a certificate for %s is in the log", name)
			}
		}
	})
	t.Run("openssl", func(t *testing.T) { bindByOpenSSL(x.in(t), s, root) })
	t.Run("encrypted key", func(t *testing.T) { encryptedKey(x.in(t)) })
	t.Run("csrattrs", func(t *testing.T) { csrAttributes(x.in(t)) })
	t.Run("window of retries", func(t *testing.T) {
		x := x.in(t)
		x.run("request r retry.example.com")
		send := func(out string) string {
			t.Helper()
			x.run("openssl base64 -in r.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > " + out + "; openssl verify -attime " +
				fmt.Sprint(now().Unix()) + " -CAfile ca.pem " + out)
			return x.serial(out)
		}
		first := send("r0.crt")
		ahead.Store(int64(9 * time.Minute))
		if again := send("r9.crt"); again != first {
			t.Errorf("after nine minutes %s, first %s", again, first)
		}
		x.run("request o retry.example.com; openssl base64 -in o.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > o.crt")
		if x.serial("o.crt") == first {
			t.Error("another request of the same name got the certificate of the first")
		}
		renew := "openssl base64 -in r.der | post --cert r0.crt --key r.key $EST/simplereenroll | read_certs > "
		if x.run(renew + "n0.crt; " + renew + "n1.crt"); x.serial("n0.crt") == x.serial("n1.crt") || x.serial("n0.crt") == first {
			t.Error("a renewal was answered with what was there")
		}
		ahead.Store(int64(11 * time.Minute))
		if later := send("r11.crt"); later == first {
			t.Error("after eleven minutes it is still the same certificate")
		}
	})
}

// bindByOpenSSL enrolls over one TLS 1.3 connection of openssl, which exports what the request in it is bound by, and tries the same over a
// connection that the request is not bound to.
func bindByOpenSSL(x *shell, s *service, root string) {
	script := fmt.Sprintf(`
	enroll() { # OUT [BINDING]: its own where none is given
		coproc S { openssl s_client -connect %s -CAfile %s -verify_return_error -tls1_3 -nocommands -ign_eof -keymatexport EXPORTER-Channel-Binding -keymatexportlen 32 2>/dev/null; }
		local line hex= in out
		exec {in}<&${S[0]} {out}>&${S[1]} # bash closes its own when openssl ends
		while [ -z "$hex" ] && read -r line; do case "$line" in *'Keying material: '*) hex=${line##*: };; esac; done <&$in
		printf "$(sed 's/../\\x&/g' <<< $hex)" | base64 -w0 > $1.binding
		printf '[req]\ndistinguished_name=n\nattributes=a\nprompt=no\n[n]\nCN=exported\n[a]\nchallengePassword=%%s\n' "${2:-$(cat $1.binding)}" > export.cnf
		openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout exported.key -config export.cnf -outform DER 2>/dev/null | base64 > exported.b64
		{ printf 'POST /.well-known/est/bound/simpleenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/pkcs10\r\nAuthorization: Basic %%s\r\nContent-Length: %%d\r\n\r\n' \
			$(printf device:corp-demo-password | base64) $(stat -c %%s exported.b64); cat exported.b64; } >&$out
		cat <&$in > $1
		exec {in}<&- {out}>&-
	}
`, strings.TrimPrefix(s.ready.EST, "https://"), root)
	x.says(script+`enroll first; grep -a '^HTTP/1.1' first; sed -n '1,/^HTTP/d; /^\r$/,$p' first | tail -n +2 | head -c $(sed -n 's/^Content-Length: //p' first | tr -d '\r') | base64 -d | openssl pkcs7 -inform DER -print_certs -out exported.crt; openssl verify -CAfile ca.pem exported.crt; openssl x509 -in exported.crt -noout -subject`,
		"HTTP/1.1 200", "exported.crt: OK", "CN = exported")
	x.says(script+"enroll relayed $(cat first.binding); cat relayed", "HTTP/1.1 400", "is not the channel binding of this connection")
	if x.run("cat first.binding") == x.run("cat relayed.binding") {
		x.t.Error("two connections have the same binding")
	}
}

// encryptedKey has the box make a key for the holder of own.crt; openssl opens what comes, and nobody else can.
func encryptedKey(x *shell) {
	x.run(`openssl base64 -in sealed.der | post --cert own.crt --key own.key -u device:corp-demo-password $EST/keys/serverkeygen | tr -d '\r' > parts
	grep -q 'smime-type=server-generated-key' parts
	! grep -q application/pkcs8 parts
	awk '/^$/{n++} n==1 && /^[A-Za-z0-9+\/=]+$/' parts | openssl base64 -d > enveloped.der
	awk '/certs-only/{n=1} n && /^$/{m=1} m && /^[A-Za-z0-9+\/=]+$/' parts | read_certs > sealed.crt
	openssl verify -CAfile ca.pem sealed.crt
	openssl cms -decrypt -inform DER -in enveloped.der -recip own.crt -inkey own.key -out signed.der`)
	// What is inside is a SignedData without ContentInfo (RFC 5652 §6.1): openssl reads it with one around it.
	x.run(`size=$(stat -c %s signed.der)
	length() { printf "$(printf '\\x82%04x' $1 | sed 's/\(..\)\(..\)$/\\x\1\\x\2/')"; }
	{ printf '\x30'; length $((size + 15)); printf '\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0'; length $size; cat signed.der; } > ci.der
	openssl cms -verify -inform DER -in ci.der -CAfile ca.pem -purpose any -certfile ca.pem -out package.der -signer ra.crt
	openssl x509 -in ra.crt -noout -subject
	openssl asn1parse -inform DER -in package.der -strparse 3 -noout -out key.der
	openssl pkey -inform DER -in key.der -pubout > made.pub
	openssl x509 -in sealed.crt -noout -pubkey | cmp - made.pub`)
	x.run("request thief thief.example.com; openssl base64 -in thief.der | post -u device:corp-demo-password $EST/simpleenroll | read_certs > thief.crt")
	for what, as := range map[string]string{"without a certificate": "", "with another one": "--cert thief.crt --key thief.key"} {
		if out, err := x.try("openssl base64 -in sealed.der | post " + as + " -u device:corp-demo-password $EST/keys/serverkeygen"); err == nil || !strings.Contains(out, "no key of this identifier to encrypt to") {
			x.t.Errorf("%s: %s", what, out)
		}
	}
	if out, err := x.try("openssl cms -decrypt -inform DER -in enveloped.der -recip thief.crt -inkey thief.key -out stolen.der"); err == nil {
		x.t.Errorf("another device opens it: %s", out)
	}
}

// csrAttributes reads values, not only their types, with openssl.
func csrAttributes(x *shell) {
	x.run("C $EST/bound/csrattrs | openssl base64 -d > attrs.der; C $EST/corp/csrattrs | openssl base64 -d > corp.der")
	x.says("openssl asn1parse -i -dump -inform DER -in attrs.der",
		"challengePassword",
		"rsaEncryption", "INTEGER           :0800", // 2048 bits
		"id-ecPublicKey", "prime256v1", "secp384r1",
		"Extension Request", "X509v3 Extended Key Usage", "TLS Feature", // with what follows them in OCTET STRINGs
		"1.2.840.113549.1.9.16.2.61") // the template of RFC 9908
	if out := x.run("openssl asn1parse -inform DER -in corp.der"); strings.Contains(out, "challengePassword") || strings.Contains(out, "TLS Feature") {
		x.t.Errorf("another profile says the same: %s", out)
	}
	// A request made with the values it says gets a certificate with them.
	x.says(`openssl x509 -in own.crt -noout -ext extendedKeyUsage,keyUsage`, "TLS Web Client Authentication, TLS Web Server Authentication", "Digital Signature, Key Encipherment")
	x.says(`openssl asn1parse -inform DER -in attrs.der -strparse $(openssl asn1parse -inform DER -in attrs.der | awk '/X509v3 Extended Key Usage/{getline; split($0, a, ":"); print a[1]+0; exit}')`,
		"TLS Web Client Authentication", "TLS Web Server Authentication")
}
