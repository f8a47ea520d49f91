package wguser

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// maxLog bounds a worker's log file: when it is full it starts over.
const maxLog = 256 << 10

// boundedLog writes lines to standard error, which the driver has pointed at
// the device's log file. A worker runs for as long as a key epoch and
// wireguard-go repeats some errors every five seconds.
type boundedLog struct {
	mu   sync.Mutex
	size int
}

func (b *boundedLog) line(device, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.size > maxLog {
		// Fails harmlessly where standard error is no file.
		_ = os.Stderr.Truncate(0)
		b.size = 0
	}
	n, _ := fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().UTC().Format(time.RFC3339), device, text)
	b.size += n
}

// logger returns wireguard-go's logger for one device: errors only.
func logger(name string) *device.Logger {
	b := &boundedLog{}
	if st, err := os.Stderr.Stat(); err == nil && st.Mode().IsRegular() {
		b.size = int(st.Size())
	}
	return &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			if format == "%v" {
				// Only control requests that failed are logged like this, and
				// such an error may quote the request, which may hold a key.
				// The one who sent the request has the error number.
				b.line(name, "control request failed")
				return
			}
			b.line(name, fmt.Sprintf(format, args...))
		},
	}
}
