package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/snapshot"
)

// Limits of an API key.
const (
	maxKeyName = 64
	maxScopes  = 64
	maxScope   = 64
	maxKeyLife = 10 * 365 * 24 * time.Hour
)

// LiveKeys are those of stored that are good at now, in their order: what a
// gateway needs to know them.
func LiveKeys(stored []Key, now time.Time) []snapshot.APIKey {
	live := make([]snapshot.APIKey, 0, len(stored))
	for i := range stored {
		if stored[i].live(now) {
			live = append(live, stored[i].APIKey)
		}
	}
	return live
}

func (k *Key) live(now time.Time) bool {
	return k.Revoked.IsZero() && (k.NotAfter.IsZero() || now.Before(k.NotAfter))
}

func (o operations) CreateKey(ctx context.Context, r api.CreateKeyRequestObject) (api.CreateKeyResponseObject, error) {
	scopes, err := checkKey(r.Body)
	if err != nil {
		return nil, err
	}
	secret, parts, err := authn.NewKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an API key: %w", err)
	}
	now := o.cfg.Clock.Now().UTC().Truncate(time.Microsecond) // as stores keep it
	key := Key{Created: now, APIKey: snapshot.APIKey{ID: parts.ID, Name: r.Body.Name, Digest: parts.Digest, Scopes: scopes}}
	if r.Body.ExpiresIn > 0 {
		key.NotAfter = now.Add(time.Duration(r.Body.ExpiresIn) * time.Second)
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx) // what is committed runs, whether the client stays or not
	e := o.event(ctx, audit.KeyCreated, audit.Success, &audit.Object{Kind: "api_key", Name: key.Name, Serial: key.ID, NotAfter: key.NotAfter})
	if err := o.cfg.Keys.CreateKey(ctx, key, e); err != nil {
		return nil, err
	}
	reply := api.CreateKey201JSONResponse{Key: keyOf(&key), Secret: secret}
	// The key exists: not to show it because a gateway does not know it yet
	// would lose it.
	if err := o.republish(ctx); err != nil {
		reply.Fault = api.NewFault(o.notRunning(ctx, "the key exists, but not every gateway knows it yet", err))
	}
	return reply, nil
}

func (o operations) RevokeKey(ctx context.Context, r api.RevokeKeyRequestObject) (api.RevokeKeyResponseObject, error) {
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx) // what is committed runs, whether the client stays or not
	e := o.event(ctx, audit.KeyRevoked, audit.Success, &audit.Object{Kind: "api_key", Serial: clip(r.ID)})
	keys, err := o.cfg.Keys.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("find the API key: %w", err)
	}
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == r.ID }); i >= 0 {
		e.Object.Name = keys[i].Name // which never changes
	}
	err = o.cfg.Keys.RevokeKey(ctx, r.ID, o.cfg.Clock.Now().UTC(), e)
	if errors.Is(err, ErrNotFound) {
		return nil, fault.New(fault.NotFound, o.keysNamed(ctx, r.ID), "there is no live API key %q", clip(r.ID))
	}
	if err != nil {
		return nil, err
	}
	if err := o.republish(ctx); err != nil {
		return nil, o.notRunning(ctx, "the key is revoked, but not every gateway knows it yet", err)
	}
	return api.RevokeKey204Response{}, nil
}

// keysNamed is the hint for somebody who gave a name where an id belongs: names are
// labels, and several keys may have one while they are changed over.
func (o operations) keysNamed(ctx context.Context, name string) string {
	keys, err := o.cfg.Keys.Keys(ctx)
	if err != nil {
		return "see them: parley key list"
	}
	var ids []string
	for i := range keys {
		if keys[i].Name == name && keys[i].live(o.cfg.Clock.Now()) && len(ids) < maxNamed {
			ids = append(ids, keys[i].ID)
		}
	}
	if len(ids) == 0 {
		return "see them: parley key list"
	}
	return "a key is revoked by its id: parley key revoke " + strings.Join(ids, ", or ")
}

func (o operations) ListKeys(ctx context.Context, r api.ListKeysRequestObject) (api.ListKeysResponseObject, error) {
	limit, err := pageSize(r.Params.Limit)
	if err != nil {
		return nil, err
	}
	keys, err := o.cfg.Keys.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the API keys: %w", err)
	}
	if r.Params.Cursor != "" {
		i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == r.Params.Cursor })
		if i < 0 {
			return nil, badCursor(r.Params.Cursor)
		}
		keys = keys[i+1:]
	}
	list := api.KeyList{Items: []api.Key{}}
	if len(keys) > limit {
		keys = keys[:limit]
		list.Next = keys[limit-1].ID
	}
	for i := range keys {
		list.Items = append(list.Items, keyOf(&keys[i]))
	}
	return api.ListKeys200JSONResponse(list), nil
}

// republish gives what runs the keys as they are now.
func (s *Server) republish(ctx context.Context) error {
	head, err := s.head(ctx)
	if err != nil || head.Number == 0 {
		return err // without a revision no gateway runs
	}
	file, err := mesh.Parse(head.Name, head.Text)
	if err != nil {
		return err
	}
	snap, err := s.compile(ctx, file, head)
	if err != nil {
		return err
	}
	return s.cfg.Runtime.Publish(ctx, snap)
}

// checkKey returns the scopes in order, each once.
func checkKey(r *api.KeyRequest) ([]string, error) {
	if err := checkLabel("name", r.Name, 1, maxKeyName); err != nil {
		return nil, err
	}
	if r.ExpiresIn < 0 || r.ExpiresIn > int64(maxKeyLife/time.Second) {
		return nil, fault.New(fault.BadRequest, "leave it out for a key without end", "expires_in is 0 to %d seconds", int64(maxKeyLife/time.Second))
	}
	if len(r.Scopes) > maxScopes {
		return nil, fault.New(fault.BadRequest, "", "a key has at most %d scopes", maxScopes)
	}
	for _, scope := range r.Scopes {
		if !validScope(scope) {
			return nil, fault.New(fault.BadRequest, "a scope is 1 to 64 characters of a-z 0-9 . : _ -", "%q is no scope", clip(scope))
		}
	}
	scopes := slices.Clone(r.Scopes)
	slices.Sort(scopes)
	return slices.Compact(scopes), nil
}

func validScope(scope string) bool {
	return len(scope) > 0 && len(scope) <= maxScope && strings.Trim(scope, "abcdefghijklmnopqrstuvwxyz0123456789.:_-") == ""
}
