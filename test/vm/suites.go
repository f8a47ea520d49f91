package vm

// Suite is one package whose tests run inside the machine.
type Suite struct {
	Package string   // folder relative to the module's root
	Args    []string // further arguments of the test binary, such as -test.run=...
	Product bool     // needs the program where BinaryEnv says
	Seconds int      // limit of its run; 0 is defaultSuiteSeconds
}

// Suites returns what runs inside the machine, in order. To add a package, add a
// line: its tests must pass there without a skip.
func Suites() []Suite {
	return []Suite{
		{Package: "test/vm/probe"},
		{Package: "test/netlab"},
		{Package: "internal/nl"},
		{Package: "tunnel/secure"},
		{Package: "tunnel/wgkernel"},
		{Package: "tunnel/wguser"},
		{Package: "vxlan"},
		{Package: "test/e2e", Product: true, Seconds: 420},
	}
}

// GuestEnv is the environment of the suites, besides PATH and HOME.
func GuestEnv() []string {
	return []string{
		// What the machine was booted for must be there.
		"SECURE_OVERLAY_TEST_REQUIRE=netns,wireguard,xfrm",
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
		"nf_tables", "nft_ct", "nft_limit", "nft_log", "nft_reject_inet", "nft_fib_inet", "nft_meta_bridge",
		// ESP
		"esp4", "esp6", "xfrm_interface", "xfrm_user", "gcm", "ctr", "seqiv", "echainiv",
		"ghash_generic", "aesni_intel", "ghash_clmulni_intel", "authenc", "authencesn",
		// seqiv draws its salt from a generator, which says so to nobody.
		"sha512_generic", "sha3_generic", "jitterentropy_rng", "drbg",
		// impairments
		"sch_netem", "sch_tbf", "sch_ingress",
	}
}
