package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// Times inside the machine: emulation is about ten times slower.
const (
	defaultSuiteSeconds = 240
	graceSeconds        = 10 // between the test binary's own limit, which explains itself, and killing it
)

// guestSuite is one entry of the guest's plan; see test/vm/guest.
type guestSuite struct {
	Name    string
	Dir     string
	Argv    []string
	Seconds int
}

// buildBinaries compiles the guest, the suites' test binaries and, if a suite
// needs it, the product into dir. All are static: the machine has no libc.
func buildBinaries(ctx context.Context, root, dir string, suites []Suite) error {
	flags := []string{"-trimpath", "-ldflags=-s -w"}
	build := func(args ...string) error {
		args = append([]string{"CGO_ENABLED=0", "go"}, args...)
		_, err := run(ctx, root, "env", args...)
		return err
	}
	if err := build(slices.Concat([]string{"build"}, flags, []string{"-o", filepath.Join(dir, "init"), "./test/vm/guest"})...); err != nil {
		return fmt.Errorf("build guest: %w", err)
	}
	product := false
	args := slices.Concat([]string{"test", "-c"}, flags, []string{"-o", dir + string(filepath.Separator)})
	for _, s := range suites {
		product = product || s.Product
		if pkg := "./" + s.Package; !slices.Contains(args, pkg) {
			args = append(args, pkg)
		}
	}
	if err := build(args...); err != nil {
		return fmt.Errorf("build test binaries: %w", err)
	}
	if product {
		out := filepath.Join(dir, path.Base(guestBinary))
		if err := build(slices.Concat([]string{"build"}, flags, []string{"-o", out, "./cmd/secure-overlay"})...); err != nil {
			return fmt.Errorf("build product: %w", err)
		}
	}
	return nil
}

// testBinary is the file name that go test -c gives a package's tests.
func testBinary(s Suite) string { return path.Base(s.Package) + ".test" }

// writeImage writes the initramfs from the binaries in dir.
func writeImage(file, root, dir string, modules []module, suites []Suite) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	a := newArchive(f)
	err = fillImage(a, root, dir, modules, suites)
	if err == nil {
		err = a.close()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return nil
}

func fillImage(a *archive, root, dir string, modules []module, suites []Suite) error {
	if err := a.file("init", filepath.Join(dir, "init")); err != nil {
		return err
	}
	for i, m := range modules {
		if err := a.bytes(fmt.Sprintf("modules/%03d-%s.ko", i, m.name), 0o644, m.image); err != nil {
			return err
		}
	}
	plan := struct {
		Env    []string
		Suites []guestSuite
	}{Env: GuestEnv()}
	product := false
	packed := map[string]bool{}
	for _, s := range suites {
		product = product || s.Product
		home := path.Join("suites", s.Package)
		binary := path.Join(home, testBinary(s))
		plan.Suites = append(plan.Suites, planned(s, "/"+home, "/"+binary))
		if packed[s.Package] {
			continue
		}
		packed[s.Package] = true
		if err := a.file(binary, filepath.Join(dir, testBinary(s))); err != nil {
			return fmt.Errorf("suite %s has no tests: %w", s.Package, err)
		}
		if err := a.tree(path.Join(home, "testdata"), filepath.Join(root, s.Package, "testdata")); err != nil {
			return err
		}
	}
	if product {
		if err := a.file(guestBinary[1:], filepath.Join(dir, path.Base(guestBinary))); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	return a.bytes("suites.json", 0o644, raw)
}

func planned(s Suite, home, binary string) guestSuite {
	seconds := s.Seconds
	if seconds == 0 {
		seconds = defaultSuiteSeconds
	}
	argv := []string{binary, "-test.v=test2json", "-test.paniconexit0", fmt.Sprintf("-test.timeout=%ds", seconds)}
	return guestSuite{
		Name: s.Name(), Dir: home, Seconds: seconds + graceSeconds,
		Argv: append(argv, s.Args...),
	}
}
