package keystore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// crashEnv makes the test binary a process that issues a certificate and
// kills itself at a given step. Its value is DIR,TOKEN,STEP.
const crashEnv = "SECURE_OVERLAY_KEYSTORE_CRASH"

func TestMain(m *testing.M) {
	if v, ok := os.LookupEnv(crashEnv); ok {
		if err := crashingIssue(v); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fixedJoiner is the same node in this process and in the crashing one.
func fixedJoiner(b byte) (joiner, error) {
	node, e1 := keys.NodePrivateFromRaw32(bytes.Repeat([]byte{b}, 32))
	noise, e2 := keys.NoisePrivateFromRaw32(bytes.Repeat([]byte{b + 1}, 32))
	return joiner{node, noise}, errors.Join(e1, e2)
}

func crashingIssue(v string) error {
	parts := strings.Split(v, ",")
	var id keys.TokenID
	if err := id.UnmarshalText([]byte(parts[1])); err != nil {
		return err
	}
	at, err := strconv.Atoi(parts[2])
	if err != nil {
		return err
	}
	s, err := Open(parts[0])
	if err != nil {
		return err
	}
	i, err := s.Issuer()
	if err != nil {
		return err
	}
	alice, err := fixedJoiner(1)
	if err != nil {
		return err
	}
	step := 0
	s.dir.step = func(string, string) error {
		if step++; step == at {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	a, err := i.Issue(time.Now(), netip.Addr{}, id, alice.request("alice"))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(os.Stdout, hex.EncodeToString(a.Credential.Cert))
	return s.Close()
}

// TestKillAtEveryStepOfIssue kills a process that issues at each of its write
// steps, then lets another node and the same node ask: one identity gets
// certificates, and only one.
func TestKillAtEveryStepOfIssue(t *testing.T) {
	s, dir := founded(t)
	alice, err := fixedJoiner(1)
	if err != nil {
		t.Fatal(err)
	}
	bob := newJoiner(t)
	for n := 1; ; n++ {
		tok := newToken(t, issuerOf(t, s), time.Now())
		closeStore(t, s)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%d", crashEnv, dir, tok.ID, n))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		killed := cmd.ProcessState != nil && !cmd.ProcessState.Exited()
		if err != nil && !killed {
			t.Fatalf("step %d: helper: %v: %s", n, err, stderr.Bytes())
		}
		if killed && len(out) != 0 {
			t.Fatalf("step %d: a certificate went out before the last step", n)
		}
		if s, err = Open(dir); err != nil {
			t.Fatalf("step %d: open after the crash: %v", n, err)
		}
		if w := s.Warnings(); len(w) != 0 {
			t.Errorf("step %d: warnings after the crash: %q", n, w)
		}
		checkOneIdentity(t, fmt.Sprintf("step %d", n), issuerOf(t, s), tok, alice, bob, len(out) != 0)
		if !killed {
			t.Logf("killed at each of %d steps", n-1)
			if n < 10 {
				t.Errorf("only %d steps", n-1)
			}
			closeStore(t, s)
			return
		}
	}
}

// checkOneIdentity lets bob and then alice ask, in the state after a crash
// while alice was being served. aliceHas tells that alice got an answer.
func checkOneIdentity(t *testing.T, when string, i *Issuer, tok keys.Token, alice, bob joiner, aliceHas bool) {
	t.Helper()
	now := time.Now()
	_, errBob := i.Issue(now, netip.Addr{}, tok.ID, bob.request("bob"))
	_, errAlice := i.Issue(now, netip.Addr{}, tok.ID, alice.request("alice"))
	switch {
	case errBob == nil && !errors.Is(errAlice, ErrTokenUsed):
		t.Errorf("%s: bob was admitted, then alice: %v, want ErrTokenUsed", when, errAlice)
	case errBob == nil && aliceHas:
		t.Errorf("%s: bob was admitted by a token that had admitted alice", when)
	case errBob != nil && !errors.Is(errBob, ErrTokenUsed):
		t.Errorf("%s: bob: %v, want ErrTokenUsed", when, errBob)
	case errBob != nil && errAlice != nil:
		t.Errorf("%s: the token is alice's, but she cannot ask again: %v", when, errAlice)
	}
}

// snapshot is the directory as it was right before a step.
type snapshot struct {
	name, call string
	files      map[string]string
}

// TestPowerCutAtEveryStepOfIssue treats what is not flushed as lost. A step
// finds two states possible on disk: all that was written, or what was there
// at the last completed flush of the directory. From the moment of signing,
// neither may let another node in.
func TestPowerCutAtEveryStepOfIssue(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	tok := newToken(t, i, time.Now())
	alice, bob := newJoiner(t), newJoiner(t)
	var shots []snapshot
	s.dir.step = func(name, call string) error {
		shots = append(shots, snapshot{name, call, contents(t, dir)})
		return nil
	}
	answer, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, alice.request("alice"))
	if err != nil {
		t.Fatal(err)
	}
	s.dir.step = nil
	shots = append(shots, snapshot{"", "answered", contents(t, dir)})
	sign := slices.IndexFunc(shots, func(s snapshot) bool { return s.call == "sign" })
	if sign < 5 {
		t.Fatalf("signing is step %d", sign)
	}
	for k, shot := range shots {
		flushed := 0
		for m := range k {
			if shots[m].call == "sync directory" {
				flushed = m
			}
		}
		for what, files := range map[string]map[string]string{"all written": shot.files, "flushed only": shots[flushed].files} {
			when := fmt.Sprintf("before %s of %q, %s", shot.call, shot.name, what)
			copied := restore(t, files)
			issuer := issuerOf(t, copied)
			if k >= sign {
				if _, err := issuer.Issue(time.Now(), netip.Addr{}, tok.ID, bob.request("bob")); !errors.Is(err, ErrTokenUsed) {
					t.Errorf("%s: bob: %v, want ErrTokenUsed", when, err)
				}
				again, err := issuer.Issue(time.Now(), netip.Addr{}, tok.ID, alice.request("alice"))
				if err != nil || !bytes.Equal(again.Credential.Cert, answer.Credential.Cert) {
					t.Errorf("%s: alice asks again: %v, or another certificate", when, err)
				}
			}
			checkOneIdentity(t, when, issuer, tok, alice, bob, false)
			closeStore(t, copied)
		}
	}
	t.Logf("%d steps, signing is step %d", len(shots), sign)
}

// restore opens a data directory with these files.
func restore(t *testing.T, files map[string]string) *Store {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "restored")
	writeAll(t, dir, files)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func writeAll(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, dirMode); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), fileMode); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskErrorAtEveryStepOfIssue: the process lives on, the write fails.
func TestDiskErrorAtEveryStepOfIssue(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	broken := errors.New("disk is broken")
	for n := 1; ; n++ {
		tok := newToken(t, i, time.Now())
		alice, bob := newJoiner(t), newJoiner(t)
		step := 0
		s.dir.step = func(string, string) error {
			if step++; step == n {
				return broken
			}
			return nil
		}
		_, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, alice.request("alice"))
		s.dir.step = nil
		if err == nil {
			t.Logf("failed at each of %d steps", n-1)
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d: %v", n, err)
		}
		// The process knows that it promised the token to alice, even where the
		// disk does not; once she has her certificate the disk must, too.
		checkOneIdentity(t, fmt.Sprintf("step %d", n), i, tok, alice, bob, true)
		s = reopen(t, s)
		i = issuerOf(t, s)
		checkOneIdentity(t, fmt.Sprintf("step %d, reopened", n), i, tok, alice, bob, true)
	}
}
