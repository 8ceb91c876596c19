package link

import (
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

// A Withdrawal is what an agent hears of an update that it could not enforce: whom
// it is not to let in any more, whatever it runs by. It grants nothing, so that
// no capability is needed to understand it whole. Each is the full state.
type Withdrawal struct {
	Generation uint64  `json:"generation"`
	Bundle     *Bundle `json:"bundle"`
	// Banned are all that are.
	Banned []identity.ID `json:"banned"`
	// Members and APIKeys, by their ids, are those that are left.
	Members []identity.ID `json:"members"`
	APIKeys []string      `json:"api_keys"`
}

// NewWithdrawal is what u withdraws.
func NewWithdrawal(u *Update) (*Withdrawal, error) {
	bundle, err := NewBundle(u.Bundle)
	if err != nil {
		return nil, err
	}
	w := &Withdrawal{
		Generation: u.Generation, Bundle: bundle, Banned: append([]identity.ID{}, u.Banned...),
		Members: append([]identity.ID{}, u.Snapshot.Members...), APIKeys: []string{},
	}
	for _, k := range u.Snapshot.APIKeys {
		w.APIKeys = append(w.APIKeys, k.ID)
	}
	return w, nil
}

// From is last without what w withdraws, under w's number.
func (w *Withdrawal) From(last *Update) (*Update, error) {
	bundle, err := w.Bundle.Bundle()
	if err != nil {
		return nil, err
	}
	if bundle.TrustDomain != last.Snapshot.TrustDomain {
		return nil, fmt.Errorf("%w: a bundle of %s, and the snapshot is of %s", ErrMessage, bundle.TrustDomain, last.Snapshot.TrustDomain)
	}
	snap := *last.Snapshot
	snap.Members = slices.DeleteFunc(slices.Clone(snap.Members), func(id identity.ID) bool { return !slices.Contains(w.Members, id) })
	snap.APIKeys = slices.DeleteFunc(slices.Clone(snap.APIKeys), func(k snapshot.APIKey) bool { return !slices.Contains(w.APIKeys, k.ID) })
	return &Update{Generation: w.Generation, Snapshot: &snap, Bundle: bundle, Banned: w.Banned}, nil
}
