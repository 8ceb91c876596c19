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
		// user's process are not used for this one's.
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
	return upstream{
		web: web.NewApp(k.addr, k.h2, p.cfg.Clock),
		tcp: tcp.Upstream{Address: k.addr, Dial: func(ctx context.Context) (net.Conn, error) { return web.DialApp(ctx, k.addr) }},
	}
}

func (p *Proxy) newMesh(k meshKey, src identity.Source) upstream {
	endpoints := strings.Fields(k.endpoints)
	d := mtls.NewDialer(src, k.expect, p.cfg.Clock)
	d.Conns = &p.conns
	var next atomic.Uint32
	return upstream{
		web: web.NewMesh(src, k.expect, endpoints, p.cfg.Clock, &p.conns),
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
