package node

import (
	"context"
	"fmt"
	"strings"

	"github.com/parleymesh/parley/internal/audit/spool"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet"
	"github.com/parleymesh/parley/internal/node/agent"
	"github.com/parleymesh/parley/internal/store"
)

// evidence is the store's events, verified together with what hosts know of its own
// log, and with the files of the agent that runs in the same process: what was damaged
// there before it was collected, and what will be collected next.
type evidence struct {
	*store.Store
	agent *agent.Agent // nil where there is none in this process
	hosts func() []fleet.Host
}

// VerifyLogs implements control.Events.
func (e evidence) VerifyLogs(ctx context.Context) ([]control.LogReport, error) {
	reports, err := e.Store.VerifyLogs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range reports {
		if said := contradicted(e.hosts()); said != "" && reports[i].Log == e.LogName() {
			reports[i].Contradiction = strings.TrimPrefix(reports[i].Contradiction+"; "+said, "; ")
		}
	}
	if e.agent == nil {
		return reports, nil
	}
	own, err := e.agent.VerifyLog()
	if err != nil {
		return nil, err
	}
	flaw := problems(own)
	for i := range reports {
		if reports[i].Log == own.Log {
			if reports[i].Fault == "" {
				reports[i].Fault = flaw
			}
			return reports, nil
		}
	}
	if own.Next == 0 && flaw == "" {
		return reports, nil // nothing was recorded yet
	}
	return append(reports, control.LogReport{Log: own.Log, Size: own.Next, Root: own.Root, Fault: flaw}), nil
}

// contradicted is what the hosts say that have pinned another past of the server's
// log, or signed another one of theirs than was collected.
func contradicted(hosts []fleet.Host) string {
	var all []string
	for i := range hosts {
		for _, f := range hosts[i].Report.Findings {
			if f.Code == string(fault.LogForked) {
				all = append(all, "host "+hosts[i].Name+" says: "+f.Message)
			}
		}
	}
	return strings.Join(all, "; ")
}

// problems is the first thing that is wrong with the agent's files, and how many
// more there are.
func problems(r spool.Report) string {
	if len(r.Problems) == 0 {
		return ""
	}
	p := r.Problems[0]
	text := fmt.Sprintf("the agent's file %s: %s", p.File, p.What)
	if more := len(r.Problems) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}
