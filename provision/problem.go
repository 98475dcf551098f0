package provision

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a site, where it is and what mends it.
type Problem struct {
	File string `json:"file"` // path inside the site, with slashes
	Line int    `json:"line"` // 1-based; 0 where the file as a whole is meant
	What string `json:"what"`
	Mend string `json:"mend"`
}

// String is "file:line: what — mend".
func (p Problem) String() string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	return fmt.Sprintf("%s: %s — %s", where, p.What, p.Mend)
}

// Problems is everything wrong with a site, in order of file and line. It is the error of [Load].
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(fileRank(a.File), fileRank(b.File)), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return slices.Compact(ps)
}

// fileRank puts site.yaml before the files that depend on it.
func fileRank(file string) int {
	if file == siteFile {
		return 0
	}
	return 1
}
