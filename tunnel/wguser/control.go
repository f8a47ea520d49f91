package wguser

import (
	"net"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// Control implements wg.Maker.
func (m *maker) Control() (wg.Control, error) { return control{m}, nil }

// control configures devices through their workers' sockets. Each request has
// a connection of its own.
type control struct{ *maker }

// Close implements wg.Control.
func (control) Close() error { return nil }

// Device implements wg.Control.
func (c control) Device(name string) (*wgtypes.Device, error) {
	var dev *wgtypes.Device
	var public wgtypes.Key
	var overflowed int64
	err := c.ask(name, []byte(identityRequest), func(l *lineReader) error {
		return l.fields(func(key string, value []byte) error {
			switch key {
			case "public_key":
				return readKey(&public, value)
			case overflowKey: // workers of builds before do not say it
				return readInt(&overflowed, value)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	c.overflowed[name] = overflowed
	err = c.ask(name, []byte(getRequest), func(l *lineReader) (err error) {
		dev, err = readDevice(l)
		return err
	})
	if err != nil {
		return nil, err
	}
	dev.Name, dev.PublicKey = name, public
	return dev, nil
}

// ConfigureDevice implements wg.Control.
func (c control) ConfigureDevice(name string, cfg wgtypes.Config) error {
	request := encodeSet(cfg)
	defer clear(request)
	return c.ask(name, request, func(l *lineReader) error {
		return l.fields(func(string, []byte) error { return nil })
	})
}

// ask sends a request to a device's worker and lets read take the answer.
func (c control) ask(name string, request []byte, read func(*lineReader) error) error {
	return c.workers.Ask(name, func(conn net.Conn) error {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		l := newLineReader(conn)
		defer l.wipe()
		return read(l)
	})
}
