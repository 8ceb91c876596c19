package dev

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
)

func TestPortBase(t *testing.T) {
	t.Parallel()
	for _, base := range []int{-2, 1, 1023, 65535 - portsNeeded + 1, 65536} {
		_, err := portBase(base, 0, "parley dev --dir x")
		if all := fault.All(err); len(all) != 1 || all[0].Code != fault.Usage || all[0].Hint == "" {
			t.Errorf("%d: %v", base, err)
		}
	}
	for _, base := range []int{1024, 65535 - portsNeeded} {
		if got, err := portBase(base, 0, "parley dev --dir x"); got != base || err != nil {
			t.Errorf("%d: %d, %v", base, got, err)
		}
	}
	if got, err := portBase(0, 0, ""); got != DefaultPortBase || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}

// The ports of the applications are not the mesh's, and yet somebody may be there.
func TestApplicationPortTaken(t *testing.T) {
	t.Parallel()
	base, err := portBase(-1, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	file, err := mesh.Parse("parley.yaml", []byte(demoMesh("/bin", base)))
	if err != nil {
		t.Fatal(err)
	}
	m := &Mesh{Base: base, Demo: true, file: file, command: "parley dev --dir x"}
	if err := m.appPortsFree(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+offOrders))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all := fault.All(m.appPortsFree())
	if len(all) != 1 || all[0].Code != fault.PortOccupied || !strings.Contains(all[0].Message, l.Addr().String()) ||
		!strings.HasSuffix(all[0].Hint, "parley dev --dir x --port-base -1") {
		t.Errorf("%+v", all)
	}
}

func TestOwns(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"parley.db": true, "parley.db-wal": true, "parley.db-shm": true, "parley.db.lock": true, "master.key": true, ".master.key.123": true,
		"ca": true, "agent": true, "parley.yaml": true,
		"master.key.bak": false, "parley.db-backup": false, "parley.db.good": false, ".ssh": false, ".parley": false, "cat": false, "": false, ".": false,
	} {
		if owns(name) != want {
			t.Errorf("%q: owned %t", name, !want)
		}
	}
}

// The shop stays where it was, if it may; otherwise it moves away from the ports
// that its calls keep.
func TestFreePortsAreThoseOfBefore(t *testing.T) {
	t.Parallel()
	had, err := portBase(-1, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := portBase(-1, had, ""); got != had || err != nil {
		t.Errorf("got %d, %v, want %d", got, err, had)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", had+portsNeeded-1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 50 {
		got, err := portBase(-1, had, "")
		if err != nil || got > had-portsNeeded && got < had+portsNeeded {
			t.Fatalf("got %d, %v, beside %d", got, err, had)
		}
	}
}
