package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// decodeExact decodes one JSON object into the struct that v points to. It
// refuses what encoding/json lets pass: unknown fields, fields in another
// letter case, fields that stand twice, and data behind the object.
func decodeExact(raw []byte, v any) error {
	invalid := func(format string, args ...any) error {
		return &Error{Code: CodeInvalid, Message: "invalid request: " + fmt.Sprintf(format, args...)}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return invalid("want a JSON object")
	}
	known := jsonNames(reflect.TypeOf(v).Elem())
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return invalid("%v", err)
		}
		name, _ := t.(string)
		if !slices.Contains(known, name) {
			hint := "known fields: " + strings.Join(known, ", ")
			if near, ok := nearest.Of(name, known); ok {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			return invalid("unknown field %q (%s)", shorten(name), hint)
		}
		if seen[name] {
			return invalid("field %q stands twice", name)
		}
		seen[name] = true
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return invalid("field %q: %v", name, err)
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return invalid("%v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return invalid("data behind the object")
	}
	exact := json.NewDecoder(bytes.NewReader(raw))
	exact.DisallowUnknownFields()
	if err := exact.Decode(v); err != nil {
		return invalid("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// jsonNames lists the field names of a struct type.
func jsonNames(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			out = append(out, name)
		}
	}
	return out
}

// shorten keeps a message readable whatever the caller sent.
func shorten(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}
