package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mtls"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Prepare says whether the listeners that s would add can be opened now, so that
// a revision that could not run is refused before it is made.
func (a *Agent) Prepare(s *snapshot.Snapshot) error {
	// An update that is being applied opens listeners too: neither may find the
	// other's in its way.
	a.applying.Lock()
	defer a.applying.Unlock()
	var faults fault.List
	for _, l := range listens(s) {
		if a.proxy.Holds(l.addr) {
			continue
		}
		if f := tryListen(l); f != nil {
			faults = append(faults, f)
		}
	}
	for _, g := range s.Gateways {
		if g.CertFile == "" {
			continue
		}
		if _, err := mtls.OpenFiles(g.CertFile, g.KeyFile, a.cfg.Clock); err != nil {
			for _, f := range fault.All(err) {
				said := *f
				said.Message = "gateway " + g.Name + ": " + f.Message
				faults = append(faults, &said)
			}
		}
	}
	return faults.Err()
}

// A listen is an address that a snapshot listens on, and for whom.
type listen struct{ name, addr string }

func listens(s *snapshot.Snapshot) (out []listen) {
	for _, svc := range s.Services {
		if svc.Inbound != nil {
			out = append(out, listen{svc.Name + ".inbound", svc.Inbound.Listen})
		}
		for _, o := range svc.Outbound {
			out = append(out, listen{svc.Name + ".calls." + o.To, o.Listen})
		}
	}
	for _, g := range s.Gateways {
		out = append(out, listen{"gateway." + g.Name, g.Listen})
		if g.Redirect != nil {
			out = append(out, listen{"gateway." + g.Name + ".redirect", g.Redirect.Listen})
		}
	}
	return out
}

// tryListen opens the address and lets it go again.
func tryListen(l listen) *fault.Fault {
	if path, ok := strings.CutPrefix(l.addr, "unix:"); ok {
		return tryUnix(l, path)
	}
	c, err := net.Listen("tcp", l.addr)
	if err == nil {
		c.Close()
		return nil
	}
	_, port, _ := net.SplitHostPort(l.addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.New(fault.PortOccupied, fmt.Sprintf("see who has it: ss -ltnp 'sport = :%s', or choose another port; nothing was changed", port),
			"another process listens on %s, which %s needs", l.addr, l.name)
	case errors.Is(err, os.ErrPermission):
		return fault.New(fault.PortForbidden, "choose a port above 1023, or give the binary CAP_NET_BIND_SERVICE; nothing was changed",
			"this user may not listen on %s, which %s needs", l.addr, l.name)
	}
	return fault.Wrap(cause(err), fault.PortForbidden, "choose an address of this host: ip -brief address; nothing was changed", "%s cannot listen on %s", l.name, l.addr)
}

func tryUnix(l listen, path string) *fault.Fault {
	if len(path) > maxSocketPath {
		return fault.New(fault.SocketPath, "choose a shorter path", "the socket path of %s has %d bytes, the system's limit is %d", l.name, len(path), maxSocketPath)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fault.New(fault.SocketPath, "stop it first, or choose another path", "another process answers on %s, which %s needs", path, l.name)
	}
	dir := path[:strings.LastIndexByte(path, '/')+1]
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.SocketPath, "mkdir -p "+dir, "the directory of %s's socket does not exist: %s", l.name, dir)
	}
	return nil
}
