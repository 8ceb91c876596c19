package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/internal/node"
)

// defaultListen is where agents connect.
const defaultListen = ":7443"

func (a *app) serverCommand() *cobra.Command {
	var cfg node.Config
	var logs logFlags
	cmd := &cobra.Command{
		Use: "server", Short: "the control plane: CA, revisions, agents, audit log",
		Long: `Runs until it is stopped. Its data directory is its identity: back it up, and
start one server on it. Services keep running while it is away.`,
		Example: `  parley server --trust-domain shop.example --advertise 10.0.0.1:7443
  parley server                             the same, once it has a directory
  parley server --store 'postgres://parley@db/parley?sslmode=verify-full'
  parley server --dir ./srv --listen 127.0.0.1:7443 --advertise 127.0.0.1:7443`,
		Args: arguments(0, 0, "no arguments"),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "data `directory`, made where it is not there")
	f.StringVar(&cfg.Store, "store", "", storeUsage)
	f.StringVar(&cfg.APISocket, "socket", "", "`path` of the admin API's socket")
	f.StringVar(&cfg.TrustDomain, "trust-domain", "", "`name` of the realm, for a new data directory")
	f.StringVar(&cfg.Listen, "listen", defaultListen, "`host:port` where agents connect")
	f.StringSliceVar(&cfg.Advertise, "advertise", nil, "`host:port` by which agents find it, for join tokens")
	f.StringVar(&cfg.Metrics, "metrics", "", "`host:port` for metrics and health")
	logs.add(f, "", "info", textWhereWatched)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Dir, cfg.APISocket = a.places("server", cfg.Dir, cfg.APISocket)
		if err := checkServer(&cfg); err != nil {
			return err
		}
		var err error
		if cfg.Logger, err = a.logger("parley server --help", logs); err != nil {
			return err
		}
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		cfg.Host, cfg.ServerOnly = host, true
		cfg.Version, cfg.Clock = version().wire(), a.clock
		return a.runRole(cmd.Context(), "server", func(ctx context.Context) (*node.Node, error) {
			if err := os.MkdirAll(filepath.Dir(cfg.APISocket), 0o755); err != nil {
				return nil, err
			}
			return node.Start(ctx, cfg)
		}, func(n *node.Node) {
			a.term.Notef("parley server runs.\n\n  admin API   %s\n  agents      %s", cfg.APISocket, n.Address())
			if len(cfg.Advertise) > 0 {
				a.term.Notef(", advertised as %s", strings.Join(cfg.Advertise, ", "))
			}
			a.term.Notef("\n  data        %s\n\nNext\n  parley --api %s apply -f parley.yaml\n  parley --api %s join-token HOST\n", cfg.Dir, cfg.APISocket, cfg.APISocket)
		})
	}
	return cmd
}

// checkServer looks at the addresses, and advertises the one that is listened on
// where that is one that others can call.
func checkServer(cfg *node.Config) error {
	if err := checkAddress("listen", cfg.Listen); err != nil {
		return err
	}
	if err := checkAddress("metrics", cfg.Metrics); err != nil {
		return err
	}
	for _, addr := range cfg.Advertise {
		if err := checkAddress("advertise", addr); err != nil {
			return err
		}
		if host, port, _ := net.SplitHostPort(addr); host == "" || port == "0" {
			return usage("for example --advertise 10.0.0.1:7443", "--advertise is where agents find this server, not %q", addr)
		}
	}
	host, port, _ := net.SplitHostPort(cfg.Listen)
	if ip := net.ParseIP(host); len(cfg.Advertise) == 0 && port != "0" && host != "" && (ip == nil || !ip.IsUnspecified()) {
		cfg.Advertise = []string{cfg.Listen}
	}
	return nil
}

// runRole runs a node until it is asked to stop or ends by itself.
func (a *app) runRole(ctx context.Context, role string, start func(context.Context) (*node.Node, error), show func(*node.Node)) error {
	n, err := start(ctx)
	if err != nil {
		return err
	}
	show(n)
	select {
	case <-n.Done():
		return n.Err()
	case <-ctx.Done():
	}
	if err := n.Stop(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("stop the %s: %w", role, err)
	}
	return nil
}
