package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/parleymesh/parley/internal/fault"
)

// maxSocket is the longest path of a Unix socket on Linux (unix(7)).
const maxSocket = 107

// Listen opens the admin API's socket at path with mode 0600. A socket that a
// killed server left behind is replaced; one that answers, and any other kind
// of file, is fault.SocketPath.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocket {
		return nil, fault.New(fault.SocketPath, "use a shorter directory",
			"the socket path %s is longer than %d bytes", path, maxSocket)
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fault.Wrap(err, fault.SocketPath, "ls -ld "+filepath.Dir(path), "the socket %s cannot be opened", path)
	}
	// Between the two calls the peer's credentials alone protect the socket.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the socket: %w", err), l.Close())
	}
	return l, nil
}

// clearSocket removes a socket at path that nobody listens on.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Wrap(err, fault.SocketPath, "ls -ld "+filepath.Dir(path), "the socket path %s cannot be used", path)
	case info.Mode().Type() != fs.ModeSocket:
		return fault.New(fault.SocketPath, "move it away, or use another directory", "%s exists and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close() // it was only to see that somebody answers
		return fault.New(fault.SocketPath, "stop that server, or use another directory", "another server listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fault.Wrap(err, fault.SocketPath, "stop that server, or use another directory", "another process may hold %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of a server that ended: %w", err)
	}
	return nil
}
