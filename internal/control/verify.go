package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/assess"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
)

// A Prober has the agents of hosts try what a verification tries; node joins it from
// the rooms that can.
type Prober interface {
	// Host is where everything runs in a mesh without hosts.
	Host() string
	// Endpoints are where service is called from host.
	Endpoints(host, service string) []string
	// SetProbes says which host may have certificates for probes as whom; nil ends
	// that.
	SetProbes(map[string]map[identity.ID]bool)
	// Assess has hosts try orders of one phase and waits for them; got is called with
	// results, one call at a time. missed are those that did not try all of it.
	Assess(ctx context.Context, orders map[string]*assess.Order, got func(host string, results []assess.Result)) (missed map[string]string)
}

// Times of a verification.
const (
	verifyTime    = 2 * time.Minute
	maxVerifyTime = 10 * time.Minute
	// endTime is what is left for each step of its end, whatever its time was: nothing
	// of it may stay in force.
	endTime = 15 * time.Second
)

func (o operations) VerifyMesh(ctx context.Context, r api.VerifyMeshRequestObject) (api.VerifyMeshResponseObject, error) {
	limit := verifyTime
	if t := r.Body.Timeout; t != 0 {
		if limit = time.Duration(t) * time.Second; t < 1 || limit > maxVerifyTime {
			return nil, fault.New(fault.BadRequest, "choose 1s to 10m", "timeout is 1 to %d seconds", int(maxVerifyTime/time.Second))
		}
	}
	head, err := o.head(ctx)
	if err != nil {
		return nil, err
	}
	if head.Number == 0 {
		return nil, fault.New(fault.NotFound, "apply one: parley apply -f parley.yaml", "there is no mesh file yet, so there is nothing to verify")
	}
	file, err := mesh.Parse(head.Name, head.Text)
	if err != nil {
		return nil, err
	}
	v := &meshVerification{
		server: o.Server, ctx: ctx, limit: limit, run: audit.NewID(o.cfg.Clock.Now()), file: file, revision: head.Number,
		places: map[mesh.Edge]int{},
	}
	if err := v.prepare(r.Body.From, r.Body.To); err != nil {
		return nil, err
	}
	select {
	case o.verifying <- struct{}{}:
	default:
		return nil, fault.New(fault.Conflict, "wait for its end", "another verification is running")
	}
	return v, nil
}

// A meshVerification is one run.
type meshVerification struct {
	server   *Server
	ctx      context.Context // the request's; the generated Visit does not pass it on
	limit    time.Duration
	run      string
	file     *mesh.File
	revision int64
	verify   identity.ID
	orders   map[string]*assess.Order // by host
	probes   map[string]map[identity.ID]bool
	places   map[mesh.Edge]int // where each edge is allowed, by line
	edges    int

	out    *lines
	counts map[assess.Outcome]int
	heard  map[attempt]bool
	missed map[string]string
}

// An attempt is a check of one edge at one place, by one host.
type attempt struct {
	host, caller, callee, at string
	check                    assess.Check
}

// prepare makes the orders, for edges from and to the named, or all.
func (v *meshVerification) prepare(from, to string) (err error) {
	td := v.server.cfg.TrustDomain
	if v.verify, err = identity.VerifyID(td); err != nil {
		return err
	}
	stranger, err := identity.StrangerID(td)
	if err != nil {
		return err
	}
	v.orders, v.probes = map[string]*assess.Order{}, map[string]map[identity.ID]bool{}
	for _, t := range mesh.Trials(v.file) {
		if from != "" && t.Caller != from || to != "" && t.Callee != to {
			continue
		}
		v.edges++
		v.places[mesh.Edge{From: t.Caller, To: t.Callee}] = t.Line
		hosts := t.CallerHosts
		if len(hosts) == 0 {
			hosts = []string{v.server.cfg.Prober.Host()}
		}
		for _, host := range hosts {
			e, err := v.edge(host, t)
			if err != nil {
				return err
			}
			if v.orders[host] == nil {
				v.orders[host] = &assess.Order{Run: v.run, Phase: assess.Attack}
				v.probes[host] = map[identity.ID]bool{v.verify: true, stranger: true}
			}
			v.orders[host].Edges = append(v.orders[host].Edges, *e)
			v.probes[host][e.CallerID] = true
		}
	}
	if v.edges == 0 {
		return v.nothing(from, to)
	}
	return nil
}

// nothing says why there is no edge to try.
func (v *meshVerification) nothing(from, to string) error {
	if from == "" && to == "" {
		return fault.New(fault.NotFound, "let somebody call: add an entry under allow, or a route", "the mesh file allows no call, so there is nothing to verify")
	}
	for _, name := range []string{from, to} {
		gateway, is := strings.CutPrefix(name, "gateway/")
		if name != "" && (is && v.file.Gateways[gateway] == nil || !is && v.file.Services[name] == nil) {
			return fault.New(fault.NotFound, "see what it has: parley status", "the mesh file has no %s", clip(name))
		}
	}
	which := "an edge"
	if from != "" {
		which += " from " + clip(from)
	}
	if to != "" {
		which += " to " + clip(to)
	}
	return fault.New(fault.NotFound, "see what it has: parley status", "the mesh file does not allow %s", which)
}

// edge is t as host tries it.
func (v *meshVerification) edge(host string, t mesh.Trial) (*assess.Edge, error) {
	e := &assess.Edge{
		Caller: t.Caller, Callee: t.Callee, HTTP: t.Protocol == "http", Endpoints: v.server.cfg.Prober.Endpoints(host, t.Callee),
		App: t.App, SameHost: len(t.CalleeHosts) == 0 || slices.Contains(t.CalleeHosts, host), Forwarded: t.Forwarded, Sidecar: t.Sidecar, Observed: t.Observed,
	}
	if t.Allowed != nil {
		e.Allowed = assess.Request{Method: t.Allowed.Method, Path: t.Allowed.Path}
	}
	if t.Forbidden != nil {
		e.Forbidden = assess.Request{Method: t.Forbidden.Method, Path: t.Forbidden.Path}
	}
	var err error
	if e.CallerID, err = v.server.subject(t.Caller); err != nil {
		return nil, err
	}
	e.CalleeID, err = v.server.subject(t.Callee)
	return e, err
}

// try runs the phases. What it leaves in force for its own sake it takes back, however
// it ends.
func (v *meshVerification) try() error {
	s := v.server
	v.counts, v.heard, v.missed = map[assess.Outcome]int{}, map[attempt]bool{}, map[string]string{}
	ctx, cancel := context.WithTimeout(v.ctx, v.limit)
	defer cancel()
	o := operations{s}
	// An earlier run may have ended with its server.
	if err := o.liftOwn(context.WithoutCancel(ctx), v.verify); err != nil {
		return err
	}
	s.cfg.Prober.SetProbes(v.probes)
	defer v.finish()
	v.phase(ctx, assess.Attack)
	if ctx.Err() != nil {
		return v.ctx.Err()
	}
	if err := v.withdrawn(ctx); err != nil {
		return err
	}
	if _, err := o.ban(ctx, v.verify, "parley verify "+v.run); err != nil {
		return err
	}
	v.phase(ctx, assess.AfterBan)
	if err := v.overtaken(); err != nil {
		return err
	}
	return v.ctx.Err()
}

// withdrawn says where callees run and cannot be called now, besides the places that
// were tried: what was not tried there is no pass. Where there is no place at all,
// callers say so.
func (v *meshVerification) withdrawn(ctx context.Context) error {
	if len(v.file.Hosts) == 0 {
		return nil
	}
	run, err := v.server.cfg.Runtime.Status(ctx)
	if err != nil {
		return fmt.Errorf("read what runs: %w", err)
	}
	down := map[string][]string{}
	for _, s := range run.Services {
		for _, e := range s.Endpoints {
			if e.Host != "" && e.State != api.StateOK {
				down[s.Name] = append(down[s.Name], fmt.Sprintf("on %s (%s)", e.Host, strings.TrimPrefix(e.Note, "on "+e.Host+": ")))
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(v.orders)) {
		var results []assess.Result
		for _, e := range v.orders[host].Edges {
			where := down[e.Callee]
			if len(e.Endpoints) == 0 || len(where) == 0 {
				continue
			}
			results = append(results, assess.Result{
				Caller: e.Caller, Callee: e.Callee, Check: assess.Control, Outcome: assess.Inconclusive, Help: "parley status",
				Detail: e.Callee + " was not tried, since callers are not told of it, " + strings.Join(where, ", "),
			})
		}
		if len(results) > 0 {
			v.got(host, results)
		}
	}
	return nil
}

// overtaken names every host where another revision was applied meanwhile: what was
// tried is not what is in force.
func (v *meshVerification) overtaken() error {
	head, err := v.server.head(context.WithoutCancel(v.ctx))
	if err != nil || head.Number == v.revision {
		return err
	}
	for host := range v.orders {
		if v.missed[host] == "" {
			v.missed[host] = fmt.Sprintf("revision %d was applied meanwhile, and revision %d was tried: run it again", head.Number, v.revision)
		}
	}
	return nil
}

// phase has every host that is still in it try p.
func (v *meshVerification) phase(ctx context.Context, p assess.Phase) {
	orders := map[string]*assess.Order{}
	for host, o := range v.orders {
		if v.missed[host] != "" {
			continue
		}
		next := &assess.Order{Run: v.run, Phase: p}
		if p == assess.Attack {
			next.Edges = o.Edges
		}
		orders[host] = next
	}
	maps.Copy(v.missed, v.server.cfg.Prober.Assess(ctx, orders, v.got))
}

// missing names the hosts that did not say of every place what came of the first thing
// to try there, or of the first with the ban: results that were lost on the way, or never
// made, are no pass.
func (v *meshVerification) missing() {
	for host, o := range v.orders {
		lacks := 0
		for _, e := range o.Edges {
			for _, at := range places(&e) {
				if !v.heard[attempt{host, e.Caller, e.Callee, at, assess.Control}] || !v.heard[attempt{host, e.Caller, e.Callee, at, assess.Banned}] {
					lacks++
				}
			}
		}
		if lacks > 0 && v.missed[host] == "" {
			v.missed[host] = fmt.Sprintf("it did not tell all that came of %d of its attacks", lacks)
		}
	}
}

// places are where e is tried, "" where none is known.
func places(e *assess.Edge) []string {
	if len(e.Endpoints) == 0 {
		return []string{""}
	}
	return e.Endpoints
}

// finish takes back what the run put in force, and records what came of it.
func (v *meshVerification) finish() {
	s := v.server
	s.cfg.Prober.SetProbes(nil)
	v.missing()
	// The ban first, and each step within a time of its own: a host that does not answer
	// keeps nothing in force, and nothing from being recorded.
	within := func(step func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), endTime)
		defer cancel()
		return step(ctx)
	}
	err := within(func(ctx context.Context) error { return operations{s}.liftOwn(ctx, v.verify) })
	if err != nil {
		s.cfg.Logger.Error("the verification's own identity is still banned, which concerns nobody else", "error", err)
	}
	over := map[string]*assess.Order{}
	for host := range v.orders {
		over[host] = &assess.Order{Run: v.run, Phase: assess.Over}
	}
	_ = within(func(ctx context.Context) error {
		s.cfg.Prober.Assess(ctx, over, func(string, []assess.Result) {})
		return nil
	})
	e := s.event(v.ctx, audit.MeshVerified, audit.Success, &audit.Object{Kind: "verification", Name: v.run})
	if v.counts[assess.Failed] > 0 || v.counts[assess.Inconclusive] > 0 || len(v.missed) > 0 || v.ctx.Err() != nil {
		e.Outcome = audit.Failure
	}
	e.Message = fmt.Sprintf("%d edges from %q: %d checks ok, %d failed, %d warnings, %d inconclusive", v.edges,
		slices.Sorted(maps.Keys(v.orders)), v.counts[assess.OK], v.counts[assess.Failed], v.counts[assess.Warning], v.counts[assess.Inconclusive])
	if len(v.missed) > 0 {
		e.Message += fmt.Sprintf("; not all was tried from %q", slices.Sorted(maps.Keys(v.missed)))
	}
	if err := within(func(ctx context.Context) error { return s.cfg.Events.Log(ctx, e) }); err != nil {
		s.cfg.Logger.Error("event not recorded", "action", e.Action, "error", err)
	}
}

// liftOwn lifts the ban of the verification's own identity, where there is one.
func (o operations) liftOwn(ctx context.Context, id identity.ID) error {
	_, err := o.unban(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// maxLineResults bounds a line of the reply, however long the texts of its results are:
// a client takes no longer one, and would lose what all the other hosts say.
const maxLineResults = 4

// got passes results of host on. Of edges and places that were not asked of it, and
// what it says again, nothing is believed.
func (v *meshVerification) got(host string, results []assess.Result) {
	line := &api.VerifyLine{Host: host}
	for _, r := range results {
		known := slices.Contains(assess.Checks(), r.Check) && slices.Contains(assess.Outcomes(), r.Outcome)
		asked := func(e assess.Edge) bool {
			return e.Caller == r.Caller && e.Callee == r.Callee && (r.Endpoint == "" || slices.Contains(e.Endpoints, r.Endpoint))
		}
		if !known || !slices.ContainsFunc(v.orders[host].Edges, asked) {
			continue
		}
		a := attempt{host, r.Caller, r.Callee, r.Endpoint, r.Check}
		if v.heard[a] {
			continue // nothing is tried twice
		}
		v.heard[a] = true
		v.counts[r.Outcome]++
		line.Results = append(line.Results, api.VerifyResult{
			Caller: r.Caller, Callee: r.Callee, Endpoint: r.Endpoint, Check: string(r.Check), Outcome: api.VerifyResultOutcome(r.Outcome),
			Detail: r.Detail, Help: r.Help, Decision: r.Decision, File: v.file.Name(), Line: v.places[mesh.Edge{From: r.Caller, To: r.Callee}],
		})
		if len(line.Results) == maxLineResults {
			v.out.send(line)
			line.Results = nil
		}
	}
	if len(line.Results) > 0 {
		v.out.send(line)
	}
}
