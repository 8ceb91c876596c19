package attest_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/snapshot"
)

// hide is what a program does that wants another one's identity: it has that one,
// exe, hold the connection, and keeps a copy of it where how says. Then the service
// is who is seen.
func hide(args []string) error {
	how, network, address, exe := args[0], args[1], args[2], args[3]
	s, err := dialRaw(network, address, how == "made")
	if err != nil {
		return err
	}
	service := exec.Command(exe)
	service.Env = []string{taskVar + "=hold"}
	if how == "made" { // the service connects it
		service.Env = []string{taskVar + "=connect 3 " + address}
	}
	service.ExtraFiles = []*os.File{os.NewFile(uintptr(s), "connection")}
	in, err := service.StdinPipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := service.StdoutPipe()
	if err != nil {
		return err
	}
	if err := service.Start(); err != nil {
		return err
	}
	if _, err := out.Read(make([]byte, 6)); err != nil { // "ready"
		return err
	}
	switch how {
	case "flight":
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Sendmsg(pair[0], nil, unix.UnixRights(s), nil, 0); err != nil {
			return err
		}
		_ = unix.Close(s)
	case "thread":
		apart := make(chan error)
		var keep func()
		keep = func() {
			runtime.LockOSThread()
			if unix.Gettid() == unix.Getpid() { // the first thread's table is the one in sight
				go keep()
			} else {
				apart <- unix.Unshare(unix.CLONE_FILES)
			}
			select {}
		}
		go keep()
		if err := <-apart; err != nil {
			return err
		}
		_ = unix.Close(s)
	}
	return untilEOF()
}

func dialRaw(network, address string, onlyMake bool) (int, error) {
	if network == "unix" {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil && !onlyMake {
			err = unix.Connect(s, &unix.SockaddrUnix{Name: address})
		}
		return s, err
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return -1, err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(s, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	return s, err
}

// A process that has the service hold its connection is not the service, however
// it keeps a copy to itself.
func TestCopiesOfAConnectionAreSeen(t *testing.T) {
	t.Parallel()
	needRoot(t) // what is in flight is in the way of all services of its user
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	exe, other := filepath.Join(dir, "service"), filepath.Join(dir, "other")
	copySelf(t, exe)
	copySelf(t, other)
	want := snapshot.RunsAs{Exe: exe}
	for i, tc := range []struct {
		how, network string
		code         fault.Code
		says         string
	}{
		{"open", "tcp", fault.NotAttested, other},
		{"flight", "tcp", fault.SelectorBlind, "in flight"},
		{"thread", "tcp", fault.NotAttested, other},
		{"made", "unix", fault.NotAttested, other},
	} {
		t.Run(tc.how+" "+tc.network, func(t *testing.T) {
			t.Parallel()
			match := matcher(t, tc.network, func(address string) {
				start(t, strings.Join([]string{"hide", tc.how, tc.network, address, exe}, " "), func(c *exec.Cmd) {
					as(4720+uint32(i), 4720)(c)
					c.Path = other
				}).ready(t)
			})
			err := match(want)
			if code(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// matcher has dial open a connection, and says of who is at its other end whether
// they are the service.
func matcher(t *testing.T, network string, dial func(address string)) func(snapshot.RunsAs) error {
	if network == "unix" {
		l := unixListener(t)
		dial(l.Addr().String())
		conn := acceptUnix(t, l)
		w, err := newAttestor().Unix(conn)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		return w.Match
	}
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	dial(l.Addr().String())
	_, client, server := acceptTCP(t, l)
	return func(want snapshot.RunsAs) error {
		ws, err := newAttestor().TCP(client, server, want)
		for _, w := range ws {
			if err == nil {
				err = w.Match(want)
			}
			w.Close()
		}
		return err
	}
}

// Where nothing is hidden the same look lets the service through, whether it was
// asked for the whole or for less.
func TestTheServiceItselfPasses(t *testing.T) {
	t.Parallel()
	exe, sum := self(t)
	for _, network := range []string{"tcp", "unix"} {
		match := matcher(t, network, func(address string) { start(t, "dial "+network+" "+address, nil).ready(t) })
		for _, want := range []snapshot.RunsAs{{Exe: exe}, {SHA256: sum}, {User: fmt.Sprint(os.Getuid())}} {
			if err := match(want); err != nil {
				t.Errorf("%s %+v: %v", network, want, err)
			}
		}
	}
}

// A look that did not go for copies says nothing of the program.
func TestAShallowLookDoesNotTellPrograms(t *testing.T) {
	t.Parallel()
	exe, _ := self(t)
	l := tcpListener(t, "tcp4", "127.0.0.1:0")
	start(t, "dial tcp "+l.Addr().String(), nil).ready(t)
	_, client, server := acceptTCP(t, l)
	ws, err := newAttestor().TCP(client, server, snapshot.RunsAs{User: "0"})
	if err != nil || len(ws) != 1 {
		t.Fatal(ws, err)
	}
	defer ws[0].Close()
	if err := ws[0].Match(snapshot.RunsAs{Exe: exe}); code(err) != fault.SelectorBlind {
		t.Errorf("got %v", err)
	}
}

func TestUnixIsGoneWithItsClient(t *testing.T) {
	t.Parallel()
	exe, _ := self(t)
	l := unixListener(t)
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	w, err := newAttestor().Unix(acceptUnix(t, l))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	c.Close()
	if err := w.Match(snapshot.RunsAs{Exe: exe}); code(err) != fault.NotAttested {
		t.Errorf("got %v", err)
	}
}

func FuzzUnixReply(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("\x28\x00\x00\x00\x14\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" + // header
		"\x01\x01\x01\x00\x2a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x08\x00\x02\x00\x2b\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		peer, err := attest.ParseUnix(b)
		if (err == nil) != (peer != 0) {
			t.Fatalf("%d, %v", peer, err)
		}
	})
}
