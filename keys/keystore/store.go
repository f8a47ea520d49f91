package keystore

import (
	"errors"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Errors of a data directory. Each is wrapped with the path and the remedy.
var (
	ErrNotInitialised = errors.New("this node belongs to no cluster yet")
	ErrExists         = errors.New("an identity exists already")
	ErrLocked         = errors.New("data directory is in use by another process")
	ErrUnsafe         = errors.New("open to other users")
	ErrCorrupt        = errors.New("file is damaged")
	ErrNewerVersion   = errors.New("file was written by a newer version")
	ErrNoIssuer       = errors.New("this node has no issuer key")
	ErrClosed         = errors.New("store is closed")
)

var errUnfinished = errors.New("not written yet")

// InitOptions describes a new cluster.
type InitOptions struct {
	Hostname    string    // of this node; keys.ValidHostname
	RootKeyFile string    // where the root's private key goes; default DIR/root.key
	Now         time.Time // default: the system clock
}

// Identity is what a node is. The secrets in it share memory with the Store:
// do not Wipe them, Close does.
type Identity struct {
	ID       ids.NodeID
	Hostname string
	Node     keys.NodePrivate
	Noise    keys.NoisePrivate

	// Set once the node is a member (Joined).
	Trust      keys.Trust
	Credential keys.Credential
	Cert       keys.Cert
	Access     keys.AccessKey
}

// Joined reports whether the node has been admitted: the fields after Noise
// are set.
func (i Identity) Joined() bool { return len(i.Credential.Cert) != 0 }

// Store is an open data directory. One process at a time holds it (flock).
// Its methods may be called from any goroutine.
type Store struct{}

// Init founds a cluster in dir, which it creates if need be: root key,
// issuer key with delegation, this node's identity and certificate, cluster
// access key. The root key goes to o.RootKeyFile and is not kept in the
// Store. It never overwrites anything: ErrExists where an identity is.
func Init(dir string, o InitOptions) (*Store, error) { return nil, errUnfinished }

// Prepare opens dir for a joiner and makes its identity and Noise keys unless
// they are there. Repeating it gives the same keys. ErrExists if the node is
// a member already.
func Prepare(dir, hostname string) (*Store, error) { return nil, errUnfinished }

// Open opens the data directory of a member: ErrNotInitialised if there is no
// identity or no certificate.
func Open(dir string) (*Store, error) { return nil, errUnfinished }

// Close releases the directory and wipes the secrets. Repeating it is
// harmless.
func (s *Store) Close() error { return nil }

// Dir returns the data directory.
func (s *Store) Dir() string { return "" }

// Warnings returns what Open had to put right, such as a damaged state file
// that was replaced by the previous copy. For the log; empty is normal.
func (s *Store) Warnings() []string { return nil }

// Identity returns the node's identity.
func (s *Store) Identity() (Identity, error) { return Identity{}, errUnfinished }

// Adopt makes a prepared node a member: it checks that the answer's
// certificate is for this node's keys and that its chain ends at trust.Root,
// and persists it. A member may adopt a newer certificate of its cluster.
func (s *Store) Adopt(trust keys.Trust, a keys.JoinAnswer) error { return errUnfinished }

// NextSeq returns a record sequence number that no earlier call has
// returned, also across crashes.
func (s *Store) NextSeq() (uint64, error) { return 0, errUnfinished }

// RaiseSeq makes every later NextSeq greater than seen. It is for a node
// that hears its own record with a sequence number it does not remember,
// because its data directory was restored from a backup.
func (s *Store) RaiseSeq(seen uint64) error { return errUnfinished }

// Seeds returns the addresses last saved.
func (s *Store) Seeds() []netip.AddrPort { return nil }

// SaveSeeds persists addresses of members for the next start. It writes only
// if they changed.
func (s *Store) SaveSeeds(seeds []netip.AddrPort) error { return errUnfinished }

// Issuer returns the issuer of this node, or ErrNoIssuer.
func (s *Store) Issuer() (*Issuer, error) { return nil, ErrNoIssuer }
