package firewall

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/fault"
)

const (
	nftTime = 10 * time.Second
	maxSaid = 64 << 10 // of what the program prints
)

// programs are where nft is: not everybody's PATH has the directories of root, and
// nobody's PATH is to choose what changes a packet filter.
var programs = []string{"/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft", "/run/current-system/sw/bin/nft"}

// NFT is the packet filter of this network namespace. The errors of its methods are a
// *fault.Fault, and nothing is changed where there is one.
type NFT struct{}

// Put puts r in, in the place of what was there, in one transaction.
func (NFT) Put(ctx context.Context, r Rules) error {
	_, err := nft(ctx, r.String(), "-f", "-")
	return err
}

// Remove takes our table out, if it is there.
func (NFT) Remove(ctx context.Context) error {
	_, err := nft(ctx, absent, "-f", "-")
	return err
}

// Listed is our table as it is in force, "" where there is none.
func (NFT) Listed(ctx context.Context) (string, error) {
	text, err := nft(ctx, "", append([]string{"list", "table"}, strings.Fields(Table)...)...)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return text, err
}

// nft runs the program. It gets no environment but one that fixes its language.
func nft(ctx context.Context, in string, args ...string) (string, error) {
	program := ""
	for _, p := range programs {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			program = p
			break
		}
	}
	if program == "" {
		return "", fault.New(fault.FirewallUnusable, "install it: apt-get install nftables", "the program nft is not installed")
	}
	ctx, done := context.WithTimeout(ctx, nftTime)
	defer done()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(in)
	out, errs := &bounded{}, &bounded{}
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	said := errs.String()
	switch {
	case err == nil:
		return out.String(), nil
	case ctx.Err() != nil:
		return "", fault.Wrap(ctx.Err(), fault.FirewallUnusable, "run it by hand: "+program+" list ruleset", "nft did not answer")
	case strings.Contains(said, "No such file or directory") && args[0] == "list":
		return "", fs.ErrNotExist
	case strings.Contains(said, "Operation not permitted"), strings.Contains(said, "Permission denied"):
		return "", fault.New(fault.FirewallUnusable, "run this as root, or give the agent CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN in its systemd unit", "this user may not change the packet filter")
	}
	first, _, _ := strings.Cut(strings.TrimSpace(said), "\n")
	if first == "" {
		first = err.Error()
	}
	return "", fault.New(fault.FirewallUnusable, "see whether the kernel has nftables: nft list ruleset", "nft does not take the rules: %s", strconv.QuoteToASCII(first))
}

// bounded keeps the beginning of what is written.
type bounded struct{ bytes.Buffer }

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if room := maxSaid - b.Len(); room < len(p) {
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}
