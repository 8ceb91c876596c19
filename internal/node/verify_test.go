package node_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/assess/xtest"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
)

// A verified is what came of a verification.
type verified struct {
	lines  []string // that did not come out as they should: "callee check outcome: detail"
	checks int
	missed []api.VerifyMissed
}

func (f *fleet) verify(t *testing.T) *verified {
	t.Helper()
	v := &verified{}
	err := f.api.VerifyMesh(t.Context(), api.VerifyRequest{}, func(l *api.VerifyLine) error {
		for _, r := range l.Results {
			v.checks++
			if r.Outcome != api.Ok {
				v.lines = append(v.lines, r.Callee+" "+r.Check+" "+string(r.Outcome)+": "+r.Detail)
			}
		}
		if l.Done.Missed != nil {
			v.missed = l.Done.Missed
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(v.lines)
	return v
}

// bare are the lines without their details.
func (v *verified) bare() (out []string) {
	for _, l := range v.lines {
		l, _, _ = strings.Cut(l, ":")
		out = append(out, l)
	}
	return out
}

// Two hosts as they should be: every check of every edge passes, the applications
// hear nothing, the log tells what ran, and calls are counted as before.
func TestVerify(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", 200)
	before := f.edges(t)
	v := f.verify(t)
	if v.lines != nil || len(v.missed) > 0 || v.checks < 35 {
		t.Errorf("%d checks, %q, missed %v", v.checks, v.lines, v.missed)
	}
	if after := f.edges(t); after != before {
		t.Errorf("%d calls are counted, and %d were", after, before)
	}
	l, err := f.api.Events(t.Context(), api.ListEventsParams{Action: string(audit.MeshVerified)})
	if err != nil || len(l.Items) != 1 {
		t.Fatalf("recorded %+v, %v", l, err)
	}
	bans, err := f.api.Bans(t.Context())
	if err != nil || len(bans.Items) != 0 {
		t.Errorf("banned %+v, %v", bans, err)
	}
	f.wants("afterwards", "GET", 200)
}

// edges is how many calls are counted.
func (f *fleet) edges(t *testing.T) (n int64) {
	t.Helper()
	st, err := f.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Edges {
		n += e.Calls
	}
	return n
}

// A double is host b as the test wants it: it joined and follows the server as every
// agent does, with twins in place of its inbounds.
type double struct {
	t      *testing.T
	client *link.Client
	site   *tls.Certificate
	lines  *tls.Certificate
	roots  []*x509.Certificate
	member []identity.ID
	verify identity.ID

	mu    sync.Mutex // guards what follows
	twins []*xtest.Twin
}

func (f *fleet) double(t *testing.T, ports map[string]string) *double {
	t.Helper()
	token, err := link.ParseToken(f.token("b"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	j, err := link.JoinServer(t.Context(), token, key, "double", clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	td := j.Bundle.TrustDomain
	server, err := identity.ServerID(td)
	if err != nil {
		t.Fatal(err)
	}
	trust := &identity.Trust{Epoch: 1, Bundles: map[identity.TrustDomain]*identity.Bundle{td: j.Bundle}, Members: map[identity.ID]bool{server: true}}
	d := &double{t: t, roots: j.Bundle.Roots}
	if d.verify, err = identity.VerifyID(td); err != nil {
		t.Fatal(err)
	}
	d.client, err = link.NewClient(link.ClientConfig{
		Addresses: token.Addresses, Host: "b", Source: mtlstest.NewSource(j.Credential, trust), Server: server, Version: "double",
		Settle: func(context.Context) {}, Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = d.client.Run(ctx) })
	parts.Go(func() { d.follow(ctx, ports) })
	t.Cleanup(func() {
		stop()
		parts.Wait()
		_ = d.client.Close()
	})
	d.site, d.lines = d.certificate(td, "site"), d.certificate(td, "lines")
	return d
}

// placed waits until callers are told where these services are: what a host reports
// takes a moment to get round.
func (f *fleet) placed(t *testing.T, ports map[string]string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		known := 0
		st, err := f.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range st.Services {
			if _, ok := ports[s.Name]; ok && slices.ContainsFunc(s.Endpoints, func(e api.EndpointStatus) bool { return e.State == api.StateOK }) {
				known++
			}
		}
		if known == len(ports) {
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("not known where they are: %+v", st.Services)
		}
	}
}

// follow says that everything is in force, and lets the twins know of bans.
func (d *double) follow(ctx context.Context, ports map[string]string) {
	for seen := uint64(0); ; {
		u, err := d.client.Watch(ctx, seen)
		if err != nil {
			return
		}
		seen = u.Generation
		d.mu.Lock()
		d.member = append(slices.Clone(u.Snapshot.Members), d.verify)
		for _, twin := range d.twins {
			if slices.Contains(u.Banned, d.verify) {
				twin.Ban(d.verify)
			} else {
				twin.Unban(d.verify)
			}
		}
		d.mu.Unlock()
		r := &link.Report{Generation: u.Generation, Revision: u.Snapshot.Revision}
		for service, port := range ports {
			r.Endpoints = append(r.Endpoints, link.Endpoint{Service: service, Address: "0.0.0.0:" + port})
		}
		d.client.Report(r)
	}
}

func (d *double) certificate(td identity.TrustDomain, service string) *tls.Certificate {
	d.t.Helper()
	id, err := identity.ServiceID(td, service)
	if err != nil {
		d.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		d.t.Fatal(err)
	}
	var chain []*x509.Certificate
	for range 100 { // until its stream is there
		if chain, err = d.client.Issue(d.t.Context(), id, csr); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	c := &tls.Certificate{PrivateKey: key}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

// serve starts the twins on their ports until the test ends.
func (d *double) serve(t *testing.T, ports map[string]string, faults xtest.Faults) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	common := func(name string, cert *tls.Certificate, tcp bool, faults xtest.Faults) *xtest.Twin {
		twin := &xtest.Twin{Faults: faults, Roots: d.roots, Members: d.member, Cert: cert, Other: d.lines, TCP: tcp}
		twin.Allow = func(caller, method, _ string) bool {
			return strings.HasSuffix(caller, "/web") && (tcp || method == "GET")
		}
		twin.Start(t, ":"+ports[name])
		return twin
	}
	d.twins = []*xtest.Twin{common("site", d.site, false, faults), common("lines", d.lines, true, xtest.Faults{})}
}

// A real server and a real agent attack a host where one thing is wrong, and each
// time exactly the lines of that are told.
func TestVerifyFindsEachMisconfiguration(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	address, beyond := xtest.HostAddress(t)
	if !beyond {
		address = "127.0.0.1"
	}
	f.apply(strings.NewReplacer("b: {}", "b: {advertise: "+address+"}", "leaf_ttl: 10s", "leaf_ttl: 1h").Replace(f.text)) // twins do not renew
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	port := func(after string) string {
		_, rest, _ := strings.Cut(f.text, after)
		_, rest, _ = strings.Cut(rest, `listen: ":`)
		p, _, _ := strings.Cut(rest, `"`)
		return p
	}
	ports := map[string]string{"site": port("  site:"), "lines": port("  lines:")}
	d := f.double(t, ports)
	f.placed(t, ports)
	_, rest, _ := strings.Cut(f.text, `app: "127.0.0.1:`)
	app, _, _ := strings.Cut(rest, `"`)
	for _, tt := range []struct {
		name   string
		faults xtest.Faults
		open   bool // the application's port
		want   []string
	}{
		{"nothing", xtest.Faults{}, false, nil},
		{"client certificates optional", xtest.Faults{NoCertificate: true}, false, []string{"no_certificate"}},
		{"app port open", xtest.Faults{}, true, []string{"app_port"}},
		{"wrong CA trusted", xtest.Faults{AnyCA: true}, false, []string{"foreign_ca", "look_alike_ca", "stranger"}},
		{"plaintext observed", xtest.Faults{Plaintext: true}, false, []string{"plaintext"}},
		{"policy too wide for callers", xtest.Faults{AnyCaller: true}, false, []string{"wrong_identity", "wrong_request"}},
		{"policy too wide for requests", xtest.Faults{AnyRequest: true}, false, []string{"wrong_request"}},
		{"ban not enforced", xtest.Faults{IgnoresBans: true, KeepsOpen: true}, false, []string{"banned", "cut_by_ban", "resumed_after_ban"}},
		{"sessions outlive a ban", xtest.Faults{TrustsTickets: true}, false, []string{"resumed_after_ban"}},
		{"clock not asked", xtest.Faults{NoClock: true}, false, []string{"expired", "not_yet_valid"}},
		{"usage and names not looked at", xtest.Faults{AnyUsage: true, FirstName: true}, false, []string{"two_names", "wrong_usage"}},
		{"membership not asked", xtest.Faults{AnyMember: true}, false, []string{"stranger"}},
		{"TLS 1.2 spoken", xtest.Faults{OldTLS: tls.VersionTLS12}, false, []string{"tls_1_2"}},
		{"critical extensions passed over", xtest.Faults{AnyExtension: true}, false, []string{"probe_misused"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.open && !beyond {
				t.Skip("this machine has no address but loopback, which is nobody else's")
			}
			if tt.open {
				l, err := net.Listen("tcp", net.JoinHostPort(address, app))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { l.Close() })
			}
			d.serve(t, ports, tt.faults)
			v := f.verify(t)
			var want []string
			for _, check := range tt.want {
				want = append(want, "site "+check+" failed")
			}
			if !slices.Equal(v.bare(), want) || len(v.missed) > 0 {
				t.Errorf("got %q, want %q; missed %v", v.lines, want, v.missed)
			}
			for _, twin := range d.twins {
				if n := twin.Reached(); n > 0 && !tt.faults.Plaintext && !tt.faults.AnyCA && !tt.faults.AnyExtension {
					t.Errorf("an application was called %d times", n)
				}
			}
		})
	}
}
