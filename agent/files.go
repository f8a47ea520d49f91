package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// Names in the runtime directory.
const (
	lockFile        = "agent.pid"
	attachmentsFile = "attachments.json"
	appliedFile     = "applied.json"
	netnsDir        = "netns"
	secureNetns     = "secure"
	gatewayNetns    = "gateway"
)

// Versions of the two JSON files. A file of another version is from another
// release; see loadAttachments and loadApplied.
const (
	fileSchema    = 1
	appliedSchema = 2 // 2: pairs instead of one driver's spec
)

// files is the runtime directory. What is in it describes the kernel's
// present state, so it may be lost with a reboot, as that is.
type files struct{ dir string }

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

func (f files) securePath() string { return filepath.Join(f.dir, netnsDir, secureNetns) }

func (f files) gatewayPath() string { return filepath.Join(f.dir, netnsDir, gatewayNetns) }

// prepare makes the directory. Others may not look into it: the socket's
// group access is by the directory's group.
//
// A directory that somebody else can write to is refused. Who can, can put
// another namespace at the path of the secure one, and the agent would adopt
// it and send cleartext there.
func (f files) prepare() error {
	if err := os.MkdirAll(f.dir, 0o750); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	info, err := os.Stat(f.dir)
	if err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() {
		return api.NewError(api.CodePermission, "the runtime directory "+f.dir+" belongs to another user",
			"chown it, or set another runtime_dir")
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return api.NewError(api.CodePermission, fmt.Sprintf("the runtime directory %s has mode %04o: others can write to it", f.dir, mode),
			"chmod 0750 "+f.dir)
	}
	return nil
}

// lock makes sure that one agent uses the directory. The returned file holds
// the lock until it is closed; the process ending closes it, too. The error
// is an *api.Error with CodeRefused if another agent runs.
func (f files) lock() (*os.File, error) {
	file, err := os.OpenFile(f.path(lockFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock runtime directory: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		buf := make([]byte, 32)
		n, _ := file.Read(buf)
		_ = file.Close()
		who := "another agent"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n]))); err == nil {
			who = fmt.Sprintf("another agent (PID %d)", pid)
		}
		return nil, api.NewError(api.CodeRefused, who+" runs with runtime directory "+f.dir,
			"secure-overlay down; or set another runtime_dir and data_dir for this agent")
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock runtime directory %s: %w", f.dir, err)
	}
	return file, nil
}

// attachments is the content of attachments.json.
type attachments struct {
	Schema      int          `json:"schema"`
	Attachments []Attachment `json:"attachments"`
}

// applied is the content of applied.json: what the last round of an agent set,
// so that the next agent does not take away what it cannot yet know about.
type applied struct {
	Schema   int           `json:"schema"`
	Node     ids.NodeID    `json:"node"`
	Pairs    []appliedPair `json:"pairs"`
	Secure   secure.Spec   `json:"secure"`
	Networks []vxlan.Spec  `json:"networks"`
	Record   record.Node   `json:"record"`
	Paths    []appliedPath `json:"paths,omitempty"`
}

// appliedPath is a way that carries less than its links.
type appliedPath struct {
	Peer  ids.NodeID `json:"peer"`
	To    netip.Addr `json:"to"`
	Limit int        `json:"limit"` // bytes of packet in the tunnel
}

// appliedPair is what no kernel knows of a pair's key: whose it is, by more
// than an address, and whether its agreement had a post-quantum part.
type appliedPair struct {
	Peer   ids.NodeID `json:"peer"`
	Epoch  ids.Epoch  `json:"epoch"`
	Key    keys.KeyID `json:"key"`
	Hybrid bool       `json:"hybrid"`
}

// loadAttachments reads the endpoints that the previous agent had. A damaged
// file is an error, not an empty list: with an empty list the endpoints would
// be unplugged.
func (f files) loadAttachments() ([]Attachment, error) {
	var a attachments
	found, err := f.load(attachmentsFile, &a)
	if err == nil && found && a.Schema != fileSchema {
		err = fmt.Errorf("read %s: schema %d, want %d", f.path(attachmentsFile), a.Schema, fileSchema)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; detach all endpoints with secure-overlay down, or remove the file", err)
	}
	return a.Attachments, nil
}

func (f files) saveAttachments(list []Attachment) error {
	return f.save(attachmentsFile, attachments{Schema: fileSchema, Attachments: list})
}

// loadApplied reads what was set last. Without a usable file there is nothing
// to hold on to: the record cache alone then says who the peers are.
func (f files) loadApplied() (applied, bool) {
	var a applied
	found, err := f.load(appliedFile, &a)
	return a, found && err == nil && a.Schema == appliedSchema
}

func (f files) saveApplied(a applied) error {
	a.Schema = appliedSchema
	return f.save(appliedFile, a)
}

func (f files) load(name string, into any) (found bool, err error) {
	raw, err := os.ReadFile(f.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return false, fmt.Errorf("read %s: %w", f.path(name), err)
	}
	return true, nil
}

// save replaces a file in one step, so that a reader and a crash see the old
// content or the new.
func (f files) save(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := renameio.WriteFile(f.path(name), raw, 0o640); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// remove deletes what the agent wrote, and the directory if nothing of
// somebody else is left in it.
func (f files) remove() error {
	var errs []error
	for _, name := range []string{attachmentsFile, appliedFile, lockFile} {
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove state: %w", err))
		}
	}
	// Both fail if there is something in them, which is then not ours.
	_ = os.Remove(f.path(netnsDir))
	_ = os.Remove(f.dir)
	return errors.Join(errs...)
}
