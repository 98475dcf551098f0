package provision

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// document is one YAML file being read. Reading goes on after a problem, so that one pass finds all.
type document struct {
	file     string
	problems Problems
	lines    map[string]int // line of each value by its path, e.g. "san.dns[0]"
}

func (d *document) failf(line int, mend, format string, args ...any) {
	d.problems = append(d.problems, Problem{File: d.file, Line: line, What: fmt.Sprintf(format, args...), Mend: mend})
}

// lineOf is the line of a path, or of the nearest enclosing value that is there.
func (d *document) lineOf(path string) int {
	for {
		if line, ok := d.lines[path]; ok {
			return line
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return 1
		}
		path = path[:cut]
	}
}

// parseDocument parses YAML into its one mapping, nil where there is none. What YAML offers beyond
// plain values (anchors, aliases, merges, tags, several documents) is refused: a site has to mean
// to its reader what it means here.
func parseDocument(file string, content []byte) (*document, ast.Node) {
	d := &document{file: file, lines: map[string]int{}}
	parsed, err := parser.ParseBytes(content, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		line, what := 0, err.Error()
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			what = syntax.Message
			if syntax.Token != nil && syntax.Token.Position != nil {
				line = syntax.Token.Position.Line
			}
		}
		d.failf(line, "correct the YAML; values that begin with * & ! @ % or { go in quotes", "not YAML: %s", what)
		return d, nil
	}
	var body ast.Node
	for i, doc := range parsed.Docs {
		if i > 0 {
			line := 0
			if doc.Start != nil {
				line = doc.Start.Position.Line
			}
			d.failf(line, "remove the line --- and what follows", "more than one YAML document")
			break
		}
		body = doc.Body
	}
	if body == nil || body.Type() == ast.NullType {
		d.failf(0, "`signet init` writes one to start from", "the file is empty")
		return d, nil
	}
	visitor := &plainOnly{d: d}
	ast.Walk(visitor, body)
	if len(d.problems) > 0 {
		return d, nil
	}
	return d, body
}

// plainOnly is an ast.Visitor that refuses everything but mappings, sequences and scalars.
type plainOnly struct{ d *document }

func (v *plainOnly) Visit(n ast.Node) ast.Visitor {
	const mend = "write the value itself; a value that begins with * or & or ! goes in quotes"
	line := lineOfNode(n)
	switch n.Type() {
	case ast.AnchorType:
		v.d.failf(line, mend, "YAML anchors are not read")
	case ast.AliasType:
		v.d.failf(line, mend, "YAML aliases are not read")
	case ast.MergeKeyType:
		v.d.failf(line, mend, "YAML merge keys are not read")
	case ast.TagType:
		v.d.failf(line, mend, "YAML tags are not read")
	}
	return v
}

func lineOfNode(n ast.Node) int {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

// object is one mapping. All methods work on nil, where every field is absent: the problem was
// reported when the mapping could not be read.
type object struct {
	d      *document
	path   string // "" for the whole document
	line   int
	fields map[string]ast.Node
	names  []string // of the fields, as written
}

// object reads a mapping with only these fields; with any where none are given.
func (d *document) object(n ast.Node, path string, known ...string) *object {
	if n == nil {
		return nil
	}
	var pairs []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		pairs = m.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{m}
	default:
		mend := "write its fields: " + strings.Join(known, ", ")
		if len(known) == 0 {
			mend = "write NAME: value for each"
		}
		d.failf(lineOfNode(n), mend, "%s is not a set of fields", orDocument(path))
		return nil
	}
	o := &object{d: d, path: path, line: d.lineOf(path), fields: map[string]ast.Node{}}
	for _, pair := range pairs {
		key, line := pair.Key.String(), lineOfNode(pair.Key)
		if s, ok := pair.Key.(*ast.StringNode); ok {
			key = s.Value
		}
		if _, twice := o.fields[key]; twice {
			d.failf(line, "keep one of the two", "field %s is there twice", o.child(key))
			continue
		}
		d.lines[o.child(key)] = line
		if len(known) > 0 && !contains(known, key) {
			d.failf(line, unknownMend(key, known), "unknown field %s", o.child(key))
			continue
		}
		o.fields[key] = pair.Value
		o.names = append(o.names, key)
		if pair.Value.Type() == ast.NullType {
			d.failf(line, "write a value or remove the field", "field %s has no value", o.child(key))
			o.fields[key] = nil
		}
	}
	return o
}

func orDocument(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (o *object) child(name string) string {
	if o.path == "" {
		return name
	}
	return o.path + "." + name
}

// has reports whether the field was written, well or badly.
func (o *object) has(name string) bool {
	if o == nil {
		return false
	}
	_, ok := o.fields[name]
	return ok
}

// value returns the field's node, nil where it is absent or has no value.
func (o *object) value(name string) ast.Node {
	if o == nil {
		return nil
	}
	return o.fields[name]
}

// require reports absent fields; mend says what to write.
func (o *object) require(name, mend string) {
	if o != nil && !o.has(name) {
		o.d.failf(o.line, mend, "field %s is missing", o.child(name))
	}
}

// failf reports a problem with the field's value.
func (o *object) failf(name, mend, format string, args ...any) {
	o.d.failf(o.d.lineOf(o.child(name)), mend, "%s: %s", o.child(name), fmt.Sprintf(format, args...))
}

func (o *object) object(name string, known ...string) *object {
	if o == nil || o.fields[name] == nil {
		return nil
	}
	return o.d.object(o.fields[name], o.child(name), known...)
}

// text reads a string; ok is false where the field is absent or not a string.
func (o *object) text(name string) (s string, ok bool) {
	n := o.value(name)
	if n == nil {
		return "", false
	}
	return o.d.text(n, o.child(name))
}

func (d *document) text(n ast.Node, path string) (string, bool) {
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case ast.ScalarNode:
		written := strings.TrimSpace(v.String())
		d.failf(lineOfNode(n), fmt.Sprintf("write it in quotes: %q", written), "%s: YAML reads %s as a number or switch, not as text", path, written)
	default:
		d.failf(lineOfNode(n), "write one text", "%s is not text", path)
	}
	return "", false
}

// choice reads a string that is one of the given.
func (o *object) choice(name string, choices ...string) string {
	s, ok := o.text(name)
	if !ok {
		return ""
	}
	if !contains(choices, s) {
		mend := "write " + strings.Join(choices, " or ")
		if near := nearest(s, choices); near != "" && len(choices) > 1 {
			mend = fmt.Sprintf("did you mean %s? It is one of %s", near, strings.Join(choices, ", "))
		}
		o.failf(name, mend, "%q cannot be", s)
		return ""
	}
	return s
}

func (o *object) bool(name string) (b, ok bool) {
	n := o.value(name)
	if n == nil {
		return false, false
	}
	v, ok := n.(*ast.BoolNode)
	if !ok {
		o.failf(name, "write true or false", "not true or false")
		return false, false
	}
	return v.Value, true
}

// number reads a whole number within bounds.
func (o *object) number(name string, least, most int64) (int64, bool) {
	n := o.value(name)
	if n == nil {
		return 0, false
	}
	mend := fmt.Sprintf("write a number from %d to %d", least, most)
	i, ok := n.(*ast.IntegerNode)
	if !ok {
		o.failf(name, mend, "not a whole number")
		return 0, false
	}
	value, err := strconv.ParseInt(fmt.Sprint(i.Value), 10, 64)
	if err != nil || value < least || value > most {
		o.failf(name, mend, "%v is outside %d to %d", i.Value, least, most)
		return 0, false
	}
	return value, true
}

// list returns the elements of a sequence and their paths.
func (o *object) list(name string) []ast.Node {
	n := o.value(name)
	if n == nil {
		return nil
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		o.failf(name, "write a list: [one, two], or one line for each that begins with -", "not a list")
		return nil
	}
	for i, element := range s.Values {
		o.d.lines[o.element(name, i)] = lineOfNode(element)
	}
	return s.Values
}

func (o *object) element(name string, i int) string { return fmt.Sprintf("%s[%d]", o.child(name), i) }

func (o *object) texts(name string) []string {
	var out []string
	for i, n := range o.list(name) {
		s, _ := o.d.text(n, o.element(name, i))
		out = append(out, s) // a problem leaves "", so that later indexes keep their lines
	}
	return out
}

// duration reads a duration such as 90d, 12h or 1d12h.
func (o *object) duration(name string) (time.Duration, bool) {
	const mend = "write days, hours, minutes or seconds such as 90d, 12h or 1d12h"
	if n, ok := o.value(name).(*ast.IntegerNode); ok {
		o.failf(name, mend, "%s has no unit", strings.TrimSpace(n.String()))
		return 0, false
	}
	s, ok := o.text(name)
	if !ok {
		return 0, false
	}
	d, err := parseDuration(s)
	if err != nil {
		o.failf(name, mend, "%q is not a duration", s)
		return 0, false
	}
	return d, true
}

var errDuration = errors.New("not a duration")

// parseDuration reads whole numbers with the units d, h, m and s, largest first, each at most once.
func parseDuration(s string) (time.Duration, error) {
	units := []struct {
		letter byte
		length time.Duration
	}{{'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}
	const most = 100 * 366 * 24 * time.Hour
	var total time.Duration
	next := 0
	if s == "" {
		return 0, errDuration
	}
	for s != "" {
		digits := 0
		for digits < len(s) && '0' <= s[digits] && s[digits] <= '9' {
			digits++
		}
		if digits == 0 || digits > 9 || digits == len(s) {
			return 0, errDuration
		}
		n, err := strconv.ParseInt(s[:digits], 10, 64)
		if err != nil {
			return 0, errDuration
		}
		for next < len(units) && units[next].letter != s[digits] {
			next++
		}
		if next == len(units) || n > int64(most/units[next].length) {
			return 0, errDuration
		}
		total += time.Duration(n) * units[next].length
		if total > most {
			return 0, errDuration
		}
		next++
		s = s[digits+1:]
	}
	return total, nil
}

func unknownMend(key string, known []string) string {
	if near := nearest(key, known); near != "" {
		return fmt.Sprintf("did you mean %s?", near)
	}
	return "remove it; known here are " + strings.Join(known, ", ")
}

// nearest returns the one of list that key is probably a slip of, or "".
func nearest(key string, list []string) string {
	if len(key) > 64 {
		return ""
	}
	best, bestDistance := "", 3
	for _, candidate := range list {
		d := editDistance(strings.ToLower(key), strings.ToLower(candidate))
		if d < bestDistance && d*3 <= len(candidate) {
			best, bestDistance = candidate, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, substitutions and swaps of neighbours (the optimal
// string alignment distance).
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			substitute := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				substitute++
			}
			rows[i][j] = min(substitute, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
