package control

import (
	"cmp"
	"encoding/hex"
	"slices"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/mesh"
)

// maxFindings bounds the findings of one reply.
const maxFindings = 1000

// The functions of this file put our words on the wire; none of them decides.

func revisionOf(r *Revision) api.Revision {
	return api.Revision{
		Number: r.Number, Applied: r.Applied.UTC(), Actor: r.Actor, Message: r.Message,
		Name: r.Name, Digest: r.Digest, RollbackOf: r.RollbackOf,
	}
}

// portList is in order of caller and callee.
func portList(ports mesh.Ports) []api.Port {
	list := make([]api.Port, 0, len(ports))
	for edge, port := range ports {
		list = append(list, api.Port{From: edge.From, To: edge.To, Port: port})
	}
	slices.SortFunc(list, func(a, b api.Port) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return list
}

func changes(list []mesh.Change) ([]api.Change, api.Access) {
	out := make([]api.Change, 0, len(list))
	for _, c := range list {
		out = append(out, api.Change{Op: api.ChangeOp(c.Op), Kind: c.Kind, Name: c.Name, Detail: c.Detail, Access: string(c.Access)})
	}
	sum := mesh.Summarize(list)
	return out, api.Access{Wider: sum.Wider, Narrower: sum.Narrower}
}

func findings(list []mesh.Finding) []api.Finding {
	out := make([]api.Finding, 0, len(list))
	for _, f := range list[:min(len(list), maxFindings)] {
		out = append(out, api.Finding{Code: f.Kind, Message: f.Message, File: f.File, Line: f.Line, Help: f.Hint})
	}
	return out
}

func keyOf(k *Key) api.Key {
	scopes := k.Scopes
	if scopes == nil {
		scopes = []string{}
	}
	return api.Key{
		ID: k.ID, Name: k.Name, Scopes: scopes,
		Created: k.Created.UTC(), NotAfter: k.NotAfter.UTC(), Revoked: k.Revoked.UTC(),
	}
}

func entryOf(e *StoredEvent) api.Entry {
	return api.Entry{
		Log: e.Log, Index: int64(e.Index), Leaf: hexHash(e.Leaf), Cursor: cursorOf(e), Event: e.Body, Pruned: len(e.Body) == 0,
	}
}

func reportOf(r *LogReport) api.LogReport {
	return api.LogReport{
		Log: r.Log, Size: int64(r.Size), Pruned: int64(r.Pruned), Root: hexHash(r.Root), First: r.First.UTC(), Last: r.Last.UTC(), Fault: r.Fault,
		Contradiction: r.Contradiction, After: r.After.UTC(), Before: r.Before.UTC(),
	}
}

func hexHash(h audit.Hash) string { return hex.EncodeToString(h[:]) }
