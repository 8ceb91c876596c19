package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/control/api"
)

// programVersion is what the two halves say of themselves.
type programVersion struct {
	Version   string       `json:"version"`
	Commit    string       `json:"commit,omitempty"`
	Built     string       `json:"built,omitempty"`
	GoVersion string       `json:"go_version"`
	Platform  string       `json:"platform"`
	Server    *api.Version `json:"server,omitempty"`
}

// version is this program's, from what the Go toolchain put into it.
func version() programVersion {
	v := programVersion{Version: "devel", GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.Built = s.Value
		}
	}
	return v
}

// wire is the version as the admin API tells it.
func (v programVersion) wire() api.Version {
	w := api.Version{Version: v.Version, Commit: v.Commit, GoVersion: v.GoVersion, API: 1}
	if built, err := time.Parse(time.RFC3339, v.Built); err == nil {
		w.Built = built
	}
	return w
}

// is says whether the server is of this version. Two builds from source without a
// version number differ by their commits.
func (v programVersion) is(server *api.Version) bool {
	return v.Version == server.Version && v.Commit == server.Commit
}

// serverPatience is how long `version` waits for a server that need not be there.
const serverPatience = time.Second

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "this program's version, and the server's if one answers",
		Example: "  parley version\n  parley version --json",
		Args:    arguments(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := version()
			v.Server = a.serverVersion(cmd.Context())
			if a.term.JSON() {
				return a.term.Document("version", v)
			}
			a.term.Printf("parley %s\n", v.Version)
			if v.Commit != "" {
				a.term.Printf("  commit    %s, %s\n", v.Commit, v.Built)
			}
			a.term.Printf("  built by  %s for %s\n", v.GoVersion, v.Platform)
			if v.Server != nil {
				a.term.Printf("  server    %s\n", v.Server.Version)
				if !v.is(v.Server) {
					a.term.Notef("The server runs another version. Upgrade it before its clients.\n")
				}
			}
			return nil
		},
	}
}

// serverVersion is nil where no server answers: the question was about this
// program first.
func (a *app) serverVersion(ctx context.Context) *api.Version {
	c, err := a.connect()
	if err != nil {
		return nil
	}
	defer c.Close()
	c.Timeout = min(c.Timeout, serverPatience)
	v, err := c.Version(ctx)
	if err != nil {
		return nil
	}
	return v
}
