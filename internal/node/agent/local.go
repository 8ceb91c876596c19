package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/enrol/attest"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/keys"
	"github.com/parleymesh/parley/internal/snapshot"
)

// attest asks which process connected to an outbound listener of service. Every
// process that holds the socket must be the service: a socket can be shared.
func (a *Agent) attest(service string, conn net.Conn) (call.Process, error) {
	runsAs, ok := a.runsAs(service)
	if !ok {
		return call.Process{}, fault.New(fault.NotAttested, "parley status", "%s is not in this revision", service)
	}
	holders, err := a.holders(conn, runsAs)
	if err != nil {
		return call.Process{}, err
	}
	defer func() {
		for _, w := range holders {
			w.Close()
		}
	}()
	var p call.Process
	for _, w := range holders {
		p = process(w)
		if err := w.Match(runsAs); err != nil {
			return p, err
		}
		a.noteAccount(service, runsAs, w.Account())
	}
	return p, nil
}

func (a *Agent) holders(conn net.Conn, want snapshot.RunsAs) ([]*attest.Workload, error) {
	if u, ok := conn.(*net.UnixConn); ok {
		w, err := a.attestor.Unix(u)
		if err != nil {
			return nil, err
		}
		return []*attest.Workload{w}, nil
	}
	client, err1 := netip.ParseAddrPort(conn.RemoteAddr().String())
	server, err2 := netip.ParseAddrPort(conn.LocalAddr().String())
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	ws, err := a.attestor.TCP(client, server, want)
	if err == nil && len(ws) == 0 {
		err = fault.New(fault.NotAttested, "", "no process holds the connection from %s", client)
	}
	return ws, err
}

func process(w *attest.Workload) call.Process {
	return call.Process{PID: w.PID, UID: w.UID, Exe: w.Exe}
}

func (a *Agent) runsAs(service string) (snapshot.RunsAs, bool) {
	u := a.pending.Load()
	if u == nil {
		return snapshot.RunsAs{}, false
	}
	for _, s := range u.Snapshot.Services {
		if s.Name == service {
			return s.RunsAs, true
		}
	}
	return snapshot.RunsAs{}, false
}

// appPort refuses a service whose application port another user's process
// holds: forwarding to it would hand the service's calls to a stranger.
func (a *Agent) appPort(s snapshot.Service) error {
	if s.Inbound == nil || s.RunsAs.User == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(s.Inbound.App, "unix:"); ok {
		return appSocket(s.RunsAs.User, path)
	}
	addr, err := netip.ParseAddrPort(s.Inbound.App)
	if err != nil {
		return nil // a host name: not this machine's port to judge
	}
	uid, found, err := attest.PortOwner(addr)
	if err != nil || !found {
		return err
	}
	want, err := userID(s.RunsAs.User)
	if err != nil {
		return fault.Wrap(err, fault.AppPortHeld, "name an existing user in runs_as.user of "+s.Name, "the user of %s is not known on this host", s.Name)
	}
	if uid != want {
		return fault.New(fault.AppPortHeld, fmt.Sprintf("see who has it: ss -ltnp 'sport = :%d'", addr.Port()),
			"the app port %s of %s is held by user %s, not by %s", addr, s.Name, attest.UserText(uid), attest.UserText(want))
	}
	return nil
}

// appSocket asks whoever answers on the application's socket. Nobody may, so far:
// each connection is asked again by appConn.
func appSocket(user, path string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil //nolint:nilerr // nothing is handed to nobody
	}
	defer c.Close()
	return appConn(user, c)
}

// appConn refuses a connection to an application's Unix socket where another
// user's process listens. The file's owner and mode would not do: whoever may
// write to its directory can put another one in its place.
func appConn(user string, c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	uid, err := attest.Listener(u)
	if err != nil {
		return err
	}
	want, err := userID(user)
	if err != nil {
		return fault.Wrap(err, fault.AppPortHeld, "name an existing user in runs_as.user", "the user %s is not known on this host", user)
	}
	if uid != want {
		return fault.New(fault.AppPortHeld, "ss -lxp src "+u.RemoteAddr().String(),
			"the app socket %s is held by user %d, not by %s", u.RemoteAddr(), uid, user)
	}
	return nil
}

func userID(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(u.Uid)
}

// maxSocketPath is what sun_path holds besides its terminating zero (unix(7)).
const maxSocketPath = 107

// CheckSocket refuses a path that no Unix socket can have.
func CheckSocket(path string) error {
	if len(path) <= maxSocketPath {
		return nil
	}
	return fault.New(fault.SocketPath, "choose a shorter directory: --dir /tmp/p",
		"the socket path %s has %d bytes, the system's limit is %d", path, len(path), maxSocketPath)
}

// MakeDir makes an agent's directory with mode 0700, or refuses one that another
// user could have prepared.
func MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.Wrap(cause(err), fault.DirUnusable, "ls -ld "+filepath.Dir(dir)+", or choose another: --dir DIR", "the agent's directory %s cannot be made", dir)
	}
	return keys.CheckDir(dir)
}

// listenUnix binds a Unix socket that every local user may connect to, replacing
// one that nobody answers.
func listenUnix(path string) (net.Listener, error) {
	if err := CheckSocket(path); err != nil {
		return nil, err
	}
	refused := func(err error) error {
		return fault.Wrap(cause(err), fault.SocketPath, "ls -ld "+filepath.Dir(path)+" "+path, "the socket %s cannot be made", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, refused(err)
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, refused(err)
	}
	// Who connects is attested; the file's mode is no permission.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(refused(err), l.Close())
	}
	return l, nil
}

// cause is why a system call failed, without the names of the call and of its
// object: the fault names them in its own words.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// clearSocket removes a socket that a killed agent left behind. Dialling any
// other kind of file is refused in the same way, and such a file is kept.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Wrap(err, fault.SocketPath, "check the directory and its permissions", "the socket path %s cannot be used", path)
	case info.Mode().Type() != fs.ModeSocket:
		return fault.New(fault.SocketPath, "move it away, or choose another path", "%s exists and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close() // it was only to see that somebody answers
		return fault.New(fault.SocketPath, "stop the other Parley first, or choose another --dir",
			"another process answers on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fault.Wrap(err, fault.SocketPath, "stop the other Parley first, or choose another --dir", "another process may hold %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of an agent that ended: %w", err)
	}
	return nil
}
