package api

import (
	"net"
	"sync"
)

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	once sync.Once
	free func()
}

// Close closes the connection.
func (c *slotConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.free)
	return err
}

// inner is the connection that has the credentials.
func (c *slotConn) inner() net.Conn { return c.Conn }
