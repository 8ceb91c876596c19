package dev

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
)

// What a port base may be: below it a port needs a privilege.
const (
	minPortBase = 1024
	maxPortBase = 65535 - portsNeeded
)

// portBase is base, the default, or the first of a range in which nothing listens
// now: that which the shop had, if it had one and may, and otherwise one beside it,
// since the ports of calls stay where they are.
func portBase(base, had int, command string) (int, error) {
	switch {
	case base == 0:
		return DefaultPortBase, nil
	case base < -1 || base > 0 && base < minPortBase || base > maxPortBase:
		return 0, fault.New(fault.Usage, "let the shop have free ports: "+command+" --port-base -1",
			"--port-base is between %d and %d, since the shop needs %d ports from there on, not %d", minPortBase, maxPortBase, portsNeeded, base)
	case base > 0:
		return base, nil
	case had > 0 && free(had):
		return had, nil
	}
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		first := l.Addr().(*net.TCPAddr).Port
		l.Close()
		// Below the range that the system hands out, so that nobody gets one
		// of them by chance in the meantime.
		if first = 10000 + first%20000; (had == 0 || first >= had+portsNeeded || first+portsNeeded <= had) && free(first) {
			return first, nil
		}
	}
	return 0, fault.New(fault.PortOccupied, "name one: --port-base 9440", "no range of %d free ports was found", portsNeeded)
}

func free(first int) bool {
	for p := first; p < first+portsNeeded; p++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// appPortsFree looks for somebody on the ports of the applications, which the mesh
// does not listen on and so does not find taken.
func (m *Mesh) appPortsFree() error {
	for _, name := range demoServices {
		addr := m.appAddress(name)
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			continue // it serves nothing
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
		} else if errors.Is(err, syscall.EADDRINUSE) {
			return m.hint(fault.New(fault.PortOccupied, fmt.Sprintf("see who has it: ss -ltnp 'sport = :%s'", port),
				"another process listens on %s, where an application of the shop is to run", addr))
		}
	}
	return nil
}

// hint adds to a fault of the shop how to have it elsewhere.
func (m *Mesh) hint(err error) error {
	for _, f := range fault.All(err) {
		switch {
		case !m.Demo || m.changed:
		case f.Code == fault.PortOccupied || f.Code == fault.PortForbidden:
			f.Hint += "\nor let the shop have free ports: " + m.command + " --port-base -1"
		case f.Code == fault.CAForeign: // the shop's trust domain is not anybody's to set
			f.Hint = "the shop needs a directory of its own: parley dev --dir /tmp/p"
			if m.touring {
				f.Hint += " --try"
			}
		}
	}
	return err
}
