package audit

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Errors of Encode and Decode.
var (
	ErrSalt      = errors.New("what is said of a person has no salt")
	ErrTime      = errors.New("the year of a time is not between 0 and 9999")
	ErrTooLong   = errors.New("an event is at most 65535 bytes")
	ErrCanonical = errors.New("an event is not in its canonical encoding")
	ErrSchema    = errors.New("an event is of another schema")
)

// Bounds of strings in bytes. An event whose strings reach the first bounds, and
// whose escapes then exceed MaxEvent, is encoded by the second ones, with which
// none can.
var (
	wide   = bounds{long: 2048, other: 512}
	narrow = bounds{long: 512, other: 128}
)

// bounds cut strings: long holds for a call's host and path, other for the rest.
type bounds struct{ long, other int }

// Encode appends the canonical encoding of e to dst: the bytes that encoding/json
// makes of it without HTML escaping, once Schema is set, times are in UTC and
// strings are valid UTF-8 within their bounds (2048 bytes for a call's host and
// path, 512 for all others, a cut marked by a final "…"). It does not change e,
// uses no reflection and allocates nothing where dst is large enough and nothing
// has to be cut. The result is at most MaxEvent longer than dst.
//
// Where e.Private is there, the caller's Person is the commitment to it as it is
// encoded, whatever e.Caller.Person says.
//
// The errors are ErrTime and ErrSalt, and dst is then returned as it was.
func Encode(dst []byte, e *Event) ([]byte, error) {
	for _, b := range []bounds{wide, narrow} {
		w := writer{buf: dst, bounds: b}
		w.event(e)
		if w.err != nil {
			return dst, w.err
		}
		if len(w.buf)-len(dst) <= MaxEvent {
			return w.buf, nil
		}
	}
	return dst, ErrTooLong
}

// writer appends JSON. A key is written with its colon and the comma before it.
type writer struct {
	buf []byte
	bounds
	// person is where the commitment goes, once there is something to commit to.
	person int
	err    error
}

func (w *writer) event(e *Event) {
	w.buf = append(w.buf, `{"schema":`...)
	w.buf = strconv.AppendInt(w.buf, Schema, 10)
	w.str(`,"id":`, e.ID)
	w.time(`,"time":`, e.Time)
	w.str(`,"class":`, string(e.Class))
	w.str(`,"action":`, string(e.Action))
	w.str(`,"outcome":`, string(e.Outcome))
	w.opt(`,"reason":`, e.Reason)
	w.opt(`,"message":`, e.Message)
	w.opt(`,"host":`, e.Host)
	w.opt(`,"reporter":`, e.Reporter)
	if e.Call != nil {
		w.call(e.Call)
	}
	w.party(`,"caller":{`, e.Caller, e.Private)
	w.party(`,"callee":{`, e.Callee, nil)
	if e.Actor != nil {
		w.actor(e.Actor)
	}
	if e.Object != nil {
		w.object(e.Object)
	}
	if e.Decision != nil {
		w.open(`,"decision":{`)
		w.opt(`,"rule":`, e.Decision.Rule)
		w.num(`,"revision":`, e.Decision.Revision)
		w.shut()
	}
	w.tls(`,"tls":{`, e.TLS)
	w.tls(`,"upstream_tls":{`, e.UpstreamTLS)
	if e.Trace != nil {
		w.open(`,"trace":{`)
		w.opt(`,"trace_id":`, e.Trace.TraceID)
		w.opt(`,"span_id":`, e.Trace.SpanID)
		w.opt(`,"parent_id":`, e.Trace.ParentID)
		w.shut()
	}
	if e.Gap != nil {
		w.gap(e.Gap)
	}
	if e.Private != nil {
		w.private(e.Private)
	}
	w.shut()
}

func (w *writer) call(c *CallFacts) {
	w.open(`,"call":{`)
	w.str(`,"end":`, c.End)
	w.str(`,"protocol":`, c.Protocol)
	w.str(`,"listener":`, c.Listener)
	w.opt(`,"request_id":`, c.RequestID)
	w.opt(`,"method":`, c.Method)
	w.long(`,"host":`, c.Host)
	w.long(`,"path":`, c.Path)
	w.num(`,"status":`, int64(c.Status))
	w.ptr(`,"grpc_status":`, c.GRPCStatus)
	w.opt(`,"error":`, c.Error)
	w.num(`,"bytes_in":`, c.BytesIn)
	w.num(`,"bytes_out":`, c.BytesOut)
	w.num(`,"duration_us":`, c.Duration)
	w.opt(`,"upstream":`, c.Upstream)
	w.shut()
}

// nobody is the caller of an event that has a person and no caller.
var nobody Party

// party is p; of a caller of whom private is said, with the commitment to it.
func (w *writer) party(key string, p *Party, private *Private) {
	if p == nil && private == nil {
		return
	}
	if p == nil {
		p = &nobody
	}
	w.open(key)
	w.opt(`,"service":`, p.Service)
	if !p.ID.IsZero() {
		w.key(`,"id":`)
		w.quote(p.ID.String()) // ASCII, 2048 bytes at most, nothing to escape
	}
	w.opt(`,"serial":`, p.Serial)
	w.opt(`,"fingerprint":`, p.Fingerprint)
	w.opt(`,"address":`, p.Address)
	w.opt(`,"via":`, p.Via)
	w.opt(`,"key_id":`, p.KeyID)
	w.opt(`,"key_name":`, p.KeyName)
	if private != nil || p.Person != (Commitment{}) {
		w.person = w.binary(`,"person":`, p.Person[:])
	}
	w.opt(`,"issuer":`, p.Issuer)
	w.opt(`,"client_id":`, p.ClientID)
	w.opt(`,"audience":`, p.Audience)
	w.opt(`,"scopes":`, p.Scopes)
	w.num(`,"pid":`, int64(p.PID))
	w.ptr(`,"uid":`, p.UID)
	w.opt(`,"exe":`, p.Exe)
	w.shut()
}

// private is the last member, and what the caller's person commits to.
func (w *writer) private(p *Private) {
	if p.Salt == (Salt{}) {
		w.err = ErrSalt
	}
	w.open(`,"private":{`)
	start := len(w.buf) - 1
	w.binary(`,"salt":`, p.Salt[:])
	w.opt(`,"subject":`, p.Subject)
	w.opt(`,"address":`, p.Address)
	w.shut()
	c := commit(w.buf[start:])
	binary.Encode(w.buf[w.person:], c[:])
}

func (w *writer) actor(a *Actor) {
	w.open(`,"actor":{`)
	w.ptr(`,"uid":`, a.UID)
	w.opt(`,"user":`, a.User)
	w.num(`,"pid":`, int64(a.PID))
	if !a.ID.IsZero() {
		w.key(`,"id":`)
		w.quote(a.ID.String()) // as of a party
	}
	w.opt(`,"system":`, a.System)
	w.shut()
}

func (w *writer) object(o *Object) {
	w.open(`,"object":{`)
	w.str(`,"kind":`, o.Kind)
	w.opt(`,"name":`, o.Name)
	w.opt(`,"serial":`, o.Serial)
	w.num(`,"revision":`, o.Revision)
	if !o.NotAfter.IsZero() {
		w.time(`,"not_after":`, o.NotAfter)
	}
	w.opt(`,"detail":`, o.Detail)
	w.shut()
}

func (w *writer) tls(key string, t *TLS) {
	if t == nil {
		return
	}
	w.open(key)
	w.str(`,"version":`, t.Version)
	w.opt(`,"cipher":`, t.Cipher)
	w.opt(`,"group":`, t.Group)
	w.opt(`,"alpn":`, t.ALPN)
	if t.Resumed {
		w.key(`,"resumed":`)
		w.buf = append(w.buf, "true"...)
	}
	w.opt(`,"connection":`, t.Connection)
	w.opt(`,"peer_id":`, t.PeerID)
	w.opt(`,"peer_serial":`, t.PeerSerial)
	w.shut()
}

func (w *writer) gap(r *Range) {
	w.open(`,"gap":{`)
	w.key(`,"from":`)
	w.buf = strconv.AppendUint(w.buf, r.From, 10)
	w.key(`,"to":`)
	w.buf = strconv.AppendUint(w.buf, r.To, 10)
	w.key(`,"count":`)
	w.buf = strconv.AppendUint(w.buf, r.Count, 10)
	w.shut()
}

func (w *writer) open(key string) { w.buf = append(w.buf, key...) }
func (w *writer) shut()           { w.buf = append(w.buf, '}') }

// key leaves out the comma of the first key of an object.
func (w *writer) key(key string) {
	if w.buf[len(w.buf)-1] == '{' {
		key = key[1:]
	}
	w.buf = append(w.buf, key...)
}

func (w *writer) str(key, s string) { w.text(key, s, w.other) }

func (w *writer) opt(key, s string) {
	if s != "" {
		w.str(key, s)
	}
}

func (w *writer) long(key, s string) {
	if s != "" {
		w.text(key, s, w.bounds.long)
	}
}

func (w *writer) text(key, s string, limit int) {
	w.key(key)
	if len(s) <= limit && plain(s) {
		w.quote(s)
		return
	}
	w.buf = appendString(w.buf, cut(s, limit))
}

func (w *writer) quote(s string) {
	w.buf = append(w.buf, '"')
	w.buf = append(w.buf, s...)
	w.buf = append(w.buf, '"')
}

func (w *writer) num(key string, n int64) {
	if n != 0 {
		w.key(key)
		w.buf = strconv.AppendInt(w.buf, n, 10)
	}
}

func (w *writer) ptr(key string, n *int) {
	if n != nil {
		w.key(key)
		w.buf = strconv.AppendInt(w.buf, int64(*n), 10)
	}
}

// binary is b in base64url; the text begins at what is returned.
func (w *writer) binary(key string, b []byte) (at int) {
	w.key(key)
	w.buf = append(w.buf, '"')
	at = len(w.buf)
	w.buf = binary.AppendEncode(w.buf, b)
	w.buf = append(w.buf, '"')
	return at
}

// time is RFC 3339 with nanoseconds, as time.Time.MarshalJSON has it.
func (w *writer) time(key string, t time.Time) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		w.err = fmt.Errorf("year %d: %w", y, ErrTime)
	}
	w.key(key)
	w.buf = append(w.buf, '"')
	w.buf = t.AppendFormat(w.buf, time.RFC3339Nano)
	w.buf = append(w.buf, '"')
}
