package control_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

func request(text string) api.ApplyRequest {
	return api.ApplyRequest{Name: "parley.yaml", Text: text, Message: "why not"}
}

// wider lets web call one path more.
var wider = strings.Replace(meshFile, "paths: [/orders/**]", "paths: [/orders/**, /carts]", 1)

func TestApplyMakesTheFirstRevision(t *testing.T) {
	t.Parallel()
	h := serve(t)
	r := request(meshFile)
	r.Expect = new(int64)
	got, err := h.client.Apply(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != 1 || got.Previous != 0 || !got.Running || got.DryRun || got.Unchanged || len(got.Changes) == 0 {
		t.Errorf("result %+v", got)
	}
	if diff := cmp.Diff([]api.Port{{From: "web", To: "orders", Port: 15001}}, got.Ports); diff != "" {
		t.Error(diff)
	}
	if n, _ := h.runtime.running(); n != 1 {
		t.Errorf("revision %d runs", n)
	}
	rev, err := h.client.Revision(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if rev.Text != meshFile || rev.Message != "why not" || rev.Name != "parley.yaml" || rev.Actor == "" || len(rev.Digest) != 64 {
		t.Errorf("revision %+v", rev)
	}
	if diff := cmp.Diff([]audit.Action{audit.ConfigApplied}, h.actions()); diff != "" {
		t.Error(diff)
	}
}

func TestApplyThatIsRefusedChangesNothing(t *testing.T) {
	t.Parallel()
	two := int64(2)
	full := fault.New(fault.StoreFull, "free some", "no space left")
	taken := fault.New(fault.PortOccupied, "stop it", "another process listens on :9443")
	for _, c := range []struct {
		name    string
		request api.ApplyRequest
		store   error
		prepare error
		code    fault.Code
	}{
		{"syntax", request("services: ["), nil, nil, fault.MeshSyntax},
		{"unknown key", request(meshFile + "gatway: {}\n"), nil, nil, fault.MeshUnknownKey},
		{"other domain", request(strings.Replace(wider, "shop.example", "evil.example", 1)), nil, nil, fault.MeshValue},
		{"stale", api.ApplyRequest{Name: "parley.yaml", Text: wider, Expect: &two}, nil, nil, fault.Conflict},
		{"port taken", request(wider), nil, taken, fault.PortOccupied},
		{"disk full", request(wider), full, nil, fault.StoreFull},
		{"no name", api.ApplyRequest{Text: wider}, nil, nil, fault.BadRequest},
		{"not UTF-8", request(wider + "# \xff\n"), nil, nil, fault.MeshSyntax},
		{"escape in message", api.ApplyRequest{Name: "p", Text: wider, Message: "\x1b[2J"}, nil, nil, fault.BadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := applied(t)
			h.failWith(c.store)
			h.runtime.mu.Lock()
			h.runtime.prepare = c.prepare
			h.runtime.mu.Unlock()
			_, err := h.client.Apply(t.Context(), c.request)
			if faults := fault.All(err); len(faults) == 0 || faults[0].Code != c.code {
				t.Fatalf("got %v, want %s", err, c.code)
			}
			if n, _ := h.runtime.running(); n != 1 || len(h.revs) != 1 || len(h.actions()) != 1 {
				t.Errorf("revision %d runs, %d stored, %d events", n, len(h.revs), len(h.actions()))
			}
		})
	}
}

func TestApplyReportsEveryErrorWithItsPlace(t *testing.T) {
	t.Parallel()
	h := serve(t)
	_, err := h.client.Apply(t.Context(), request(strings.NewReplacer("calls:", "cals:", "allow:", "alow:").Replace(meshFile)))
	var list fault.List
	if !errors.As(err, &list) || len(list) < 3 {
		t.Fatalf("got %v", err)
	}
	for _, f := range list {
		if f.File != "parley.yaml" || f.Line == 0 || f.Code == "" {
			t.Errorf("a fault without its place: %+v", f)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	h := applied(t)
	r := request(wider)
	r.DryRun = true
	got, err := h.client.Apply(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if !got.DryRun || got.Running || got.Revision != 2 || got.Access.Wider == 0 || len(got.Changes) == 0 {
		t.Errorf("result %+v", got)
	}
	if n, _ := h.runtime.running(); n != 1 || len(h.revs) != 1 || len(h.actions()) != 1 {
		t.Errorf("a dry run left something: revision %d, %d stored, %v", n, len(h.revs), h.actions())
	}
}

func TestApplyOfTheSameFileMakesNoRevision(t *testing.T) {
	t.Parallel()
	h := applied(t)
	got, err := h.client.Apply(t.Context(), request(meshFile))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Unchanged || got.Revision != 1 || !got.Running || len(h.revs) != 1 {
		t.Errorf("result %+v, %d revisions", got, len(h.revs))
	}
	if n, _ := h.runtime.running(); n != 1 {
		t.Errorf("revision %d runs", n)
	}
	if a := h.actions(); len(a) != 2 {
		t.Errorf("the act is not on record: %v", a)
	}
}

func TestApplyThatCannotRunSaysSo(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.runtime.mu.Lock()
	h.runtime.refuse = fault.New(fault.PortOccupied, "", "another process listens on :9443")
	h.runtime.mu.Unlock()
	got, err := h.client.Apply(t.Context(), request(wider))
	if err != nil {
		t.Fatal(err)
	}
	if got.Running || got.Fault.Code != string(fault.NotRunning) || !strings.Contains(got.Fault.Message, ":9443") {
		t.Errorf("result %+v", got)
	}
	st, err := h.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !hasFinding(st, "revision_not_running") {
		t.Errorf("no finding in %+v", st.Findings)
	}
}

// What runs and has a listener that its host keeps closed is told, in full: but
// not to somebody who makes a key, which works all the same.
func TestApplySaysWhatIsNotOpen(t *testing.T) {
	t.Parallel()
	h := applied(t)
	held := api.ListenerStatus{Name: "orders.inbound", State: api.StateFailed, Note: "the app port is held by user nobody (65534), not by orders", Help: "see who has it: ss"}
	other := api.ListenerStatus{Name: "db.inbound", State: api.StateFailed, Note: "too"}
	h.runtime.listeners = []api.ListenerStatus{{Name: "a", State: api.StateOK}, {Name: "b", State: api.StateWaiting, Note: "draining"}}
	for name, c := range map[string]struct {
		add           []api.ListenerStatus
		message, hint string
	}{
		"none": {},
		"one": {
			[]api.ListenerStatus{held},
			"revision 1 is stored and does not run in full: orders.inbound is not open: the app port is held by user nobody (65534), not by orders",
			"see who has it: ss\nsee what runs: parley status",
		},
		"two": {[]api.ListenerStatus{other, held}, "revision 1 is stored and does not run in full: db.inbound is not open: too (and 1 more)", "see what runs: parley status"},
	} {
		h.runtime.mu.Lock()
		h.runtime.listeners = append(h.runtime.listeners[:2:2], c.add...)
		h.runtime.mu.Unlock()
		got, err := h.client.Apply(t.Context(), request(meshFile))
		if err != nil {
			t.Fatal(err)
		}
		want := api.Fault{Message: c.message, Help: c.hint}
		if c.message != "" {
			want.Code = string(fault.NotRunning)
		}
		if diff := cmp.Diff(want, got.Fault); diff != "" || !got.Running {
			t.Errorf("%s: running %t, %s", name, got.Running, diff)
		}
		if key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: name}); err != nil || key.Fault.Code != "" {
			t.Errorf("%s: a key is made with %v, %v", name, key, err)
		}
	}
}

// What the host says about the selectors is said at once: but not what was known
// of it before, nor for what does not run.
func TestApplySaysWhatItsHostLacks(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.runtime.findings = []api.Finding{{Code: string(fault.WritableByItself), Message: "known"}, {Code: string(fault.SelectorMissing), Message: "no user ordres"}}
	for _, dry := range []bool{false, true} {
		r := request(wider)
		r.DryRun = dry
		got, err := h.client.Apply(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var codes []string
		for _, f := range got.Findings {
			if strings.HasPrefix(f.Code, "PAR-2") {
				codes = append(codes, f.Code)
			}
		}
		if want := !dry; (len(codes) == 1 && codes[0] == string(fault.SelectorMissing)) != want || len(codes) > 1 {
			t.Errorf("dry run %t: %v", dry, got.Findings)
		}
	}
}

func TestRollbackAppliesTheOldText(t *testing.T) {
	t.Parallel()
	h := applied(t)
	if _, err := h.client.Apply(t.Context(), request(wider)); err != nil {
		t.Fatal(err)
	}
	got, err := h.client.Rollback(t.Context(), api.RollbackRequest{To: 1, Message: "back"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != 3 || got.Access.Narrower == 0 || !got.Running {
		t.Errorf("result %+v", got)
	}
	rev, err := h.client.Revision(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	if rev.Text != meshFile || rev.RollbackOf != 1 {
		t.Errorf("revision %+v", rev)
	}
	if a := h.actions(); a[len(a)-1] != audit.ConfigRolledBack {
		t.Errorf("recorded %v", a)
	}
	for _, to := range []int64{0, 9} {
		if _, err := h.client.Rollback(t.Context(), api.RollbackRequest{To: to}); len(fault.All(err)) != 1 {
			t.Errorf("rollback to %d: %v", to, err)
		}
	}
}

// A date that is over is refused of a new file and taken back of an old one, since it
// lets nobody in.
func TestApplyHoldsDatesAgainstTheClock(t *testing.T) {
	t.Parallel()
	h := applied(t)
	until := func(at time.Time) string {
		return strings.Replace(meshFile, "protocol: http}", fmt.Sprintf("protocol: http, plaintext: observe, plaintext_until: %q}", at.UTC().Format(time.RFC3339)), 1)
	}
	for what, text := range map[string]string{"ended": until(time.Now().Add(-time.Minute)), "180 days": until(time.Now().Add(200 * 24 * time.Hour))} {
		_, err := h.client.Apply(t.Context(), request(text))
		if f := fault.All(err); len(f) != 1 || f[0].Code != fault.MeshContradicts || f[0].Line != 8 || !strings.Contains(f[0].Message, what) || f[0].Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	soon := time.Now().Add(3 * time.Second)
	got, err := h.client.Apply(t.Context(), request(until(soon)))
	if err != nil {
		t.Fatal(err)
	}
	if got.Access.Wider != 1 || !slices.ContainsFunc(got.Findings, func(f api.Finding) bool { return f.Code == "plaintext_observed" && f.Line > 0 }) {
		t.Errorf("result %+v", got)
	}
	if _, err := h.client.Apply(t.Context(), request(meshFile)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(soon))
	got, err = h.client.Rollback(t.Context(), api.RollbackRequest{To: 2})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(got.Findings, func(f api.Finding) bool { return f.Code == "plaintext_over" }) {
		t.Errorf("result %+v", got)
	}
}

func TestOneOfManyAppliesWins(t *testing.T) {
	t.Parallel()
	h := applied(t)
	one := int64(1)
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() {
			r := request(wider + strings.Repeat("#\n", i))
			r.Expect = &one
			_, errs[i] = h.client.Apply(t.Context(), r)
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if f := fault.All(err); len(f) != 1 || f[0].Code != fault.Conflict {
			t.Errorf("lost with %v", err)
		}
	}
	if won != 1 || len(h.revs) != 2 {
		t.Errorf("%d won, %d revisions", won, len(h.revs))
	}
}

func TestHistoryIsPaged(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for i := range 4 {
		if _, err := h.client.Apply(t.Context(), request(wider+strings.Repeat("#\n", i))); err != nil {
			t.Fatal(err)
		}
	}
	var got []int64
	p := api.ListRevisionsParams{Limit: 2}
	for {
		list, err := h.client.Revisions(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.Items {
			got = append(got, r.Number)
		}
		if p.Cursor = list.Next; p.Cursor == "" {
			break
		}
	}
	if diff := cmp.Diff([]int64{5, 4, 3, 2, 1}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDiffComparesRevisions(t *testing.T) {
	t.Parallel()
	h := applied(t)
	if _, err := h.client.Apply(t.Context(), request(wider)); err != nil {
		t.Fatal(err)
	}
	d, err := h.client.Diff(t.Context(), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if d.From != 1 || d.To != 2 || d.Access != (api.Access{Wider: 1}) || len(d.Changes) == 0 {
		t.Errorf("diff %+v", d)
	}
	if d, err = h.client.Diff(t.Context(), 0, 1); err != nil || len(d.Changes) < 4 {
		t.Errorf("diff from nothing: %+v, %v", d, err)
	}
	if _, err = h.client.Diff(t.Context(), 1, 7); len(fault.All(err)) != 1 {
		t.Errorf("diff to nothing: %v", err)
	}
}

func hasFinding(st *api.Status, code string) bool {
	for _, f := range st.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}
