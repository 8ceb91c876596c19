package main

import (
	"log/slog"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/dev"
)

// defaultDir is the data directory of `parley dev`, and where commands look for it.
const defaultDir = ".parley"

// devOptions are what `parley dev` was asked for.
type devOptions struct {
	// Dir is the data directory. MeshFile is a mesh file of the person's own; ""
	// is ./parley.yaml where that is there, and otherwise the built-in shop.
	Dir, MeshFile string
	// Store is the URL of a PostgreSQL database; "" is SQLite in Dir.
	Store string
	// Try makes the calls of the tour and ends; Fresh forgets what is in Dir first.
	Try, Fresh bool
	// PortBase is the first port of the shop; 0 is the one that it had, less than 0
	// a free range.
	PortBase int
	// Metrics is where metrics and health are served, host:port; "" is the usual
	// place.
	Metrics string
	// JSON writes documents, one a line.
	JSON bool
	// Logger is for what goes wrong behind what is said.
	Logger *slog.Logger
	// Terminal is where everything is said.
	Terminal *term.Terminal
	// debug breaks the mesh on purpose, in tests.
	debug dev.Debug
}

// command is `parley dev` on the same directory and mesh file, as a shell takes it;
// --port-base and --fresh, which hints are about, go behind it.
func (o devOptions) command() string {
	c := "parley dev"
	for _, f := range [][2]string{{"--dir", o.Dir}, {"--file", o.MeshFile}, {"--store", o.Store}, {"--metrics", o.Metrics}} {
		if f[1] != "" && f != [2]string{"--dir", defaultDir} {
			c += " " + f[0] + " " + quoted(f[1])
		}
	}
	if o.Try {
		c += " --try"
	}
	return c
}

// storeUsage is what --store is for.
const storeUsage = "`URL` of a PostgreSQL database, its password in PGPASSFILE (none: SQLite in --dir)"

func (a *app) devCommand() *cobra.Command {
	var o devOptions
	var logs logFlags
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "a whole mesh on this machine, for development only",
		Long: `Starts a server, an agent and the example shop (web, orders, payments and a
ledger, each a process of its own), and prints what to try. Ctrl-C stops it all.`,
		Example: `  parley dev                    ./parley.yaml, or else the example shop
  parley dev --try              the same, makes the calls itself, and ends
  parley dev -f parley.yaml     a mesh file of your own, without the shop
  parley dev --fresh            forget the keys, the history and the log first`,
		Args: arguments(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.JSON, o.Terminal = a.term.JSON(), a.term
			if err := checkAddress("metrics", o.Metrics); err != nil {
				return err
			}
			if o.Dir == "" {
				return usage("parley dev --dir .parley", "--dir names a directory")
			}
			if o.Store != "" && o.Fresh {
				return usage("make a new database with createdb, and name that", "--fresh forgets a data directory, and no database on a server")
			}
			if o.Try && o.MeshFile != "" {
				return usage("parley dev --try", "--try makes the calls of the built-in shop, so it goes without --file")
			}
			var err error
			if o.Logger, err = a.logger("parley dev --help", logs); err != nil {
				return err
			}
			return a.runDev(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultDir, "data `directory`, made where it is not there")
	f.StringVarP(&o.MeshFile, "file", "f", "", "mesh `file` to run instead of the shop (./parley.yaml, where that is there)")
	f.StringVar(&o.Store, "store", "", storeUsage)
	f.BoolVar(&o.Try, "try", false, "make the calls of the tour, say what came of each, and end")
	f.BoolVar(&o.Fresh, "fresh", false, "forget everything in the data directory first")
	f.StringVar(&o.Metrics, "metrics", "", "`host:port` for metrics and health")
	logs.add(f, "text", "warn", "")
	f.IntVar(&o.PortBase, "port-base", 0, "first `port` of the shop (0: as before, 8440 at first; -1: a free range)")
	cmd.AddCommand(a.devTokenCommand())
	cmd.AddCommand(&cobra.Command{
		Use: "app NAME", Short: "one process of the example shop", Hidden: true, Args: arguments(1, 1, "the NAME of an application"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runDevApp(cmd.Context(), args[0]) },
	})
	return cmd
}

// checkAddress refuses a host:port that is none.
func checkAddress(flag, addr string) error {
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if n, nerr := strconv.Atoi(port); err != nil || nerr != nil || n < 0 || n > 65535 {
		return usage("for example --"+flag+" 127.0.0.1:7445", "--%s is host:port, not %q", flag, addr)
	}
	return nil
}
