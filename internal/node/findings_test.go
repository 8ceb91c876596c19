package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
)

// TestWhatTheHostDoesNotHaveIsAFinding: a mistyped selector is told at apply and
// in status, and recorded once; what appears settles it.
func TestWhatTheHostDoesNotHaveIsAFinding(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	exe := filepath.Join(dir, "orders")
	text := func(user string) string {
		return fmt.Sprintf("trust_domain: node.example\nservices:\n  web: {runs_as: {user: %s}}\n  orders: {runs_as: {user: \"0\", exe: %s}}\n", user, exe)
	}
	m := startNode(t, dir, text("root"))
	missing := func(all []api.Finding) (out []string) {
		for _, f := range all {
			if f.Code == string(fault.SelectorMissing) && f.Help != "" {
				out = append(out, f.Message)
			}
		}
		return out
	}
	want := func(what string, got []api.Finding, parts ...string) {
		t.Helper()
		all := missing(got)
		for i, p := range parts {
			if len(all) != len(parts) || !strings.Contains(all[i], p) {
				t.Fatalf("%s: %q, want %q", what, all, parts)
			}
		}
		if len(all) != len(parts) {
			t.Errorf("%s: %q, want %q", what, all, parts)
		}
	}
	status := func() []api.Finding {
		t.Helper()
		s, err := m.api.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Findings
	}
	apply := func(user string) []api.Finding {
		t.Helper()
		r, err := m.api.Apply(t.Context(), api.ApplyRequest{Name: "parley.yaml", Text: text(user)})
		if err != nil || !r.Running {
			t.Fatal(r, err)
		}
		return r.Findings
	}
	noExe, noUser := "can be orders: there is no file \""+exe+"\"", "can be web: there is no user nosuchuser"
	want("applied", apply("nosuchuser"), noExe, noUser)
	want("status", status(), noExe, noUser)
	if err := os.WriteFile(exe, []byte("\x7fELF"), 0o755); err != nil {
		t.Fatal(err)
	}
	want("the file appeared", status(), noUser)
	want("corrected", apply("root"))
	want("status of what was corrected", status())
	events, err := m.api.Events(t.Context(), api.ListEventsParams{Action: "finding"})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(slices.DeleteFunc(events.Items, func(e api.Entry) bool { return !strings.Contains(string(e.Event), string(fault.SelectorMissing)) })); n != 2 {
		t.Errorf("%d findings are recorded, want each once", n)
	}
}
