package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Caller is who is at the other end of a connection, as the kernel recorded
// it when the connection was made (SO_PEERCRED, unix(7)). A user namespace's
// root has the number here that it has outside.
type Caller struct {
	UID uint32
	GID uint32
	PID int32 // 0: it is not visible from the agent's PID namespace
	// Near: the caller is in the agent's own PID namespace, which processes in
	// containers are not.
	Near bool
}

type callerKey struct{}

// withCaller is the server's ConnContext. A connection whose credentials
// cannot be read carries none, and may read only.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(interface{ inner() net.Conn }); ok {
		c = l.inner()
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var near bool
	if cerr := raw.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			near = isNear(int(fd), cred.Pid)
		}
	}); cerr != nil || err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Near: near})
}

// isNear reports whether the process that made the connection lives in this
// process's PID namespace. Most containers have the host's users: root in one is
// root to SO_PEERCRED, and all that tells it from root on the host are its
// namespaces. The others do not: services have mount and network namespaces of
// their own, too.
//
// The number stands for the process that connected, while that has not ended.
// Since Linux 6.5 the kernel can tell whether it has (SO_PEERPIDFD). On older ones
// another process could have its number by now; but numbers are given out in a
// circle, and this is asked as soon as the connection is accepted. Whoever cannot
// be looked at is not near.
func isNear(socket int, pid int32) bool {
	pidfd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		defer func() { _ = unix.Close(pidfd) }()
	} else if !errors.Is(err, unix.ENOPROTOOPT) {
		return false
	}
	status, rerr := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if rerr != nil || !onlyHere(string(status), pid) {
		return false
	}
	// Asked after reading, so what was read is of no other process.
	return err != nil || !errors.Is(unix.PidfdSendSignal(pidfd, 0, nil, 0), unix.ESRCH)
}

// onlyHere reads in a process's status (proc_pid_status(5)) whether it has one
// number, this one. A process of a namespace below has another one there.
func onlyHere(status string, pid int32) bool {
	for line := range strings.Lines(status) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return strings.TrimSpace(numbers) == strconv.Itoa(int(pid))
		}
	}
	return false
}

// callerOf returns who makes the request.
func callerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}
