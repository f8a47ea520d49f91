package vxlan

// Observed is what the kernel has: the overlay networks found in the
// programmer's folder, sorted by name. Only Plan looks inside.
type Observed struct {
	Networks []Network
}

// Network is one observed overlay network namespace.
type Network struct {
	Name string
}
