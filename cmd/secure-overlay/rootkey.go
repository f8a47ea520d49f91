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

// changeOf says what an item is. Whoever asks for a signature may be anybody: this, read from the very bytes that are
// signed, is what the signer goes by, and a request says nothing else of itself.
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

// asked is a request, read: of one cluster and one root key.
type asked struct {
	drafts  [][]byte
	cluster string
	changes []rootChange
}

// parseRootRequest reads what the holder of the root key is asked to sign.
func parseRootRequest(text string) (asked, error) {
	out, err := readRootRequest(text)
	if err != nil {
		return asked{}, &usageError{msg: "this is no request: " + err.Error(), fix: "copy the whole line that the command printed"}
	}
	return out, nil
}

func readRootRequest(text string) (out asked, err error) {
	if out.drafts, err = item.ParseLine(item.RootRequestTag, text); err != nil {
		return out, err
	}
	var first keys.Trust
	for i, draft := range out.drafts {
		trust, it, err := item.ParseUnsigned(draft)
		if err != nil {
			return out, err
		}
		if i > 0 && trust != first {
			return out, fmt.Errorf("%w: it is about two clusters", item.ErrMalformed)
		}
		c, err := changeOf(it)
		if err != nil {
			return out, err
		}
		first, out.cluster, out.changes = trust, trust.Cluster.String(), append(out.changes, c)
	}
	return out, nil
}

// say tells people what is asked for.
func (r asked) say(a *app) {
	a.say("it asks of cluster %s:", r.cluster)
	for _, c := range r.changes {
		a.say("  %s", c)
	}
}

func (r asked) sign(root keys.RootPrivate) (rootSigned, error) {
	var items [][]byte
	for _, draft := range r.drafts {
		raw, err := item.SignUnsigned(root, draft)
		if err != nil {
			return rootSigned{}, err
		}
		items = append(items, raw)
	}
	return rootSigned{Schema: api.Schema, Cluster: r.cluster, Changes: r.changes, Signed: item.Line(item.RootSignedTag, items...)}, nil
}

// signRootFile signs a request with the key in a file, and prints what came of it.
func (a *app) signRootFile(rootFile, request string, format cli.Format) error {
	if rootFile == "" {
		return errNoRootKey()
	}
	r, err := parseRootRequest(request)
	if err != nil {
		return err
	}
	if format == cli.FormatTable {
		r.say(a) // before anybody types a passphrase
	}
	root, err := keystore.ReadRootKey(rootFile, a.rootPassphrase)
	if err != nil {
		return err
	}
	defer root.Wipe()
	out, err := r.sign(root)
	if err != nil {
		return err
	}
	return a.show(format, out, nil, func() error {
		a.print("%s", out.Signed)
		a.say("signed; on any node run:\n  %s --signed SIGNED", r.changes[0].command())
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

// rootSays returns what the root key has signed of a request: draft makes it, which changes nothing; empty if there is
// nothing to say. If the key's file is at hand it signs here, and the agent never sees it. If not, the
// request is printed, and printed is true.
func (a *app) rootSays(rootFile string, format cli.Format, draft func() (rootRequest, error)) (signed string, printed bool, err error) {
	out, err := draft()
	if err != nil || out.Request == "" {
		return "", false, err
	}
	r, err := parseRootRequest(out.Request)
	if err != nil {
		return "", false, err
	}
	if rootFile != "" {
		root, err := keystore.ReadRootKey(rootFile, a.rootPassphrase)
		if err != nil {
			return "", false, err
		}
		defer root.Wipe()
		s, err := r.sign(root)
		return s.Signed, false, err
	}
	out.Schema, out.Changes = api.Schema, r.changes
	return "", true, a.show(format, out, nil, func() error {
		a.print("%s", out.Request)
		r.say(a)
		a.say("where the root key is, run:\n  secure-overlay issuer sign --root-key FILE REQUEST\nand then on any node:\n  %s --signed SIGNED", r.changes[0].command())
		return nil
	})
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
