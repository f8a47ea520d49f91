package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	image   string // vmlinuz
	modules string // lib/modules/RELEASE
	release string
}

// CacheEnv names the environment variable for the folder in which kernels
// are kept between runs. The default is secure-overlay-vm in the user's cache
// folder, or /var/cache without one.
const CacheEnv = "SECURE_OVERLAY_VM_CACHE"

// KernelEnv names the environment variable for the folder of an unpacked kernel package that is
// booted instead of this Debian's own, such as one of a newer Debian (dpkg -x).
const KernelEnv = "SECURE_OVERLAY_VM_KERNEL"

// kernelPackage always depends on the newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

func cacheDir() string {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return dir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "secure-overlay-vm")
	}
	return "/var/cache/secure-overlay-vm"
}

// fetchKernel returns Debian's cloud kernel, downloaded and unpacked into the
// cache unless it is there, or the one that KernelEnv names. It is not installed: nothing on this machine changes.
func fetchKernel(ctx context.Context) (kernel, error) {
	if dir := os.Getenv(KernelEnv); dir != "" {
		return openKernel(dir)
	}
	name, err := realPackage(ctx)
	if err != nil {
		return kernel{}, err
	}
	dir := filepath.Join(cacheDir(), name)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	// The folder gets its name when it is complete, so that an interrupted
	// run leaves nothing that looks like a kernel.
	tmp, err := os.MkdirTemp(cacheDir(), "fetch-")
	if err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if _, err := run(ctx, tmp, "apt-get", "download", name); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return kernel{}, fmt.Errorf("fetch kernel: apt-get downloaded %v, %w", debs, err)
	}
	unpacked := filepath.Join(tmp, "unpacked")
	if _, err := run(ctx, tmp, "dpkg", "-x", debs[0], unpacked); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	if err := os.Rename(unpacked, dir); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	return openKernel(dir)
}

// realPackage finds the package that kernelPackage stands for today.
func realPackage(ctx context.Context) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", kernelPackage)
	if err != nil || !strings.Contains(out, "Depends: linux-image-") {
		// A fresh machine has no package lists yet.
		if _, err := run(ctx, "", "apt-get", "update"); err != nil {
			return "", fmt.Errorf("find kernel package: %w", err)
		}
		if out, err = run(ctx, "", "apt-cache", "depends", kernelPackage); err != nil {
			return "", fmt.Errorf("find kernel package: %w", err)
		}
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("find kernel package: %s depends on nothing", kernelPackage)
}

// openKernel looks into an unpacked package.
func openKernel(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("open kernel %s: %d images: %w", dir, len(images), os.ErrNotExist)
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	// Newer Debian packages have the modules under usr/lib.
	for _, lib := range []string{"lib", "usr/lib"} {
		modules := filepath.Join(dir, lib, "modules", release)
		if _, err := os.Stat(modules); err == nil {
			return kernel{image: images[0], modules: modules, release: release}, nil
		}
	}
	return kernel{}, fmt.Errorf("open kernel %s: no modules: %w", dir, os.ErrNotExist)
}

// qemuProgram is what boots the kernel.
const qemuProgram = "qemu-system-x86_64"

// ensureQemu installs qemu if it is missing: about 20 MB to download and 90 MB
// on disk without what Debian recommends.
func ensureQemu(ctx context.Context) error {
	if _, err := exec.LookPath(qemuProgram); err == nil {
		return nil
	}
	install := []string{"install", "-y", "-q", "--no-install-recommends", "qemu-system-x86"}
	if _, err := run(ctx, "", "apt-get", install...); err == nil {
		return nil
	}
	if _, err := run(ctx, "", "apt-get", "update"); err != nil {
		return fmt.Errorf("install qemu: %w", err)
	}
	if _, err := run(ctx, "", "apt-get", install...); err != nil {
		return fmt.Errorf("install qemu: %w", err)
	}
	return nil
}

// run runs a program of this machine and returns its standard output.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	out, err := cmd.Output()
	if err == nil {
		return string(out), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, out, exit.Stderr)
	}
	return string(out), fmt.Errorf("%s: %w", name, err)
}
