package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/node/server"
	"github.com/parleymesh/parley/internal/snapshot"
	"github.com/parleymesh/parley/internal/store"
)

// movable is a clock that a test moves.
type movable struct {
	clock.System
	offset atomic.Int64
}

func (m *movable) Now() time.Time { return m.System.Now().Add(time.Duration(m.offset.Load())) }

func open(t *testing.T, dir string, clk clock.Clock) *server.Server {
	t.Helper()
	s, err := server.Open(t.Context(), server.Config{Host: "test", Dir: dir, TrustDomain: domain(t), Clock: clk, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() }) // a second Close does nothing
	return s
}

func domain(t *testing.T) identity.TrustDomain {
	t.Helper()
	td, err := identity.ParseTrustDomain("server.example")
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// signers are the details of the events that say what signing certificates were
// made, with the serials.
func signers(t *testing.T, s *server.Server) (details, serials []string) {
	t.Helper()
	found, err := s.Store().Search(t.Context(), control.Filter{Action: string(audit.CACreated), Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		e, err := audit.Decode(f.Body)
		if err != nil {
			t.Fatal(err)
		}
		details, serials = append(details, e.Object.Detail), append(serials, e.Object.Serial)
	}
	return details, serials
}

func TestSigningCertificatesAreOnRecordOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		s := open(t, dir, clock.System{})
		details, serials := signers(t, s)
		if diff := cmp.Diff([]string{"root", "intermediate"}, details); diff != "" {
			t.Error(diff)
		}
		want := []string{identity.Serial(s.Authority().Root()), identity.Serial(s.Authority().Intermediate())}
		if diff := cmp.Diff(want, serials); diff != "" {
			t.Error(diff)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that dies when the authority is on disk and not on record.
func TestSigningCertificatesAreRecordedAfterACrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	logger := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "parley.db"), Host: "test", Clock: clock.System{}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	master, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ca.Open(ca.Config{Dir: filepath.Join(dir, "ca"), TrustDomain: domain(t), Master: master, Clock: clock.System{}, Logger: logger}); err != nil {
		t.Fatal(err)
	}
	details, _ := signers(t, open(t, dir, clock.System{}))
	if diff := cmp.Diff([]string{"root", "intermediate"}, details); diff != "" {
		t.Error(diff)
	}
}

func TestAnIntermediateMadeWhileRunningIsOnRecord(t *testing.T) {
	t.Parallel()
	clk := &movable{}
	s := open(t, t.TempDir(), clk)
	id, err := identity.ParseID("spiffe://server.example/web")
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(&snapshot.Snapshot{Revision: 1, LeafTTL: time.Hour, Services: []snapshot.Service{{Name: "web", ID: id}}})
	clk.offset.Store(int64(ca.DefaultIntermediateTTL * 2 / 3))
	chain, err := s.Registrar().Issue(context.Background(), "test", id, request(t))
	if err != nil {
		t.Fatal(err)
	}
	details, serials := signers(t, s)
	if diff := cmp.Diff([]string{"root", "intermediate", "intermediate"}, details); diff != "" {
		t.Fatal(diff)
	}
	if serials[2] == serials[1] || serials[2] != identity.Serial(chain[1]) {
		t.Errorf("recorded %s, signed by %s", serials[2], identity.Serial(chain[1]))
	}
}

func request(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// Nothing is made in a directory that another user prepared, with a master key that
// they would know.
func TestADirectoryThatAnotherUserPreparedIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Lchown(dir, 4711, 0); err != nil {
		t.Fatal(err)
	}
	_, err := server.Open(t.Context(), server.Config{Host: "test", Dir: dir, TrustDomain: domain(t), Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
	if all := fault.All(err); len(all) != 1 || all[0].Code != fault.DirUnusable {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it holds %v, %v", left, err)
	}
}

// A database that is put back to what it was before is not what the sealed heads
// know, whatever it says of itself.
func TestAnOlderDatabaseDoesNotVerify(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := filepath.Join(dir, "parley.db")
	run := func(want string) {
		t.Helper()
		s := open(t, dir, clock.System{})
		if err := s.Started(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		s.KeepHeads(ctx)
		reports, err := s.Store().VerifyLogs(t.Context())
		if err != nil || len(reports) != 1 {
			t.Fatal(reports, err)
		}
		if got := reports[0].Fault; (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	run("")
	old, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		run("")
	}
	if err := os.WriteFile(database, old, 0o600); err != nil {
		t.Fatal(err)
	}
	run("is missing, the log had")
	// Whoever put it back on purpose says so by removing the heads.
	if err := os.Remove(filepath.Join(dir, "audit.heads")); err != nil {
		t.Fatal(err)
	}
	run("")
}
