package provision

func (l *loader) readSCEP(o *object, profile string) SCEP {
	s := SCEP{GetCACert: "ra+chain"}
	scep := o.object("scep", "plain_http", "legacy_tls", "raw_csr", "mtls", "legacy", "reply", "challenges")
	s.On = scep != nil
	s.PlainHTTP, _ = scep.bool("plain_http")
	s.LegacyTLS, _ = scep.bool("legacy_tls")
	s.RawCSR, _ = scep.bool("raw_csr")
	s.MTLS = l.readMTLS(scep.object("mtls", "mode", "bundle"))
	legacy := scep.object("legacy", "sha1", "des3", "des_decrypt", "md5")
	s.Legacy.SHA1, _ = legacy.bool("sha1")
	s.Legacy.DES3, _ = legacy.bool("des3")
	s.Legacy.DESDecrypt, _ = legacy.bool("des_decrypt")
	s.Legacy.MD5, _ = legacy.bool("md5")
	reply := scep.object("reply", "chain", "getcacert", "previous_ra")
	s.Chain, _ = reply.bool("chain")
	s.PreviousRA, _ = reply.bool("previous_ra")
	if reply.has("getcacert") {
		s.GetCACert = reply.choice("getcacert", "ra+chain", "ra+ca", "ra")
	}
	l.checkReached(o, scep, s)
	if s.MTLS != nil && s.MTLS.Required && s.PlainHTTP {
		scep.failf("plain_http", "write plain_http: false, or mtls: {mode: optional, …}", "no request without a client certificate is answered")
	}
	if s.Legacy.SHA1 && l.site.RA.Protection == resident {
		legacy.failf("sha1", "write ra: {protection: sealed} in site.yaml, or sha1: false", "a resident RA key does not sign SHA-1, which such clients are answered with")
	}
	if s.On || !o.has("est") {
		s.Challenges = l.readChallenges(o, scep, profile)
	}
	return s
}

// checkReached checks that the listeners which a profile's SCEP is for are on.
func (l *loader) checkReached(o, scep *object, s SCEP) {
	on := l.site.Listeners
	if s.PlainHTTP && !on.Plain {
		scep.failf("plain_http", "turn on listener plain in site.yaml, or write plain_http: false", "listener plain is off")
	}
	if s.LegacyTLS && !on.LegacySCEP && !(s.MTLS != nil && on.Legacy) {
		scep.failf("legacy_tls", "turn on listener legacy_scep in site.yaml, or write legacy_tls: false", "listener legacy_scep is off")
	}
	overTLS := on.SCEP || s.LegacyTLS && on.LegacySCEP
	if s.On && !s.PlainHTTP && !overTLS && !s.LegacyTLS {
		o.failf("scep", "turn on listener scep in site.yaml, or write plain_http: true", "no listener serves it")
	}
	if s.MTLS != nil && !on.EST && !(s.LegacyTLS && on.Legacy) {
		scep.failf("mtls", "turn on listener est in site.yaml, or write mtls: {mode: \"off\"}", "listener est, which asks for client certificates, is off")
	}
	if s.RawCSR && !overTLS {
		scep.failf("raw_csr", "turn on listener scep in site.yaml, or write raw_csr: false", "such requests are taken over TLS only, and listener scep is off")
	}
}

// readMTLS reads whose devices the sibling route lets in; nil is off.
func (l *loader) readMTLS(o *object) *MTLS {
	o.require("mode", "write mode: \"off\", optional or required")
	mode := o.choice("mode", "off", "optional", "required")
	if mode == "off" && o.has("bundle") {
		o.failf("bundle", "remove it, or write mode: optional", "means nothing while mode is off")
	}
	if mode == "" || mode == "off" {
		return nil
	}
	m := &MTLS{Required: mode == "required"}
	o.require("bundle", "write bundle: trust/devices.pem, a file with the CA certificates of the devices' certificates")
	if file, ok := o.text("bundle"); ok {
		m.File, m.Certificates = file, l.bundle(o, "bundle", file, "put the CA certificates of the devices' certificates there")
	}
	return m
}
