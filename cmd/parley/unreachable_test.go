package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestUnreachable: without a server every question ends with exit code 3 and the
// command that starts one; that is never the answer "no". Of a mesh file that is
// wrong by itself one is told first, so the file here is not.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "none")
	for _, q := range questions {
		q.args = strings.ReplaceAll(q.args, "testdata/mesh/parley.yaml", "testdata/mesh/good.yaml")
		out, errs, exit := ask(t, socket, q.args, false, false, 0)
		if exit != 3 || out != "" || !strings.Contains(errs, "error[PAR-5001]") || !strings.Contains(errs, "hint: start one: parley dev") {
			t.Errorf("parley %s: exit code %d\n%s%s", q.args, exit, out, errs)
		}
	}
}
