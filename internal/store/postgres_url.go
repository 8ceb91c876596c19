package store

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/parleymesh/parley/internal/fault"
	"golang.org/x/sys/unix"
)

// How long Parley waits for a PostgreSQL server, and the server for Parley.
const (
	connectTime = 5 * time.Second
	// silence bounds how long a connection lives on that nothing comes from any
	// more: a machine that vanished sends no end.
	silence = 15 * time.Second
)

// params are set for each session where the URL does not set them, times in
// milliseconds. A server that is cut off in the middle of a transaction must not
// keep its locks for long.
var params = map[string]string{
	"application_name":                    "parley",
	"statement_timeout":                   "30000",
	"lock_timeout":                        "10000",
	"idle_in_transaction_session_timeout": "15000",
}

// unsafeTLS is the parameter of a URL that lets Parley connect without protection.
const unsafeTLS = "unsafe_tls"

// exampleURL is what a URL looks like.
const exampleURL = "postgres://USER@HOST/DATABASE?sslmode=verify-full"

// CheckURL is StoreURL where a URL names no PostgreSQL database, or one on another
// host whose server would not have to prove who it is. It connects to nothing. A
// password that it cannot use is KeyUnreadable or KeyMode.
func CheckURL(url string) error {
	_, err := parseURL(url)
	return err
}

// parseURL reads a URL as psql does, with its environment (PGPASSWORD, PGPASSFILE,
// PGSSLROOTCERT and so on). No error repeats any part of the URL: where it is
// malformed, its password may stand anywhere.
func parseURL(url string) (t target, err error) {
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		return t, fault.New(fault.StoreURL, exampleURL, "this is no URL of a database: it does not begin with postgres://")
	}
	t.shown = showsPassword(url)
	if err := checkPassfile(t.shown); err != nil {
		return t, err
	}
	t.config, err = pgx.ParseConfig(url)
	var file *fs.PathError
	switch {
	case errors.As(err, &file): // a certificate's or a key's
		return t, fault.Wrap(file.Err, fault.StoreURL, "ls -l "+file.Path, "%s, which the database's URL names, cannot be read", file.Path)
	case err != nil:
		return t, fault.New(fault.StoreURL, exampleURL+", with %-escapes in place of other characters than letters and digits: %40 for @, %2F for /",
			"the database's URL cannot be read")
	case t.config.Database == "":
		return t, fault.New(fault.StoreURL, exampleURL, "the database's URL names no database")
	}
	given := t.config.RuntimeParams
	t.unsafe = strings.TrimSpace(strings.ReplaceAll(given[unsafeTLS], "+", " ")) // which libpq leaves
	_, excused := given[unsafeTLS]
	delete(given, unsafeTLS)
	if host := t.unproven(); host != "" && t.unsafe == "" {
		if excused {
			return t, fault.New(fault.StoreURL, unsafeTLS+"=the+reason", "%s in the database's URL needs a reason", unsafeTLS)
		}
		return t, fault.New(fault.StoreURL, "add sslmode=verify-full to the URL, and sslrootcert=FILE where the CA is your own; or say why not: "+unsafeTLS+"=REASON",
			"%s would not have to prove that it is the database server, nor would the connection have to be encrypted", host)
	} else if host == "" {
		t.unsafe = ""
	}
	for name, value := range params {
		if given[name] == "" {
			given[name] = value
		}
	}
	if given["synchronous_commit"] != "remote_apply" {
		given["synchronous_commit"] = "on" // an acknowledged change is on disk
	}
	t.dial()
	return t, nil
}

// dial sets how connections are made, and when they are given up.
func (t *target) dial() {
	if t.config.ConnectTimeout <= 0 {
		t.config.ConnectTimeout = connectTime
	}
	d := &net.Dialer{
		Timeout:         t.config.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 3, Interval: silence / 3, Count: 2},
		// What was sent and is not acknowledged is not for keep-alive to notice (tcp(7)).
		Control: func(network, _ string, c syscall.RawConn) (err error) {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	t.config.DialFunc = d.DialContext
}

// unproven is the first host that is reached over a network and would be believed
// without a certificate for its name, "" for none. Of the modes of TLS only
// verify-full leaves nothing to believe: the others skip the name, the chain, or
// TLS.
func (t *target) unproven() string {
	all := append([]*pgconn.FallbackConfig{{Host: t.config.Host, Port: t.config.Port, TLSConfig: t.config.TLSConfig}}, t.config.Fallbacks...)
	for _, f := range all {
		if network, _ := pgconn.NetworkAddress(f.Host, f.Port); network == "unix" || f.Host == "localhost" || net.ParseIP(f.Host).IsLoopback() {
			continue
		}
		if f.TLSConfig == nil || f.TLSConfig.InsecureSkipVerify {
			return f.Host
		}
	}
	return ""
}

// proven says that a server always has to prove itself. Where one is believed
// without TLS, that it speaks none is not what a connection failed for.
func (t *target) proven() bool {
	return t.config.TLSConfig != nil && !slices.ContainsFunc(t.config.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.TLSConfig == nil })
}

// showsPassword says whether there is a password in a URL, by libpq's rules: what
// is before the first @ that comes before any slash.
func showsPassword(url string) bool {
	_, rest, _ := strings.Cut(url, "://")
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		if _, password, _ := strings.Cut(rest[:i], ":"); password != "" {
			return true
		}
	}
	return strings.Contains(rest, "password=")
}

// checkPassfile refuses a password file that others may read, as psql does, and
// one that was named and cannot be read, where it is what the password comes from.
func checkPassfile(shown bool) error {
	if shown || os.Getenv("PGPASSWORD") != "" {
		return nil
	}
	path, named := os.LookupEnv("PGPASSFILE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil
		}
		path, named = filepath.Join(home, ".pgpass"), false
	}
	f, err := os.Open(path)
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) && named {
			return fault.Wrap(at.Err, fault.KeyUnreadable, "ls -l "+path, "the password file %s cannot be read", path)
		}
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("password file: %w", err)
	}
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return fault.New(fault.KeyMode, "chmod 600 "+path, "the password file %s has mode %04o: others than its owner may use it", path, mode.Perm())
	}
	return nil
}
