package link_test

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

func bundleOf(ca *xtest.CA) *identity.Bundle {
	return &identity.Bundle{TrustDomain: ca.Domain, Roots: []*x509.Certificate{ca.Root}, Sequence: 4}
}

func updateOf(t testing.TB, ca *xtest.CA, host string, revision int64) *link.Update {
	t.Helper()
	return &link.Update{
		Generation: 7, Bundle: bundleOf(ca), Banned: []identity.ID{ca.ID(t, "mallory")},
		Snapshot: &snapshot.Snapshot{
			Version: snapshot.Version, Revision: revision, TrustDomain: ca.Domain, Domain: ca.Domain.String(), LeafTTL: time.Hour,
			Hosts:    []snapshot.Host{{Name: host, ID: must(identity.AgentID(ca.Domain, host))}},
			Services: []snapshot.Service{{Name: "web", ID: ca.ID(t, "web"), RunsOn: []string{host}, RunsAs: snapshot.RunsAs{User: "canary-user"}}},
			Gateways: []snapshot.Gateway{}, Members: []identity.ID{ca.ID(t, "web")},
		},
	}
}

func openState(t testing.TB, dir string) *link.State {
	t.Helper()
	s, err := link.OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func hostOf(t testing.TB, ca *xtest.CA, name string) *link.Host {
	t.Helper()
	return &link.Host{Name: name, Addresses: []string{"10.0.0.1:7443"}, Credential: ca.CredentialFor(t, must(identity.AgentID(ca.Domain, name)), time.Hour), Bundle: bundleOf(ca)}
}

// fill keeps one of everything.
func fill(t testing.TB, ca *xtest.CA, s *link.State) {
	t.Helper()
	if _, err := s.JoinKey(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{s.SaveHost(hostOf(t, ca, "a")), s.SaveUpdate(updateOf(t, ca, "a", 3)), s.Save(ca.Credential(t, "web", time.Hour))} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestStateOfANewDirectory(t *testing.T) {
	t.Parallel()
	s, ca := openState(t, t.TempDir()), xtest.NewCA(t, "shop.example")
	h, err := s.Host()
	u, err2 := s.Update()
	c, err3 := s.Load(ca.ID(t, "web"))
	if h != nil || u != nil || c != nil || err != nil || err2 != nil || err3 != nil {
		t.Errorf("%v %v %v, %v %v %v", h, u, c, err, err2, err3)
	}
	if err := s.Forget(ca.ID(t, "web")); err != nil {
		t.Error(err)
	}
}

func TestStateOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), xtest.NewCA(t, "shop.example")
	key := must(openState(t, dir).JoinKey())
	again := must(openState(t, dir).JoinKey())
	if !bytes.Equal(must(x509.MarshalPKIXPublicKey(key.Public())), must(x509.MarshalPKIXPublicKey(again.Public()))) {
		t.Error("another key after a start: an answer that was lost cannot be asked for again")
	}
	s := openState(t, dir)
	fill(t, ca, s)
	if _, err := os.Stat(filepath.Join(dir, "join.key")); err == nil {
		t.Error("the key of the join outlives it")
	}
	s = openState(t, dir)
	h := must(s.Host())
	if h.Name != "a" || h.Addresses[0] != "10.0.0.1:7443" || h.Credential.ID != must(identity.AgentID(ca.Domain, "a")) || !h.Bundle.Roots[0].Equal(ca.Root) || h.Bundle.Sequence != 4 {
		t.Errorf("%+v", h)
	}
	want := updateOf(t, ca, "a", 3)
	got := must(s.Update())
	same := cmp.Options{cmp.Comparer(func(a, b identity.ID) bool { return a == b }), cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b })}
	if diff := cmp.Diff(want.Snapshot, got.Snapshot, same); diff != "" || got.Banned[0] != want.Banned[0] || !got.Bundle.Roots[0].Equal(ca.Root) {
		t.Errorf("%s%+v", diff, got)
	}
	c := must(s.Load(ca.ID(t, "web")))
	if c.ID != ca.ID(t, "web") {
		t.Errorf("%v", c.ID)
	}
	if err := s.Forget(ca.ID(t, "web")); err != nil {
		t.Fatal(err)
	}
	if c := must(s.Load(ca.ID(t, "web"))); c != nil {
		t.Error("it was not forgotten")
	}
}

// What is on disk is sealed, each file as what it is, and nobody else's to read.
func TestStateIsSealed(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), xtest.NewCA(t, "shop.example")
	s := openState(t, dir)
	fill(t, ca, s)
	other := xtest.NewCA(t, "shop.example").Credential(t, "site", time.Hour)
	if err := s.Save(other); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info := must(d.Info())
		if d.IsDir() {
			if path != dir && info.Mode().Perm() != 0o700 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		}
		n++
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if data := must(os.ReadFile(path)); bytes.Contains(data, []byte("canary-user")) || bytes.Contains(data, []byte("shop.example")) || bytes.Contains(data, ca.Root.Raw[:64]) {
			t.Errorf("%s can be read", path)
		}
		return nil
	})
	if err != nil || n != 5 {
		t.Errorf("%d files, %v", n, err)
	}
	// One sealed file is not another's: a credential is not passed off as another's.
	web, site := filepath.Join(dir, "svid", "web.sealed"), filepath.Join(dir, "svid", "site.sealed")
	if err := os.WriteFile(web, must(os.ReadFile(site)), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Load(ca.ID(t, "web")); err == nil {
		t.Errorf("took %v", c.ID)
	}
	if err := os.WriteFile(filepath.Join(dir, "host.sealed"), must(os.ReadFile(filepath.Join(dir, "update.sealed"))), 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Host(); err == nil {
		t.Errorf("took %v", h)
	}
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	read := map[string]func(*link.State, *xtest.CA) (any, error){
		"host.sealed":     func(s *link.State, _ *xtest.CA) (any, error) { return s.Host() },
		"update.sealed":   func(s *link.State, _ *xtest.CA) (any, error) { return s.Update() },
		"svid/web.sealed": func(s *link.State, ca *xtest.CA) (any, error) { return s.Load(ca.ID(t, "web")) },
		"join.key":        func(s *link.State, _ *xtest.CA) (any, error) { return s.JoinKey() },
	}
	for name, damage := range map[string]func(path string, data []byte) error{
		"a bit":     func(p string, d []byte) error { d[len(d)/2] ^= 1; return os.WriteFile(p, d, 0o600) },
		"cut":       func(p string, d []byte) error { return os.WriteFile(p, d[:len(d)/2], 0o600) },
		"empty":     func(p string, _ []byte) error { return os.WriteFile(p, nil, 0o600) },
		"longer":    func(p string, d []byte) error { return os.WriteFile(p, append(d, 0), 0o600) },
		"unsealed":  func(p string, _ []byte) error { return os.WriteFile(p, []byte(`{"name":"a"}`), 0o600) },
		"directory": func(p string, _ []byte) error { _ = os.Remove(p); return os.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, ca := t.TempDir(), xtest.NewCA(t, "shop.example")
			s := openState(t, dir)
			fill(t, ca, s)
			_ = must(s.JoinKey())
			for file, get := range read {
				path := filepath.Join(dir, file)
				if err := damage(path, must(os.ReadFile(path))); err != nil {
					t.Fatal(err)
				}
				if v, err := get(s, ca); err == nil {
					t.Errorf("%s: took %v", file, v)
				} else if all := fault.All(err); len(all) == 0 || all[0].Hint == "" {
					t.Errorf("%s: %v says nothing to do", file, err)
				}
			}
		})
	}
}

func TestStateOfAnotherMaster(t *testing.T) {
	t.Parallel()
	dir, elsewhere, ca := t.TempDir(), t.TempDir(), xtest.NewCA(t, "shop.example")
	fill(t, ca, openState(t, dir))
	openState(t, elsewhere)
	if err := os.WriteFile(filepath.Join(dir, "master.key"), must(os.ReadFile(filepath.Join(elsewhere, "master.key"))), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openState(t, dir)
	if h, err := s.Host(); err == nil {
		t.Errorf("took %v", h)
	}
	if u, err := s.Update(); err == nil {
		t.Errorf("took %v", u)
	}
	if err := os.Chmod(filepath.Join(dir, "master.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := link.OpenState(dir); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.KeyMode {
		t.Errorf("a master key that others read: %v", err)
	}
}

// Where nothing can be written, the old stays whole.
func TestStateThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), xtest.NewCA(t, "shop.example")
	s := openState(t, dir)
	fill(t, ca, s)
	// A directory in the way fails for root too, as a full disk does.
	large := updateOf(t, ca, "a", 9)
	large.Snapshot.Services[0].RunsAs.User = strings.Repeat("x", snapshot.MaxSize)
	if err := s.SaveUpdate(large); err == nil {
		t.Error("a snapshot beyond the limit was kept")
	}
	if u := must(s.Update()); u.Snapshot.Revision != 3 {
		t.Errorf("revision %d is left", u.Snapshot.Revision)
	}
	if err := os.RemoveAll(filepath.Join(dir, "svid")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "svid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ca.Credential(t, "web", time.Hour)); err == nil {
		t.Error("saved where there is no directory")
	}
	if _, err := link.OpenState(dir); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.DirUnusable {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"parley/x", "gateway/edge"} {
		id := must(identity.NewID(ca.Domain, "/"+name))
		if err := s.Save(ca.CredentialFor(t, id, time.Hour)); err == nil {
			t.Errorf("%s saved", name)
		}
	}
}

// An update that this program does not know whole is none: after a step back to an
// older program it does not run by half of it.
func TestKeptUpdateOfALaterProgram(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), xtest.NewCA(t, "shop.example")
	s := openState(t, dir)
	link.SealUpdate(t, s, map[string]any{"generation": 1, "restriction": "new"})
	if u, err := s.Update(); err == nil || u != nil {
		t.Errorf("took %v", u)
	}
	w := must(link.NewWireUpdate(updateOf(t, ca, "a", 3)))
	w.Needs = []string{"quantum"}
	link.SealUpdate(t, s, w)
	if u, err := s.Update(); err == nil || !strings.Contains(err.Error(), "quantum") {
		t.Errorf("took %v, %v", u, err)
	}
}
