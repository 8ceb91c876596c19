// Package control is the admin API's handlers: it turns a request from an
// authenticated administrator into a change of the desired state or a question
// about it. The wire types and the client are control/api's.
//
// It refuses to keep state: store keeps it, through the interfaces of this file.
package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Errors of the stores.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("the state moved in the meantime")
)

// A Revision is one accepted version of the mesh file.
type Revision struct {
	Number  int64
	Applied time.Time
	// Actor is who applied it, as the event names it.
	Actor string
	// Message is the administrator's note.
	Message string
	// Name is the file's name, Text its exact bytes, Digest their SHA-256 in
	// lower-case hexadecimal.
	Name   string
	Text   []byte
	Digest string
	// Ports are the outbound ports that this revision holds.
	Ports mesh.Ports
	// RollbackOf is the revision whose text this repeats, 0 for none.
	RollbackOf int64
}

// Intact is fault.StoreCorrupt where the text is not what was accepted: it would
// be another policy, and nobody has decided on that.
func (r *Revision) Intact() error {
	if digest := sha256.Sum256(r.Text); hex.EncodeToString(digest[:]) != r.Digest {
		return fault.New(fault.StoreCorrupt, "keep the data directory for inspection, and restore the last good copy of the database",
			"the text of revision %d is not the one that was applied: its SHA-256 is %x, not %s", r.Number, digest, r.Digest)
	}
	return nil
}

// Revisions keeps the mesh file's history.
type Revisions interface {
	// Apply appends rev as number expect+1 and commits e in the same
	// transaction. ErrConflict if the head is not expect.
	Apply(ctx context.Context, rev *Revision, expect int64, e *audit.Event) error
	// Head is the newest revision; ErrNotFound before the first.
	Head(ctx context.Context) (*Revision, error)
	// Revision is one by number; ErrNotFound.
	Revision(ctx context.Context, number int64) (*Revision, error)
	// Revisions lists the newest first, those below before (0: from the head).
	Revisions(ctx context.Context, before int64, limit int) ([]*Revision, error)
}

// A Key is an API key's record; the key itself is nowhere.
type Key struct {
	snapshot.APIKey
	Created time.Time
	// Revoked is zero while the key is good.
	Revoked time.Time
}

// Keys keeps API keys.
type Keys interface {
	CreateKey(ctx context.Context, k Key, e *audit.Event) error
	// RevokeKey marks a live key; ErrNotFound if there is none of that id or it
	// is revoked already: one conditional write that changes one row.
	RevokeKey(ctx context.Context, id string, at time.Time, e *audit.Event) error
	// Keys lists all, revoked ones too, oldest first.
	Keys(ctx context.Context) ([]Key, error)
}

// A Filter selects events; zero fields select all.
type Filter struct {
	From, To  string // service names, of caller and callee
	Action    string
	Outcome   string
	TraceID   string
	RequestID string
	CallID    string // of both ends of a call
	Subject   string // of whom an event is
	Since     time.Time
	Until     time.Time
	// After continues behind the event with this position; Position of the last
	// event of a page. Newest selects the newest Limit events, in order of time.
	After  int64
	Newest bool
	Limit  int
}

// A StoredEvent is an entry with the store's own position, which grows in the
// order of arrival.
type StoredEvent struct {
	audit.Entry
	Position int64
}

// Events reads the audit logs and writes the server's own.
type Events interface {
	// Log appends one security event to the server's log.
	Log(ctx context.Context, e *audit.Event) error
	Search(ctx context.Context, f Filter) ([]StoredEvent, error)
	// Event is one by its id; ErrNotFound.
	Event(ctx context.Context, id string) (*StoredEvent, error)
	// VerifyLogs recomputes every stored log.
	VerifyLogs(ctx context.Context) ([]LogReport, error)
}

// Signed is a checkpoint of a log: the signed note, and when it was kept.
type Signed struct {
	Note []byte
	Time time.Time
}

// A Person is whom events are of.
type Person struct {
	// Subject is that of tokens.
	Subject string
	// Issuer is the one of those tokens; empty for every one.
	Issuer string
}

// An Extent is some of the entries of a log: Count of those between From and To,
// both included.
type Extent struct {
	Log             string
	From, To, Count uint64
}

// Eraser takes persons out of the logs.
type Eraser interface {
	// Erasable are the entries that are of p.
	Erasable(ctx context.Context, p Person) ([]Extent, error)
	// Erase takes away what entries say of p, those too that arrive later and are of
	// before e, and commits e for each log that had some in the same transaction, or
	// once where none had. It returns only when no file of the store has it any more.
	Erase(ctx context.Context, p Person, e *audit.Event) ([]Extent, error)
}

// A LogReport is what verifying one log found.
type LogReport struct {
	Log  string
	Size uint64 // entries
	// Pruned is how many of them are empty, being older than the mesh file keeps them.
	Pruned uint64
	Root   audit.Hash
	First  time.Time
	Last   time.Time
	// Fault is empty where the log verifies, and otherwise says what is wrong
	// and where: at the entry At.
	Fault string
	At    uint64
	// Contradiction is empty, or says what somebody brought that contradicts the
	// log, which itself may be intact.
	Contradiction string
	// After and Before are the times of the nearest events before and after that
	// entry, zero where there are none.
	After, Before time.Time
}
