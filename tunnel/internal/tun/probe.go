package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

const probeName = "soprobe"

// Probe reports whether the machine has TUN links at all, to the driver with a name: it
// opens one in a namespace that goes with the probe.
func Probe(driver string) error {
	return nl.InScratch(func(*nl.Namespace, *nl.Handle) error {
		fd, err := openTUN(probeName, 0)
		if err == nil {
			return unix.Close(fd)
		}
		for _, missing := range []error{unix.ENOENT, unix.ENXIO, unix.ENODEV} {
			if errors.Is(err, missing) {
				return &tunnel.UnsupportedError{
					Driver: driver, Feature: "TUN devices (CONFIG_TUN and " + clonePath + ")", Err: err,
				}
			}
		}
		return fmt.Errorf("probe driver %s: %w", driver, err)
	})
}

// Slower says, as an *tunnel.UnsupportedError, that the kernel lacks what the segmented form
// needs, or that it is not to be used; nil: it has it.
func Slower(driver string, single bool) error {
	slow := &tunnel.UnsupportedError{
		Driver: driver, Feature: "segmentation offload of VXLAN on TUN links, without which it is several times slower,", Since: "Linux 6.17",
	}
	if single {
		return slow
	}
	return nl.InScratch(func(*nl.Namespace, *nl.Handle) error {
		_, f, err := openSegmented(probeName, nil)
		if errors.Is(err, errNotSegmented) {
			slow.Err = err
			return slow
		}
		if err != nil {
			return fmt.Errorf("probe driver %s: %w", driver, err)
		}
		return f.Close()
	})
}
