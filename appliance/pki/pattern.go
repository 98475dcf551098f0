package pki

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// Bounds on regular expressions: a value is matched in time linear in its length times the program's.
const (
	regexPrefix     = "regex:"
	maxRegex        = 512  // characters of one expression
	maxRegexProgram = 4000 // instructions of one expression; repetitions multiply them
	maxRegexValue   = 1024 // characters of a value that is matched
)

// pattern says which values are accepted: a text in which '*' stands for any run of characters, or a
// regular expression that has to match the whole value.
type pattern struct {
	text        string         // lower case; "" where expr is set
	expr        *regexp.Regexp // nil where text is set
	forAccounts bool           // names accounts of Active Directory on purpose: begins with sidURI
}

// sidURI begins a URI that names an account of Active Directory by its SID (Microsoft KB5014754). Domain
// controllers log in whoever holds a certificate with one, so a pattern that only happens to match it
// does not allow it.
const sidURI = "tag:microsoft.com,2022-09-14:sid:"

func namesAccount(uri string) bool { return strings.HasPrefix(strings.ToLower(uri), sidURI) }

// newPattern compiles a pattern, in which letters match in either case.
func newPattern(text string) (pattern, error) {
	expression, ok := strings.CutPrefix(text, regexPrefix)
	if !ok {
		return pattern{text: strings.ToLower(text), forAccounts: namesAccount(text)}, nil
	}
	if expression == "" || len(expression) > maxRegex {
		return pattern{}, fmt.Errorf("a regular expression has 1 to %d characters", maxRegex)
	}
	// On its own first: what is put around it must not change what it means.
	alone, err := regexp.Compile(expression)
	if err != nil {
		return pattern{}, err
	}
	whole := `\A(?i:` + expression + `)\z`
	parsed, err := syntax.Parse(whole, syntax.Perl)
	if err != nil {
		return pattern{}, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return pattern{}, err
	}
	if len(program.Inst) > maxRegexProgram {
		return pattern{}, fmt.Errorf("its repetitions make %d steps, at most %d are taken", len(program.Inst), maxRegexProgram)
	}
	expr, err := regexp.Compile(whole)
	if err != nil {
		return pattern{}, err
	}
	literal, _ := alone.LiteralPrefix()
	return pattern{expr: expr, forAccounts: namesAccount(literal)}, nil
}

func (p pattern) matches(value string) bool {
	if p.expr != nil {
		return len(value) <= maxRegexValue && p.expr.MatchString(value)
	}
	return matches(p.text, strings.ToLower(value))
}

// matches reports whether s fits pattern, in which '*' stands for any run of characters. It takes
// time linear in the pattern times the text: each literal piece goes to its first place.
func matches(pattern, s string) bool {
	pieces := strings.Split(pattern, "*")
	if len(pieces) == 1 {
		return pattern == s
	}
	first, last := pieces[0], pieces[len(pieces)-1]
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for _, piece := range pieces[1 : len(pieces)-1] {
		i := strings.Index(s, piece)
		if i < 0 {
			return false
		}
		s = s[i+len(piece):]
	}
	return strings.HasSuffix(s, last)
}
