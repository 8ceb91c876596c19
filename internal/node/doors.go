package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"runtime/metrics"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
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
		TrustDomain: srv.Bundle().TrustDomain, Revisions: srv.Store(), Keys: srv.Store(), Bans: srv.Store(), Events: evidence{srv.Store(), rt.node.agent, srv.Fleet().Hosts}, Evidence: srv.Store(), Eraser: srv.Store(), Certificates: rt, Collector: rt,
		Runtime: rt, Prober: prober{rt.node}, Hosts: hosts{srv}, Logs: logs{srv, logging.Of(cfg.Logger)}, Admins: hosts{srv}, Version: cfg.Version, Host: cfg.Host, Clock: cfg.Clock, Logger: cfg.Logger,
	})
	doors := []door{{l, admin}}
	if remote := srv.Admins(); remote != nil {
		doors = append(doors, door{remote, admin})
	}
	if cfg.Metrics == "" {
		return doors, nil
	}
	health, err := openHealth(cfg.Metrics, registry, cfg.Version, rt.node.ready)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return append(doors, health), nil
}

// openHealth binds the address of metrics and health.
func openHealth(addr string, registry *metric.Registry, v api.Version, ready http.HandlerFunc) (door, error) {
	l, err := listenMetrics(addr)
	if err != nil {
		return door{}, err
	}
	processMetrics(registry, v)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", registry.Handler())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", ready)
	return door{newFew(l, maxMetrics), plain{&http.Server{
		Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: metricsIdle, MaxHeaderBytes: 16 << 10,
	}}}, nil
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

// ready says whether the newest update runs in full here, every listener of it is
// open and every service has a credential; with ?verbose it prints one line for each.
// Losing the control plane does not make it unready. A process without an agent is
// ready once it runs.
func (n *Node) ready(w http.ResponseWriter, r *http.Request) {
	ok, lines := true, ""
	for _, c := range n.checks() {
		if ok = ok && c.err == nil; c.err != nil {
			lines += fmt.Sprintf("NO  %s: %v\n", c.name, c.err)
		} else {
			lines += "ok  " + c.name + "\n"
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if r.URL.Query().Has("verbose") {
		_, _ = io.WriteString(w, lines)
	}
	_, _ = io.WriteString(w, map[bool]string{true: "ok\n", false: "not ready\n"}[ok])
}

// A check is one thing that has to be so for a process to be ready.
type check struct {
	name string
	err  error
}

func (n *Node) checks() []check {
	if n.agent == nil {
		return nil
	}
	u := n.agent.Current()
	if u == nil {
		return []check{{"revision", errors.New("none yet")}}
	}
	all := []check{{fmt.Sprintf("revision %d", u.Snapshot.Revision), n.agent.Failure()}}
	for _, l := range n.agent.Status() {
		all = append(all, check{"listener " + l.Name, l.Error})
	}
	for _, s := range u.Snapshot.Services {
		_, _, err := n.agent.Credential(s.ID)
		all = append(all, check{"certificate of " + s.Name, err})
	}
	for _, g := range u.Snapshot.Gateways {
		_, _, err := n.agent.Credential(g.ID)
		all = append(all, check{"certificate of " + g.Name, err})
	}
	return all
}

// processMetrics adds what an operator looks at first when a process grows.
func processMetrics(r *metric.Registry, v api.Version) {
	r.Gauge("parley_build_info", "Always 1; the labels say which program this is.", "version", "commit", "go_version").
		Set(func() float64 { return 1 }, v.Version, v.Commit, v.GoVersion)
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
		err = nil // administrators come in by the agents' listener, which may close first
	}
	if !stop() {
		err = errors.Join(err, <-stopped)
	}
	return err
}
