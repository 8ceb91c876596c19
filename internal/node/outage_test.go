package node_test

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/node/agent"
)

// A weak control plane stops issuing when it is told to.
type weak struct {
	agent.ControlPlane
	down atomic.Bool
}

func (w *weak) Issue(ctx context.Context, id identity.ID, csr []byte) ([]*x509.Certificate, error) {
	if w.down.Load() {
		return nil, errors.New("down")
	}
	return w.ControlPlane.Issue(ctx, id, csr)
}

// Ahead is a clock that a test moves on.
type ahead struct {
	clock.System
	by atomic.Int64
}

func (a *ahead) Now() time.Time { return time.Now().Add(time.Duration(a.by.Load())) }

// A certificate that ended is not one that has not come yet.
func TestStatusTellsAnEndedCertificate(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	text := "trust_domain: node.example\nservices: {a: {runs_as: {exe: /nobody/there}}}\n"
	cfg := config(t, dir, text)
	plane, clk := &weak{}, &ahead{}
	cfg.Clock, cfg.Wire = clk, func(p agent.ControlPlane) agent.ControlPlane { plane.ControlPlane = p; return plane }
	m := startWith(t, cfg)
	m.apply(text)
	service := func() api.ServiceStatus {
		t.Helper()
		st, err := m.api.Status(t.Context())
		if err != nil || len(st.Services) != 1 {
			t.Fatal(st.Services, err)
		}
		return st.Services[0]
	}
	if s := service(); s.State != api.StateOK || s.Serial == "" {
		t.Errorf("at first: %+v", s)
	}
	plane.down.Store(true)
	clk.by.Store(int64(2 * time.Hour))
	if s := service(); s.State != api.StateFailed || !strings.Contains(s.Note, "has ended") || s.Serial != "" {
		t.Errorf("after its end: %+v", s)
	}
}
