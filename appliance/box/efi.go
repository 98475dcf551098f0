package box

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

const (
	efivarsDir = "/sys/firmware/efi/efivars"

	guidGlobal = "8be4df61-93ca-11d2-aa0d-00e098032b8c" // UEFI 2.10 §3.3
	guidLoader = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // systemd Boot Loader Interface
)

// efiVariable is the data of a UEFI variable without its four attribute bytes.
func (m *Machine) efiVariable(name, guid string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(m.path(efivarsDir), name+"-"+guid))
	if err != nil {
		return nil, fmt.Errorf("reading firmware variable %s: %w", name, err)
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("firmware variable %s: %d bytes", name, len(b))
	}
	return b[4:], nil
}

// bootPartition is the GPT partition GUID, in upper case, of the ESP this boot came from.
func (m *Machine) bootPartition() (string, error) {
	b, err := m.efiVariable("LoaderDevicePartUUID", guidLoader)
	if err != nil {
		return "", err
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return strings.ToUpper(strings.TrimRight(string(utf16.Decode(units)), "\x00")), nil
}

const unprotected = "keys are not protected against a changed disk"

// secureBootWords says in plain words what Secure Boot does for this box. Sites can only choose
// "none", which never relies on it.
func (m *Machine) secureBootWords() string {
	enabled, err := m.efiVariable("SecureBoot", guidGlobal)
	switch {
	case err != nil || len(enabled) != 1:
		return "unknown to this firmware: " + unprotected
	case enabled[0] == 1:
		return "on, but this site does not rely on it: " + unprotected
	}
	if setup, err := m.efiVariable("SetupMode", guidGlobal); err == nil && len(setup) == 1 && setup[0] == 1 {
		return "off (setup mode): " + unprotected
	}
	return "off: " + unprotected
}
