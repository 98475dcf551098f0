package scep

import (
	"testing"

	"signet.internal/appliance/cms"
)

const baseCapabilities = "POSTPKIOperation\nSHA-256\nSHA-384\nSHA-512\nAES\nSCEPStandard"

// What each switch adds to the requests that are taken, and to what is offered.
func TestLegacySwitches(t *testing.T) {
	old := []cms.Digest{cms.SHA1, cms.MD5}
	ciphers := []cms.Cipher{cms.DES3CBC, cms.DESCBC}
	for _, c := range []struct {
		legacy  Legacy
		digests [2]bool // SHA-1, MD5
		ciphers [2]bool // 3DES, DES
		offered string
	}{
		{Legacy{}, [2]bool{}, [2]bool{}, ""},
		{Legacy{SHA1: true}, [2]bool{true, false}, [2]bool{}, "\nSHA-1"},
		{Legacy{MD5: true}, [2]bool{false, true}, [2]bool{}, ""},
		{Legacy{DES3: true}, [2]bool{}, [2]bool{true, false}, "\nDES3"},
		{Legacy{DESDecrypt: true}, [2]bool{}, [2]bool{false, true}, ""},
		{Legacy{true, true, true, true}, [2]bool{true, true}, [2]bool{true, true}, "\nSHA-1\nDES3"},
	} {
		p := c.legacy.policy()
		for i := range old {
			if p.AllowsDigest(old[i]) != c.digests[i] || p.AllowsCipher(ciphers[i]) != c.ciphers[i] {
				t.Errorf("%+v: policy %v", c.legacy, p)
			}
		}
		for _, d := range cms.DefaultPolicy().Digests {
			if !p.AllowsDigest(d) {
				t.Errorf("%+v: %v is not taken any more", c.legacy, d)
			}
		}
		if got := string(capabilities(Profile{Legacy: c.legacy}, false)); got != baseCapabilities+c.offered {
			t.Errorf("%+v: offers %q", c.legacy, got)
		}
		if got := string(capabilities(Profile{Legacy: c.legacy, Renewal: true}, false)); got != baseCapabilities+"\nRenewal"+c.offered {
			t.Errorf("%+v with renewal: offers %q", c.legacy, got)
		}
	}
}

// Whatever a request uses, the answer never uses MD5 or single DES, nor what the profile does not take.
func TestAnswerAlgorithms(t *testing.T) {
	for _, c := range []struct {
		legacy       Legacy
		digest, want cms.Digest
	}{
		{Legacy{}, cms.SHA256, cms.SHA256},
		{Legacy{}, cms.SHA384, cms.SHA384},
		{Legacy{}, cms.SHA512, cms.SHA512},
		{Legacy{}, cms.SHA1, cms.SHA256},
		{Legacy{}, cms.MD5, cms.SHA256},
		{Legacy{SHA1: true}, cms.SHA1, cms.SHA1},
		{Legacy{SHA1: true}, cms.SHA512, cms.SHA512},
		{Legacy{SHA1: true}, cms.MD5, cms.SHA256},
		{Legacy{MD5: true}, cms.MD5, cms.SHA256},
		{Legacy{MD5: true, SHA1: true}, cms.MD5, cms.SHA1},
	} {
		p := &profile{Profile: Profile{Legacy: c.legacy}, policy: c.legacy.policy()}
		if got := p.answerDigest(c.digest); got != c.want {
			t.Errorf("%+v: %v is answered with %v, want %v", c.legacy, c.digest, got, c.want)
		}
	}
	for _, c := range []struct {
		legacy       Legacy
		cipher, want cms.Cipher
	}{
		{Legacy{}, cms.AES192CBC, cms.AES192CBC},
		{Legacy{DES3: true}, cms.DES3CBC, cms.DES3CBC},
		{Legacy{DESDecrypt: true}, cms.DESCBC, cms.AES128CBC},
		{Legacy{DESDecrypt: true, DES3: true}, cms.DESCBC, cms.DES3CBC},
	} {
		p := &profile{Profile: Profile{Legacy: c.legacy}, policy: c.legacy.policy()}
		if got := p.answerCipher(c.cipher); got != c.want {
			t.Errorf("%+v: %v is answered with %v, want %v", c.legacy, c.cipher, got, c.want)
		}
	}
}
