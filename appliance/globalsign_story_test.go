package appliance_test

// globalsign's EST client against the running service. As in service_test.go: on swtpm.

import (
	"strings"
	"testing"

	"signet.internal/tpm/tpmtest"
)

// TestGlobalSignClient: estclient of globalsign/est on both listeners.
func TestGlobalSignClient(t *testing.T) {
	client := goProgram(t, "github.com/globalsign/est/cmd/estclient@v1.0.6")
	s := startSite(t, estSite(t), tpmtest.Start(t), t.TempDir(), nil)
	token := s.claim(t)
	root := tlsRoot(t, s)
	for name, listener := range map[string]string{"TLS 1.2 and 1.3": s.ready.Legacy, "TLS 1.3": s.ready.EST} {
		t.Run(name, func(t *testing.T) {
			x := newShell(t, s, root).in(t)
			x.prefix += "est() { local operation=$1; shift; " + client + " $operation -server " + strings.TrimPrefix(listener, "https://") + " -explicit " + root + " \"$@\"; }\n" +
				"password='-user device -pass corp-demo-password'\n"
			cn := strings.NewReplacer(" ", "", ".", "").Replace(strings.ToLower(name)) + ".example.com"
			x.says("est cacerts -out ca.pem; openssl x509 -in ca.pem -noout -subject", "CN = Demo Devices CA")
			x.says("est csrattrs", "1.2.840.113549.1.9.14", "1.2.840.113549.1.9.16.2.61") // with the values of RFC 9908
			x.says("openssl ecparam -genkey -name prime256v1 -noout -out dev.key; est enroll $password -key dev.key -cn "+cn+" -dnsnames "+cn+" -out dev.crt; openssl verify -CAfile ca.pem dev.crt", "dev.crt: OK")
			x.says("est reenroll -certs dev.crt -key dev.key -out next.crt; openssl verify -CAfile ca.pem next.crt", "next.crt: OK")
			if x.serial("dev.crt") == x.serial("next.crt") || x.certificate("next.crt").Subject.CommonName != cn {
				t.Errorf("renewed: %s of %s", x.serial("next.crt"), x.certificate("next.crt").Subject)
			}
			x.says("est enroll -aps ticket -user any -pass "+s.mint(t, token, "ticket", cn)+" -key dev.key -cn "+cn+" -out ticket.crt; openssl verify -CAfile ca.pem ticket.crt", "ticket.crt: OK")
			x.run("est serverkeygen $password -aps keys -key dev.key -cn made." + cn + " -out made.crt > made.key; openssl pkey -in made.key -pubout > made.pub; openssl x509 -in made.crt -noout -pubkey | cmp - made.pub; openssl verify -CAfile ca.pem made.crt")
			for script, said := range map[string]string{
				"est enroll -user device -pass wrong -key dev.key -cn " + cn:                                                                        "Unauthorized",
				"est reenroll $password -key dev.key -cn " + cn:                                                                                     "",
				"est enroll -aps manual $password -key dev.key -cn " + cn + ".approve.test":                                                         "Accepted", // it does not poll
				"est serverkeygen $password -key dev.key -cn " + cn:                                                                                 "this profile makes no keys",
				"est enroll $password -key dev.key -cn " + cn + " -uris urn:not:allowed":                                                            "san.uri does not allow urn:not:allowed",
				"openssl req -new -key dev.key -subj /CN=o | openssl x509 -req -signkey dev.key -out o.crt; est reenroll -certs o.crt -key dev.key": "Unauthorized",
			} {
				if out, err := x.try(script); err == nil || !strings.Contains(out, said) {
					t.Errorf("%s: %v\n%s", script, err, out)
				}
			}
			if code := s.api(t, "POST", "/api/v1/certificates/"+x.serial("next.crt")+"/revoke", token, map[string]string{"reason": "superseded"}, nil); code != 200 {
				t.Fatalf("revoking: HTTP %d", code)
			}
			if out, err := x.try("est reenroll -certs next.crt -key dev.key"); err == nil || !strings.Contains(out, "Unauthorized") {
				t.Errorf("with a revoked certificate: %v\n%s", err, out)
			}
		})
	}
}
