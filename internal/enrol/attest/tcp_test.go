package attest_test

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

func pids(ws []*attest.Workload) (pids []int) {
	for _, w := range ws {
		pids = append(pids, w.PID)
		w.Close()
	}
	slices.Sort(pids)
	return pids
}

func TestTCPFindsTheProcess(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ network, listen, dial string }{
		"ipv4":                     {"tcp4", "127.0.0.1:0", "127.0.0.1"},
		"ipv6":                     {"tcp6", "[::1]:0", "[::1]"},
		"ipv4 to a dual listener":  {"tcp", "[::]:0", "127.0.0.1"},
		"mapped by the client too": {"tcp4", "127.0.0.1:0", "[::ffff:127.0.0.1]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tcpListener(t, tc.network, tc.listen)
			port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
			c := start(t, "dial tcp "+tc.dial+":"+port, nil).ready(t)
			_, client, server := acceptTCP(t, l)
			exe, _ := self(t)
			want := snapshot.RunsAs{User: strconv.Itoa(os.Getuid()), Exe: exe}
			ws, err := newAttestor().TCP(client, server, want)
			if err != nil {
				t.Fatal(err)
			}
			if len(ws) == 1 {
				if err := ws[0].Match(want); err != nil {
					t.Error(err)
				}
			}
			if got := pids(ws); !slices.Equal(got, []int{c.Process.Pid}) {
				t.Errorf("got processes %v, want %d", got, c.Process.Pid)
			}
		})
	}
}

func TestTCPReportsEveryHolder(t *testing.T) {
	t.Parallel()
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	ours, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	f, err := ours.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := start(t, "hold", func(c *exec.Cmd) { c.ExtraFiles = []*os.File{f} }).ready(t)
	_, client, server := acceptTCP(t, l)
	want := []int{os.Getpid(), c.Process.Pid}
	slices.Sort(want)
	var got []int
	// A child that another test is starting holds the socket too, rightly, until
	// it becomes another program.
	for end := time.Now().Add(5 * time.Second); !slices.Equal(got, want) && time.Now().Before(end); {
		ws, err := newAttestor().TCP(client, server, snapshot.RunsAs{})
		if err != nil {
			t.Fatal(err)
		}
		got = pids(ws)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got processes %v, want %v", got, want)
	}
}

func TestTCPRefusesASocketThatWasHandedOn(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	ours, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f, err := ours.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	start(t, "hold", func(c *exec.Cmd) {
		as(4711, 4711)(c)
		c.ExtraFiles = []*os.File{f}
	}).ready(t)
	f.Close()
	ours.Close()
	_, client, server := acceptTCP(t, l)
	if ws, err := newAttestor().TCP(client, server, snapshot.RunsAs{}); code(err) != fault.NotAttested {
		t.Errorf("got processes %v, %v", pids(ws), err)
	}
}

func TestTCPRefusesWhatNobodyHolds(t *testing.T) {
	t.Parallel()
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	ours, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, client, server := acceptTCP(t, l)
	other := netip.AddrPortFrom(server.Addr(), client.Port()+1)
	for name, tc := range map[string]struct{ client, server netip.AddrPort }{
		"another server port":    {client, netip.AddrPortFrom(server.Addr(), server.Port()^1)},
		"another server address": {client, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), server.Port())},
		"a listener":             {server, other},
		"not of this machine":    {netip.MustParseAddrPort("192.0.2.1:1234"), server},
		"two families":           {netip.MustParseAddrPort("[::1]:1234"), server},
		"a zone":                 {netip.MustParseAddrPort("[fe80::1%lo]:1234"), netip.MustParseAddrPort("[fe80::1%lo]:1")},
		"no address":             {netip.AddrPort{}, netip.AddrPort{}},
	} {
		if ws, err := newAttestor().TCP(tc.client, tc.server, snapshot.RunsAs{}); code(err) != fault.NotAttested {
			t.Errorf("%s: got processes %v, %v", name, pids(ws), err)
		}
	}
	ours.Close()
	if ws, err := newAttestor().TCP(client, server, snapshot.RunsAs{}); code(err) != fault.NotAttested {
		t.Errorf("closed: got processes %v, %v", pids(ws), err)
	}
}

func TestTCPWithoutCapabilitiesKnowsOnlyTheUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	start(t, "dial tcp "+l.Addr().String(), as(4711, 4711)).ready(t)
	_, client, server := acceptTCP(t, l)
	agent := start(t, "tcp "+client.String()+" "+server.String(), as(4712, 4712))
	var ws []*attest.Workload
	if err := json.NewDecoder(agent.out).Decode(&ws); err != nil || len(ws) != 1 {
		t.Fatalf("got %v, %v", ws, err)
	}
	w := ws[0]
	if w.PID != 0 || w.UID != 4711 || w.GID != -1 || w.Exe != "" {
		t.Errorf("got %+v", w)
	}
	for name, tc := range map[string]struct {
		want snapshot.RunsAs
		code fault.Code
	}{
		"user":         {snapshot.RunsAs{User: "4711"}, ""},
		"another user": {snapshot.RunsAs{User: "4713"}, fault.NotAttested},
		"group":        {snapshot.RunsAs{User: "4711", Group: "4711"}, fault.SelectorBlind},
		"unit":         {snapshot.RunsAs{User: "4711", Systemd: "orders.service"}, fault.SelectorBlind},
		"executable":   {snapshot.RunsAs{User: "4711", Exe: "/bin/true"}, fault.SelectorBlind},
		"digest":       {snapshot.RunsAs{User: "4711", SHA256: "00"}, fault.SelectorBlind},
		"differs too":  {snapshot.RunsAs{User: "4713", Exe: "/bin/true"}, fault.NotAttested},
	} {
		if got := code(w.Match(tc.want)); got != tc.code {
			t.Errorf("%s: got %q, want %q", name, got, tc.code)
		}
	}
}

// What other users keep open is none of a service's business: a look that was late
// for it refused everybody's connections.
func TestTCPIsNotHeldUpByAnotherUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for range 12 {
		start(t, "crowd 15000", as(4711, 4711)).ready(t)
	}
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	a := newAttestor()
	a.SetScanLimit(30 * time.Millisecond)
	attested := func(who func(*exec.Cmd)) error {
		start(t, "dial tcp "+l.Addr().String(), who).ready(t)
		_, client, server := acceptTCP(t, l)
		ws, err := a.TCP(client, server, snapshot.RunsAs{})
		pids(ws)
		return err
	}
	// The look for the crowded user's own connection is the one that is late, and
	// nobody's beside it.
	if err := attested(as(4711, 4711)); code(err) != fault.NotAttested || !strings.Contains(err.Error(), "too long") {
		t.Errorf("the crowded user: %v", err)
	}
	var err error
	for range 10 { // this machine may be busy with other tests
		if err = attested(as(4713, 4713)); err == nil {
			return
		}
	}
	t.Errorf("another user: %v", err)
}

// A busy clock stands still but for one leap: a machine that did something else in
// the midst of what is timed.
type busy struct {
	clock.System
	asked atomic.Int64
	leap  time.Duration
}

func (b *busy) Now() time.Time {
	if b.asked.Add(1) <= 2 {
		return time.Unix(1000, 0)
	}
	return time.Unix(1000, 0).Add(b.leap)
}

// A look is not late because the machine is busy with other things: what is bounded
// is what it costs. It does not take for ever either.
func TestTCPOnABusyMachine(t *testing.T) {
	t.Parallel()
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	start(t, "dial tcp "+l.Addr().String(), nil).ready(t)
	_, client, server := acceptTCP(t, l)
	for leap, late := range map[time.Duration]bool{5 * time.Second: false, time.Minute: true} {
		ws, err := attest.New(attest.Config{Clock: &busy{leap: leap}}).TCP(client, server, snapshot.RunsAs{})
		pids(ws)
		if got := err != nil && strings.Contains(err.Error(), "too long"); got != late || !late && err != nil {
			t.Errorf("%s: %v", leap, err)
		}
	}
}

func TestTCPManyAtOnce(t *testing.T) {
	t.Parallel()
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	a := newAttestor()
	var wg sync.WaitGroup
	for range 32 {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, client, server := acceptTCP(t, l)
		wg.Go(func() {
			// A child that another test is starting holds every socket until it execs.
			var got []int
			var err error
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				var ws []*attest.Workload
				ws, err = a.TCP(client, server, snapshot.RunsAs{})
				if got = pids(ws); err == nil && slices.Equal(got, []int{os.Getpid()}) {
					return
				}
			}
			t.Errorf("got processes %v, %v", got, err)
		})
	}
	wg.Wait()
}

func TestPortOwner(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ network, listen, ask string }{
		"the address":        {"tcp4", "127.0.0.1:0", "127.0.0.1"},
		"all ipv4 addresses": {"tcp4", "0.0.0.0:0", "127.0.0.1"},
		"all addresses":      {"tcp", "[::]:0", "127.0.0.1"},
		"ipv6":               {"tcp6", "[::1]:0", "::1"},
	} {
		l := tcpListener(t, tc.network, tc.listen)
		addr := netip.AddrPortFrom(netip.MustParseAddr(tc.ask), uint16(l.Addr().(*net.TCPAddr).Port))
		if uid, found, err := attest.PortOwner(addr); uid != os.Getuid() || !found || err != nil {
			t.Errorf("%s: got %d, %v, %v", name, uid, found, err)
		}
	}
}

func TestPortWithoutAListenerHasNoOwner(t *testing.T) {
	t.Parallel()
	// Bound, so that nobody else can have it, but not listening.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	if uid, found, err := attest.PortOwner(addr); found || err != nil {
		t.Errorf("got %d, %v, %v", uid, found, err)
	}
}

func BenchmarkTCP(b *testing.B) {
	l := tcpListener(b, "tcp4", "127.0.0.1:0")
	start(b, "dial tcp "+l.Addr().String(), nil).ready(b)
	_, client, server := acceptTCP(b, l)
	a := newAttestor()
	b.ReportAllocs()
	for b.Loop() {
		ws, err := a.TCP(client, server, snapshot.RunsAs{})
		if err != nil {
			b.Fatal(err)
		}
		for _, w := range ws {
			w.Close()
		}
	}
}

func BenchmarkUnix(b *testing.B) {
	l := unixListener(b)
	start(b, "dial unix "+l.Addr().String(), nil).ready(b)
	conn, a := acceptUnix(b, l), newAttestor()
	b.ReportAllocs()
	for b.Loop() {
		w, err := a.Unix(conn)
		if err != nil {
			b.Fatal(err)
		}
		w.Close()
	}
}
