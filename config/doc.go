// Package config turns a YAML file, SECURE_OVERLAY_* environment variables and
// command-line flags into one checked, immutable value.
//
// It owns: the names of all settings and their defaults, the strict reading
// of the file, the rules that a configuration must meet, and the memory of
// where each value came from. It does not own any behaviour that follows
// from a setting, and it knows no domain package but internal/ids.
//
// Invariants: Load either returns a Config that meets every rule or a
// *Problems error that lists all violations with file, line, key and the
// nearest valid choice. A network is encrypted unless the file says literally
// `encrypted: false`; no other spelling, absence or mistake decodes to false.
// Precedence is flag, environment, file, default.
//
// Start with Load and Config; testdata/reference.yaml documents every key.
package config
