package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each case is a file and everything that is wrong with it. NET stands for a
// valid network without its closing keys.
func TestProblems(t *testing.T) {
	const net = "networks:\n  - name: blue\n    subnets: [10.77.0.0/16]\n"
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "netwroks: []\n", `c.yaml:1: netwroks: unknown key (did you mean "networks"?)`},
		{"key of another level", "bind: \"[::]:1\"\n", `c.yaml:1: bind: unknown key (there is "control.bind")`},
		{"letter case of a key", net + "    Encrypted: false\n", `c.yaml:4: networks[0].Encrypted: unknown key (did you mean "encrypted"?)`},
		{"dash for underscore", "data-dir: /x\n", `c.yaml:1: data-dir: unknown key (did you mean "data_dir"?)`},
		{"duplicate key", "log: {level: info}\nlog: {level: debug}\n", `c.yaml:2: log: the key stands twice, first in line 1 (keep one of them)`},
		{"duplicate key in network", net + "    encrypted: true\n    encrypted: false\n",
			`c.yaml:5: networks[0].encrypted: the key stands twice, first in line 4 (keep one of them)`},
		{"duplicate names", net + "  - name: blue\n    vni: 5\n    subnets: [10.78.0.0/16]\n",
			`c.yaml:4: networks[1].name: network "blue" is already defined in line 2 (choose another name)`},
		{"colliding names", net + "  - name: BLUE\n    subnets: [10.78.0.0/16]\n",
			`c.yaml:4: networks[1].name: network "BLUE" differs from "blue" in line 2 only by letter case (choose another name)`},
		{"invalid name", "networks:\n  - {name: \"my net\", subnets: [10.0.0.0/8]}\n",
			`c.yaml:2: networks[0].name: "my net" is not a valid name (for example "my-net"; 1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter or digit)`},
		{"path as name", "networks:\n  - {name: ../x, subnets: [10.0.0.0/8]}\n",
			`c.yaml:2: networks[0].name: "../x" is not a valid name (for example "x"; 1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter or digit)`},
		{"number as name", "networks:\n  - {name: 42, subnets: [10.0.0.0/8]}\n",
			`c.yaml:2: networks[0].name: want a text, have a whole number: 42 (quote it: "42")`},
		{"no name, no subnets", "networks:\n  - vni: 5\n",
			"c.yaml:2: networks[0].name: the network has no name (add name: blue)\n" +
				`c.yaml:2: networks[0].subnets: network "" has no subnets (add subnets: ["10.77.0.0/16"])`},
		{"host bits", "networks:\n  - name: a\n    subnets: [10.0.0.1/16]\n",
			`c.yaml:3: networks[0].subnets[0]: 10.0.0.1/16 has bits set behind the prefix (write "10.0.0.0/16")`},
		{"subnet sizes", "networks:\n  - name: a\n    subnets:\n      - 10.0.0.0/31\n      - 0.0.0.0/0\n      - fd00::/127\n      - 10.1.2.3\n      - fd01::1\n      - 10.1/16\n",
			`c.yaml:4: networks[0].subnets[0]: 10.0.0.0/31 is too small for endpoints on two nodes (use /30 or shorter)
c.yaml:5: networks[0].subnets[1]: 0.0.0.0/0 is too large (use /8 or longer)
c.yaml:6: networks[0].subnets[2]: fd00::/127 is too small for endpoints on two nodes (use /126 or shorter)
c.yaml:7: networks[0].subnets[3]: "10.1.2.3" is not a subnet (add a prefix length: "10.1.2.0/24")
c.yaml:8: networks[0].subnets[4]: "fd01::1" is not a subnet (add a prefix length: "fd01::/64")
c.yaml:9: networks[0].subnets[5]: "10.1/16" is not a subnet (for example "10.77.0.0/16" or "fd77::/64")`},
		{"reserved subnets", "networks:\n  - name: a\n    subnets: [127.0.0.0/16, 224.0.0.0/8, fe80::/64, 240.0.0.0/8, \"::ffff:10.0.0.0/112\"]\n",
			`c.yaml:3: networks[0].subnets[0]: 127.0.0.0/16 is reserved and cannot number endpoints (use a private subnet such as "10.77.0.0/16" or "fd77::/64")
c.yaml:3: networks[0].subnets[1]: 224.0.0.0/8 is reserved and cannot number endpoints (use a private subnet such as "10.77.0.0/16" or "fd77::/64")
c.yaml:3: networks[0].subnets[2]: fe80::/64 is reserved and cannot number endpoints (use a private subnet such as "10.77.0.0/16" or "fd77::/64")
c.yaml:3: networks[0].subnets[3]: 240.0.0.0/8 is reserved and cannot number endpoints (use a private subnet such as "10.77.0.0/16" or "fd77::/64")
c.yaml:3: networks[0].subnets[4]: ::ffff:10.0.0.0/112 is an IPv4-mapped subnet (write it as IPv4)`},
		{"overlap within", "networks:\n  - name: a\n    subnets: [10.0.0.0/16, 10.0.4.0/24]\n",
			`c.yaml:3: networks[0].subnets[1]: 10.0.4.0/24 overlaps 10.0.0.0/16 of the same network (line 3) (choose subnets that do not overlap)`},
		{"overlap across", net + "  - name: b\n    subnets: [fd00::/64, 10.0.0.0/8]\n",
			`c.yaml:5: networks[1].subnets[1]: 10.0.0.0/8 overlaps 10.77.0.0/16 of network "blue" (line 3) (choose subnets that do not overlap)`},
		{"vni range", net + "    vni: 16777216\n",
			`c.yaml:4: networks[0].vni: VNI 16777216 is out of range (1 to 16777215, for example 16777215; or remove the line to derive it from the name)`},
		{"vni twice", net + "    vni: 7\n  - {name: b, vni: 7, subnets: [10.1.0.0/16]}\n",
			`c.yaml:5: networks[1].vni: VNI 7 is taken by network "blue" (line 4) (set vni: 8)`},
		{"vni of a derived one", "networks:\n  - {name: blue, subnets: [10.2.0.0/16]}\n  - {name: b, vni: 12622615, subnets: [10.1.0.0/16]}\n",
			`c.yaml:3: networks[1].vni: VNI 12622615 is taken by network "blue" (line 2) (set vni: 12622616)`},
		{"ports", "data: {port: 0, vxlan_port: 65536}\n",
			`c.yaml:1: data.port: port 0 is out of range (1 to 65535, for example 1)
c.yaml:1: data.vxlan_port: port 65536 is out of range (1 to 65535, for example 65535)`},
		{"same port", "data:\n  port: 4789\n", `c.yaml:1: data.vxlan_port: UDP port 4789 is taken by data.port; the tunnels use 4789 to 4791 (choose another port)`},
		{"third port", "data: {port: 7944, vxlan_port: 7945}\n",
			`c.yaml:1: data.port: UDP port 7946 is taken by control.bind; the tunnels use 7944 to 7946 (choose another port)
c.yaml:1: data.vxlan_port: UDP port 7945 is taken by data.port; the tunnels use 7944 to 7946 (choose another port)`},
		{"last port", "data: {port: 65534}\n", `c.yaml:1: data.port: port 65534 leaves no room: the tunnels use 3 ports from it on (1 to 65533)`},
		{"durations", "keys:\n  rotate_every: 12\n  min_interval: -1m\n  drain: 5 min\n  quiet: [1s]\n  hold_down: true\n",
			`c.yaml:2: keys.rotate_every: "12" is not a duration (give it a unit: 12s, 12m or 12h)
c.yaml:3: keys.min_interval: the duration "-1m" is negative (write "1m")
c.yaml:4: keys.drain: "5 min" is not a duration (write "5m")
c.yaml:5: keys.quiet: want a duration, have a list
c.yaml:6: keys.hold_down: want a duration, have true or false: "true"`},
		{"short durations", "keys: {rotate_every: 59s, min_interval: 0, drain: 999ms, quiet: 1ns, hold_down: 59s}\n",
			`c.yaml:1: keys.rotate_every: 59s is too short (at least 1m; 0: only on command; shorter ones with control.profile: local only)
c.yaml:1: keys.min_interval: 0s is too short (at least 1s; shorter ones with control.profile: local only)
c.yaml:1: keys.drain: 999ms is too short (at least 1s; shorter ones with control.profile: local only)
c.yaml:1: keys.quiet: 1ns is too short (at least 1s; shorter ones with control.profile: local only)
c.yaml:1: keys.hold_down: 59s is too short (at least 1m; shorter ones with control.profile: local only)`},
		{"long durations", "keys: {rotate_every: 8761h, min_interval: 61m, drain: 11m, quiet: 10m1s, hold_down: 1000h}\n", `c.yaml:1: keys.rotate_every: 8761h is too long (at most 8760h; 0: only on command)
c.yaml:1: keys.min_interval: 1h1m is too long (at most 1h)
c.yaml:1: keys.drain: 11m is too long (at most 10m)
c.yaml:1: keys.quiet: 10m1s is too long (at most 10m)
c.yaml:1: keys.hold_down: 1000h is too long (at most 720h)`},
		{"durations that contradict", "keys: {rotate_every: 5m, min_interval: 10m, drain: 5m, hold_down: 4m}\n", `c.yaml:1: keys.rotate_every: 5m is shorter than keys.min_interval, 10m (at least 10m)
c.yaml:1: keys.hold_down: 4m is shorter than keys.drain, 5m (at least 5m)`},
		{"local durations", "control: {profile: local}\nkeys: {rotate_every: 9ms, drain: 0, hold_down: 0}\n", `c.yaml:2: keys.rotate_every: 9ms is too short (at least 10ms; 0: only on command)
c.yaml:2: keys.drain: 0s is too short (at least 10ms)
c.yaml:2: keys.hold_down: 0s is too short (at least 1s)`},
		{"esp limits", "keys: {esp_max_packets: 999, esp_max_bytes: 17592186044417}\n", `c.yaml:1: keys.esp_max_packets: 999 is too few (at least 1000)
c.yaml:1: keys.esp_max_bytes: 17592186044417 is more than one key should encrypt (at most 17592186044416, which is the default)`},
		{"clock tolerance", "crypto: {clock_tolerance: 25h}\n", `c.yaml:1: crypto.clock_tolerance: 25h is too long (at most 24h)`},
		{"no clock tolerance", "crypto: {clock_tolerance: 0}\n", `c.yaml:1: crypto.clock_tolerance: 0s is too short (at least 1s)`},
		{"require_pq", "crypto: {require_pq: yes}\nipsec: {encap: upd}\n", `c.yaml:1: crypto.require_pq: want true or false, have a text: "yes" (write true, without quotes)
c.yaml:2: ipsec.encap: unknown value "upd" (did you mean "udp"? one of auto, none, udp)`},
		{"metrics", "metrics: {listen: 0.0.0.0:9100}\n", `c.yaml:1: metrics.listen: 0.0.0.0 is not a loopback address, and metrics have no authentication: they would tell others who talks to whom (write "127.0.0.1:9100", and let a collector on this host read it)`},
		{"metrics without address", "metrics:\n  listen: :9100\n", `c.yaml:2: metrics.listen: ":9100" is not an address with a port (write "127.0.0.1:9100")`},
		{"metrics without port", "metrics: {listen: 127.0.0.1}\n", `c.yaml:1: metrics.listen: "127.0.0.1" is not an address with a port (write "127.0.0.1:9947")`},
		{"metrics on the control port", "metrics: {listen: 127.0.0.1:7946}\n", `c.yaml:1: metrics.listen: TCP port 7946 is taken by control.bind (choose another port)`},
		{"plaintext with driver", net + "    encrypted: false\n    driver: wireguard\n",
			`c.yaml:5: networks[0].driver: network "blue" has encrypted: false and driver: wireguard, which contradict each other (remove encrypted: false to encrypt the network, or remove the driver)`},
		{"two drivers", net + "    driver: ipsec\n  - {name: b, subnets: [10.1.0.0/16], driver: userspace}\n",
			`c.yaml:5: networks[1].driver: network "b" asks for driver userspace, network "blue" (line 4) for ipsec; all encrypted networks share one tunnel (set driver: ipsec here, or remove one of the two)`},
		{"unknown driver", net + "    driver: wiregard\n",
			`c.yaml:4: networks[0].driver: unknown value "wiregard" (did you mean "wireguard"? one of auto, wireguard, userspace, ipsec, ipsec-userspace)`},
		{"encrypted spellings", "networks:\n" +
			"  - {name: a, subnets: [10.1.0.0/16], encrypted: yes please}\n" +
			"  - {name: b, subnets: [10.2.0.0/16], encrypted: no}\n" +
			"  - {name: c, subnets: [10.3.0.0/16], encrypted: \"false\"}\n" +
			"  - {name: d, subnets: [10.4.0.0/16], encrypted: False}\n" +
			"  - {name: e, subnets: [10.5.0.0/16], encrypted: 0}\n" +
			"  - {name: f, subnets: [10.6.0.0/16], encrypted: !!bool false}\n" +
			"  - {name: g, subnets: [10.7.0.0/16], encrypted: }\n" +
			"  - {name: h, subnets: [10.8.0.0/16], encrypted: [false]}\n" +
			"  - {name: i, subnets: [10.9.0.0/16], encrypted: ~}\n",
			`c.yaml:2: networks[0].encrypted: want true or false, have a text: "yes please" (write true or false, without quotes)
c.yaml:3: networks[1].encrypted: want true or false, have a text: "no" (write false, without quotes)
c.yaml:4: networks[2].encrypted: want true or false, have a text: "false" (write false, without quotes)
c.yaml:5: networks[3].encrypted: want true or false, have true or false: "False" (write false, without quotes)
c.yaml:6: networks[4].encrypted: want true or false, have a whole number: "0" (write false, without quotes)
c.yaml:7: networks[5].encrypted: YAML tags are not supported (remove !!bool)
c.yaml:8: networks[6].encrypted: the value is empty (give it a value or remove the line)
c.yaml:9: networks[7].encrypted: want true or false, have a list (write true or false, without quotes)
c.yaml:10: networks[8].encrypted: the value is empty (give it a value or remove the line)`},
		{"hidden false", "networks:\n  - name: a\n    subnets: [10.0.0.0/16]\n    \"\\x65ncrypted\": false\n  - name: b\n    subnets: [10.1.0.0/16]\n    ? encrypted\n    : false\n  - name: c\n    subnets: [10.2.0.0/16]\n    encrypted:\n      false\n",
			"c.yaml:4: networks[0].encrypted: a network is left unencrypted only by the literal words (write `encrypted: false` on one line)\n" +
				"c.yaml:8: networks[1].encrypted: a network is left unencrypted only by the literal words (write `encrypted: false` on one line)\n" +
				"c.yaml:12: networks[2].encrypted: a network is left unencrypted only by the literal words (write `encrypted: false` on one line)"},
		{"merge key", "networks:\n  - &a {name: a, subnets: [10.1.0.0/16]}\n  - {<<: *a, name: b}\n",
			`c.yaml:2: networks[0]: YAML anchors, aliases and tags are not supported (write the network out)
c.yaml:3: networks[1].<<: unknown key (known here: driver, encrypted, gateways, internal, ip_ranges, labels, mtu, name, no_broadcast, reserve, subnets, vni)
c.yaml:3: networks[1].subnets: network "b" has no subnets (add subnets: ["10.77.0.0/16"])`},
		{"mtu", net + "    mtu: 100\n  - {name: b, subnets: [fd00::/64], mtu: 1279}\n  - {name: c, subnets: [10.1.0.0/16], mtu: 1.4e3}\n",
			`c.yaml:4: networks[0].mtu: MTU 100 is out of range (576 to 65535, or remove the line to derive it)
c.yaml:5: networks[1].mtu: MTU 1279 is too small for the IPv6 subnet fd00::/64 (IPv6 needs at least 1280 (RFC 8200))
c.yaml:6: networks[2].mtu: want a whole number, have a fraction: "1.4e3"`},
		{"numbers", "data: {port: 0x10, vxlan_port: \"4789\"}\n",
			`c.yaml:1: data.port: want a decimal number, have 0x10 (write digits only)
c.yaml:1: data.vxlan_port: want a whole number, have a text: "4789" (remove the quotes)`},
		{"empty values", "data_dir:\nlog:\n  level: \"\"\nnetworks:\n",
			`c.yaml:1: data_dir: the value is empty (give it a value or remove the line)
c.yaml:3: log.level: the value is empty (give it a value or remove the line)
c.yaml:4: networks: the value is empty (give it a value or remove the line)`},
		{"networks as a map", "networks:\n  blue: {subnets: [10.0.0.0/16]}\n",
			`c.yaml:2: networks: want a list of networks, have a group of keys (write each network as a list item: - name: blue)`},
		{"network as a word", "networks: [blue]\n", `c.yaml:1: networks[0]: a network is a text, not a group of keys (write - name: blue)`},
		{"subnets as a word", "networks:\n  - {name: a, subnets: 10.0.0.0/16}\n",
			`c.yaml:2: networks[0].subnets: want a list of texts, have a text: "10.0.0.0/16" (write it as a list: ["10.0.0.0/16"])`},
		{"directories", "data_dir: var/lib\nruntime_dir: /run/x/\n",
			`c.yaml:1: data_dir: "var/lib" is not an absolute path (start it with /)
c.yaml:2: runtime_dir: "/run/x/" is not a plain path (write "/run/x")`},
		{"directories nested", "data_dir: /x/y\nruntime_dir: /x\n",
			`c.yaml:2: runtime_dir: data_dir /x/y and runtime_dir /x must not contain each other (choose two separate directories)`},
		{"socket path", "runtime_dir: /" + strings.Repeat("x", 100) + "\n",
			`c.yaml:1: runtime_dir: the path of the control socket in it is 112 characters long, 107 fit (choose a shorter path)`},
		{"addresses", "control:\n  bind: :7946\n  advertise: 0.0.0.0:7946\n  seeds: [10.0.0.1, host, 10.0.0.1:0, \"a b:1\", h:1, H:1, 1.2.3:5]\n",
			`c.yaml:2: control.bind: ":7946" is not an address with a port (write "[::]:7946")
c.yaml:3: control.advertise: 0.0.0.0 is no address that others can reach (use an address of this host)
c.yaml:4: control.seeds[0]: "10.0.0.1" has no port (write "10.0.0.1:7946")
c.yaml:4: control.seeds[1]: "host" has no port (write "host:7946")
c.yaml:4: control.seeds[2]: "10.0.0.1:0" is nothing that can be contacted (write the address and port of a member)
c.yaml:4: control.seeds[3]: "a b:1" is not host:port (for example "10.0.0.11:7946")
c.yaml:4: control.seeds[5]: "H:1" stands in the list twice, first as number 5 (keep one of them)
c.yaml:4: control.seeds[6]: "1.2.3:5" is not host:port (for example "10.0.0.11:7946")`},
		{"advertised addresses", "control:\n  advertise: '10.0.0.1:7946, [fd00::1]:7946, 10.0.0.2:7946, [fe80::1%eth0]:1, x'\n",
			`c.yaml:2: control.advertise: 10.0.0.2 is the second address of its family (name one IPv4 and one IPv6 address at most)
c.yaml:2: control.advertise: fe80::1%eth0 has a zone, which means nothing on another host (use a global address of this host)
c.yaml:2: control.advertise: "x" is not an address with a port (write address:port, for example "[::]:7946")`},
		{"bracket address", "control:\n  bind: [::]:7946\n", `c.yaml:2: not valid YAML: did not find expected node content (quote an address in brackets: "[::]:7946")`},
		{"choices", "control: {profile: lann}\nlog: {level: verbose, format: xml}\n",
			`c.yaml:1: control.profile: unknown value "lann" (did you mean "lan"? one of lan, wan, local)
c.yaml:2: log.level: unknown value "verbose" (one of debug, info, warn, error)
c.yaml:2: log.format: unknown value "xml" (one of text, json)`},
		{"tabs", "control:\n\tbind: x\n", `c.yaml:2: the line is indented with a tab (YAML wants spaces: use two for each level)`},
		{"byte order mark", "\ufefflog: {level: info}\n", `c.yaml:1: the file starts with a byte order mark (save it as UTF-8 without BOM)`},
		{"UTF-16", "\xff\xfel\x00", `c.yaml:1: the file is UTF-16 (save it as UTF-8 without BOM)`},
		{"not UTF-8", "log:\n  level: \xe4\n", `c.yaml:2: the file is not UTF-8 (save it as UTF-8 without BOM)`},
		{"two documents", "log: {level: info}\n---\nlog: {level: debug}\n", `c.yaml:2: a second YAML document starts here (keep one document: remove the --- line and what follows)`},
		{"a list", "- a\n- b\n", `c.yaml:1: the file is a list, not a group of keys (start with a key such as networks:)`},
		{"a word", "hello\n", `c.yaml:1: the file is a text, not a group of keys (start with a key such as networks:)`},
		{"odd key", "? [a]\n: b\n1: c\n", "c.yaml:1: a key here is a list, not a plain word\n" +
			`c.yaml:3: 1: unknown key (known here: control, crypto, data, data_dir, ipsec, keys, log, metrics, networks, node, runtime_dir)`},
		{"broken YAML", "log: {level: info\n", `c.yaml:1: not valid YAML: did not find expected ',' or '}'`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := load(t, tc.text)
			if err == nil {
				t.Fatalf("loaded: %+v", cfg)
			}
			if d := cmp.Diff(tc.want, report(t, err)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestManyNetworks(t *testing.T) {
	text := "networks:\n" + strings.Repeat("  - {name: a, subnets: [10.0.0.0/16]}\n", 20000)
	_, err := load(t, text)
	if got := report(t, err); !strings.Contains(got, "20000 networks, at most 256") {
		t.Errorf("got %.200s", got)
	}
}

func TestValidForms(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "comments": "# nothing\n", "empty groups": "node:\ncontrol:\n", "document start": "---\nlog: {level: warn}\n",
		"document end": "log: {level: warn}\n...\n", "json": `{"networks": [{"name": "a", "subnets": ["10.0.0.0/8"], "encrypted": false}]}`,
		"crlf":         "networks:\r\n  - name: a\r\n    subnets: [10.0.0.0/8]\r\n    encrypted: false\r\n",
		"comment":      "networks:\n  - name: a\n    subnets: [10.0.0.0/8]\n    encrypted: false # the lab\n",
		"auto is fine": "networks:\n  - {name: a, subnets: [10.0.0.0/8], encrypted: false, driver: auto}\n",
	} {
		if _, err := load(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
