package keystore

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Names of the files in a data directory.
const (
	nodeKeyName    = "node.key"    // Ed25519 identity
	noiseKeyName   = "noise.key"   // X25519 Noise static key
	accessKeyName  = "access.key"  // cluster access key
	issuerKeyName  = "issuer.key"  // Ed25519; on issuers only
	issuerNewName  = "issuer.new"  // an issuer key that waits for its delegation
	rootKeyName    = "root.key"    // where Init puts the root key if not told otherwise
	nodeCertName   = "node.cert"   // trust and credential; its presence makes the node a member
	issuerCertName = "issuer.cert" // delegation of issuer.key
	stateName      = "state.json"
	tokensName     = "tokens.json"
	logName        = "issued.log"
	itemsName      = "items.json"
	formerName     = "access.json" // former access keys
	timeName       = "time.json"   // trusted time
	promisesName   = "promises.json"

	prevSuffix = ".prev"
)

// First words of the lines in key and certificate files. They keep a file
// that was copied to the wrong name from being read as another key.
const (
	nodeKeyTag    = "so-node-key:"
	noiseKeyTag   = "so-noise-key:"
	accessKeyTag  = "so-access-key:"
	issuerKeyTag  = "so-issuer-key:"
	rootKeyTag    = "so-root-key:"
	clusterTag    = "so-cluster:"
	delegationTag = "so-delegation:"
	nodeCertTag   = "so-node-cert:"

	sealedRootTag    = "so-root-key-sealed:"
	issuerRequestTag = "so-issuer-request:" // in texts between operators
)

// exposer is what all private key types have in common.
type exposer interface {
	Expose(func(raw []byte))
}

// keyLine gives a key file's content: tag, 64 hexadecimal digits, newline.
// The caller clears it.
func keyLine(tag string, k exposer) []byte {
	b := make([]byte, 0, len(tag)+65)
	b = append(b, tag...)
	k.Expose(func(raw []byte) { b = hex.AppendEncode(b, raw) })
	return append(b, '\n')
}

// createKey writes a key file that must not exist.
func (d *dir) createKey(name, tag string, k exposer) error {
	line := keyLine(tag, k)
	defer clear(line)
	return d.create(name, line)
}

// readKey reads a key file through one of keys' FromRaw32 functions.
func readKey[K any](d *dir, name, tag string, from func([]byte) (K, error)) (K, error) {
	var none K
	b, err := d.read(name)
	if err != nil {
		return none, err
	}
	defer clear(b)
	raw, err := parseKeyLine(tag, b)
	if err != nil {
		return none, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	defer clear(raw)
	k, err := from(raw)
	if err != nil {
		return none, fmt.Errorf("%s: %w: %w", d.file(name), err, ErrCorrupt)
	}
	return k, nil
}

// parseKeyLine never repeats what it read.
func parseKeyLine(tag string, b []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(b, []byte(tag))
	if !ok {
		return nil, fmt.Errorf("does not begin with %s: %w", tag, ErrCorrupt)
	}
	text, ok = bytes.CutSuffix(text, []byte("\n"))
	raw := make([]byte, hex.DecodedLen(len(text)))
	_, err := hex.Decode(raw, text)
	again := hex.AppendEncode(make([]byte, 0, len(text)+1), raw)
	defer clear(again)
	if !ok || err != nil || len(raw) != 32 || !bytes.Equal(again, text) {
		clear(raw)
		return nil, fmt.Errorf("want 64 hexadecimal digits in lower case and a newline after %s: %w", tag, ErrCorrupt)
	}
	return raw, nil
}

// membership is the content of node.cert. Trust and credential are in one
// file so that joining is one atomic step.
type membership struct {
	trust      keys.Trust
	credential keys.Credential
}

func (m membership) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s\n%s\n", clusterTag, m.trust.Cluster, m.trust.Root)
	b.Write(objectLine(delegationTag, m.credential.Delegation))
	b.Write(objectLine(nodeCertTag, m.credential.Cert))
	return b.Bytes()
}

func parseMembership(b []byte) (membership, error) {
	var m membership
	lines := bytes.Split(b, []byte("\n"))
	if len(lines) != 5 || len(lines[4]) != 0 {
		return m, fmt.Errorf("want 4 lines, have %d: %w", len(lines)-1, ErrCorrupt)
	}
	cluster, ok := bytes.CutPrefix(lines[0], []byte(clusterTag))
	if !ok {
		return m, fmt.Errorf("line 1: want %s: %w", clusterTag, ErrCorrupt)
	}
	for i, f := range []struct {
		text []byte
		into encoding.TextUnmarshaler
	}{{cluster, (*ids.ClusterID)(&m.trust.Cluster)}, {lines[1], &m.trust.Root}} {
		if err := f.into.UnmarshalText(f.text); err != nil {
			return m, fmt.Errorf("line %d: %w: %w", i+1, err, ErrCorrupt)
		}
	}
	var err error
	if m.credential.Delegation, err = parseObjectLine(delegationTag, lines[2]); err != nil {
		return m, fmt.Errorf("line 3: %w", err)
	}
	if m.credential.Cert, err = parseObjectLine(nodeCertTag, lines[3]); err != nil {
		return m, fmt.Errorf("line 4: %w", err)
	}
	// One membership has one spelling.
	if !bytes.Equal(m.encode(), b) {
		return m, fmt.Errorf("not in canonical form: %w", ErrCorrupt)
	}
	return m, nil
}

// objectLine gives tag, base64 and a newline.
func objectLine(tag string, raw []byte) []byte { return []byte(tag + encodeObject(raw) + "\n") }

func encodeObject(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

// parseObjectLine reads tag and base64 without newline.
func parseObjectLine(tag string, line []byte) ([]byte, error) {
	text, ok := bytes.CutPrefix(line, []byte(tag))
	if !ok {
		return nil, fmt.Errorf("want %s: %w", tag, ErrCorrupt)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s is not base64: %w", tag, ErrCorrupt)
	}
	return raw, nil
}
