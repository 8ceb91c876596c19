package link

import (
	"io"
	"log/slog"

	"google.golang.org/grpc/grpclog"

	"github.com/parleymesh/parley/internal/logging"
)

// LogTo sends what gRPC reports as errors to logger, for the whole process: it has no
// log of one server or client, and writes to standard error otherwise. It is called
// before any other function of gRPC.
func LogTo(logger *slog.Logger) {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, logging.Remarks(logger, "grpc").Writer()))
}
