package box

import (
	"errors"
	"fmt"
	"strings"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
)

// Problem stops the boot: what is wrong and what a person can do about it, each a sentence in lower
// case without its stop. Err, if any, is the technical cause.
type Problem struct {
	What string
	Mend string
	Err  error
}

// Error is What and the cause.
func (p *Problem) Error() string {
	if p.Err == nil {
		return p.What
	}
	return fmt.Sprintf("%s: %v", p.What, p.Err)
}

// Unwrap is the cause.
func (p *Problem) Unwrap() error { return p.Err }

// mendReport is the mend of a failure no rule foresaw.
const mendReport = "switch the box off and on; if it comes back, note this text and flash the image again without clearing the TPM"

// describe is err as the screen shows it: what is wrong, what mends it, and the technical cause where
// there is one.
func describe(err error) (wrong handover.Condition, detail string) {
	var p *Problem
	var k *keys.Error
	switch {
	case errors.As(err, &p):
		if p.Err != nil {
			detail = p.Err.Error()
		}
		return shown(p.What, p.Mend), detail
	case errors.As(err, &k):
		if k.Err != nil {
			detail = k.Err.Error()
		}
		return shown(k.What, k.Mend), detail
	}
	return shown("the box could not go on: "+err.Error(), mendReport), ""
}

// shown makes whole sentences of what and mend.
func shown(what, mend string) handover.Condition {
	return handover.Condition{What: sentence(what), Mend: sentence(mend)}
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.ContainsRune(".!?", rune(s[len(s)-1])) {
		s += "."
	}
	return s
}

// guard runs step and turns a panic into an error, so that nothing ends PID 1.
func guard(step func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &Problem{What: fmt.Sprintf("the box's own software failed: %v", r), Mend: mendReport}
		}
	}()
	return step()
}
