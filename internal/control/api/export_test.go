package api

import "net/http"

// SetTransport makes c send its requests by t.
func (c *Client) SetTransport(t http.RoundTripper) { c.http.Transport = t }
