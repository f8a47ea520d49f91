package vxlan

// Op is one change to the kernel, printable for people and golden tests.
type Op struct {
	Kind    OpKind
	Network string
}

// OpKind says what an Op does.
type OpKind string

// String returns one line such as `blue: add flood 10.0.0.2`.
func (o Op) String() string { return o.Network + ": " + string(o.Kind) }

// Plan returns the ordered changes that turn have into want. It is pure. Empty
// means that the kernel is as desired.
func Plan(want []Spec, have Observed) []Op { return nil }
