package logkey

// Attribute names for slog. Values are never secret: keys appear by their
// short fingerprint only.
const (
	Node     = "node"      // ids.NodeID of a member
	Name     = "name"      // host name of a member
	Network  = "network"   // overlay network name
	VNI      = "vni"       // VXLAN network identifier
	Encrypt  = "encrypted" // of a network
	Epoch    = "epoch"     // key epoch
	Former   = "former"    // key epoch before it
	Key      = "key"       // keys.KeyID of a tunnel secret: a hash of it, never the secret
	Hybrid   = "hybrid"    // agreed with a post-quantum part
	Driver   = "driver"    // tunnel driver
	Device   = "device"    // kernel link name
	Endpoint = "endpoint"  // attached endpoint
	Addr     = "addr"      // address, with port where it has one
	Error    = "error"     // the error
	Count    = "count"     // how many
	Path     = "path"      // file or namespace path
	PID      = "pid"       // process ID
	Revision = "revision"  // desired-state revision
	Seq      = "seq"       // sequence number of a node's record
	State    = "state"     // what something is in now
	Token    = "token"     // public token ID
	Subject  = "subject"   // the network, peer or device a problem is about
	Reason   = "reason"    // why something was refused or chosen
	Op       = "op"        // change made to the kernel
	Call     = "call"      // operation asked for on the control socket
	UID      = "uid"       // user ID of a caller
	Expires  = "expires"   // when something ends
	MTU      = "mtu"       // bytes of packet
	Protocol = "protocol"  // version of the protocol
)
