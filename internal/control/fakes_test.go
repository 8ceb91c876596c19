package control_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/xtest"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
	"github.com/parleymesh/parley/internal/snapshot"
)

// memory is a store that keeps everything in memory and checks what it is
// given. A mutation and its event are both there or neither is.
type memory struct {
	mu     sync.Mutex // guards the rest
	revs   []*control.Revision
	keys   []control.Key
	bans   []control.Ban
	joins  int
	events []control.StoredEvent
	fail   error // of every mutation, while it is set
	erased []control.Person
	// filtered counts the searches for one action.
	filtered int
}

func (m *memory) failWith(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// append records e; the caller holds mu.
func (m *memory) append(e *audit.Event) error {
	if m.fail != nil {
		return m.fail
	}
	if e.ID == "" || e.Time.IsZero() || e.Class == "" || e.Action == "" || e.Reporter == "" {
		return fmt.Errorf("an event without its facts: %+v", e)
	}
	body, err := audit.Encode(nil, e)
	if err != nil {
		return err
	}
	if err := xtest.Check(body); err != nil {
		return err
	}
	m.put(body)
	return nil
}

func (m *memory) put(body []byte) {
	n := len(m.events)
	m.events = append(m.events, control.StoredEvent{
		Entry:    audit.Entry{Log: "server", Index: uint64(n), Leaf: audit.LeafHash(body), Body: body},
		Position: int64(n + 1),
	})
}

func (m *memory) Apply(_ context.Context, rev *control.Revision, expect int64, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	digest := sha256.Sum256(rev.Text)
	switch {
	case int64(len(m.revs)) != expect:
		return fmt.Errorf("apply: %w", control.ErrConflict)
	case rev.Number != expect+1 || rev.Digest != hex.EncodeToString(digest[:]) || rev.Actor == "" || rev.Applied.IsZero():
		return fmt.Errorf("a revision without its facts: %+v", rev)
	case e.Object == nil || e.Object.Revision != rev.Number || e.Actor == nil:
		return fmt.Errorf("an event without its facts: %+v", e)
	}
	if err := m.append(e); err != nil {
		return err
	}
	own := *rev
	own.Text = bytes.Clone(rev.Text)
	m.revs = append(m.revs, &own)
	return nil
}

func (m *memory) Head(context.Context) (*control.Revision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.revs) == 0 {
		return nil, fmt.Errorf("head: %w", control.ErrNotFound)
	}
	return m.revs[len(m.revs)-1], nil
}

func (m *memory) Revision(_ context.Context, n int64) (*control.Revision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n < 1 || n > int64(len(m.revs)) {
		return nil, fmt.Errorf("revision: %w", control.ErrNotFound)
	}
	return m.revs[n-1], nil
}

func (m *memory) Revisions(_ context.Context, before int64, limit int) (out []*control.Revision, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range slices.Backward(m.revs) {
		if (before == 0 || r.Number < before) && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (m *memory) CreateKey(_ context.Context, k control.Key, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.append(e); err != nil {
		return err
	}
	m.keys = append(m.keys, k)
	return nil
}

func (m *memory) RevokeKey(_ context.Context, id string, at time.Time, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.keys, func(k control.Key) bool { return k.ID == id && k.Revoked.IsZero() })
	if i < 0 {
		return fmt.Errorf("revoke: %w", control.ErrNotFound)
	}
	if err := m.append(e); err != nil {
		return err
	}
	m.keys[i].Revoked = at
	return nil
}

func (m *memory) Ban(_ context.Context, b control.Ban, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.ContainsFunc(m.bans, func(x control.Ban) bool { return x.ID == b.ID }) {
		return fmt.Errorf("ban: %w", control.ErrConflict)
	}
	if err := m.append(e); err != nil {
		return err
	}
	m.bans = append(m.bans, b)
	return nil
}

func (m *memory) Unban(_ context.Context, id identity.ID, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.bans, func(x control.Ban) bool { return x.ID == id })
	if i < 0 {
		return fmt.Errorf("unban: %w", control.ErrNotFound)
	}
	if err := m.append(e); err != nil {
		return err
	}
	m.bans = slices.Delete(m.bans, i, i+1)
	return nil
}

func (m *memory) Bans(context.Context) ([]control.Ban, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.bans), nil
}

// last is the newest event.
func (m *memory) last(t testing.TB) *audit.Event {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	e, err := audit.Decode(m.events[len(m.events)-1].Body)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// admins are those of tests, by their role.
type admins map[identity.ID]string

// A wire is a connection of an administrator.
type wire struct {
	net.Conn
	id identity.ID
}

func (admins) Admin(c net.Conn) (identity.ID, bool) {
	w, ok := c.(wire)
	return w.id, ok
}

// roleChange is held by a test that changes roles while requests are under way.
var roleChange sync.RWMutex

func (a admins) Role(id identity.ID) string {
	roleChange.RLock()
	defer roleChange.RUnlock()
	return a[id]
}

func (a admins) IssueAdmin(_ context.Context, id identity.ID, _ []byte) ([][]byte, error) {
	if a[id] == "" {
		return nil, fault.New(fault.NotSubject, "add it", "no admin %s", id)
	}
	return [][]byte{{1}}, nil
}

// NewJoin knows one host.
func (m *memory) NewJoin(_ context.Context, host string, ttl time.Duration, actor *audit.Actor) (string, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if host != "web1" || actor == nil {
		return "", time.Time{}, fault.New(fault.NotFound, "add it", "no host %q", host)
	}
	m.joins++
	return "parley_join_x", start.Add(ttl), nil
}

func (m *memory) Keys(context.Context) ([]control.Key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.keys), nil
}

func (m *memory) Log(_ context.Context, e *audit.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.append(e)
}

func (m *memory) Search(_ context.Context, f control.Filter) (out []control.StoredEvent, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f.Limit <= 0 {
		return nil, fmt.Errorf("a search without a limit")
	}
	if f.Action != "" {
		m.filtered++
	}
	for _, s := range m.events {
		e := new(audit.Event)
		if len(s.Body) > 0 { // or it was pruned
			if e, err = audit.Decode(s.Body); err != nil {
				return nil, err
			}
		}
		if s.Position > f.After && matches(e, &f) {
			out = append(out, s)
		}
	}
	if len(out) > f.Limit {
		if f.Newest {
			return out[len(out)-f.Limit:], nil
		}
		return out[:f.Limit], nil
	}
	return out, nil
}

// Erasable knows one person.
func (m *memory) Erasable(_ context.Context, p control.Person) ([]control.Extent, error) {
	if p.Subject != "alice" {
		return nil, nil
	}
	return []control.Extent{{Log: "agent", From: 3, To: 9, Count: 2}, {Log: "server", From: 1, To: 1, Count: 1}}, nil
}

func (m *memory) Erase(ctx context.Context, p control.Person, e *audit.Event) ([]control.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.erased = append(m.erased, p)
	if err := m.append(e); err != nil {
		return nil, err
	}
	return m.Erasable(ctx, p)
}

func matches(e *audit.Event, f *control.Filter) bool {
	party := func(p *audit.Party, want string) bool { return want == "" || p != nil && p.Service == want }
	return party(e.Caller, f.From) && party(e.Callee, f.To) &&
		(f.Action == "" || string(e.Action) == f.Action) &&
		(f.Outcome == "" || string(e.Outcome) == f.Outcome) &&
		(f.TraceID == "" || e.Trace != nil && e.Trace.TraceID == f.TraceID) &&
		(f.Subject == "" || e.Subject() == f.Subject) &&
		(f.CallID == "" || e.Call != nil && e.Call.ID == f.CallID) &&
		(f.RequestID == "" || e.Call != nil && e.Call.RequestID == f.RequestID) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) && (f.Until.IsZero() || e.Time.Before(f.Until))
}

func (m *memory) Event(_ context.Context, id string) (*control.StoredEvent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.events {
		if e, err := audit.Decode(m.events[i].Body); err == nil && e.ID == id || len(m.events[i].Body) == 0 && id == "pruned" {
			return &m.events[i], nil
		}
	}
	return nil, fmt.Errorf("event: %w", control.ErrNotFound)
}

func (m *memory) VerifyLogs(context.Context) ([]control.LogReport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return []control.LogReport{{Log: "server", Size: uint64(len(m.events))}, {Log: "agent", Fault: "entry 7 does not hash to its leaf"}}, nil
}

func (m *memory) Certificates(_ context.Context, _ time.Time, after string, limit int) (out []api.Certificate, err error) {
	for _, serial := range []string{"0a", "0b", "0c"} {
		if serial > after && len(out) < limit {
			out = append(out, api.Certificate{Serial: serial, Kind: "service"})
		}
	}
	return out, nil
}

// actions are what was recorded, in order.
func (m *memory) actions() (out []audit.Action) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.events {
		if e, err := audit.Decode(s.Body); err == nil {
			out = append(out, e.Action)
		}
	}
	return out
}

// runtime runs what is published, as policy alone.
type runtime struct {
	mu              sync.Mutex // guards the rest
	snap            *snapshot.Snapshot
	set             *policy.Set
	prepare, refuse error
	listeners       []api.ListenerStatus
	findings        []api.Finding
	down            api.ServiceStatus // what is said of the service of that name
	panics          bool
	bundle          *identity.Bundle
	banned          []identity.ID
	behind          []control.Confirmation
}

// Ban keeps who is banned, and answers what it was told to.
func (r *runtime) Ban(_ context.Context, banned []identity.ID) []control.Confirmation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.banned = banned
	return r.behind
}

func (r *runtime) Status(context.Context) (control.RuntimeStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.panics {
		panic("canary-of-a-panic")
	}
	st := control.RuntimeStatus{Since: start, Audit: api.AuditStatus{State: api.StateOK}}
	if r.snap == nil {
		return st, nil
	}
	st.Revision = r.snap.Revision
	for _, s := range r.snap.Services {
		if s.Name == r.down.Name {
			st.Services = append(st.Services, r.down)
			continue
		}
		st.Services = append(st.Services, api.ServiceStatus{Name: s.Name, ID: s.ID.String(), State: api.StateOK, Serial: "0a", NotAfter: start.Add(time.Hour)})
	}
	st.Listeners, st.Findings = r.listeners, r.findings
	st.Edges = []api.EdgeStatus{{From: "web", To: "orders", Calls: 7, Refused: 2}, {From: "", To: "orders", Calls: 1, Refused: 1}}
	return st, nil
}

func (r *runtime) Explain(q policy.Query) policy.Explanation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set.Explain(q)
}

// Settle implements control.Collector: what the fakes record is stored at once.
func (*runtime) Settle(context.Context) {}

func (r *runtime) Prepare(context.Context, *snapshot.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.prepare
}

func (r *runtime) Publish(_ context.Context, s *snapshot.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		return r.refuse
	}
	var targets []string
	for _, svc := range s.Services {
		targets = append(targets, svc.Name)
	}
	for _, g := range s.Gateways {
		for _, route := range g.Routes {
			targets = append(targets, route.PolicyTarget)
		}
	}
	set, err := policy.Compile(s.Revision, targets, s.Rules)
	r.snap, r.set = s, set
	return err
}

func (r *runtime) Bundle() *identity.Bundle { return r.bundle }

// running is the revision that runs, and its API keys.
func (r *runtime) running() (int64, []snapshot.APIKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.snap == nil {
		return 0, nil
	}
	return r.snap.Revision, r.snap.APIKeys
}

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// hurried is a clock that sleeps only briefly.
type hurried struct{}

func (hurried) Now() time.Time { return time.Now() }

func (hurried) Sleep(ctx context.Context, d time.Duration) error {
	return clock.System{}.Sleep(ctx, min(d, 5*time.Millisecond))
}
