package node_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
)

// Two services of another host observe, by HTTP and by TCP: who comes without TLS is
// let in, told to the server, and cut at the date without another revision, while the
// calls of the mesh go on.
func TestPlaintextOfAnotherHost(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", 200)
	st := f.status()
	addr := func(service string) string {
		for _, l := range st.Listeners {
			if l.Name == service+".inbound" {
				_, port, _ := net.SplitHostPort(l.Address)
				return "127.0.0.1:" + port
			}
		}
		t.Fatalf("no inbound of %s: %+v", service, st.Listeners)
		return ""
	}
	site, lines := addr("site"), addr("lines")
	plainly := func() (int, error) {
		c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + site + "/plain")
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	if status, err := plainly(); err == nil {
		t.Fatalf("strict, and answered %d", status)
	}
	until := time.Now().Add(9 * time.Second).Truncate(time.Second)
	observed := strings.ReplaceAll(f.text, "inbound: {listen", fmt.Sprintf("inbound: {plaintext: observe, plaintext_until: %q, listen", until.UTC().Format(time.RFC3339)))
	f.apply(observed)
	for range 3 {
		if status, err := plainly(); err != nil || status != 200 {
			t.Fatalf("got %d, %v", status, err)
		}
	}
	kept, err := net.Dial("tcp", lines)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	_ = kept.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(kept, "hello\n")
	in := bufio.NewReader(kept)
	if line, err := in.ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	var seen []api.PlaintextStatus
	for range 100 {
		if seen = f.status().Plaintext; len(seen) == 2 && len(seen[0].Sources) == 1 && len(seen[1].Sources) == 1 && seen[1].Sources[0].Calls == 3 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(seen) != 2 || seen[1].Service != "site" || !seen[1].Until.Equal(until) || len(seen[1].Sources) != 1 {
		t.Fatalf("seen %+v", seen)
	}
	if s := seen[1].Sources[0]; s.Address != "127.0.0.1" || s.Host != "b" || s.Calls != 3 || s.First.IsZero() || s.Last.Before(s.First) {
		t.Errorf("seen %+v", s)
	}
	if found := f.status().Findings; !slices.ContainsFunc(found, func(x api.Finding) bool { return x.Code == "plaintext_observed" }) {
		t.Errorf("findings %+v", found)
	}

	if edges := f.status().Edges; !slices.ContainsFunc(edges, func(e api.EdgeStatus) bool {
		return e.From == "" && e.To == "site" && e.Protection == "plain" && e.Calls == 3
	}) {
		t.Errorf("edges %+v", edges)
	}

	rest, err := io.ReadAll(in) // until it is cut
	if late := time.Since(until); err == nil || len(rest) > 0 || late < 0 || late > 5*time.Second {
		t.Errorf("the open connection got %q, %v, %s after the end", rest, err, late)
	}
	if status, err := plainly(); err == nil {
		t.Errorf("after the end, and answered %d", status)
	}
	f.wants("a call of the mesh", "GET", 200)
	ended := 0
	for range 100 {
		page, err := f.api.Events(t.Context(), api.ListEventsParams{Action: "plaintext.ended"})
		if err != nil {
			t.Fatal(err)
		}
		if ended = len(page.Items); ended == 2 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if ended != 2 {
		t.Errorf("%d listeners are on record as ended, want 2", ended)
	}
}

func (f *fleet) status() *api.Status {
	f.t.Helper()
	st, err := f.api.Status(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}

// While real sidecars let plaintext in, a verification says exactly that, and sends
// nothing that an application would get: everything with TLS is refused as ever.
func TestVerifyOfObservedPlaintext(t *testing.T) {
	t.Parallel()
	f := startFleet(t)
	host(t, hostConfig(t, shortDir(t), f.token("a")))
	host(t, hostConfig(t, shortDir(t), f.token("b")))
	f.wants("at first", "GET", 200)
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	f.apply(strings.ReplaceAll(f.text, "inbound: {listen", fmt.Sprintf("inbound: {plaintext: observe, plaintext_until: %q, listen", until)))
	v := f.verify(t)
	if want := []string{"lines plaintext failed", "site plaintext failed"}; !slices.Equal(v.bare(), want) || len(v.missed) > 0 || !strings.Contains(v.lines[0], "lets plaintext in until "+until) {
		t.Errorf("got %q, missed %v", v.lines, v.missed)
	}
	for _, p := range f.status().Plaintext {
		if len(p.Sources) > 0 {
			t.Errorf("the verification came without TLS: %+v", p)
		}
	}
	f.apply(f.text)
	if v := f.verify(t); v.lines != nil || len(v.missed) > 0 {
		t.Errorf("strict again: %q, missed %v", v.lines, v.missed)
	}
}
