package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/secure-overlay/secure-overlay/internal/ids"

	"net/netip"

	"github.com/secure-overlay/secure-overlay/api"
)

// TestFilesKeepEverything writes what a real round produces and reads it back.
func TestFilesKeepEverything(t *testing.T) {
	f := files{dir: filepath.Join(t.TempDir(), "run")}
	if err := f.prepare(); err != nil {
		t.Fatal(err)
	}
	if list, err := f.loadAttachments(); err != nil || len(list) != 0 {
		t.Errorf("nothing written yet: %v, %v", list, err)
	}
	if _, ok := f.loadApplied(); ok {
		t.Error("nothing applied yet")
	}
	s := newSim(2, blue(), lab())
	s.attach(1, "blue", "10.77.0.5/16", "fd00:77::5/64")
	s.attach(2, "blue", "10.77.0.6/16")
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	n := s.nodes[0]
	want := applied{Schema: appliedSchema, Node: n.id, Pairs: []appliedPair{{Peer: ids.NodeID{2}, Epoch: 3, Key: 7, Hybrid: true}}, Secure: n.out.Secure, Networks: n.out.Networks, Record: n.out.Record}
	if err := f.saveApplied(want); err != nil {
		t.Fatal(err)
	}
	got, ok := f.loadApplied()
	same := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(want, got, same); !ok || diff != "" {
		t.Errorf("applied.json (-want +got):\n%s", diff)
	}
	if err := f.saveAttachments(n.in.Attachments); err != nil {
		t.Fatal(err)
	}
	list, err := f.loadAttachments()
	if diff := cmp.Diff(n.in.Attachments, list, same); err != nil || diff != "" {
		t.Errorf("attachments.json: %v (-want +got):\n%s", err, diff)
	}
	if st, err := os.Stat(f.path(appliedFile)); err != nil || st.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode of applied.json: %v, %v", st.Mode(), err)
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.dir); !os.IsNotExist(err) {
		t.Errorf("directory is still there: %v", err)
	}
}

// TestDamagedAttachments is an error: an empty list would unplug everything.
func TestDamagedAttachments(t *testing.T) {
	f := files{dir: t.TempDir()}
	for _, content := range []string{"{", `{"schema":99,"attachments":[]}`} {
		if err := os.WriteFile(f.path(attachmentsFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.loadAttachments(); err == nil || !strings.Contains(err.Error(), attachmentsFile) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// TestRuntimeDirectory: one that others can write to is refused, because they
// could put their own namespace where the agent looks for the secure one.
func TestRuntimeDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if err := (files{dir: dir}).prepare(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for mode, want := range map[os.FileMode]api.Code{
		0o700: "", 0o750: "", 0o755: "", 0o770: api.CodePermission, 0o757: api.CodePermission, 0o777: api.CodePermission,
	} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		err := (files{dir: dir}).prepare()
		if err == nil && want != "" || err != nil && api.CodeOf(err) != want {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := (files{dir: dir}).prepare(); api.CodeOf(err) != api.CodePermission {
			t.Errorf("another user's: %v", err)
		}
	}
}
