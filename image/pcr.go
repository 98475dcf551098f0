package image

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"fmt"
	"strconv"
	"strings"

	"signet.internal/image/format"
)

// measuredSections says, by major version of systemd-stub, which sections it measures into PCR 11
// and in which order (the enum UnifiedSection and measure loop of its src/boot/efi/stub.c). Version
// 252 measures neither .uname nor .sbat; later versions do. A version that is not here is refused,
// because a wrong prediction makes an image that cannot open its own keys.
func measuredSections(major int) ([]string, bool) {
	switch major {
	case 252:
		return []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}, true
	}
	return nil, false
}

// stubVersion reads the version systemd-stub carries in its .sdmagic section,
// "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####".
func stubVersion(stub *pe.File) (text string, major int, err error) {
	section := stub.Section(".sdmagic")
	if section == nil {
		return "", 0, fmt.Errorf("the base's stub.efi is not a systemd-stub")
	}
	data, err := section.Data()
	if err != nil {
		return "", 0, fmt.Errorf("reading stub version: %v", err)
	}
	text = strings.Trim(string(bytes.TrimRight(data, "\x00")), "# ")
	text = strings.TrimPrefix(text, "LoaderInfo: ")
	number, ok := strings.CutPrefix(text, "systemd-stub ")
	if !ok {
		return "", 0, fmt.Errorf("the base's stub.efi is not a systemd-stub but %q", text)
	}
	end := strings.IndexFunc(number, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(number)
	}
	if major, err = strconv.Atoi(number[:end]); err != nil {
		return "", 0, fmt.Errorf("reading stub version from %q", text)
	}
	return text, major, nil
}

// extend is TPM2_PCR_Extend of the SHA-256 bank with the digest of data.
func extend(pcr [32]byte, data []byte) [32]byte {
	digest := sha256.Sum256(data)
	return sha256.Sum256(append(pcr[:], digest[:]...))
}

// predictPCR11 is PCR 11 at the two phases of a boot: the stub extends the name of each present
// section with its terminating zero, then its content; boxinit then extends the words of the phases.
func predictPCR11(order []string, sections map[string][]byte) map[string][32]byte {
	var pcr [32]byte
	for _, name := range order {
		content, ok := sections[name]
		if !ok {
			continue
		}
		pcr = extend(pcr, append([]byte(name), 0))
		pcr = extend(pcr, content)
	}
	enter := extend(pcr, []byte(format.PhaseEnterInitrd))
	leave := extend(enter, []byte(format.PhaseLeaveInitrd))
	return map[string][32]byte{format.PhaseEnterInitrd: enter, format.PhaseLeaveInitrd: leave}
}
