package webui

import (
	"bytes"
	"cmp"
	"encoding/pem"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// guide says how one kind of device enrolls.
type guide struct {
	Key     string // in the address
	Label   string
	Missing string // why the profile does not serve such devices; "" where it does
	Intro   string
	Steps   []guideStep
	Apple   bool // there is a file to download
}

// guideStep is something to do, with what to paste or to fill in.
type guideStep struct {
	Title  string
	Text   string
	Code   string
	Fields []guideField
}

// guideField is an input of somebody else's form.
type guideField struct {
	Label string
	Value string
	Exact bool // the value is to be copied; else it says what to choose
}

// guides are all of them, in the order of the page.
func (x *recipe) guides() []guide {
	return []guide{x.strongSwan(), x.certmonger(), x.curl(), x.ios(), x.apple(), x.intune(), x.chromeOS()}
}

// scepURL is the address that most devices reach without trust set up before: messages of SCEP are
// encrypted and signed by themselves, so plain HTTP comes first.
func (x *recipe) scepURL() string { return x.pick("http://", "https://") }

// scepTLS is the address for clients that insist on TLS.
func (x *recipe) scepTLS() string { return x.pick("https://", "http://") }

// pick is the first address over SCEP that needs no client certificate and begins like the first of
// these that any of them does; "" where there is none.
func (x *recipe) pick(beginnings ...string) string {
	if x.scep == nil {
		return ""
	}
	for _, b := range beginnings {
		for _, u := range x.profile.SCEP {
			if strings.HasPrefix(u, b) && !isMTLS(u) {
				return u
			}
		}
	}
	return ""
}

// isMTLS says of an address over SCEP whether it needs a client certificate.
func isMTLS(address string) bool { return strings.Contains(address, "/scep-mtls/") }

// challenge is what stands for it in commands over SCEP: the one that is known, or a word to replace.
func (x *recipe) challenge() (text string, words []string) {
	if known := cmp.Or(x.secretOf(kindOneTime, kindShared), x.known); known != "" {
		return known, nil
	}
	return "CHALLENGE", []string{"CHALLENGE"}
}

// waiting says in a command, where a person may have to approve, what that waits for; "" elsewhere.
func (x *recipe) waiting() string {
	if !x.profile.Holds {
		return ""
	}
	return "echo " + quoted("If this has to be approved, it waits here and asks again every "+pollText+" seconds. Approve it at "+x.console+"/pending")
}

// first is a command and "&&", before others; nothing where there is none.
func first(command string) string {
	if command == "" {
		return ""
	}
	return command + " &&\n"
}

const pollText = "10" // seconds after which commands ask again

// interval has strongSwan's pki ask again as waiting says.
func (x *recipe) interval() string {
	if !x.profile.Holds {
		return ""
	}
	return " --interval " + pollText
}

// takesTyped says whether a challenge that a person can type gets a certificate over SCEP.
func (x *recipe) takesTyped() bool { return x.scep != nil && (x.scep.Static || x.scep.OneTime) }

// replace says which words of the commands a person has to replace.
func (x *recipe) replace(words ...string) string {
	var say []string
	for _, w := range words {
		switch w {
		case "CHALLENGE":
			say = append(say, "CHALLENGE by the device’s challenge")
		case "PASSWORD":
			say = append(say, "PASSWORD by the user’s password")
		default:
			say = append(say, w+" by the files that the device was made with")
		}
	}
	if x.name == exampleName {
		say = append(say, x.name+" by the device’s name (step 1)")
	}
	if len(say) == 0 {
		return "Paste it as it is; it holds everything."
	}
	return "Replace " + strings.Join(say, " and ") + "."
}

const (
	noSCEP  = "This profile is not served over SCEP at an address without client certificates."
	noEST   = "This profile is not served over EST."
	noTyped = "This profile takes no challenge that a person could type."
	noRSA   = "This profile takes no RSA keys, and these devices have no others."
)

// lacks says why a profile does not serve devices that enroll over SCEP at an address, with RSA keys: it does not
// take their proof, which noProof says, or another reason; "" where it serves them.
func (x *recipe) lacks(address string, takesProof bool, noProof string) string {
	switch {
	case address == "":
		return noSCEP
	case !takesProof:
		return noProof
	case x.profile.Keys.RSABits == 0:
		return noRSA
	}
	return ""
}

// colons writes octets as openssl prints a fingerprint.
func colons(sum []byte) string { return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":") }

// tlsPEM is the roots of the box's listeners as a file has them.
func (x *recipe) tlsPEM() string {
	var b bytes.Buffer
	for _, c := range x.tls {
		pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	return b.String()
}

// saveTLS writes the roots of the box's listeners to a file.
func (x *recipe) saveTLS() string { return "cat > signet-tls.pem <<'END'\n" + x.tlsPEM() + "END\n" }

// bits is the size of the RSA key in commands.
func (x *recipe) bits() int { return max(2048, x.profile.Keys.RSABits) }

// san is what a command says of a DNS name, where the profile allows any.
func (x *recipe) san(form string) string {
	if x.profile.DNSNames {
		return form
	}
	return ""
}

func (x *recipe) strongSwan() guide {
	g := guide{Key: "strongswan", Label: "Linux, strongSwan", Intro: "For strongSwan’s command pki (Debian: strongswan-pki, Fedora: strongswan)."}
	if x.profile.Keys.RSABits == 0 {
		g.Missing = noRSA
		return g
	}
	if u := x.scepURL(); u != "" && x.takesTyped() {
		above := ""
		for i := range len(x.chain) - 1 { // pki writes the CA certificates above as files with a number
			above += fmt.Sprintf(" --cacert signet-ca-%d.pem", i+1)
		}
		challenge, words := x.challenge()
		code := fmt.Sprintf(`NAME=%s
CHALLENGE=%s
URL=%s
umask 077
pki --scepca --url "$URL" --caout signet-ca.pem --raout signet-ra.pem --outform pem --force &&
openssl x509 -in signet-ca.pem -noout -fingerprint -sha256 | grep -F '%s' &&
pki --gen --type rsa --size %d --outform pem > "$NAME.key" &&
%spki --scep%s --url "$URL" --in "$NAME.key" --dn "CN=$NAME"%s --password "$CHALLENGE" \
  --cacert-enc signet-ra.pem --cacert-sig signet-ra.pem --cacert signet-ca.pem%s --outform pem > "$NAME.crt" &&
openssl x509 -in "$NAME.crt" -noout -subject -enddate
`, x.name, quoted(challenge), u, colons(sha256Of(x.chain[len(x.chain)-1])), x.bits(), first(x.waiting()), x.interval(), x.san(` --san "$NAME"`), above)
		g.Steps = append(g.Steps, guideStep{Title: "Enroll by SCEP", Code: code,
			Text: x.replace(words...) + " It stops where the CA certificate is not the one of this page."})
		g.Steps = append(g.Steps, guideStep{Title: "Renew by SCEP", Text: "In the same directory, when the end is near: the certificate is the proof.", Code: fmt.Sprintf(`NAME=%s
URL=%s
umask 077
pki --gen --type rsa --size %d --outform pem > "$NAME.new.key" &&
%spki --scep%s --url "$URL" --in "$NAME.new.key" --dn "CN=$NAME"%s --cert "$NAME.crt" --key "$NAME.key" \
  --cacert-enc signet-ra.pem --cacert-sig signet-ra.pem --cacert signet-ca.pem%s --outform pem > "$NAME.new.crt" &&
mv "$NAME.new.key" "$NAME.key" && mv "$NAME.new.crt" "$NAME.crt"
`, x.name, u, x.bits(), first(x.waiting()), x.interval(), x.san(` --san "$NAME"`), above)})
	}
	if step, ok := x.strongSwanEST(); ok {
		g.Steps = append(g.Steps, step)
	}
	if len(g.Steps) == 0 {
		g.Missing = noTyped
	}
	return g
}

// strongSwanEST prefers the listener with TLS 1.2, which is what strongSwan speaks as it is installed.
func (x *recipe) strongSwanEST() (guideStep, bool) {
	credential, words := x.estCredential("--userpass", "--cert factory.crt --key factory.key")
	if x.est == nil || credential == "" {
		return guideStep{}, false
	}
	address := x.profile.EST[len(x.profile.EST)-1]
	u, err := url.Parse(address)
	if err != nil {
		return guideStep{}, false
	}
	step := guideStep{Title: "Enroll by EST", Text: x.replace(words...)}
	label, conf, prefix := "", "", ""
	if !x.profile.Default {
		label = " --label " + x.profile.Name
		step.Text += " It needs strongSwan 6: earlier ones reach only the default profile over EST."
	}
	if !x.est.LegacyTLS || len(x.profile.EST) < 2 {
		conf = "printf 'pki {\\n tls {\\n version_max = 1.3\\n }\\n}\\ninclude /etc/strongswan.conf\\n' > signet-strongswan.conf &&\n"
		prefix = `STRONGSWAN_CONF="$PWD/signet-strongswan.conf" `
	}
	step.Code = fmt.Sprintf(`NAME=%s
umask 077
%s%s%s&&
%s%spki --est%s --url https://%s --cacert signet-tls.pem%s --in "$NAME.der" %s --outform pem > "$NAME.crt" &&
openssl x509 -in "$NAME.crt" -noout -subject -enddate
`, x.name, x.saveTLS(), conf, x.opensslRequest(), first(x.waiting()), prefix, x.interval(), u.Host, label, credential)
	return step, true
}

// opensslRequest makes a key and a request of it.
func (x *recipe) opensslRequest() string {
	key := fmt.Sprintf("rsa:%d", x.bits())
	if x.profile.Keys.RSABits == 0 {
		key = "ec -pkeyopt ec_paramgen_curve:" + map[string]string{"p256": "P-256", "p384": "P-384"}[slices.Concat(x.profile.Keys.Curves, []string{"p256"})[0]]
	}
	return fmt.Sprintf(`openssl req -new -newkey %s -nodes -keyout "$NAME.key" -subj "/CN=$NAME"%s \
  -outform DER -out "$NAME.der" `, key, x.san(` -addext "subjectAltName=DNS:$NAME"`))
}

// quoted is a word of a command of a POSIX shell, whatever is in it: users of EST are called as the site likes.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// estCredential is how a command says who enrolls over EST, by a user and a password after that option or by
// a certificate, and which words of it a person has to replace; "" where nothing a person has lets in.
func (x *recipe) estCredential(option, certificate string) (credential string, words []string) {
	switch e := x.est; {
	case e == nil:
		return "", nil
	case x.secretOf(kindPassword) != "":
		return option + " " + quoted(x.made.User+":"+x.made.Secret), nil
	case e.OneTime && x.secretOf(kindOneTime) != "":
		return option + " " + quoted(x.name+":"+x.made.Secret), nil
	case e.OneTime && len(e.Users) == 0:
		return option + " " + quoted(x.name+":CHALLENGE"), []string{"CHALLENGE"}
	case len(e.Users) > 0:
		return option + " " + quoted(e.Users[0]+":PASSWORD"), []string{"PASSWORD"}
	case e.Trust != nil:
		return certificate, []string{"factory.crt and factory.key"}
	}
	return "", nil
}

func (x *recipe) certmonger() guide {
	g := guide{Key: "certmonger", Label: "Linux, certmonger", Intro: "certmonger enrolls the machine and renews by itself from then on (Debian, Ubuntu, Fedora, RHEL: certmonger)."}
	u := x.scepURL()
	if g.Missing = x.lacks(u, x.takesTyped(), noTyped); g.Missing != "" {
		return g
	}
	challenge, words := x.challenge()
	waiting, stands := "", ""
	if x.profile.Holds {
		waiting = x.waiting() + "\n"
		stands = "MONITORING: it has its certificate. CA_WORKING: it waits until somebody approves it at " + x.console + "/pending, and asks again by itself."
	}
	trust, save := "", ""
	if strings.HasPrefix(u, "https://") {
		save, trust = x.saveTLS(), ` -R "$PWD/signet-tls.pem"`
	}
	ca := "signet-" + x.profile.Name
	g.Steps = []guideStep{
		{Title: "Tell certmonger about the box, once", Code: fmt.Sprintf("%ssudo getcert add-scep-ca -c %s -u %s%s\n", save, ca, u, trust)},
		{Title: "Enroll", Text: x.replace(words...) + " Afterwards certmonger keeps it fresh: the old certificate is the proof.", Code: fmt.Sprintf(`NAME=%s
CHALLENGE=%s
%ssudo getcert request -c %s -I "$NAME" -k "/etc/ssl/private/$NAME.key" -f "/etc/ssl/certs/$NAME.crt" \
  -N "CN=$NAME"%s -L "$CHALLENGE" -g %d -w -v
`, x.name, quoted(challenge), waiting, ca, x.san(` -D "$NAME"`), x.bits())},
		{Title: "See how it stands", Text: stands, Code: fmt.Sprintf("sudo getcert list -c %s\n", ca)},
	}
	return g
}

func (x *recipe) curl() guide {
	g := guide{Key: "curl", Label: "Anything with curl", Intro: "For scripts and devices of your own: curl and OpenSSL 1.1.1 or later, over EST."}
	credential, words := x.estCredential("-u", "--cert factory.crt --key factory.key")
	switch {
	case x.est == nil:
		g.Missing = noEST
	case credential == "":
		g.Missing = "This profile takes only renewals over EST; the first certificate comes another way."
	}
	if g.Missing != "" {
		return g
	}
	// A 202 has no certificate: a person has to approve, and the same request is sent again (RFC 7030 §4.2.3).
	post := func(credential, operation string) string {
		request := fmt.Sprintf(`openssl base64 -in "$NAME.der" | curl -sS --fail --cacert signet-tls.pem %s \
  -H 'Content-Type: application/pkcs10' --data-binary @- -o "$NAME.p7"`, credential)
		if !x.profile.Holds {
			return fmt.Sprintf(`%s "$EST/%s"`, request, operation)
		}
		return fmt.Sprintf(`while CODE=$(%s -w '%%{http_code}' "$EST/%s") && [ "$CODE" = 202 ]; do
  echo %s
  sleep %s
done && [ "$CODE" = 200 ]`, request, operation, quoted("This waits until somebody approves it at "+x.console+"/pending, and asks again every "+pollText+" seconds."), pollText)
	}
	text := x.replace(words...)
	g.Steps = []guideStep{{Title: "Enroll", Text: text, Code: fmt.Sprintf(`NAME=%s
EST=%s
umask 077
%s%s&&
%s &&
openssl base64 -d -in "$NAME.p7" | openssl pkcs7 -inform DER -print_certs -out "$NAME.crt" &&
openssl x509 -in "$NAME.crt" -noout -subject -enddate
`, x.name, x.profile.EST[0], x.saveTLS(), x.opensslRequest(), post(credential, "simpleenroll"))},
		{Title: "Fetch the CA certificates", Code: fmt.Sprintf(`EST=%s
curl -sS --fail --cacert signet-tls.pem "$EST/cacerts" | openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out signet-ca.pem
`, x.profile.EST[0])}}
	if x.est.Issued {
		g.Steps = append(g.Steps, guideStep{Title: "Renew", Text: "In the same directory, when the end is near: the certificate is the proof.", Code: fmt.Sprintf(`NAME=%s
EST=%s
%s &&
openssl base64 -d -in "$NAME.p7" | openssl pkcs7 -inform DER -print_certs -out "$NAME.new.crt" &&
mv "$NAME.new.crt" "$NAME.crt"
`, x.name, x.profile.EST[0], post(`--cert "$NAME.crt" --key "$NAME.key"`, "simplereenroll"))})
	}
	return g
}

func (x *recipe) ios() guide {
	g := guide{Key: "ios", Label: "Cisco IOS", Intro: "For IOS and IOS XE, over SCEP and plain HTTP."}
	u := x.scepURL()
	switch {
	case !strings.HasPrefix(u, "http://"):
		g.Missing = "This profile is not served over plain HTTP, which IOS needs. Write plain_http: true into its scep: and bake the site again."
	default:
		g.Missing = x.lacks(u, x.takesTyped(), noTyped)
	}
	if g.Missing != "" {
		return g
	}
	label := "SIGNET-" + strings.ToUpper(x.profile.Name)
	challenge, words := x.challenge()
	retry := ""
	if x.profile.Holds {
		retry = " enrollment retry period 1\n enrollment retry count 100\n"
	}
	g.Steps = []guideStep{
		{Title: "Configure", Text: x.replace(words...) + " Set the router’s clock first: clock set, or an NTP server.", Code: fmt.Sprintf(`configure terminal
crypto key generate rsa general-keys label %[1]s modulus %[2]d
crypto pki trustpoint %[1]s
 enrollment mode ra
 enrollment url %[3]s/pkiclient.exe
%[8]s fqdn %[6]s
 subject-name CN=%[4]s
 serial-number none
 ip-address none
 password %[5]s
 fingerprint %[7]X
 hash sha256
 revocation-check crl
 rsakeypair %[1]s %[2]d
 auto-enroll 80 regenerate
 exit
`, label, x.bits(), u, x.name, challenge, map[bool]string{true: x.name, false: "none"}[x.profile.DNSNames], sha1Of(x.chain[0]), retry)},
		{Title: "Enroll", Text: "The first compares the CA certificate with the fingerprint above, the second asks for the certificate.", Code: fmt.Sprintf("crypto pki authenticate %[1]s\ncrypto pki enroll %[1]s\nend\nshow crypto pki certificates %[1]s\n", label)},
	}
	return g
}

func (x *recipe) apple() guide {
	g := guide{Key: "apple", Label: "iPhone, iPad, Mac", Intro: "A configuration profile: it has the CA certificates and asks for the device’s own by SCEP."}
	if g.Missing = x.lacks(x.scepURL(), x.takesTyped(), noTyped); g.Missing != "" {
		return g
	}
	g.Apple = true
	if x.scep.OneTime {
		g.Steps = append(g.Steps, guideStep{Title: "With Jamf Pro", Text: "Jamf asks the box for a challenge for each device by itself. Give its webhook SCEPChallenge this address and, as password, an operator’s token.",
			Fields: []guideField{{"Webhook URL", x.console + jamfPrefix + x.profile.Name, true}, {"Webhook event", "SCEPChallenge", true}, {"SCEP URL", x.scepTLS(), true}, {"Subject", "CN=$SERIALNUMBER", true}, {"Challenge type", "Dynamic", false}}})
	}
	return g
}

func (x *recipe) intune() guide {
	g := guide{Key: "intune", Label: "Windows, Intune", Intro: "Two profiles in the Intune admin center: the CA certificate first, then the SCEP certificate."}
	u, noProof := x.scepTLS(), "This profile takes no challenge of Intune’s."
	if len(x.others) > 0 {
		noProof += " These do: " + strings.Join(x.others, ", ") + "."
	}
	if g.Missing = x.lacks(u, x.scep != nil && (x.scep.Signed != nil || x.scep.AsksIntune), noProof); g.Missing != "" {
		return g
	}
	days := int(x.profile.Validity / (24 * time.Hour))
	fields := []guideField{
		{"Certificate type", "Device", false},
		{"Subject name format", "CN={{AAD_Device_ID}}", true},
		{"Certificate validity period", fmt.Sprintf("%d days", days), false},
		{"Key storage provider", "Enroll to TPM KSP if present, otherwise Software KSP", false},
		{"Key usage", "Digital signature, Key encipherment", false},
		{"Key size (bits)", fmt.Sprint(x.bits()), true},
		{"Hash algorithm", "SHA-2", false},
		{"Root certificate", "the trusted certificate profile of the first step", false},
		{"Extended key usage", strings.Join(x.usages(), ", "), false},
		{"Renewal threshold (%)", fmt.Sprint(x.threshold()), true},
		{"SCEP server URLs", u, true},
	}
	if legacy := x.legacyURL(); legacy != "" {
		fields = append(fields, guideField{"SCEP server URL for Windows 10", legacy, true})
	}
	g.Steps = []guideStep{
		{Title: "Trusted certificate", Text: "Upload the CA certificate, and those above it one profile for each. They are below, under CA certificate."},
		{Title: "SCEP certificate", Text: "Choose the platform Windows 10 and later, and fill in:", Fields: fields},
	}
	return g
}

// legacyURL is the second of two addresses over TLS, which is for devices without TLS 1.3.
func (x *recipe) legacyURL() string {
	var all []string
	for _, u := range x.profile.SCEP {
		if strings.HasPrefix(u, "https://") && !isMTLS(u) {
			all = append(all, u)
		}
	}
	if len(all) < 2 {
		return ""
	}
	return all[1]
}

// threshold is what of a certificate's life is left when a device should renew it, in percent: a fifth,
// or less where the profile renews only later.
func (x *recipe) threshold() int {
	if x.profile.Validity <= 0 || x.profile.RenewsWithin <= 0 {
		return 20
	}
	return max(1, min(20, int(100*x.profile.RenewsWithin/x.profile.Validity)))
}

// usages are the extended key usages as device managers call them.
func (x *recipe) usages() []string {
	known := map[string]string{"clientAuth": "Client Authentication (1.3.6.1.5.5.7.3.2)", "serverAuth": "Server Authentication (1.3.6.1.5.5.7.3.1)",
		"emailProtection": "Secure Email (1.3.6.1.5.5.7.3.4)", "smartcardLogon": "Smart Card Logon (1.3.6.1.4.1.311.20.2.2)"}
	var all []string
	for _, u := range x.profile.Usages {
		if words, ok := known[u]; ok {
			u = words
		}
		all = append(all, u)
	}
	return all
}

func (x *recipe) chromeOS() guide {
	g := guide{Key: "chromeos", Label: "ChromeOS", Intro: "In the Google Admin console: Devices, Networks, Secure SCEP, Create Secure SCEP Profile."}
	u := x.scepTLS()
	if g.Missing = x.lacks(u, x.scep != nil && x.scep.Static, "ChromeOS gives every device the same challenge, and this profile takes none that devices share."); g.Missing != "" {
		return g
	}
	g.Steps = []guideStep{{Title: "Fill in", Fields: []guideField{
		{"Device platforms", "Chromebook (user or device)", false},
		{"SCEP profile name", "Signet " + x.profile.Name, true},
		{"Subject name format, common name", "${DEVICE_SERIAL_NUMBER}", true},
		{"Signing algorithm", "SHA256withRSA", false},
		{"Key usage", "Key encipherment, Signing", false},
		{"Key size", fmt.Sprint(x.bits()), true},
		{"SCEP server URL", u, true},
		{"Certificate validity period (years)", fmt.Sprint(max(1, int(x.profile.Validity/(365*24*time.Hour)))), false},
		{"Renew within days", fmt.Sprint(max(1, int(x.profile.Validity/(24*time.Hour))*x.threshold()/100)), true},
		{"Extended key usage", strings.Join(x.usages(), ", "), false},
		{"Challenge type", "Static: the challenge that all devices of this profile share", false},
		{"Certificate authority", "the CA certificate of this page, added under Networks, Certificates", false},
		{"Network type this profile applies to", "Wi-Fi, Ethernet or VPN, as you need", false},
	}}}
	return g
}
