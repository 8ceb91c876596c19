package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
)

const (
	maxPort   = 65535
	loopback4 = "127.0.0.1"
	// maxSocket is the longest path of a Unix socket, in bytes: sun_path of
	// unix(7) without its terminating zero.
	maxSocket = 107
)

// An address is where something listens: a host and port, or a Unix socket.
type address struct {
	// host is an IP address in canonical form, or empty for all interfaces.
	host string
	port int
	unix string // the absolute path; host and port are then zero
}

// String is the canonical form: localhost is 127.0.0.1, every wildcard is empty.
func (a address) String() string {
	if a.unix != "" {
		return "unix:" + a.unix
	}
	return net.JoinHostPort(a.host, strconv.Itoa(a.port))
}

// reach is where a client on this host finds it.
func (a address) reach() string {
	if a.unix == "" && a.host == "" {
		a.host = loopback4
	}
	return a.String()
}

// local says that nobody on another host can reach it.
func (a address) local() bool {
	ip, err := netip.ParseAddr(a.host)
	return a.unix != "" || err == nil && ip.IsLoopback()
}

// parseAddress reads host:port or unix:/path. For its errors it knows no key:
// instead is the address to suggest, given a port.
func parseAddress(s string, instead func(port string) string) (address, *flaw) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseSocket(p)
	}
	bad := func(label, hint, replacement string) (address, *flaw) {
		return address{}, &flaw{code: fault.MeshValue, label: label, hint: hint, replacement: replacement}
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		better := instead(s)
		return bad("a port alone", fmt.Sprintf("write `%s`", better), better)
	}
	host, digits, err := net.SplitHostPort(s)
	if err != nil {
		hint := fmt.Sprintf("write it like `%s`", instead("8080"))
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() || strings.Count(s, ":") > 1 && !strings.Contains(s, "[") {
			hint = "write an IPv6 address in brackets: `[::1]:8080`"
		}
		return bad("not host:port", hint, "")
	}
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits != strconv.FormatUint(port, 10) {
		return bad(fmt.Sprintf("`%s` is not a port", clip(digits)), "a port is a number from 1 to 65535", "")
	}
	a := address{port: int(port)}
	switch {
	case host == "":
	case host == "localhost":
		a.host = loopback4
	default:
		ip, err := netip.ParseAddr(host)
		if err != nil {
			return bad(fmt.Sprintf("`%s` is not an IP address", clip(host)), "the host is an IP address or localhost: what a name leads to can change", "")
		}
		if ip = ip.Unmap(); !ip.IsUnspecified() {
			a.host = ip.String()
		}
	}
	return a, nil
}

func parseSocket(p string) (address, *flaw) {
	f := &flaw{code: fault.MeshValue}
	switch {
	case !path.IsAbs(p):
		f.label, f.hint = "the path is not absolute", "write it like `unix:/run/app/app.sock`"
	case p == "/":
		f.label, f.hint = "the root directory", "write it like `unix:/run/app/app.sock`"
	case path.Clean(p) != p:
		f.label, f.hint = "the path is not in its shortest form", fmt.Sprintf("write `unix:%s`", path.Clean(p))
	case len(p) > maxSocket:
		f.label, f.hint = fmt.Sprintf("the path has %d bytes", len(p)), fmt.Sprintf("the system allows %d; use a directory nearer to the root", maxSocket)
	case strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f }):
		f.label = "the path holds a control character"
	default:
		return address{unix: p}, nil
	}
	return address{}, f
}

// A holder is who stated an address.
type holder struct {
	what string // "the inbound listener of orders"
	path string // in the document; empty for what is assigned
}

// addresses are those in use, so that no second listener gets one. A wildcard
// host takes its port on every host.
type addresses struct {
	exact map[address]holder
	ports map[int][]address
}

func (as *addresses) put(a address, h holder) {
	if as.exact == nil {
		as.exact, as.ports = map[address]holder{}, map[int][]address{}
	}
	as.exact[a] = h
	if a.unix == "" {
		as.ports[a.port] = append(as.ports[a.port], a)
	}
}

// find is who holds an address that collides with a.
func (as *addresses) find(a address) (holder, bool) {
	if h, ok := as.exact[a]; ok {
		return h, true
	}
	if a.unix != "" {
		return holder{}, false
	}
	if h, ok := as.exact[address{port: a.port}]; ok {
		return h, true
	}
	if others := as.ports[a.port]; a.host == "" && len(others) > 0 {
		return as.exact[others[0]], true
	}
	return holder{}, false
}

func (as *addresses) holds(a address) bool {
	_, ok := as.find(a)
	return ok
}
