package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// moduleTree is a kernel's lib/modules/<release> directory as Debian ships it: modules, and lists of
// what is built in, but no modules.dep, which depmod would make.
type moduleTree struct {
	files   map[string]string   // path by normalised module name
	info    map[string]*modinfo // by normalised module name
	aliases []alias             // of modules, sorted by module
	builtin map[string]bool     // normalised names of built-in modules
}

// modinfo is the part of a module's .modinfo section that decides what has to be loaded before it.
type modinfo struct {
	depends []string // other modules, by name
	softPre []string // modules or aliases it works better with; may be absent
	aliases []string // patterns it answers to
}

type alias struct{ pattern, module string }

// normalise makes the two spellings of a module's name one, as the kernel does.
func normalise(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readModuleTree reads the modules below dir.
func readModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, info: map[string]*modinfo{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, ".ko") {
			return err
		}
		name := normalise(strings.TrimSuffix(filepath.Base(p), ".ko"))
		info, err := readModinfo(p)
		if err != nil {
			return err
		}
		t.files[name], t.info[name] = p, info
		for _, pattern := range info.aliases {
			t.aliases = append(t.aliases, alias{pattern, name})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading kernel modules: %w", err)
	}
	sort.SliceStable(t.aliases, func(i, j int) bool { return t.aliases[i].module < t.aliases[j].module })
	if err := t.readBuiltin(dir); err != nil {
		return nil, fmt.Errorf("reading built-in modules: %w", err)
	}
	return t, nil
}

// readBuiltin reads modules.builtin, one path a line.
func (t *moduleTree) readBuiltin(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return err
	}
	for _, line := range strings.Fields(string(list)) {
		t.builtin[normalise(strings.TrimSuffix(path.Base(line), ".ko"))] = true
	}
	return nil
}

func readModinfo(file string) (*modinfo, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no .modinfo section", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return parseModinfo(data), nil
}

func parseModinfo(data []byte) *modinfo {
	info := &modinfo{}
	for _, item := range bytes.Split(data, []byte{0}) {
		key, value, _ := strings.Cut(string(item), "=")
		switch key {
		case "depends":
			for _, name := range strings.Split(value, ",") {
				if name != "" {
					info.depends = append(info.depends, normalise(name))
				}
			}
		case "softdep": // "pre: a b post: c" (modprobe.d(5))
			pre := false
			for _, word := range strings.Fields(value) {
				switch word {
				case "pre:":
					pre = true
				case "post:":
					pre = false
				default:
					if pre {
						info.softPre = append(info.softPre, normalise(word))
					}
				}
			}
		case "alias":
			info.aliases = append(info.aliases, normalise(value))
		}
	}
	return info
}

// closure returns the wanted modules and all they need in an order in which they load: whatever a
// module depends on comes before it. A wanted name that is built in needs nothing.
func (t *moduleTree) closure(wanted []string) ([]string, error) {
	c := &closure{tree: t, state: map[string]visit{}}
	var unknown []string
	for _, name := range wanted {
		name = normalise(name)
		switch {
		case t.info[name] != nil:
			if err := c.visit(name, true); err != nil {
				return nil, err
			}
		case !t.builtin[name]:
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("neither modules of this kernel nor built into it: %s", strings.Join(unknown, ", "))
	}
	return c.order, nil
}

type visit int

const (
	unseen visit = iota
	entered
	done
)

type closure struct {
	tree  *moduleTree
	state map[string]visit
	order []string
}

// visit appends name after what it needs. Hard dependencies cannot be circular, soft ones can (they
// do not stop a module from loading): then the one entered first loads last.
func (c *closure) visit(name string, hard bool) error {
	switch c.state[name] {
	case done:
		return nil
	case entered:
		if hard {
			return fmt.Errorf("module %s depends on itself", name)
		}
		return nil
	}
	c.state[name] = entered
	info := c.tree.info[name]
	for _, dep := range info.softPre {
		for _, module := range c.tree.provide(dep) {
			if err := c.visit(module, false); err != nil {
				return err
			}
		}
	}
	for _, dep := range info.depends {
		if c.tree.info[dep] == nil {
			if c.tree.builtin[dep] {
				continue
			}
			return fmt.Errorf("module %s needs %s, which this kernel does not have", name, dep)
		}
		if err := c.visit(dep, true); err != nil {
			return err
		}
	}
	c.state[name] = done
	c.order = append(c.order, name)
	return nil
}

// provide returns the modules a soft dependency names, directly or by alias ("crypto-crc32c" is an
// alias of several): none if it is built in or, as modprobe has it, absent.
func (t *moduleTree) provide(name string) []string {
	if t.info[name] != nil {
		return []string{name}
	}
	if t.builtin[name] {
		return nil
	}
	var modules []string
	for _, a := range t.aliases {
		if ok, err := path.Match(a.pattern, name); err == nil && ok {
			modules = append(modules, a.module)
		}
	}
	return modules
}

// readModuleList reads module names, one a line; # begins a comment.
func readModuleList(file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the module list: %w", err)
	}
	defer f.Close()
	var names []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		names = append(names, strings.Fields(text)...)
	}
	return names, lines.Err()
}
