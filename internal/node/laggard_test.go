package node_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/mtls/xtest"
)

// An older agent is one that has some capabilities only: it has the credential of a
// host that joined, and answers whatever it is sent. It keeps what was withdrawn.
type older struct {
	mu        sync.Mutex // guards what follows
	revision  int64
	withdrawn *link.Withdrawal
}

func (f *fleet) older(dir string, capabilities ...string) (o *older, leave func()) {
	f.t.Helper()
	state, err := link.OpenState(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	h, err := state.Host()
	if err != nil {
		f.t.Fatal(err)
	}
	td := h.Bundle.TrustDomain
	server, err := identity.ServerID(td)
	if err != nil {
		f.t.Fatal(err)
	}
	d := mtls.NewDialer(xtest.NewSource(h.Credential, &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{td: h.Bundle}, Members: map[identity.ID]bool{server: true},
	}), server, clock.System{}, mtls.Fleet)
	conn, err := grpc.NewClient("passthrough:///x",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", f.cfg.Listen) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(link.Codec{})))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	ctx, leave := context.WithCancel(f.t.Context())
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+link.FleetService+"/Connect")
	if err == nil {
		err = s.SendMsg(&link.AgentMessage{Hello: &link.Hello{Protocol: link.Protocol, Version: "v0", Capabilities: capabilities, Host: h.Name, Now: time.Now()}})
	}
	if err != nil {
		f.t.Fatal(err)
	}
	o = new(older)
	go o.answer(s) // ends with its stream
	return o, leave
}

func (o *older) answer(s grpc.ClientStream) {
	for {
		m := new(link.ServerMessage)
		if s.RecvMsg(m) != nil {
			return
		}
		o.mu.Lock()
		r := &link.Report{}
		switch {
		case m.Update != nil:
			r.Generation, o.revision = m.Update.Generation, m.Update.Revision
		case m.Withdraw != nil:
			r.Generation, o.withdrawn = m.Withdraw.Generation, m.Withdraw
		}
		r.Revision = o.revision
		o.mu.Unlock()
		if r.Generation > 0 && s.SendMsg(&link.AgentMessage{Report: r}) != nil {
			return
		}
	}
}

func (o *older) banned() []identity.ID {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.withdrawn == nil {
		return nil
	}
	return o.withdrawn.Banned
}

// A person whose host is too old for a revision reads what it lacks from apply and
// status; the others run the revision; a ban reaches it, and with the upgrade the
// revision does.
func TestHostThatIsTooOld(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	dirB := shortDir(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	halt(t, host(t, hostConfig(t, dirB, f.token("b"))))
	old, leave := f.older(dirB, link.Settles, link.Withdraws)
	f.state("b", api.StateOK)

	sockets := strings.Replace(f.text, `inbound: {listen`, `inbound: {websocket: {}, listen`, 1)
	r, err := f.api.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: sockets})
	if err != nil {
		t.Fatal(err)
	}
	// Both know of it, b by its inbound and a by its call.
	if text := r.Fault.Fault().Error(); !strings.Contains(text, "on host b: its agent is too old for this revision: it lacks websocket") {
		t.Errorf("apply says %s", text)
	}
	f.state("b", api.StateFailed)
	f.state("a", api.StateOK)
	st, err := f.api.Status(t.Context())
	if err != nil || st.Hosts[1].Revision != 1 || !strings.Contains(st.Hosts[1].Note, "it lacks websocket") {
		t.Errorf("status says %+v, %v", st.Hosts, err)
	}
	f.confirmed(f.api.Ban(t.Context(), api.BanRequest{Identity: "web"}))
	if b := old.banned(); len(b) != 1 || b[0].Name() != "web" {
		t.Errorf("it knows of %v", b)
	}

	// The server starts anew: what it had sent it does not know any more.
	halt(t, f.Node)
	f.mesh = startWith(t, f.cfg)
	leave()
	if _, err := f.api.Unban(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	old, leave = f.older(dirB, link.Settles, link.Withdraws)
	f.state("a", api.StateOK)
	f.state("b", api.StateFailed)
	f.confirmed(f.api.Ban(t.Context(), api.BanRequest{Identity: "web"}))
	if b := old.banned(); len(b) != 1 {
		t.Errorf("after the restart it knows of %v", b)
	}
	f.confirmed(f.api.Unban(t.Context(), "web"))
	leave()

	host(t, hostConfig(t, dirB, ""))
	f.state("b", api.StateOK)
	f.wants("all are new", "GET", 200)
}
