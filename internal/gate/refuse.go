package gate

import (
	"net/http"
	"strconv"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
)

// Refuse records a refusal that is not gate's: a TLS peer that was not admitted
// (CodeHandshakeRefused), a local process that is not the listener's service
// (CodeProcessRefused), a connection too many (CodeConnections), or, with any other
// code, a request whose form was refused. err says why, for the record. It sets
// r.Verdict and returns it; code is what the client may see. If r was checked and
// not done, this is its event. Of what a stranger can repeat at will, which is all but
// requests, the first is recorded, and then one in ten seconds with how many were left
// out; these have the id of the event that they are counted with.
func (g *Gate) Refuse(r *call.Request, code string, err error) call.Verdict {
	now := g.cfg.Clock.Now()
	v := deny(http.StatusForbidden, plain(code), plain(code))
	v.Revision = g.state.Load().policy.Revision()
	if _, ok := g.open.take(r.Verdict.ID); ok {
		v.ID = r.Verdict.ID
	} else {
		v.ID = audit.NewID(now)
	}
	action := audit.Call
	switch code {
	case CodeHandshakeRefused:
		action, v.Reason = audit.HandshakeRefused, handshakeReason(err)
	case CodeProcessRefused:
		action = audit.ProcessRefused
	case CodeConnections:
		action = audit.ConnectionRefused
	default:
		v.Status = formStatus(code)
	}
	r.Caller, r.Verdict = identity.Caller{}, v
	o := call.Outcome{End: now}
	if r.Protocol == call.HTTP && (action == audit.Call || action == audit.ProcessRefused) {
		o.Status, o.GRPC = r.Answer(v.Status)
	}
	var rep *repeats
	var before *audit.Repeated
	if action != audit.Call {
		var due bool
		if rep, before, due = g.floods.count(floodOf(r, v.Reason), now); !due {
			if id := g.floods.id(rep); id != "" {
				v.ID, r.Verdict.ID = id, id
			}
			g.metrics.refused(g.state.Load().meters, r, &o, action)
			if g.loud() { // who looks for one of them has to see each
				rec := g.refusal(r, &o, action, err)
				g.logCall(&rec.event, &o)
				rec.release()
			}
			return v
		}
	}
	rec := g.refusal(r, &o, action, err)
	defer rec.release()
	rec.event.Repeated = before
	if rep != nil {
		g.floods.keep(rep, rec)
	}
	g.metrics.refused(g.state.Load().meters, r, &o, action)
	g.record(&rec.event)
	if g.loud() {
		g.logCall(&rec.event, &o)
	}
	return v
}

// refusal is the record of one.
func (g *Gate) refusal(r *call.Request, o *call.Outcome, action audit.Action, err error) *record {
	rec := g.newRecord(r, o)
	rec.event.Action, rec.event.Message = action, message(err)
	if action != audit.Call {
		rec.caller.Service = "" // what a peer claims and was not admitted with stays in its ID
	}
	if action == audit.ProcessRefused {
		rec.caller.ID = identity.ID{} // whoever it was, not the service
	}
	return rec
}

// plain is code if it is one, so that no outside bytes become a code.
func plain(code string) string {
	for i := 0; i < len(code); i++ {
		if c := code[i]; (c < 'a' || c > 'z') && c != '_' && (c < '0' || c > '9') {
			return "refused"
		}
	}
	if code == "" || len(code) > 64 {
		return "refused"
	}
	return code
}

// message is err's text, quoted where it holds anything but visible ASCII: it
// may repeat what a stranger wrote.
func message(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] > '~' {
			return strconv.QuoteToASCII(text)
		}
	}
	return text
}
