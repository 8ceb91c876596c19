package fetch

import (
	"net/netip"
	"time"
)

// SetTimeout shortens how long a request may take.
func (c *Client) SetTimeout(d time.Duration) { c.timeout = d }

// MayReach is what is asked when a connection is made.
func (c *Client) MayReach(host string, a netip.Addr) bool { return c.mayReach(host, a) }

// Backdate moves the last load of an issuer's keys into the past.
func (s *Issuers) Backdate(url string, d time.Duration) {
	k := (*s.byURL.Load())[url]
	k.mu.Lock()
	defer k.mu.Unlock()
	k.started = k.started.Add(-d)
}
