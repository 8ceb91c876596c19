// Package xtest is what every database that a store runs on has to pass: one
// suite, for SQLite always and for a real PostgreSQL in interop.
//
// It refuses to know either: what differs is where a database is.
package xtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store"
)

// A Place is where one database is, which is empty before it is first opened.
type Place struct {
	// Path and URL are those of store.Config; one of them is empty.
	Path, URL string
	// Key and Secret are those of the server whose database it is, in place of the
	// suite's own.
	Key    *checkpoint.Signer
	Secret []byte
}

// A Database makes places for a test, each of them new.
type Database func(testing.TB) Place

// Run is the conformance suite.
func Run(t *testing.T, db Database) {
	for name, test := range map[string]func(*testing.T, Database){
		"revisions":               testRevisions,
		"one of raced revisions":  testRacedApply,
		"keys":                    testKeys,
		"one of raced revocation": testRacedRevoke,
		"certificates":            testCertificates,
		"joins":                   testJoins,
		"one of raced joins":      testRacedJoin,
		"bans":                    testBans,
		"own log":                 testOwnLog,
		"failed change":           testFailedChangeLeavesNothing,
		"collect":                 testCollect,
		"collect refuses":         testCollectRefuses,
		"collect raced":           testRacedCollect,
		"witness":                 testWitness,
		"forks":                   testForks,
		"own checkpoints":         testOwnCheckpoints,
		"prove":                   testProve,
		"entries":                 testEntries,
		"logs":                    testLogs,
		"search":                  testSearch,
		"verify finds":            testVerifyFinds,
		"clock":                   testClock,
		"reopen":                  testReopen,
		"killed":                  testKilled,
		"second server":           testSecondServer,
		"newer schema":            testNewerSchema,
		"gone":                    testGone,
		"cancelled":               testCancelled,
		"positions in order":      testPositionsInOrder,
		"order of text":           testOrderOfText,
		"strange text":            testStrangeText,
		"edges":                   testEdges,
		"edges to come":           testEdgesToCome,
		"edges add up":            testEdgesAddUp,
		"audit status":            testAuditStatus,
		"prune":                   testPrune,
		"prune many":              testPruneMany,
		"erase":                   testErase,
		"erase what is late":      testEraseLate,
		"erase while collecting":  testErasedRaced,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, db) })
	}
}

// Open opens the database of a place.
func (p Place) Open(ctx context.Context, clk clock.Clock) (*store.Store, error) {
	return p.open(ctx, clk, false)
}

func (p Place) open(ctx context.Context, clk clock.Clock, existing bool) (*store.Store, error) {
	hashes := p.Secret
	if hashes == nil {
		hashes = secret
	}
	s, err := store.Open(ctx, store.Config{Existing: existing, Path: p.Path, URL: p.URL, HashSecret: hashes, Host: "host1", Clock: clk, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	key := p.Key
	if key == nil {
		key = Key(s.LogName())
	}
	if err := s.UseKey(ctx, key); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Key is the key of a log of shop.example: always the same one, in every process.
func Key(log string) *checkpoint.Signer {
	origin := checkpoint.Origin("shop.example", log)
	seed := sha256.Sum256([]byte(origin))
	public := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), public...))
	k, err := checkpoint.ParseSigner(fmt.Appendf(nil, "PRIVATE+KEY+%s+%x+%s", origin, id[:4], base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...))))
	if err != nil {
		panic(err)
	}
	return k
}

// Exec runs a statement behind the store's back: what a person with the database
// and a SQL prompt could do.
func (p Place) Exec(t testing.TB, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", p.Path+"?_pragma=busy_timeout(5000)")
	if p.URL != "" {
		db, err = sql.Open("pgx", p.URL)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// open is a store on a new database.
func (db Database) open(t testing.TB, clk clock.Clock) *store.Store {
	t.Helper()
	return Open(t, db(t), clk)
}

// Open is a store that is closed when the test ends.
func Open(t testing.TB, p Place, clk clock.Clock) *store.Store {
	t.Helper()
	s, err := p.Open(t.Context(), clk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// at is a clock that stands still until it is set.
type at struct {
	mu  sync.Mutex
	now time.Time
}

func (a *at) Now() time.Time { a.mu.Lock(); defer a.mu.Unlock(); return a.now }

func (a *at) Sleep(ctx context.Context, d time.Duration) error {
	return clock.System{}.Sleep(ctx, d)
}

func (a *at) set(t time.Time) { a.mu.Lock(); defer a.mu.Unlock(); a.now = t }

// secret is that of every place's keyed hashes.
var secret = bytes.Repeat([]byte("s"), 32)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)

// Event is a success of root's.
func Event(action audit.Action) *audit.Event {
	return &audit.Event{Action: action, Outcome: audit.Success, Actor: &audit.Actor{User: "root"}}
}

// Verified are the sizes of the logs, by name, once all of them verified.
func Verified(t testing.TB, s *store.Store) map[string]uint64 {
	t.Helper()
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Error(err)
	}
	sizes := map[string]uint64{}
	for _, r := range reports {
		if r.Fault != "" {
			t.Errorf("log %s: %s", r.Log, r.Fault)
		}
		sizes[r.Log] = r.Size
	}
	return sizes
}

// WantCode holds err to be one fault, of that code and with a hint.
func WantCode(t testing.TB, err error, want fault.Code) {
	t.Helper()
	all := fault.All(err)
	if len(all) != 1 || all[0].Code != want {
		t.Fatalf("error %v (%v), want %s", err, all, want)
	}
	if all[0].Hint == "" {
		t.Errorf("%s comes without a hint", want)
	}
}

// Entries are n access events of log from index first on.
func Entries(t testing.TB, log string, first, n int) []audit.Entry {
	t.Helper()
	all := make([]audit.Entry, n)
	for i := range all {
		all[i] = Entry(t, log, first+i, &audit.Event{
			ID: fmt.Sprintf("%s-%d", log, first+i), Time: noon.Add(time.Duration(first+i) * time.Millisecond),
			Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed,
			Call:   &audit.CallFacts{End: "inbound", Protocol: "http", Listener: "orders.inbound", RequestID: fmt.Sprint("r", first+i)},
			Caller: &audit.Party{Service: "web"}, Callee: &audit.Party{Service: "orders"},
		})
	}
	return all
}

// Entry is e as the entry of a log.
func Entry(t testing.TB, log string, index int, e *audit.Event) audit.Entry {
	t.Helper()
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return audit.Entry{Log: log, Index: uint64(index), Leaf: audit.LeafHash(body), Body: body}
}
