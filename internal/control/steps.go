package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

// The functions of this file put an explanation into sentences. Outside bytes
// stand in them only quoted.

// identityStep says what the caller would present now.
func identityStep(id identity.ID, run RuntimeStatus) api.Step {
	step := api.Step{Name: "identity", State: api.StepNone, Text: id.String() + " is no service or gateway of the mesh"}
	hold := func(state api.State, note, serial string, notAfter time.Time) {
		step.Text = fmt.Sprintf("%s, certificate %s until %s", id, serial, notAfter.UTC().Format(time.RFC3339))
		step.State = api.StepOK
		if serial == "" {
			step.State, step.Text = api.StepNone, fmt.Sprintf("%s holds no certificate now (%s): its calls fail before policy", id, strings.TrimSpace(string(state)+" "+note))
		}
	}
	for _, s := range run.Services {
		if s.ID == id.String() {
			hold(s.State, s.Note, s.Serial, s.NotAfter)
		}
	}
	for _, g := range run.Gateways {
		if g.ID == id.String() {
			hold(g.State, g.Note, g.Serial, g.NotAfter)
		}
	}
	return step
}

// channelAsked says how a call of target is protected, by the mesh file.
func channelAsked(file *mesh.File, target string) api.Step {
	in := file.Services[target].Inbound
	if in == nil {
		return api.Step{Name: "channel", State: api.StepNo, Text: target + " has no inbound: nothing listens for it"}
	}
	return api.Step{Name: "channel", State: api.StepOK, Text: fmt.Sprintf("TLS 1.3 with both certificates at %s, and nothing else", in.Listen)}
}

// policyStep is what policy says now.
func policyStep(why *api.Explanation) api.Step {
	if why.Allow {
		return api.Step{Name: "policy", State: api.StepOK, Text: why.Rule.ID + " allows it"}
	}
	return api.Step{Name: "policy", State: api.StepNo, Text: denyText(policy.Reason(why.Reason), why.From, why.To)}
}

// eventSteps walk through a recorded decision as far as it came.
func eventSteps(e *audit.Event) []api.Step {
	if e.Action != audit.Call {
		return []api.Step{refusalStep(e)}
	}
	steps := []api.Step{callerStep(e), channelStep(e)}
	switch {
	case e.Call.End == string(call.Edge):
		steps = append(steps, credentialStep(e))
	case e.Call.End == string(call.Inbound):
		steps = append(steps, originStep(e)...)
	}
	return append(steps, decisionStep(e))
}

// refusalStep is a refusal before there was a call.
func refusalStep(e *audit.Event) api.Step {
	step := api.Step{Name: "identity", State: api.StepNo, Text: "refused: " + e.Reason}
	switch e.Action {
	case audit.HandshakeRefused:
		step.Text = "the certificate was not accepted: " + e.Reason
	case audit.ConnectionRefused:
		step.Name, step.Text = "channel", "the listener had as many connections as it may"
	case audit.ProcessRefused:
		step.Name, step.Text = "process", processText(e.Caller)+" is not accepted: "+e.Reason
		if e.Call != nil {
			service, _, _ := strings.Cut(e.Call.Listener, ".calls.")
			step.Text = fmt.Sprintf("%s is not accepted at %s, where only %s calls from: %s", processText(e.Caller), e.Call.Listener, service, e.Reason)
			step.Help = fmt.Sprintf("if it is %s, correct runs_as of %s in the mesh file; if not, find out who started it", service, service)
		}
	case audit.WorkloadRefused:
		step.Name, step.Text = "process", processText(e.Caller)+" is not accepted: "+e.Reason
		step.Help = "if it is a service, correct runs_as of that service in the mesh file; if not, find out who started it"
	case audit.IssueRefused:
		step.Text = "no certificate was issued: " + e.Reason
	case audit.AdminRefused:
		step.Name, step.Text = "administrator", "this user may not administer the mesh"
	}
	if e.Message != "" {
		step.Text += " (" + e.Message + ")"
	}
	return step
}

func processText(p *audit.Party) string {
	if p == nil || p.UID == nil {
		return "the process"
	}
	text := fmt.Sprintf("process %d of uid %d", p.PID, *p.UID)
	if p.PID == 0 { // which one, could not be seen
		text = fmt.Sprintf("a process of uid %d", *p.UID)
	}
	if p.Exe != "" {
		text += fmt.Sprintf(", %q,", p.Exe)
	}
	return text
}

func callerStep(e *audit.Event) api.Step {
	step := api.Step{Name: "identity", State: api.StepNone, Text: "the caller presented no certificate"}
	p := e.Caller
	switch {
	case p == nil || p.ID.IsZero():
	case e.Call.End == string(call.Outbound):
		step.State, step.Text = api.StepOK, fmt.Sprintf("%s is %s", processText(p), p.ID)
	default:
		step.State, step.Text = api.StepOK, p.ID.String()
		if p.Serial != "" {
			step.Text += ", certificate " + p.Serial
		}
	}
	return step
}

func channelStep(e *audit.Event) api.Step {
	switch {
	case e.TLS != nil:
	case e.Call.End == string(call.Inbound):
		return api.Step{Name: "channel", State: api.StepNone, Text: "plaintext: everybody on its way could read and change it"}
	default:
		return api.Step{Name: "channel", State: api.StepNone, Text: "a local connection, before TLS"}
	}
	parts := []string{"TLS " + e.TLS.Version}
	if e.TLS.Group != "" {
		parts = append(parts, e.TLS.Group)
	}
	if e.TLS.PeerID != "" {
		parts = append(parts, "both certificates checked")
	}
	if e.TLS.Resumed {
		parts = append(parts, "resumed and checked again")
	}
	return api.Step{Name: "channel", State: api.StepOK, Text: strings.Join(parts, ", ")}
}

// originStep is whom the gateway let in that called a service, as it said. There is
// none where it said nothing, as of a public route.
func originStep(e *audit.Event) []api.Step {
	if gate.OfOrigin(e.Reason) {
		text := "what the gateway says of its caller is not good: " + e.Reason
		if e.Message != "" {
			text += " (" + e.Message + ")"
		}
		return []api.Step{{Name: "origin", State: api.StepNo, Text: text}}
	}
	came := presented(e)
	if came == "" {
		return nil
	}
	return []api.Step{{Name: "origin", State: api.StepOK, Text: e.Caller.ID.Name() + " let in and signed for: " + came}}
}

// presented are the credentials of a caller that were good.
func presented(e *audit.Event) string {
	var came []string
	p := e.Caller
	if p != nil && p.KeyID != "" {
		came = append(came, fmt.Sprintf("API key %q (%s)", p.KeyName, p.KeyID))
	}
	if p != nil && p.Issuer != "" {
		came = append(came, tokenText(e))
	}
	return strings.Join(came, " and ")
}

// credentialStep is which credential came to an edge, and whether it was good. A
// reason of policy is about a good one.
func credentialStep(e *audit.Event) api.Step {
	text := presented(e)
	switch {
	case isPolicyReason(e.Reason):
	case strings.HasPrefix(e.Reason, "jwt_"), strings.HasPrefix(e.Reason, "jwks_"):
		if text == "" {
			text = "the token"
		}
		text += " is not good: " + e.Reason
		if e.Message != "" {
			text += " (" + e.Message + ")"
		}
		return api.Step{Name: "credential", State: api.StepNo, Text: text}
	case strings.HasPrefix(e.Reason, "key_"), e.Reason == "credentials_invalid":
		return api.Step{Name: "credential", State: api.StepNo, Text: "the API key is not known, has ended, or was revoked: " + e.Reason}
	}
	if text == "" {
		return api.Step{Name: "credential", State: api.StepNone, Text: "no API key and no token"}
	}
	return api.Step{Name: "credential", State: api.StepOK, Text: text}
}

// tokenText is a token as a person reads it. Its issuer chose the words.
func tokenText(e *audit.Event) string {
	p, whose := e.Caller, fmt.Sprintf("%q", e.Subject())
	if e.Erased() {
		whose = "an erased person"
	}
	text := fmt.Sprintf("token of %s from %q", whose, p.Issuer)
	if p.Audience != "" {
		text += fmt.Sprintf(" for %q", p.Audience)
	}
	if p.Scopes != "" {
		text += fmt.Sprintf(" with %q", p.Scopes)
	}
	return text
}

// decisionStep is the step at which the recorded call was decided.
func decisionStep(e *audit.Event) api.Step {
	rule := ""
	if e.Decision != nil {
		rule = e.Decision.Rule
	}
	switch {
	case e.Outcome == audit.Allowed && e.Call.End == string(call.Outbound):
		return api.Step{Name: "policy", State: api.StepNone, Text: "the callee's end decides"}
	case e.Reason == gate.ReasonObserved:
		return api.Step{
			Name: "policy", State: api.StepNone, Text: fmt.Sprintf("let in by no rule, since %s observes plaintext", calleeName(e)),
			Help: "move this caller into the mesh, then remove plaintext: observe from the service",
		}
	case e.Outcome == audit.Allowed && rule != "":
		return api.Step{Name: "policy", State: api.StepOK, Text: rule + " allowed it"}
	case e.Outcome == audit.Allowed:
		return api.Step{Name: "policy", State: api.StepOK, Text: "allowed"}
	case isPolicyReason(e.Reason):
		return api.Step{Name: "policy", State: api.StepNo, Text: denyText(policy.Reason(e.Reason), callerName(e), calleeName(e))}
	}
	return api.Step{Name: "gate", State: api.StepNo, Text: gateText(e.Reason)}
}

func isPolicyReason(reason string) bool {
	switch policy.Reason(reason) {
	case policy.NoRules, policy.UnknownTarget, policy.CallerNotAllowed, policy.MethodNotAllowed,
		policy.PathNotAllowed, policy.NoCredential, policy.WrongAudience, policy.ScopeMissing:
		return true
	}
	return false
}

func denyText(reason policy.Reason, from, to string) string {
	if from == "" {
		from = "the caller"
	}
	switch reason {
	case policy.NoRules:
		return "nobody may call " + to + " (services refuse by default)"
	case policy.UnknownTarget:
		return "the revision that runs has no " + to + " that can be called"
	case policy.CallerNotAllowed:
		return fmt.Sprintf("no rule lets %s call %s (services refuse by default)", from, to)
	case policy.PathNotAllowed:
		return fmt.Sprintf("%s may call %s, but not with this path", from, to)
	case policy.MethodNotAllowed:
		return fmt.Sprintf("%s may call %s with this path, but not with this method", from, to)
	case policy.NoCredential:
		return "the route wants a credential, and none that is good came"
	case policy.WrongAudience:
		return "the token is for another audience than the route names"
	case policy.ScopeMissing:
		return "the credential lacks a scope that the route wants"
	}
	return "refused: " + string(reason)
}

// missText says how a rule misses a call.
func missText(reason policy.Reason) string {
	switch reason {
	case policy.CallerNotAllowed:
		return "other caller"
	case policy.PathNotAllowed:
		return "other path"
	case policy.MethodNotAllowed:
		return "other method"
	case policy.NoCredential:
		return "no credential"
	case policy.WrongAudience:
		return "other audience"
	case policy.ScopeMissing:
		return "missing scope"
	}
	return string(reason)
}

func gateText(reason string) string {
	switch reason {
	case gate.ReasonPlaintext:
		return "it came without TLS, and the service does not observe plaintext, or not any more"
	case "credential_expired":
		return "the caller's certificate ended while its connection was open"
	case "route_not_found":
		return "no route of the gateway matches"
	case "credentials_invalid":
		return "the credential that came is not good"
	case "jwks_unavailable":
		return "the keys of the token's issuer were not there"
	case "not_ready":
		return "the agent had no revision yet"
	case "audit_unavailable":
		return "the event could not be recorded, so the call was not made"
	}
	if gate.OfOrigin(reason) {
		return "a gateway's word for its caller is not good"
	}
	if strings.HasPrefix(reason, "jwt_") || strings.HasPrefix(reason, "key_") {
		return "the credential that came is not good"
	}
	return "refused: " + reason
}

// callerName is the service or gateway, the API key, whom a token names, or
// nothing.
func callerName(e *audit.Event) string {
	switch p := e.Caller; {
	case p == nil:
		return ""
	case p.Service != "":
		return p.Service
	case p.KeyID != "":
		return "key:" + p.KeyID
	case e.Subject() != "":
		return fmt.Sprintf("%q", e.Subject())
	case e.Erased():
		return "an erased person"
	default:
		return p.ID.Name()
	}
}

func calleeName(e *audit.Event) string {
	if target, ok := edgeTarget(e); ok && e.Call != nil && e.Call.End == string(call.Edge) {
		return target
	}
	if e.Callee == nil {
		return ""
	}
	return e.Callee.Service
}

func partyID(p *audit.Party) string {
	if p == nil {
		return ""
	}
	return p.ID.String()
}
