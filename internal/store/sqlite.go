package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
)

// readers is the size of the pool for reading; in WAL mode the writer does not
// hold readers up, nor they the writer.
const readers = 4

// Result codes of SQLite (sqlite.org/rescode.html); the low byte is the kind.
const (
	codePerm     = 3
	codeBusy     = 5
	codeLocked   = 6
	codeReadOnly = 8
	codeCorrupt  = 11
	codeFull     = 13
	codeCantOpen = 14
	codeNotADB   = 26
	codeShmSize  = 10 | 19<<8 // SQLITE_IOERR_SHMSIZE: no room for the WAL's index
)

// A sqliteFile is the engine of a database in one file.
type sqliteFile struct {
	path     string
	existing bool
}

func (f *sqliteFile) String() string { return f.path }

func (f *sqliteFile) open(ctx context.Context) (write, read *sql.DB, err error) {
	if info, err := os.Lstat(f.path); f.existing && (errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0) {
		return nil, nil, gone(f.path)
	}
	if err := prepareFile(f.path); err != nil {
		return nil, nil, err
	}
	// One connection: SQLite has one writer at a time.
	if write, err = openPool(f.path, "_txlock=immediate&_pragma=secure_delete(1)", 1); err != nil {
		return nil, nil, err
	}
	if err := quickCheck(ctx, write, f.path); err != nil {
		return write, nil, err
	}
	read, err = openPool(f.path, "_pragma=query_only(1)", readers)
	return write, read, err
}

func (f *sqliteFile) local() bool { return true }

// enter has nothing to ask: the lock of the file is this process's until it ends.
func (f *sqliteFile) enter(context.Context, *sql.Tx) error { return nil }

func (f *sqliteFile) patient(context.Context, *sql.Tx) error { return nil }

func (f *sqliteFile) hold(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *sqliteFile) close() error { return nil }

// again is never: there is one writer, and nobody that it could collide with.
func (f *sqliteFile) again(error) bool { return false }

// scrub implements engine. What is overwritten is zeroed (secure_delete), but not
// what SQLite has moved between pages before, nor the log that changes go through:
// so the file is written anew, and that log cut.
func (f *sqliteFile) scrub(ctx context.Context, write *sql.DB) error {
	if _, err := write.ExecContext(ctx, `VACUUM`); err != nil {
		return fmt.Errorf("it is done and recorded, but %s may still have what was there: %w", f.path, err)
	}
	var busy, frames, moved int
	if err := write.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &frames, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return fault.New(fault.StoreBusy, "do it again", "it is done and recorded, but %s-wal may still have what was there: somebody is reading it", f.path)
	}
	return nil
}

// prepareFile makes the file, so that SQLite, which gives the WAL and its index the
// mode of the database, makes none that others can read.
func prepareFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// lockFile takes the file, and the data directory that it is in, for this process.
// SQLite's own locks last for a transaction; two servers on one file would each
// believe their memory.
func lockFile(path string) (*os.File, error) {
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, (&sqliteFile{path: path}).explain(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.StoreBusy, "see who it is: fuser -v "+path+".lock; stop it, or give this one a data directory of its own", "another process holds the database %s", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// unlockFile lets go even where a program that is being started still holds a
// copy of the descriptor, between its fork and its exec.
func unlockFile(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func openPool(path, more string, size int) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn(path, more))
	if err == nil {
		db.SetMaxOpenConns(size)
		db.SetMaxIdleConns(size)
	}
	return db, err
}

func dsn(path, more string) string {
	u := url.URL{Scheme: "file", Path: path}
	if !filepath.IsAbs(path) {
		u = url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}
	}
	u.RawQuery = "_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&" + more
	return u.String()
}

// quickCheck reads every page once (sqlite.org/pragma.html#pragma_quick_check).
func quickCheck(ctx context.Context, db *sql.DB, path string) error {
	rows, err := db.QueryContext(ctx, `PRAGMA quick_check(3)`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var found []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		if line != "ok" {
			found = append(found, line)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(found) > 0 {
		return corrupt(errors.New(strings.Join(found, "; ")), path)
	}
	return nil
}

func corrupt(err error, path string) error {
	return fault.Wrap(err, fault.StoreCorrupt, "keep "+path+" and the files beside it for inspection, and restore the last good copy",
		"the database %s is damaged, or is no database", path)
}

// explain names what the database or the file system complains about.
func (f *sqliteFile) explain(err error) error {
	path := f.path
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return full(err, path)
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		return readOnly(at.Err, path)
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case codeFull:
		return full(err, path)
	case codeReadOnly, codeCantOpen, codePerm:
		return readOnly(err, path)
	case codeCorrupt, codeNotADB:
		return corrupt(err, path)
	case codeBusy, codeLocked:
		return fault.Wrap(err, fault.StoreBusy, "look for the process that has it open (fuser "+path+")", "another process holds the database %s", path)
	}
	if e.Code() == codeShmSize {
		return full(err, path)
	}
	return err
}

func full(err error, path string) error {
	return fault.Wrap(err, fault.StoreFull, "make room (df -h "+filepath.Dir(path)+"), then try again; nothing was changed",
		"no space left for the database %s", path)
}

func readOnly(err error, path string) error {
	return fault.Wrap(err, fault.StoreReadOnly, "ls -ld "+filepath.Dir(path)+" "+path+": the server's user must be able to write both; nothing was changed",
		"the database %s cannot be written", path)
}
