package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The report of a run in which one check got through, one could not be tried, and
// one host was missing.
func TestJUnit(t *testing.T) {
	t.Parallel()
	for name, exit := range map[string]int{"verify_fail": 1, "verify_inconclusive": 3} {
		path := filepath.Join(t.TempDir(), "verify.xml")
		out, errs, code := ask(t, serve(t, name+".json"), "verify --junit "+path, false, false, 0)
		if code != exit {
			t.Errorf("%s: exit code %d\n%s%s", name, code, out, errs)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+"_junit", string(got))
	}
	socket := serve(t, "verify_fail.json")
	if _, errs, code := ask(t, socket, "verify --junit /no/such/place.xml", false, false, 0); code != 2 {
		t.Errorf("a file that cannot be written: %d %s", code, errs)
	}
	// A reply that was cut is no pass.
	if out, errs, code := ask(t, serve(t, "verify_cut.json"), "verify", false, false, 0); code != 3 || out != "" || !strings.Contains(errs, "before its end") {
		t.Errorf("cut off: %d %s%s", code, out, errs)
	}
	for _, args := range []string{"--within 0s", "--within 2h", "a b c"} {
		if _, errs, code := ask(t, socket, "verify "+args, false, false, 0); code != 2 {
			t.Errorf("%s: %d %s", args, code, errs)
		}
	}
}
