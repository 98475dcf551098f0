package box

import (
	"fmt"
	"io"
)

// claimAlphabet has no character that is read as another on a bad screen (0 O, 1 I L, U V).
const claimAlphabet = "23456789ABCDEFGHJKMNPQRSTVWXYZ"

// claimLength gives 39 bits: guessing is bounded by the console's attempts, not by the length.
const claimLength = 8

// newClaimCode draws a code like "ABCD-EFGH", every character equally likely.
func newClaimCode(random io.Reader) (string, error) {
	const limit = 256 - 256%len(claimAlphabet) // bytes from here on would favour the first characters
	code := make([]byte, 0, claimLength+1)
	var b [1]byte
	for len(code) < cap(code) {
		if _, err := io.ReadFull(random, b[:]); err != nil {
			return "", fmt.Errorf("drawing claim code: %w", err)
		}
		if int(b[0]) >= limit {
			continue
		}
		if len(code) == claimLength/2 {
			code = append(code, '-')
		}
		code = append(code, claimAlphabet[int(b[0])%len(claimAlphabet)])
	}
	return string(code), nil
}
