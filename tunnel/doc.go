// Package tunnel describes the encrypted underlay: which tunnel devices a
// node has, with which peers, and through which device it sends to each.
//
// It owns the desired state (Spec), the observed state (State), the Driver
// contract with its table of Kinds, and device naming. The drivers are its
// subpackages; tunnel/secure owns the namespace that holds the devices;
// tunnel/tunneltest holds the conformance suite that each driver passes.
//
// Invariants: there is no plaintext Kind. A Spec is complete: what it does
// not name goes away. Setting the same Spec twice changes nothing. A tunnel
// device lives in the secure namespace, its outer socket in the host's. The
// private key of a device never appears in a Spec or a State.
//
// It does not know VXLAN; package agent joins the two.
//
// Start with Spec and Driver.
package tunnel
