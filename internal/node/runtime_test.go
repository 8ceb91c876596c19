package node_test

import (
	"testing"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/node"
)

// Only the demo's own executables are meant to be their user's.
func TestOnlyTheDemosFindingsAreExpected(t *testing.T) {
	t.Parallel()
	demo := `user ana, as which the service runs, may replace its own executable "/d/bin/web": it may write "/d"`
	for name, tt := range map[string]struct {
		bin  string
		f    api.Finding
		want bool
	}{
		"the demo's":           {"/d/bin", api.Finding{Code: "PAR-2008", Message: demo}, true},
		"no demo":              {"", api.Finding{Code: "PAR-2008", Message: demo}, false},
		"another directory's":  {"/d/bi", api.Finding{Code: "PAR-2008", Message: demo}, false},
		"another executable":   {"/d", api.Finding{Code: "PAR-2008", Message: `may replace its own executable "/srv/x": it may write "/d/bin"`}, false},
		"another kind of want": {"/d/bin", api.Finding{Code: "PAR-2007", Message: demo}, false},
	} {
		if got := node.Expected(tt.bin, []api.Finding{tt.f})[0].Expected != ""; got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
