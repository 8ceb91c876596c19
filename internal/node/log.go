package node

import (
	"log"
	"log/slog"

	"github.com/parleymesh/parley/internal/fleet/link"
	"github.com/parleymesh/parley/internal/logging"
)

// LogTo sends what libraries log on their own, which they otherwise do on standard
// error as they like, to logger. It is for the whole process, and is called before
// anything runs.
func LogTo(logger *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(logging.Remarks(logger, "library").Writer())
	link.LogTo(logger)
}
