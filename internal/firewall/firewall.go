// Package firewall keeps everybody but the agent away from the ports of applications,
// beside their sidecars: it makes the rules for nftables (nft(8)) from a snapshot, and
// has the program nft put them in, all or nothing, and take them out.
//
// They are one table, which is Parley's alone. Nobody else's table, rule or policy is
// looked at or changed, and what is for no application's port passes as ever, so that
// neither the rules nor their absence can lock anybody out of a host.
//
// It refuses to close a port that something else than an application is known to use.
package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Table is the family and name of our table.
const Table = "inet parley"

// A Port is one that an application takes connections on.
type Port struct {
	Service string `json:"service"`
	Port    uint16 `json:"port"`
}

// Rules are what is closed to whom.
type Rules struct {
	// UID is the agent's user, the only one that reaches the ports.
	UID int
	// Ports are in order of service, none where no application takes connections by TCP.
	Ports []Port
}

// A Host is where rules are for.
type Host struct {
	// UID is the agent's user.
	UID int
	// Addresses are the host's own, beside loopback.
	Addresses []netip.Addr
	// Listens are other addresses of Parley's there, host:port, such as for metrics.
	Listens []string
}

// ThisHost is this machine, with an agent of that user.
func ThisHost(uid int, listens ...string) Host {
	h := Host{UID: uid, Listens: listens}
	addrs, _ := net.InterfaceAddrs() // without them less is closed
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			h.Addresses = append(h.Addresses, p.Addr().Unmap())
		}
	}
	return h
}

// reserved are ports that are never closed, whatever a mesh file says.
var reserved = map[uint16]string{22: "SSH", 7443: "a parley server"}

// New makes the rules for the services of s, which is the slice of one host. What may
// not be closed is left out of them and is in the error, a fault.List.
func New(s *snapshot.Snapshot, on Host) (Rules, error) {
	r := Rules{UID: on.UID}
	taken := listens(s, on.Listens)
	var faults fault.List
	for i := range s.Services {
		svc := &s.Services[i]
		if svc.Inbound == nil || strings.HasPrefix(svc.Inbound.App, "unix:") {
			continue
		}
		host, port, ok := split(svc.Inbound.App)
		refuse := func(hint, format string, args ...any) {
			args = append([]any{svc.Inbound.App, svc.Name}, args...)
			faults = append(faults, fault.New(fault.PortNotClosed, hint, "the app port %s of %s is not closed: "+format, args...))
		}
		const move = "give the application another port, or a Unix socket: app: unix:/path"
		ip, err := netip.ParseAddr(host)
		switch who, used := taken[port]; {
		case !ok:
			refuse("write it as an IP address and a port", "it is no address with a port")
		case reserved[port] != "":
			refuse(move, "port %d is that of %s", port, reserved[port])
		case used:
			// The rules are by port: the application might listen on more addresses than
			// the mesh file says, and that is what they are against.
			refuse(move, "%s is on port %d too", who, port)
		case host != "" && (err != nil || !ip.IsLoopback() && !ip.IsUnspecified() && !slices.Contains(on.Addresses, ip.Unmap())):
			refuse("close it where it is", "it is not on this host")
		default:
			r.Ports = append(r.Ports, Port{svc.Name, port})
		}
	}
	slices.SortFunc(r.Ports, func(a, b Port) int { return strings.Compare(a.Service, b.Service) })
	return r, faults.Err()
}

// listens are the ports of Parley's own listeners, with what they are for.
func listens(s *snapshot.Snapshot, others []string) map[uint16]string {
	all := map[uint16]string{}
	put := func(addr, what string) {
		if _, port, ok := split(addr); ok {
			all[port] = what
		}
	}
	for _, addr := range others {
		put(addr, "the agent itself")
	}
	for _, v := range s.Services {
		if v.Inbound != nil {
			put(v.Inbound.Listen, "the listener "+v.Name+".inbound")
		}
		for _, o := range v.Outbound {
			put(o.Listen, "the listener "+v.Name+".calls."+o.To)
		}
	}
	for _, g := range s.Gateways {
		put(g.Listen, "the listener gateway."+g.Name)
		if g.Redirect != nil {
			put(g.Redirect.Listen, "the listener gateway."+g.Name+".redirect")
		}
	}
	return all
}

func split(addr string) (host string, port uint16, ok bool) {
	host, text, err := net.SplitHostPort(addr)
	n, bad := strconv.ParseUint(text, 10, 16)
	return host, uint16(n), err == nil && bad == nil && n > 0
}

// absent takes our table away, also where there is none, in the words of nft(8).
const absent = "table " + Table + "\ndelete table " + Table + "\n"

// String is the rules in the words of nft(8), which are one transaction: they take the
// place of those of before, and without ports nothing is left.
//
// Only what opens a connection is looked at: replies, and connections that are open,
// are not. From other machines and network namespaces nothing may open one; on this
// one whoever has a socket of the agent's user may, and what has no socket may not.
func (r Rules) String() string {
	var b strings.Builder
	b.WriteString(absent)
	if len(r.Ports) == 0 {
		return b.String()
	}
	var ports []string
	seen := map[uint16]bool{}
	for _, p := range r.Ports {
		if !seen[p.Port] {
			ports = append(ports, fmt.Sprint(p.Port))
		}
		seen[p.Port] = true
		fmt.Fprintf(&b, "# %s: %d\n", strings.Map(plain, p.Service), p.Port)
	}
	const opens = "tcp flags & (fin | syn | rst | ack) == syn tcp dport @app_ports"
	fmt.Fprintf(&b, `table %s {
	set app_ports {
		type inet_service
		elements = { %s }
	}
	chain input {
		type filter hook input priority filter; policy accept;
		iifname != "lo" %[3]s reject with tcp reset
	}
	chain output {
		type filter hook output priority filter; policy accept;
		oifname "lo" %[3]s meta skuid %[4]d accept
		oifname "lo" %[3]s reject with tcp reset
	}
}
`, Table, strings.Join(ports, ", "), opens, r.UID)
	return b.String()
}

// plain keeps a comment one: a name has nothing else, by the mesh file's rules.
func plain(c rune) rune {
	if c == '-' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
		return c
	}
	return '?'
}

// Limits are sentences on whom the rules cannot keep out, since the kernel tells
// sockets apart by their user only.
func (r Rules) Limits(s *snapshot.Snapshot) (out []string) {
	if len(r.Ports) == 0 {
		return nil
	}
	if r.UID == 0 {
		out = append(out, "the agent runs as root, so every process of root reaches the ports too; run it as a user of its own")
	}
	for i := range s.Services {
		svc := &s.Services[i]
		if r.UID != 0 && slices.ContainsFunc(r.Ports, func(p Port) bool { return p.Service == svc.Name }) && runsAs(svc) == r.UID {
			out = append(out, fmt.Sprintf("%s runs as the agent's own user %s, so every process of that user reaches its port; give each a user of its own", svc.Name, UserText(r.UID)))
		}
	}
	return out
}

// runsAs is the user of a service, as stated or by who has its port; -1 where neither
// is known.
func runsAs(svc *snapshot.Service) int {
	if svc.RunsAs.User != "" {
		if a, ok := attest.AccountOf(svc.RunsAs.User); ok {
			return a.UID
		}
		return -1
	}
	return owner(svc.Inbound.App)
}

// owner is the user who listens on addr here, -1 where nobody does.
func owner(addr string) int {
	host, port, ok := split(addr)
	if !ok {
		return -1
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.IsUnspecified() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if uid, found, err := attest.PortOwner(netip.AddrPortFrom(ip, port)); err == nil && found {
		return uid
	}
	return -1
}

// Agent is the user of the agent that runs the inbound listeners of s on this machine;
// false where none of them is open here.
func Agent(s *snapshot.Snapshot) (uid int, ok bool) {
	for _, v := range s.Services {
		if v.Inbound == nil {
			continue
		}
		if uid := owner(v.Inbound.Listen); uid >= 0 {
			return uid, true
		}
	}
	return 0, false
}

// UserID is the number of a user of this host, by name or number.
func UserID(name string) (uid int, ok bool) {
	a, ok := attest.AccountOf(name)
	return a.UID, ok
}

// UserText is a user as a person reads it.
func UserText(uid int) string { return attest.UserText(uid) }
