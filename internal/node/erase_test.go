package node_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// A person who called through the gateway is found at both ends, and once erased is
// in none of the server's files, while every hash is what it was.
func TestErasedPersonIsGone(t *testing.T) {
	t.Parallel()
	k := newKeyServer(t, nil)
	edge, app := freeAddr(t), httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(app.Close)
	text := fmt.Sprintf(issuerMesh, freeAddr(t), app.Listener.Addr(), edge, k.URL, k.ca)
	m := startWith(t, config(t, shortDir(t), text))
	m.apply(text)
	now := time.Now()
	const person = "needle-of-a-person"
	token, err := jose.SignAccess(k.key, "k", identity.Token{
		Issuer: "https://id.example", Subject: person, ClientID: "shop", Audiences: []string{"site"}, Expires: now.Add(5 * time.Minute),
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	if status, code := edgeClient(t, m, edge, clock.System{})(token); status != http.StatusNotFound {
		t.Fatal(status, code)
	}
	found, err := m.api.Events(t.Context(), api.ListEventsParams{Subject: person})
	if err != nil || len(found.Items) != 2 {
		t.Fatalf("%+v, %v", found, err)
	}
	before, err := m.api.Verify(t.Context())
	if err != nil || !before.Intact || len(traces(t, m.dir, person)) == 0 {
		t.Fatalf("%+v, %v", before, err)
	}

	r, err := m.api.Erase(t.Context(), api.EraseRequest{Subject: person, Issuer: "https://id.example"})
	if err != nil || r.Events != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	if files := traces(t, m.dir, person); len(files) > 0 {
		t.Errorf("still in %q", files)
	}
	for _, was := range found.Items {
		e, err := audit.Decode(was.Event)
		if err != nil {
			t.Fatal(err)
		}
		now, err := m.api.Event(t.Context(), e.ID)
		if err != nil || now.Leaf != was.Leaf || !bytes.Equal(now.Event, audit.Committed(was.Event)) {
			t.Errorf("%+v, %v", now, err)
		}
	}
	after, err := m.api.Verify(t.Context())
	if err != nil || !after.Intact {
		t.Errorf("%+v, %v", after, err)
	}
	if found, err = m.api.Events(t.Context(), api.ListEventsParams{Subject: person}); err != nil || len(found.Items) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

// traces are the server's files that hold text. The agent's own log is not the
// server's.
func traces(t *testing.T, dir, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, filepath.Join(dir, "agent")) {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
