package api

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

// Caller is who is at the other end of a connection, as the kernel recorded
// it when the connection was made (SO_PEERCRED, unix(7)).
type Caller struct {
	UID uint32
	GID uint32
	PID int32
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
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid})
}

// callerOf returns who makes the request.
func callerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}
