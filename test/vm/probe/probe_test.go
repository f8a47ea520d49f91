package probe

import (
	"testing"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestFeatures tries each kernel feature out in a namespace of its own.
func TestFeatures(t *testing.T) {
	for _, feature := range []string{
		netlab.FeatureNetns, netlab.FeatureWireGuard, netlab.FeatureXfrm,
		netlab.FeatureNetem, netlab.FeatureDummy,
	} {
		t.Run(feature, func(t *testing.T) { netlab.Require(t, feature) })
	}
}
