package config

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// sayings counts how often a text says the literal words that leave a network
// unencrypted.
var sayings = regexp.MustCompile(`["']?encrypted["']?[ \t]*:[ \t]+false`)

// checkLoaded holds for every input whatever: an error is *Problems with at
// least one problem that says something, and a network without encryption has
// the literal words in the text.
func checkLoaded(t interface{ Fatalf(string, ...any) }, data []byte) {
	cfg, err := parse(Source{Path: "c.yaml"}, data, nil)
	if err != nil {
		var p *Problems
		if !errors.As(err, &p) {
			t.Fatalf("error is not *Problems: %v", err)
		}
		for _, q := range p.List {
			if q.Problem == "" || q.File == "" {
				t.Fatalf("empty problem: %+v", q)
			}
		}
		return
	}
	plain := 0
	for _, n := range cfg.Networks {
		if !n.Encrypted {
			plain++
		}
		if !validName(n.Name) || !n.VNI.Valid() || len(n.Subnets) == 0 {
			t.Fatalf("invalid network loaded: %+v", n)
		}
	}
	if said := len(sayings.FindAll(data, -1)); plain > said {
		t.Fatalf("%d networks are unencrypted, the text says so %d times:\n%s", plain, said, data)
	}
}

func FuzzLoad(f *testing.F) {
	ref, err := os.ReadFile("testdata/reference.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ref)
	const net = "networks:\n  - name: a\n    subnets: [10.0.0.0/8]\n    "
	for _, s := range []string{
		"", "log: {level: debug}\n", net + "encrypted: false\n", net + "encrypted: true\n", net + "? encrypted\n    : false\n",
		net + "\"\\x65ncrypted\": false\n", net + "encrypted: &x false\n", net + "encrypted: !!bool \"false\"\n", net + "encrypted:\n      false\n",
		net + "encrypted: |\n      false\n", net + "<<: {encrypted: false}\n", `{"networks":[{"name":"a","subnets":["10.0.0.0/8"],"encrypted":false}]}`,
		"%YAML 1.1\n---\n" + net + "encrypted: off\n", "a: &a [*a]\n", "\xef\xbb\xbflog:\n", net + "encrypted: false\u2028", "- \n\t- x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkLoaded(t, data) })
}

// Random spellings of the key and the value of `encrypted`.
func TestEncryptedSpellings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SampledFrom([]string{
			"encrypted", "Encrypted", "ENCRYPTED", `"encrypted"`, "'encrypted'", `"encrypt\x65d"`, "encrypt", "? encrypted\n    ", "!!str encrypted", "&k encrypted", "encryption",
		}).Draw(t, "key")
		sep := rapid.SampledFrom([]string{":", ": ", ":  ", ":\t", ":\n      ", " : ", ": # x\n      "}).Draw(t, "separator")
		val := rapid.SampledFrom([]string{
			"true", "false", "False", "FALSE", "no", "off", "n", "0", "0.0", `"false"`, "'false'", "!!bool false", "!!bool no", "!!str false", "&v false",
			"null", "~", "", "[]", "[false]", "{}", "|\n      false", ">\n      false", "*x", "none", "plaintext", "yes please", "false false", "falsey",
		}).Draw(t, "value")
		tail := rapid.SampledFrom([]string{"\n", " \n", " # comment\n", "", "\r\n"}).Draw(t, "tail")
		text := "networks:\n  - name: a\n    subnets: [10.0.0.0/8]\n    " + key + sep + val + tail
		checkLoaded(t, []byte(text))
		if cfg, err := parse(Source{Path: "c.yaml"}, []byte(text), nil); err == nil && val != "true" && val != "false" {
			t.Fatalf("value %q was accepted: %+v", val, cfg.Networks)
		}
	})
}

// No environment variable and no flag can turn encryption off.
func TestNothingElseSetsEncrypted(t *testing.T) {
	for _, l := range leaves() {
		if strings.Contains(l.path, "encrypt") || strings.Contains(l.path, "network") {
			t.Errorf("%s can be set from outside the file", l.path)
		}
	}
	for _, name := range []string{"SECURE_OVERLAY_NETWORKS", "SECURE_OVERLAY_ENCRYPTED", "SECURE_OVERLAY_NETWORKS_0_ENCRYPTED"} {
		if _, err := Load(Source{Env: []string{name + "=false"}}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
