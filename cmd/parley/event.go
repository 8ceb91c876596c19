package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
)

// eventColumns are those of every list of events.
var eventColumns = []term.Column{
	{Stream: 2},
	{Title: "TIME", Stream: 15, Drop: 2},
	{Title: "WHO", Stream: 22, Min: 14},
	{Title: "WHAT", Stream: 44, Min: 12, Drop: 3},
	{Title: "REASON", Stream: 18, Min: 10, Drop: 1},
	{Title: "ID", Stream: 26},
}

// eventCells is an event as a row. An event that this program cannot read, of a
// newer server perhaps, is still shown by its place in its log.
func (a *app) eventCells(e api.Entry) []any {
	if e.Pruned {
		return []any{term.None, "", e.Log, "pruned", "", fmt.Sprint(e.Index)}
	}
	var ev audit.Event
	if err := json.Unmarshal(e.Event, &ev); err != nil {
		return []any{term.Unknown, "", e.Log, "unreadable", "", fmt.Sprint(e.Index)}
	}
	mark := term.OK
	if ev.Outcome == audit.Denied || ev.Outcome == audit.Failure {
		mark = term.No
	}
	why := ev.Reason
	if ev.Outcome == audit.Allowed && ev.Call != nil { // and it did not work out
		switch {
		case ev.Call.Error != "":
			mark, why = term.Look, ev.Call.Error
		case ev.Call.Status >= http.StatusInternalServerError:
			mark, why = term.Look, fmt.Sprintf("status %d", ev.Call.Status)
		}
	}
	at := term.Stamp(ev.Time)
	if !a.term.Wide() {
		at = ev.Time.UTC().Format("01-02T15:04:05Z") // the id in full is worth more than the year
	}
	return []any{mark, at, eventWho(&ev), eventWhat(&ev), why, ev.ID}
}

// eventWho is the two sides of a call, or who acted.
func eventWho(ev *audit.Event) string {
	if ev.Call != nil || ev.Caller != nil || ev.Callee != nil {
		to := party(ev.Callee, "")
		if to == "" && ev.Call != nil {
			to = ev.Call.Listener
		}
		return from(party(ev.Caller, bearer(ev))) + " -> " + to
	}
	switch {
	case ev.Actor == nil:
		return ev.Reporter
	case ev.Actor.User != "":
		return ev.Actor.User
	case ev.Actor.UID != nil:
		return fmt.Sprintf("uid %d", *ev.Actor.UID)
	}
	return ev.Actor.System
}

// party is one side of a call, and who let itself be known there.
func party(p *audit.Party, bearer string) string {
	switch {
	case p == nil:
		return ""
	case p.Service != "" && bearer != "": // a gateway, and whom it let in
		return p.Service + " for " + bearer
	case p.Service != "":
		return p.Service
	case bearer != "":
		return bearer
	case !p.ID.IsZero():
		return p.ID.String()
	case p.PID != 0:
		return fmt.Sprintf("pid %d", p.PID)
	}
	return p.Address
}

// bearer is who presented an API key or a token.
func bearer(ev *audit.Event) string {
	switch {
	case ev.Caller != nil && ev.Caller.KeyName != "":
		return "key " + ev.Caller.KeyName
	case ev.Subject() != "":
		return fmt.Sprintf("%q", ev.Subject())
	case ev.Erased():
		return "an erased person"
	}
	return ""
}

// eventWhat is the call, or the act and its object.
func eventWhat(ev *audit.Event) string {
	if ev.Call != nil && ev.Action == audit.Call {
		if ev.Call.Method == "" {
			return strings.ToUpper(ev.Call.Protocol) + " " + ev.Call.End
		}
		return ev.Call.Method + " " + ev.Call.Path
	}
	if ev.Object != nil && ev.Object.Name != "" {
		return string(ev.Action) + " " + ev.Object.Name
	}
	return string(ev.Action)
}

// writeEvent shows one event in full, every field as it is stored.
func (a *app) writeEvent(e *api.Entry) error {
	cells := a.eventCells(*e)
	a.term.Printf("%s  %s  %s\n", a.term.Mark(cells[0].(term.Mark)), cells[2], cells[3])
	a.term.Printf("    log %s, entry %d, leaf %s\n\n", e.Log, e.Index, e.Leaf)
	if e.Pruned {
		a.term.Printf("It was pruned: what it said is not there any more. Its hash still verifies.\n")
		return nil
	}
	if err := a.term.Record(e.Event); err != nil {
		return fmt.Errorf("show the event: %w", err)
	}
	var ev audit.Event
	if json.Unmarshal(e.Event, &ev) == nil && ev.Action == audit.Call {
		a.term.Hintf("\nWhy it was decided so:  parley why %s\n", ev.ID)
	}
	return nil
}
