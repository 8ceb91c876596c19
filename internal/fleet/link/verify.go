package link

import (
	"context"
	"crypto/x509"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/identity"
)

// maxOrders is how many orders wait to be taken; a server that sends more is not one
// of ours, and the oldest are dropped.
const maxOrders = 8

func (c *Client) order(o *assess.Order) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orders = append(c.orders, *o); len(c.orders) > maxOrders {
		c.orders = c.orders[1:]
	}
	close(c.ordered)
	c.ordered = make(chan struct{})
}

// NextOrder waits for something to try, and hands it over once.
func (c *Client) NextOrder(ctx context.Context) (assess.Order, error) {
	for {
		c.mu.Lock()
		ordered := c.ordered
		if len(c.orders) > 0 {
			o := c.orders[0]
			c.orders = c.orders[1:]
			c.mu.Unlock()
			return o, nil
		}
		c.mu.Unlock()
		select {
		case <-ordered:
		case <-ctx.Done():
			return assess.Order{}, ctx.Err()
		}
	}
}

// IssueProbe asks for a certificate for probes as id over csr.
func (c *Client) IssueProbe(ctx context.Context, id identity.ID, flaw assess.Check, csr []byte) ([]*x509.Certificate, error) {
	var reply IssueReply
	if err := c.call(ctx, methodProbe, &ProbeRequest{ID: id, Flaw: flaw, CSR: csr}, &reply); err != nil {
		return nil, err
	}
	return parseChain(reply.Chain)
}

// Assessed tells the server what came of an order.
func (c *Client) Assessed(ctx context.Context, r *assess.Report) error {
	return c.call(ctx, methodAssessed, r, new(AssessedReply))
}
