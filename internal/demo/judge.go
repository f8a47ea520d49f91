package demo

import (
	"errors"
	"fmt"
)

// judge says whether the findings show what the product promises.
func judge(r Result) error {
	var errs []error
	for _, n := range r.Networks {
		if n.PingsReceived != n.PingsSent || n.PingsSent == 0 {
			errs = append(errs, fmt.Errorf("network %s: %d of %d pings answered", n.Name, n.PingsReceived, n.PingsSent))
		}
		if n.WirePackets == 0 {
			errs = append(errs, fmt.Errorf("network %s: the sniffer saw no packet, so it proves nothing", n.Name))
		}
		switch {
		case n.Encrypted && n.WireReadable > 0:
			errs = append(errs, fmt.Errorf("network %s is encrypted, but %d packets were readable", n.Name, n.WireReadable))
		case !n.Encrypted && n.WireReadable == 0:
			errs = append(errs, fmt.Errorf("network %s is plaintext, but the sniffer could not read it: it proves nothing", n.Name))
		}
	}
	if ro := r.Rotation; ro.Lost > 0 || ro.Rotations < rotations || ro.Sent < minSent {
		errs = append(errs, fmt.Errorf("%d rotations under load: %d of %d packets lost", ro.Rotations, ro.Lost, ro.Sent))
	}
	return errors.Join(errs...)
}
