package mesh

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Limits of health.
const (
	minInterval   = time.Second
	maxInterval   = 5 * time.Minute
	minTimeout    = 100 * time.Millisecond
	maxThreshold  = 20
	maxHealthPath = 1024
)

// kind is what is asked by, empty for none or several.
func (h *Health) kind() (kind string) {
	for k, is := range map[string]bool{snapshot.HealthTCP: h.TCP != nil, snapshot.HealthHTTP: h.HTTP != nil, snapshot.HealthGRPC: h.GRPC != nil} {
		if is && kind != "" {
			return ""
		}
		if is {
			kind = k
		}
	}
	return kind
}

func (v *validator) health(path string, in *Inbound) {
	h := in.Health
	if h == nil || *h == (Health{}) { // without its defaults it is no mapping
		return
	}
	if h.kind() == "" && !v.strange[path] {
		if h.TCP == nil && h.HTTP == nil && h.GRPC == nil {
			v.at(path, flaw{code: fault.MeshMissing, message: "health without its kind", label: "nothing is asked", hint: "write one of {tcp: {}}, {http: {path: /healthz}}, {grpc: {}}"})
		} else {
			v.contradicts(path, "several kinds of health", "one application, one question", "keep one of tcp, http, grpc")
		}
	}
	span := func(key string, d, least, most time.Duration, limits string) {
		if d < least || d > most {
			v.malformed(path+"."+key, d.String(), "out of range", "it is "+limits, "")
		}
	}
	span("interval", h.Interval, minInterval, maxInterval, "1s to 5m")
	if _, stated := v.f.places[path+".timeout"]; stated && h.Interval >= minInterval { // otherwise the default is cut to it
		span("timeout", h.Timeout, minTimeout, h.Interval, "100ms to the interval, "+short(h.Interval))
	}
	for key, n := range map[string]int{"unhealthy_threshold": h.UnhealthyThreshold, "healthy_threshold": h.HealthyThreshold} {
		if n < 1 || n > maxThreshold {
			v.malformed(path+"."+key, fmt.Sprint(n), "out of range", fmt.Sprintf("it is 1 to %d", maxThreshold), "")
		}
	}
	if h.HTTP != nil {
		v.healthPath(path+".http.path", h.HTTP.Path)
		_, stated := v.f.places[path+".http.status"]
		if s := h.HTTP.Status; stated && (s < 200 || s > 599) {
			v.malformed(path+".http.status", fmt.Sprint(s), "no status of a whole answer", "it is 200 to 599; leave it out for any of 200 to 299", "")
		}
	}
	if h.GRPC != nil && in.AppProtocol == "http1" {
		v.contradicts(path+".grpc", "gRPC to an application of HTTP/1.1", "app_protocol is http1", "write app_protocol: http2, which gRPC needs, or ask by http: {path: /healthz}")
	}
	if h.GRPC != nil && len(h.GRPC.Service) > 255 {
		v.malformed(path+".grpc.service", h.GRPC.Service, "longer than 255 bytes", "name the service as its proto does: shop.Orders", "")
	}
}

func (v *validator) healthPath(path, p string) {
	if p == "" {
		return
	}
	_, err := url.ParseRequestURI(p)
	switch {
	case !strings.HasPrefix(p, "/") && !strings.Contains(p, "://") && strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-_./") == "":
		v.malformed(path, p, "it does not begin with /", fmt.Sprintf("write `/%s`", p), "/"+p)
	case !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || err != nil || strings.ContainsAny(p, "# \\") || len(p) > maxHealthPath:
		v.malformed(path, p, "not a path", "write it like /healthz: the address is that of app", "")
	}
}

// timeout is the default where the interval leaves no room for it.
func (h *Health) timeout() time.Duration { return min(h.Timeout, h.Interval) }

func (h *Health) compile() *snapshot.Health {
	if h == nil {
		return nil
	}
	out := &snapshot.Health{Kind: h.kind(), Interval: h.Interval, Timeout: h.timeout(), Unhealthy: h.UnhealthyThreshold, Healthy: h.HealthyThreshold}
	if h.HTTP != nil {
		out.Path, out.Status = h.HTTP.Path, h.HTTP.Status
	}
	if h.GRPC != nil {
		out.Service = h.GRPC.Service
	}
	return out
}

// String is how an application is asked, as a person reads it.
func (h *Health) String() string {
	if h == nil {
		return "its port"
	}
	what := h.kind()
	switch {
	case h.HTTP != nil && h.HTTP.Status != 0:
		what += fmt.Sprintf(" %s for %d", h.HTTP.Path, h.HTTP.Status)
	case h.HTTP != nil:
		what += " " + h.HTTP.Path
	case h.GRPC != nil:
		what += " " + cmp.Or(h.GRPC.Service, "as a whole")
	}
	return fmt.Sprintf("%s every %s within %s, %d down, %d up", what, short(h.Interval), short(h.timeout()), h.UnhealthyThreshold, h.HealthyThreshold)
}
