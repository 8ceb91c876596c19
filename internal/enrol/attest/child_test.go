package attest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// The tests attest real processes: this test binary, started again with a task
// in the environment.
const taskVar = "ATTEST_TEST_TASK"

func TestMain(m *testing.M) {
	if task, ok := os.LookupEnv(taskVar); ok {
		words := strings.Fields(task)
		if err := tasks[words[0]](words[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var tasks = map[string]func(args []string) error{
	// dial network address: connects, and holds on until its input ends.
	"dial": func(args []string) error {
		c, err := net.Dial(args[0], args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		return untilEOF()
	},
	// hold: keeps what it inherited until its input ends.
	"hold": func([]string) error { return untilEOF() },
	// hide how network address exe: see there.
	"hide": func(args []string) error { return hide(args) },
	// connect descriptor address: connects what it inherited to a Unix socket.
	"connect": func(args []string) error {
		fd, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[1]}); err != nil {
			return err
		}
		return untilEOF()
	},
	// crowd number: opens that many descriptors and holds on until its input ends.
	"crowd": func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for range n {
			if _, err := unix.Dup(0); err != nil {
				return err
			}
		}
		return untilEOF()
	},
	// bye network address: connects and ends at once.
	"bye": func(args []string) error {
		_, err := net.Dial(args[0], args[1])
		return err
	},
	// exec network address program: connects, waits for a line, becomes program
	// with the connection still open.
	"exec": func(args []string) error {
		c, err := net.Dial(args[0], args[1])
		if err != nil {
			return err
		}
		f, err := c.(*net.UnixConn).File() // duplicated without O_CLOEXEC below
		if err != nil {
			return err
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return err
		}
		fmt.Println("ready")
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		return syscall.Exec(args[2], []string{args[2], "60"}, nil)
	},
	// disguise program path: in a mount namespace of its own, mounts program
	// over path and runs that.
	"disguise": func(args []string) error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(args[0], args[1], "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return syscall.Exec(args[1], args[1:2], []string{taskVar + "=dial unix " + args[2]})
	},
	// tcp client server: attests and prints what it found.
	"tcp": func(args []string) error {
		ws, err := attest.New(attest.Config{Clock: clock.System{}}).TCP(netip.MustParseAddrPort(args[0]), netip.MustParseAddrPort(args[1]), snapshot.RunsAs{})
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(ws)
	},
}

func untilEOF() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// A child is a running task.
type child struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// start runs a task; how may change the command before it starts.
func start(t testing.TB, task string, how func(*exec.Cmd)) *child {
	t.Helper()
	// Through /proc/self/exe another user can start it, wherever it lies.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{taskVar + "=" + task}
	cmd.Stderr = os.Stderr
	if how != nil {
		how(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot start a child: %v", err)
	}
	c := &child{cmd, in, bufio.NewReader(out)}
	t.Cleanup(c.stop)
	return c
}

// ready waits until the task says so.
func (c *child) ready(t testing.TB) *child {
	t.Helper()
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return c
}

func (c *child) stop() {
	_ = c.in.Close()
	_ = c.Process.Kill()
	_ = c.Wait()
}

// as runs the command as another user; only root can.
func as(uid, gid uint32) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("starting another user's process needs root")
	}
}

func unixListener(t testing.TB) *net.UnixListener {
	t.Helper()
	dir, err := os.MkdirTemp("", "attest") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for path, mode := range map[string]os.FileMode{dir: 0o755, dir + "/s": 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func acceptUnix(t testing.TB, l *net.UnixListener) *net.UnixConn {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func tcpListener(t testing.TB, network, addr string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("%s %s: %v", network, addr, err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// acceptTCP returns the connection's two ends.
func acceptTCP(t testing.TB, l *net.TCPListener) (conn net.Conn, client, server netip.AddrPort) {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
}

func newAttestor() *attest.Attestor { return attest.New(attest.Config{Clock: clock.System{}}) }
