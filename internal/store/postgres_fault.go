package store

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/parleymesh/parley/internal/fault"
)

// SQLSTATE codes of PostgreSQL (postgresql.org/docs/current/errcodes-appendix.html).
const (
	codeUnique          = "23505"
	codeReadOnlyTx      = "25006"
	codeIdleTx          = "25P03"
	codeNotAuthorized   = "28000"
	codePassword        = "28P01"
	codeNoDatabase      = "3D000"
	codeSerialization   = "40001"
	codeDeadlock        = "40P01"
	codePrivilege       = "42501"
	codeUndefined       = "42704"
	codeDuplicateTable  = "42P07"
	codeDuplicateObject = "42710"
	codeParameter       = "22023"
	codeDiskFull        = "53100"
	codeConnections     = "53300"
	codeLock            = "55P03"
	codeCanceled        = "57014"
	codeShutdown        = "57P01"
	codeCrashShutdown   = "57P02"
	codeStarting        = "57P03"
	codeDataCorrupted   = "XX001"
	codeIndexCorrupted  = "XX002"
)

// A cause is an error in few words: the driver's own repeat the user, the hosts
// and what was tried on the way, in several lines.
type cause struct {
	words string
	err   error
}

func (c cause) Error() string { return c.words }

func (c cause) Unwrap() error { return c.err }

// explain implements engine. None of its texts can hold the password: they are
// made of the server's messages, the kernel's, and the names in the URL.
func (p *postgres) explain(err error) error {
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, context.Canceled): // by whoever asked
		return err
	case errors.As(err, &pg):
		return p.refused(pg, cause{pg.Message, err})
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) {
		if words := untrusted(connect); words != "" && p.proven() {
			return fault.Wrap(cause{words, err}, fault.StoreUntrusted,
				"compare the name in the URL with the server's certificate, and sslrootcert with its CA: openssl s_client -starttls postgres -connect "+
					address(p.config.Host, p.config.Port)+" -showcerts", "the server of the database %s does not prove who it is", p)
		}
	} else if !errors.As(err, &network) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) &&
		!errors.Is(err, driver.ErrBadConn) && !errors.Is(err, pgconn.ErrConnClosed) {
		return err
	}
	return p.unreachable(cause{words(err), err})
}

// refused is an error that the server sent.
func (p *postgres) refused(pg *pgconn.PgError, err error) error {
	user, database := p.config.User, p.config.Database
	switch pg.Code {
	case codePassword, codeNotAuthorized:
		return fault.Wrap(err, fault.StoreRefused, "check the password (PGPASSFILE or PGPASSWORD) and the server's pg_hba.conf; try it: "+p.client("psql"),
			"the database %s does not let the user %s in", p, user)
	case codeNoDatabase:
		return fault.Wrap(err, fault.StoreRefused, "make it: "+p.client("createdb"), "there is no database %s", p)
	case codePrivilege:
		return fault.Wrap(err, fault.StoreRefused, fmt.Sprintf("make it the user's own: ALTER DATABASE %q OWNER TO %q", database, user),
			"the user %s may not use the database %s as Parley needs", user, p)
	case codeDiskFull:
		return fault.Wrap(err, fault.StoreFull, "make room on the database server (df -h), then try again; nothing was changed", "no space left for the database %s", p)
	case codeReadOnlyTx:
		return p.readOnly(err)
	case codeDataCorrupted, codeIndexCorrupted:
		return fault.Wrap(err, fault.StoreCorrupt, "keep the server's data directory for inspection, and restore the last good copy", "the database %s is damaged", p)
	case codeDuplicateTable:
		return p.occupied(err)
	case codeConnections:
		return fault.Wrap(err, fault.StoreUnreachable, "see who has them, or raise max_connections: "+p.client("psql")+" -c 'SELECT usename, count(*) FROM pg_stat_activity GROUP BY 1'",
			"the server of the database %s has no connection left", p)
	case codeUndefined, codeParameter:
		if pg.Severity == "FATAL" { // what it says to the start of a session
			return fault.Wrap(err, fault.StoreURL, "take it out of the URL, or correct it", "the database %s does not accept a parameter of its URL", p)
		}
	case codeShutdown, codeCrashShutdown, codeStarting, codeIdleTx, codeLock, codeCanceled:
		return p.unreachable(err)
	}
	if strings.HasPrefix(pg.Code, "08") { // the class of connection exceptions
		return p.unreachable(err)
	}
	return err
}

func (p *postgres) occupied(err error) error {
	return fault.Wrap(err, fault.StoreUnfit, "give Parley a database of its own: createdb NAME", "the database %s holds tables that are not Parley's", p)
}

func (p *postgres) readOnly(err error) error {
	return fault.Wrap(err, fault.StoreReadOnly, "name the primary, and see what it says: "+p.client("psql")+" -c 'SHOW default_transaction_read_only'; nothing was changed",
		"the database %s cannot be written", p)
}

func (p *postgres) unreachable(err error) error {
	hint := "see whether it runs: " + p.client("pg_isready")
	if errors.As(err, new(unsure)) {
		hint += "; it may have made the change all the same: look before you make it again"
	}
	return fault.Wrap(err, fault.StoreUnreachable, hint, "the server of the database %s does not answer", p)
}

// client is a command of PostgreSQL's that goes where this engine goes.
func (p *postgres) client(program string) string {
	c := p.config
	at := fmt.Sprintf("%s -h %s -p %d", program, c.Host, c.Port)
	if program == "createdb" { // which is for another user
		return at + " -O " + c.User + " " + c.Database
	}
	return at + " -U " + c.User + " -d " + c.Database
}

// untrusted is why a server did not pass as the one that the URL names, "" where
// that was not what a connection failed for.
func untrusted(err *pgconn.ConnectError) string {
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return cert.Err.Error()
	}
	// These are plain texts of pgconn's.
	if s := err.Error(); strings.Contains(s, "server refused TLS connection") {
		return "it speaks no TLS"
	} else if _, why, ok := strings.Cut(s, "tls error: "); ok && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
		return why
	}
	return ""
}

// words are what went wrong with a connection.
func words(err error) string {
	var number syscall.Errno
	var name *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &name):
		return name.Err
	case errors.As(err, &network) && network.Timeout():
		return "no answer in time"
	}
	return "the connection was cut"
}
