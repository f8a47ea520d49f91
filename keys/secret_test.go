package keys

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
)

// secretBytes are distinctive: any four in a row found in an output came from
// the secret.
func secretBytes() []byte {
	b := make([]byte, secretSize)
	for i := range b {
		b[i] = byte(0xc1 + i*7)
	}
	return b
}

// privates returns every private type, holding secretBytes.
func privates(t *testing.T) map[string]any {
	t.Helper()
	raw := secretBytes()
	root, e1 := RootPrivateFromRaw32(raw)
	issuer, e2 := IssuerPrivateFromRaw32(raw)
	node, e3 := NodePrivateFromRaw32(raw)
	noise, e4 := NoisePrivateFromRaw32(raw)
	access, e5 := AccessKeyFromRaw32(raw)
	token, e6 := TokenSecretFromRaw32(raw)
	if err := errors.Join(e1, e2, e3, e4, e5, e6); err != nil {
		t.Fatal(err)
	}
	return map[string]any{"root": root, "issuer": issuer, "node": node, "noise": noise, "access": access, "token": token}
}

// containers puts v in every place from which fmt might read it, with and
// without permission to call methods.
func containers(v any) map[string]any {
	rv := reflect.ValueOf(v)
	ptr := reflect.New(rv.Type())
	ptr.Elem().Set(rv)
	slice := reflect.Append(reflect.MakeSlice(reflect.SliceOf(rv.Type()), 0, 1), rv)
	array := reflect.New(reflect.ArrayOf(1, rv.Type())).Elem()
	array.Index(0).Set(rv)
	type unexported struct{ key any }
	type exported struct{ Key any }
	return map[string]any{
		"value": v, "pointer": ptr.Interface(), "slice": slice.Interface(), "array": array.Interface(),
		"map": map[string]any{"k": v}, "interface slice": []any{v}, "unexported field": unexported{v},
		"pointer to unexported field": &unexported{v}, "exported field": exported{v},
		"nested": map[string]any{"k": []unexported{{ptr.Interface()}}},
		"error":  fmt.Errorf("wrapped %w: %v", errors.New("x"), v),
	}
}

// typed structs hold the private types by value in unexported fields, where
// reflection finds no interface in between.
type fields struct {
	root   RootPrivate
	issuer IssuerPrivate
	node   NodePrivate
	noise  NoisePrivate
	access AccessKey
	token  TokenSecret
}

// needle is a form in which a piece of the secret could appear.
type needle struct{ form, text string }

// needles lists every form of every four bytes in a row.
var needles = sync.OnceValue(func() []needle {
	secret := secretBytes()
	var out []needle
	for i := 0; i+4 <= len(secret); i++ {
		part := secret[i : i+4]
		var decimal, hexes, quoted []string
		for _, b := range part {
			decimal = append(decimal, fmt.Sprint(b))
			hexes = append(hexes, fmt.Sprintf("0x%x", b))
			quoted = append(quoted, fmt.Sprintf(`\x%02x`, b))
		}
		out = append(out,
			needle{"hex", hex.EncodeToString(part)}, needle{"hex spaced", fmt.Sprintf("% x", part)},
			needle{"decimal", strings.Join(decimal, " ")}, needle{"decimal comma", strings.Join(decimal, ",")},
			needle{"hex list", strings.Join(hexes, ", ")}, needle{"hex list spaced", strings.Join(hexes, " ")},
			needle{"quoted", strings.Join(quoted, "")}, needle{"octal", strings.Trim(fmt.Sprintf("%o", part), "[]")},
			needle{"binary", strings.Trim(fmt.Sprintf("%b", part), "[]")},
			needle{"unicode", strings.ToLower(strings.Trim(fmt.Sprintf("%U", part), "[]"))})
	}
	return out
})

// leaks reports in which form out holds a part of the secret, or "".
func leaks(out string) string {
	secret := secretBytes()
	low := strings.ToLower(out)
	for _, n := range needles() {
		if strings.Contains(low, n.text) {
			return n.form
		}
	}
	for i := 0; i+4 <= len(secret); i++ {
		if strings.Contains(out, string(secret[i:i+4])) {
			return "raw"
		}
	}
	// base64 depends on the alignment: three alignments of the whole.
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(secret[shift:])
		if strings.Contains(out, text[4:20]) {
			return "base64"
		}
	}
	return ""
}

const verbs = "vTtbcoOqxXUeEfFgGspdw" // all of fmt's, and one that is none

func TestSecretsDoNotPrint(t *testing.T) {
	all := privates(t)
	all["fields"] = fields{
		all["root"].(RootPrivate), all["issuer"].(IssuerPrivate), all["node"].(NodePrivate),
		all["noise"].(NoisePrivate), all["access"].(AccessKey), all["token"].(TokenSecret),
	}
	all["token struct"] = Token{Secret: all["token"].(TokenSecret)}
	all["answer struct"] = JoinAnswer{Access: all["access"].(AccessKey)}
	checked := 0
	for name, v := range all {
		for where, c := range containers(v) {
			check := func(how, out string) {
				checked++
				if form := leaks(out); form != "" {
					t.Errorf("%s in %s by %s shows the secret as %s", name, where, how, form)
				}
			}
			for _, verb := range verbs {
				for _, flags := range []string{"", "+", "#", " ", "-0", "# ", "+#"} {
					format := "%" + flags + string(verb)
					check(format, fmt.Sprintf(format, c))
				}
			}
			for how, out := range encoded(c) {
				check(how, out)
			}
		}
	}
	t.Logf("%d outputs checked", checked)
}

// encoded runs the structured ways out.
func encoded(c any) map[string]string {
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "k", c, slog.Group("g", "k", c))
	slog.New(slog.NewJSONHandler(&js, nil)).Info("m", "k", c, slog.Group("g", "k", c))
	out := map[string]string{"slog text": text.String(), "slog JSON": js.String()}
	if b, err := json.Marshal(c); err == nil {
		out["json"] = string(b)
	}
	return out
}

// The detector above must see a leak where there is one.
func TestLeakDetector(t *testing.T) {
	b := secretBytes()
	type naive struct{ key [secretSize]byte }
	for _, format := range []string{"%v", "%x", "%X", "% x", "%#v", "%s", "%q", "%d", "%o", "%b", "%U", "%+v"} {
		if leaks(fmt.Sprintf(format, naive{[secretSize]byte(b)})) == "" && leaks(fmt.Sprintf(format, b)) == "" {
			t.Errorf("%s of a plain array is not recognised", format)
		}
	}
	if leaks(base64.StdEncoding.EncodeToString(b)) == "" {
		t.Error("base64 is not recognised")
	}
	if form := leaks("an innocent line 1 2 3 0xc000012345"); form != "" {
		t.Errorf("an innocent line is taken for a leak: %s", form)
	}
}

func TestSecretsAreIncomparableAndUnmarshalable(t *testing.T) {
	for name, v := range privates(t) {
		typ := reflect.TypeOf(v)
		if typ.Comparable() {
			t.Errorf("%s can be compared with ==", name)
		}
		for _, p := range []reflect.Type{typ, reflect.PointerTo(typ)} {
			for m := range p.NumMethod() {
				if n := p.Method(m).Name; strings.Contains(n, "Marshal") || strings.Contains(n, "Encode") {
					t.Errorf("%s has the method %s", name, n)
				}
			}
		}
	}
}

func TestWipeReachesEveryCopy(t *testing.T) {
	k, err := NodePrivateFromRaw32(secretBytes())
	if err != nil {
		t.Fatal(err)
	}
	pub := k.Public()
	byValue, inStruct, clone := k, fields{node: k}, k.Clone()
	k.Wipe()
	for name, c := range map[string]NodePrivate{"itself": k, "copy": byValue, "field": inStruct.node} {
		if !c.IsZero() || !c.Public().IsZero() {
			t.Errorf("%s is not empty after Wipe", name)
		}
		c.Expose(func([]byte) { t.Errorf("%s: Expose runs after Wipe", name) })
		if sig := c.Sign("so-rec-v1", []byte("m")); pub.Verify("so-rec-v1", []byte("m"), sig) {
			t.Errorf("%s still signs", name)
		}
	}
	if clone.Public() != pub {
		t.Error("Wipe reached a Clone")
	}
	k.Wipe()
	NodePrivate{}.Wipe()
}

func TestExposeGivesACopy(t *testing.T) {
	k, err := AccessKeyFromRaw32(secretBytes())
	if err != nil {
		t.Fatal(err)
	}
	var kept []byte
	k.Expose(func(raw []byte) {
		kept = raw
		if !bytes.Equal(raw, secretBytes()) {
			t.Error("Expose gave other bytes")
		}
		raw[0] ^= 1
		k.Expose(func(again []byte) {
			if !bytes.Equal(again, secretBytes()) {
				t.Error("writing to the exposed bytes changed the key")
			}
		})
	})
	if !bytes.Equal(kept, make([]byte, secretSize)) {
		t.Error("the exposed bytes were not cleared")
	}
}

func TestSecretEqualAndSource(t *testing.T) {
	a, err := NewTokenSecret()
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewTokenSecret()
	if err != nil {
		t.Fatal(err)
	}
	if a.Equal(b) || !a.Equal(a.Clone()) || a.IsZero() {
		t.Error("two new secrets are equal, or one is not equal to its clone, or zero")
	}
	if !(TokenSecret{}).Equal(TokenSecret{}) || a.Equal(TokenSecret{}) {
		t.Error("the zero secret is not equal to itself only")
	}
	for _, raw := range [][]byte{nil, make([]byte, 31), make([]byte, 33), make([]byte, 32)} {
		if _, err := NodePrivateFromRaw32(raw); err == nil {
			t.Errorf("%d bytes, all zero, were accepted as a key", len(raw))
		}
	}
	raw := secretBytes()[:31]
	if _, err := NodePrivateFromRaw32(raw); err == nil || leaks(err.Error()) != "" {
		t.Errorf("31 bytes: %v", err)
	}
	if !a.JoinKey().Equal(a.JoinKey()) || a.JoinKey().Equal(b.JoinKey()) || !(TokenSecret{}).JoinKey().IsZero() {
		t.Error("JoinKey is not a function of the secret")
	}
}

func TestConcurrentWipe(t *testing.T) {
	k, err := NewNodePrivate()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !k.IsZero() {
			k.Sign("so-rec-v1", nil)
		}
	}()
	k.Wipe()
	<-done
}
