package audit

import (
	"crypto/sha256"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func sample() Record {
	return Record{
		Index: 7, Time: time.Date(2026, 5, 4, 14, 0, 0, 123_456_789, time.FixedZone("", 2*3600)), TimeSource: "rtc",
		Action: SCEPPKCSReq, Actor: ActorDevice, Source: "192.0.2.1", Profile: "corp", Protocol: "scep",
		Transaction: "AB+/=", Identity: `<printer "3">`, Serial: "0a1b", CSRSHA256: "00ff", Outcome: OutcomeSuccess, Reason: "a\nb",
	}
}

// The encoding is a promise to logs that were exported years ago: this text never changes.
const sampleLeaf = `{"index":7,"time":"2026-05-04T12:00:00.123Z","time_source":"rtc","action":"scep_pkcsreq","actor":"device",` +
	`"source":"192.0.2.1","profile":"corp","protocol":"scep","transaction":"AB+/=","identity":"<printer \"3\">",` +
	`"serial":"0a1b","csr_sha256":"00ff","outcome":"success","reason":"a\nb"}`

func TestLeafIsCanonical(t *testing.T) {
	leaf := Leaf(sample())
	if diff := cmp.Diff(sampleLeaf, string(leaf)); diff != "" {
		t.Errorf("leaf (-want +got):\n%s", diff)
	}
	want := sample()
	want.Time = want.Time.UTC().Truncate(time.Millisecond)
	got, err := Parse(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parsed record (-want +got):\n%s", diff)
	}
}

func TestEmptyRecordHasEveryKey(t *testing.T) {
	const want = `{"index":0,"time":"0001-01-01T00:00:00.000Z","time_source":"","action":"","actor":"","source":"","profile":"",` +
		`"protocol":"","transaction":"","identity":"","serial":"","csr_sha256":"","outcome":"","reason":""}`
	if diff := cmp.Diff(want, string(Leaf(Record{}))); diff != "" {
		t.Errorf("leaf (-want +got):\n%s", diff)
	}
}

func TestLeafHash(t *testing.T) {
	// RFC 6962 §2.1, computed here from its definition.
	leaf := Leaf(sample())
	if want := sha256.Sum256(append([]byte{0}, leaf...)); LeafHash(leaf) != want {
		t.Errorf("leaf hash is %x, want %x", LeafHash(leaf), want)
	}
}

func TestRecordAsJSONRoundTrips(t *testing.T) {
	in := []Record{sample(), {Time: time.Unix(0, 0)}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out []Record
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	for i := range in {
		if got, want := string(Leaf(out[i])), string(Leaf(in[i])); got != want {
			t.Errorf("record %d after a round trip:\n%s\nwant\n%s", i, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, leaf := range map[string]string{
		"empty":           "",
		"not JSON":        "index",
		"unknown key":     strings.Replace(sampleLeaf, `"index":7`, `"index":7,"more":1`, 1),
		"missing key":     strings.Replace(sampleLeaf, `,"reason":"a\nb"`, "", 1),
		"doubled key":     strings.Replace(sampleLeaf, `"index":7`, `"index":6,"index":7`, 1),
		"key in capitals": strings.Replace(sampleLeaf, `"index"`, `"INDEX"`, 1),
		"other order":     strings.Replace(sampleLeaf, `"actor":"device","source":"192.0.2.1"`, `"source":"192.0.2.1","actor":"device"`, 1),
		"space":           strings.Replace(sampleLeaf, `"index":7`, `"index": 7`, 1),
		"needless escape": strings.Replace(sampleLeaf, "<printer", `\u003cprinter`, 1),
		"other zone":      strings.Replace(sampleLeaf, ".123Z", ".123+00:00", 1),
		"more decimals":   strings.Replace(sampleLeaf, ".123Z", ".1234Z", 1),
		"two records":     sampleLeaf + sampleLeaf,
		"line end":        sampleLeaf + "\n",
		"negative index":  strings.Replace(sampleLeaf, `"index":7`, `"index":-7`, 1),
		"too long text":   strings.Replace(sampleLeaf, "192.0.2.1", strings.Repeat("x", MaxText+1), 1),
		"too long":        sampleLeaf + strings.Repeat(" ", MaxLeaf),
	} {
		if name != "empty" && leaf == sampleLeaf {
			t.Fatalf("%s: the sample was not changed", name)
		}
		if r, err := Parse([]byte(leaf)); err == nil {
			t.Errorf("%s: parsed as %+v", name, r)
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	for _, c := range []struct {
		name, in string
		limit    int
		want     string
	}{
		{"fits", "abcdefgh", 8, "abcdefgh"},
		{"one too long", "abcdefghi", 8, "abcde…"},
		{"cut in a character", "abcdéééé", 8, "abcd…"},
		{"cut between characters", "aéééééé", 8, "aéé…"},
		{"four-byte characters", "😀😀😀", 8, "😀…"},
		{"wrong byte", "a\xffb", 8, "a\uFFFDb"},
		{"wrong bytes grow past the limit", "\xff\xff\xff", 8, "\uFFFD…"},
		{"only continuation bytes", strings.Repeat("\x80", 20), 8, "\uFFFD…"},
		{"huge", strings.Repeat("é", 1<<20), 8, "éé…"},
	} {
		got := bound(c.in, c.limit)
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if len(got) > c.limit || !utf8.ValidString(got) {
			t.Errorf("%s: %q has %d bytes, valid %v", c.name, got, len(got), utf8.ValidString(got))
		}
		if again := bound(got, c.limit); again != got {
			t.Errorf("%s: bounding twice gives %q, then %q", c.name, got, again)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := sample().Check(); err != nil {
		t.Errorf("complete record: %v", err)
	}
	for name, spoil := range map[string]func(*Record){
		"time":        func(r *Record) { r.Time = time.Time{} },
		"time source": func(r *Record) { r.TimeSource = "" },
		"action":      func(r *Record) { r.Action = "" },
		"outcome":     func(r *Record) { r.Outcome = "" },
	} {
		r := sample()
		spoil(&r)
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("record without %s: %v", name, err)
		}
	}
}

// Every constant of type Action is in Actions, in the README's table, and well formed.
func TestActionsAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "action.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var declared []Action
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Action" {
			return true
		}
		for i, name := range spec.Names {
			value, err := strconv.Unquote(spec.Values[i].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, Action(value))
			if !strings.HasPrefix(spec.Doc.Text(), name.Name+": ") {
				t.Errorf("%s has no comment that says what it means", name.Name)
			}
		}
		return true
	})
	if diff := cmp.Diff(declared, Actions()); diff != "" {
		t.Errorf("declared constants and Actions() (-declared +listed):\n%s", diff)
	}

	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(readme), "\n## Actions\n")
	if !ok {
		t.Fatal("README.md has no section Actions")
	}
	var documented []Action
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		documented = append(documented, Action(m[1]))
	}
	if diff := cmp.Diff(documented, Actions()); diff != "" {
		t.Errorf("README.md and Actions() (-documented +listed):\n%s", diff)
	}

	// Monitoring knows these by name.
	for _, name := range []Action{"scep_pkcsreq", "scep_renewalreq", "scep_pkcsreq_intune", "scep_renewalreq_intune"} {
		if !slices.Contains(Actions(), name) {
			t.Errorf("%s is no action", name)
		}
	}
	seen := map[Action]bool{}
	for _, a := range Actions() {
		if seen[a] || !regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)+$`).MatchString(string(a)) {
			t.Errorf("action %q is doubled or not lower-case words", a)
		}
		seen[a] = true
	}
}

// readers are the files that only read the log, by what actions they look for: that one stands there does not
// show that it is ever written.
var readers = []string{"metrics/tally.go", "webui/explorerwords.go", "webui/sceppage.go", "webui/estadmin.go", "webui/events.go"}

// TestActionsAreWritten: every action is one that the box's code writes, and it writes none by another name.
func TestActionsAreWritten(t *testing.T) {
	names := map[Action]string{}
	file, err := parser.ParseFile(token.NewFileSet(), "action.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
				value, _ := strconv.Unquote(lit.Value)
				names[Action(value)] = spec.Names[0].Name
			}
		}
		return true
	})
	used := map[string]bool{}
	action, literal := regexp.MustCompile(`\baudit\.([A-Z]\w*)\b`), regexp.MustCompile(`\baudit\.Action\("|\bAction: +"`)
	for _, root := range []string{"..", "../../webui", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") ||
				slices.ContainsFunc(readers, func(r string) bool { return strings.HasSuffix(filepath.ToSlash(path), r) }) {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range action.FindAllSubmatch(text, -1) {
				used[string(m[1])] = true
			}
			if literal.Match(text) {
				t.Errorf("%s names an action by a string of its own", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range Actions() {
		if !used[names[a]] {
			t.Errorf("nothing writes %s (%s)", a, names[a])
		}
	}
}

// TestKeysAreDocumented: the README's table of keys is the encoding, in its order.
func TestKeysAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "\n## Encoding\n")
	table, _, _ = strings.Cut(table, "\n## ")
	key := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|")
	var documented []string
	for _, m := range key.FindAllStringSubmatch(table, -1) {
		documented = append(documented, m[1])
	}
	var encoded []string
	for _, m := range regexp.MustCompile(`"([a-z0-9_]+)":`).FindAllStringSubmatch(string(Leaf(Record{})), -1) {
		encoded = append(encoded, m[1])
	}
	want := []string{"index", "time", "time_source", "action", "actor", "source", "profile", "protocol", "transaction", "identity", "serial", "csr_sha256", "outcome", "reason"}
	if !slices.Equal(encoded, want) || !slices.Equal(documented, want) {
		t.Errorf("encoded %v, documented %v, want %v", encoded, documented, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sampleLeaf))
	f.Add(Leaf(Record{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err == nil && string(Leaf(r)) != string(b) {
			t.Errorf("%q parses as a record that encodes to %q", b, Leaf(r))
		}
	})
}

func FuzzLeaf(f *testing.F) {
	f.Add("AB+/=", "CN=a", "because", int64(0))
	f.Add("\xff\x00\x1b[2J", strings.Repeat("\xe2\x80", 300), strings.Repeat("\x00", 2000), int64(1)<<62)
	f.Fuzz(func(t *testing.T, transaction, identity, reason string, unix int64) {
		r := sample()
		r.Transaction, r.Identity, r.Reason, r.Time = transaction, identity, reason, time.Unix(unix, 0)
		leaf := Leaf(r)
		if len(leaf) > MaxLeaf {
			t.Fatalf("leaf of %d bytes", len(leaf))
		}
		back, err := Parse(leaf)
		if err != nil {
			t.Fatalf("own leaf does not parse: %v\n%q", err, leaf)
		}
		if string(Leaf(back)) != string(leaf) {
			t.Fatalf("not stable: %q, then %q", leaf, Leaf(back))
		}
	})
}
