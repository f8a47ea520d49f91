package protocol

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// document is the file with the vectors, at the root of the module.
const document = "PROTOCOL.md"

// fence opens a block of vectors; the name of the block follows it.
const fence = "```vectors "

// width is how many characters of a value stand in one line.
const width = 196

// Block is one block of vectors: lines "name = value", in order. A value that
// goes on in the next line is indented there.
type Block struct {
	Name  string
	Lines []Line
}

// Line is one vector. Binary values are hexadecimal, in lower case.
type Line struct{ Name, Value string }

// Parse returns the blocks of vectors in a document, in order. Names, of blocks
// and within a block, must differ.
func Parse(doc []byte) ([]Block, error) {
	var blocks []Block
	inside := false
	for i, text := range strings.Split(string(doc), "\n") {
		name, opens := strings.CutPrefix(text, fence)
		switch {
		case !inside && opens:
			if slices.ContainsFunc(blocks, func(b Block) bool { return b.Name == name }) {
				return nil, fmt.Errorf("parse vectors: line %d: block %q is there twice", i+1, name)
			}
			blocks, inside = append(blocks, Block{Name: name}), true
		case inside && text == "```":
			inside = false
		case inside:
			if err := blocks[len(blocks)-1].add(text); err != nil {
				return nil, fmt.Errorf("parse vectors: line %d: %w", i+1, err)
			}
		}
	}
	if inside {
		return nil, fmt.Errorf("parse vectors: block %q does not end", blocks[len(blocks)-1].Name)
	}
	return blocks, nil
}

func (b *Block) add(text string) error {
	if more, indented := strings.CutPrefix(text, "  "); indented {
		if len(b.Lines) == 0 {
			return fmt.Errorf("nothing goes on here")
		}
		b.Lines[len(b.Lines)-1].Value += more
		return nil
	}
	name, value, ok := strings.Cut(text, " = ")
	if !ok || name == "" || strings.ContainsRune(name, ' ') {
		return fmt.Errorf("want name = value")
	}
	if slices.ContainsFunc(b.Lines, func(l Line) bool { return l.Name == name }) {
		return fmt.Errorf("%s is there twice", name)
	}
	b.Lines = append(b.Lines, Line{name, value})
	return nil
}

// format writes a block as Parse reads it, fences included.
func (b Block) format() string {
	var out strings.Builder
	out.WriteString(fence + b.Name + "\n")
	for _, l := range b.Lines {
		first := l.Name + " = "
		room := width - len(first)
		for rest, begin := l.Value, first; begin == first || rest != ""; {
			n := min(len(rest), room)
			out.WriteString(begin + rest[:n] + "\n")
			rest, begin, room = rest[n:], "  ", width-2
		}
	}
	out.WriteString("```")
	return out.String()
}

// Check compares a block of PROTOCOL.md with what the code makes, which may be
// more: the document quotes the essential values. With update it writes the
// code's values into the lines that the document has.
//
// Values are []byte, written as hexadecimal digits, or string.
func Check[V []byte | string](t testing.TB, block string, have map[string]V, update bool) {
	t.Helper()
	path, err := find()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := make(map[string]string, len(have))
	for name, v := range have {
		switch v := any(v).(type) {
		case []byte:
			text[name] = hex.EncodeToString(v)
		case string:
			text[name] = v
		}
	}
	changed, problems := compare(doc, block, text)
	if update && changed != nil {
		if err := os.WriteFile(path, changed, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// compare returns what is wrong with a block, and the document with the values
// put right, or nil if a name in it has no value.
func compare(doc []byte, block string, have map[string]string) (changed []byte, problems []string) {
	blocks, err := Parse(doc)
	if err != nil {
		return nil, []string{err.Error()}
	}
	i := slices.IndexFunc(blocks, func(b Block) bool { return b.Name == block })
	if i < 0 {
		return nil, []string{fmt.Sprintf("%s has no vectors %q", document, block)}
	}
	right := Block{Name: block}
	unknown := false
	for _, l := range blocks[i].Lines {
		v, ok := have[l.Name]
		if !ok {
			unknown = true
			problems = append(problems, fmt.Sprintf("%s: vector %s of %q is unknown to the code", document, l.Name, block))
		} else if v != l.Value {
			problems = append(problems, fmt.Sprintf("%s: vector %s of %q is\n%s, the code makes\n%s", document, l.Name, block, l.Value, v))
		}
		right.Lines = append(right.Lines, Line{l.Name, v})
	}
	if unknown {
		return nil, problems
	}
	at := bytes.Index(doc, []byte(fence+block+"\n"))
	end := at + bytes.Index(doc[at:], []byte("\n```")) + len("\n```")
	return slices.Concat(doc[:at], []byte(right.format()), doc[end:]), problems
}

// find looks for the document from the test's folder upwards.
func find() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, document), nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("find %s: no go.mod in any folder above", document)
		}
		dir = up
	}
}
