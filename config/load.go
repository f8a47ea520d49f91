package config

// Load reads, merges and checks a configuration. The error is *Problems if
// the content is at fault, and a plain error if the file cannot be read.
func Load(src Source) (Config, error) {
	return load(src)
}
