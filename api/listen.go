package api

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxConns bounds the connections served at once: members of the socket's
// group may read, and must not be able to use up the agent's descriptors.
const maxConns = 128

// listenUnix makes the control socket with its final owner and mode: it is
// bound under another name first, so that nobody can connect before the mode
// is right. A socket file that nobody answers on is replaced.
func listenUnix(path, group string) (net.Listener, error) {
	if err := checkFree(path); err != nil {
		return nil, err
	}
	gid := -1
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, fmt.Errorf("look up group %s of the control socket: %w", group, err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("look up group %s of the control socket: %w", group, err)
		}
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the file gets another name
	err = errors.Join(os.Chmod(tmp, 0o660), chgrp(tmp, gid))
	if err == nil && gid >= 0 {
		// The group must get through the folder, which is 0750.
		err = chgrp(filepath.Dir(path), gid)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(tmp)
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	return &ownedListener{Listener: l, path: path, id: fileID(path), slots: make(chan struct{}, maxConns)}, nil
}

func chgrp(path string, gid int) error {
	if gid < 0 {
		return nil
	}
	return os.Chown(path, -1, gid)
}

// checkFree refuses a path where somebody answers, or that is no socket.
func checkFree(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make control socket: %w", err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("make control socket: %s exists and is not a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return &Error{Code: CodeRefused, Message: "an agent is already running on " + path, Fix: "secure-overlay down"}
	}
	// Only "nobody listens" is a reason to replace the file. A full backlog
	// (EAGAIN) or a missing permission says that somebody does.
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("make control socket: %s is in use: %w", path, err)
	}
	return nil
}

// ownedListener removes its file when it is closed, unless another agent has
// put its own there, and bounds the open connections.
type ownedListener struct {
	net.Listener
	path  string
	id    [2]uint64
	slots chan struct{}
}

// Accept returns the next connection for which there is a slot.
func (l *ownedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &slotConn{Conn: c, free: func() { <-l.slots }}, nil
		default:
			// Refusing is better than queueing: the caller learns at once.
			_ = c.Close()
		}
	}
}

// Close stops listening and removes the socket file.
func (l *ownedListener) Close() error {
	if id := fileID(l.path); id == l.id {
		_ = os.Remove(l.path)
	}
	return l.Listener.Close()
}

// fileID is the device and inode number of a file; zero if there is none.
func fileID(path string) [2]uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return [2]uint64{}
	}
	return [2]uint64{st.Dev, st.Ino}
}
