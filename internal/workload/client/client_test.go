package client_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/workload/client"
	"github.com/parleymesh/parley/internal/workload/xtest"
)

var _ identity.Source = (*client.Client)(nil)

func config(socket string, clk clock.Clock) client.Config {
	return client.Config{Socket: socket, Clock: clk, Logger: slog.New(slog.DiscardHandler)}
}

func dial(t *testing.T, a *xtest.API) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, config(a.URI(), clock.System{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for until := time.Now().Add(5 * time.Second); !yes(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestFollowsCredentialAndTrust(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))
	c := dial(t, a)
	cred, err := c.Credential()
	if err != nil || cred.ID.String() != "spiffe://shop.example/orders" {
		t.Fatalf("got %v, %v", cred, err)
	}
	before := c.Trust()
	if _, err := before.Verify(cred.Chain, time.Now()); err != nil {
		t.Errorf("its own chain: %v", err)
	}
	if other := a.CA.Credential(t, "web", time.Hour); true {
		if _, err := before.Verify(other.Chain, time.Now()); err != nil {
			t.Errorf("another member's chain: %v", err)
		}
	}
	stranger := mtlstest.NewCA(t, "shop.example").Credential(t, "web", time.Hour)
	if _, err := before.Verify(stranger.Chain, time.Now()); !errors.Is(err, identity.ErrChain) {
		t.Errorf("another root's chain: %v", err)
	}

	next := a.Identity("orders", 2)
	a.Set(next)
	want, _ := next.Source.Credential()
	eventually(t, "the new leaf", func() bool {
		got, err := c.Credential()
		return err == nil && got.Serial() == want.Serial()
	})
	if c.Trust() != before {
		t.Error("the trust is another, though nothing of it changed")
	}

	a.CA = mtlstest.NewCA(t, "shop.example")
	partner := mtlstest.NewCA(t, "partner.example")
	a.Set(a.Identity("orders", 3, partner))
	eventually(t, "the new root", func() bool { return c.Trust().Epoch == before.Epoch+1 })
	if b := c.Trust().Bundles[partner.Domain]; b == nil || !b.Roots[0].Equal(partner.Root) {
		t.Error("the federated bundle is missing")
	}
}

func TestOutlivesTheServer(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))
	c := dial(t, a)
	old, _ := c.Credential()
	a.Server.Stop()
	if now, err := c.Credential(); err != nil || now != old {
		t.Errorf("without a server: %v", err)
	}
	a.Set(a.Identity("orders", 2))
	a.Serve()
	eventually(t, "the new leaf", func() bool { now, err := c.Credential(); return err == nil && now != old })
}

func TestAnEndedCredentialIsNotPresented(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1))
	late := clock.Shifted{Base: clock.System{}, Offset: 2 * time.Hour}
	c, err := client.Dial(t.Context(), config(a.URI(), late))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Credential(); !errors.Is(err, identity.ErrNoCredential) {
		t.Errorf("got %v", err)
	}
}

func TestDialSaysWhyThereIsNoIdentity(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t) // nobody has an identity
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	process := fmt.Sprintf("process %d (user %d, exe %s)", os.Getpid(), os.Geteuid(), exe)
	for name, tc := range map[string]struct{ socket, want, hint string }{
		"not in the mesh": {a.URI(), "no identity in the mesh", process},
		"no agent":        {"unix:///nonexistent/workload.sock", "no such file", "set SPIFFE_ENDPOINT_SOCKET="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			cfg, told := config(tc.socket, clock.System{}), []string{}
			cfg.Waiting = func(f *fault.Fault) {
				if ctx.Err() != nil {
					t.Error("told when it was over")
				}
				told = append(told, f.Error()+": "+f.Hint)
			}
			c, err := client.Dial(ctx, cfg)
			var f *fault.Fault
			if c != nil || !errors.As(err, &f) || f.Code != fault.Unreachable || !errors.Is(err, context.DeadlineExceeded) ||
				!strings.Contains(err.Error(), tc.want) || !strings.Contains(f.Hint, tc.hint) || strings.Contains(err.Error(), "rpc error") {
				t.Errorf("got %v; %v", err, f)
			}
			if len(told) != 1 || !strings.Contains(told[0], tc.want) || !strings.Contains(told[0], tc.hint) {
				t.Errorf("while it waited: %q", told)
			}
		})
	}
}

func TestFetchJWT(t *testing.T) {
	t.Parallel()
	a := xtest.Start(t)
	a.Set(a.Identity("orders", 1), a.Identity("web", 1))
	token, err := dial(t, a).FetchJWT(t.Context(), "payments")
	if err != nil {
		t.Fatal(err)
	}
	if id, _, err := a.ValidateJWT(t.Context(), token, "payments"); err != nil || id.Name() != "orders" {
		t.Errorf("got %v, %v", id, err)
	}
}

func TestParseSocket(t *testing.T) {
	t.Parallel()
	for socket, want := range map[string]string{
		"unix:///run/parley/workload.sock": "/run/parley/workload.sock",
		"":                                 "",
		"/run/parley/workload.sock":        "",
		"unix:/run/workload.sock?x=1":      "",
		"unix:run/workload.sock":           "",
		"unix://run/workload.sock":         "",
		"unix:///run/../etc/workload.sock": "",
		"unix:///":                         "",
		"unix:///a#b":                      "",
		"unix:///a?":                       "",
		"unix://user@/a":                   "",
		"tcp://127.0.0.1:8081":             "",
		"http://localhost/a":               "",
		"unix:///a\x00b":                   "",
	} {
		got, err := client.ParseSocket(socket)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", socket, got, err)
		}
		if f := (*fault.Fault)(nil); err != nil && (!errors.As(err, &f) || f.Hint == "") {
			t.Errorf("%q: no hint in %v", socket, err)
		}
	}
}

func message(tb testing.TB) *workloadpb.X509SVIDResponse {
	tb.Helper()
	ca := mtlstest.NewCA(tb, "shop.example")
	cred := ca.Credential(tb, "orders", time.Hour)
	key, err := x509.MarshalPKCS8PrivateKey(cred.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return &workloadpb.X509SVIDResponse{Svids: []*workloadpb.X509SVID{{
		SpiffeId: cred.ID.String(), X509Svid: cred.Chain[0].Raw, X509SvidKey: key, Bundle: ca.Root.Raw,
	}}}
}

func TestRefusesAnUnusableMessage(t *testing.T) {
	t.Parallel()
	if _, _, err := client.Parse(message(t)); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*workloadpb.X509SVIDResponse){
		"no SVID":           func(m *workloadpb.X509SVIDResponse) { m.Svids = nil },
		"too many SVIDs":    func(m *workloadpb.X509SVIDResponse) { m.Svids = append(make([]*workloadpb.X509SVID, 64), m.Svids...) },
		"no certificate":    func(m *workloadpb.X509SVIDResponse) { m.Svids[0].X509Svid = nil },
		"half a leaf":       func(m *workloadpb.X509SVIDResponse) { m.Svids[0].X509Svid = m.Svids[0].X509Svid[:100] },
		"no key":            func(m *workloadpb.X509SVIDResponse) { m.Svids[0].X509SvidKey = nil },
		"another's key":     func(m *workloadpb.X509SVIDResponse) { m.Svids[0].X509SvidKey = message(t).Svids[0].X509SvidKey },
		"another name":      func(m *workloadpb.X509SVIDResponse) { m.Svids[0].SpiffeId += "x" },
		"the root as leaf":  func(m *workloadpb.X509SVIDResponse) { m.Svids[0].X509Svid = m.Svids[0].Bundle },
		"a broken bundle":   func(m *workloadpb.X509SVIDResponse) { m.Svids[0].Bundle = []byte("x") },
		"federated service": func(m *workloadpb.X509SVIDResponse) { m.FederatedBundles = map[string][]byte{"spiffe://a/b": nil} },
		"federated name":    func(m *workloadpb.X509SVIDResponse) { m.FederatedBundles = map[string][]byte{"a": nil} },
	} {
		m := message(t)
		spoil(m)
		if cred, _, err := client.Parse(m); err == nil {
			t.Errorf("%s: got %v", name, cred.ID)
		}
	}
}

func TestAFederatedBundleDoesNotReplaceOurs(t *testing.T) {
	t.Parallel()
	m := message(t)
	m.FederatedBundles = map[string][]byte{"spiffe://shop.example": mtlstest.NewCA(t, "shop.example").Root.Raw}
	cred, trust, err := client.Parse(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Verify(cred.Chain, time.Now()); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	b, err := proto.Marshal(message(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &workloadpb.X509SVIDResponse{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		if cred, trust, err := client.Parse(m); err == nil && (cred == nil || trust.Bundles[cred.ID.TrustDomain()] == nil) {
			t.Error("a state that is not whole")
		}
	})
}

func FuzzParseSocket(f *testing.F) {
	f.Add("unix:///run/workload.sock")
	f.Add("tcp://1.2.3.4:5")
	f.Fuzz(func(t *testing.T, s string) {
		if path, err := client.ParseSocket(s); err == nil && !strings.HasPrefix(path, "/") {
			t.Errorf("%q is %q", s, path)
		}
	})
}
