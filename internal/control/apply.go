package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A change is a mesh file on its way to be the desired state.
type change struct {
	name, message string
	text          []byte
	rollbackOf    int64
	dryRun        bool
	// expect is the head that the administrator knows, nil for any.
	expect *int64
}

// apply makes c the next revision, top to bottom: nothing is changed before
// commit, and nothing runs that is not committed. The caller holds lock.
func (s *Server) apply(ctx context.Context, c change) (*api.ApplyResult, error) {
	head, err := s.head(ctx)
	if err != nil {
		return nil, err
	}
	if c.expect != nil && *c.expect != head.Number {
		return nil, conflict(*c.expect, head.Number)
	}
	file, err := s.parse(c.name, c.text)
	if err != nil {
		return nil, err
	}
	if c.rollbackOf == 0 { // what was is taken back as it is: a date that is over lets nobody in
		if err := mesh.CheckDates(file, s.cfg.Clock.Now()); err != nil {
			return nil, err
		}
	}
	ports, err := mesh.AssignPorts(file, head.Ports)
	if err != nil {
		return nil, err
	}
	rev := s.revision(ctx, c, head.Number+1, ports)
	snap, err := s.compile(ctx, file, rev)
	if err != nil {
		return nil, err
	}
	result := compare(head, file, rev)
	result.DryRun = c.dryRun
	if c.dryRun {
		return result, nil
	}
	if err := s.cfg.Runtime.Prepare(ctx, snap); err != nil {
		return nil, err
	}
	// From here on a client that leaves stops nothing: what is committed runs.
	ctx = context.WithoutCancel(ctx)
	if err := s.commit(ctx, rev, snap, result.Unchanged); err != nil {
		return nil, err
	}
	err = s.cfg.Runtime.Publish(ctx, snap)
	if result.Running = err == nil; result.Running {
		err = s.onItsHost(ctx, result)
	}
	if err != nil {
		what := fmt.Sprintf("revision %d is stored and does not run in full", snap.Revision)
		result.Fault = api.NewFault(s.notRunning(ctx, what, err))
	}
	return result, nil
}

// onItsHost adds what is found where the revision runs. The error is what of it is
// kept from running there, such as by a stranger on the port of an application.
func (s *Server) onItsHost(ctx context.Context, result *api.ApplyResult) error {
	run, err := s.cfg.Runtime.Status(ctx)
	if err != nil {
		return fmt.Errorf("read what runs: %w", err)
	}
	for _, f := range run.Findings {
		if f.Code == string(fault.SelectorMissing) && len(result.Findings) < maxFindings {
			result.Findings = append(result.Findings, f)
		}
	}
	var closed fault.List
	for _, l := range run.Listeners {
		if l.State == api.StateFailed {
			closed = append(closed, &fault.Fault{Code: fault.NotRunning, Message: l.Name + " is not open: " + l.Note, Hint: l.Help})
		}
	}
	return closed.Err()
}

// head is the newest revision; number 0 where there is none.
func (s *Server) head(ctx context.Context) (*Revision, error) {
	head, err := s.cfg.Revisions.Head(ctx)
	if errors.Is(err, ErrNotFound) {
		return &Revision{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the newest revision: %w", err)
	}
	return head, nil
}

// parse reads a mesh file of this trust domain.
func (s *Server) parse(name string, text []byte) (*mesh.File, error) {
	file, err := mesh.Parse(name, text)
	if err != nil {
		return nil, err
	}
	if file.TrustDomain != s.cfg.TrustDomain.String() {
		f := fault.New(fault.MeshValue, fmt.Sprintf("write %s, or start a server with another data directory", s.cfg.TrustDomain),
			"this server's trust domain is %s and cannot become %s", s.cfg.TrustDomain, file.TrustDomain)
		file.Mark(f, "trust_domain")
		return nil, f
	}
	return file, nil
}

func (s *Server) revision(ctx context.Context, c change, number int64, ports mesh.Ports) *Revision {
	digest := sha256.Sum256(c.text)
	return &Revision{
		Number: number, Applied: s.cfg.Clock.Now().UTC(), Actor: actor(ctx), Message: c.message,
		Name: c.name, Text: c.text, Digest: hex.EncodeToString(digest[:]), Ports: ports, RollbackOf: c.rollbackOf,
	}
}

// compile is the snapshot of file with the API keys that are good now.
func (s *Server) compile(ctx context.Context, file *mesh.File, rev *Revision) (*snapshot.Snapshot, error) {
	stored, err := s.cfg.Keys.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API keys: %w", err)
	}
	return mesh.Compile(file, rev.Number, rev.Ports, LiveKeys(stored, s.cfg.Clock.Now()))
}

// compare says what file would change. A file whose name and bytes are the
// head's is unchanged: rev then becomes the head's number.
func compare(head *Revision, file *mesh.File, rev *Revision) *api.ApplyResult {
	result := &api.ApplyResult{Previous: head.Number, Findings: findings(mesh.Findings(file, rev.Applied)), Ports: portList(rev.Ports)}
	if head.Number > 0 && head.Name == rev.Name && bytes.Equal(head.Text, rev.Text) {
		result.Unchanged = true
		rev.Number = head.Number
	}
	var old *mesh.File
	if head.Number > 0 {
		// An old text that this version does not accept any more must not keep
		// a new one from being applied: all of the new one is then a change.
		old, _ = mesh.Parse(head.Name, head.Text)
	}
	result.Revision = rev.Number
	result.Changes, result.Access = changes(mesh.Diff(old, file))
	return result
}

// commit records the change: with a new revision in one transaction, or, where
// nothing changes, by itself.
func (s *Server) commit(ctx context.Context, rev *Revision, snap *snapshot.Snapshot, unchanged bool) error {
	object := &audit.Object{Kind: "revision", Name: rev.Name, Revision: rev.Number, Detail: rev.Message}
	action := audit.ConfigApplied
	if rev.RollbackOf > 0 {
		action = audit.ConfigRolledBack
	}
	e := s.event(ctx, action, audit.Success, object)
	if rev.RollbackOf > 0 {
		e.Message = fmt.Sprintf("the text of revision %d", rev.RollbackOf)
	}
	if unchanged {
		snap.Revision = rev.Number
		e.Reason = "unchanged"
		return s.cfg.Events.Log(ctx, e)
	}
	return s.cfg.Revisions.Apply(ctx, rev, rev.Number-1, e)
}

// notRunning is what an administrator is told of a change that is stored and
// does not run in full.
func (s *Server) notRunning(ctx context.Context, what string, err error) *fault.Fault {
	s.cfg.Logger.ErrorContext(ctx, "change stored but not running in full", "component", "control", "change", what, "error", err)
	f := fault.New(fault.NotRunning, "see what runs: parley status", "%s", what)
	known := fault.All(err)
	if len(known) == 0 {
		return f
	}
	f.Message += ": " + known[0].Error()
	if len(known) > 1 {
		f.Message += fmt.Sprintf(" (and %d more)", len(known)-1)
	}
	if known[0].Hint != "" {
		f.Hint = known[0].Hint + "\n" + f.Hint
	}
	return f
}

func conflict(expect, head int64) error {
	return fault.New(fault.Conflict, "look at what changed: "+fmt.Sprintf("parley config diff %d %d", expect, head),
		"the newest revision is %d and not %d", head, expect)
}
