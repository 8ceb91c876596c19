package attest

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/clock"
)

// A process that connects, hands the socket to a child, and becomes the service
// is not the service that connected.
func TestHolderThatBecameTheServiceIsRefused(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a := New(Config{Clock: clock.System{}})
	s, err := lookup(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := a.scans.holders(s.uid, s.inode, false)
	if err != nil || len(found) != 1 || found[0].pid != os.Getpid() {
		t.Fatalf("found %+v, %v", found, err)
	}
	same, err := a.readHolder(found[0], s.inode)
	if err != nil || same == nil {
		t.Fatalf("unchanged: %v", err)
	}
	same.Close()
	for name, change := range map[string]func(*program){
		"another name of the file": func(p *program) { p.path += "2" },
		"another file":             func(p *program) { p.ino++ },
		"it could not be read":     func(p *program) { *p = program{} },
	} {
		was := found[0]
		change(&was.runs)
		w, err := a.readHolder(was, s.inode)
		if err == nil || !strings.Contains(err.Error(), "another program") {
			t.Errorf("%s: %v", name, err)
		}
		if w != nil {
			w.Close()
		}
	}
}
