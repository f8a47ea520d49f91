package vxlan

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// OpKind says what an Op does.
type OpKind string

// Kinds of Op. "Set" makes an existing thing as wanted and may be repeated.
const (
	OpAddNamespace  OpKind = "add namespace"
	OpTuneNamespace OpKind = "tune namespace"
	OpDelNamespace  OpKind = "delete namespace"
	OpAddBridge     OpKind = "add bridge"
	OpSetBridge     OpKind = "set bridge"
	OpDelBridge     OpKind = "delete bridge"
	OpAddDevice     OpKind = "add device"
	OpSetDevice     OpKind = "set device"
	OpDelDevice     OpKind = "delete device"
	OpAddPort       OpKind = "add port"
	OpSetPort       OpKind = "set port"
	OpDelPort       OpKind = "delete port"
	OpReleasePort   OpKind = "release port"
	OpSetInner      OpKind = "set endpoint"
	OpAddAddr       OpKind = "add address"
	OpDelAddr       OpKind = "delete address"
	OpAddWay        OpKind = "add default route"
	OpDelWay        OpKind = "delete default route"
	OpAddFlood      OpKind = "add flood"
	OpDelFlood      OpKind = "delete flood"
	OpSetForward    OpKind = "set forward"
	OpDelForward    OpKind = "delete forward"
	OpSetStation    OpKind = "set station"
	OpDelStation    OpKind = "delete station"
	OpSetNeighbour  OpKind = "set neighbour"
	OpDelNeighbour  OpKind = "delete neighbour"
)

// Op is one change to the kernel, printable for people and golden tests. Which
// fields have a meaning depends on Kind.
type Op struct {
	Kind    OpKind
	Network string
	// Device is for OpAddDevice and what follows from it.
	Device DeviceSpec
	// Lock, of OpSetDevice, is whether the device drops frames of stations that
	// are not behind it.
	Lock bool
	// MTU is for bridge, device, ports and endpoints.
	MTU int
	// Burst is for endpoints: Spec.Burst.
	Burst int
	// Endpoint is for ports and endpoints; of one to delete only the ID.
	Endpoint Endpoint
	Link     string       // name of a port, for devices, forwards, stations and OpReleasePort
	MAC      ids.MAC      // for forwards, stations, neighbours
	VTEP     netip.Addr   // for flood and forwards
	VLAN     int          // for OpDelStation
	Addr     netip.Addr   // for neighbours, and the gateway of a default route
	Prefix   netip.Prefix // for addresses
	// Why says what is wrong, for the log: not part of the change.
	Why string
}

// DeviceSpec are the properties of a VXLAN device that only a new device can
// have.
type DeviceSpec struct {
	VNI   ids.VNI
	Birth Birthplace
	Local netip.Addr
	Port  uint16
}

// LogValue implements slog.LogValuer: the text is made only where it is wanted, and
// there may be thousands of ops.
func (o Op) LogValue() slog.Value { return slog.StringValue(o.String()) }

// String returns one line such as `blue: add flood 10.0.0.2`.
func (o Op) String() string {
	s := fmt.Sprintf("%s: %s", o.Network, o.Kind)
	if d := o.detail(); d != "" {
		s += " " + d
	}
	if o.Why != "" {
		s += " (" + o.Why + ")"
	}
	return s
}

func (o Op) detail() string {
	switch o.Kind {
	case OpAddBridge, OpSetBridge:
		return fmt.Sprintf("mtu %d", o.MTU)
	case OpSetDevice:
		return fmt.Sprintf("%s mtu %d", o.Link, o.MTU)
	case OpAddDevice:
		return fmt.Sprintf("%s vni %s born %s local %s port %d mtu %d",
			o.Link, o.Device.VNI, o.Device.Birth, o.Device.Local, o.Device.Port, o.MTU)
	case OpAddPort:
		return fmt.Sprintf("%s mac %s mtu %d as %s in %s",
			o.Endpoint.ID, o.Endpoint.MAC, o.MTU, o.Endpoint.Ifname, o.Endpoint.Netns)
	case OpSetPort:
		return fmt.Sprintf("%s mtu %d", o.Endpoint.ID, o.MTU)
	case OpSetInner:
		return fmt.Sprintf("%s mac %s mtu %d", o.Endpoint.ID, o.Endpoint.MAC, o.MTU)
	case OpAddAddr, OpDelAddr:
		return fmt.Sprintf("%s of %s", o.Prefix, o.Endpoint.ID)
	case OpAddWay, OpDelWay:
		return fmt.Sprintf("by %s of %s", o.Addr, o.Endpoint.ID)
	case OpDelPort:
		return o.Endpoint.ID
	case OpReleasePort, OpDelDevice:
		return o.Link
	case OpAddFlood, OpDelFlood:
		return fmt.Sprintf("%s on %s", o.VTEP, o.Link)
	case OpSetForward, OpDelForward:
		return fmt.Sprintf("%s to %s on %s", o.MAC, o.VTEP, o.Link)
	case OpSetStation, OpDelStation:
		return strings.TrimSuffix(fmt.Sprintf("%s on %s vlan %d", o.MAC, o.Link, o.VLAN), " vlan 0")
	case OpSetNeighbour, OpDelNeighbour:
		return fmt.Sprintf("%s at %s", o.Addr, o.MAC)
	default: // the namespace or bridge as such
		return ""
	}
}
