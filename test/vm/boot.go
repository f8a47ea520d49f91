package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// bootLimit ends a machine that never finishes; see limit.
const bootLimit = 25 * time.Minute

// Options says what Run does.
type Options struct {
	Root   string  // the module's root
	Suites []Suite // what runs inside
	// Progress is told what happens, line by line.
	Progress func(line string)
}

// Outcome is what came back from one suite.
type Outcome struct {
	Suite  string // its name
	Exit   string // "0", another exit code, "timeout", "unstarted", or "" if it never ended
	Output []byte // of the test binary, in the form go tool test2json reads
}

// Run does everything: kernel, binaries, initramfs, boot. An error means that
// the machine did not do its work; what tests found is in the outcomes. Outcomes
// come with an error, too, as far as there are any.
func Run(ctx context.Context, o Options) ([]Outcome, error) {
	start := time.Now()
	progress := func(format string, args ...any) {
		o.Progress(fmt.Sprintf("%5.1fs ", time.Since(start).Seconds()) + fmt.Sprintf(format, args...))
	}
	if err := ensureQemu(ctx); err != nil {
		return nil, err
	}
	k, err := fetchKernel(ctx)
	if err != nil {
		return nil, err
	}
	progress("kernel %s", k.release)
	set, err := findModules(k.modules)
	if err != nil {
		return nil, err
	}
	modules, err := set.resolve(wantedModules())
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "secure-overlay-vm-")
	if err != nil {
		return nil, fmt.Errorf("run virtual machine: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := buildBinaries(ctx, o.Root, dir, o.Suites); err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "initramfs")
	if err := writeImage(image, o.Root, dir, modules, o.Suites); err != nil {
		return nil, err
	}
	progress("%d modules, %d suites built; booting", len(modules), len(o.Suites))
	ctx, cancel := context.WithTimeout(ctx, limit(o.Suites))
	defer cancel()
	var outcomes []Outcome
	for range bootTries {
		outcomes, err = boot(ctx, dir, k.image, image, progress)
		progress("machine off")
		if !errors.Is(err, errEmulator) {
			break
		}
		progress("%v", err)
	}
	return outcomes, err
}

// bootTries is how often a machine is booted whose emulator fails before anything of ours runs.
const bootTries = 3

// errEmulator: the kernel died of the emulator, see emulatorFault.
var errEmulator = errors.New("the emulator failed while Linux booted")

// emulatorFault reports whether the machine went off because of qemu: nothing of ours had begun, and the kernel stopped at
// a breakpoint of its own. Linux patches its code while it boots, by way of a breakpoint (text_poke_bp),
// and with several emulated processors one of them now and then still finds it when it is gone.
// Seen once, with 6.12. Whatever happens later is a finding.
func emulatorFault(outcomes []Outcome, console []byte) bool {
	return len(outcomes) == 0 && bytes.Contains(console, []byte("Oops: int3:"))
}

// kernelWords is the kernel's command line.
func kernelWords() []string {
	return []string{
		"console=ttyS0", "loglevel=4", "panic=-1", "random.trust_cpu=on",
		// Emulation costs what real processors give for nothing. Without the first,
		// Linux takes the time from the HPET: an access to a device, and to qemu's one
		// lock, for every packet, timer and look at the clock. The emulated counter
		// is one for all processors, so it is reliable. The others are defences of a
		// machine that has no secret and no guest.
		"tsc=reliable", "mitigations=off", "init_on_alloc=0",
		netlab.GuestWord,
	}
}

// boot runs qemu until the machine is off.
func boot(ctx context.Context, dir, kernelImage, initramfs string, progress func(string, ...any)) ([]Outcome, error) {
	console := filepath.Join(dir, "console")
	cmd := exec.CommandContext(ctx, qemuProgram,
		// Emulation, never KVM: it must behave the same everywhere. A fifth level of
		// page tables would be walked in software, for nothing.
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2G",
		"-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot",
		"-kernel", kernelImage, "-initrd", initramfs,
		"-append", strings.Join(kernelWords(), " "),
		"-serial", "file:"+console, "-serial", "stdio")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("boot virtual machine: %w", err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("boot virtual machine: %w", err)
	}
	outcomes, done := collect(pipe, progress)
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if err == nil && !done {
		err = errors.New("it went off before all suites had run")
	}
	said, _ := os.ReadFile(console)
	if err != nil {
		if ctx.Err() == nil && emulatorFault(outcomes, said) {
			err = errEmulator
		}
		return outcomes, fmt.Errorf("boot virtual machine: %w\n%s\nconsole:\n%s", err, stderr.Bytes(), said)
	}
	if len(bytes.TrimSpace(said)) > 0 {
		progress("console:\n%s", bytes.TrimSpace(said))
	}
	return outcomes, nil
}

// collect splits the guest's output at its marker lines, until it ends. done
// reports whether the guest came to the end of its plan.
func collect(r io.Reader, progress func(string, ...any)) (outcomes []Outcome, done bool) {
	var cur *Outcome
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		raw, err := br.ReadString('\n')
		line := strings.TrimRight(raw, "\r\n")
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case word == "@@begin":
			progress("begin %s", rest)
			outcomes = append(outcomes, Outcome{Suite: rest})
			cur = &outcomes[len(outcomes)-1]
		case word == "@@end" && cur != nil:
			cur.Exit = rest[strings.LastIndexByte(rest, ' ')+1:]
			progress("end   %s: exit %s", cur.Suite, cur.Exit)
			cur = nil
		case word == "@@done":
			done = true
		case cur != nil && raw != "":
			// A test that has ended shows that the machine gets on.
			if result := strings.TrimPrefix(line, "\x16"); strings.HasPrefix(result, "--- ") {
				progress("      %s", result)
			}
			cur.Output = append(append(cur.Output, line...), '\n')
		}
		if err != nil {
			return outcomes, done
		}
	}
}
