package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is one kernel module, read from its file.
type module struct {
	name  string
	image []byte   // the ELF file, decompressed
	needs []string // names of modules to be loaded before
}

// moduleSet finds modules of an unpacked kernel package. The package has no
// modules.dep, which is made at installation: each module names its own needs.
type moduleSet struct {
	files   map[string]string // by name
	builtin map[string]bool
}

// moduleName makes file names and module names comparable: the kernel takes
// dash and underscore for the same.
func moduleName(s string) string {
	base, _, _ := strings.Cut(filepath.Base(s), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}

// findModules indexes a folder lib/modules/RELEASE.
func findModules(dir string) (*moduleSet, error) {
	s := &moduleSet{files: make(map[string]string), builtin: make(map[string]bool)}
	raw, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("index kernel modules: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		s.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			s.files[moduleName(p)] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("index kernel modules: %w", err)
	}
	return s, nil
}

// resolve returns the wanted modules and all they need, in an order in which
// they can be loaded.
func (s *moduleSet) resolve(wanted []string) ([]module, error) {
	var order []module
	done := make(map[string]bool)
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if done[name] || s.builtin[name] {
			return nil
		}
		done[name] = true
		m, err := s.read(name)
		if err != nil {
			return err
		}
		for _, need := range m.needs {
			if err := visit(need); err != nil {
				return fmt.Errorf("%w, needed by %s", err, name)
			}
		}
		order = append(order, m)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, fmt.Errorf("resolve kernel modules: %w", err)
		}
	}
	return order, nil
}

// read loads a module's file and what its .modinfo section says.
func (s *moduleSet) read(name string) (module, error) {
	file := s.files[name]
	if file == "" {
		return module{}, fmt.Errorf("no module %s in this kernel", name)
	}
	image, err := readModule(file)
	if err != nil {
		return module{}, fmt.Errorf("read module %s: %w", name, err)
	}
	obj, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return module{}, fmt.Errorf("read module %s: %w", name, err)
	}
	section := obj.Section(".modinfo")
	if section == nil {
		return module{}, fmt.Errorf("read module %s: %w", name, errors.New("no .modinfo section"))
	}
	info, err := section.Data()
	if err != nil {
		return module{}, fmt.Errorf("read module %s: %w", name, err)
	}
	m := module{name: name, image: image}
	for _, entry := range strings.Split(string(info), "\x00") {
		if deps, ok := strings.CutPrefix(entry, "depends="); ok && deps != "" {
			m.needs = append(m.needs, strings.Split(deps, ",")...)
		}
		// "softdep=pre: a b" may name what this kernel does not have.
		if pre, ok := strings.CutPrefix(entry, "softdep=pre: "); ok {
			for _, dep := range strings.Fields(pre) {
				if s.files[moduleName(dep)] != "" {
					m.needs = append(m.needs, dep)
				}
			}
		}
	}
	return m, nil
}

// readModule reads a module's file, decompressed; newer Debian kernels have
// them compressed with xz.
func readModule(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	return exec.Command("xz", "-dc", file).Output()
}
