package policy_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

const revision = 7

// golden is one file of testdata: targets, rules, queries and what they decide.
type golden struct {
	targets []string
	rules   []policy.Rule
	queries []goldenQuery
}

type goldenQuery struct {
	line  int
	text  string
	query policy.Query
	want  policy.Decision
}

func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			g := readGolden(t, file)
			set, err := policy.Compile(revision, g.targets, g.rules)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range g.queries {
				if diff := cmp.Diff(q.want, set.Decide(q.query)); diff != "" {
					t.Errorf("%s:%d: %s (-want +got)\n%s", file, q.line, q.text, diff)
				}
				if got := set.Explain(q.query).Decision; got != q.want {
					t.Errorf("%s:%d: Explain decides %+v", file, q.line, got)
				}
			}
		})
	}
}

func readGolden(t *testing.T, file string) *golden {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := &golden{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		switch {
		case len(fields) == 0:
		case fields[0] == "target" && len(fields) == 2:
			g.targets = append(g.targets, fields[1])
		case fields[0] == "rule" && len(fields) >= 3:
			g.rules = append(g.rules, parseRule(t, fields[1:]))
		case fields[0] == "query" && len(fields) == 8:
			q := parseQuery(t, fields[1:])
			q.line, q.text = n, lines.Text()
			g.queries = append(g.queries, q)
		default:
			t.Fatalf("%s:%d: %q", file, n, lines.Text())
		}
	}
	if len(g.queries) == 0 {
		t.Fatalf("%s: no queries", file)
	}
	return g
}

func parseRule(t *testing.T, fields []string) policy.Rule {
	t.Helper()
	r := policy.Rule{ID: fields[0], Target: fields[1]}
	for _, f := range fields[2:] {
		key, value, _ := strings.Cut(f, "=")
		for v := range strings.SplitSeq(value, ",") {
			switch key {
			case "from":
				r.From = append(r.From, workload(t, v))
			case "methods":
				r.Methods = append(r.Methods, v)
			case "paths":
				r.Paths = append(r.Paths, v)
			case "any":
				kind, scopes, ok := strings.Cut(strings.TrimSuffix(v, ")"), "(")
				q := policy.Requirement{Kind: policy.RequirementKind(kind)}
				if q.Kind == policy.JWT {
					q.Issuer, scopes, _ = strings.Cut(scopes, ":")
					q.Audience, scopes, ok = strings.Cut(scopes, ":")
				}
				if ok {
					q.Scopes = strings.Split(scopes, "+")
				}
				r.Any = append(r.Any, q)
			default:
				t.Fatalf("rule %s: %q", r.ID, f)
			}
		}
	}
	return r
}

func parseQuery(t *testing.T, fields []string) goldenQuery {
	t.Helper()
	q := goldenQuery{query: policy.Query{Target: fields[0], Caller: parseCaller(t, fields[1])}}
	if fields[3] != "-" {
		q.query.Method, q.query.Path = fields[2], fields[3]
	}
	q.want = policy.Decision{Allow: fields[4] == "allow", Rule: fields[5], Reason: policy.Reason(fields[6]), Revision: revision}
	if q.want.Rule == "-" {
		q.want.Rule = ""
	}
	return q
}

func parseCaller(t *testing.T, s string) (c identity.Caller) {
	t.Helper()
	if s == "nobody" {
		return c
	}
	s, token, hasToken := strings.Cut(s, "jwt:")
	if s = strings.TrimSuffix(s, "&"); hasToken {
		parts := strings.Split(token+"::", ":")
		c.Token = &identity.Token{Issuer: parts[0], Audiences: strings.Split(parts[1], "+"), Scopes: strings.Split(parts[2], "+")}
	}
	name, key, hasKey := strings.Cut(s, "key:")
	if name = strings.TrimSuffix(name, "+"); name != "" {
		c.Workload = workload(t, name)
	}
	if hasKey {
		id, scopes, _ := strings.Cut(key, ":")
		c.KeyID = id
		if scopes != "" {
			c.Scopes = strings.Split(scopes, "+")
		}
	}
	return c
}

func workload(tb testing.TB, name string) identity.ID {
	tb.Helper()
	id, err := identity.ParseID("spiffe://shop.example/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}
