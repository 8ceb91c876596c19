package web

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/parleymesh/parley/internal/proxy/route"
)

// A Redirect is what a plaintext listener beside an edge does with a request:
// tell the way to HTTPS, and nothing else.
type Redirect struct {
	// Hosts are those whose way is told; see route.HostIn.
	Hosts []string
	// Port is where the edge is found.
	Port int
	// Count is called for each that is told.
	Count func()
}

// redirect answers a request whose form was checked. A host that is not the
// edge's is not answered with a way to it: a link that begins here would lead
// anywhere. One with a credential in it is refused, so that it is noticed: the
// credential was sent in the clear, and would be with every request to come.
func (x *exchange) redirect(r *Redirect) {
	refuse := func(code string, status int, reason string) {
		x.refuse(x.server.cfg.Gate.Refuse(&x.req, code, errors.New(reason)), code, status)
	}
	switch {
	case !route.HostIn(r.Hosts, x.req.Host):
		refuse("route_not_found", http.StatusNotFound, "plaintext HTTP for a host that is not the gateway's")
		return
	case len(x.header["Authorization"]) > 0, len(x.header["X-Api-Key"]) > 0:
		refuse(route.HTTPSRequired, http.StatusForbidden, "a credential came over plaintext HTTP")
		return
	}
	location := "https://" + x.req.Host
	if r.Port != 443 {
		location += ":" + strconv.Itoa(r.Port)
	}
	x.armWrite()
	x.armStream()
	if x.unread() {
		_ = x.control.EnableFullDuplex() // as in answer
	}
	h := x.w.Header()
	h.Set("Location", location+x.req.Path+x.query)
	h.Set("Content-Length", "0")
	r.Count()
	x.w.WriteHeader(http.StatusPermanentRedirect)
	if x.unread() {
		x.skipBody()
	}
}
