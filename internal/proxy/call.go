package proxy

import (
	"context"
	"fmt"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mtls"
)

// Call connects to addr as a listener of local does that forwards to callee, by the
// same verification, and closes the connection at once: `parley verify` lets it meet
// impostors. An error says that it was not made, or refused.
func (p *Proxy) Call(ctx context.Context, local, callee identity.ID, addr string) error {
	src, ok := p.cfg.Source(local)
	if !ok {
		return fmt.Errorf("%s: no source of its credential", local)
	}
	c, err := mtls.NewDialer(src, callee, p.cfg.Clock, mtls.HTTP2, mtls.HTTP1).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
