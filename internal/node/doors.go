package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"runtime/metrics"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
	"github.com/parleymesh/parley/internal/node/server"
)

// openDoors binds the admin API's socket and, where wanted, the address of
// metrics and health.
func openDoors(cfg Config, srv *server.Server, rt *runtime, registry *metric.Registry) ([]door, error) {
	l, err := control.Listen(cfg.APISocket)
	if err != nil {
		return nil, err
	}
	admin := control.New(control.Config{
		TrustDomain: srv.Bundle().TrustDomain, Revisions: srv.Store(), Keys: srv.Store(), Bans: srv.Store(), Events: evidence{srv.Store(), rt.node.agent}, Certificates: rt, Collector: rt,
		Runtime: rt, Hosts: hosts{srv}, Admins: hosts{srv}, Version: cfg.Version, Host: cfg.Host, Clock: cfg.Clock, Logger: cfg.Logger,
	})
	doors := []door{{l, admin}}
	if remote := srv.Admins(); remote != nil {
		doors = append(doors, door{remote, admin})
	}
	if cfg.Metrics == "" {
		return doors, nil
	}
	health, err := openHealth(cfg.Metrics, registry, rt.node.ready)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return append(doors, health), nil
}

// openHealth binds the address of metrics and health.
func openHealth(addr string, registry *metric.Registry, ready http.HandlerFunc) (door, error) {
	l, err := listenMetrics(addr)
	if err != nil {
		return door{}, err
	}
	processMetrics(registry)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", registry.Handler())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", ready)
	return door{l, plain{&http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}}}, nil
}

// hosts lets hosts and administrators in.
type hosts struct{ *server.Server }

// NewJoin implements control.Hosts.
func (h hosts) NewJoin(ctx context.Context, host string, ttl time.Duration, actor *audit.Actor) (string, time.Time, error) {
	j, err := h.Server.NewJoin(ctx, host, ttl, actor)
	if err != nil {
		return "", time.Time{}, err
	}
	return j.Token.String(), j.Expires, nil
}

// IssueAdmin implements control.Admins.
func (h hosts) IssueAdmin(ctx context.Context, id identity.ID, csr []byte) ([][]byte, error) {
	chain, err := h.Registrar().IssueAdmin(ctx, id, csr)
	if err != nil {
		return nil, err
	}
	return link.RawChain(chain), nil
}

// plain is an http.Server whose Serve ends without an error when it is shut down.
type plain struct{ *http.Server }

func (p plain) Serve(l net.Listener) error {
	if err := p.Server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown cuts the connections that are left when ctx ends.
func (p plain) Shutdown(ctx context.Context) error {
	if err := p.Server.Shutdown(ctx); err != nil {
		return errors.Join(err, p.Server.Close())
	}
	return nil
}

// ready says whether every listener of the snapshot is open and every service
// has a credential. Losing the control plane does not make it unready. A process
// without an agent is ready once it runs.
func (n *Node) ready(w http.ResponseWriter, _ *http.Request) {
	ok := true
	if n.agent != nil {
		u := n.agent.Current()
		if ok = u != nil; ok {
			for _, l := range n.agent.Status() {
				ok = ok && l.Error == nil
			}
			for _, s := range u.Snapshot.Services {
				_, _, err := n.agent.Credential(s.ID)
				ok = ok && err == nil
			}
		}
	}
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte("not ready\n"))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// processMetrics adds what an operator looks at first when a process grows.
func processMetrics(r *metric.Registry) {
	r.Gauge("parley_process_heap_live_bytes", "Heap in use after the last garbage collection.").Set(func() float64 {
		s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(s)
		return float64(s[0].Value.Uint64())
	})
	r.Gauge("parley_process_goroutines", "Goroutines.").Set(func() float64 { return float64(goruntime.NumGoroutine()) })
	r.Gauge("parley_process_open_fds", "Open file descriptors.").Set(func() float64 {
		d, err := os.Open("/proc/self/fd")
		if err != nil {
			return 0
		}
		defer d.Close()
		names, _ := d.Readdirnames(-1) // what could be read is the count
		return float64(len(names) - 1) // not the one that is reading
	})
}

// A door is a server on a listener that is open already.
type door struct {
	listener net.Listener
	server   interface {
		Serve(net.Listener) error
		Shutdown(context.Context) error
	}
}

// doorTime is how long requests in flight get to end. It and drainTime, which
// follows, are over before whoever started the node loses patience.
const doorTime = 3 * time.Second

// serve runs until ctx ends, and lets requests in flight end. A client that holds
// its connection for longer is cut off: that is no failure of the node's.
func (d door) serve(ctx context.Context) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		late, done := context.WithTimeout(context.WithoutCancel(ctx), doorTime)
		defer done()
		err := d.server.Shutdown(late)
		if late.Err() != nil && errors.Is(err, late.Err()) {
			err = nil
		}
		stopped <- err
	})
	err := d.server.Serve(d.listener)
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		err = nil // agents and administrators share an address: who stops first closes it
	}
	if !stop() {
		err = errors.Join(err, <-stopped)
	}
	return err
}
