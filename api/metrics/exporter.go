package metrics

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/secure-overlay/secure-overlay/api"
)

// ContentType is that of what Exporter writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Exporter writes the metrics of an agent. It may be used by several
// goroutines.
type Exporter struct {
	observer api.Observer
	keys     api.Keys
	process  *prometheus.Registry // of the agent's process: CPU, memory, descriptors
}

// New returns an exporter. keys may be nil: then there are no metrics of it.
func New(observer api.Observer, keys api.Keys) *Exporter {
	e := &Exporter{observer: observer, keys: keys, process: prometheus.NewRegistry()}
	e.process.MustRegister(
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(),
	)
	return e
}

// Write asks the agent and writes all metrics in Prometheus' text format. On
// an error of the agent, which it returns, nothing has been written: a scrape
// that fails is better than one with holes.
func (e *Exporter) Write(ctx context.Context, w io.Writer) error {
	s := snapshot{now: time.Now()}
	var err error
	if s.status, err = e.observer.Status(ctx); err != nil {
		return err
	}
	if e.keys != nil {
		k, err := e.keys.Keys(ctx)
		if err != nil {
			return err
		}
		s.keys = &k
	}
	return s.write(w, e.process)
}

// write gathers the snapshot, and more, into one text.
func (s snapshot) write(w io.Writer, more ...prometheus.Gatherer) error {
	own := prometheus.NewPedanticRegistry()
	if err := own.Register(s); err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	families, err := append(prometheus.Gatherers{own}, more...).Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return fmt.Errorf("write metrics: %w", err)
		}
	}
	return nil
}
