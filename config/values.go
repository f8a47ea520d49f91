package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

func (d *document) text(path string, v *yaml.Node) (any, bool) {
	if v.Kind != yaml.ScalarNode {
		return d.wrongType(path, v, kindString)
	}
	if v.ShortTag() != "!!str" {
		d.add(v.Line, path, fmt.Sprintf("want a text, have %s: %s", describe(v), v.Value), fmt.Sprintf("quote it: %q", v.Value))
		return nil, false
	}
	return v.Value, true
}

func (d *document) integer(path string, v *yaml.Node) (any, bool) {
	if v.Kind != yaml.ScalarNode || v.ShortTag() != "!!int" {
		return d.wrongType(path, v, kindInt)
	}
	n, err := strconv.ParseInt(v.Value, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != v.Value {
		d.add(v.Line, path, "want a decimal number, have "+v.Value, "write digits only")
		return nil, false
	}
	return n, true
}

// literalFalse is what the source must say, in one line, for a network to be
// plaintext.
var literalFalse = regexp.MustCompile(`^(encrypted|"encrypted"|'encrypted')[ \t]*:[ \t]+false([ \t,}\]]|$)`)

// boolean accepts true and false in exactly this spelling. YAML knows more
// spellings (yes, off, False); none of them may come to mean something by a
// reading that differs from the author's, so they are errors.
func (d *document) boolean(path string, v *yaml.Node) (any, bool) {
	if v.Kind == yaml.ScalarNode && v.Style == 0 && (v.Value == "true" || v.Value == "false") {
		return v.Value == "true", true
	}
	hint := "write true or false, without quotes"
	if v.Kind == yaml.ScalarNode {
		hint = boolHint(v.Value)
	}
	d.add(v.Line, path, "want true or false, have "+describe(v)+quoted(v), hint)
	return nil, false
}

// boolHint says how to write what was probably meant.
func boolHint(val string) string {
	switch strings.ToLower(val) {
	case "yes", "on", "y", "t", "1", "true":
		return "write true, without quotes"
	case "no", "off", "n", "f", "0", "false", "none":
		return "write false, without quotes"
	default:
		return "write true or false, without quotes"
	}
}

// encrypted is boolean with one more rule: only the literal words leave a
// network unencrypted.
func (d *document) encrypted(path string, k, v *yaml.Node) (any, bool) {
	val, ok := d.boolean(path, v)
	if ok && val == false && !d.saysFalse(k) {
		d.add(v.Line, path, "a network is left unencrypted only by the literal words", "write `encrypted: false` on one line")
		return nil, false
	}
	return val, ok
}

// duration accepts a text such as 12h, and 0, which needs no unit.
func (d *document) duration(path string, v *yaml.Node) (any, bool) {
	if v.Kind != yaml.ScalarNode || v.ShortTag() == "!!bool" {
		return d.wrongType(path, v, kindDuration)
	}
	val, problem, hint := parseDuration(v.Value)
	if problem != "" {
		d.add(v.Line, path, problem, hint)
		return nil, false
	}
	return val, true
}

// saysFalse looks at the source text itself: escapes, explicit keys and line
// folding are ways to say `encrypted: false` that a reader would overlook.
func (d *document) saysFalse(k *yaml.Node) bool {
	if k.Line < 1 || k.Line > len(d.lines) {
		return false
	}
	line := []rune(d.lines[k.Line-1])
	if k.Column < 1 || k.Column > len(line) {
		return false
	}
	return literalFalse.MatchString(string(line[k.Column-1:]))
}

func (d *document) wrongType(path string, v *yaml.Node, want kind) (any, bool) {
	hint := ""
	switch {
	case want == kindStrings && v.Kind == yaml.ScalarNode:
		hint = fmt.Sprintf("write it as a list: [%q]", v.Value)
	case want == kindNetworks && v.Kind == yaml.MappingNode:
		hint = "write each network as a list item: - name: blue"
	case want == kindString && v.Kind == yaml.SequenceNode && strings.HasSuffix(path, ".bind"):
		hint = `quote an address in brackets: "[::]:7946"`
	case want == kindInt && v.Kind == yaml.ScalarNode && v.ShortTag() == "!!str":
		if _, err := strconv.ParseInt(v.Value, 10, 64); err == nil {
			hint = "remove the quotes"
		}
	}
	d.add(v.Line, path, "want "+want.String()+", have "+describe(v)+quoted(v), hint)
	return nil, false
}

// describe names what a node is.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of keys"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!int":
			return "a whole number"
		case "!!float":
			return "a fraction"
		case "!!bool":
			return "true or false"
		case "!!null":
			return "nothing"
		case "!!timestamp":
			return "a date"
		}
		return "a text"
	default:
		return "something else"
	}
}

// quoted appends a scalar's own text to a description.
func quoted(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return ""
	}
	return ": " + strconv.Quote(shorten(n.Value))
}

// shorten keeps a message on one line whatever the file holds.
func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
