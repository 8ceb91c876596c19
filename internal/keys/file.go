package keys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/parleymesh/parley/internal/fault"
)

// Write puts data at path with mode 0600, durably and whole: a temporary file
// beside it, fsync, rename, fsync of the folder. A link at path is replaced, not
// followed.
func Write(path string, data []byte) error { return WriteMode(path, data, 0o600) }

// WriteMode is Write with another mode.
func WriteMode(path string, data []byte, mode fs.FileMode) error {
	temp, err := writeTemp(path, data)
	if err != nil {
		return err
	}
	if err := os.Chmod(temp, mode); err != nil {
		os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeTemp makes a complete, synced file beside path. os.CreateTemp opens it
// with O_EXCL and mode 0600.
func writeTemp(path string, data []byte) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// syncDir makes a new name in dir survive a power loss.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openRegular opens path for reading if it is a regular file. O_NONBLOCK keeps
// a named pipe from holding the start up for ever.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readAtMost reads f to its end; where that is past limit, it returns limit+1
// bytes, which the caller finds too long or broken.
func readAtMost(f *os.File, limit int) ([]byte, error) {
	return io.ReadAll(io.LimitReader(f, int64(limit)+1))
}

func unreadable(err error, path string) error {
	hint := "ls -l " + quote(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = fmt.Sprintf("chown %d %s && chmod 600 %s", os.Geteuid(), quote(path), quote(path))
	case errors.Is(err, fs.ErrNotExist):
		hint = "restore " + quote(path) + " from the backup"
	}
	return fault.Wrap(cause(err), fault.KeyUnreadable, hint, "the key file %s cannot be read", path)
}

func unwritable(err error, path string) error {
	dir := quote(filepath.Dir(path))
	hint := "ls -ld " + dir
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = fmt.Sprintf("chown %d %s && chmod 700 %s", os.Geteuid(), dir, dir)
	case errors.Is(err, fs.ErrNotExist):
		hint = "mkdir -m 700 -p " + dir
	case errors.Is(err, syscall.ENOSPC):
		hint = "df -h " + dir
	}
	return fault.Wrap(cause(err), fault.KeyUnwritable, hint, "the key file %s cannot be written", path)
}

// cause drops the operation and path that package os adds: the fault names the
// path already, and a temporary file's name helps nobody.
func cause(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &le):
		return le.Err
	}
	return err
}

// quote is path as a shell takes it.
func quote(path string) string {
	plain := strings.IndexFunc(path, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-+:,@", r)
	}) < 0
	if plain && path != "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
