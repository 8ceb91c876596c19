package node_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/logging/xtest"
)

// loud is a log at debug.
type loud struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *loud) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *loud) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// TestNoPayloadIsKept: what goes over an allowed TCP connection is in no log, event or
// file, with each connection logged at debug.
func TestNoPayloadIsKept(t *testing.T) {
	t.Parallel()
	const secret = "Kn4rV0geL+s3cr/t=Qz7wX-m2"
	dir, log := shortDir(t), &loud{}
	text := fmt.Sprintf(appMesh, executable(t), freeAddr(t), echoLines(t), strconv.Itoa(os.Getuid()), freePort(t))
	cfg := config(t, dir, text)
	cfg.Logger = logging.New(log, logging.JSON, slog.LevelDebug, clock.System{})
	m := startWith(t, cfg)
	m.apply(text)
	st, err := m.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range st.Listeners {
		if l.End != "outbound" {
			continue
		}
		c, err := net.Dial("tcp", l.Address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte(secret + "\n")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(secret))
		if n, err := c.Read(got); err != nil || string(got[:n]) != secret {
			t.Fatalf("%q, %v", got[:n], err)
		}
		c.Close()
	}
	soon(t, "both ends are logged", func() bool { return bytes.Count(log.bytes(), []byte(`"msg":"call"`)) >= 2 })
	canary := xtest.NewCanary(secret)
	clean := func(what string, data []byte) {
		if in := canary.In(data); in != "" {
			t.Errorf("%s has the payload: %s", what, in)
		}
	}
	clean("the log", log.bytes())
	soon(t, "both ends are on record", func() bool {
		list, err := m.api.Events(t.Context(), api.ListEventsParams{Action: "call", Limit: 100})
		return err == nil && len(list.Items) >= 2
	})
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		clean(path, data)
		return err
	}); err != nil {
		t.Error(err)
	}
}
