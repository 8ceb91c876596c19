package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/parleymesh/parley/cmd/parley/term"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/node"
)

func (a *app) agentCommand() *cobra.Command {
	var cfg node.HostConfig
	var tokenFile string
	var logs logFlags
	cmd := &cobra.Command{
		Use: "agent", Short: "one on each host: workload identity, sidecars, gateways",
		Long: `Runs until it is stopped. The first start needs a join token; after that its
directory is its identity, and it starts and serves whether a server answers
or not.`,
		Example: `  parley join-token web1 > token            where the server runs
  parley agent --token-file token           on web1, the first time
  parley agent                              from then on`,
		Args: arguments(0, 0, "no arguments"),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "the agent's `directory`, made where it is not there")
	f.StringVar(&cfg.Socket, "socket", "", "`path` of the SPIFFE Workload API's socket")
	f.StringVar(&tokenFile, "token-file", "", "`file` with the join token; - is standard input")
	f.StringVar(&cfg.Advertise, "advertise", "", "`IP` address where other hosts reach this one")
	f.StringVar(&cfg.Metrics, "metrics", "", "`host:port` for metrics and health")
	logs.add(f, "", "info", textWhereWatched)
	f.BoolVar(&cfg.Firewall, "firewall", false, "keep app ports closed to all but this agent (see parley firewall)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Dir, cfg.Socket = a.places("agent", cfg.Dir, cfg.Socket)
		if err := checkAddress("metrics", cfg.Metrics); err != nil {
			return err
		}
		if ip, err := netip.ParseAddr(cfg.Advertise); cfg.Advertise != "" && (err != nil || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "") {
			return usage("for example --advertise 10.0.0.2", "--advertise is an IP address of this host, not %q", cfg.Advertise)
		}
		var err error
		if cfg.Logger, err = a.logger("parley agent --help", logs); err != nil {
			return err
		}
		if cfg.Token, err = a.readToken(tokenFile); err != nil {
			return err
		}
		cfg.Version, cfg.Clock = version().wire(), a.clock
		return a.runRole(cmd.Context(), "agent", func(ctx context.Context) (*node.Node, error) {
			if err := os.MkdirAll(filepath.Dir(cfg.Socket), 0o755); err != nil {
				return nil, err
			}
			return node.StartHost(ctx, cfg)
		}, func(n *node.Node) {
			socket, err := filepath.Abs(cfg.Socket) // in a URI, the first part of a relative path would be a host
			if err != nil {
				socket = cfg.Socket
			}
			a.term.Notef("parley agent of host %s runs.\n\n  Workload API   unix://%s\n  data           %s\n", n.Host(), socket, cfg.Dir)
		})
	}
	return cmd
}

// maxTokenFile is how much of a token file is read.
const maxTokenFile = 16 << 10

// readToken reads a join token; none where no file is named.
func (a *app) readToken(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	in := a.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fault.Wrap(pathCause(err), fault.JoinToken, "parley join-token HOST > "+name, "the token file %s cannot be read", name)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxTokenFile))
	if err != nil {
		return "", fault.Wrap(pathCause(err), fault.JoinToken, "parley join-token HOST", "the join token cannot be read")
	}
	return strings.TrimSpace(string(data)), nil
}

func (a *app) joinTokenCommand() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "join-token HOST", Short: "a token by which one host joins, once",
		Long: `Standard output is the token and nothing else. Whoever has it can become that
host until it is used or expires: bring it there as you would a password.`,
		Example: `  parley join-token web1 > token
  parley join-token web1 | ssh web1 parley agent --token-file -
  parley join-token web1 --ttl 10m`,
		Args: arguments(1, 1, "a HOST of the mesh file"),
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how `long` it is good")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if ttl < time.Second || ttl%time.Second != 0 {
			return usage("parley join-token --help", "--ttl is whole seconds from 1s, not %s", ttl)
		}
		return nil
	}
	cmd.RunE = a.ask(func(cmd *cobra.Command, c *api.Client, args []string) error {
		t, err := c.CreateJoinToken(cmd.Context(), api.JoinTokenRequest{Host: args[0], ExpiresIn: int64(ttl / time.Second)})
		if err != nil {
			return err
		}
		if a.term.JSON() {
			return a.term.Document("join_token", t)
		}
		a.term.Printf("%s\n", t.Token)
		a.term.Notef("\ngood for host %s, once; it ends %s\n", t.Host, term.Relative(t.Expires, a.clock.Now()))
		a.term.Hintf("On that host:  parley agent --token-file FILE\n")
		return nil
	})
	return cmd
}

// pathCause is why a file could not be used, without its name: the fault has it.
func pathCause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
