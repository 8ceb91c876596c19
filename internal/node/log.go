package node

import (
	"context"
	"log"
	"log/slog"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/logging"
	"github.com/parleymesh/parley/internal/node/server"
)

// LogTo sends what libraries log on their own, which they otherwise do on standard
// error as they like, to logger. It is for the whole process, and is called before
// anything runs.
func LogTo(logger *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(logging.Remarks(logger, "library").Writer())
	link.LogTo(logger)
}

// logs are those of the processes of the mesh.
type logs struct {
	server *server.Server
	own    *logging.Levels // nil where they are fixed
}

// LogLevels implements control.Logs.
func (l logs) LogLevels() []api.LogLevel {
	own := api.LogLevel{Process: "server"}
	if l.own == nil {
		own.Note = "what this process logs is fixed"
	} else {
		now, _ := l.own.State()
		own.Level, own.Normal, own.Until = logging.LevelName(now.Level), logging.LevelName(now.Normal), now.Until.UTC()
	}
	all := []api.LogLevel{own}
	for _, h := range l.server.Fleet().Hosts() {
		if h.Local {
			continue
		}
		a := api.LogLevel{Process: "agent", Host: h.Name, Level: h.Level.Level, Normal: h.Level.Normal, Until: h.Level.Until}
		switch {
		case !h.Connected:
			a = api.LogLevel{Process: "agent", Host: h.Name, Note: "its agent is not connected"}
		case a.Level == "" && !slices.Contains(h.Capabilities, link.LogLevels):
			a.Note = "its agent is too old to say, or to change it"
		}
		all = append(all, a)
	}
	return all
}

// SetLogLevel implements control.Logs.
func (l logs) SetLogLevel(ctx context.Context, host, level string, d time.Duration) error {
	if host != "" {
		return l.server.Fleet().SetLogLevel(ctx, host, level, d)
	}
	if l.own == nil {
		return fault.New(fault.NotRunning, "start it again with --log-level", "what this process logs is fixed")
	}
	if level == "" {
		l.own.Reset()
		return nil
	}
	to, err := logging.ParseLevel(level)
	if err == nil {
		l.own.Set(to, d)
	}
	return err
}
