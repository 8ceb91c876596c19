package store

import (
	"context"
	"database/sql"
	"strings"

	"github.com/parleymesh/parley/internal/fault"
)

// An engine is what SQLite and PostgreSQL do each in a way of their own. All else
// is one dialect of SQL, which both understand alike.
type engine interface {
	// open takes the database for this process and opens it, for changes and for
	// reading. What is open when it fails is closed by close.
	open(ctx context.Context) (write, read *sql.DB, err error)
	// local says that statements are carried out in this process, not over a network.
	local() bool
	// enter comes first in each transaction that changes something. It fails where
	// the database is no longer this process's, and as long as the transaction
	// lasts nobody else can take it.
	enter(ctx context.Context, tx *sql.Tx) error
	// patient lets the statements of a transaction take as long as they do.
	patient(ctx context.Context, tx *sql.Tx) error
	// hold keeps the database this process's until ctx ends, and then returns nil.
	// Its error says who has it now.
	hold(ctx context.Context) error
	// close lets go of the database. The pools are closed by then.
	close() error
	// again says whether a transaction that failed with err changed nothing, and
	// may succeed if it is begun anew.
	again(err error) bool
	// scrub makes the files of the database forget what was changed or taken out.
	scrub(ctx context.Context, write *sql.DB) error
	// explain is err as a fault, where it is one that an operator can act on.
	explain(err error) error
	// String names the database in messages. It holds no secret.
	String() string
}

// gone is that a database with a past is not there, or is empty.
func gone(database string) error {
	return fault.New(fault.StoreCorrupt, "restore "+database+" from the backup, or start over with another data directory",
		"the database %s is gone, and the authority that it belongs to is there", database)
}

// An unsure error is that of a commit of which no answer came: it may have been
// done.
type unsure struct{ error }

// Unwrap is the error.
func (u unsure) Unwrap() error { return u.error }

// text is s as every database keeps it: PostgreSQL refuses a NUL, and what is not
// UTF-8, which come from outside in the events of an agent.
func text(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}
