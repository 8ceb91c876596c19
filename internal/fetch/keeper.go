package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/snapshot"
)

// When keys are loaded.
const (
	// refreshEvery is how often they are, and so about how long one that the
	// issuer took back is still used.
	refreshEvery = 5 * time.Minute
	// minRefresh is the least time between two loads that tokens with an unknown
	// kid cause: anybody can send those.
	minRefresh = 10 * time.Second
	// wait is how long a request waits for a load.
	wait = 2 * time.Second
	// firstRetry and lastRetry bound the pause after a load that failed.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// A keeper keeps one issuer's keys. It is made for one configuration and replaced
// with it.
type keeper struct {
	issuers *Issuers
	conf    snapshot.Issuer
	ctx     context.Context
	cancel  context.CancelFunc

	held atomic.Pointer[held] // nil before the first load, and after one that found no keys

	mu      sync.Mutex // guards what follows
	started time.Time  // of the last load
	loading bool       // or about to
	ended   chan struct{}
	wake    context.CancelFunc
	err     error // of the last load
	refused []jose.RefusedKey
}

// held are keys with when they were loaded.
type held struct {
	issuer *jose.Issuer
	set    []byte
	at     time.Time
}

func newKeeper(s *Issuers, conf snapshot.Issuer) *keeper {
	k := &keeper{issuers: s, conf: conf, loading: true, ended: make(chan struct{})}
	k.ctx, k.cancel = context.WithCancel(s.ctx)
	return k
}

// current are the keys, while they may be used.
func (k *keeper) current() (*jose.Issuer, error) {
	h := k.held.Load()
	if h == nil || k.conf.Keys == nil && k.issuers.cfg.Clock.Now().After(h.at.Add(k.conf.MaxStale)) {
		return nil, ErrUnavailable
	}
	return h.issuer, nil
}

// run loads until the keeper ends.
func (k *keeper) run() {
	retry := firstRetry
	for k.ctx.Err() == nil {
		pause := min(refreshEvery, k.conf.MaxStale/2)
		pause -= rand.N(pause/10 + 1) // so that gateways do not ask all at once
		if err := k.load(); err != nil {
			pause, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		sleep, wake := context.WithCancel(k.ctx)
		k.mu.Lock()
		k.loading, k.wake = false, wake
		close(k.ended)
		k.ended = make(chan struct{})
		k.mu.Unlock()
		_ = k.issuers.cfg.Clock.Sleep(sleep, pause)
		wake()
		k.mu.Lock()
		k.loading = true
		k.mu.Unlock()
	}
}

// refresh has the keys loaded unless they just were, and waits for it. Requests
// that come meanwhile wait for the same load.
func (k *keeper) refresh() {
	if k.conf.Keys != nil {
		return
	}
	k.mu.Lock()
	if !k.loading && k.issuers.cfg.Clock.Now().Sub(k.started) < minRefresh {
		k.mu.Unlock()
		return
	}
	if !k.loading {
		k.loading = true
		k.wake()
	}
	ended := k.ended
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.ctx, wait)
	defer cancel()
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

// load loads once. What was loaded before stays where it fails, but for an issuer
// that says to have no keys.
func (k *keeper) load() error {
	now := k.issuers.cfg.Clock.Now()
	k.mu.Lock()
	k.started = now
	k.mu.Unlock()
	set, err := k.get(k.ctx)
	var issuer *jose.Issuer
	var refused []jose.RefusedKey
	before := k.held.Load()
	switch {
	case err != nil:
	case before != nil && bytes.Equal(before.set, set):
		issuer, refused = before.issuer, k.refused // written by this goroutine only
	default:
		issuer, refused, err = jose.NewIssuer(jose.Rules{
			Issuer: k.conf.URL, Algorithms: k.conf.Algorithms, Types: k.conf.Types, Skew: k.conf.Skew, MaxAge: k.conf.MaxAge,
		}, set)
	}
	if k.ctx.Err() != nil {
		return k.ctx.Err()
	}
	switch {
	case err == nil:
		k.held.Store(&held{issuer, set, now})
	case errors.Is(err, jose.ErrNoKeys):
		k.held.Store(nil)
	}
	k.note(err, refused)
	return err
}

// note keeps and logs how a load went, where that is news.
func (k *keeper) note(err error, refused []jose.RefusedKey) {
	result, log := "ok", k.issuers.cfg.Logger.With("component", "fetch", "issuer", k.conf.Name)
	k.mu.Lock()
	was, wasRefused := k.err, k.refused
	k.err, k.refused = err, refused
	k.mu.Unlock()
	switch {
	case err != nil:
		if result = "failed"; was == nil || was.Error() != err.Error() {
			log.Warn("the issuer's keys could not be loaded", "error", err)
		}
	case was != nil:
		log.Info("the issuer's keys are loaded again")
	}
	for i, r := range refused {
		if i >= len(wasRefused) || wasRefused[i] != r {
			log.Warn("a key of the issuer is not used", "why", r.String())
		}
	}
	k.issuers.fetches.With(k.conf.Name, result).Inc()
}

// problem is what there is to say about the last load, nil where it is nothing.
func (k *keeper) problem() *Problem {
	k.mu.Lock()
	err, refused := k.err, k.refused
	k.mu.Unlock()
	p := &Problem{Name: k.conf.Name, Err: err}
	if h := k.held.Load(); h != nil {
		p.Until = h.at.Add(k.conf.MaxStale)
	}
	_, unavailable := k.current()
	p.Closed = unavailable != nil
	switch {
	case err == nil && p.Closed:
		p.Err = errors.New("they are being loaded for the first time")
	case err == nil && len(refused) > 0:
		p.Err, p.Until = fmt.Errorf("%s", refused[0]), time.Time{}
	case err == nil:
		return nil
	}
	return p
}

// get is the issuer's JWK set, from where its configuration says.
func (k *keeper) get(ctx context.Context) ([]byte, error) {
	switch {
	case k.conf.Keys != nil:
		return k.conf.Keys, nil
	case k.conf.JWKSFile != "":
		return readFile(k.conf.JWKSFile, jose.MaxKeySet)
	}
	client, err := NewClient(reachOf(k.conf), k.issuers.cfg.Clock)
	if err != nil {
		return nil, err
	}
	uri := k.conf.JWKSURI
	if uri == "" {
		if uri, err = discover(ctx, client, k.conf.URL); err != nil {
			return nil, err
		}
	}
	return client.Get(ctx, uri)
}

// reachOf are the hosts that a configuration names.
func reachOf(conf snapshot.Issuer) Reach {
	r := Reach{Private: conf.PrivateHosts, CAFile: conf.CAFile}
	r.Hosts = append(append(r.Hosts, conf.Hosts...), conf.PrivateHosts...)
	first := conf.JWKSURI
	if first == "" {
		first = conf.URL
	}
	if u, err := url.Parse(first); err == nil {
		r.Hosts = append(r.Hosts, u.Hostname())
	}
	return r
}

// discover asks for the issuer's metadata where OpenID Connect Discovery section
// 4.1 has it, and where that has none, where RFC 8414 section 3.1 does.
func discover(ctx context.Context, c *Client, issuer string) (jwksURI string, err error) {
	u, err := ParseURL(issuer)
	if err != nil {
		return "", err
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	origin := u.Scheme + "://" + u.Host
	data, err := c.Get(ctx, origin+path+"/.well-known/openid-configuration")
	var status *statusError
	if errors.As(err, &status) && status.status == 404 {
		data, err = c.Get(ctx, origin+"/.well-known/oauth-authorization-server"+path)
	}
	if err != nil {
		return "", err
	}
	return jose.ReadMetadata(data, issuer)
}
