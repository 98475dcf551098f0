package image

import (
	"bytes"
	"debug/pe"
	"encoding/hex"
	"testing"
)

// TestPredictPCR11 holds the prediction against a chain computed with sha256sum.
func TestPredictPCR11(t *testing.T) {
	got := predictPCR11([]string{".linux", ".osrel", ".absent"}, map[string][]byte{
		".linux": []byte("L"), ".osrel": []byte("O"), ".uname": []byte("not measured"),
	})
	for phase, want := range map[string]string{
		"enter-initrd": "d9d65a1af149ad283cbcb1fbc066232666902d0c70353ae822a5c879c57de057",
		"leave-initrd": "78f8ce5e9cce71a669fafdc0282df9a1820f25366d05162e2d58afea2ca448ca",
	} {
		value := got[phase]
		if hex.EncodeToString(value[:]) != want {
			t.Errorf("%s: got %x, want %s", phase, value, want)
		}
	}
}

func TestStubVersion(t *testing.T) {
	f, err := pe.NewFile(bytes.NewReader(part(t, "linuxx64.efi.stub")))
	if err != nil {
		t.Fatal(err)
	}
	text, major, err := stubVersion(f)
	if err != nil || major != 252 || !bytes.HasPrefix([]byte(text), []byte("systemd-stub 252.")) {
		t.Errorf("got %q, %d, %v", text, major, err)
	}
	loader, err := pe.NewFile(bytes.NewReader(part(t, "systemd-bootx64.efi")))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := stubVersion(loader); err == nil {
		t.Error("systemd-boot was taken for a stub")
	}
}
