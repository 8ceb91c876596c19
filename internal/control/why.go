package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

func (o operations) Explain(ctx context.Context, r api.ExplainRequestObject) (api.ExplainResponseObject, error) {
	p := r.Params
	asked := p.From != "" || p.To != "" || p.Method != "" || p.Path != ""
	switch {
	case p.Decision != "" && asked:
		return nil, fault.New(fault.BadRequest, "leave the others out", "a decision id says already who called what")
	case p.Decision == "" && (p.From == "" || p.To == ""):
		return nil, fault.New(fault.BadRequest, "parley why DECISION, or parley why FROM TO [METHOD PATH]", "which call is meant is not said")
	}
	file, err := o.newest(ctx)
	if err != nil {
		return nil, err
	}
	var why *api.Explanation
	if p.Decision != "" {
		why, err = o.whyDecided(ctx, file, p.Decision)
	} else {
		why, err = o.whyAsked(ctx, file, p)
	}
	if err != nil {
		return nil, err
	}
	return exact[api.Explanation]{*why}, nil
}

// newest is the newest revision's mesh file.
func (s *Server) newest(ctx context.Context) (*mesh.File, error) {
	head, err := s.stored(ctx, 0)
	if err != nil {
		return nil, err
	}
	return mesh.Parse(head.Name, head.Text)
}

// whyAsked explains a call that nobody has made.
func (s *Server) whyAsked(ctx context.Context, file *mesh.File, p api.ExplainParams) (*api.Explanation, error) {
	caller, err := s.callerID(file, p.From)
	if err != nil {
		return nil, err
	}
	q := policy.Query{Target: p.To, Caller: identity.Caller{Workload: caller}, Method: p.Method, Path: p.Path}
	if err := checkCall(file, &q); err != nil {
		return nil, err
	}
	run, err := s.cfg.Runtime.Status(ctx)
	if err != nil {
		return nil, err
	}
	why := s.explain(file, q, caller.Name())
	why.Steps = []api.Step{identityStep(caller, run), channelAsked(file, q.Target), {
		Name: "credential", State: api.StepNone, Text: q.Target + " asks for none besides the certificate",
	}, policyStep(why)}
	return why, nil
}

// callerID is the identity of a service, of a gateway ("edge" or
// "gateway/edge"), or what a SPIFFE ID says.
func (s *Server) callerID(file *mesh.File, from string) (identity.ID, error) {
	if strings.HasPrefix(from, "spiffe://") {
		id, err := identity.ParseID(from)
		if err == nil && id.Path() == "" {
			err = identity.ErrNoPath
		}
		if err != nil {
			return id, fault.Wrap(err, fault.BadRequest, "", "the caller is no SPIFFE ID of a workload")
		}
		return id, nil
	}
	if file.Services[from] != nil {
		return identity.ServiceID(s.cfg.TrustDomain, from)
	}
	if name := strings.TrimPrefix(from, "gateway/"); file.Gateways[name] != nil {
		return identity.GatewayID(s.cfg.TrustDomain, name)
	}
	return identity.ID{}, unknownName("service or gateway", from, append(slices.Sorted(maps.Keys(file.Services)), slices.Sorted(maps.Keys(file.Gateways))...))
}

// checkCall holds q to what its target speaks. A call by HTTP of which neither
// method nor path is said is taken as GET /.
func checkCall(file *mesh.File, q *policy.Query) error {
	target := file.Services[q.Target]
	if target == nil {
		return unknownName("service", q.Target, slices.Sorted(maps.Keys(file.Services)))
	}
	if target.Inbound == nil && len(target.Endpoints) > 0 {
		return fault.New(fault.BadRequest, "ask that program's own log, or give it a sidecar: inbound", "%s has no inbound: the program at its endpoints decides itself who may call it", q.Target)
	}
	if target.Inbound != nil && target.Inbound.Protocol == string(call.TCP) {
		if q.Method != "" || q.Path != "" {
			return fault.New(fault.BadRequest, "leave method and path out", "%s speaks TCP, which has neither method nor path", q.Target)
		}
		return nil
	}
	if q.Method == "" {
		q.Method = "GET"
	}
	if q.Path == "" {
		q.Path = "/"
	}
	if strings.Trim(q.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
		return fault.New(fault.BadRequest, "methods are written in upper case", "%q is no HTTP method", q.Method)
	}
	if err := policy.ValidPath(q.Path); err != nil {
		return fault.Wrap(err, fault.BadRequest, "write the path as the log has it, without a query: /orders/7", "%q is no path that a decision is taken on", clip(q.Path))
	}
	return nil
}

// maxNamed bounds the names that a hint lists.
const maxNamed = 20

func unknownName(what, name string, known []string) error {
	hint := "the mesh file has none yet"
	if len(known) > 0 {
		hint = "there are " + strings.Join(known[:min(len(known), maxNamed)], ", ")
	}
	return fault.New(fault.NotFound, hint, "there is no %s %q", what, clip(name))
}

// explain asks the policy that runs now.
func (s *Server) explain(file *mesh.File, q policy.Query, from string) *api.Explanation {
	ex := s.cfg.Runtime.Explain(q)
	why := &api.Explanation{
		Allow: ex.Decision.Allow, From: from, FromID: q.Caller.Workload.String(), To: q.Target, Method: q.Method, Path: q.Path,
		Reason: string(ex.Decision.Reason), Revision: ex.Decision.Revision, Events: []api.Entry{},
	}
	if ex.Nearest >= 0 && ex.Nearest < len(ex.Rules) {
		c := &ex.Rules[ex.Nearest]
		if why.Allow {
			why.Rule = s.ruleRef(&c.Rule)
		} else {
			why.Nearest = s.ruleRef(&c.Rule)
			why.Nearest.Why = missText(c.Reason)
		}
	}
	if !why.Allow {
		why.Suggestion = suggest(file, q, ex.Decision.Reason)
	}
	return why
}

// suggest is what would allow q, a rule or a key.
func suggest(file *mesh.File, q policy.Query, reason policy.Reason) api.Suggestion {
	switch reason {
	case policy.NoCredential, policy.ScopeMissing:
		scopes, ok := mesh.WantedScopes(file, q.Target, q.Caller.Scopes)
		if !ok {
			return api.Suggestion{}
		}
		command := "parley key create NAME"
		if len(scopes) > 0 {
			command += " --scope " + strings.Join(scopes, ",")
		}
		return api.Suggestion{Command: command}
	}
	return edit(file, mesh.Suggest(file, q))
}

// suggestRefused is what would allow a call that e refused before a rule was asked.
func suggestRefused(file *mesh.File, e *audit.Event) api.Suggestion {
	if e.Call == nil {
		return api.Suggestion{}
	}
	switch {
	case e.Action == audit.Call && e.Reason == gate.ReasonRouteNotFound:
		gateway, _ := strings.CutPrefix(e.Call.Listener, "gateway.")
		return edit(file, mesh.SuggestRoute(file, gateway, e.Call.Host, e.Call.Method, e.Call.Path))
	case e.Action == audit.ProcessRefused && e.Caller != nil:
		service, _, _ := strings.Cut(e.Call.Listener, ".calls.")
		user := ""
		if e.Caller.UID != nil {
			user = strconv.Itoa(*e.Caller.UID)
		}
		return edit(file, mesh.SuggestRunsAs(file, service, user, e.Caller.Exe))
	}
	return api.Suggestion{}
}

func edit(file *mesh.File, text string) api.Suggestion {
	if text == "" {
		return api.Suggestion{}
	}
	return api.Suggestion{Text: text, File: file.Name()}
}

// ruleRef is a rule as a person finds it in the mesh file.
func (s *Server) ruleRef(r *policy.Rule) api.RuleRef {
	ref := api.RuleRef{ID: r.ID, File: r.File, Line: r.Line, Methods: r.Methods, Paths: r.Paths}
	for _, id := range r.From {
		name := id.String()
		if id.TrustDomain() == s.cfg.TrustDomain {
			name = id.Name()
		}
		ref.From = append(ref.From, name)
	}
	for _, any := range r.Any {
		name := string(any.Kind)
		if any.Kind == policy.JWT {
			name = fmt.Sprintf("token of %s for %s", any.Issuer, any.Audience)
		}
		if len(any.Scopes) > 0 {
			name += " with " + strings.Join(any.Scopes, ", ")
		}
		ref.From = append(ref.From, name)
	}
	return ref
}
