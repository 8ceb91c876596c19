package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

// A need is one thing that a person should look at.
type need struct {
	mark       term.Mark
	text, next string
}

// needs is everything in a status that is not as it should be.
func needs(s *api.Status) []need {
	var list []need
	state := func(st api.State, kind, name, note, help string) {
		if st != api.StateOK {
			list = append(list, need{stateMarks[st], fmt.Sprintf("%s %s is %s%s", kind, name, st, noted(note)), help})
		}
	}
	for _, h := range s.Hosts {
		state(h.State, "host", h.Name, h.Note, "")
	}
	for _, b := range s.Bans {
		list = append(list, need{term.Look, b.ID + " is banned" + noted(b.Reason), "let it in again:  parley unban " + b.ID})
	}
	for _, v := range s.Services {
		state(v.State, "service", v.Name, v.Note, v.Help)
	}
	for _, v := range s.Gateways {
		state(v.State, "gateway", v.Name, v.Note, "")
	}
	for _, v := range s.Listeners {
		state(v.State, "listener", v.Name, v.Note, v.Help)
	}
	for _, e := range s.Edges {
		if p := protectionOf(e.Protection); p.rank >= protections["mixed"].rank {
			list = append(list, need{p.mark, fmt.Sprintf("%s -> %s   not every call was mTLS", from(e.From), e.To), "see them:  parley audit search --to " + e.To})
		}
	}
	if s.Audit.State != api.StateOK || s.Audit.Gaps > 0 {
		list = append(list, need{term.No, "the audit log: " + auditWords(s), "check every hash:  parley audit verify"})
	}
	for _, f := range s.Findings {
		if known(f) {
			continue
		}
		list = append(list, found(f))
	}
	return list
}

// known says that a finding asks nobody to act: it is meant as it is, or it is a
// call that policy refuses, which is what policy is for. apply tells of the latter
// in time.
func known(f api.Finding) bool { return f.Expected != "" || f.Code == "call_without_rule" }

// notes are the findings that are no needs.
func notes(s *api.Status) (list []need) {
	for _, f := range s.Findings {
		if known(f) {
			n := found(f)
			if n.mark = term.None; f.Expected != "" {
				n.next = f.Expected
			}
			list = append(list, n)
		}
	}
	return list
}

// found is a finding with what to do about it.
func found(f api.Finding) need {
	place := ""
	if f.File != "" {
		place = fmt.Sprintf("%s:%d  ", local(f.File), f.Line)
	}
	next := f.Help
	if next == "" && strings.HasPrefix(f.Code, "PAR-") {
		next = "parley explain " + f.Code
	}
	return need{term.Look, place + f.Message, next}
}

func noted(note string) string {
	if note == "" {
		return ""
	}
	return ": " + note
}

// states counts the services by state, in words.
func states(s *api.Status) string {
	count := map[api.State]int{}
	for _, v := range s.Services {
		count[v.State]++
	}
	var words []string
	for _, st := range []api.State{api.StateOK, api.StateWaiting, api.StateFailed} {
		if count[st] > 0 {
			words = append(words, fmt.Sprintf("%d %s", count[st], st))
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

// renewals says how many certificates live, when the next one is renewed and
// whether one is late.
func renewals(s *api.Status) string {
	live, late := 0, 0
	var next time.Time
	see := func(notAfter, renews time.Time) {
		if notAfter.After(s.Now) {
			live++
		}
		switch {
		case renews.IsZero():
		case renews.Before(s.Now.Add(-time.Minute)):
			late++
		case next.IsZero() || renews.Before(next):
			next = renews
		}
	}
	for _, v := range s.Services {
		see(v.NotAfter, v.RenewsAt)
	}
	for _, v := range s.Gateways {
		see(v.NotAfter, v.RenewsAt)
	}
	text := fmt.Sprintf("%d live", live)
	switch {
	case next.IsZero():
	case next.After(s.Now):
		text += ", next renewal " + term.Relative(next, s.Now)
	default:
		text += ", next renewal due now"
	}
	if late > 0 {
		return fmt.Sprintf("%s, %d LATE", text, late)
	}
	return text + ", none late"
}

func auditWords(s *api.Status) string {
	text := string(s.Audit.State) + ", " + plural(int(s.Audit.Entries), "1 entry", term.Number(s.Audit.Entries)+" entries")
	if !s.Audit.Last.IsZero() {
		text += ", last " + term.Relative(s.Audit.Last, s.Now)
	}
	if s.Audit.Gaps > 0 {
		text += fmt.Sprintf(", %s LOST", term.Count(s.Audit.Gaps, "event"))
	}
	return text + noted(s.Audit.Note)
}
