package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Format is how a command prints its data. It is a flag value.
type Format string

// The formats.
const (
	FormatTable Format = "table"
	FormatJSON  Format = "json"
	FormatJSONL Format = "jsonl" // one line for each item of a list
	FormatYAML  Format = "yaml"
)

// Formats lists the formats for help and completion.
func Formats() []string {
	return []string{string(FormatTable), string(FormatJSON), string(FormatJSONL), string(FormatYAML)}
}

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	for _, ok := range Formats() {
		if s == ok {
			*f = Format(s)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", s, strings.Join(Formats(), ", "))
}

// Write prints v, the complete answer with its "schema" field, in a format
// for programs. For FormatJSONL items are the elements of the list in v, each
// printed with the schema version of its own; nil items means that v is one
// object.
func (f Format) Write(w io.Writer, schema int, v any, items []any) error {
	switch f {
	case FormatJSON:
		return writeIndented(w, v)
	case FormatYAML:
		return writeYAML(w, v)
	case FormatJSONL:
		if items == nil {
			return json.NewEncoder(w).Encode(v)
		}
		for _, item := range items {
			if err := writeLine(w, schema, item); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("print as %s: not a format for programs", f)
	}
}

func writeIndented(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// writeLine puts the schema version in front of an item's own fields.
func writeLine(w io.Writer, schema int, item any) error {
	raw, err := json.Marshal(item)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	rest, ok := bytes.CutPrefix(raw, []byte("{"))
	if !ok {
		return fmt.Errorf("encode line: %T is not an object", item)
	}
	sep := ","
	if bytes.Equal(rest, []byte("}")) {
		sep = ""
	}
	_, err = fmt.Fprintf(w, "{\"schema\":%d%s%s\n", schema, sep, rest)
	return err
}

// writeYAML prints the same keys in the same order as JSON has them.
func writeYAML(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil { // JSON is YAML
		return fmt.Errorf("encode YAML: %w", err)
	}
	block(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return fmt.Errorf("encode YAML: %w", err)
	}
	return enc.Close()
}

// block takes away the flow style that JSON came with. Empty lists and maps
// have no block form. Strings keep their quotes only where YAML needs them.
func block(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}
