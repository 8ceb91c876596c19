package assess

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A target is one endpoint of one edge.
type target struct {
	session *Session
	edge    *Edge
	at      string // host:port, empty where the callee has none
}

func (t *target) result(c Check, o Outcome, detail string) Result {
	return Result{Caller: t.edge.Caller, Callee: t.edge.Callee, Endpoint: t.at, Check: c, Outcome: o, Detail: detail}
}

// A trial is a check with what tries it.
type trial struct {
	check Check
	try   func(context.Context) verdict
}

// attack tries everything but what needs a ban.
func (t *target) attack(ctx context.Context) []Result {
	control := t.control(ctx)
	results := []Result{control}
	for _, c := range t.trials() {
		v := verdict{Inconclusive, "the control did not work, so a refusal would mean nothing"}
		if control.Outcome == OK {
			v = c.try(ctx)
		}
		if v.outcome == "" {
			continue // there is nothing of that kind to try here
		}
		r := t.result(c.check, v.outcome, v.detail)
		r.Help = t.help(c.check, v.outcome)
		results = append(results, r)
	}
	if control.Outcome == OK {
		return append(results, t.hold(ctx)...)
	}
	for _, c := range t.afterBan() {
		results = append(results, t.result(c, Inconclusive, "the control did not work, so a refusal would mean nothing"))
	}
	return results
}

// control is the allowed call: as the caller, in the way of every other.
func (t *target) control(ctx context.Context) Result {
	if t.at == "" {
		r := t.result(Control, Inconclusive, "no place is known where the callee can be called")
		r.Help = "parley status"
		return r
	}
	v, decision := t.allowed(ctx)
	r := t.result(Control, v.outcome, v.detail)
	r.Decision = decision
	switch {
	case v.outcome == Failed && decision != "":
		r.Help = "parley why " + decision
	case v.outcome == Failed: // in the handshake
		r.Help = "see why it was refused: parley audit search --to " + t.edge.Callee + " --outcome denied"
	case v.outcome == Inconclusive:
		r.Help = "see whether it is up: parley status"
	}
	return r
}

func (t *target) allowed(ctx context.Context) (v verdict, decision string) {
	cert, err := t.session.cert(ctx, t.edge.CallerID, "")
	if err != nil {
		return verdict{Inconclusive, "no certificate for probes: " + err.Error()}, ""
	}
	ans, err := t.ask(ctx, approach{cert: cert, probe: true, kept: &tickets{}}, t.edge.Allowed, true)
	switch {
	case errors.Is(err, errNoProber) || errors.Is(err, errUnreached):
		return verdict{Inconclusive, err.Error()}, ""
	case err != nil:
		if v := refusal(err); v.outcome == OK {
			return verdict{Failed, "it was refused: " + v.detail}, ""
		}
		return verdict{Inconclusive, err.Error()}, ""
	}
	state := ans.conn.ConnectionState()
	if err := t.verifyCallee(state.PeerCertificates); err != nil {
		return verdict{Failed, err.Error()}, ""
	}
	if state.Version != tls.VersionTLS13 {
		return verdict{Failed, "it speaks " + tls.VersionName(state.Version)}, ""
	}
	call := t.what(t.edge.Allowed)
	switch {
	case !ans.allowed:
		return verdict{Failed, fmt.Sprintf("%s was denied%s", call, statusText(ans.status))}, ans.decision
	case t.edge.Forwarded && ans.by == "forwarded" && ans.status >= 500:
		return verdict{Failed, fmt.Sprintf("%s reached the application, which answered %d", call, ans.status)}, ans.decision
	case t.edge.Forwarded && ans.by == "forwarded":
		return verdict{OK, fmt.Sprintf("%s reached the application, which answered %d", call, ans.status)}, ans.decision
	}
	return verdict{OK, call + " was allowed"}, ans.decision
}

// what names a call for people.
func (t *target) what(r Request) string {
	if t.edge.HTTP {
		return r.String()
	}
	return "the connection"
}

func statusText(status int) string {
	if status == 0 {
		return ""
	}
	return fmt.Sprintf(" with %d", status)
}

// trials are the checks of the first phase, but for the control.
func (t *target) trials() []trial {
	caller := t.edge.CallerID
	flawed := func(flaw Check) trial {
		return trial{flaw, func(ctx context.Context) verdict {
			cert, err := t.session.cert(ctx, caller, flaw)
			if err != nil {
				return verdict{Inconclusive, "no certificate for probes: " + err.Error()}
			}
			return t.try(ctx, approach{cert: cert, probe: true})
		}}
	}
	return []trial{
		{NoCertificate, func(ctx context.Context) verdict { return t.try(ctx, approach{}) }},
		{ForeignCA, t.foreign},
		{LookAlikeCA, t.lookAlike},
		flawed(Expired), flawed(NotYetValid), flawed(WrongUsage), flawed(TwoNames),
		{Stranger, func(ctx context.Context) verdict {
			cert, err := t.session.cert(ctx, t.session.strange, "")
			if err != nil {
				return verdict{Inconclusive, "no certificate for probes: " + err.Error()}
			}
			return t.try(ctx, approach{cert: cert, probe: true})
		}},
		{ProbeMisused, t.good(approach{})},
		{WrongIdentity, func(ctx context.Context) verdict { return t.denied(ctx, true, t.edge.Allowed) }},
		{WrongRequest, func(ctx context.Context) verdict {
			if t.edge.Forbidden == (Request{}) {
				return verdict{}
			}
			return t.denied(ctx, false, t.edge.Forbidden)
		}},
		{Plaintext, t.plaintext},
		{TLS11, t.old(tls.VersionTLS11)},
		{TLS12, t.old(tls.VersionTLS12)},
		{AppPort, t.appPort},
		{AppPortLocal, t.appPortLocal},
		{ImpostorName, t.impostorName},
		{ImpostorAlike, t.impostorAlike},
	}
}

// good tries an approach with the caller's good certificate for probes.
func (t *target) good(a approach) func(context.Context) verdict {
	return func(ctx context.Context) verdict {
		cert, err := t.session.cert(ctx, t.edge.CallerID, "")
		if err != nil {
			return verdict{Inconclusive, "no certificate for probes: " + err.Error()}
		}
		a.cert = cert
		return t.try(ctx, a)
	}
}

// old tries version, as any caller and as a probe, since a sidecar may have a
// configuration for each. As any caller it has no certificate that could be good, so
// that the version is judged by whether the server takes it up.
func (t *target) old(version uint16) func(context.Context) verdict {
	return func(ctx context.Context) verdict {
		taken := false
		c, err := t.handshake(ctx, approach{max: version, taken: &taken, kept: &tickets{}})
		if err == nil {
			_ = c.Close()
		}
		switch v := refusal(err); {
		case taken:
			return verdict{Failed, "it took up " + tls.VersionName(version)}
		case v.outcome != OK:
			return v
		}
		return t.good(approach{probe: true, max: version})(ctx)
	}
}

func (t *target) foreign(ctx context.Context) verdict {
	id, err := foreignID(t.edge.CallerID)
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	cert, err := t.session.forged.leaf(t.session.forged.foreign, id)
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	return t.try(ctx, approach{cert: cert})
}

func (t *target) lookAlike(ctx context.Context) verdict {
	cert, err := t.session.forged.leaf(t.session.forged.alike, t.edge.CallerID)
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	return t.try(ctx, approach{cert: cert})
}

// denied makes a call that policy has to deny, as the caller, or as a member whom no
// rule names.
func (t *target) denied(ctx context.Context, other bool, r Request) verdict {
	id := t.edge.CallerID
	if other {
		id = t.session.verify
	}
	cert, err := t.session.cert(ctx, id, "")
	if err != nil {
		return verdict{Inconclusive, "no certificate for probes: " + err.Error()}
	}
	ans, err := t.ask(ctx, approach{cert: cert, probe: true, kept: &tickets{}}, r, true)
	if err != nil {
		return refusal(err)
	}
	switch {
	case ans.allowed:
		return verdict{Failed, fmt.Sprintf("%s as %s was allowed: decision %s", t.what(r), id, cmp.Or(ans.decision, "unknown"))}
	case t.edge.HTTP && (ans.status != 403 || ans.decision == ""):
		// Without a decision it was not the sidecar that said so: an application may.
		return verdict{Inconclusive, fmt.Sprintf("%s was answered with %d, and by no decision", t.what(r), ans.status)}
	}
	return verdict{OK, t.what(r) + " was denied" + statusText(ans.status)}
}

// plaintext speaks without TLS. Where the mesh file lets that in, nothing is sent,
// which an application might get.
func (t *target) plaintext(ctx context.Context) verdict {
	if until := t.edge.Observed; until.After(t.session.tools.Clock.Now()) {
		return verdict{Failed, "the mesh file lets plaintext in until " + until.UTC().Format(time.RFC3339)}
	}
	d := net.Dialer{Timeout: connectTime}
	c, err := d.DialContext(ctx, "tcp", t.at)
	if err != nil {
		return verdict{Inconclusive, err.Error()}
	}
	defer c.Close()
	_ = c.SetDeadline(t.session.tools.Clock.Now().Add(answerTime))
	say := noTLS
	if t.edge.HTTP {
		say = noRequest
	}
	if _, err := io.WriteString(c, say); err != nil {
		return refusal(err)
	}
	first := make([]byte, 64)
	n, err := c.Read(first)
	switch v := refusal(err); {
	case n > 0 && first[0] == alertRecord:
		return verdict{OK, "a TLS alert"}
	case n > 0:
		return verdict{Failed, fmt.Sprintf("it answered: %q", firstLine(first[:n]))}
	case v.outcome == Inconclusive:
		return verdict{Failed, fmt.Sprintf("the connection was still open after %s", answerTime)}
	default:
		return v
	}
}

// alertRecord is the content type of a TLS record with an alert (RFC 8446 section 5.1).
const alertRecord = 21
