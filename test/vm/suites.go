package vm

import (
	"cmp"
	"os"
	"strconv"
	"time"
)

// Suite is one run of a package's tests inside the machine.
type Suite struct {
	Package string   // folder relative to the module's root
	Part    string   // what of the package this is, where several suites share it; empty: all
	Args    []string // further arguments of the test binary, such as -test.run=...
	Product bool     // needs the program where BinaryEnv says
	Seconds int      // limit of its run; 0 is defaultSuiteSeconds
}

// Name names the suite in results: the package, and the part of it.
func (s Suite) Name() string {
	if s.Part == "" {
		return s.Package
	}
	return s.Package + "-" + s.Part
}

// Suites returns what runs inside the machine, in order. To add a package, add a
// line: its tests must pass there without a skip. Of workers' links there is only what an older
// kernel shows: tunnel/wguser needs nothing that the host's kernel lacks, and emulated it takes minutes.
func Suites() []Suite {
	suites := []Suite{
		{Package: "test/vm/probe"},
		{Package: "test/netlab"},
		{Package: "internal/nl"},
		{Package: "tunnel/secure"},
		{Package: "tunnel/wgkernel"},
		{Package: "tunnel/internal/tun", Part: "form", Args: []string{"-test.run=^TestFormIsTheKernels$"}},
		{Package: "tunnel/ipsec", Seconds: 480},
		{Package: "tunnel/espuser", Part: "peers", Args: []string{"-test.run=^TestKernelIsPeer$/first$/^(TrafficBothWays|TwoEpochs|ForeignInnerSourceIsDropped)$"}},
		{Package: "vxlan"},
		{Package: "vxlan/gateway"},
	}
	return append(suites, endToEnd()...)
}

// rotating picks the tests of test/e2e that rotate keys again and again. They
// are suites of their own: each has a limit that grows with the number of rotations, and
// shows that the machine gets on. So are those that look for secrets.
const rotating = "^Test(Rotation|ESPOfTwoKinds|TwoRotations|KillAt|CutOff|Scheduled|Replay|OldKeys|LiveSecrets|ESPBlocked|Clock|RoughWire)"

// membersComeAndGo picks the tests about who belongs to a cluster, which make
// larger fleets and floods.
const membersComeAndGo = "^Test(RevokeUnderLoad|Leave|Token|HandshakeFlood$)"

// attacks picks the tests in which somebody works against a whole cluster, something
// cuts it in two, or what issuers say changes. What they show depends little on the kernel.
const attacks = "^Test(Rogue|HandshakeFloodFrom|Partition|SecondIssuer|RevokeIssuer|NetworkByCommand)"

// living picks the tests in which networks change while they are used, and the demo, which takes
// two minutes in emulation. They depend on the kernel's VXLAN and bridge, which the host has, too;
// drivers differ little there.
const living = "^Test(Demo|Churn|Toggle|MTUMatrix|AddressChanges|NarrowPath|Reload|AttachHost|WayOut|NetworkOptions|Names|Blocks|MixedUnderlay)"

// endToEnd returns the suites of test/e2e. What takes long in emulation runs if
// a number of rotations was asked for, not in a run of everything.
func endToEnd() []Suite {
	e2e := func(part string, seconds int, args ...string) Suite {
		return Suite{Package: "test/e2e", Part: part, Product: true, Seconds: seconds, Args: args}
	}
	run := func(pattern string) string { return "-test.run=" + pattern }
	suites := []Suite{
		e2e("", 420, "-test.skip="+rotating+"|"+membersComeAndGo+"|"+attacks+"|"+living),
		e2e("load-wireguard", stretched(240), run("^TestRotationUnderLoad$/^wireguard$")),
		e2e("load-ipsec", stretched(240), run("^TestRotationUnderLoad$/^ipsec$")),
	}
	if os.Getenv(rotationsEnv) == "" {
		return suites
	}
	if os.Getenv(KernelEnv) != "" { // this Debian's own is older than a pair of links needs
		suites = append(suites, Suite{Package: "tunnel/internal/tun", Part: "all", Seconds: 240})
	}
	return append(suites,
		Suite{Package: "tunnel/wguser", Part: "all", Seconds: 600},
		Suite{Package: "tunnel/espuser", Part: "kernel", Seconds: 420, Args: []string{run("^TestKernelIsPeer$")}},
		e2e("members", 900, run(membersComeAndGo)),
		e2e("esp-blocked", 240, run("^TestESPBlocked")),
		e2e("load-ipsec-in-udp", stretched(240), run("^TestRotationUnderLoad$/^ipsec-in-udp$")),
		e2e("alternate", stretched(240), run("^Test(RotationAlternatesDrivers|ESPOfTwoKinds)$")),
		e2e("badlink", stretched(300), run("^TestRotationOverBadLink$")),
		e2e("rough", stretched(300), run("^TestRoughWire$")),
		e2e("kill", stretched(600), run("^TestKillAtEachState$")),
		e2e("cutoff", stretched(420), run("^Test(TwoRotations|CutOff|Scheduled)")),
		e2e("clock", 1200, run("^TestClock")),
		e2e("rogue", stretched(300), run("^TestRogue")),
		e2e("issuers", 360, run("^Test(SecondIssuer|RevokeIssuer|NetworkByCommand)")),
		e2e("partition", stretched(240), run("^TestPartition$")),
		e2e("toggle", stretched(300), run("^TestToggle")),
		e2e("living", stretched(900), run("^Test(Demo|Churn|MTUMatrix|AddressChanges|NarrowPath|Reload|AttachHost|WayOut|NetworkOptions|Names|Blocks|MixedUnderlay)")),
		e2e("flood", stretched(240), run("^TestHandshakeFloodFrom")),
		e2e("secrets", stretched(240), run("^Test(Replay|OldKeys|LiveSecrets)")),
		Suite{Package: "test/bench", Part: "rotate", Product: true, Seconds: 600, Args: []string{run("^TestRotateBench$")}},
	)
}

// rotationsEnv is test/e2e's scale, handed on into the machine; at the default
// every limit is as it stands in the list.
const (
	rateEnv          = "SECURE_OVERLAY_TEST_RATE" // packets per second; empty: as the tests find right
	rotationsEnv     = "SECURE_OVERLAY_TEST_ROTATIONS"
	defaultRotations = 8
)

// stretched is a limit in seconds for the scale that was asked for.
func stretched(seconds int) int {
	n, err := strconv.Atoi(os.Getenv(rotationsEnv))
	if err != nil || n <= defaultRotations {
		return seconds
	}
	return seconds * n / defaultRotations
}

// limit bounds a whole run: every suite may need its time.
func limit(suites []Suite) time.Duration {
	d := bootLimit
	for _, s := range suites {
		d += time.Duration(max(0, s.Seconds-defaultSuiteSeconds)) * time.Second
	}
	return d
}

// GuestEnv is the environment of the suites, besides PATH and HOME. If no scale
// was asked for, the load is one that leaves emulation some time: a machine that
// is at its limit says nothing about retransmission timeouts.
func GuestEnv() []string {
	rate, rotations := os.Getenv(rateEnv), os.Getenv(rotationsEnv)
	if rotations == "" {
		rate, rotations = cmp.Or(rate, "100"), strconv.Itoa(defaultRotations/2)
	}
	return []string{
		rateEnv + "=" + rate,
		rotationsEnv + "=" + rotations,
		// What the machine was booted for must be there.
		"SECURE_OVERLAY_TEST_REQUIRE=netns,wireguard,xfrm,netem,clock",
		// Where end-to-end tests find the program, instead of building it.
		BinaryEnv + "=" + guestBinary,
	}
}

// BinaryEnv names the environment variable that tells end-to-end tests where
// a built secure-overlay program is.
const BinaryEnv = "SECURE_OVERLAY_BIN"

// guestBinary is where the product lies inside the machine.
const guestBinary = "/bin/secure-overlay"

// wantedModules is loaded at boot, with everything it depends on. A name
// that is built into the kernel is passed over.
func wantedModules() []string {
	return []string{
		// links
		"tun", "veth", "bridge", "vxlan", "dummy", "wireguard",
		// nftables
		"nf_tables", "nft_ct", "nft_limit", "nft_log", "nft_reject_inet", "nft_fib_inet", "nft_meta_bridge", "nft_chain_nat", "nft_masq",
		// ESP
		"esp4", "esp6", "xfrm_interface", "xfrm_user", "gcm", "ctr", "seqiv", "echainiv",
		"ghash_generic", "aesni_intel", "ghash_clmulni_intel", "authenc", "authencesn",
		// seqiv draws its salt from a generator, which says so to nobody.
		"sha512_generic", "sha3_generic", "jitterentropy_rng", "drbg",
		// impairments
		"sch_netem", "sch_prio", "cls_u32", "sch_tbf", "sch_ingress",
	}
}
