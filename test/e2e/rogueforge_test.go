package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// farAhead is by how much the rogue's numbers are above the true ones.
const farAhead = 1000

// claimAll makes the rogue's own record say that all endpoints are its own, and
// all blocks of addresses. It may: records say what their owners claim.
func (r *rogue) claimAll(own *record.Node) {
	networks := map[ids.VNI]bool{}
	for i := range own.Networks {
		networks[own.Networks[i].VNI] = true
	}
	for _, t := range r.targets {
		n, err := record.Parse(r.entries[t.ID].Record)
		if err != nil {
			continue
		}
		for _, a := range n.Attached {
			if networks[a.VNI] {
				own.Attached = append(own.Attached, a)
			}
		}
		for _, nw := range n.Networks {
			for i := range own.Networks {
				if own.Networks[i].VNI == nw.VNI {
					own.Networks[i].Blocks = append(own.Networks[i].Blocks, nw.Blocks...)
				}
			}
		}
	}
}

// forgedEntries are records about victim that its owner did not make.
func (r *rogue) forgedEntries(victim record.Entry) (map[string]record.Entry, error) {
	truth, err := record.Parse(victim.Record)
	if err != nil {
		return nil, err
	}
	self, err := record.Parse(r.entries[r.id.ID].Record)
	if err != nil {
		return nil, err
	}
	other, err := r.ownCertificate(victim)
	if err != nil {
		return nil, err
	}
	altered := bytes.Clone(victim.Record)
	altered[len(record.Domain)+16] ^= 0x80 // the sequence number
	out := map[string]record.Entry{
		"own certificate, the victim's record":       {Credential: r.id.Credential, Record: victim.Record},
		"altered sequence":                           {Credential: victim.Credential, Record: altered},
		"no record":                                  {Credential: victim.Credential},
		"no certificate":                             {Record: victim.Record},
		"certificate by nobody, the victim's record": {Credential: other, Record: victim.Record},
	}
	for what, change := range map[string]func(*record.Node){
		"no endpoints":     func(n *record.Node) { n.Attached = nil },
		"the rogue's VTEP": func(n *record.Node) { n.Underlay = self.Underlay },
		"another tunnel key": func(n *record.Node) {
			for i := range n.Tunnels {
				n.Tunnels[i].Public[0] ^= 1
			}
		},
		"no networks": func(n *record.Node) { n.Attached, n.Networks = nil, nil },
	} {
		n := truth
		n.Tunnels = append([]record.Tunnel(nil), n.Tunnels...)
		n.Seq += farAhead
		change(&n)
		body := record.Encode(n)
		own := r.id.Node.Sign(record.Domain, body[len(record.Domain):])
		theirs := victim.Record[len(victim.Record)-keys.SignatureSize:]
		out[what+", own signature, the victim's certificate"] = record.Entry{Credential: victim.Credential, Record: append(bytes.Clone(body), own[:]...)}
		out[what+", own signature and certificate"] = record.Entry{Credential: r.id.Credential, Record: append(bytes.Clone(body), own[:]...)}
		out[what+", own signature, certificate by nobody"] = record.Entry{Credential: other, Record: append(bytes.Clone(body), own[:]...)}
		out[what+", the victim's signature of before"] = record.Entry{Credential: victim.Credential, Record: append(bytes.Clone(body), theirs...)}
	}
	return out, nil
}

// ownCertificate is one of the victim's name for the rogue's keys, by an issuer
// that a root of the rogue's delegated.
func (r *rogue) ownCertificate(victim record.Entry) (keys.Credential, error) {
	cert, err := keys.ParseCert(victim.Credential.Cert)
	if err != nil {
		return keys.Credential{}, err
	}
	cert.Identity, cert.Inner, cert.Issuer = r.id.Node.Public(), r.id.ID.InnerAddr(), r.issuer.Public()
	return keys.Credential{Delegation: r.ownDelegation(), Cert: keys.SignCert(r.issuer, cert)}, nil
}

func (r *rogue) ownDelegation() []byte {
	now := time.Now().Truncate(time.Second)
	return keys.SignDelegation(r.root, keys.Delegation{
		Cluster: r.id.Trust.Cluster, Issuer: r.issuer.Public(), MaxLifetime: 90 * 24 * time.Hour,
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
	})
}

// forgeRecords hands over records of all others: as pushes to each of them, by
// hints that lead to the rogue, and from then on to whoever asks it.
func (r *rogue) forgeRecords(ctx context.Context) (rogueAnswer, error) {
	var a rogueAnswer
	var lies []record.Entry
	for _, victim := range r.targets {
		forged, err := r.forgedEntries(r.entries[victim.ID])
		if err != nil {
			return a, err
		}
		for name, e := range forged {
			lies = append(lies, e)
			for _, t := range r.targets {
				a.Tried++
				ok, err := r.taken(ctx, t.ID, withEntries(message(askPush), e))
				if err != nil {
					return a, fmt.Errorf("%s: %w", name, err)
				}
				if ok {
					a.Accepted = append(a.Accepted, fmt.Sprintf("%s of %s by %s", name, victim.ID, t.ID))
				}
			}
		}
	}
	r.mu.Lock()
	r.lies.entries = lies
	r.mu.Unlock()
	for _, victim := range r.targets {
		for _, t := range r.targets {
			// Node, number, hash of the record, who has it (12.1).
			hint := append([]byte{membertest.User, 1}, victim.ID[:]...)
			hint = binary.BigEndian.AppendUint64(hint, 1<<40)
			hint = append(append(hint, make([]byte, 32)...), r.id.ID[:]...)
			if err := r.packet(t.ID, hint); err != nil {
				return a, err
			}
		}
	}
	return a, nil
}

// forger signs items with a key that nobody delegated, and keeps what it signed.
type forger struct {
	delegation []byte
	key        keys.IssuerPrivate
	out        []byte
}

func (f *forger) Delegation() []byte { return f.delegation }

func (f *forger) SignItem(now time.Time, _ string, _ uint64, unsigned []byte) ([]byte, error) {
	return f.SignHeartbeat(now, unsigned)
}

func (f *forger) SignHeartbeat(_ time.Time, unsigned []byte) ([]byte, error) {
	sig := f.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	f.out = append(bytes.Clone(unsigned), sig[:]...)
	return f.out, nil
}

// wish is something that the rogue would like the cluster to say. The last step of
// each issuer's signature is to verify it, which must fail.
type wish struct {
	what   string
	issuer func(s item.Signer) error // nil: only the root could say it
	root   func() ([]byte, error)    // nil: the root does not say it
}

func (r *rogue) wishes() []wish {
	now, trust, cluster := time.Now().Truncate(time.Second), r.id.Trust, r.id.Trust.Cluster
	byRoot := func(c item.Content, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return item.SignRoot(cluster, r.root, c)
	}
	var none item.Set
	plain := item.Network{
		Network: record.Network{Name: "blue", VNI: ids.DeriveVNI("blue"), Subnets: prefixes("10.77.0.0/16"), VTEPPort: vxlanPort},
		Driver:  item.DriverAuto, Created: now,
	}
	out := []wish{
		{"access key", func(s item.Signer) error {
			_, err := item.SignAccess(now, trust, s, item.Access{Version: farAhead, Created: now})
			return err
		}, func() ([]byte, error) {
			return byRoot(item.Content{Slot: item.AccessSlot(), Version: farAhead, Created: now, Body: make([]byte, 32)}, nil)
		}},
		{"revocation of the issuer", nil, func() ([]byte, error) {
			return byRoot(item.IssuerRevocation{Issuer: r.id.Cert.Issuer, Undo: true, Created: now}.Content())
		}},
		{"protocol floor", func(s item.Signer) error {
			_, err := none.SignFloor(now, trust, s, 2)
			return err
		}, func() ([]byte, error) { return byRoot(item.FloorContent(item.FirstFloor(), 1, now)) }},
		{"network without encryption", func(s item.Signer) error {
			_, err := none.SignNetwork(now, trust, s, plain)
			return err
		}, nil},
		{"heartbeat", func(s item.Signer) error {
			// Above the issuer's true ones, which nobody would look at further.
			_, err := item.SignHeartbeat(now, trust, s, uint64(now.Unix())+farAhead, [32]byte{1})
			return err
		}, nil},
	}
	for name, epoch := range map[string]ids.Epoch{"next epoch": r.target() + 1, "far epoch": r.target() + farAhead} {
		target := item.Target{Epoch: epoch, Driver: item.DriverAuto, Reason: item.ReasonManual, Created: now}
		out = append(out, wish{name, func(s item.Signer) error {
			_, err := item.SignTarget(now, trust, s, target)
			return err
		}, func() ([]byte, error) { return byRoot(target.Content()) }})
	}
	for _, t := range r.targets {
		gone := item.Revocation{Node: t.ID, Created: now}
		out = append(out, wish{"revocation of " + t.ID.String(), func(s item.Signer) error {
			_, err := item.SignRevocation(now, trust, s, gone)
			return err
		}, func() ([]byte, error) { return byRoot(gone.Content(r.root.Public())) }})
	}
	return out
}

// target is the cluster's target epoch, as the items that look found say.
func (r *rogue) target() ids.Epoch {
	for _, raw := range r.items {
		if it, err := item.Parse(raw); err == nil {
			if t, ok := it.Target(); ok {
				return t.Epoch
			}
		}
	}
	return item.FirstTarget().Epoch
}

// forgedItems are cluster items that nobody entitled signed.
func (r *rogue) forgedItems() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, w := range r.wishes() {
		for by, delegation := range map[string][]byte{
			"a true delegation": r.id.Credential.Delegation, "a delegation by nobody": r.ownDelegation(),
		} {
			if w.issuer == nil {
				continue
			}
			f := forger{delegation: delegation, key: r.issuer}
			if err := w.issuer(&f); err == nil || f.out == nil {
				return nil, fmt.Errorf("forge %s: signed %d bytes, %v", w.what, len(f.out), err)
			}
			out[w.what+", "+by] = f.out
		}
		if w.root == nil {
			continue
		}
		var err error
		if out[w.what+", a root of its own"], err = w.root(); err != nil {
			return nil, err
		}
	}
	for i, raw := range r.items {
		for at := 0; at < len(raw); at += 7 {
			b := bytes.Clone(raw)
			b[at] ^= 1
			out[fmt.Sprintf("item %d with byte %d altered", i, at)] = b
		}
	}
	return out, nil
}

// forgeItems hands over cluster items to each of the others, in gossip, and to
// whoever asks.
func (r *rogue) forgeItems(ctx context.Context) (rogueAnswer, error) {
	var a rogueAnswer
	forged, err := r.forgedItems()
	if err != nil {
		return a, err
	}
	var lies [][]byte
	for name, raw := range forged {
		lies = append(lies, raw)
		for _, t := range r.targets {
			a.Tried++
			ok, err := r.taken(ctx, t.ID, withItems(message(askGive), raw))
			if err != nil {
				return a, fmt.Errorf("%s: %w", name, err)
			}
			if ok {
				a.Accepted = append(a.Accepted, fmt.Sprintf("%s by %s", name, t.ID))
			}
			for _, form := range []byte{2, 3} { // item, heartbeat
				if err := r.packet(t.ID, append([]byte{membertest.User, form}, raw...)); err != nil {
					return a, err
				}
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lies.items = lies
	return a, nil
}

// forgeEpochs asks for epochs that it may not have: it names targets that there
// are not, with forged items and without.
func (r *rogue) forgeEpochs(ctx context.Context) (rogueAnswer, error) {
	var a rogueAnswer
	forged, err := r.forgedItems()
	if err != nil {
		return a, err
	}
	items := [][]byte{nil, forged["next epoch, a true delegation"], forged["far epoch, a true delegation"], forged["far epoch, a root of its own"]}
	for _, after := range []ids.Epoch{r.target() + 1, r.target() + farAhead, 1<<32 - 1} {
		for _, raw := range items {
			req := binary.BigEndian.AppendUint32([]byte{askRotate, 1}, uint32(after))
			req = append(req, 0, 1) // any driver, on command
			req = append(binary.BigEndian.AppendUint16(req, uint16(len(raw))), raw...)
			for _, t := range r.targets {
				a.Tried++
				b, err := r.ask(ctx, t.ID, req)
				// A refusal is an error or a code above 0.
				if err == nil && len(b) > 2 && b[2] == 0 {
					a.Accepted = append(a.Accepted, fmt.Sprintf("an epoch after %d by %s", after, t.ID))
				}
			}
		}
	}
	return a, nil
}

// packet sends one memberlist message.
func (r *rogue) packet(to ids.NodeID, b []byte) error {
	_, err := r.WriteTo(b, virtual(to))
	return err
}

// virtual is the address by which gossip knows a node.
func virtual(id ids.NodeID) string {
	return netip.AddrPortFrom(id.InnerAddr(), noisenet.VirtualPort).String()
}
