// Package dev is `parley dev`: a whole mesh on one machine, with the four
// services of a shop as processes of their own, and a tour of calls that shows
// what passes and what does not. It runs the same node as production does.
//
// It refuses to print: cmd/parley shows what it reports.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/node"
)

// Config says what to start. Self, Dir, Clock and Logger are required.
type Config struct {
	// Self is the executable of this program: the demo's applications are it.
	Self string
	// Dir is the data directory. It is kept from one start to the next.
	Dir string
	// Command is `parley dev` with the flags that it was given, for hints; those
	// that a hint is about may follow it.
	Command string
	// Store is the URL of a PostgreSQL database in place of the file in Dir. It may
	// hold a password and is never printed.
	Store string
	// Fresh forgets what is in Dir first, once nothing else stands in the way.
	Fresh bool
	// Try says that the tour is to be made, which needs the shop as it is built in.
	Try bool
	// MeshName and MeshText are a mesh file of one's own; without a text the
	// shop runs.
	MeshName string
	MeshText string
	// PortBase is the first of forty ports that the shop uses; 0 means those that it
	// had in Dir, DefaultPortBase at first, and less than 0 a free range.
	PortBase int
	// Metrics is where metrics and health are served, host:port; empty is beside
	// the shop's ports, and nowhere without the shop.
	Metrics string
	// Version is the program's.
	Version api.Version
	// Env is what the applications get of the environment.
	Env    []string
	Clock  clock.Clock
	Logger *slog.Logger
	// Debug, in tests, changes what is started so that the tour must notice.
	Debug Debug
}

// Debug breaks the mesh on purpose, so that a test can see --try fail.
type Debug struct {
	// Mesh changes the shop's mesh file.
	Mesh func(string) string
	// App changes what an application is told.
	App func(*AppConfig)
	// Node changes how the node is wired.
	Node func(*node.Config)
}

// A Mesh is a running one.
type Mesh struct {
	API *api.Client
	// Demo says that it is the shop.
	Demo bool
	// Dir, Socket and File are where its data, the Workload API and the mesh file
	// are.
	Dir, Socket, File string
	// Applied is what applying the mesh file said.
	Applied *api.ApplyResult
	// Base is the port base of the shop.
	Base int
	// Notes are what whoever started it has to know, in whole lines.
	Notes []string

	clock clock.Clock
	node  *node.Node
	apps  map[string]*process
	keys  map[string]string
	roots []byte
	ports map[[2]string]int
	// draft is the shop's mesh file as it was; changed says that the shop runs as
	// somebody changed it.
	draft   draft
	changed bool
	// file is the mesh file that is applied, metrics where they are served.
	file    *mesh.File
	metrics string
	// command and touring are what Config says.
	command string
	touring bool

	signer *signer
	issuer *http.Server
}

// stopTime bounds how long stopping may take.
const stopTime = 10 * time.Second

// Start starts a mesh and returns when every part of it is ready. Where it fails
// nothing is left running, a data directory that it made is gone again, and one
// that was there is as the refusing part found it. Stop it with Stop.
func Start(ctx context.Context, cfg Config) (_ *Mesh, err error) {
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	m := &Mesh{Dir: cfg.Dir, Demo: cfg.MeshText == "", command: cfg.Command, touring: cfg.Try, clock: cfg.Clock, apps: map[string]*process{}, keys: map[string]string{}}
	if m.Demo {
		if err := m.chooseDemo(&cfg); err != nil {
			return nil, err
		}
	}
	nc, err := m.nodeConfig(cfg)
	if err != nil {
		return nil, err
	}
	if err := nc.Check(); err != nil {
		return nil, err
	}
	if err := keys.CheckDir(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Fresh {
		if err := Forget(cfg.Dir); err != nil {
			return nil, err
		}
	}
	_, absent := os.Lstat(cfg.Dir)
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, m.Stop(context.WithoutCancel(ctx)))
		if errors.Is(absent, fs.ErrNotExist) && Forget(cfg.Dir) == nil {
			_ = os.Remove(cfg.Dir) // what somebody else put there in the meantime stays
		}
	}()
	if err := makeDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := m.startNode(ctx, nc); err != nil {
		return nil, m.hint(err)
	}
	// Nobody else uses the directory now, and nothing in it is damaged.
	m.File = cfg.MeshName
	if m.Demo {
		err = m.settle(ctx, &cfg)
	}
	if err != nil {
		return nil, err
	}
	if m.file, err = mesh.Parse(cfg.MeshName, []byte(cfg.MeshText)); err != nil {
		return nil, err
	}
	if err := m.install(cfg); err != nil {
		return nil, err
	}
	if m.Demo && m.signer.URL != m.IssuerURL() { // the newest revision has it elsewhere
		if err := errors.Join(m.issuer.Close(), m.startIssuer(ctx)); err != nil {
			return nil, m.hint(err)
		}
	}
	if err := m.apply(ctx, cfg); err != nil {
		return nil, m.hint(err)
	}
	if m.Demo {
		err = m.startShop(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	// Last, so that whoever sees it finds the whole mesh ready.
	return m, keys.WriteMode(filepath.Join(cfg.Dir, "ca.pem"), m.roots, 0o644)
}

// makeDir makes the data directory. Services may run as other users: they have to
// get to the Workload API's socket, and everything else in here has a mode of its
// own.
func makeDir(dir string) error {
	err := os.MkdirAll(dir, 0o711)
	var at *fs.PathError
	if errors.As(err, &at) {
		return fault.Wrap(at.Err, fault.DirUnusable, "ls -ld "+quote(filepath.Dir(dir))+", or choose another: --dir /tmp/p", "the data directory %s cannot be made", dir)
	}
	return err
}

// install puts the executables, and the shop's mesh file where it can be read.
func (m *Mesh) install(cfg Config) error {
	names := []string{"parley"}
	if m.Demo {
		names = append(append(names, demoServices...), "stranger")
	}
	if err := install(cfg.Self, binDir(cfg.Dir), names...); err != nil || !m.Demo {
		return err
	}
	if err := m.appPortsFree(); err != nil {
		return err
	}
	return m.writeMesh(cfg)
}

// nodeConfig is what the node of this mesh is started with.
func (m *Mesh) nodeConfig(cfg Config) (node.Config, error) {
	host, err := os.Hostname()
	if err != nil {
		return node.Config{}, err
	}
	m.Socket = filepath.Join(cfg.Dir, "workload.sock")
	nc := node.Config{
		Host: host, Dir: cfg.Dir, Store: cfg.Store, Socket: m.Socket, APISocket: filepath.Join(cfg.Dir, "api.sock"),
		MeshName: cfg.MeshName, MeshText: cfg.MeshText, Version: cfg.Version, Clock: cfg.Clock, Logger: cfg.Logger,
	}
	if nc.Metrics = cfg.Metrics; nc.Metrics == "" && m.Demo {
		nc.Metrics = fmt.Sprintf("127.0.0.1:%d", m.Base+offMetrics)
	}
	m.metrics = nc.Metrics
	if m.Demo {
		nc.DemoBin = binDir(cfg.Dir)
		nc.Before = m.startIssuer // its keys are asked for by the revision of the last start
	}
	if cfg.Debug.Node != nil {
		cfg.Debug.Node(&nc)
	}
	return nc, nil
}

// startNode runs server and agent in this process.
func (m *Mesh) startNode(ctx context.Context, nc node.Config) (err error) {
	if m.node, err = node.Start(ctx, nc); err != nil {
		return err
	}
	m.API, err = api.New(nc.APISocket)
	return err
}

// apply makes the mesh file the desired state, and learns what clients of the gateway
// have to trust.
func (m *Mesh) apply(ctx context.Context, cfg Config) (err error) {
	m.Applied, err = m.API.Apply(ctx, api.ApplyRequest{Name: cfg.MeshName, Text: cfg.MeshText, Message: "parley dev"})
	if err != nil {
		return err
	}
	if m.Applied.Fault.Code != "" && !m.Applied.Running { // what of it is not open is shown with the rest
		return m.Applied.Fault.Fault()
	}
	if r := m.Applied; !m.Demo && r.Previous > 0 && !r.Unchanged {
		m.note("%s differs from revision %d, which ran last, so it is applied. Undo it:  %s config rollback %d", cfg.MeshName, r.Previous, m.Command(), r.Previous)
	}
	m.ports = map[[2]string]int{}
	for _, p := range m.Applied.Ports {
		m.ports[[2]string{p.From, p.To}] = p.Port
	}
	m.roots, err = m.API.Bundle(ctx)
	return err
}

// startShop starts the applications and sees to the two API keys.
func (m *Mesh) startShop(ctx context.Context, cfg Config) error {
	if err := m.demoKeys(ctx); err != nil {
		return err
	}
	for _, app := range m.shop() {
		if cfg.Debug.App != nil {
			cfg.Debug.App(&app)
		}
		p, err := spawn(ctx, binDir(cfg.Dir), app, cfg.Env)
		if err != nil {
			return err
		}
		m.apps[app.Name] = p
	}
	return nil
}

// demoKeys makes the API keys of the demo, or finds those of the last start.
// They are kept in the data directory so that the commands it prints work.
func (m *Mesh) demoKeys(ctx context.Context) error {
	live := map[string]bool{}
	list, err := m.API.Keys(ctx, api.ListKeysParams{Limit: 1000})
	if err != nil {
		return err
	}
	for _, k := range list.Items {
		live[k.ID] = k.Revoked.IsZero()
	}
	for name, scopes := range map[string][]string{"reader": {"shop.read"}, "buyer": {"shop.read", "shop.buy"}} {
		path := filepath.Join(m.Dir, name+".key")
		if text, err := os.ReadFile(path); err == nil {
			key := strings.TrimSpace(string(text))
			if id, err := authn.ParseKey(key); err == nil && live[id] {
				m.keys[name] = key
				continue
			}
		}
		k, err := m.API.CreateKey(ctx, api.KeyRequest{Name: name, Scopes: scopes})
		if err != nil {
			return err
		}
		m.keys[name] = k.Secret
		if err := keys.Write(path, []byte(k.Secret+"\n")); err != nil {
			return err
		}
	}
	return nil
}

// Key is the demo API key called name: reader or buyer.
func (m *Mesh) Key(name string) string { return m.keys[name] }

// Now is the mesh's clock.
func (m *Mesh) Now() time.Time { return m.clock.Now() }

// Done is closed when the node ended by itself; Err then says why.
func (m *Mesh) Done() <-chan struct{} { return m.node.Done() }

// Err is why the node ended.
func (m *Mesh) Err() error { return m.node.Err() }

// Stop stops the applications and then the node, and returns when nothing of
// them runs any more.
func (m *Mesh) Stop(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, stopTime)
	defer done()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(m.apps)) {
		errs = append(errs, m.apps[name].stop(ctx, m.clock))
	}
	if m.API != nil {
		m.API.Close()
	}
	if m.issuer != nil {
		errs = append(errs, m.issuer.Close())
	}
	if m.node != nil {
		errs = append(errs, m.node.Stop(ctx))
	}
	return errors.Join(errs...)
}

// GatewayURL is where the shop's edge listens.
func (m *Mesh) GatewayURL() string { return fmt.Sprintf("https://localhost:%d", m.Base+offGateway) }

// MetricsURL is where metrics are served, "" where they are not.
func (m *Mesh) MetricsURL() string {
	if m.metrics == "" {
		return ""
	}
	return fmt.Sprintf("http://%s/metrics", m.metrics)
}

// Way is the address of the outbound listener from one service to another.
func (m *Mesh) Way(from, to string) string { return m.way(hop{from, to}) }

func (m *Mesh) way(h hop) string {
	app, ok := m.apps[h.from]
	if h.from == "web" && ok {
		switch h.to { // what the application was told is what it uses
		case "orders":
			return app.Orders
		case "payments":
			return app.Payments
		}
	}
	return m.outbound(h.from, h.to)
}

func (m *Mesh) ask(ctx context.Context, app string, q ask) answer {
	ctx, done := context.WithTimeout(ctx, 2*callTimeout)
	defer done()
	return m.apps[app].ask(ctx, q)
}
