package nl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	rtnl "github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is an open reference to a network namespace. It keeps the
// namespace alive until Close. Its methods may be called from any goroutine.
type Namespace struct {
	file *os.File
	path string
}

// ID identifies a network namespace for as long as it lives: the device and
// inode number of its nsfs file. A path or a PID may come to name another
// namespace later; an ID recorded together with it tells.
//
// The kernel gives the inode number of a namespace that has ended to the next
// one at once, so these two numbers prove something only while the namespace
// cannot have ended. Cookie is the kernel's number that is never used again
// before a reboot (SO_NETNS_COOKIE, since Linux 5.14); 0: not known.
type ID struct {
	Dev    uint64
	Ino    uint64
	Cookie uint64 `json:",omitempty"`
}

// Is reports whether two IDs are of one namespace, by what is known of both.
func (i ID) Is(other ID) bool {
	return i.Dev == other.Dev && i.Ino == other.Ino &&
		(i.Cookie == other.Cookie || i.Cookie == 0 || other.Cookie == 0)
}

// OpenNamespace opens the network namespace that path names: a bind mount
// such as /run/netns/x, or /proc/PID/ns/net. It fails if path is anything
// else, so that a plain left-over file is not taken for a namespace.
func OpenNamespace(path string) (*Namespace, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	// NS_GET_NSTYPE (ioctl_ns(2)) answers only on nsfs files.
	typ, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || typ != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrNotNamespace)
	}
	return &Namespace{file: f, path: path}, nil
}

// CurrentNamespace opens the namespace of the calling process.
func CurrentNamespace() (*Namespace, error) {
	// The thread group leader's namespace could differ from this thread's
	// if somebody left the main thread elsewhere; the calling thread's is
	// the one the caller means.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return OpenNamespace(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
}

// CreateNamespace makes a new network namespace and binds it at path, whose
// folder it creates with mode 0755. An existing namespace at path is an error
// that matches os.ErrExist; a left-over file without a namespace (as after a
// crash between creation and mount) is used.
func CreateNamespace(path string) (*Namespace, error) {
	if ns, err := OpenNamespace(path); err == nil {
		_ = ns.Close()
		return nil, fmt.Errorf("create network namespace %s: %w", path, os.ErrExist)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create network namespace: %w", err)
	}
	_ = f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		src := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(src, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
	if err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("create network namespace %s: %w", path, err)
	}
	return OpenNamespace(path)
}

// EnsureNamespace opens the namespace at path, or creates it if there is none.
func EnsureNamespace(path string) (ns *Namespace, created bool, err error) {
	if ns, err := OpenNamespace(path); err == nil {
		return ns, false, nil
	}
	ns, err = CreateNamespace(path)
	return ns, err == nil, err
}

// RemoveNamespace unbinds the namespace at path and removes the file. The
// namespace itself ends when its last user does. A missing path is no error.
func RemoveNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == nil {
			continue // bound more than once
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove network namespace %s: %w", path, err)
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Path returns the path the namespace was opened by, for messages.
func (n *Namespace) Path() string { return n.path }

// File returns the open nsfs file, for passing to another process.
func (n *Namespace) File() *os.File { return n.file }

// FD returns the file descriptor, valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// ID returns the identity of the namespace, without its cookie: enough to
// compare namespaces that are open.
func (n *Namespace) ID() (ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.FD(), &st); err != nil {
		return ID{}, fmt.Errorf("stat network namespace %s: %w", n.path, err)
	}
	return ID{Dev: st.Dev, Ino: st.Ino}, nil
}

// LastingID is ID with the cookie: to be kept and compared after the namespace
// may have ended. It is a few microseconds dearer.
func (n *Namespace) LastingID() (ID, error) {
	id, err := n.ID()
	if err != nil {
		return ID{}, err
	}
	// Any socket of the namespace knows it.
	s, err := rtnl.GetNetlinkSocketAt(netns.NsHandle(n.FD()), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", n.path, err)
	}
	defer func() { _ = s.Close() }()
	id.Cookie, err = unix.GetsockoptUint64(s.GetFd(), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return ID{}, fmt.Errorf("identify network namespace %s: %w", n.path, err)
	}
	return id, nil
}

// Close releases the reference.
func (n *Namespace) Close() error { return n.file.Close() }

// Do runs fn on an OS thread inside the namespace. Sockets and files that fn
// opens stay bound to the namespace. Goroutines that fn starts do not run
// inside it.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.path, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that is discarded afterwards: the goroutine
// ends while locked, so the runtime destroys the thread instead of reusing it
// in a foreign namespace. The process's first thread cannot be destroyed, only
// parked, and /proc/PID/ns/net would show its namespace ever after: a goroutine
// that finds itself there holds it and lets another do the work.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onThread(fn)
			return
		}
		done <- fn()
	}()
	return <-done
}
