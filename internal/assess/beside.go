package assess

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// maxAddresses bounds the addresses of this host that an application is looked for
// at.
const maxAddresses = 8

// appPort looks for the application where no sidecar is in front of it: at the
// address of its host that others reach.
func (t *target) appPort(ctx context.Context) verdict {
	app, err := netip.ParseAddrPort(t.edge.App)
	if err != nil {
		return verdict{} // a Unix socket: no other machine reaches it
	}
	inbound, err := netip.ParseAddrPort(t.at)
	if err != nil {
		return verdict{}
	}
	var places []netip.Addr
	if ip := inbound.Addr().Unmap(); !ip.IsLoopback() && app.Port() != inbound.Port() {
		places = append(places, ip)
	}
	if t.edge.SameHost {
		places = append(places, ownAddresses()...)
	}
	tried, guarded := 0, ""
	for _, ip := range places {
		at := netip.AddrPortFrom(ip, app.Port()).String()
		if at == t.at {
			continue
		}
		tried++
		c, own, err := t.beside(ctx, at)
		if err != nil {
			continue
		}
		_ = c.Close()
		if !own || !t.session.tools.Guarded(app.Port()) {
			return verdict{Failed, at + " took a connection"}
		}
		guarded = at
	}
	switch {
	case tried == 0:
		return verdict{}
	case guarded != "":
		return verdict{Warning, guarded + " took a connection, of the agent's own user, whom alone the firewall lets in: try it from another host"}
	}
	return verdict{OK, fmt.Sprintf("port %d is closed to other machines", app.Port())}
}

// beside connects to the application's port: from another machine as it is, and on
// the same one as a process that is no part of the mesh, or where that cannot be as the
// agent's own user.
func (t *target) beside(ctx context.Context, at string) (c net.Conn, own bool, err error) {
	if t.edge.SameHost {
		return t.session.tools.Stranger(ctx, "tcp", at)
	}
	d := net.Dialer{Timeout: connectTime}
	c, err = d.DialContext(ctx, "tcp", at)
	return c, false, err
}

// appPortLocal does the same at the application's own address, where every process
// of its host could do it.
func (t *target) appPortLocal(ctx context.Context) verdict {
	if !t.edge.SameHost || strings.HasPrefix(t.edge.App, "unix:") {
		return verdict{}
	}
	c, own, err := t.session.tools.Stranger(ctx, "tcp", t.edge.App)
	if err != nil {
		return verdict{OK, t.edge.App + " is closed to other processes: " + err.Error()}
	}
	_ = c.Close()
	detail := "any process of its host can call " + t.edge.App
	if own {
		detail = t.edge.App + " took a connection, of the agent's own user, since no other could be tried"
	}
	return verdict{Warning, detail}
}

func ownAddresses() (all []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || len(all) == maxAddresses {
			continue
		}
		all = append(all, p.Addr().Unmap())
	}
	return all
}

// impostorName lets the caller's sidecar meet an upstream that holds a good
// certificate, of another service: the caller's own.
func (t *target) impostorName(ctx context.Context) verdict {
	own, err := t.session.tools.Own(t.edge.CallerID)
	if err != nil {
		return verdict{Inconclusive, "no certificate of another service: " + err.Error()}
	}
	return t.impostor(ctx, own.Certificate())
}

// impostorAlike lets it meet one with the right name, signed by a CA that looks like
// ours.
func (t *target) impostorAlike(ctx context.Context) verdict {
	cert, err := t.session.forged.leaf(t.session.forged.alike, t.edge.CalleeID)
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	return t.impostor(ctx, cert)
}

// impostor is an upstream on this host with cert. In TLS 1.3 a client that does not
// accept it never finishes its handshake, so the server's side tells what happened.
func (t *target) impostor(ctx context.Context, cert *tls.Certificate) verdict {
	if !t.edge.Sidecar {
		return verdict{}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	defer l.Close()
	came := make(chan error, 1)
	go func() { came <- t.pose(ctx, l, cert) }() // ends with the listener at the latest
	err = t.session.tools.Call(ctx, t.edge.CallerID, t.edge.CalleeID, l.Addr().String())
	_ = l.Close()
	shaken := <-came
	switch {
	case shaken == nil:
		return verdict{Failed, "the caller's side shook hands with it"}
	case err == nil:
		return verdict{Failed, "the caller's side took it for the callee"}
	case shaken == errNobody:
		return verdict{Inconclusive, "the caller's side did not come: " + err.Error()}
	}
	return verdict{OK, "the caller's side refused it"}
}

// errNobody says that no client came to an impostor.
var errNobody = errors.New("nobody came")

// pose serves one handshake; nil says that the client completed it.
func (t *target) pose(ctx context.Context, l net.Listener, cert *tls.Certificate) error {
	raw, err := l.Accept()
	if err != nil {
		return errNobody
	}
	defer raw.Close()
	_ = raw.SetDeadline(t.session.tools.Clock.Now().Add(answerTime))
	c := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert,
		NextProtos: []string{"h2", "http/1.1"}, Time: t.session.tools.Clock.Now,
	})
	return c.HandshakeContext(ctx)
}
