package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// What only the root key decides takes three steps, the second of them where nothing but the root key is:
// a request, the signature, and the use of what was signed. With --root-key FILE a command does all three.

// rootRequest is the request for programs.
type rootRequest struct {
	Schema  int          `json:"schema"`
	Changes []rootChange `json:"changes"`
	Request string       `json:"request"`
	// Members have certificates of the issuer that is to be revoked.
	Members []api.NodeRef `json:"members,omitempty"`
}

// rootSigned is what issuer sign prints for programs about everything but a delegation.
type rootSigned struct {
	Schema  int          `json:"schema"`
	Cluster string       `json:"cluster"`
	Changes []rootChange `json:"changes"`
	Signed  string       `json:"signed"`
}

// rootChange is one thing that the root key says: one of the three.
type rootChange struct {
	Created time.Time      `json:"created"`
	Issuer  *revokedIssuer `json:"issuer_revocation,omitempty"`
	Floor   uint8          `json:"protocol_floor,omitempty"`
	Network *rootNetwork   `json:"network,omitempty"`
}

type revokedIssuer struct {
	Key    string `json:"key"`
	Reason string `json:"reason,omitempty"`
	Undo   bool   `json:"undo"`
}

type rootNetwork struct {
	Name      string   `json:"name"`
	VNI       ids.VNI  `json:"vni"`
	Subnets   []string `json:"subnets"`
	Encrypted bool     `json:"encrypted"`
	Moving    bool     `json:"moving"` // both forms, until the next change
	Removed   bool     `json:"removed,omitempty"`
}

// changeOf says what an item is. Whoever asks for a signature may be anybody: this is what its text and the signer
// of it go by, and not what the request says of itself.
func changeOf(it *item.Item) (rootChange, error) {
	c := rootChange{Created: it.Created}
	if r, ok := it.IssuerRevocation(); ok {
		c.Issuer = &revokedIssuer{Key: r.Issuer.String(), Reason: r.Reason, Undo: r.Undo}
		return c, nil
	}
	if f, ok := it.Floor(); ok {
		c.Floor = f.Min
		return c, nil
	}
	n, ok := it.Network()
	if !ok {
		return c, fmt.Errorf("%w: it is about a %s", item.ErrMalformed, it.Slot.Kind)
	}
	c.Network = &rootNetwork{Name: n.Name, VNI: n.VNI, Encrypted: n.Encrypted, Moving: n.Moving, Removed: n.Removed}
	for _, p := range n.Subnets {
		c.Network.Subnets = append(c.Network.Subnets, p.String())
	}
	return c, nil
}

// String says it to people.
func (c rootChange) String() string {
	switch {
	case c.Issuer != nil:
		undo := ""
		if c.Issuer.Undo {
			undo = "; nodes that it has revoked come back"
		}
		return "issuer " + c.Issuer.Key + " is revoked" + undo
	case c.Network == nil:
		return fmt.Sprintf("nodes may speak protocol version %d", c.Floor)
	}
	n := c.Network
	form := formWord(n.Encrypted)
	switch {
	case n.Removed:
		form = "removed"
	case n.Moving:
		form = "both encrypted and PLAINTEXT, on its way to " + form
	}
	return fmt.Sprintf("network %s (VNI %d, %s) is %s", cli.Clean(n.Name), n.VNI, strings.Join(n.Subnets, ", "), form)
}

// sayChanges tells what is asked for, or signed.
func (a *app) sayChanges(changes []rootChange) {
	for _, c := range changes {
		a.say("  %s", c)
	}
}

// parseRootRequest reads what the holder of the root key is asked to sign: of one cluster and one root key.
func parseRootRequest(text string) ([][]byte, rootSigned, error) {
	drafts, err := item.ParseLine(item.RootRequestTag, text)
	out := rootSigned{Schema: api.Schema}
	var first keys.Trust
	for i := range drafts {
		var trust keys.Trust
		var it *item.Item
		if trust, it, err = item.ParseUnsigned(drafts[i]); err != nil {
			break
		}
		if i > 0 && trust != first {
			err = fmt.Errorf("%w: it is about two clusters", item.ErrMalformed)
			break
		}
		first, out.Cluster = trust, trust.Cluster.String()
		var c rootChange
		if c, err = changeOf(it); err != nil {
			break
		}
		out.Changes = append(out.Changes, c)
	}
	if err != nil {
		return nil, out, &usageError{msg: "this is no request: " + err.Error(), fix: "copy the whole line that the command printed"}
	}
	return drafts, out, nil
}

// signRoot signs a request.
func signRoot(root keys.RootPrivate, request string) (rootSigned, error) {
	drafts, out, err := parseRootRequest(request)
	if err != nil {
		return out, err
	}
	var items [][]byte
	for _, d := range drafts {
		raw, err := item.SignUnsigned(root, d)
		if err != nil {
			return out, err
		}
		items = append(items, raw)
	}
	out.Signed = item.Line(item.RootSignedTag, items...)
	return out, nil
}

// signRootFile signs with the key in a file, and prints what came of it.
func (a *app) signRootFile(rootFile, request string, format cli.Format) error {
	if rootFile == "" {
		return errNoRootKey()
	}
	_, asked, err := parseRootRequest(request)
	if err != nil {
		return err
	}
	if format == cli.FormatTable {
		// Before anybody types a passphrase: what the request says, in words of this program.
		a.say("to be signed for cluster %s:", asked.Cluster)
		a.sayChanges(asked.Changes)
	}
	root, err := keystore.ReadRootKey(rootFile, a.rootPassphrase)
	if err != nil {
		return err
	}
	defer root.Wipe()
	out, err := signRoot(root, request)
	if err != nil {
		return err
	}
	return a.show(format, out, nil, func() error {
		a.print("%s", out.Signed)
		a.say("signed; on any node run:\n  %s --signed SIGNED", out.Changes[0].command())
		return nil
	})
}

// command is what uses a signature.
func (c rootChange) command() string {
	switch {
	case c.Issuer != nil:
		return "secure-overlay issuer revoke"
	case c.Network != nil:
		return "secure-overlay network update " + cli.Clean(c.Network.Name)
	}
	return "secure-overlay protocol floor"
}

// askRoot prints a request, and where it goes.
func (a *app) askRoot(request string, members []api.NodeRef, format cli.Format) error {
	_, asked, err := parseRootRequest(request)
	if err != nil {
		return err
	}
	out := rootRequest{Schema: api.Schema, Changes: asked.Changes, Request: request, Members: members}
	return a.show(format, out, nil, func() error {
		a.print("%s", out.Request)
		a.say("it asks for:")
		a.sayChanges(out.Changes)
		a.say("where the root key is, run:\n  secure-overlay issuer sign --root-key FILE REQUEST\nand then on any node:\n  %s --signed SIGNED", out.Changes[0].command())
		return nil
	})
}

// readRoot reads the root key if it is at hand. Nil: it is not.
func (a *app) readRoot(file string) (*keys.RootPrivate, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // no key and no error are what it means
	}
	key, err := keystore.ReadRootKey(file, a.rootPassphrase)
	if err != nil {
		return nil, err
	}
	return &key, nil
}

// rootItems reads what issuer sign has printed.
func rootItems(text string) ([]*item.Item, error) {
	raws, err := item.ParseLine(item.RootSignedTag, text)
	var items []*item.Item
	for _, raw := range raws {
		var it *item.Item
		if it, err = item.Parse(raw); err != nil {
			break
		}
		items = append(items, it)
	}
	if err != nil {
		return nil, &usageError{msg: "this is nothing signed: " + err.Error(), fix: "copy the whole line that secure-overlay issuer sign printed"}
	}
	return items, nil
}

// trustOf asks the agent for what a request names.
func trustOf(ctx context.Context, c *api.Client) (keys.Trust, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return keys.Trust{}, err
	}
	t := keys.Trust{Cluster: st.Cluster}
	if err := t.Root.UnmarshalText([]byte(st.Root)); err != nil {
		return t, fail(api.CodeFailed, "restart the agent with this program's version", "the agent does not say which root key its cluster has: %v", err)
	}
	return t, nil
}
