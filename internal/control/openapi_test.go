package control_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control"
)

// An operation is one of the OpenAPI document.
type operation struct {
	method, path string
	params       []string // of the query
	body         bool
}

var (
	pathLine   = regexp.MustCompile(`^  (/v1/\S*):$`)
	methodLine = regexp.MustCompile(`^    (get|post|put|patch|delete):$`)
	refLine    = regexp.MustCompile(`#/components/parameters/(\w+)`)
	nameLine   = regexp.MustCompile(`name: (\w+)`)
)

// operations reads the OpenAPI document, which is written in one layout.
func operations(t testing.TB) (ops []operation) {
	t.Helper()
	text, err := os.ReadFile("api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	paths, components, _ := strings.Cut(string(text), "\ncomponents:\n")
	path, name := "", ""
	for line := range strings.Lines(paths) {
		line = strings.TrimRight(line, "\n")
		if m := pathLine.FindStringSubmatch(line); m != nil {
			path = m[1]
		}
		if m := methodLine.FindStringSubmatch(line); m != nil {
			ops = append(ops, operation{method: strings.ToUpper(m[1]), path: path})
		}
		if len(ops) == 0 {
			continue
		}
		op := &ops[len(ops)-1]
		if m := nameLine.FindStringSubmatch(line); m != nil {
			name = m[1]
		}
		if strings.Contains(line, "in: query") {
			op.params = append(op.params, name)
		}
		if m := refLine.FindStringSubmatch(line); m != nil {
			_, def, _ := strings.Cut(components, "\n    "+m[1]+":")
			op.params = append(op.params, nameLine.FindStringSubmatch(def)[1])
		}
		op.body = op.body || strings.Contains(line, "requestBody:")
	}
	return ops
}

func TestEveryOperationIsAnswered(t *testing.T) {
	t.Parallel()
	ops := operations(t)
	if len(ops) != 31 {
		t.Fatalf("%d operations in the document", len(ops))
	}
	for _, op := range ops {
		t.Run(op.method+op.path, func(t *testing.T) {
			t.Parallel()
			h := newServer(t)
			target := strings.NewReplacer("{number}", "1", "{id}", "a", "{log}", "server").Replace(op.path)
			send := func(query, body string) *httptest.ResponseRecorder {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				return try(h, newRequest(op.method, target+query, body).WithContext(ctx))
			}
			body := ""
			if op.body {
				body = "{}"
			}
			if w := send("", body); w.Code >= 300 {
				if p := problem(t, w); w.Code == http.StatusMethodNotAllowed || w.Code >= 500 || strings.Contains(p.Detail, "admin API") {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
			} else if !json.Valid(w.Body.Bytes()) && w.Body.Len() > 0 {
				t.Errorf("got %q", w.Body)
			}
			for _, name := range op.params {
				// What is wrong with the value may be said, but not that the name is unknown.
				if w := send("?"+name+"=", body); strings.Contains(w.Body.String(), "of this operation") {
					t.Errorf("parameter %s: %s", name, w.Body)
				}
			}
			if w := send("?no_such_parameter=1&from=1&to=1", body); w.Code != 400 || !strings.Contains(problem(t, w).Detail, "of this operation") {
				t.Errorf("an unknown parameter got %d %s", w.Code, w.Body)
			}
			wrong := `{"no_such_field":1}`
			if w := send("", wrong); w.Code != 400 || problem(t, w).Code == "" {
				t.Errorf("an unknown field got %d %s", w.Code, w.Body)
			}
		})
	}
}

func TestEveryParameterOfTheDocumentIsFound(t *testing.T) {
	t.Parallel()
	for _, op := range operations(t) {
		if op.path == "/v1/audit/tail" && len(op.params) != 11 || op.path == "/v1/why" && !slices.Equal(op.params, []string{"decision", "from", "to", "method", "path"}) {
			t.Errorf("%s has %v", op.path, op.params)
		}
	}
}

func FuzzHandler(f *testing.F) {
	for _, op := range operations(f) {
		f.Add(op.method, strings.NewReplacer("{number}", "1", "{id}", "a", "{log}", "server").Replace(op.path), "", `{"name":"p","text":"trust_domain: shop.example\n"}`, "application/json")
	}
	f.Add("POST", "/v1/config/rollback", "", `{"to":1,"expect":-1}`, "application/json")
	f.Add("POST", "/v1/keys", "", `{"name":"n","scopes":["a"],"expires_in":1}`, "application/json; charset=utf-8")
	f.Add("GET", "/v1/why", "from=web&to=orders&method=GET&path=/a", "", "")
	f.Add("GET", "/v1/audit/events", "since=2026-11-23T12:00:00Z&limit=3&cursor=1", "", "")
	f.Add("GET", "/v1/audit/tail", "last=3&follow=false", "", "")
	h := newServer(f)
	if w := try(h, newRequest("POST", "/v1/config", `{"name":"p","text":`+quoted(meshFile)+`}`)); w.Code != 200 {
		f.Fatalf("%d %s", w.Code, w.Body)
	}
	handler := control.AsPeer(h.server.Handler(), 0)
	f.Fuzz(func(t *testing.T, method, path, query, body, media string) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // a tail that follows
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, "http://parley/", strings.NewReader(body))
		if err != nil {
			t.Skip()
		}
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header.Set("Content-Type", media)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
		if w.Code >= 300 {
			problem(t, w)
		}
	})
}

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}
