package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"unicode"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
)

// operations answers each operation of the OpenAPI document; that it has all of
// them is the compiler's to check.
type operations struct{ *Server }

var _ api.StrictServerInterface = operations{}

// Limits of what an administrator writes, in bytes.
const (
	maxName    = 255
	maxMessage = 1000
)

func (o operations) ApplyConfig(ctx context.Context, r api.ApplyConfigRequestObject) (api.ApplyConfigResponseObject, error) {
	b := r.Body
	if err := checkLabel("name", b.Name, 1, maxName); err != nil {
		return nil, err
	}
	result, err := o.change(ctx, change{
		name: b.Name, message: b.Message, text: []byte(b.Text), dryRun: b.DryRun, expect: b.Expect,
	})
	if err != nil {
		return nil, err
	}
	return api.ApplyConfig200JSONResponse(*result), nil
}

func (o operations) RollbackConfig(ctx context.Context, r api.RollbackConfigRequestObject) (api.RollbackConfigResponseObject, error) {
	if r.Body.To < 1 {
		return nil, fault.New(fault.BadRequest, "see them: parley config history", "to is a revision's number, from 1")
	}
	old, err := o.stored(ctx, r.Body.To)
	if err != nil {
		return nil, err
	}
	result, err := o.change(ctx, change{
		name: old.Name, message: r.Body.Message, text: old.Text, rollbackOf: old.Number, dryRun: r.Body.DryRun, expect: r.Body.Expect,
	})
	if err != nil {
		return nil, err
	}
	return api.RollbackConfig200JSONResponse(*result), nil
}

// change checks what an administrator wrote around the mesh file and applies it,
// one change at a time.
func (o operations) change(ctx context.Context, c change) (*api.ApplyResult, error) {
	if err := checkLabel("message", c.message, 0, maxMessage); err != nil {
		return nil, err
	}
	if c.expect != nil && *c.expect < 0 {
		return nil, fault.New(fault.BadRequest, "0 is the empty mesh", "expect is a revision's number")
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return o.apply(ctx, c)
}

func (o operations) ListRevisions(ctx context.Context, r api.ListRevisionsRequestObject) (api.ListRevisionsResponseObject, error) {
	limit, err := pageSize(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	before, err := position(r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	revs, err := o.cfg.Revisions.Revisions(ctx, before, limit+1)
	if err != nil {
		return nil, fmt.Errorf("list the revisions: %w", err)
	}
	list := api.RevisionList{Items: []api.Revision{}}
	for i, rev := range revs {
		if i == limit {
			list.Next = strconv.FormatInt(revs[i-1].Number, 10)
			break
		}
		list.Items = append(list.Items, revisionOf(rev))
	}
	return api.ListRevisions200JSONResponse(list), nil
}

func (o operations) GetRevision(ctx context.Context, r api.GetRevisionRequestObject) (api.GetRevisionResponseObject, error) {
	rev, err := o.stored(ctx, r.Number)
	if err != nil {
		return nil, err
	}
	m := revisionOf(rev)
	return api.GetRevision200JSONResponse{
		Number: m.Number, Applied: m.Applied, Actor: m.Actor, Message: m.Message, Name: m.Name, Digest: m.Digest,
		RollbackOf: m.RollbackOf, Text: string(rev.Text), Ports: portList(rev.Ports),
	}, nil
}

func (o operations) DiffConfig(ctx context.Context, r api.DiffConfigRequestObject) (api.DiffConfigResponseObject, error) {
	var from *mesh.File
	if r.Params.From != 0 {
		old, err := o.stored(ctx, r.Params.From)
		if err != nil {
			return nil, err
		}
		if from, err = mesh.Parse(old.Name, old.Text); err != nil {
			return nil, err
		}
	}
	rev, err := o.stored(ctx, r.Params.To)
	if err != nil {
		return nil, err
	}
	to, err := mesh.Parse(rev.Name, rev.Text)
	if err != nil {
		return nil, err
	}
	diff := api.Diff{From: r.Params.From, To: rev.Number}
	diff.Changes, diff.Access = changes(mesh.Diff(from, to))
	return api.DiffConfig200JSONResponse(diff), nil
}

func (operations) GetConfigSchema(context.Context, api.GetConfigSchemaRequestObject) (api.GetConfigSchemaResponseObject, error) {
	return schema(mesh.Schema()), nil
}

// A schema is sent as it is; the generated type would encode its bytes once more.
type schema []byte

func (b schema) VisitGetConfigSchemaResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/schema+json")
	_, err := w.Write(b)
	return err
}

// stored is one revision by number, 0 for the newest.
func (s *Server) stored(ctx context.Context, number int64) (rev *Revision, err error) {
	if number == 0 {
		rev, err = s.cfg.Revisions.Head(ctx)
	} else {
		rev, err = s.cfg.Revisions.Revision(ctx, number)
	}
	switch {
	case errors.Is(err, ErrNotFound) && number == 0:
		return nil, fault.New(fault.NotFound, "make one: parley apply -f parley.yaml", "there is no revision yet")
	case errors.Is(err, ErrNotFound):
		return nil, fault.New(fault.NotFound, "see them: parley config history", "there is no revision %d", number)
	case err != nil:
		return nil, fmt.Errorf("read revision %d: %w", number, err)
	}
	return rev, rev.Intact()
}

// checkLabel holds what is written for people to a length and to what a
// terminal can print.
func checkLabel(what, s string, least, most int) error {
	if len(s) < least || len(s) > most {
		return fault.New(fault.BadRequest, "", "the %s has %d to %d bytes", what, least, most)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) && (r != '\n' || what != "message") {
			return fault.New(fault.BadRequest, "", "the %s has a character that cannot be printed: %q", what, r)
		}
	}
	return nil
}
