package proxy

import (
	"context"
	"net"
	"strings"
	"sync/atomic"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/proxy/tcp"
	"github.com/parleymesh/parley/internal/proxy/web"
)

// upstreams outlive a change of configuration that does not touch them, and with
// them their pools.
type (
	upstreamKey any // appKey or meshKey

	appKey struct {
		addr string
		h2   bool
		// user holds the port, by runs_as: connections that were made to another
		// user's process are not used for this one's. Of a Unix socket each connection
		// is asked; empty is anybody.
		user string
	}
	meshKey struct {
		local, expect identity.ID
		endpoints     string // joined by spaces, to be comparable
	}

	upstream struct {
		web web.Upstream
		tcp tcp.Upstream
	}
)

func newMeshKey(local, expect identity.ID, endpoints []string) meshKey {
	return meshKey{local, expect, strings.Join(endpoints, " ")}
}

func (u upstream) close() { u.web.Close() }

func (p *Proxy) newApp(k appKey) upstream {
	app := web.NewApp(k.addr, k.h2, p.cfg.Clock)
	app.Limit = p.connections
	if k.user != "" && strings.HasPrefix(k.addr, "unix:") {
		app.Check = func(c net.Conn) error { return p.cfg.AppConn(k.user, c) }
	}
	return upstream{web: app, tcp: tcp.Upstream{Address: k.addr, Dial: app.Dial}}
}

func (p *Proxy) newMesh(k meshKey, src identity.Source) upstream {
	endpoints := strings.Fields(k.endpoints)
	d := mtls.NewDialer(src, k.expect, p.cfg.Clock)
	d.Conns = &p.conns
	far := web.NewMesh(src, k.expect, endpoints, p.cfg.Clock, &p.conns)
	far.Limit = p.connections
	var next atomic.Uint32
	return upstream{
		web: far,
		tcp: tcp.Upstream{Address: strings.Join(endpoints, ","), Dial: func(ctx context.Context) (net.Conn, error) {
			var first error = &net.DNSError{Err: "the service has no endpoint", IsNotFound: true}
			start := int(next.Add(1))
			for i := range endpoints {
				c, err := d.DialContext(ctx, "tcp", endpoints[(start+i)%len(endpoints)])
				if err == nil {
					return c, nil
				}
				if i == 0 {
					first = err
				}
			}
			return nil, first
		}},
	}
}
