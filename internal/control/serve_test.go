package control_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/logging"
)

// meshFile is a mesh with each kind of thing in it.
const meshFile = `trust_domain: shop.example
services:
  web:
    runs_as: {user: web}
    calls: [orders]
  orders:
    runs_as: {user: orders}
    inbound: {listen: ":9443", app: 127.0.0.1:8080, protocol: http}
    allow:
      - {from: [web], methods: [GET, POST], paths: [/orders/**]}
  db:
    runs_as: {user: postgres}
    inbound: {listen: ":6432", app: 127.0.0.1:5432, protocol: tcp}
    allow:
      - {from: [orders]}
gateway:
  edge:
    listen: ":443"
    tls: {mesh_ca: {hosts: [api.shop.example]}}
    routes:
      - match: {path: /orders/**}
        to: orders
        require:
          any:
            - api_key: {scopes: [orders.read]}
            - jwt: {issuer: id, audience: orders, scopes: [orders.read]}
issuers:
  id: {issuer: "https://id.shop.example"}
`

// A house is a server on its socket with what stands behind it.
type house struct {
	*memory
	runtime *runtime
	prober  *prober
	admins  admins
	server  *control.Server
	client  *api.Client
	socket  string
	logged  *logged
	levels  *levels
}

// logged is a log that is written at any time.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newServer(t testing.TB) *house {
	t.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{memory: &memory{}, runtime: &runtime{bundle: &identity.Bundle{}}, admins: admins{}, logged: &logged{}, levels: newLevels()}
	h.prober = &prober{runtime: h.runtime}
	h.server = control.New(control.Config{
		TrustDomain: td, Revisions: h.memory, Keys: h.memory, Bans: h.memory, Hosts: h.memory, Logs: h.levels, Admins: h.admins, Events: h.memory, Evidence: h.memory, Eraser: h.memory, Certificates: h.memory, Collector: h.runtime, Runtime: h.runtime, Prober: h.prober,
		Version: api.Version{Version: "0.1.0", GoVersion: "go1.26", API: 1}, Host: "h1", Clock: hurried{}, Logger: logging.New(h.logged, logging.JSON, slog.LevelDebug, hurried{}),
	})
	return h
}

// serve is a server that answers on a socket until the test ends.
func serve(t *testing.T) *house {
	t.Helper()
	h := newServer(t)
	dir, err := os.MkdirTemp("", "parley") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h.socket = filepath.Join(dir, "api.sock")
	l, err := control.Listen(h.socket)
	if err != nil {
		t.Fatal(err)
	}
	h.server.SetReadTimeout(200 * time.Millisecond) // no request of a test takes longer to arrive
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.server.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	if h.client, err = api.New("unix://" + h.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.client.Close)
	return h
}

// applied is a house in which meshFile runs as revision 1.
func applied(t *testing.T) *house {
	t.Helper()
	h := serve(t)
	if _, err := h.client.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: meshFile}); err != nil {
		t.Fatal(err)
	}
	return h
}
