package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// drawer draws sequence numbers and checks that each is new and larger.
type drawer struct{ last uint64 }

func (d *drawer) draw(t *testing.T, s *Store, n int) {
	t.Helper()
	for range n {
		seq, err := s.NextSeq()
		if err != nil {
			t.Fatal(err)
		}
		if seq <= d.last {
			t.Fatalf("sequence number %d after %d", seq, d.last)
		}
		d.last = seq
	}
}

func TestNextSeqNeverRepeats(t *testing.T) {
	s, dir := founded(t)
	var d drawer
	if seq, err := s.NextSeq(); err != nil || seq != 1 {
		t.Errorf("first number: %d, %v, want 1", seq, err)
	}
	for _, n := range []int{1, 998, 1, 1, 2500, 0} {
		d.draw(t, s, n)
		s = reopen(t, s)
	}
	d.draw(t, s, 1)
	// A crash: the directory as it is while the store is open.
	crashed := restore(t, contents(t, dir))
	d.draw(t, crashed, 1500)
	d.draw(t, restore(t, contents(t, crashed.Dir())), 10)
}

func TestNextSeqAfterDamage(t *testing.T) {
	for name, damage := range map[string]func(files map[string]string){
		"truncated":       func(f map[string]string) { f[stateName] = f[stateName][:len(f[stateName])/2] },
		"empty":           func(f map[string]string) { f[stateName] = "" },
		"missing":         func(f map[string]string) { delete(f, stateName) },
		"number changed":  func(f map[string]string) { f[stateName] = strings.Replace(f[stateName], "3000", "1000", 1) },
		"garbage":         func(f map[string]string) { f[stateName] = "\x00\x00\x00" },
		"copy is damaged": func(f map[string]string) { f[stateName+prevSuffix] = "x" },
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := founded(t)
			var d drawer
			d.draw(t, s, 2500)
			for round := range 3 {
				files := contents(t, dir)
				damage(files)
				s = restore(t, files)
				dir = s.Dir()
				warned := len(s.Warnings()) == 1 && strings.Contains(s.Warnings()[0], stateName)
				if want := name != "copy is damaged" && (round == 0 || name != "number changed"); warned != want {
					t.Errorf("round %d: warnings %q", round, s.Warnings())
				}
				d.draw(t, s, 1500)
			}
		})
	}
}

func TestStateLost(t *testing.T) {
	s, dir := founded(t)
	closeStore(t, s)
	files := contents(t, dir)
	open := func(change func(f map[string]string)) error {
		f := map[string]string{}
		for k, v := range files {
			f[k] = v
		}
		change(f)
		dir := filepath.Join(t.TempDir(), "d")
		writeAll(t, dir, f)
		s, err := Open(dir)
		if err == nil {
			closeStore(t, s)
		}
		return err
	}
	if err := open(func(f map[string]string) { delete(f, stateName); delete(f, stateName+prevSuffix) }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both copies missing: %v, want ErrCorrupt", err)
	}
	if err := open(func(f map[string]string) { f[stateName] = "x"; f[stateName+prevSuffix] = "y" }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both copies damaged: %v, want ErrCorrupt", err)
	}
	newer := fmt.Sprintf(`{"version":2,"sha256":%q,"body":{"future":1}}`, envelopeSum(2, []byte(`{"future":1}`)))
	if err := open(func(f map[string]string) { f[stateName] = newer }); !errors.Is(err, ErrNewerVersion) {
		t.Errorf("newer version: %v, want ErrNewerVersion, not the older copy", err)
	}
	for name, content := range map[string]string{
		nodeKeyName: "so-node-key:00", noiseKeyName: files[nodeKeyName], accessKeyName: "", nodeCertName: "so-cluster:\n",
		issuerKeyName: files[noiseKeyName], issuerCertName: "so-delegation:AAAA\n",
	} {
		if err := open(func(f map[string]string) { f[name] = content }); !errors.Is(err, ErrCorrupt) {
			t.Errorf("damaged %s: %v, want ErrCorrupt", name, err)
		}
	}
	for _, name := range []string{nodeKeyName, nodeCertName} {
		err := open(func(f map[string]string) { delete(f, name) })
		if name == nodeKeyName && !errors.Is(err, ErrNotInitialised) || name == nodeCertName && !errors.Is(err, ErrExists) {
			t.Errorf("missing %s: %v", name, err)
		}
	}
	if err := open(func(f map[string]string) { delete(f, noiseKeyName) }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing Noise key: %v, want ErrNotExist", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("missing directory: %v, want ErrNotInitialised", err)
	}
}

// TestOtherNodesKeysAreRefused: keys and certificate of two nodes in one
// directory would only fail later, at a peer.
func TestOtherNodesKeysAreRefused(t *testing.T) {
	a, _ := founded(t)
	b, _ := founded(t)
	for _, name := range []string{nodeKeyName, noiseKeyName, issuerKeyName, issuerCertName, nodeCertName} {
		files := contents(t, a.Dir())
		files[name] = contents(t, b.Dir())[name]
		dir := filepath.Join(t.TempDir(), "d")
		writeAll(t, dir, files)
		if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s of another node: %v, want ErrCorrupt", name, err)
		}
	}
}

func TestEveryCutAndFlipIsSeen(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	tok := newToken(t, i, time.Now())
	if _, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, newJoiner(t).request("a")); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, name := range []string{stateName, tokensName} {
		good, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(good) - 1 { // without its last newline the file is whole
			tried++
			var l ledger
			var st state
			if e1, e2 := unseal(good[:n], &l), unseal(good[:n], &st); e1 == nil || e2 == nil {
				t.Fatalf("%s cut to %d bytes is accepted", name, n)
			}
		}
		for bit := range len(good) * 8 {
			changed := slices.Clone(good)
			changed[bit/8] ^= 1 << (bit % 8)
			tried++
			var l ledger
			if err := unseal(changed, &l); err == nil && !strings.EqualFold(string(changed), string(good)) {
				t.Fatalf("%s with bit %d flipped is accepted", name, bit)
			} else if errors.Is(err, ErrNewerVersion) {
				t.Fatalf("%s with bit %d flipped passes for a newer version", name, bit)
			}
		}
	}
	t.Logf("%d damaged files refused", tried)
}

func TestTokenListDamaged(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	before := newToken(t, i, now)
	used := newToken(t, i, now)
	a, err := i.Issue(now, netip.Addr{}, used.ID, newJoiner(t).request("a"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := used.Trust().VerifyMember(a.Credential, now)
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, dir)
	files[tokensName] = files[tokensName][:100]
	r := restore(t, files)
	if w := r.Warnings(); len(w) != 1 || !strings.Contains(w[0], "revoked") {
		t.Errorf("warnings %q", w)
	}
	ri := issuerOf(t, r)
	// The copy is from before the use: it must not make the token good again.
	if _, err := ri.Issue(now, netip.Addr{}, used.ID, newJoiner(t).request("b")); !errors.Is(err, ErrTokenRevoked) {
		t.Errorf("used token after recovery: %v, want ErrTokenRevoked", err)
	}
	if _, err := ri.Issue(now, netip.Addr{}, before.ID, newJoiner(t).request("b")); !errors.Is(err, ErrTokenRevoked) {
		t.Errorf("pending token after recovery: %v, want ErrTokenRevoked", err)
	}
	next := newToken(t, ri, now)
	b, err := ri.Issue(now, netip.Addr{}, next.ID, newJoiner(t).request("b"))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := next.Trust().VerifyMember(b.Credential, now); err != nil || c.Serial <= cert.Serial {
		t.Errorf("serial %d after %d, %v", c.Serial, cert.Serial, err)
	}
	closeStore(t, r)

	files[tokensName+prevSuffix] = "x"
	r = restore(t, files)
	if _, err := r.Issuer(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("issuer without token list: %v, want ErrCorrupt", err)
	}
	if id, err := r.Identity(); err != nil || !id.Joined() || len(r.Warnings()) != 1 {
		t.Errorf("the node does not start without its issuer: %v, warnings %q", err, r.Warnings())
	}
}

func TestFailedReservationGivesNoNumber(t *testing.T) {
	s, dir := founded(t)
	broken := errors.New("disk is broken")
	var d drawer
	for n := 1; n <= 7; n++ {
		d.draw(t, s, seqBlock-int((d.last)%seqBlock)) // to the end of a block
		step := 0
		s.dir.step = func(string, string) error {
			if step++; step == n {
				return broken
			}
			return nil
		}
		if seq, err := s.NextSeq(); !errors.Is(err, broken) {
			t.Errorf("step %d: %d, %v, want the error", n, seq, err)
		}
		s.dir.step = nil
		d.draw(t, s, 10)
	}
	d.draw(t, restore(t, contents(t, dir)), 10)
}

func TestRaiseSeq(t *testing.T) {
	s, dir := founded(t)
	var d drawer
	d.draw(t, s, 10)
	if err := s.RaiseSeq(5); err != nil {
		t.Fatal(err)
	}
	d.draw(t, s, 1)
	if d.last != 11 {
		t.Errorf("RaiseSeq to a lower number skipped to %d", d.last)
	}
	if err := s.RaiseSeq(70_000_000); err != nil {
		t.Fatal(err)
	}
	// The newest state is lost right after the jump: the copy must have it.
	files := contents(t, dir)
	files[stateName] = ""
	lost := drawer{last: 70_000_000}
	lost.draw(t, restore(t, files), 10)
	d.draw(t, s, 1)
	if d.last != 70_000_001 {
		t.Errorf("number after RaiseSeq: %d", d.last)
	}
	if err := s.RaiseSeq(1 << 63); err == nil {
		t.Error("the end of the range is accepted")
	}
}

func TestSaveSeeds(t *testing.T) {
	s, dir := founded(t)
	seeds := []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:7946"), netip.MustParseAddrPort("[fd00::1]:1")}
	if err := s.SaveSeeds(seeds); err != nil {
		t.Fatal(err)
	}
	steps := 0
	s.dir.step = func(string, string) error { steps++; return nil }
	if err := s.SaveSeeds(seeds); err != nil || steps != 0 {
		t.Errorf("unchanged seeds: %d write steps, %v", steps, err)
	}
	if got := restore(t, contents(t, dir)).Seeds(); !slices.Equal(got, seeds) {
		t.Errorf("seeds after reopening: %v", got)
	}
	many := make([]netip.AddrPort, 100)
	for i := range many {
		many[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}), 1)
	}
	if err := s.SaveSeeds(many); err != nil || len(s.Seeds()) != maxSeeds {
		t.Errorf("%d seeds saved, %v", len(s.Seeds()), err)
	}
}
