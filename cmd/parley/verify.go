package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
)

// errInconclusive says that nothing got through, and not all was tried: no pass.
var errInconclusive = errors.New("not everything could be tried")

func (a *app) verifyCommand() *cobra.Command {
	var junit string
	var within time.Duration
	cmd := &cobra.Command{
		Use: "verify [FROM [TO]]", Short: "attack every edge of the mesh, to see that it holds",
		Long: `From each caller's host, its callee is called once as it should be and then in
every way that has to be refused: without a certificate, with forged, expired
and foreign ones, as somebody else, in plaintext, after a ban, or beside the
sidecar. Applications notice nothing: sidecars answer. Only a request that the
mesh file names under inbound.probe goes on to the application.

What could not be tried is no pass: the exit code is then 3, and 1 where
anything got through. Warnings alone leave it 0.`,
		Example: `  parley verify                       every edge of the mesh file
  parley verify web orders            web's calls of orders
  parley verify --junit verify.xml    for a build server`,
		Args: arguments(0, 2, "nothing, FROM, or FROM TO"), ValidArgsFunction: a.live(2, services),
	}
	cmd.Flags().StringVar(&junit, "junit", "", "write a JUnit report to this `file` as well")
	cmd.Flags().DurationVar(&within, "within", 2*time.Minute, "how `long` it may take, 1s to 10m")
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		if within < time.Second || within > 10*time.Minute {
			return usage("", "--within is between 1s and 10m, not %s", within)
		}
		request := api.VerifyRequest{Timeout: int64(within / time.Second)}
		if len(args) > 0 {
			request.From = args[0]
		}
		if len(args) > 1 {
			request.To = args[1]
		}
		v := &verification{}
		stop := a.term.Progress(cmd.Context(), a.clock, "attacking every edge")
		err := c.VerifyMesh(cmd.Context(), request, v.take)
		stop()
		if err != nil {
			return untried{err} // another one may be running, which says nothing of the mesh
		}
		v.sort()
		if junit != "" {
			if err := v.writeJUnit(junit); err != nil {
				return err
			}
		}
		return a.showVerification(v)
	})
	return cmd
}

// A verification is what came of one, as it is told.
type verification struct {
	Plan    api.VerifyPlan     `json:"plan"`
	Results []verifyResult     `json:"results"`
	Missed  []api.VerifyMissed `json:"missed"`
	Summary verifySummary      `json:"summary"`
}

// A verifyResult is one with the host that it was tried from.
type verifyResult struct {
	Host string `json:"host"`
	api.VerifyResult
}

type verifySummary struct {
	Checks       int `json:"checks"`
	OK           int `json:"ok"`
	Failed       int `json:"failed"`
	Warnings     int `json:"warnings"`
	Inconclusive int `json:"inconclusive"`
}

func (v *verification) take(l *api.VerifyLine) error {
	switch {
	case l.Plan.Run != "":
		v.Plan = l.Plan
	case l.Done.Missed != nil:
		v.Missed = l.Done.Missed
	}
	for _, r := range l.Results {
		v.Results = append(v.Results, verifyResult{l.Host, r})
		v.Summary.Checks++
		switch r.Outcome {
		case api.Ok:
			v.Summary.OK++
		case api.Failed:
			v.Summary.Failed++
		case api.Warning:
			v.Summary.Warnings++
		default:
			v.Summary.Inconclusive++
		}
	}
	return nil
}

func (v *verification) sort() {
	if v.Results == nil {
		v.Results = []verifyResult{}
	}
	slices.SortStableFunc(v.Results, func(x, y verifyResult) int {
		return cmp.Or(cmp.Compare(x.Caller, y.Caller), cmp.Compare(x.Callee, y.Callee), cmp.Compare(x.Host, y.Host), cmp.Compare(x.Endpoint, y.Endpoint))
	})
}

// attacks are what checks are called, in the order of the table. The first is the
// control.
var attacks = []struct{ title, checks string }{
	{"the allowed call", "control"},
	{"no client certificate", "no_certificate"},
	{"certificate of a foreign or look-alike CA", "foreign_ca look_alike_ca"},
	{"certificate expired, or not valid yet", "expired not_yet_valid"},
	{"certificate for servers, or of two names", "wrong_usage two_names"},
	{"certificate of nobody in the mesh", "stranger"},
	{"certificate for probes, elsewhere", "probe_misused"},
	{"right certificate, forbidden caller", "wrong_identity"},
	{"right caller, forbidden request", "wrong_request"},
	{"banned identity", "banned"},
	{"session from before the ban", "resumed_after_ban"},
	{"connection from before the ban", "cut_by_ban"},
	{"plaintext", "plaintext"},
	{"TLS 1.1 and 1.2", "tls_1_1 tls_1_2"},
	{"application beside its sidecar", "app_port"},
	{"the same, from its own host", "app_port_local"},
	{"impostor in the callee's place", "impostor_name impostor_alike"},
}

// showVerification is the table, what is wrong line by line, and the verdict.
func (a *app) showVerification(v *verification) error {
	verdict := v.verdict()
	if a.term.JSON() {
		if err := a.term.Document("verification", v); err != nil {
			return err
		}
		return verdict
	}
	t := a.term
	t.Printf("%s, revision %d: %s, attacked from %s\n", v.Plan.TrustDomain, v.Plan.Revision, term.Count(v.Plan.Edges, "edge"), strings.Join(v.Plan.Hosts, ", "))
	ok, all := v.count("control", api.Ok)
	switch {
	case ok == all && all > 0:
		t.Printf("control: the allowed call was allowed %d of %d times, so a refusal below means something\n\n", ok, all)
	default:
		t.Printf("control: the allowed call was allowed %d of %d times; where it was not, nothing below counts\n\n", ok, all)
	}
	t.Table(v.table())
	t.Printf("\n")
	v.details(t)
	s := v.Summary
	switch {
	case verdict == nil:
		t.Printf("%s  %s made, none got through%s\n", t.Paint(term.Good, "PASS"), term.Count(s.Checks, "check"), warned(s.Warnings))
	case errors.Is(verdict, errNo):
		t.Printf("%s  %s%s%s\n", t.Paint(term.Bad, "FAIL"), v.failure(), warned(s.Warnings), v.untried())
	default:
		t.Printf("%s  none of %s got through%s%s\n", t.Paint(term.Warn, "INCONCLUSIVE"), term.Count(s.Checks, "check"), warned(s.Warnings), v.untried())
	}
	return verdict
}

// failure is what failed: attacks that got through, and allowed calls that did not.
func (v *verification) failure() string {
	refused, _ := v.count("control", api.Failed)
	var parts []string
	if n := v.Summary.Failed - refused; n > 0 {
		parts = append(parts, fmt.Sprintf("%d of %s got through", n, term.Count(v.Summary.Checks, "check")))
	}
	if refused > 0 {
		parts = append(parts, term.Count(refused, "allowed call")+" failed")
	}
	return strings.Join(parts, ", ")
}

func warned(n int) string {
	if n == 0 {
		return ""
	}
	return ", " + term.Count(n, "warning")
}

func (v *verification) untried() string {
	switch n := v.Summary.Inconclusive; {
	case n > 0:
		return fmt.Sprintf(", %d could not be tried, which is no pass", n)
	case len(v.Missed) > 0:
		return ", and not all could be tried, which is no pass"
	}
	return ""
}

// verdict is the command's error.
func (v *verification) verdict() error {
	switch {
	case v.Summary.Failed > 0:
		return errNo
	case v.Summary.Inconclusive > 0 || len(v.Missed) > 0 || v.Summary.Checks == 0:
		return said{errInconclusive}
	}
	return nil
}

// count is how many of the checks came out so, and how many there are.
func (v *verification) count(checks string, outcome api.VerifyResultOutcome) (n, all int) {
	for _, r := range v.Results {
		if slices.Contains(strings.Fields(checks), r.Check) {
			all++
			if r.Outcome == outcome {
				n++
			}
		}
	}
	return n, all
}

// table is one line an attack, the control not among them.
func (v *verification) table() *term.Table {
	tab := &term.Table{Columns: []term.Column{{}, {Title: "ATTACK", Min: 16}, {Title: "REFUSED", Right: true}, {Title: "GOT THROUGH", Min: 12}}}
	if v.Summary.Inconclusive > 0 {
		tab.Columns = append(tab.Columns, term.Column{Title: "NOT TRIED", Min: 12, Drop: 1})
	}
	for _, at := range attacks[1:] {
		refused, all := v.count(at.checks, api.Ok)
		if all == 0 {
			continue
		}
		through := append(v.callees(at.checks, api.Failed), v.callees(at.checks, api.Warning)...)
		untried := v.callees(at.checks, api.Inconclusive)
		mark := term.OK
		failed, _ := v.count(at.checks, api.Failed)
		switch {
		case failed > 0:
			mark = term.No
		case len(untried) > 0:
			mark = term.Unknown
		case len(through) > 0:
			mark = term.Look
		}
		cells := []any{mark, at.title, fmt.Sprintf("%d/%d", refused, all), few(through)}
		if v.Summary.Inconclusive > 0 {
			cells = append(cells, few(untried))
		}
		tab.Row(cells...)
	}
	return tab
}

// few names services briefly, which are told one by one below the table.
func few(names []string) string {
	if len(names) > 2 {
		return fmt.Sprintf("%s and %d more", names[0], len(names)-1)
	}
	return strings.Join(names, " ")
}

// callees are where checks came out so.
func (v *verification) callees(checks string, outcome api.VerifyResultOutcome) (names []string) {
	for _, r := range v.Results {
		if r.Outcome == outcome && slices.Contains(strings.Fields(checks), r.Check) && !slices.Contains(names, r.Callee) {
			names = append(names, r.Callee)
		}
	}
	slices.Sort(names)
	return names
}

// details are the results that somebody has to look at. Where a control did not work,
// what depends on it is not listed.
func (v *verification) details(t *term.Terminal) {
	shown, seen, blind := 0, map[string]bool{}, map[[4]string]bool{}
	place := func(r verifyResult) [4]string { return [4]string{r.Caller, r.Callee, r.Host, r.Endpoint} }
	for _, r := range v.Results {
		blind[place(r)] = blind[place(r)] || r.Check == "control" && r.Outcome != api.Ok
	}
	for _, r := range v.Results {
		if r.Outcome == api.Ok || blind[place(r)] && r.Check != "control" {
			continue
		}
		line := fmt.Sprintf("%s -> %s   %s: %s", r.Caller, r.Callee, checkTitle(r.Check), r.Detail)
		if r.Check == "app_port" || r.Check == "app_port_local" { // whoever calls it
			line = fmt.Sprintf("%s   %s: %s", r.Callee, checkTitle(r.Check), r.Detail)
		}
		if seen[line] {
			continue
		}
		seen[line], shown = true, shown+1
		mark := map[api.VerifyResultOutcome]term.Mark{api.Failed: term.No, api.Warning: term.Look}[r.Outcome]
		if mark == term.None {
			mark = term.Unknown
		}
		t.Printf("  %s  %s\n", t.Mark(mark), line)
		where := "from " + r.Host
		if r.Endpoint != "" {
			where += ", at " + r.Endpoint
		}
		if r.Line > 0 {
			where += fmt.Sprintf(", allowed in %s:%d", local(r.File), r.Line)
		}
		t.Printf("      %s\n", where)
		if r.Help != "" {
			t.Printf("      help: %s\n", r.Help)
		}
	}
	for _, m := range v.Missed {
		shown++
		t.Printf("  %s  not tried from %s: %s\n", t.Mark(term.Unknown), m.Host, m.Why)
	}
	if shown > 0 {
		t.Printf("\n")
	}
}

// checkTitle is what a single check is called.
func checkTitle(check string) string { return strings.ReplaceAll(check, "_", " ") }
