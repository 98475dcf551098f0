package intune

import (
	"errors"
	"strings"
	"time"
)

// A Code is the service's verdict. The names are Microsoft's, matched exactly.
type Code string

// The codes of Microsoft's library (IntuneScepServiceException.ErrorCode).
const (
	Success                                Code = "Success"
	Unknown                                Code = "Unknown"
	CertificateRequestDecodingFailed       Code = "CertificateRequestDecodingFailed"
	ChallengePasswordMissing               Code = "ChallengePasswordMissing"
	ChallengeDeserializationError          Code = "ChallengeDeserializationError"
	ChallengeDecryptionError               Code = "ChallengeDecryptionError"
	ChallengeDecodingError                 Code = "ChallengeDecodingError"
	ChallengeInvalidTimestamp              Code = "ChallengeInvalidTimestamp"
	ChallengeExpired                       Code = "ChallengeExpired"
	SubjectNameMissing                     Code = "SubjectNameMissing"
	SubjectNameMismatch                    Code = "SubjectNameMismatch"
	SubjectAltNameMissing                  Code = "SubjectAltNameMissing"
	SubjectAltNameMismatch                 Code = "SubjectAltNameMismatch"
	KeyUsageMismatch                       Code = "KeyUsageMismatch"
	KeyLengthMismatch                      Code = "KeyLengthMismatch"
	EnhancedKeyUsageMissing                Code = "EnhancedKeyUsageMissing"
	EnhancedKeyUsageMismatch               Code = "EnhancedKeyUsageMismatch"
	AadKeyIdentifierListMissing            Code = "AadKeyIdentifierListMissing"
	RegisteredKeyMismatch                  Code = "RegisteredKeyMismatch"
	SigningCertThumbprintMismatch          Code = "SigningCertThumbprintMismatch"
	ScepProfileNoLongerTargetedToTheClient Code = "ScepProfileNoLongerTargetedToTheClient"
	SignatureValidationFailed              Code = "SignatureValidationFailed"
	BadCertificateRequestIDInChallenge     Code = "BadCertificateRequestIdInChallenge"
	BadDeviceIDInChallenge                 Code = "BadDeviceIdInChallenge"
	BadUserIDInChallenge                   Code = "BadUserIdInChallenge"
)

// Every rejection is [ErrRejected] and one of the others.
var (
	ErrRejected    = errors.New("Intune rejected the request")
	ErrMalformed   = errors.New("request or challenge is malformed")       // cannot be read, or is missing
	ErrChallenge   = errors.New("challenge is not the tenant's")           // signature, decryption, wrong device or user
	ErrExpired     = errors.New("challenge is expired")                    // or from the future
	ErrMismatch    = errors.New("request differs from the Intune profile") // subject, names, key, usages
	ErrNotTargeted = errors.New("profile is no longer meant for the device")
	ErrUnknownCode = errors.New("code is unknown") // newer than this table: still a no
)

// classes says which sentinel a code is. What is not listed is ErrUnknownCode.
var classes = map[Code]error{
	CertificateRequestDecodingFailed:       ErrMalformed,
	ChallengePasswordMissing:               ErrMalformed,
	ChallengeDeserializationError:          ErrMalformed,
	ChallengeDecodingError:                 ErrMalformed,
	ChallengeDecryptionError:               ErrChallenge,
	SigningCertThumbprintMismatch:          ErrChallenge,
	SignatureValidationFailed:              ErrChallenge,
	BadCertificateRequestIDInChallenge:     ErrChallenge,
	BadDeviceIDInChallenge:                 ErrChallenge,
	BadUserIDInChallenge:                   ErrChallenge,
	ChallengeInvalidTimestamp:              ErrExpired,
	ChallengeExpired:                       ErrExpired,
	SubjectNameMissing:                     ErrMismatch,
	SubjectNameMismatch:                    ErrMismatch,
	SubjectAltNameMissing:                  ErrMismatch,
	SubjectAltNameMismatch:                 ErrMismatch,
	KeyUsageMismatch:                       ErrMismatch,
	KeyLengthMismatch:                      ErrMismatch,
	EnhancedKeyUsageMissing:                ErrMismatch,
	EnhancedKeyUsageMismatch:               ErrMismatch,
	AadKeyIdentifierListMissing:            ErrMismatch,
	RegisteredKeyMismatch:                  ErrMismatch,
	ScepProfileNoLongerTargetedToTheClient: ErrNotTargeted,
}

// Rejected is the service's no.
type Rejected struct {
	Code Code // as sent where it is a plain word, else Unknown
	// Description is the service's own text for people, cleaned to one line of at most 255 characters.
	// It is kept out of Error, because nothing says that it never quotes the challenge.
	Description string
	Activity    string // what Microsoft's support asks for
}

func (e *Rejected) Error() string {
	return ErrRejected.Error() + ": " + string(e.Code) + " (activity " + e.Activity + ")"
}

// Unwrap makes a rejection ErrRejected and its class.
func (e *Rejected) Unwrap() []error {
	class, ok := classes[e.Code]
	if !ok {
		class = ErrUnknownCode
	}
	return []error{ErrRejected, class}
}

// Every [*Error] is ErrUnavailable: there is no verdict, and nothing may be issued.
var (
	ErrUnavailable = errors.New("Intune gave no verdict")
	// ErrCredential says that an administrator has to act: Entra, Graph or Intune does not accept us.
	ErrCredential = errors.New("Microsoft does not accept the app registration")
)

// Error is a call without a verdict. It holds no token, challenge or request.
type Error struct {
	What     string // what is wrong, one sentence without stop
	Mend     string // what to do
	Activity string // what Microsoft's support asks for; empty before anything was sent
	Err      error  // what lies beneath, for the log; may be nil

	credential bool          // ErrCredential
	retry      bool          // another attempt may succeed
	after      time.Duration // but not before this
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.What + "; " + e.Mend)
	if e.Activity != "" {
		b.WriteString(" (activity " + e.Activity + ")")
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap makes an error ErrUnavailable, ErrCredential where it is, and what lies beneath: a context's
// end among them.
func (e *Error) Unwrap() []error {
	all := []error{ErrUnavailable}
	if e.credential {
		all = append(all, ErrCredential)
	}
	if e.Err != nil {
		all = append(all, e.Err)
	}
	return all
}
