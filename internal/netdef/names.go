package netdef

// Limits of what an endpoint is called.
const (
	MaxServices = 8  // of one endpoint
	MaxDNSLabel = 63 // bytes
)

// IsDNSLabel reports whether s can be a label of a domain name here: 1 to 63 of a-z
// 0-9 and -, which does not stand at the ends (RFC 1123 section 2.1, in lower case,
// so that one name has one spelling).
func IsDNSLabel(s string) bool {
	if len(s) < 1 || len(s) > MaxDNSLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if b := s[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return false
		}
	}
	return true
}
