package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is the file after its form has been checked: values of the right
// YAML type at known keys, and the line of each. What is malformed is in
// problems and not in tree, so that later rules do not complain about it again.
type document struct {
	file     string
	lines    []string
	tree     map[string]any
	line     map[string]int  // path -> line of the value
	broken   map[string]bool // path present in the file but unusable
	problems []Problem
}

func newDocument(file string) *document {
	return &document{file: file, tree: map[string]any{}, line: map[string]int{}, broken: map[string]bool{}}
}

// breaks are the line breaks of YAML 1.1, which the parser counts by.
var breaks = regexp.MustCompile("\r\n|[\n\r\u0085\u2028\u2029]")

// parseDocument checks the form of a YAML file.
func parseDocument(file string, data []byte) *document {
	d := newDocument(file)
	if !d.checkBytes(data) {
		return d
	}
	d.lines = breaks.Split(string(data), -1)
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return d // nothing but comments: all defaults
	case err != nil:
		d.syntaxError(err)
		return d
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.add(second.Line, "", "a second YAML document starts here", "keep one document: remove the --- line and what follows")
	} else if !errors.Is(err, io.EOF) {
		d.syntaxError(err)
		return d
	}
	top := root.Content[0]
	if isNull(top) && top.Style == 0 {
		return d
	}
	if top.Kind != yaml.MappingNode {
		d.add(top.Line, "", "the file is "+describe(top)+", not a group of keys", "start with a key such as networks:")
		return d
	}
	d.tree = d.mapping("", top, fileFields())
	return d
}

// checkBytes refuses what an editor or a copy went wrong with, before the
// parser says something obscure about it.
func (d *document) checkBytes(data []byte) bool {
	switch {
	case bytes.HasPrefix(data, []byte{0xef, 0xbb, 0xbf}):
		d.add(1, "", "the file starts with a byte order mark", "save it as UTF-8 without BOM")
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}), bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		d.add(1, "", "the file is UTF-16", "save it as UTF-8 without BOM")
	case !utf8.Valid(data):
		line := 1
		for rest := data; ; {
			r, n := utf8.DecodeRune(rest)
			if r == utf8.RuneError && n <= 1 {
				break
			}
			if r == '\n' {
				line++
			}
			rest = rest[n:]
		}
		d.add(line, "", "the file is not UTF-8", "save it as UTF-8 without BOM")
	default:
		return true
	}
	return false
}

var yamlLine = regexp.MustCompile(`line (\d+): `)

// bareBrackets is an IPv6 address with port that lacks quotes: YAML reads the
// bracket as the start of a list.
var bareBrackets = regexp.MustCompile(`:[ \t]+(\[[0-9A-Fa-f:.%a-z]*\]:[0-9]+)[ \t]*(#.*)?$`)

// syntaxError reports what the parser said, or the tab that made it say so.
func (d *document) syntaxError(err error) {
	tabs := false
	for i, l := range d.lines {
		if indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))]; strings.Contains(indent, "\t") && strings.TrimSpace(l) != "" {
			d.add(i+1, "", "the line is indented with a tab", "YAML wants spaces: use two for each level")
			tabs = true
		}
	}
	if tabs {
		return
	}
	msg, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = strings.Replace(msg, m[0], "", 1)
	}
	hint := ""
	for i, l := range d.lines {
		if m := bareBrackets.FindStringSubmatch(l); m != nil {
			line, hint = i+1, fmt.Sprintf("quote an address in brackets: %q", m[1])
			break
		}
	}
	d.add(line, "", "not valid YAML: "+msg, hint)
}

func (d *document) add(line int, key, problem, hint string) {
	d.problems = append(d.problems, Problem{File: d.file, Line: line, Key: key, Problem: problem, Hint: hint})
	if key != "" {
		d.broken[key] = true
	}
}

// mapping checks a map against its known keys.
func (d *document) mapping(path string, n *yaml.Node, fields []field) map[string]any {
	out := map[string]any{}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0 {
			d.add(k.Line, path, "a key here is "+describe(k)+", not a plain word", "")
			continue
		}
		p := joinPath(path, k.Value)
		f, known := findField(fields, k.Value)
		if !known {
			d.add(k.Line, p, "unknown key", keyHint(path, k.Value, fields))
			continue
		}
		if first, dup := seen[k.Value]; dup {
			d.add(k.Line, p, fmt.Sprintf("the key stands twice, first in line %d", first), "keep one of them")
			continue
		}
		seen[k.Value] = k.Line
		d.line[p] = k.Line
		if val, ok := d.value(p, k, v, f); ok {
			out[k.Value] = val
		}
	}
	return out
}

func findField(fields []field, name string) (field, bool) {
	for _, f := range fields {
		if f.name == name {
			return f, true
		}
	}
	return field{}, false
}

// value checks one value against the kind of its key. The second result is
// false if there is nothing usable.
func (d *document) value(path string, k, v *yaml.Node, f field) (any, bool) {
	switch {
	case v.Kind == yaml.AliasNode || v.Anchor != "":
		d.add(v.Line, path, "YAML anchors and aliases are not supported", "write the value out")
		return nil, false
	case v.Style&yaml.TaggedStyle != 0:
		d.add(v.Line, path, "YAML tags are not supported", "remove "+v.Tag)
		return nil, false
	case f.kind == kindMap && isNull(v) && v.Value == "":
		return map[string]any{}, true // a group whose keys are all commented out
	case isNull(v), v.Kind == yaml.ScalarNode && strings.TrimSpace(v.Value) == "":
		d.add(k.Line, path, "the value is empty", "give it a value or remove the line")
		return nil, false
	}
	switch f.kind {
	case kindMap:
		if v.Kind != yaml.MappingNode {
			return d.wrongType(path, v, f.kind)
		}
		return d.mapping(path, v, f.fields), true
	case kindNetworks:
		if v.Kind != yaml.SequenceNode {
			return d.wrongType(path, v, f.kind)
		}
		return d.networks(path, v, f.fields), true
	case kindStrings:
		if v.Kind != yaml.SequenceNode {
			return d.wrongType(path, v, f.kind)
		}
		return d.stringList(path, v), true
	case kindInt:
		return d.integer(path, v)
	case kindBool:
		return d.boolean(path, v)
	case kindEncrypted:
		return d.encrypted(path, k, v)
	case kindDuration:
		return d.duration(path, v)
	default:
		return d.text(path, v)
	}
}

func (d *document) networks(path string, v *yaml.Node, fields []field) []any {
	out := make([]any, len(v.Content))
	for i, item := range v.Content {
		p := fmt.Sprintf("%s[%d]", path, i)
		d.line[p] = item.Line
		out[i] = map[string]any{} // keeps the indices of the others
		switch {
		case item.Kind == yaml.AliasNode || item.Anchor != "" || item.Style&yaml.TaggedStyle != 0:
			d.add(item.Line, p, "YAML anchors, aliases and tags are not supported", "write the network out")
		case item.Kind != yaml.MappingNode:
			d.add(item.Line, p, "a network is "+describe(item)+", not a group of keys", "write - name: "+networkNameExample(item))
		default:
			out[i] = d.mapping(p, item, fields)
		}
	}
	return out
}

func networkNameExample(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && validName(n.Value) {
		return n.Value
	}
	return "blue"
}

func (d *document) stringList(path string, v *yaml.Node) []any {
	out := []any{}
	for i, item := range v.Content {
		p := fmt.Sprintf("%s[%d]", path, i)
		d.line[p] = item.Line
		val, ok := d.value(p, item, item, field{kind: kindString})
		if !ok {
			val = "" // keeps the indices of the others; broken says to skip it
		}
		out = append(out, val)
	}
	return out
}
